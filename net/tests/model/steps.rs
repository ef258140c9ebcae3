//! What can happen next, and what it leads to.

use antumbra_engine::Serving;
use antumbra_engine::types::{Epoch, Lsn, SegmentId};
use antumbra_net::coordinator::{Answer, Command, PartitionRecord, RecordState};
use antumbra_net::shadow::recovery::{Held, Verdict, verdict};
use antumbra_net::shadow::source::{Event, Limits, Source, State};

use crate::source;
use crate::target;
use crate::world::{Ask, Copies, HOSTS, KEYS, Mutant, PARTITION, Packet, SourceSide, World, segment_of, segments};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Write {
        host: usize,
        key: usize,
    },
    /// Everything written here is on the device.
    Flush(usize),
    StartMove(usize),
    /// The coordinator takes a request; its answer may be lost, the request may be repeated later.
    Coordinate {
        ask: Ask,
        answered: bool,
        repeated: bool,
    },
    Deliver {
        packet: Packet,
        repeated: bool,
    },
    /// The next record of the mirror reaches the target.
    Mirror(usize),
    /// What the target holds is enough for its source.
    Enough(usize),
    /// The owner fetches a segment that it lacks.
    Fetch(usize, SegmentId),
    /// A source notices that the link is lost, though its target is there.
    Hiccup(usize),
    /// A driver notices that its peer is gone.
    Cut(usize),
    /// A source gives its attempt up.
    Timeout(usize),
    LeaseOver(usize),
    Crash(usize),
    Restart(usize),
    /// The reconciler reads the record; later it acts.
    Look(usize),
    Act(usize),
    /// A source whose target is lost reads the record.
    Poll(usize),
    /// An owner gives the copy up that the host before has.
    Release(usize),
    /// Somebody has a standby promoted by force.
    Force(usize),
    /// Only with [`Mutant::FreezeLeftByTimer`].
    Thaw(usize),
}

impl World {
    /// Everything that can happen next, failures last.
    pub fn steps(&self, mutant: Mutant) -> Vec<Step> {
        let mut steps = Vec::new();
        for host in 0..HOSTS.len() {
            self.steps_of(host, mutant, &mut steps);
        }
        for packet in &self.wire {
            steps.push(Step::Deliver { packet: packet.clone(), repeated: false });
            if self.budget.repeats > 0 {
                steps.push(Step::Deliver { packet: packet.clone(), repeated: true });
            }
        }
        for ask in &self.asks {
            let step = |answered, repeated| Step::Coordinate { ask: ask.clone(), answered, repeated };
            steps.push(step(true, false));
            if self.budget.lost_answers > 0 {
                steps.push(step(false, false));
            }
            if self.budget.repeats > 0 {
                steps.push(step(true, true));
            }
        }
        steps
    }

