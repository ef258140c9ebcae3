//! The state of two hosts, a coordinator and the messages between them.
//!
//! The decisions are those of the product: `shadow::source::Source`, `shadow::target::Target`,
//! `shadow::recovery::verdict` and `coordinator::Machine` are used as they are. Modelled by hand is what carries them out:
//! the partitions (a map from LSN to key and version), the mirror stream (in order, cut when the link is lost, begun again behind what the target said when it is found), control
//! and bulk messages (a set: lost, repeated and overtaken at will, also those of attempts that are over), requests to the
//! coordinator (their answers may be lost, they may be repeated later), and crashes.

use std::collections::{BTreeMap, BTreeSet};

use antumbra_engine::Serving;
use antumbra_engine::types::{HostId, Lsn, SegmentId, ValidationToken};
use antumbra_net::coordinator::machine::Machine;
use antumbra_net::coordinator::{Command, HostInfo, RecordState};
use antumbra_net::shadow::recovery::{Held, Verdict};
use antumbra_net::shadow::source::Source;
use antumbra_net::shadow::target::Target;

/// Keys, each in a segment of its own.
pub const KEYS: usize = 2;
pub const PARTITION: u64 = 1;
pub const HOSTS: [HostId; 2] = [HostId(1), HostId(2)];

/// What may still go wrong or be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    pub writes: u8,
    pub moves: u8,
    /// Crashes of each host.
    pub crashes: [u8; 2],
    /// Links cut for good.
    pub cuts: u8,
    /// Links of a copy that are lost and found again.
    pub hiccups: u8,
    /// Answers of the coordinator that are lost.
    pub lost_answers: u8,
    /// Messages and requests that come a second time.
    pub repeats: u8,
    /// Attempts that their source gives up by itself.
    pub timeouts: u8,
    /// Switchovers before every segment is held.
    pub early: u8,
    /// Copies at the host before that their owner gives up.
    pub releases: u8,
    /// Standbys that are promoted by force; if there are any, no move is switched to.
    pub forces: u8,
}

/// Bugs that are planted to see that the checker finds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    None,
    /// The target serves as soon as it has read the commit, without waiting for the source's read lease.
    WriteBeforeHandOver,
    /// A frozen source serves again when it has waited long enough.
    FreezeLeftByTimer,
    /// The target takes segments of any attempt, and does not compare copies with the seal.
    StaleAttempt,
    /// An owner that lacks segments completes the attempt all the same, so that the source drops them.
    CompleteBeforeFilled,
    /// A shadow takes what lay there before for the segments themselves, and not for what their deltas lie on.
    ServeBase,
    /// A host whose history has parted drops its copy without handing out what it wrote alone.
    DropParted,
    /// A standby that is being promoted by force still takes what the mirror brings.
    MirrorGoesOn,
}

/// A record: key and version.
pub type Value = (u8, u8);

/// Records by LSN.
pub type Records = BTreeMap<u8, Value>;

/// What the copy of each segment brought.
pub type Copies = BTreeMap<SegmentId, Records>;

/// A message of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    pub to: usize,
    pub attempt: u64,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Body {
    Open {
        epoch: u64,
        from: u8,
        base: Option<u8>,
    },
    Opened,
    Resume,
    Resumed {
        last: u8,
        held: Vec<SegmentId>,
    },
    Plan(Vec<ValidationToken>),
    Request(ValidationToken),
    /// With what the segment holds at the base there.
    RequestOnBase(ValidationToken, Records),
    Stale(ValidationToken),
    Segment {
        segment: SegmentId,
        records: Records,
        on_base: bool,
    },
    Held(SegmentId),
    Ack(u8),
    Seal {
        last: u8,
        chain: Vec<(u8, Option<Value>)>,
        copies: Copies,
        early: bool,
    },
    SealOk,
    Failed,
    Promote {
        epoch: u64,
    },
    Promoted,
    Complete,
}

/// A request on its way to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ask {
    pub host: usize,
    /// Life of the host in which it was sent; an answer to an earlier life is not heard.
    pub life: u8,
    pub command: Command,
}

/// A move at its source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceSide {
    /// `None` until the coordinator has begun the attempt.
    pub attempt: Option<u64>,
    pub epoch: u64,
    pub machine: Source,
    pub covered: [bool; KEYS],
    /// Mirrored records that the target has not taken in yet, in order.
    pub mirror: Vec<(u8, Option<Value>)>,
    pub chain: Vec<(u8, Option<Value>)>,
    pub copies: Copies,
    /// The LSN of the copy that the record says is at the target, and what the target has told of it.
    pub base: Option<u8>,
    pub offered: Copies,
    /// Last LSN that the target has, once acknowledgements wait for it.
    pub mirrored: Option<u8>,
    pub lost: bool,
}

