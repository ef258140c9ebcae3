//! Moves data before the move is needed: each host watches its own trend, one of them, the leader, decides for all.
//!
//! ```text
//!   every host, each window          the leader, each window
//!   measure shards' loads    ----->  trends of all hosts
//!   forecast, raise a signal         plan: which partition, where to, is there room
//!                            <-----  cast a shadow | switch to it | drop it
//! ```
//!
//! The signal is raised when a shadow begun now would be ready about when the load hurts ([`trend`]). The shadow is filled
//! and kept current; it is switched to when the load is there, and dropped when the load has turned ([`plan`]). A leader
//! keeps nothing that its successor could not see in the trends: a move under way is one of them.
//!
//! A leader shows that it lives by beats in the coordinator; a host that has seen none for [`SILENCE`] takes over. Two
//! leaders at once can only waste a copy: each move is fenced by its own attempt.

pub mod plan;
mod rest;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod scenarios;
pub(crate) mod steer;
pub mod trend;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use antumbra_engine::types::{HostId, PartitionId};
use antumbra_predictor::signal::SignalEvent;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::coordinator::{self, ClusterState, Command, RecordState};
use crate::error::{Error, Result};
use crate::events::Topic;
use crate::host::Host;
use crate::time::{self, Ticker};

use plan::{Action, Decision, Settings};
use rest::Rests;
use trend::{Cut, Limits, Observer};

pub use steer::Copy;

/// Time between two beats of the leader.
const BEAT: Duration = Duration::from_secs(2);
/// Another host takes over from a leader that has been silent for this long.
const SILENCE: Duration = Duration::from_secs(8);
/// The rate of a copy that has no cap, as far as the lead time is concerned, in bytes per second.
const COPY_BYTES_S: f64 = 100e6;
/// Who decides on moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Automation {
    /// Operators. Signals are noted all the same.
    #[default]
    Manual,
    /// Operators, who are told what the controller would do.
    Advise,
    /// The controller.
    Auto,
}

impl std::str::FromStr for Automation {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Automation, String> {
        match text {
            "manual" => Ok(Automation::Manual),
            "advise" => Ok(Automation::Advise),
            "auto" => Ok(Automation::Auto),
            other => Err(format!("unknown policy '{other}': manual, advise or auto")),
        }
    }
}

/// Configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ControllerConfig {
    /// Who decides.
    pub automation: Automation,
    /// Length of a window.
    pub window: Duration,
    /// Loads that hurt.
    pub limits: Limits,
    /// What the plan keeps to.
    pub settings: Settings,
    /// How copies are made.
    pub copy: Copy,
}

impl Default for ControllerConfig {
    fn default() -> ControllerConfig {
        ControllerConfig {
            automation: Automation::Manual,
            window: Duration::from_secs(1),
            limits: Limits::default(),
            settings: Settings::default(),
            copy: Copy { throttle_bytes_s: None, early: Some(0.95) },
        }
    }
}

/// Starts to observe, and to decide where this host leads. Ends with the host.
pub(crate) fn start(host: &Arc<Host>, config: ControllerConfig) -> Result<()> {
    let rate = config.copy.throttle_bytes_s.map_or(COPY_BYTES_S, |rate| rate as f64);
    let observer = Observer::new(host.id.0, host.engine.shards(), config.limits, rate)?;
    let controller = Controller {
        host: Arc::downgrade(host),
        config,
        observer,
        leadership: Leadership::default(),
        rests: Rests::new(config.window),
        said: HashMap::new(),
    };
    host.control.spawn(controller.run());
    Ok(())
}

struct Controller {
    host: Weak<Host>,
    config: ControllerConfig,
    observer: Observer,
    leadership: Leadership,
    rests: Rests,
    /// What was said last of a shard or a partition, so that it is said once.
    said: HashMap<Subject, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Shard(u32, u16),
    Partition(u64),
    Hosts,
}

