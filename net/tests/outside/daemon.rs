//! Servers of other people, as processes of a test: on free ports of the loopback, in a folder that goes with them.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The program as `cargo xtask setup` has unpacked it, or as it is installed. Says that the test is skipped if there is none.
pub fn find(program: &str) -> Option<PathBuf> {
    let own = ["usr/bin", "usr/sbin"].map(|folder| unpacked().join(folder));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = own.into_iter().chain(std::env::split_paths(&path)).chain([PathBuf::from("/usr/sbin")]);
    let found = all.map(|folder| folder.join(program)).find(|file| file.is_file());
    if found.is_none() {
        println!("SKIPPED: there is no {program}; cargo xtask setup fetches it");
    }
    found
}

fn unpacked() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    cache.join("antumbra/daemons")
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A process; killed when dropped.
pub struct Daemon {
    child: Child,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    pub fn start(program: &PathBuf, args: &[String]) -> Daemon {
        let mut command = Command::new(program);
        let libraries = std::fs::read_dir(unpacked().join("usr/lib")).into_iter().flatten().flatten();
        let libraries = libraries.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with("-linux-gnu"));
        if let Some(libraries) = libraries.filter(|_| program.starts_with(unpacked())) {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let silent = std::env::var_os("ANTUMBRA_DAEMON_LOG").is_none();
        if silent {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        Daemon { child: command.args(args).spawn().unwrap() }
    }

    /// Stops the process where it is, or lets it go on.
    pub fn stand_still(&self, still: bool) {
        let signal = if still { "-STOP" } else { "-CONT" };
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

/// Waits until somebody listens.
pub fn await_port(address: SocketAddr) {
    until("the server listens", || TcpStream::connect(address).is_ok());
}

/// Waits for what is to come about.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(30), "not within half a minute: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
