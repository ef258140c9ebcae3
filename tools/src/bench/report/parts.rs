//! Which parts a report has, and with what options in each mode.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum;

use super::ReportOptions;
use super::figures::Reader;
use crate::CliError;

/// How thorough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Under a minute: whether every part works. Its figures mean nothing.
    Smoke,
    /// Ten minutes on two cores.
    Quick,
    /// An hour and a half, with peers.
    Full,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Smoke => "smoke",
            Mode::Quick => "quick",
            Mode::Full => "full",
        }
    }

    /// One of three.
    fn pick<T>(self, smoke: T, quick: T, full: T) -> T {
        match self {
            Mode::Smoke => smoke,
            Mode::Quick => quick,
            Mode::Full => full,
        }
    }
}

/// A part that is to be run.
pub struct Job {
    pub name: &'static str,
    pub title: &'static str,
    pub about: &'static str,
    pub reader: Reader,
    /// How to run it, or why it is left out.
    pub task: Result<Task, String>,
    /// A part that takes longer is stopped.
    pub limit: Duration,
}

/// A command.
pub struct Task {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// Criterion writes its estimates into a folder; all others print JSON.
    pub criterion: bool,
}

impl Task {
    /// As one would type it.
    pub fn text(&self) -> String {
        let program = self.program.file_name().unwrap_or(self.program.as_os_str()).to_string_lossy();
        format!("{program} {}", self.arguments.join(" "))
    }

    pub fn command(&self, criterion_home: &Path) -> Command {
        let mut command = Command::new(&self.program);
        // What it says when it fails is to be read, not where it was then.
        command.args(&self.arguments).env("RUST_BACKTRACE", "0");
        if self.criterion {
            command.env("CRITERION_HOME", criterion_home);
        }
        command
    }
}

const STORES: &str = "Each store in a process of its own that is stopped while another is measured; within a round the stores \
    take turns, and who goes first changes. Same keys, values, distribution, durability, memory budget, clients. Closed loop. \
    Ratios are of neighbours of one round. CPU is the process's own for one operation, background work included.";

