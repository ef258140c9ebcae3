//! Pipelines: what one read brought is served in its order; neighbours that may run at the same time do.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::join_all;

use super::command::{self, Action, Local, Spec};
use super::connection::Connection;
use super::execute;
use super::keyed::{check_len, parse_deadline, parse_set};
use super::limits::Charge;
use super::operation::{Operation, Outcome};
use super::reply::Reply;
use super::slot;
use super::step::Step;

/// Requests of one connection that run at the same time.
const GROUP_MAX: usize = 128;

/// A command on keys, ready to run.
pub(super) struct Keyed {
    operation: Operation,
    /// Those that it writes; none for one that only reads.
    written: Vec<Bytes>,
}

/// A command after everything that can be said without running it.
enum Prepared {
    Keyed(Keyed),
    Local(Local, Vec<Bytes>),
    Reply(Reply),
}

impl Connection<'_> {
    /// Serves commands in their order. Neighbours that only read, or that write different keys, begin together: so writes
    /// share a group commit, and reads the device's queue.
    pub async fn serve_batch(&mut self, commands: Vec<Vec<Bytes>>) -> std::io::Result<()> {
        let mut commands = commands.into_iter();
        let mut ahead = None;
        while let Some(prepared) = ahead.take().or_else(|| commands.next().map(|args| self.prepare(args))) {
            match prepared {
                Prepared::Reply(reply) => self.reply(&reply).await?,
                Prepared::Local(local, args) => {
                    let reply = self.serve_local(local, &args).await;
                    self.reply(&reply).await?;
                    if self.ends {
                        return Ok(());
                    }
                }
                Prepared::Keyed(first) => {
                    let mut written: HashSet<Bytes> = first.written.iter().cloned().collect();
                    let writes = !written.is_empty();
                    let mut group = vec![first];
                    while group.len() < GROUP_MAX {
                        match commands.next().map(|args| self.prepare(args)) {
                            Some(Prepared::Keyed(next))
                                if writes != next.written.is_empty()
                                    && next.written.iter().all(|key| !written.contains(key)) =>
                            {
                                written.extend(next.written.iter().cloned());
                                group.push(next);
                            }
                            other => {
                                ahead = other;
                                break;
                            }
                        }
                    }
                    self.serve_group(group).await?;
                }
            }
        }
        Ok(())
    }

    async fn serve_group(&mut self, mut group: Vec<Keyed>) -> std::io::Result<()> {
        if let Some(slot) = group.last().filter(|last| !last.written.is_empty()).map(|last| last.operation.slot()) {
            self.written_slot = Some(slot);
        }
        if group.len() == 1
            && let Some(one) = group.pop()
        {
            let (reply, _charge) = self.run_keyed(one).await;
            return self.reply(&reply).await;
        }
        let this = &*self;
        let answers = join_all(group.into_iter().map(|keyed| this.run_keyed(keyed))).await;
        for (reply, _charge) in answers {
            self.reply(&reply).await?;
        }
        Ok(())
    }

    async fn run_keyed(&self, keyed: Keyed) -> (Reply, Charge) {
        let began = Instant::now();
        let operation = keyed.operation;
        let slot = operation.slot();
        let reply = match self.run_operation(operation).await {
            Ok(Outcome::Value(value)) => {
                let counters = &self.server.counters;
                if value.is_some() {
                    counters.hits.add()
                } else {
                    counters.misses.add()
                }
                value.map_or(Reply::Nil, Reply::Bulk)
            }
            Ok(Outcome::Written) => Reply::OK,
            Ok(Outcome::Replies(mut replies)) if replies.len() == 1 => replies.pop().unwrap_or(Reply::Nil),
            other => self.failure(slot, other),
        };
        let counters = &self.server.counters;
        let latency = if keyed.written.is_empty() { &counters.reads } else { &counters.writes };
        latency.note(began.elapsed());
        self.charged(reply)
    }

    /// Accounts for the strings of a reply until it is sent; where there is no room for them, the reply says so.
    pub fn charged(&self, reply: Reply) -> (Reply, Charge) {
        let mut charge = Charge::nothing(&self.server.budget);
        let bytes = reply.bytes();
        if bytes > super::limits::FREE_BYTES && charge.resize(bytes).is_err() {
            let what =
                format!("ERR no room for a reply of {bytes} bytes beside those of other clients: try again later");
            return (Reply::Error(what), charge);
        }
        (reply, charge)
    }

    /// Runs an operation where its partition is.
    pub async fn run_operation(&self, operation: Operation) -> crate::error::Result<Outcome> {
        let server = self.server;
        let forwarding = || server.counters.forwarded.add();
        execute::run(&server.host, &server.shard, operation, self.follows_moved, forwarding).await
    }

    fn prepare(&mut self, args: Vec<Bytes>) -> Prepared {
        let (place, spec) = match self.admit(&args) {
            Ok(found) => found,
            Err(reply) => {
                self.transaction.break_off();
                return Prepared::Reply(reply);
            }
        };
        self.server.counters.calls[place].add();
        self.client.touch(place);
        if self.transaction.takes(spec) {
            let queued = self.transaction.queue(spec, &args);
            return Prepared::Reply(queued.map_or_else(|refusal| refusal, |()| Reply::status("QUEUED")));
        }
        match spec.action {
            Action::Local(local) => Prepared::Local(local, args),
            Action::Keyed { .. } => keyed(spec, args).map_or_else(Prepared::Reply, Prepared::Keyed),
        }
    }

    /// Finds a command; fails if there is no such, or the user may not run it on these keys, or they are not together.
    fn admit(&self, args: &[Bytes]) -> Result<(usize, &'static Spec), Reply> {
        let (place, spec) = command::find(args)?;
        match &self.user {
            Some(user) => user.check(spec, args)?,
            None if spec.has("no_auth") => {}
            None => return Err(Reply::error("NOAUTH Authentication required.")),
        }
        // Watched keys need be in one partition only, which is found out there.
        if matches!(spec.action, Action::Keyed { .. }) {
            let mut keys = spec.keys_of(args);
            let first = keys.next().map(|key| slot::slot_of(key));
            if !keys.all(|key| Some(slot::slot_of(key)) == first) {
                return Err(Reply::error("CROSSSLOT Keys in request don't hash to the same slot"));
            }
        }
        Ok((place, spec))
    }
}

/// The cheapest operation that does what a command says.
fn keyed(spec: &'static Spec, args: Vec<Bytes>) -> Result<Keyed, Reply> {
    let written = if spec.writes() { spec.keys_of(&args).cloned().collect() } else { Vec::new() };
    let routing_key = |key: &Bytes| Bytes::from(slot::routing_key(key));
    let operation = match spec.name {
        "get" => Operation::Get { key: routing_key(&args[1]) },
        "set" => match parse_set(&args)? {
            options if options.is_blind() => {
                check_len(args[2].len())?;
                Operation::Set { key: routing_key(&args[1]), value: args[2].clone(), deadline: options.deadline }
            }
            _ => Operation::Step(Arc::new(Step::of(args))),
        },
        "setex" | "psetex" => {
            let unit = if spec.name == "setex" { &b"ex"[..] } else { b"px" };
            let deadline = parse_deadline(unit, &args[2], spec.name)?;
            check_len(args[3].len())?;
            Operation::Set { key: routing_key(&args[1]), value: args[3].clone(), deadline }
        }
        _ => Operation::Step(Arc::new(Step::of(args))),
    };
    Ok(Keyed { operation, written })
}
