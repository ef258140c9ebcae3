//! Which CPUs a node may run on: two nodes that share none disturb each other as little as this machine lets them, as two hosts
//! would.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// The CPUs of one node.
#[derive(Clone, Copy)]
pub struct Cpus(Option<libc::cpu_set_t>);

/// All CPUs for both nodes.
pub const SHARED: [Cpus; 2] = [Cpus(None); 2];

/// The CPUs of this process in two halves; [`SHARED`] if it has one alone.
pub fn halves() -> [Cpus; 2] {
    // SAFETY: a set of bits; all of them may be zero.
    let mut all: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the size is that of the set, which is ours to write.
    let known = unsafe { libc::sched_getaffinity(0, size_of_val(&all), &mut all) };
    // SAFETY: the number is below the set's size.
    let own = (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &all) }).collect::<Vec<_>>();
    if known != 0 || own.len() < 2 {
        return SHARED;
    }
    let (first, second) = own.split_at(own.len() / 2);
    [first, second].map(|cpus| {
        // SAFETY: as above.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for cpu in cpus {
            // SAFETY: the number was found in a set of the same size.
            unsafe { libc::CPU_SET(*cpu, &mut set) };
        }
        Cpus(Some(set))
    })
}

impl Cpus {
    /// Whether the other node has none of them.
    pub fn are_own(&self) -> bool {
        self.0.is_some()
    }

    /// Has the command's process run on these alone.
    pub fn confine(self, command: &mut Command) {
        let Some(set) = self.0 else {
            return;
        };
        let confine = move || {
            // SAFETY: the size is that of the set, which is only read.
            match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: between fork and exec it makes one system call and allocates nothing.
        unsafe { command.pre_exec(confine) };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn halves_share_no_cpu_and_a_command_runs_on_its_own() {
        let halves = halves();
        if !halves[0].are_own() {
            assert_eq!(std::thread::available_parallelism().unwrap().get(), 1);
            return;
        }
        let seen = halves.map(|cpus| {
            let mut command = Command::new("sh");
            command.args(["-c", "grep Cpus_allowed_list /proc/self/status"]);
            cpus.confine(&mut command);
            String::from_utf8(command.output().unwrap().stdout).unwrap()
        });
        assert!(seen[0].contains(char::is_numeric), "{seen:?}");
        assert_ne!(seen[0], seen[1]);
    }
}