    fn steps_of(&self, index: usize, mutant: Mutant, steps: &mut Vec<Step>) {
        let host = &self.hosts[index];
        if !host.up {
            steps.push(Step::Restart(index));
            return;
        }
        if host.serves_writes() && self.budget.writes > 0 {
            steps.extend((0..KEYS).map(|key| Step::Write { host: index, key }));
        }
        if host.durable < host.last() && !matches!(host.held, Some(Held::Shadow(_))) {
            steps.push(Step::Flush(index));
        }
        if host.serves_writes() && host.is_unclaimed() && host.verdict.is_none() && self.budget.moves > 0 {
            steps.push(Step::StartMove(index));
        }
        let is_owner = self.record().owner == HOSTS[index].0 && host.serves_writes();
        if self.budget.releases > 0 && is_owner && self.record().former.is_some() {
            steps.push(Step::Release(index));
        }
        if self.budget.forces > 0 && host.whole_at().is_some() && self.is_standby(index) {
            steps.push(Step::Force(index));
        }
        if let Some(side) = &host.source {
            if source::can_mirror(self, index) {
                steps.push(Step::Mirror(index));
            }
            if self.budget.early > 0 && side.machine.state() == State::Copying {
                steps.push(Step::Enough(index));
            }
            let sought = side.machine.state() == State::Copying && self.has_link(index) && !self.peer_is_gone(index);
            if self.budget.hiccups > 0 && sought {
                steps.push(Step::Hiccup(index));
            }
            if self.budget.timeouts > 0 && side.machine.state().may_abort() && side.attempt.is_some() {
                steps.push(Step::Timeout(index));
            }
            if side.machine.state() == State::AwaitingTarget {
                steps.push(Step::Poll(index));
            }
            if mutant == Mutant::FreezeLeftByTimer && side.machine.state() == State::Committing {
                steps.push(Step::Thaw(index));
            }
        }
        let other = &self.hosts[1 - index];
        if host.serves_writes() && other.up && other.held == Some(Held::Released) {
            steps.extend(host.missing.iter().map(|segment| Step::Fetch(index, *segment)));
        }
        if host.serving == Some(Serving::Frozen) && !host.lease_over {
            steps.push(Step::LeaseOver(index));
        }
        // A peer that is down is noticed; a link that is cut costs of the budget.
        let peer_gone = self.peer_is_gone(index);
        if (self.budget.cuts > 0 || peer_gone) && self.has_link(index) {
            steps.push(Step::Cut(index));
        }
        if host.is_unclaimed() && host.held.is_some() {
            match host.verdict {
                None if !self.is_settled(index) => steps.push(Step::Look(index)),
                None => {}
                Some(verdict) if self.may_act(index, verdict, mutant) => steps.push(Step::Act(index)),
                Some(_) => {}
            }
        }
        if self.budget.crashes[index] > 0 {
            steps.push(Step::Crash(index));
        }
    }

    /// The record has an open attempt whose shadow is here.
    fn is_standby(&self, index: usize) -> bool {
        let Some(Held::Shadow(attempt)) = self.hosts[index].held else { return false };
        matches!(&self.record().state, RecordState::Moving(moving) if moving.attempt == attempt.0)
    }

    fn has_link(&self, index: usize) -> bool {
        let host = &self.hosts[index];
        host.target.is_some() || host.source.as_ref().is_some_and(|side| side.attempt.is_some() && !side.lost)
    }

    /// The peer of a driver has died or has closed its side.
    fn peer_is_gone(&self, index: usize) -> bool {
        let (host, peer) = (&self.hosts[index], &self.hosts[1 - index]);
        if let Some(side) = &host.target {
            return !peer.source.as_ref().is_some_and(|source| source.attempt == Some(side.attempt) && !source.lost);
        }
        // A source whose target is not there yet has an `Open` under way.
        host.source.as_ref().and_then(|side| side.attempt).is_some_and(|attempt| {
            let opening = self.wire.iter().any(|packet| packet.attempt == attempt && packet.to == 1 - index);
            !opening && peer.target.as_ref().is_none_or(|target| target.attempt != attempt)
        })
    }

    fn is_settled(&self, index: usize) -> bool {
        let (host, record) = (&self.hosts[index], self.record());
        host.serving == Some(Serving::Owner)
            && record.owner == HOSTS[index].0
            && record.epoch == host.epoch
            && record.state == RecordState::Stable
    }

    /// `INV-READS`: a promotion by the record waits until no read lease can run any more.
    fn may_act(&self, index: usize, verdict: Verdict, mutant: Mutant) -> bool {
        let other = &self.hosts[1 - index];
        // What is handed out reaches an owner that serves; until then it is tried again.
        if matches!(verdict, Verdict::Return(..)) {
            return other.serves_writes();
        }
        let lease_runs = other.up && other.serving == Some(Serving::Frozen) && !other.lease_over;
        !matches!(verdict, Verdict::Promote(..)) || !lease_runs || mutant == Mutant::WriteBeforeHandOver
    }