impl Controller {
    async fn run(mut self) {
        let mut ticker = Ticker::new(self.config.window);
        loop {
            ticker.tick().await;
            let Some(host) = self.host.upgrade() else {
                return;
            };
            if let Err(cause) = self.observe(&host).await {
                // The engine is being closed.
                tracing::debug!(%cause, "no trend of this window");
                continue;
            }
            if self.config.automation == Automation::Manual {
                continue;
            }
            match self.leadership.tend(&host).await {
                Ok(Some(state)) => self.lead(&host, &state).await,
                Ok(None) => self.said.clear(),
                Err(cause) => tracing::debug!(%cause, "the coordinator was not reached; nothing new is begun"),
            }
        }
    }

    async fn observe(&mut self, host: &Arc<Host>) -> Result<()> {
        let stats = host.engine.stats().await?;
        let shards: HashMap<PartitionId, u16> =
            host.engine.partitions().into_iter().map(|(id, shard)| (id, shard.0)).collect();
        let shard_of = |id: PartitionId| shards.get(&id).copied().unwrap_or_default();
        for partition in host.take_used() {
            self.observer.used(shard_of(partition));
        }
        let (mut trend, changes) = self.observer.observe(&stats, shard_of, host.move_trends(), time::now())?;
        for partition in &mut trend.partitions {
            let shard = trend.shards.get(usize::from(partition.shard));
            if partition.at_rest && shard.is_some_and(|shard| shard.worth) {
                partition.cut = cut(host, partition.partition).await;
            }
        }
        for change in changes {
            let Some(shard) = trend.shards.get(usize::from(change.shard)) else {
                continue;
            };
            let at =
                format!("shard {} is at {:.2} of its limit ({})", change.shard, shard.level, shard.leading_metric());
            let text = match change.event {
                SignalEvent::Raised { crossing_in_windows } => format!(
                    "{at}, expected over it in {:.1} s: probability {:.2} that it hurts before a shadow begun now is ready",
                    crossing_in_windows * self.config.window.as_secs_f64(),
                    shard.probability
                ),
                SignalEvent::Cleared => format!("{at}; the trend has faded"),
            };
            host.events.note(Topic::Signal, None, text);
        }
        host.set_trend(trend);
        Ok(())
    }

    async fn lead(&mut self, host: &Arc<Host>, state: &ClusterState) {
        host.routing.update(state);
        let ids = state.hosts.keys().map(|id| HostId(*id));
        let asked = join_all(ids.map(|id| async move { (id.0, steer::trend_of(host, id).await) })).await;
        let mut hosts = BTreeMap::new();
        let mut silent = Vec::new();
        for (id, trend) in asked {
            match trend {
                // One that has just started knows nothing yet.
                Ok(trend) if trend.windows > 0 => drop(hosts.insert(id, trend)),
                Ok(_) => {}
                Err(cause) => silent.push(format!("host {id}: {cause}")),
            }
        }
        if silent.is_empty() {
            self.said.remove(&Subject::Hosts);
        } else {
            let text = format!("left out: {}", silent.join("; "));
            self.say_once(host, Subject::Hosts, &text, Topic::Alarm, None, &text);
        }
        let now = time::now();
        self.rests.settle(&hosts, now);
        let is_busy = |id: u64| {
            let stable = |record: &coordinator::PartitionRecord| {
                record.state == RecordState::Stable && record.diverged.is_none()
            };
            !state.records.get(&id).is_some_and(stable)
        };
        let rests = |id: u64| is_busy(id) || self.rests.rests(id, now);
        let plan = plan::plan(&hosts, &self.config.settings, rests);
        for (shard, reason) in &plan.stuck {
            // Figures change with each window.
            let key: String = reason.chars().filter(|sign| !sign.is_ascii_digit()).collect();
            let text = format!("nothing can be done: {reason}");
            self.say_once(host, Subject::Shard(shard.0, shard.1), &key, Topic::Alarm, None, &text);
        }
        for decision in &plan.decisions {
            self.decide(host, decision).await;
        }
    }

