//! One closed-loop client: the loop that is measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::chooser::{Chooser, Scope, Stripe};
use crate::data::{Placing, Seen, Values};
use crate::error::{Error, Result};
use crate::replay::Recorded;
use crate::spec::{Class, Distribution, Mix, Phase};
use crate::store::Session;

/// Rows of a page when all rows are read in key order.
const PAGE_ROWS: usize = 1_000;
/// Two significant digits: quantiles are within 1 %.
const DIGITS: u8 = 2;

/// Kinds of operations, as they are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Point read.
    Read,
    /// Overwrite.
    Update,
    /// New key.
    Insert,
    /// Range scan.
    Scan,
    /// Read, then overwrite.
    Modify,
}

/// All kinds, in the order of a [`ClientRecord`]'s histograms.
pub const KINDS: [(Kind, &str); 5] = [
    (Kind::Read, "read"),
    (Kind::Update, "update"),
    (Kind::Insert, "insert"),
    (Kind::Scan, "scan"),
    (Kind::Modify, "read-modify-write"),
];

/// What all clients of a phase share.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The phase.
    pub phase: Phase,
    /// Clients.
    pub clients: usize,
    /// Keys that are (or are to be) loaded.
    pub keys: u64,
    /// Where they lie.
    pub placing: Placing,
    /// What is replayed.
    pub recorded: Arc<[Recorded]>,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Number of the first key that is inserted.
    pub insert_from: u64,
    /// Version that the phase writes.
    pub version: u64,
    /// Which keys.
    pub distribution: Distribution,
    /// What writes promise.
    pub class: Class,
    /// Rows of a scan: 1 to this many.
    pub scan_rows_max: usize,
    /// Not counted.
    pub warmup: Duration,
    /// Counted.
    pub measured: Duration,
    /// Seed.
    pub seed: u64,
}

/// What a client did while it was measured.
#[derive(Debug)]
pub struct ClientRecord {
    /// Latencies in nanoseconds, by kind.
    pub latency_ns: [Histogram<u64>; 5],
    /// Rows that scans returned.
    pub rows: u64,
    /// Operations before measuring began.
    pub uncounted: u64,
    /// When measuring began and ended.
    pub span: (Instant, Instant),
}

/// Where a client's next operation comes from; drawn before the clock starts.
#[derive(Debug)]
enum Source {
    /// Numbers that are written once.
    Fill(Vec<u64>),
    /// The same, in the order of the numbers.
    FillInTurn,
    /// Operations by the phase's shares, on keys that are chosen.
    Chosen(Mix, Chooser),
    /// All numbers in key order, and where the next page begins.
    Pages(Vec<u64>, usize),
    /// Requests, and which is next.
    Recorded(Vec<Recorded>, usize),
}

impl Source {
    fn new(plan: &Plan, scope: Scope, seed: u64) -> Source {
        let sorted = |mut numbers: Vec<u64>| {
            numbers.sort_unstable_by_key(|number| plan.placing.place(*number));
            numbers
        };
        let chosen = |mix: Mix| {
            let (distribution, insert_from) = (plan.distribution, plan.insert_from);
            Source::Chosen(mix, Chooser::new(distribution, plan.keys, scope, plan.clients, insert_from, seed))
        };
        let none = Mix { read: 0, update: 0, insert: 0, scan: 0, modify: 0 };
        match plan.phase {
            Phase::Load => Source::FillInTurn,
            Phase::FillSequential => {
                Source::Fill(sorted(Stripe::new(scope, 0).take_while(|number| *number < plan.keys).collect()))
            }
            Phase::DurablePut | Phase::Overwrite => chosen(Mix { update: 100, ..none }),
            Phase::ReadRandom => chosen(Mix { read: 100, ..none }),
            Phase::Ycsb(workload) => chosen(workload.mix()),
            Phase::ReadSequential => {
                let numbers = sorted((0..plan.keys).filter(|number| scope.holds(*number)).collect());
                // Clients of the same keys begin apart.
                let first = numbers.len() * scope.stripe / scope.stripes;
                Source::Pages(numbers, first)
            }
            Phase::Replay => {
                let own = plan.recorded.iter().filter(|request| scope.holds(request.number.into()));
                Source::Recorded(own.skip(scope.stripe).step_by(scope.stripes).copied().collect(), 0)
            }
        }
    }
}

/// A client that is ready to run.
#[derive(Debug)]
pub struct Client {
    plan: Arc<Plan>,
    scope: Scope,
    source: Source,
    values: Values,
    random: fastrand::Rng,
    rows: u64,
}

impl Client {
    /// Draws the client's keys. Takes a fraction of a second.
    #[must_use]
    pub fn new(plan: Arc<Plan>, scope: Scope, number: usize) -> Client {
        let seed = plan.seed.wrapping_mul(1_000_003).wrapping_add(number as u64);
        let source = Source::new(&plan, scope, seed);
        let values = Values::new(plan.value_bytes);
        Client { plan, scope, source, values, random: fastrand::Rng::with_seed(!seed), rows: 0 }
    }

    /// Runs to the end of the phase. `begin` is when all clients begin.
    ///
    /// # Errors
    /// Whatever the store returns; [`Error::Wrong`] for an answer that was never written.
    pub async fn run<S: Session>(mut self, mut session: S, begin: Instant) -> Result<ClientRecord> {
        let (scope, keys) = (self.scope, self.plan.keys);
        match std::mem::replace(&mut self.source, Source::FillInTurn) {
            Source::FillInTurn => {
                self.fill(&mut session, Stripe::new(scope, 0).take_while(|number| *number < keys), begin).await
            }
            Source::Fill(numbers) => self.fill(&mut session, numbers.into_iter(), begin).await,
            source => self.repeat(&mut session, source, begin).await,
        }
    }

