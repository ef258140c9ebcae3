//! One command: shown while it runs, stopped when it takes too long, its JSON read at the end.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use crate::CliError;

/// Lines of what a failed command said that are kept.
const LINES_KEPT: usize = 20;

/// What a command left.
pub struct Left {
    pub stdout: String,
    /// Why it failed, with the last that it said.
    pub error: Option<String>,
}

/// Runs a command for `limit` at most, its lines of standard error (and of standard output, with `lines_of_both`) beside the
/// bar.
pub fn run(mut command: Command, limit: Duration, lines_of_both: bool, bar: &ProgressBar) -> Result<Left, CliError> {
    let die_with_parent = || {
        // SAFETY: the call takes two numbers and changes nothing but this process's own setting.
        let set = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: what runs between fork and exec is one system call.
    unsafe { command.pre_exec(die_with_parent) };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|cause| format!("{}: {cause}", command.get_program().display()))?;
    let (Some(mut out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("a command without pipes".into());
    };
    let (shown, begin) = (bar.clone(), Instant::now());
    let saying = std::thread::spawn(move || follow(err, &shown));
    let shown = bar.clone();
    let printing = std::thread::spawn(move || {
        if lines_of_both {
            return follow(out, &shown).join("\n");
        }
        let mut bytes = Vec::new();
        // What could be read is used; a cut-off text is no JSON.
        let _ = out.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Ok(status);
        }
        if begin.elapsed() > limit {
            kill(&mut child)?;
            break Err(format!("stopped: it took more than {} s", limit.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let stdout = printing.join().map_err(|_| "reading a command's output panicked")?;
    let said = saying.join().map_err(|_| "reading a command's messages panicked")?.join("\n");
    let error = match status {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("{status}\n{said}")),
        Err(what) => Some(format!("{what}\n{said}")),
    };
    Ok(Left { stdout, error: error.map(|error| error.trim().to_string()) })
}

/// Shows each line beside the bar; the last ones.
fn follow(from: impl Read, bar: &ProgressBar) -> Vec<String> {
    let mut lines = Vec::new();
    for line in BufReader::new(from).lines().map_while(Result::ok).filter(|line| !line.trim().is_empty()) {
        bar.set_message(line.chars().take(100).collect::<String>());
        lines.push(line);
        if lines.len() > LINES_KEPT {
            lines.remove(0);
        }
    }
    lines
}

/// Kills a process and all below it: servers and stores that it started, which may be stopped.
fn kill(child: &mut Child) -> std::io::Result<()> {
    let mut family = vec![child.id()];
    let parents = parents();
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(process, _)| process));
        at += 1;
    }
    for process in family.iter().skip(1) {
        // SAFETY: the call takes two numbers; the process was just seen below one that is still ours.
        unsafe { libc::kill(*process as i32, libc::SIGKILL) };
    }
    child.kill()?;
    child.wait().map(drop)
}

/// Every process and its parent.
fn parents() -> Vec<(u32, u32)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    let parent = |id: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name in parentheses may hold spaces; state and parent stand behind it.
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
    };
    ids.filter_map(|id| Some((id, parent(id)?))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Left {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, limit, false, &ProgressBar::hidden()).unwrap()
    }

    #[test]
    fn a_command_leaves_its_output_and_a_failed_one_what_it_said() {
        let left = shell("echo '{}'; echo working >&2", Duration::from_secs(20));
        assert_eq!((left.stdout.as_str(), left.error), ("{}\n", None));
        let error = shell("echo the disk is on fire >&2; exit 3", Duration::from_secs(20)).error.unwrap();
        assert!(error.contains("exit status: 3") && error.contains("the disk is on fire"), "{error}");
        let missing = run(Command::new("/no/such/program"), Duration::ZERO, false, &ProgressBar::hidden());
        assert!(missing.err().unwrap().to_string().contains("/no/such/program"));
    }

    #[test]
    fn a_command_that_takes_too_long_ends_with_all_below_it() {
        let begin = Instant::now();
        let left = shell("sleep 600 & echo $! >&2; sleep 600", Duration::from_millis(300));
        let error = left.error.unwrap();
        assert!(error.contains("more than 0 s") && begin.elapsed() < Duration::from_secs(60), "{error}");
        let below: u32 = error.lines().last().unwrap().parse().unwrap();
        let gone = || {
            !std::path::Path::new(&format!("/proc/{below}")).exists() || {
                std::fs::read_to_string(format!("/proc/{below}/stat")).is_ok_and(|stat| stat.contains(") Z "))
            }
        };
        // A killed process closes its pipes before it is gone.
        let until = Instant::now() + Duration::from_secs(20);
        while !gone() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(gone(), "{below} is still there");
    }
}