    async fn decide(&mut self, host: &Arc<Host>, decision: &Decision) {
        let id = PartitionId(decision.action.partition());
        let what = match decision.action {
            Action::Start { source, destination, cut, .. } => {
                let what = cut.map_or_else(String::new, |slot| format!("slots from {slot} on of "));
                format!("cast a shadow of {what}partition {id} from host {source} on host {destination}")
            }
            Action::Switch { .. } => format!("switch partition {id} over"),
            Action::GiveUp { .. } => format!("drop the shadow of partition {id}"),
        };
        if self.config.automation == Automation::Advise {
            let text = format!("advice: {what}: {}", decision.reason);
            return self.say_once(host, Subject::Partition(id.0), &what, Topic::Decision, Some(id), &text);
        }
        match steer::carry_out(host, decision, self.config.copy).await {
            Ok(moving) => {
                if let Action::Start { source, .. } = decision.action {
                    self.rests.began(moving, source);
                }
                // The host that acts notes it, too; here it is kept with those of all others.
                if decision.action.source() != host.id.0 {
                    host.events.note(Topic::Decision, Some(id), format!("{what}: {}", decision.reason));
                }
            }
            Err(cause) => {
                self.rests.failed(id.0, time::now());
                host.events.note(Topic::Alarm, Some(id), format!("could not {what}: {cause}"));
            }
        }
    }

    /// Notes an event unless its `key` was the last of this subject.
    fn say_once(
        &mut self,
        host: &Host,
        subject: Subject,
        key: &str,
        topic: Topic,
        partition: Option<PartitionId>,
        text: &str,
    ) {
        if self.said.get(&subject).is_none_or(|said| said != key) {
            self.said.insert(subject, key.to_string());
            host.events.note(topic, partition, text);
        }
    }
}

/// Where a partition could be cut in two; none where that cannot be found out.
async fn cut(host: &Host, id: u64) -> Option<Cut> {
    let slots = host.routing.load().routes.iter().find(|route| route.partition.0 == id)?.slots;
    let partition = host.engine.partition(PartitionId(id)).ok()?;
    let segments = partition.with(|partition| async move { Ok(partition.segment_summaries()) }).await.ok()?;
    Cut::of(slots, &segments)
}

/// What this host knows of who leads.
#[derive(Debug, Default)]
struct Leadership {
    /// The beat seen last, and since when.
    seen: Option<(u64, Instant)>,
    /// When this host has shown last that it leads.
    beaten: Option<Instant>,
    looked: Option<Instant>,
}

impl Leadership {
    /// Keeps up or takes over the lead where that is due; the coordinator's state while this host leads.
    async fn tend(&mut self, host: &Arc<Host>) -> Result<Option<ClusterState>> {
        if let Some(beaten) = self.beaten {
            if time::since(beaten) < BEAT {
                return coordinator::list(host.coordinator.as_ref()).await.map(Some);
            }
        } else if self.looked.is_some_and(|looked| time::since(looked) < BEAT) {
            return Ok(None);
        }
        let state = coordinator::list(host.coordinator.as_ref()).await?;
        self.looked = Some(time::now());
        let (leader, beat) = state.leader.as_ref().map_or((None, 0), |leader| (Some(leader.host), leader.beat));
        let since = match self.seen {
            Some((seen, since)) if seen == beat => since,
            _ => {
                self.seen = Some((beat, time::now()));
                time::now()
            }
        };
        let leads = leader == Some(host.id.0) && self.beaten.is_some();
        let takes_over = leader.is_none() || time::since(since) >= SILENCE;
        if !leads && !takes_over {
            if self.beaten.take().is_some() {
                let who = leader.map_or_else(|| "nobody".into(), |leader| format!("host {leader}"));
                host.events.note(Topic::Leader, None, format!("{who} leads now"));
            }
            return Ok(None);
        }
        match host.coordinator.ask(Command::Lead { host: host.id.0, beat }).await {
            Ok(_) => {}
            // Somebody else was first.
            Err(Error::Conflict { .. }) => return Ok(None),
            Err(cause) => return Err(cause),
        }
        self.seen = Some((beat + 1, time::now()));
        if self.beaten.replace(time::now()).is_none() {
            let before = leader.map_or_else(String::new, |leader| format!("; host {leader} was silent"));
            host.events.note(Topic::Leader, None, format!("host {} leads{before}", host.id));
        }
        Ok(Some(state))
    }
}