    /// Takes a step.
    pub fn take(&mut self, step: &Step, mutant: Mutant) {
        match step {
            Step::Write { host, key } => self.write(*host, *key),
            Step::Flush(host) => self.hosts[*host].durable = self.hosts[*host].last(),
            Step::StartMove(host) => self.start_move(*host),
            Step::Coordinate { ask, answered, repeated } => self.coordinate(ask, *answered, *repeated),
            Step::Deliver { packet, repeated } => {
                if *repeated {
                    self.budget.repeats -= 1;
                } else {
                    self.wire.remove(packet);
                }
                self.deliver(packet, mutant);
            }
            Step::Mirror(host) => source::mirror(self, *host),
            Step::Enough(host) => {
                self.budget.early -= 1;
                source::handle(self, *host, Event::EnoughHeld);
            }
            Step::Fetch(host, segment) => target::fetch(self, *host, *segment),
            Step::Hiccup(host) => {
                self.budget.hiccups -= 1;
                source::hiccup(self, *host);
            }
            Step::Cut(host) => self.cut(*host),
            Step::Timeout(host) => {
                self.budget.timeouts -= 1;
                source::handle(self, *host, Event::Failed(String::new()));
            }
            Step::LeaseOver(host) => self.hosts[*host].lease_over = true,
            Step::Crash(host) => self.crash(*host),
            Step::Restart(host) => self.restart(*host),
            Step::Look(index) => {
                let host = &self.hosts[*index];
                let held = host.held.map(|held| match held {
                    Held::Partly if mutant == Mutant::CompleteBeforeFilled => Held::Owner,
                    held => held,
                });
                let verdict = held.map(|held| verdict(HOSTS[*index], held, self.record()));
                self.hosts[*index].verdict = verdict.filter(|verdict| *verdict != Verdict::Wait);
            }
            Step::Act(host) => self.act(*host, mutant),
            Step::Poll(host) => {
                let attempt = self.hosts[*host].source.as_ref().and_then(|side| side.attempt);
                let open =
                    matches!(&self.record().state, RecordState::Committed(moving) if Some(moving.attempt) == attempt);
                if !open {
                    source::handle(self, *host, Event::Completed);
                }
            }
            Step::Force(host) => {
                self.budget.forces -= 1;
                target::force(self, *host, mutant);
            }
            Step::Release(host) => {
                self.budget.releases -= 1;
                if let Some(attempt) = self.record().former.as_ref().map(|former| former.attempt) {
                    self.ask(*host, Command::Release { partition: PARTITION, attempt });
                }
            }
            Step::Thaw(host) => self.hosts[*host].serving = Some(Serving::Owner),
        }
        self.settle();
    }

    fn write(&mut self, index: usize, key: usize) {
        self.budget.writes -= 1;
        self.last_version += 1;
        let value = (key as u8, self.last_version);
        let host = &mut self.hosts[index];
        let lsn = host.last() + 1;
        host.records.insert(lsn, value);
        if let Some(side) = host.source.as_mut().filter(|side| side.attempt.is_some()) {
            let item = (lsn, side.covered[key].then_some(value));
            side.mirror.push(item);
            side.chain.push(item);
        }
        source::handle(self, index, Event::Assigned(Lsn(u64::from(lsn))));
    }

    fn start_move(&mut self, index: usize) {
        self.budget.moves -= 1;
        let machine = Source::new(
            segments(),
            Lsn(0),
            Limits { retries_max: 1, lag_max: 1, patience_looks: u32::MAX, late_looks: 0, asynchronous: false },
        );
        self.hosts[index].source = Some(SourceSide {
            attempt: None,
            epoch: 0,
            machine,
            covered: [false; KEYS],
            mirror: Vec::new(),
            chain: Vec::new(),
            copies: Copies::new(),
            base: None,
            offered: Copies::new(),
            mirrored: None,
            lost: false,
        });
        let (source, destination) = (HOSTS[index].0, HOSTS[1 - index].0);
        self.ask(index, Command::Begin { partition: PARTITION, source, destination });
    }

