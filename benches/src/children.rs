//! Each store in a process of its own: its memory and CPU time are its own, and while another store is measured it is
//! stopped, so that nobody's background work falls into somebody else's time.
//!
//! Parent and child talk in lines of JSON: the child says its configuration, then answers each [`Order`] by a
//! [`PhaseResult`]; the end of its input ends it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::runner::{PhaseResult, Runner};
use crate::spec::{Phase, Spec};
use crate::store::Candidate;

/// What a child is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The phase to run.
    pub phase: Phase,
    /// Its round.
    pub round: u32,
}

/// The child's side: serves orders from standard input until it ends.
///
/// # Errors
/// The first failure of the store.
pub fn serve(candidate: Candidate, spec: &Spec, dir: &Path) -> Result<()> {
    let wrong = |cause| Error::io("standard output", cause);
    let mut runner = Runner::open(candidate, spec, dir)?;
    let mut out = std::io::stdout().lock();
    let mut say = |line: String| writeln!(out, "{line}").and_then(|()| out.flush()).map_err(wrong);
    say(to_json(&runner.configuration())?)?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|cause| Error::io("standard input", cause))?;
        let order: Order = from_json(&line)?;
        say(to_json(&runner.run(order.phase, order.round)?)?)?;
    }
    runner.close()
}

/// A store in its process, stopped unless it is running a phase.
#[derive(Debug)]
pub struct StoreProcess {
    name: &'static str,
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// What it said when it started.
    pub configuration: Vec<(String, String)>,
    group: Option<MemoryGroup>,
}

impl StoreProcess {
    /// Starts this very program as the store's process. With `memory_bytes_max` its memory, page cache included, is
    /// limited by a control group.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Refused`] when the limit cannot be set, the store's own failure.
    pub fn start(candidate: Candidate, spec: &Spec, dir: &Path, memory_bytes_max: Option<u64>) -> Result<StoreProcess> {
        let program = std::env::current_exe().map_err(|cause| Error::io("the path of this program", cause))?;
        let mut command = Command::new(program);
        command.args(["--serve", candidate.name, "--spec", &to_json(spec)?, "--dir"]).arg(dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // A stopped process whose parent was killed would stay for ever.
        let die_with_parent = || {
            // SAFETY: the call takes two numbers and changes nothing but this process's own setting.
            let set = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: what runs between fork and exec is one system call.
        unsafe { command.pre_exec(die_with_parent) };
        let mut child = command.spawn().map_err(|cause| Error::io("starting a store's process", cause))?;
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::client("a store's process without pipes"));
        };
        let group = memory_bytes_max.map(|bytes| MemoryGroup::around(child.id(), bytes)).transpose()?;
        let mut process = StoreProcess {
            name: candidate.name,
            child,
            orders: Some(orders),
            answers: BufReader::new(answers),
            configuration: Vec::new(),
            group,
        };
        process.configuration = from_json(&process.answer()?)?;
        process.signal(libc::SIGSTOP);
        Ok(process)
    }

    /// Runs a phase to its end.
    ///
    /// # Errors
    /// The store's failure, which it has printed.
    pub fn run(&mut self, phase: Phase, round: u32) -> Result<PhaseResult> {
        self.signal(libc::SIGCONT);
        let order = to_json(&Order { phase, round })?;
        let orders = self.orders.as_mut().ok_or_else(|| Error::client("a store's process that has ended"))?;
        writeln!(orders, "{order}").map_err(|cause| Error::io(self.name, cause))?;
        let result = from_json(&self.answer()?)?;
        self.signal(libc::SIGSTOP);
        Ok(result)
    }

    /// Lets it close its store and waits for its end.
    ///
    /// # Errors
    /// [`Error::Store`] when it did not end well.
    pub fn finish(mut self) -> Result<()> {
        self.signal(libc::SIGCONT);
        self.orders = None;
        let ended = self.child.wait().map_err(|cause| Error::io(self.name, cause))?;
        if ended.success() { Ok(()) } else { Err(Error::store(self.name, format!("its process ended with {ended}"))) }
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line).map_err(|cause| Error::io(self.name, cause))?;
        if read == 0 {
            return Err(Error::store(self.name, "its process ended; its message stands above"));
        }
        Ok(line)
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so its id is still its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }
}

impl Drop for StoreProcess {
    fn drop(&mut self) {
        // After `finish` both only report that it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.group.take();
    }
}

/// A control group of the memory controller around one process; removed when dropped.
#[derive(Debug)]
struct MemoryGroup {
    path: PathBuf,
}

impl MemoryGroup {
    fn around(process: u32, bytes: u64) -> Result<MemoryGroup> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (root, limit) =
            if v1.is_dir() { (v1, "memory.limit_in_bytes") } else { (Path::new("/sys/fs/cgroup"), "memory.max") };
        let group = MemoryGroup { path: root.join(format!("antumbra-bench-{process}")) };
        let set = || {
            std::fs::create_dir(&group.path)?;
            std::fs::write(group.path.join(limit), bytes.to_string())?;
            std::fs::write(group.path.join("cgroup.procs"), process.to_string())
        };
        set().map_err(|cause| {
            Error::refused(format!("--enforce-memory: {}: {cause} (needs root)", group.path.display()))
        })?;
        Ok(group)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // What is left of it holds nothing.
        let _ = std::fs::remove_dir(&self.path);
    }
}

fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|cause| Error::client(format!("JSON: {cause}")))
}

fn from_json<T: for<'a> Deserialize<'a>>(line: &str) -> Result<T> {
    serde_json::from_str(line).map_err(|cause| Error::client(format!("JSON: {cause} in {line}")))
}