/// The parts in the order in which they are run. `trace` is the bundled one.
pub fn jobs(options: &ReportOptions, trace: &Path) -> Result<Vec<Job>, CliError> {
    let mode = options.mode();
    let own = std::env::current_exe()?;
    let mut dir = Vec::new();
    if let Some(path) = &options.dir {
        dir = vec!["--dir".to_string(), path.display().to_string()];
    }
    let words = |text: String| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    let plain = |text: String| Ok(Task { program: own.clone(), arguments: words(text), criterion: false });
    let placed = |text: String| {
        let arguments = [words(text), dir.clone()].concat();
        Ok(Task { program: own.clone(), arguments, criterion: false })
    };
    // Antumbra alone by this program, with peers by the one that has them.
    let stores = |engines: &str, text: String| match &options.compare {
        Some(program) => {
            let arguments = [words(format!("--engines {engines} {text} --json")), dir.clone()].concat();
            Ok(Task { program: program.clone(), arguments, criterion: false })
        }
        None => placed(format!("bench ycsb {text} --json")),
    };
    let bench = |program: &Option<PathBuf>, name: &str, text: &str| match program {
        Some(program) => Ok(Task { program: program.clone(), arguments: words(text.into()), criterion: true }),
        None => Err(format!("criterion's program was not given (--{name} PATH; cargo xtask bench gives it)")),
    };
    let with_peers = |task: Result<Task, String>| match &options.compare {
        Some(_) => task,
        None => Err("the peers' program was not given (--compare PATH; cargo xtask bench --peers gives it)".into()),
    };
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    let job = |name, title, about, reader, limit, task| Job { name, title, about, reader, task, limit: minutes(limit) };

    let times = mode.pick("--seconds 0.1 --rounds 1", "--seconds 0.5 --rounds 3", "--seconds 2 --rounds 5");
    let device = mode.pick(
        "--mib 4 --seconds 0.2 --rounds 1",
        "--mib 256 --seconds 1 --rounds 3",
        "--mib 512 --seconds 2 --rounds 5",
    );
    let timing = mode.pick(
        "--bench --noplot --sample-size 10 --warm-up-time 0.01 --measurement-time 0.02",
        "--bench --noplot --sample-size 20 --warm-up-time 0.3 --measurement-time 1",
        "--bench --noplot",
    );
    let ycsb = mode.pick(
        "--keys 5000 --memory-mb 64 --workload C,A,E --put-clients 4 --seconds 0.1 --warmup 0 --rounds 1",
        "--memory-mb 256 --put-clients 64 --seconds 1.5 --warmup 1 --rounds 3",
        "--memory-mb 256 --put-clients 64 --seconds 2 --warmup 1 --rounds 5",
    );
    let fills = mode.pick(
        "--keys 5000 --memory-mb 64 --seconds 0.1 --warmup 0 --rounds 1",
        "--memory-mb 256 --seconds 1 --warmup 0.5 --rounds 3",
        "--memory-mb 128 --seconds 2 --warmup 1 --rounds 5",
    );
    let replay = mode.pick(
        "--memory-mb 64 --value-bytes 32 --seconds 0.1 --warmup 0 --rounds 1",
        "--memory-mb 256 --value-bytes 1000 --seconds 2 --warmup 1 --rounds 3",
        "--memory-mb 256 --value-bytes 1000 --seconds 2 --warmup 1 --rounds 5",
    );
    let moved = mode.pick(
        "--mib 4 --rate 300 --before-s 1 --after-s 1 --runs 1",
        "--mib 64 --before-s 6 --after-s 3 --runs 3",
        "--mib 128 --before-s 10 --after-s 5 --runs 5",
    );
    let copied = mode.pick(
        "--mib 4 --rate 10 --before-s 1 --after-s 1 --runs 1",
        "--mib 128 --rate 10 --before-s 1 --after-s 1 --runs 3",
        "--mib 512 --rate 10 --before-s 1 --after-s 1 --runs 5",
    );
    let eval = mode.pick("--windows 128 --segments 64 --scorer ewma,gru,auto", "", "");
    let bundled = || format!("--trace {}:arrival", trace.display());
    let traces: Vec<String> = options.traces.iter().map(|given| format!("--trace {given}")).collect();
    let traces = if traces.is_empty() { bundled() } else { traces.join(" ") };
    let trace = trace.display();
    let all = "antumbra,rocksdb,rocksdb-pagecache,fjall,redb,lmdb";
    Ok(vec![
        job(
            "limits",
            "What the machine can do",
            "fio and blocking calls on the same device, copies of 64 MiB, one TCP connection and one QUIC stream over the \
             loopback; all take turns. What follows is to be held against these, not against figures of other hours.",
            Reader::Limits,
            5,
            placed(format!("bench limits {times} --json")),
        ),
        job(
            "device",
            "The engine beside fio",
            "Engine and fio take turns, with the same block size and depth.",
            Reader::Device,
            10,
            placed(format!("bench device {device} --json")),
        ),
        job(
            "hot",
            "Hot pieces",
            "Criterion's estimates, each with its 95 % interval. What the machine's limits let one expect of each stands beside \
             its code (benches/benches/pieces).",
            Reader::Criterion,
            20,
            bench(&options.hot, "hot", timing),
        ),
        job("ycsb", "YCSB", STORES, Reader::Stores, 50, stores(all, ycsb.into())),
        job(
            "ycsb-4x",
            "YCSB, data of four times the memory",
            "As above, each process limited to its budget and what the harness needs, page cache included.",
            Reader::Stores,
            20,
            with_peers(if mode == Mode::Full {
                let text = "--data 4x --memory-mb 128 --enforce-memory --workload C,B,A --put-clients 0 --seconds 3 --warmup 1.5";
                stores("antumbra,rocksdb,fjall", format!("{text} --rounds 5"))
            } else {
                Err("only in a full report".into())
            }),
        ),
        job(
            "puts",
            "Durable puts of two clients",
            "As above; C is there because a run needs a workload.",
            Reader::Stores,
            10,
            with_peers(if mode == Mode::Full {
                stores(all, "--memory-mb 128 --workload C --put-clients 2 --seconds 2 --warmup 0.5 --rounds 5".into())
            } else {
                Err("only in a full report".into())
            }),
        ),
        job(
            "fills",
            "Fills, as db_bench has them",
            "Loading in key order and at random (`load`), then reads of random keys, all rows in key order, overwrites; every key \
             alike likely.",
            Reader::Stores,
            20,
            stores(all, format!("--fills {fills}")),
        ),
        job(
            "replay",
            "A recorded trace, replayed",
            "The requests of the trace as fast as they go; its keys lie in its own order.",
            Reader::Stores,
            20,
            stores(all, format!("--trace {trace} {replay}")),
        ),
        job(
            "scores",
            "What the predictor's scores gain in the engine",
            "Each use against the engine without it; the modes take turns.",
            Reader::Scores,
            20,
            if mode == Mode::Full {
                placed("bench scores --mib 512 --memory-mib 32 --seconds 2 --warm-seconds 3 --json".into())
            } else {
                Err("only in a full report".into())
            },
        ),
        job(
            "predictor",
            "The predictor on recorded traces",
            "Share of the horizon's requests that hit segments already copied, in percent of the oracle's; the last fifth of the \
             trace.",
            Reader::Predictor,
            20,
            plain(format!("predict eval {eval} {traces} --json")),
        ),
        job(
            "pass",
            "The predictor's pass",
            "Criterion's estimates of a pass over all segments, and of the longest slice between two chances to serve a request.",
            Reader::Criterion,
            10,
            bench(&options.predictor, "predictor", timing),
        ),
        job(
            "move",
            "A partition moves under load",
            "An open-loop load, latency from the intended send time; fresh nodes for each run, both and the load on this machine. The \
             copy yields to what requests see.",
            Reader::Move,
            20,
            placed(format!("bench move {moved} --json")),
        ),
        job(
            "copy",
            "A partition moves as fast as it can",
            "Ten requests a second beside a copy that yields to nobody; held against what QUIC alone moves between the same two \
             processes.",
            Reader::Move,
            10,
            placed(format!("bench move {copied} --set-point off --json")),
        ),
    ])
}
