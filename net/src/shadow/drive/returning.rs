//! Behind a forced promotion: the old owner hands out what it has written alone, the new one settles it.
//!
//! ```text
//!    old owner (released)                              new owner (serving)
//!      Return: largest timestamp ------------------->  clock, policy, end of what conflicts (at the coordinator)
//!      <-------------------------------------- Taken
//!      Changed: each key's newest record, page after page, then range deletions
//!                              --------------------->  judges, reports conflicts durably, settles durably
//!      <-------------------------------------- Taken
//!      End  ---------------------------------------->  EndReconcile at the coordinator: from here on the old copy may go
//!      <-------------------------------------- Taken
//! ```
//!
//! Whoever dies, the old owner begins again from the start: settling twice changes nothing (`INV-SETTLE`), and no conflict is
//! settled that is not in the report.

use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::partition::{ConflictPolicy, Divergence, Judged};
use antumbra_engine::record::{Record, RecordKind};
use antumbra_engine::table::{decode_records, encode_records};
use antumbra_engine::types::{AttemptId, Epoch, Hlc, HostId, Lsn, PartitionId};
use antumbra_engine::{PartitionHandle, Serving};
use bytes::Bytes;
use futures_util::future::try_join_all;

use crate::coordinator::{self, Command, Diverged};
use crate::error::{Error, Result};
use crate::host::{Host, Report};
use crate::shadow::conflict::{self, Conflict};
use crate::shadow::frame::{self, Columns, FrameContext};
use crate::shadow::message::{self, Message};
use crate::shadow::recovery::diverged_at;
use crate::time;
use crate::transport::{Incoming, RecvStream, SendStream, StreamKind};

use super::bulk;

const KIND_RETURN: u8 = 35;
const KIND_CHANGED: u8 = 36;
const KIND_TAKEN: u8 = 37;

/// Records of one page, in bytes: a record of the largest size still fits a frame with it.
const PAGE_BYTES: usize = 256 << 10;
/// Keys that are settled at a time.
const SETTLED_AT_ONCE: usize = 256;
/// An answer that takes longer does not come.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// What a reconciliation did.
#[derive(Clone, Copy, Debug, Default)]
struct Settled {
    records: u64,
    conflicts: u64,
}

/// Hands out what this host wrote alone, in the background; does nothing if that is under way. What fails is begun again by
/// the reconciler.
pub(crate) fn return_changes(host: &Arc<Host>, partition: PartitionId, owner: HostId, attempt: AttemptId, lsn: Lsn) {
    let Some(turn) = host.begin_returning(partition) else {
        return;
    };
    let host = Arc::clone(host);
    host.control.clone().spawn(async move {
        let context = FrameContext { attempt, partition, epoch: Epoch(0) };
        if let Err(cause) = hand_out(&host, context, owner, lsn).await {
            tracing::warn!(%cause, %partition, %owner, "what was written here alone is not settled yet; tried again");
            time::sleep(Duration::from_millis(500)).await;
        }
        drop(turn);
        host.reconcile_wanted.notify_one();
    });
}

async fn hand_out(host: &Host, context: FrameContext, owner: HostId, lsn: Lsn) -> Result<()> {
    let addresses = host.routing.load().addresses(owner).cloned();
    let addresses = addresses.ok_or_else(|| Error::Refused { what: format!("host {owner} is not known") })?;
    let partition = host.engine.partition(context.partition)?;
    let largest = partition.with(|partition| async move { Ok(partition.latest_timestamp()) }).await?;
    let (mut send, mut recv) = host.control.open_bi(addresses.control, owner, StreamKind::Return).await?;
    ask(&mut send, &mut recv, context, KIND_RETURN, &Columns::of([largest.0])).await?;
    let mut start = Some(Bytes::new());
    while let Some(from) = start {
        let read = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
            partition.changed_since(owner, lsn, from, PAGE_BYTES).await
        };
        let page = partition.with(read).await?;
        host.failpoint.pass("source:returning");
        // A page of one record that is larger than the rest still fits: a value has 16 MiB at most.
        let mut columns = Columns::default();
        columns.push_bytes(&encode_records(page.records.iter().map(Record::view))?);
        ask(&mut send, &mut recv, context, KIND_CHANGED, &columns).await?;
        start = page.next;
    }
    ask(&mut send, &mut recv, context, KIND_CHANGED, &Columns::default()).await?;
    let _ = send.finish();
    Ok(())
}