/// An attempt at its target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TargetSide {
    pub attempt: u64,
    pub epoch: u64,
    pub machine: Target,
    pub chain: Vec<(u8, Option<Value>)>,
    pub copies: Copies,
    pub from: u8,
    /// What lay here before; no restart knows it.
    pub base: Option<Records>,
    /// It is about to be promoted by force: nothing more is taken.
    pub stopped: bool,
}

/// One host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    pub up: bool,
    pub life: u8,
    /// Durable: what it holds, in which epoch, and whether the shadow was ready.
    pub held: Option<Held>,
    pub epoch: u64,
    pub sealed: Option<u8>,
    /// Segments whose copy has not come yet.
    pub missing: BTreeSet<SegmentId>,
    /// Records by LSN; those above `durable` are lost in a crash.
    pub records: BTreeMap<u8, Value>,
    pub durable: u8,
    /// What readers have seen stays visible, also when the mirror becomes synchronous behind it.
    pub shown: u8,
    pub serving: Option<Serving>,
    /// A frozen source whose read lease has run out.
    pub lease_over: bool,
    pub source: Option<SourceSide>,
    pub target: Option<TargetSide>,
    /// What the reconciler has decided and not done yet.
    pub verdict: Option<Verdict>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub coordinator: Machine,
    pub asks: BTreeSet<Ask>,
    pub wire: BTreeSet<Packet>,
    pub hosts: [Host; 2],
    pub budget: Budget,
    pub last_version: u8,
    /// Largest version of each key that was acknowledged, and that any reader can have seen.
    pub acked: [u8; KEYS],
    pub seen: [u8; KEYS],
    /// Somebody has promoted by force: two hosts may serve, and what they say need not agree until all is settled.
    pub forced: bool,
    /// The first rule that was broken.
    pub broken: Option<&'static str>,
}

impl Host {
    fn new(owner: bool) -> Host {
        Host {
            up: true,
            life: 0,
            held: owner.then_some(Held::Owner),
            epoch: 1,
            sealed: None,
            missing: BTreeSet::new(),
            records: BTreeMap::new(),
            durable: 0,
            shown: 0,
            serving: owner.then_some(Serving::Owner),
            lease_over: false,
            source: None,
            target: None,
            verdict: None,
        }
    }

    /// Nobody drives the partition here: the reconciler may look.
    pub fn is_unclaimed(&self) -> bool {
        self.source.is_none() && self.target.is_none()
    }

    pub fn last(&self) -> u8 {
        self.records.keys().next_back().copied().unwrap_or(0).max(self.sealed.unwrap_or(0)).max(self.durable)
    }

    /// The last LSN that readers see and writers were told of.
    pub fn visible(&self) -> u8 {
        let mirrored = self.source.as_ref().and_then(|source| source.mirrored);
        mirrored.map_or(self.durable, |mirrored| mirrored.min(self.durable)).max(self.shown)
    }

    pub fn serves_reads(&self) -> bool {
        self.up
            && match self.serving {
                Some(Serving::Owner) => true,
                Some(Serving::Frozen) => !self.lease_over,
                _ => false,
            }
    }

    pub fn serves_writes(&self) -> bool {
        self.up && self.serving == Some(Serving::Owner)
    }

    /// Whether a reader of the key has to wait: its segment is missing, and nothing newer than the copy is here.
    pub fn lacks(&self, key: usize) -> bool {
        self.missing.contains(&segment_of(key)) && self.version(key, self.visible()) == 0
    }

    /// The newest version of a key that a crash of this host does not take away.
    pub fn durable_version(&self, key: usize) -> u8 {
        let is_shadow = matches!(self.held, Some(Held::Shadow(_)));
        self.version(key, if is_shadow { u8::MAX } else { self.durable })
    }

    /// The newest version of a key at or below `lsn`.
    pub fn version(&self, key: usize, lsn: u8) -> u8 {
        let of_key = self.records.range(..=lsn).filter(|(_, (found, _))| usize::from(*found) == key);
        of_key.map(|(_, (_, version))| *version).next_back().unwrap_or(0)
    }

    /// What a segment holds at `lsn`: its newest record at or below, as all is overwritten that came before.
    pub fn newest_at(records: &Records, segment: SegmentId, lsn: u8) -> Records {
        let of_segment = records.range(..=lsn).filter(|(_, (key, _))| segment_of(usize::from(*key)) == segment);
        of_segment.map(|(lsn, value)| (*lsn, *value)).next_back().into_iter().collect()
    }

    pub fn token(&self, segment: SegmentId) -> ValidationToken {
        let of_segment = self.records.iter().filter(|(_, (key, _))| segment_of(usize::from(*key)) == segment);
        let version = Lsn(of_segment.map(|(lsn, _)| u64::from(*lsn)).next_back().unwrap_or(0));
        ValidationToken { segment, version, checksum: version.0 as u32 }
    }
}

pub fn segment_of(key: usize) -> SegmentId {
    SegmentId(key as u64 + 1)
}

pub fn segments() -> impl Iterator<Item = SegmentId> {
    (0..KEYS).map(segment_of)
}