    fn coordinate(&mut self, ask: &Ask, answered: bool, repeated: bool) {
        let before = self.record().clone();
        let answer = self.coordinator.apply(ask.command.clone());
        let is_forced = matches!(ask.command, Command::ForcePromote { .. });
        if before.owner != self.record().owner {
            match is_forced {
                true => self.forced = true,
                false => self.check_equal((before.owner - 1) as usize),
            }
        }
        let heard = self.hosts[ask.host].up && self.hosts[ask.host].life == ask.life;
        if repeated {
            self.budget.repeats -= 1;
        } else if answered || !heard {
            self.asks.remove(ask);
        }
        if !answered {
            // The driver asks again until it knows; a begin whose answer is lost is looked up.
            self.budget.lost_answers -= 1;
            return;
        }
        if heard {
            let record = match answer {
                Ok(Answer::Record(record)) => Ok(record),
                Ok(Answer::State(_)) => return,
                Err(what) => Err(what),
            };
            self.hear(ask.host, &ask.command, record);
        }
    }

    fn hear(&mut self, index: usize, command: &Command, answer: Result<PartitionRecord, String>) {
        let attempt = self.hosts[index].source.as_ref().map(|side| side.attempt);
        match (command, answer) {
            (Command::Begin { .. }, answer) if attempt == Some(None) => {
                // An answer that says "is being moved" may follow an answer that was lost: the record tells.
                let record = answer.unwrap_or_else(|_| self.record().clone());
                source::begun(self, index, &record);
            }
            (Command::Commit { attempt: asked, .. }, Ok(record)) if attempt == Some(Some(*asked)) => {
                if let Some(side) = self.hosts[index].source.as_mut() {
                    side.epoch = record.epoch;
                }
                source::handle(self, index, Event::Committed);
            }
            (Command::Commit { attempt: asked, .. }, Err(what)) if attempt == Some(Some(*asked)) => {
                source::handle(self, index, Event::NotCommitted(what));
            }
            (Command::Abort { attempt: asked, .. }, answer) if attempt == Some(Some(*asked)) => {
                source::aborted(self, index, answer.ok().as_ref());
            }
            // Whatever the record says now, the attempt is filled no more.
            (Command::ForcePromote { .. }, _) => self.hosts[index].target = None,
            (Command::Complete { attempt: asked, .. }, _) if attempt == Some(Some(*asked)) => {
                self.hosts[index].source = None;
            }
            _ => {}
        }
    }

    /// S1: at the commit the target durably holds what the source has.
    fn check_equal(&mut self, from: usize) {
        let (source, target) = (&self.hosts[from], &self.hosts[1 - from]);
        let differs = (0..KEYS).any(|key| {
            // Also a source that has just died has told nobody of more than its device holds.
            let copied = !target.missing.contains(&segment_of(key));
            copied && source.durable_version(key) > target.durable_version(key)
        });
        if differs || target.sealed.is_none() {
            self.broken.get_or_insert("S1: the target differs at the commit");
        }
    }

    fn deliver(&mut self, packet: &Packet, mutant: Mutant) {
        if !self.hosts[packet.to].up {
            return;
        }
        if packet.is_for_target() {
            target::deliver(self, packet, mutant);
        } else {
            source::deliver(self, packet);
        }
    }

    fn cut(&mut self, index: usize) {
        if !self.peer_is_gone(index) {
            self.budget.cuts -= 1;
        }
        if self.hosts[index].target.take().is_none() {
            source::lose(self, index);
        }
    }

    fn crash(&mut self, index: usize) {
        self.budget.crashes[index] -= 1;
        let host = &mut self.hosts[index];
        host.up = false;
        host.life += 1;
        (host.source, host.target, host.verdict, host.serving) = (None, None, None, None);
        host.lease_over = false;
        if !matches!(host.held, Some(Held::Shadow(_))) {
            let durable = host.durable;
            host.records.retain(|lsn, _| *lsn <= durable);
        }
    }