/// Sends a frame and waits until it is taken.
async fn ask(
    send: &mut SendStream,
    recv: &mut RecvStream,
    context: FrameContext,
    kind: u8,
    columns: &Columns,
) -> Result<()> {
    let bytes = frame::encode(kind, context, columns)?;
    let exchange = async {
        send.write_all(&bytes).await.map_err(|cause| Error::link("peer", cause))?;
        bulk::read_frame(recv, KIND_TAKEN).await.map(drop)
    };
    let answered = time::timeout(ANSWER_MAX, exchange).await;
    answered.unwrap_or_else(|| Err(Error::link("peer", format!("no answer within {ANSWER_MAX:?}"))))
}

/// Settles what a returned host has written alone.
pub(crate) async fn serve_return(host: Arc<Host>, incoming: Incoming) {
    let (peer, mut recv) = (incoming.peer, incoming.recv);
    let Some(mut send) = incoming.send else {
        return;
    };
    let (context, opening) = match bulk::read_frame(&mut recv, KIND_RETURN).await {
        Ok(read) => read,
        Err(cause) => return tracing::warn!(%cause, %peer, "nothing is returned"),
    };
    if let Err(cause) = settle_all(&host, peer, context, &opening, &mut recv, &mut send).await {
        tracing::warn!(%cause, %peer, partition = %context.partition, "what the host returns is not settled yet");
        let _ = message::send(&mut send, context, &Message::Failed(cause.to_string())).await;
    }
    let _ = send.finish();
    // What was written is on its way before the stream is dropped.
    let _ = time::timeout(ANSWER_MAX, send.stopped()).await;
}

async fn settle_all(
    host: &Arc<Host>,
    peer: HostId,
    context: FrameContext,
    opening: &Columns,
    recv: &mut RecvStream,
    send: &mut SendStream,
) -> Result<()> {
    let id = context.partition;
    let _turn = host
        .begin_returning(id)
        .ok_or_else(|| Error::Refused { what: format!("partition {id} is being reconciled already") })?;
    let mut settling = Settling::begin(host, peer, context, Hlc(opening.number(0)?)).await?;
    take(send, context).await?;
    loop {
        let (found, columns) = bulk::read_frame(recv, KIND_CHANGED).await?;
        if found != context {
            return Err(Error::protocol("a page of another partition"));
        }
        if columns.ends.is_empty() {
            break;
        }
        settling.settle_page(decode_records(columns.bytes_at(0)?)?).await?;
        take(send, context).await?;
    }
    settling.end().await?;
    take(send, context).await
}

async fn take(send: &mut SendStream, context: FrameContext) -> Result<()> {
    let taken = frame::encode(KIND_TAKEN, context, &Columns::default())?;
    send.write_all(&taken).await.map_err(|cause| Error::link("peer", cause))
}

/// One reconciliation at the new owner.
struct Settling<'a> {
    host: &'a Arc<Host>,
    peer: HostId,
    id: PartitionId,
    attempt: AttemptId,
    partition: PartitionHandle,
    divergence: Divergence,
    diverged: Diverged,
    policy: ConflictPolicy,
    report: Report,
    settled: Settled,
}

