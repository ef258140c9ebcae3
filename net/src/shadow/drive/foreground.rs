//! The foreground comes first: the copy's rate follows what requests at both ends see. Without I/O.
//!
//! During its first looks a copy hardly moves; what requests see in the quietest of them is the quiet state (a move's first
//! steps disturb some of them), and a little more than that is what they may see later.

use std::time::Duration;

use crate::shadow::accounts::ForegroundAccounts;
use crate::throttle::pid::{Limit, Pid};

use super::SetPoint;

/// The rate that a copy has whatever requests see, in bytes per second: it ends.
const FLOOR_BYTES_S: u64 = 2_000_000;
/// The rate that nobody notices, until the quiet state is known.
const QUIET_BYTES_S: u64 = 200_000;
/// Looks until then.
const QUIET_LOOKS: usize = 5;
/// What requests may see more than in quiet, in per cent.
const SET_POINT_PERCENT: u32 = 110;
/// Less than this nobody is asked to keep: timers and schedulers alone differ by as much.
const SET_POINT_MIN: Duration = Duration::from_micros(300);

/// An end of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Source = 0,
    Target = 1,
}

#[derive(Debug, Default)]
struct Seen {
    quiet: Vec<Duration>,
    set_point: Option<Duration>,
    /// Since the last decision.
    latest: Option<Duration>,
    sum: Duration,
    looks: u32,
}

/// Governs one copy.
#[derive(Debug)]
pub(super) struct Foreground {
    wish: SetPoint,
    pid: Pid,
    ends: [Seen; 2],
    limited: [Duration; 3],
}

impl Foreground {
    pub fn new(wish: SetPoint, cap: Option<u64>) -> Foreground {
        let set_point = match wish {
            SetPoint::At(set_point) => Some(set_point),
            SetPoint::Quiet | SetPoint::Off => None,
        };
        Foreground {
            wish,
            pid: Pid::new(FLOOR_BYTES_S, cap),
            ends: [(); 2].map(|()| Seen { set_point, ..Seen::default() }),
            limited: [Duration::ZERO; 3],
        }
    }

    /// The rate now, if it is governed at all.
    pub fn rate(&self) -> Option<u64> {
        let known = self.ends[End::Source as usize].set_point.is_some();
        let rate = if known { self.pid.rate() } else { self.pid.rate().min(QUIET_BYTES_S) };
        (self.wish != SetPoint::Off).then_some(rate)
    }

    /// What requests at one end saw since the last time.
    pub fn note(&mut self, end: End, p99: Duration) {
        let seen = &mut self.ends[end as usize];
        if seen.set_point.is_none() {
            seen.quiet.push(p99);
            if seen.quiet.len() == QUIET_LOOKS {
                let quietest = seen.quiet.iter().min().copied().unwrap_or_default();
                seen.set_point = Some(SET_POINT_MIN.max(quietest * SET_POINT_PERCENT / 100));
            }
            return;
        }
        seen.latest = Some(p99);
        seen.sum += p99;
        seen.looks += 1;
    }

    /// Decides the rate for the next look from what has been noted and the bytes sent since the last; `None` if nothing has
    /// been noted, or nothing is governed.
    pub fn decide(&mut self, sent_bytes: u64, elapsed: Duration) -> Option<u64> {
        let used = sent_bytes as f64 / elapsed.as_secs_f64().max(1e-3);
        let ratio = |seen: &mut Seen| {
            let (latest, set_point) = seen.latest.take().zip(seen.set_point)?;
            Some(latest.as_secs_f64() / set_point.as_secs_f64().max(1e-6))
        };
        let worst = self.ends.iter_mut().filter_map(ratio).max_by(f64::total_cmp)?;
        if self.wish == SetPoint::Off {
            return None;
        }
        let limit = self.pid.observe(worst, used, elapsed);
        self.limited[limit as usize] += elapsed;
        Some(self.pid.rate())
    }

    /// For the operator.
    pub fn accounts(&self) -> ForegroundAccounts {
        let us = |time: Duration| time.as_micros() as u64;
        ForegroundAccounts {
            set_point_us: [0, 1].map(|end: usize| self.ends[end].set_point.map_or(0, us)),
            p99_us: [0, 1].map(|end: usize| us(self.ends[end].sum / self.ends[end].looks.max(1))),
            limited_by_foreground_s: self.limited[Limit::Foreground as usize].as_secs_f64(),
            limited_by_cap_s: self.limited[Limit::Cap as usize].as_secs_f64(),
            limited_by_supply_s: self.limited[Limit::Supply as usize].as_secs_f64(),
            rate_mb_s: self.rate().map_or(0.0, |rate| rate as f64 / 1e6),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(200);

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    fn quiet(foreground: &mut Foreground, end: End, p99: u64) {
        (0..QUIET_LOOKS).for_each(|_| foreground.note(end, us(p99)));
    }

    #[test]
    fn copy_hardly_moves_until_quiet_is_known_then_its_rate_rises() {
        let mut foreground = Foreground::new(SetPoint::Quiet, None);
        assert_eq!(foreground.rate(), Some(QUIET_BYTES_S));
        quiet(&mut foreground, End::Source, 1_000);
        assert_eq!(foreground.decide(0, LOOK), None);
        assert_eq!(foreground.rate(), Some(FLOOR_BYTES_S));
        for _ in 0..50 {
            foreground.note(End::Source, us(900));
            foreground.decide(foreground.rate().unwrap() / 5, LOOK).unwrap();
        }
        assert!(foreground.rate().unwrap() > 20 * FLOOR_BYTES_S, "{:?}", foreground.rate());
        assert_eq!(foreground.accounts().set_point_us, [1_100, 0]);
    }

    #[test]
    fn rate_follows_the_end_that_sees_more() {
        let mut foreground = Foreground::new(SetPoint::Quiet, None);
        quiet(&mut foreground, End::Source, 100);
        quiet(&mut foreground, End::Target, 2_000);
        assert_eq!(foreground.accounts().set_point_us, [300, 2_200], "not less than what timers differ by");
        let mut decide = |source, target| {
            foreground.note(End::Source, us(source));
            foreground.note(End::Target, us(target));
            foreground.decide(1 << 40, LOOK).unwrap()
        };
        let rates = [decide(100, 500), decide(100, 500), decide(100, 9_000), decide(900, 500)];
        assert!(rates[1] > rates[0] && rates[2] < rates[1], "{rates:?}");
        assert_eq!(rates[3], FLOOR_BYTES_S, "{rates:?}");
    }

    #[test]
    fn set_point_that_is_given_holds_from_the_first_look() {
        let mut foreground = Foreground::new(SetPoint::At(us(1_000)), None);
        assert_eq!(foreground.rate(), Some(FLOOR_BYTES_S));
        foreground.note(End::Source, us(100));
        assert!(foreground.decide(1 << 20, LOOK).unwrap() > FLOOR_BYTES_S);
    }

    #[test]
    fn off_governs_nothing_and_still_accounts() {
        let mut foreground = Foreground::new(SetPoint::Off, Some(5_000_000));
        quiet(&mut foreground, End::Source, 100);
        foreground.note(End::Source, us(5_000));
        assert_eq!((foreground.rate(), foreground.decide(10, LOOK)), (None, None));
        assert_eq!(foreground.accounts().p99_us, [5_000, 0]);
    }
}
