//! Many seeds on many threads: what the simulators' programs share.

use std::fmt::{Debug, Display};
use std::io::IsTerminal;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Runs each seed once, with `until_found` only until one fails. Failures are printed as they come, and come back ascending
/// by seed; `add` sums up the reports of the others.
pub fn run_seeds<R: Default + Send, F: Display + Send>(
    threads: usize,
    seeds: Range<u64>,
    until_found: bool,
    run: impl Fn(u64) -> Result<R, F> + Sync,
    add: impl Fn(&mut R, &R) + Sync,
) -> (R, Vec<F>) {
    let next = AtomicU64::new(seeds.start);
    let found = AtomicBool::new(false);
    let shows_progress = std::io::stderr().is_terminal();
    let results = Mutex::new((R::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !(until_found && found.load(Ordering::Relaxed)) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let result = run(seed);
                    if shows_progress {
                        eprint!("\r{} of {} ", seed - seeds.start + 1, seeds.end - seeds.start);
                    }
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(report) => add(&mut results.0, &report),
                        Err(failure) => {
                            println!("FAILED {failure}");
                            found.store(true, Ordering::Relaxed);
                            results.1.push((seed, failure));
                        }
                    }
                }
            });
        }
    });
    let (sum, mut failures) = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    failures.sort_by_key(|(seed, _)| *seed);
    (sum, failures.into_iter().map(|(_, failure)| failure).collect())
}

/// Says whether a planted defect was found by `seeds` seeds, and by which; true if it was.
pub fn report_hunt<F: Display>(defect: &impl Debug, seeds: u64, failures: &[F]) -> bool {
    match failures.first() {
        Some(failure) => println!("{defect:?} found by {failure}"),
        None => println!("FAILED: {defect:?} is not found by {seeds} seeds"),
    }
    !failures.is_empty()
}