impl<'a> Settling<'a> {
    async fn begin(host: &'a Arc<Host>, peer: HostId, context: FrameContext, largest: Hlc) -> Result<Settling<'a>> {
        let (id, attempt) = (context.partition, context.attempt);
        let record = coordinator::read(host.coordinator.as_ref(), id.0).await?;
        let diverged = diverged_at(peer, &record).filter(|diverged| diverged.attempt == attempt.0);
        let Some(diverged) = diverged.filter(|_| record.owner == host.id.0).cloned() else {
            let what = format!("the coordinator's record has no history of partition {id} that parted at host {peer}");
            return Err(Error::Refused { what });
        };
        let policy = conflict::parse_policy(&diverged.policy, &host.engine)?;
        let partition = host.engine.partition(id)?;
        let lsn = Lsn(diverged.lsn);
        let begin = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
            let serves = partition.serving() == Serving::Owner;
            partition.keep_changes_since(Some(lsn));
            // From here on what is written here is later than anything that is returned.
            partition.observe_returned(largest)?;
            Ok((serves, partition.durable()))
        };
        let (serves, durable) = partition.with(begin).await?;
        if !serves {
            return Err(Error::Refused { what: format!("host {} does not serve partition {id} yet", host.id) });
        }
        let command = Command::BeginReconcile { partition: id.0, attempt: attempt.0, until: durable.0 };
        let begun = coordinator::change(host.coordinator.as_ref(), command).await?;
        let until = begun.diverged.and_then(|diverged| diverged.until);
        let until = Lsn(until.ok_or_else(|| Error::protocol("the coordinator began no reconciliation"))?);
        let report = host.reports.open(id, attempt).await?;
        Ok(Settling {
            host,
            peer,
            id,
            attempt,
            partition,
            divergence: Divergence { lsn, until },
            diverged,
            policy,
            report,
            settled: Settled::default(),
        })
    }

    async fn settle_page(&mut self, records: Vec<Record>) -> Result<()> {
        let (erased, records): (Vec<Record>, Vec<Record>) =
            records.into_iter().partition(|record| record.kind == RecordKind::RangeDelete);
        for some in records.chunks(SETTLED_AT_ONCE) {
            self.settle(some.to_vec()).await?;
        }
        for erasure in erased {
            let mut start = Some(Bytes::new());
            while let Some(from) = start {
                let erasure = erasure.clone();
                let read = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
                    partition.keys_erased(&erasure, &from, SETTLED_AT_ONCE).await
                };
                let (deletions, next) = self.partition.with(read).await?;
                self.settle(deletions).await?;
                start = next;
            }
        }
        Ok(())
    }

    /// Judges records of different keys, reports the conflicts among them, and settles them; those whose key was written
    /// meanwhile once more.
    async fn settle(&mut self, mut records: Vec<Record>) -> Result<()> {
        self.settled.records += records.len() as u64;
        while !records.is_empty() {
            let (divergence, policy) = (self.divergence, self.policy.clone());
            let judge = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
                let judged = records.into_iter().map(|record| partition.judge(record, divergence, &policy));
                try_join_all(judged).await
            };
            let judged: Vec<Judged> = self.partition.with(judge).await?;
            let line = |judged| Conflict::of(judged, self.peer, &self.diverged, self.id.0);
            let conflicts: Vec<Conflict> = judged.iter().filter_map(line).collect();
            self.settled.conflicts += conflicts.len() as u64;
            self.report.append(conflicts).await?;
            self.host.failpoint.pass("target:reconciling");
            let peer = self.peer;
            let settle = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
                let beside: Vec<Option<Bytes>> =
                    judged.iter().map(|judged| conflict::key_beside(judged, peer).map(Bytes::from)).collect();
                let settled = judged.iter().zip(&beside).map(|(judged, beside)| {
                    let partition = &partition;
                    async move { partition.settle_judged(judged, beside.as_ref()).await }
                });
                let settled = try_join_all(settled).await?;
                let again = judged.into_iter().zip(settled).filter(|(_, settled)| !settled);
                Ok(again.map(|(judged, _)| judged.record).collect::<Vec<Record>>())
            };
            records = self.partition.with(settle).await?;
        }
        Ok(())
    }

    async fn end(self) -> Result<()> {
        self.host.failpoint.pass("target:reconciled");
        let Settled { records, conflicts } = self.settled;
        let outcome = format!("reconciled with host {}: {records} records, {conflicts} conflicts", self.peer);
        let (partition, attempt) = (self.id.0, self.attempt.0);
        let command = Command::EndReconcile { partition, attempt, outcome };
        coordinator::change(self.host.coordinator.as_ref(), command).await?;
        let forget = |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
            partition.keep_changes_since(None);
            Ok(())
        };
        self.partition.with(forget).await?;
        let report = self.report.path().display();
        tracing::warn!(partition, returned = %self.peer, records, conflicts, %report, "reconciled");
        Ok(())
    }
}
