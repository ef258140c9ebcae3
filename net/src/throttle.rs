//! The copy's throttle: an exact cap on bytes per second, which [`pid`] moves so that requests come first. Sans-IO; time
//! is an input in nanoseconds.
//!
//! A sender asks before each piece and waits as long as it is told. Time is accounted in advance, so that no rounding
//! and no late wake-up adds up: the n-th byte leaves no earlier than `start + n / rate`, less a small burst.

pub mod pid;

/// Bytes that may leave at once after a pause, as time at the full rate.
const BURST_NS: u64 = 25_000_000;

/// A cap on bytes per second.
///
/// # Example
/// ```
/// use antumbra_net::throttle::Throttle;
/// let mut throttle = Throttle::new(Some(1_000_000)); // bytes a second
/// let second = 1_000_000_000;
/// throttle.begin_demand(second);
/// throttle.admit(500_000, second);
/// let wait = throttle.admit(500_000, second); // nanoseconds until these may go
/// assert!(wait > 300_000_000 && wait < second);
/// throttle.end_demand(2 * second);
/// assert_eq!(throttle.wanted_ns(3 * second), second);
/// throttle.set_rate(None);
/// assert_eq!((throttle.admit(1 << 30, 3 * second), throttle.piece_bytes()), (0, 64 << 10));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// Bytes per second; `None` means no cap.
    rate: Option<u64>,
    /// When the bytes admitted so far have left at exactly the rate, in nanoseconds.
    next_ns: u64,
    demand: Demand,
}

/// For how long somebody had bytes to send: the time against which the observed rate is judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Demand {
    senders: u32,
    /// When the first of the present senders came.
    since_ns: u64,
    total_ns: u64,
}

impl Throttle {
    /// A throttle of `rate` bytes per second.
    #[must_use]
    pub fn new(rate: Option<u64>) -> Throttle {
        Throttle { rate: rate.filter(|rate| *rate > 0), next_ns: 0, demand: Demand::default() }
    }

    /// Changes the rate; what was admitted before keeps its time.
    pub fn set_rate(&mut self, rate: Option<u64>) {
        self.rate = rate.filter(|rate| *rate > 0);
    }

    /// Admits `bytes` now and says for how many nanoseconds the sender has to wait before it sends them.
    pub fn admit(&mut self, bytes: u64, now_ns: u64) -> u64 {
        let Some(rate) = self.rate else {
            return 0;
        };
        let earliest = now_ns.saturating_sub(BURST_NS);
        let start = self.next_ns.max(earliest);
        self.next_ns = start + (u128::from(bytes) * 1_000_000_000 / u128::from(rate)) as u64;
        start.saturating_sub(now_ns)
    }

    /// A sender has bytes from now on.
    pub fn begin_demand(&mut self, now_ns: u64) {
        if self.demand.senders == 0 {
            self.demand.since_ns = now_ns;
        }
        self.demand.senders += 1;
    }

    /// A sender has sent what it had.
    ///
    /// # Panics
    /// Without a [`Throttle::begin_demand`] before it.
    pub fn end_demand(&mut self, now_ns: u64) {
        assert!(self.demand.senders > 0, "INV-DEMAND: a sender that ends has begun");
        self.demand.senders -= 1;
        if self.demand.senders == 0 {
            self.demand.total_ns += now_ns.saturating_sub(self.demand.since_ns);
        }
    }

    /// For how long at least one sender had bytes, in nanoseconds.
    #[must_use]
    pub fn wanted_ns(&self, now_ns: u64) -> u64 {
        let open = if self.demand.senders > 0 { now_ns.saturating_sub(self.demand.since_ns) } else { 0 };
        self.demand.total_ns + open
    }

    /// Size of a piece that keeps the stream smooth at this rate, in bytes.
    #[must_use]
    pub fn piece_bytes(&self) -> usize {
        // About a millisecond's worth, within what is worth a call.
        self.rate.map_or(64 << 10, |rate| (rate / 1_000).clamp(4 << 10, 64 << 10) as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn observed_rate_is_within_three_percent(
            rate in 1_000_000..400_000_000u64, jitter in prop::collection::vec(0..2_000_000u64, 50), seconds in 1..4u64
        ) {
            let mut throttle = Throttle::new(Some(rate));
            let piece = throttle.piece_bytes() as u64;
            let start = 1_000_000_000_000;
            let (mut now, mut sent, mut turn) = (start, 0_u64, 0);
            while now < start + seconds * 1_000_000_000 {
                let wait = throttle.admit(piece, now);
                if wait > 0 {
                    // A sender wakes up late.
                    now += wait + jitter[turn % jitter.len()];
                    turn += 1;
                }
                sent += piece;
            }
            let elapsed = (now - start) as f64 / 1e9;
            let observed = sent as f64 / elapsed;
            prop_assert!((observed / rate as f64 - 1.0).abs() < 0.03, "{observed} against {rate}");
        }
    }

    #[test]
    fn wanted_counts_overlapping_senders_once() {
        let mut throttle = Throttle::new(Some(1_000_000));
        throttle.begin_demand(100);
        throttle.begin_demand(150);
        throttle.end_demand(180);
        assert_eq!(throttle.wanted_ns(190), 90, "one is still sending");
        throttle.end_demand(200);
        assert_eq!(throttle.wanted_ns(500), 100, "nobody has wanted to send since");
        throttle.begin_demand(1_000);
        throttle.end_demand(1_010);
        assert_eq!(throttle.wanted_ns(2_000), 110);
    }

    #[test]
    fn admit_without_cap_never_waits() {
        let mut throttle = Throttle::new(None);
        assert_eq!((0..100).map(|_| throttle.admit(1 << 30, 5)).sum::<u64>(), 0);
    }
}
