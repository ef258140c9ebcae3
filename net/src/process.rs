//! What the kernel says of this process.

/// Bytes of memory that this process has; 0 where that cannot be found out.
pub(crate) fn resident_bytes() -> u64 {
    const PAGE_BYTES: u64 = 4096;
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * PAGE_BYTES
}

/// Time in user and in kernel mode.
pub(crate) fn cpu_seconds() -> Option<(f64, f64)> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may have spaces.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11).map(|field| field.parse::<f64>().ok());
    Some((fields.next()?? / TICKS_PER_SECOND, fields.next()?? / TICKS_PER_SECOND))
}

/// What the kernel says of a thread of this process: its state, and what it waits for. For people.
pub(crate) fn thread_waits_for(name: &str) -> String {
    let is_named = |comm: &str| {
        // A number of the runtime may stand behind the name.
        comm.trim_end().strip_prefix(name).is_some_and(|rest| !rest.starts_with(|sign: char| sign.is_ascii_digit()))
    };
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten().map(|entry| entry.path());
    let found =
        threads.into_iter().find(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| is_named(&comm)));
    let Some(path) = found else {
        return "gone".into();
    };
    let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
    let state = match stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()) {
        Some('R') => "running",
        Some('S') => "asleep",
        Some('D') => "waiting for the device",
        Some('T' | 't') => "stopped",
        _ => "in an unknown state",
    };
    match std::fs::read_to_string(path.join("wchan")) {
        Ok(place) if !place.is_empty() && place != "0" => format!("{state} in {place}"),
        _ => state.into(),
    }
}