    async fn fill<S: Session>(
        mut self,
        session: &mut S,
        numbers: impl Iterator<Item = u64>,
        begin: Instant,
    ) -> Result<ClientRecord> {
        let mut record = ClientRecord::new(begin)?;
        let mut last = begin;
        for number in numbers {
            self.put(session, number).await?;
            session.give_way().await;
            last = record.count(Kind::Insert, last);
        }
        record.span = (begin, Instant::now());
        Ok(record)
    }

    async fn repeat<S: Session>(mut self, session: &mut S, mut source: Source, begin: Instant) -> Result<ClientRecord> {
        let (warm, end) = (begin + self.plan.warmup, begin + self.plan.warmup + self.plan.measured);
        let mut record = ClientRecord::new(warm)?;
        let mut last = begin;
        while last < end {
            let kind = self.step(session, &mut source).await?;
            session.give_way().await;
            // One look at the clock an operation: its latency includes the loop around it.
            if last < warm {
                last = Instant::now();
                record.uncounted += 1;
                self.rows = 0;
            } else {
                last = record.count(kind, last);
            }
        }
        record.rows = self.rows;
        record.span = (warm, last);
        Ok(record)
    }

    async fn step<S: Session>(&mut self, session: &mut S, source: &mut Source) -> Result<Kind> {
        match source {
            Source::Chosen(mix, chooser) => {
                let kind = choose(*mix, self.random.u8(0..100));
                self.chosen(session, chooser, kind).await?;
                Ok(kind)
            }
            Source::Pages(numbers, at) => {
                let start = numbers.get(*at).ok_or_else(|| Error::refused("too few keys for so many shards"))?;
                let found = session.scan(&self.plan.placing.key(*start), PAGE_ROWS).await?;
                let expected = PAGE_ROWS.min(numbers.len() - *at);
                if found < expected {
                    return Err(Error::Wrong {
                        what: format!("{found} rows in key order, at least {expected} are there"),
                    });
                }
                self.rows += found as u64;
                *at = if *at + found >= numbers.len() { 0 } else { *at + found };
                Ok(Kind::Scan)
            }
            Source::Recorded(requests, at) => {
                let what = "the trace has no request for a client: fewer --threads";
                let request = *requests.get(*at).ok_or_else(|| Error::refused(what))?;
                *at = if *at + 1 == requests.len() { 0 } else { *at + 1 };
                if request.writes {
                    self.put(session, request.number.into()).await?;
                    return Ok(Kind::Update);
                }
                self.get(session, request.number.into()).await?;
                Ok(Kind::Read)
            }
            Source::Fill(_) | Source::FillInTurn => Err(Error::client("a phase that loads does not repeat")),
        }
    }

    async fn chosen<S: Session>(&mut self, session: &mut S, chooser: &mut Chooser, kind: Kind) -> Result<()> {
        match kind {
            Kind::Read => self.get(session, chooser.existing()).await,
            Kind::Update => self.put(session, chooser.existing()).await,
            Kind::Modify => {
                let number = chooser.existing();
                self.get(session, number).await?;
                self.put(session, number).await
            }
            Kind::Insert => {
                let number = chooser.fresh();
                self.put(session, number).await?;
                chooser.inserted(number);
                Ok(())
            }
            Kind::Scan => {
                let rows = self.random.usize(1..=self.plan.scan_rows_max);
                self.rows += session.scan(&self.plan.placing.key(chooser.existing()), rows).await? as u64;
                Ok(())
            }
        }
    }

    async fn get<S: Session>(&mut self, session: &mut S, number: u64) -> Result<()> {
        let seen = session.get(&self.plan.placing.key(number)).await?;
        let expected = Seen::expected(number, self.plan.value_bytes);
        if seen == Some(expected) {
            return Ok(());
        }
        Err(Error::Wrong { what: format!("key {number}: read {seen:?}, expected {expected:?}") })
    }

    async fn put<S: Session>(&mut self, session: &mut S, number: u64) -> Result<()> {
        let value = self.values.make(number, self.plan.version);
        session.put(&self.plan.placing.key(number), value, self.plan.class).await
    }
}

/// The kind that a number from 0 to 99 falls on.
fn choose(mix: Mix, percent: u8) -> Kind {
    let mut above = 0;
    for (share, kind) in
        [(mix.read, Kind::Read), (mix.update, Kind::Update), (mix.insert, Kind::Insert), (mix.scan, Kind::Scan)]
    {
        above += share;
        if percent < above {
            return kind;
        }
    }
    Kind::Modify
}

impl ClientRecord {
    fn new(from: Instant) -> Result<ClientRecord> {
        let histogram = Histogram::new(DIGITS).map_err(|cause| Error::client(format!("histogram: {cause}")))?;
        Ok(ClientRecord {
            latency_ns: std::array::from_fn(|_| histogram.clone()),
            rows: 0,
            uncounted: 0,
            span: (from, from),
        })
    }

    /// Counts an operation that began at `since` and ends now.
    fn count(&mut self, kind: Kind, since: Instant) -> Instant {
        let now = Instant::now();
        self.latency_ns[kind as usize] += (now - since).as_nanos() as u64;
        now
    }

    /// Operations counted.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.latency_ns.iter().map(Histogram::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Workload;

    #[test]
    fn choose_every_percent_once_gives_the_mix() {
        let mix = Workload::F.mix();
        let kinds: Vec<Kind> = (0..100).map(|percent| choose(mix, percent)).collect();
        let count = |kind| kinds.iter().filter(|found| **found == kind).count();
        assert_eq!((count(Kind::Read), count(Kind::Modify), count(Kind::Scan)), (50, 50, 0));
    }
}
