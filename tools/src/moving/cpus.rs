//! Which CPUs a node may run on: two nodes that share none disturb each other as little as this machine lets them, as two hosts
//! would.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Some of this machine's CPUs.
#[derive(Clone, Copy)]
pub struct Cpus(libc::cpu_set_t);

/// The CPUs of this process in two halves; `None` if it has one alone.
pub fn halves() -> Option<[Cpus; 2]> {
    // SAFETY: a set of bits; all of them may be zero.
    let mut all: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the size is that of the set, which is ours to write.
    let known = unsafe { libc::sched_getaffinity(0, size_of_val(&all), &mut all) };
    // SAFETY: the number is below the set's size.
    let own = (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &all) }).collect::<Vec<_>>();
    if known != 0 || own.len() < 2 {
        return None;
    }
    let (first, second) = own.split_at(own.len() / 2);
    Some([first, second].map(|cpus| {
        // SAFETY: as above.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for cpu in cpus {
            // SAFETY: the number was found in a set of the same size.
            unsafe { libc::CPU_SET(*cpu, &mut set) };
        }
        Cpus(set)
    }))
}

impl Cpus {
    /// Has the command's process run on these alone.
    pub fn confine(self, command: &mut Command) {
        let confine = move || {
            // SAFETY: the size is that of the set, which is only read.
            match unsafe { libc::sched_setaffinity(0, size_of_val(&self.0), &self.0) } {
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
        let Some(halves) = halves() else {
            return;
        };
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