    fn restart(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        host.up = true;
        host.serving = match host.held {
            // Nothing is served until the record has been read.
            Some(Held::Owner | Held::Partly) => Some(Serving::Suspended),
            Some(Held::Shadow(attempt)) => Some(Serving::Shadow { attempt }),
            Some(Held::Released) => Some(Serving::Released { owner: HOSTS[1 - index] }),
            None => None,
        };
    }

    fn act(&mut self, index: usize, mutant: Mutant) {
        let Some(verdict) = self.hosts[index].verdict.take() else {
            return;
        };
        let host = &mut self.hosts[index];
        match verdict {
            Verdict::Serve(epoch) | Verdict::Fill(epoch, ..) => host.resume(epoch),
            Verdict::ServeAndComplete(epoch, attempt) => {
                host.resume(epoch);
                self.ask(index, Command::Complete { partition: PARTITION, attempt: attempt.0 });
            }
            Verdict::Abort(attempt) => {
                let reason = String::new();
                self.ask(index, Command::Abort { partition: PARTITION, attempt: attempt.0, reason });
            }
            Verdict::Release(owner, epoch) => {
                (host.held, host.epoch) = (Some(Held::Released), epoch.0);
                host.serving = Some(Serving::Released { owner });
            }
            Verdict::Promote(attempt, epoch) => {
                let forced = self.coordinator.state.records[&PARTITION].diverged.clone();
                if let Some(lsn) = forced.filter(|forced| forced.attempt == attempt.0).map(|forced| forced.lsn as u8) {
                    if host.whole_at() != Some(lsn) {
                        self.broken.get_or_insert("S1: a standby is promoted that the record does not describe");
                    }
                    host.sealed = Some(lsn);
                    return target::promote(host, epoch);
                }
                target::promote(host, epoch);
                // What is missing is fetched before the attempt is completed.
                if host.held == Some(Held::Partly) && mutant != Mutant::CompleteBeforeFilled {
                    return;
                }
                self.ask(index, Command::Complete { partition: PARTITION, attempt: attempt.0 });
            }
            Verdict::Discard(_) | Verdict::Drop => {
                (host.held, host.serving, host.sealed) = (None, None, None);
                host.records.clear();
                host.missing.clear();
                host.durable = 0;
            }
            Verdict::Return(..) if mutant == Mutant::DropParted => {
                (host.held, host.serving, host.sealed) = (None, None, None);
                host.records.clear();
                host.durable = 0;
                let attempt = self.record().diverged.as_ref().map_or(0, |diverged| diverged.attempt);
                let outcome = String::new();
                self.ask(1 - index, Command::EndReconcile { partition: PARTITION, attempt, outcome });
            }
            Verdict::Return(_, attempt) => {
                let lsn = self.record().diverged.as_ref().map_or(0, |diverged| diverged.lsn as u8);
                target::settle(self, index, lsn);
                let outcome = String::new();
                self.ask(1 - index, Command::EndReconcile { partition: PARTITION, attempt: attempt.0, outcome });
            }
            Verdict::Wait => {}
        }
    }
}

impl crate::world::Host {
    /// As `Partition::resume`: only a partition that is parked here serves again.
    pub fn resume(&mut self, epoch: Epoch) {
        self.epoch = self.epoch.max(epoch.0);
        if matches!(self.serving, Some(Serving::Frozen | Serving::Suspended)) {
            self.serving = Some(Serving::Owner);
        }
    }
}

impl Packet {
    fn is_for_target(&self) -> bool {
        use crate::world::Body::{Complete, Open, Plan, Promote, Resume, Seal, Segment, Stale};
        // `Failed` goes either way; the side that is there takes it.
        matches!(
            self.body,
            Open { .. } | Resume | Plan(_) | Stale(_) | Segment { .. } | Seal { .. } | Promote { .. } | Complete
        )
    }
}
