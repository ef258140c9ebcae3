//! Limits of a process: locked memory, CPUs, memory of a control group. Each in a process of its own: this program, told by an
//! environment variable what to do.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use antumbra_engine::blocking::Engine;
use antumbra_engine::keyspace::KeyspaceOptions;
use antumbra_hw_tests::here;

use super::mount::folder;
use super::{alone, key, missing, small, value};

const TASK: &str = "ANTUMBRA_HW_TASK";
const DIR: &str = "ANTUMBRA_HW_DIR";
/// Data that the process in a control group writes.
const ROWS: usize = 6_000;
const VALUE_BYTES: usize = 32 << 10;

/// What a process of its own does; nothing if none was asked for.
#[test]
fn task() {
    let (Ok(task), Ok(dir)) = (std::env::var(TASK), std::env::var(DIR)) else { return };
    let dir = Path::new(&dir);
    match task.as_str() {
        "open" => match Engine::open(small(dir)) {
            Ok(engine) => {
                println!("OPENED");
                engine.close().unwrap();
            }
            Err(cause) => println!("REFUSED: {cause}"),
        },
        "pinned" => {
            let before = threads();
            let mut config = small(dir);
            config.first_cpu = Some(1);
            match Engine::open(config) {
                Ok(engine) => {
                    for (thread, cpus) in threads() {
                        if !before.iter().any(|(known, _)| *known == thread) {
                            println!("THREAD {cpus}");
                        }
                    }
                    engine.close().unwrap();
                }
                Err(cause) => println!("REFUSED: {cause}"),
            }
        }
        "fill" => {
            let engine = Engine::open(small(dir)).unwrap();
            let rows = engine.open_keyspace("hw", KeyspaceOptions::default()).unwrap();
            let rows = rows.with_durability(antumbra_engine::Durability::Buffered);
            for number in 0..ROWS {
                rows.put(key(number), value(number, VALUE_BYTES)).unwrap();
            }
            assert_eq!(missing(&rows, ROWS, VALUE_BYTES), None);
            engine.close().unwrap();
            println!("FILLED");
        }
        other => panic!("no task {other}"),
    }
}

/// Ids of this process's threads and the CPUs that each may use.
fn threads() -> Vec<(String, String)> {
    let entries = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let cpus = |status: String| {
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).map(|list| list.trim().to_string())
    };
    entries
        .filter_map(|entry| {
            let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), cpus(status)?))
        })
        .collect()
}

/// This program with a task, behind what limits it.
fn limited(before: &[&str], task: &str, dir: &Path) -> String {
    let own = std::env::current_exe().unwrap().display().to_string();
    let line = [before, &[own.as_str(), "--exact", "limits::task", "--nocapture"]].concat();
    let Output { status, stdout, stderr } =
        Command::new(line[0]).args(&line[1..]).env(TASK, task).env(DIR, dir).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{line:?}: {status}: {said}");
    said
}

#[test]
fn too_little_locked_memory_is_refused_with_what_to_change() {
    if !here(&["memlock limit", "io_uring"]) {
        return;
    }
    let _alone = alone();
    let dir = folder();
    let said = limited(&["prlimit", "--memlock=65536:65536"], "open", dir.path());
    assert!(said.contains("REFUSED: ") && said.contains("ulimit -l"), "{said}");
    // What the documentation asks for suffices.
    let said = limited(&["prlimit", "--memlock=8388608:8388608"], "open", dir.path());
    assert!(said.contains("OPENED"), "{said}");
}

#[test]
fn pinned_engine_stays_on_its_cpu() {
    if !here(&["two CPUs", "io_uring"]) {
        return;
    }
    let _alone = alone();
    let dir = folder();
    let said = limited(&[], "pinned", dir.path());
    assert!(said.lines().any(|line| line == "THREAD 1"), "one thread is on CPU 1 alone: {said}");
}

/// A control group, removed when dropped.
struct Group {
    path: PathBuf,
}

impl Group {
    fn new(controller: &str, limits: &[(&str, &str, &str)]) -> Group {
        let root = Path::new("/sys/fs/cgroup");
        let first_version = root.join(controller).is_dir();
        let parent = if first_version { root.join(controller) } else { root.to_path_buf() };
        let group = Group { path: parent.join(format!("antumbra-hw-{controller}-{}", std::process::id())) };
        std::fs::create_dir(&group.path).unwrap();
        for (v1, v2, value) in limits {
            let name = if first_version { v1 } else { v2 };
            std::fs::write(group.path.join(name), value).unwrap();
        }
        group
    }

    /// Puts a shell into the group, which becomes what follows.
    fn enter(&self) -> Vec<String> {
        let procs = self.path.join("cgroup.procs").display().to_string();
        ["sh", "-c", &format!("echo $$ > {procs} && exec \"$@\""), "sh"].map(str::to_string).to_vec()
    }

    fn run(&self, task: &str, dir: &Path) -> String {
        let enter = self.enter();
        limited(&enter.iter().map(String::as_str).collect::<Vec<_>>(), task, dir)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}

#[test]
fn engine_pinned_outside_of_its_group_does_not_open() {
    if !here(&["control groups", "two CPUs", "io_uring"]) {
        return;
    }
    let _alone = alone();
    let group = Group::new("cpuset", &[("cpuset.mems", "cpuset.mems", "0"), ("cpuset.cpus", "cpuset.cpus", "0")]);
    let dir = folder();
    let said = group.run("open", dir.path());
    assert!(said.contains("OPENED"), "not pinned, it runs on what it may: {said}");
    let said = group.run("pinned", dir.path());
    assert!(said.contains("REFUSED: ") && !said.contains("THREAD"), "{said}");
}

/// The page cache is not used, so that memory stays within the budget however much is written.
#[test]
fn engine_writes_many_times_the_memory_of_its_group() {
    if !here(&["control groups", "io_uring"]) {
        return;
    }
    let _alone = alone();
    let limit = (64 << 20).to_string();
    let group = Group::new("memory", &[("memory.limit_in_bytes", "memory.max", &limit)]);
    let dir = folder();
    let said = group.run("fill", dir.path());
    assert!(said.contains("FILLED"), "{said}");
}

#[test]
fn engine_pins_to_every_numa_node() {
    if !here(&["NUMA", "io_uring"]) {
        return;
    }
    let _alone = alone();
    let nodes = std::fs::read_dir("/sys/devices/system/node").unwrap().flatten();
    for node in nodes {
        let Ok(list) = std::fs::read_to_string(node.path().join("cpulist")) else { continue };
        let Some(first) = list.trim().split(['-', ',']).next().and_then(|cpu| cpu.parse::<usize>().ok()) else {
            continue;
        };
        let dir = folder();
        let mut config = small(dir.path());
        config.first_cpu = Some(first);
        let engine = Engine::open(config).unwrap();
        assert!(threads().iter().any(|(_, cpus)| *cpus == first.to_string()), "{first}");
        engine.close().unwrap();
    }
}

/// glommio opens its files in another way where the device can be polled; elsewhere there is nothing to see.
#[test]
fn engine_works_on_a_device_with_poll_queues() {
    if !here(&["poll queues"]) {
        return;
    }
    let _alone = alone();
    let dir = folder();
    let (engine, rows) = super::open(dir.path()).unwrap();
    for number in 0..100 {
        rows.put(key(number), value(number, 100)).unwrap();
    }
    assert_eq!(missing(&rows, 100, 100), None);
    engine.close().unwrap();
}
