//! Checks what the runtime needs before it starts: glommio ends the process where it cannot set up its rings.

use std::io;

use crate::error::{Error, Result};

/// Locked memory that one executor's rings need at least.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// Checks that io_uring may be used and that enough memory may be locked.
///
/// # Errors
/// [`Error::Environment`] saying what to change.
pub fn probe() -> Result<()> {
    probe_io_uring()?;
    probe_memlock()
}

fn probe_io_uring() -> Result<()> {
    // `struct io_uring_params` has 120 bytes; zeroed, it asks for a plain ring.
    let mut params = [0_u64; 15];
    // SAFETY: the kernel reads and writes 120 bytes at the pointer, which `params` has.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 8_u32, params.as_mut_ptr()) };
    if fd >= 0 {
        // SAFETY: the descriptor was just returned to us and nobody else knows it.
        unsafe { libc::close(fd as i32) };
        return Ok(());
    }
    let cause = io::Error::last_os_error();
    let advice = match cause.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has no io_uring; Linux 5.8 or later is needed",
        Some(libc::EPERM) => {
            "io_uring is forbidden: set sysctl kernel.io_uring_disabled=0, and in a container allow io_uring_setup in its seccomp profile"
        }
        Some(libc::ENOMEM) => "too little locked memory for a ring: raise `ulimit -l`",
        _ => "io_uring_setup failed",
    };
    Err(Error::Environment { what: format!("{advice} ({cause})") })
}

fn probe_memlock() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    let status = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    if status == 0 && limit.rlim_cur < MEMLOCK_BYTES_MIN {
        return Err(Error::Environment {
            what: format!(
                "{} bytes of memory may be locked, each shard needs {MEMLOCK_BYTES_MIN}: raise `ulimit -l`",
                limit.rlim_cur
            ),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn probe_on_this_machine_passes_or_says_what_to_change() {
        if let Err(cause) = super::probe() {
            let text = cause.to_string();
            assert!(text.contains("io_uring") || text.contains("ulimit"), "{text}");
        }
    }
}