impl World {
    pub fn new(budget: Budget) -> World {
        let mut coordinator = Machine::default();
        let apply = |machine: &mut Machine, command| {
            machine.apply(command).unwrap_or_else(|what| panic!("the first commands are sound: {what}"))
        };
        for host in HOSTS {
            let info = HostInfo {
                host: host.0,
                control: String::new(),
                bulk: String::new(),
                resp: String::new(),
                resp_tls: None,
            };
            apply(&mut coordinator, Command::Register(info));
        }
        let keyspace = String::from("k");
        apply(&mut coordinator, Command::Create { partition: PARTITION, keyspace, slots: (0, 1), owner: HOSTS[0].0 });
        World {
            coordinator,
            asks: BTreeSet::new(),
            wire: BTreeSet::new(),
            hosts: [Host::new(true), Host::new(false)],
            budget,
            last_version: 0,
            acked: [0; KEYS],
            seen: [0; KEYS],
            forced: false,
            broken: None,
        }
    }

    pub fn record(&self) -> &antumbra_net::coordinator::PartitionRecord {
        &self.coordinator.state.records[&PARTITION]
    }

    pub fn owner(&self) -> usize {
        (self.record().owner - 1) as usize
    }

    pub fn send(&mut self, to: usize, attempt: u64, body: Body) {
        self.wire.insert(Packet { to, attempt, body });
    }

    pub fn ask(&mut self, host: usize, command: Command) {
        let life = self.hosts[host].life;
        self.asks.insert(Ask { host, life, command });
    }

    /// Notes what is acknowledged and visible now, and checks the rules.
    pub fn settle(&mut self) {
        for host in &mut self.hosts {
            host.shown = if host.serves_reads() { host.visible() } else { 0 };
        }
        for host in &self.hosts {
            if !host.up || !matches!(host.serving, Some(Serving::Owner | Serving::Frozen | Serving::Suspended)) {
                continue;
            }
            // Writes of this life are acknowledged when they are visible; after a restart nobody waits for them, but
            // readers see them.
            for key in 0..KEYS {
                let version = host.version(key, host.visible());
                if matches!(host.serving, Some(Serving::Owner | Serving::Frozen)) {
                    self.acked[key] = self.acked[key].max(version);
                }
            }
        }
        if self.forced {
            return self.settle_forced();
        }
        for host in self.hosts.iter().filter(|host| host.serves_reads()) {
            for key in 0..KEYS {
                if host.lacks(key) {
                    continue;
                }
                let version = host.version(key, host.visible());
                if version < self.seen[key] || version < self.acked[key] {
                    self.broken.get_or_insert("R1: a read goes back in time");
                }
                self.seen[key] = self.seen[key].max(version);
            }
        }
        if self.hosts.iter().all(Host::serves_writes) {
            self.broken.get_or_insert("W1: two hosts accept writes");
        }
        let (owner, other) = (&self.hosts[self.owner()], &self.hosts[1 - self.owner()]);
        // What the owner has not fetched yet is at the host that owned it before.
        let durable = |key| {
            let is_source = matches!(other.held, Some(Held::Owner | Held::Released));
            let fetched_later = owner.missing.contains(&segment_of(key)) && is_source;
            owner.durable_version(key).max(if fetched_later { other.durable_version(key) } else { 0 })
        };
        if (0..KEYS).any(|key| durable(key) < self.acked[key]) {
            self.broken.get_or_insert("W2: an acknowledged write is not durable at the owner");
        }
    }

    /// Nothing that was acknowledged is gone: until the histories are one again either host may have it, then the owner
    /// has. Versions are timestamps here, and the later one wins.
    fn settle_forced(&mut self) {
        let parted = self.record().diverged.is_some() || self.record().state != RecordState::Stable;
        let owner = self.owner();
        for key in 0..KEYS {
            let has = |index: usize| {
                let host = &self.hosts[index];
                if host.held.is_some() { host.durable_version(key) } else { 0 }
            };
            let known = if parted { has(0).max(has(1)) } else { has(owner) };
            if known < self.acked[key] {
                self.broken.get_or_insert("W2: an acknowledged write is lost without a word");
            }
        }
    }
}

impl Host {
    /// As `Partition::standby`: the last LSN up to which a shadow holds all, if there is one (`INV-PREFIX`).
    pub fn whole_at(&self) -> Option<u8> {
        let is_shadow = matches!(self.held, Some(Held::Shadow(_)));
        let last = self.target.as_ref().map_or(self.durable, |side| side.last());
        let newest = self.records.keys().next_back().copied().unwrap_or(0);
        (is_shadow && self.missing.is_empty() && newest <= last).then_some(last)
    }

    /// How far it is whole is durable, since elided LSNs are in no log.
    pub fn note_whole(&mut self) {
        if let Some(last) = self.whole_at() {
            self.durable = self.durable.max(last);
        }
    }
}
