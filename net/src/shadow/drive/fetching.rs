//! Behind an early switchover: the new owner fetches the segments that it does not hold yet, and the old one hands them out.
//!
//! Every fetch is a stream of its own and changes nothing at the old owner, so it does not matter who restarts in between.
//! What a reader waits for goes over the control plane and past the throttle (the demand lane), the rest over the bulk plane
//! in the order of the source's last plan.

use std::sync::Arc;
use std::time::Duration;

use antumbra_engine::PartitionHandle;
use antumbra_engine::types::{AttemptId, Epoch, HostId, PartitionId, SegmentId};
use futures_util::future::{join, join_all};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::shadow::frame::{self, Columns, FrameContext};
use crate::shadow::message::{self, Message};
use crate::shadow::plan::{self, Order};
use crate::time;
use crate::transport::{Incoming, StreamKind};

use super::bulk::{self, Pace};

/// Segments that are fetched in score order at a time.
const ORDERED_LANES: usize = 2;
/// Segments that readers wait for, fetched at a time.
const DEMAND_LANES: usize = 2;
/// Wait after a failed fetch.
const RETRY: Duration = Duration::from_millis(100);
/// Failed fetches in a row after which readers are told instead of kept waiting.
const PATIENCE: u32 = 5;
/// A fetch that takes longer has failed.
const FETCH_MAX: Duration = Duration::from_secs(15);

const KIND_FETCH: u8 = 34;

/// What the lanes share.
struct Fetch {
    host: Arc<Host>,
    partition: PartitionHandle,
    context: FrameContext,
    source: HostId,
    order: Vec<SegmentId>,
}

/// Fetches what the partition lacks, in the background, until it lacks nothing; does nothing if that is under way. `order`
/// holds segments, best first; what it does not name comes last.
pub(crate) fn fetch_missing(
    host: &Arc<Host>,
    partition: PartitionId,
    attempt: AttemptId,
    epoch: Epoch,
    source: HostId,
    order: Vec<SegmentId>,
) {
    let Ok(handle) = host.engine.partition(partition) else {
        return;
    };
    if !host.begin_fetching(partition) {
        return;
    }
    let context = FrameContext { attempt, partition, epoch };
    let fetch = Arc::new(Fetch { host: Arc::clone(host), partition: handle, context, source, order });
    host.control.clone().spawn(async move {
        let ordered = join_all((0..ORDERED_LANES).map(|_| Arc::clone(&fetch).ordered_lane()));
        let demanded = join_all((0..DEMAND_LANES).map(|_| Arc::clone(&fetch).demand_lane()));
        join(ordered, demanded).await;
        fetch.host.end_fetching(partition);
    });
}

impl Fetch {
    async fn ordered_lane(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            let (attempt, order) = (self.context.attempt, self.order_now().await);
            let take = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
                partition.take_missing(attempt, &order)
            };
            match self.partition.with(take).await {
                Ok(Some(segment)) => self.fetch(segment, false, &mut failures).await,
                // What is left is on its way.
                Ok(None) => time::sleep(RETRY).await,
                Err(_) => return,
            }
        }
    }

    /// The source's last order; after a restart what this host has seen of the partition since.
    async fn order_now(&self) -> Vec<SegmentId> {
        if !self.order.is_empty() {
            return self.order.clone();
        }
        let summaries = self.partition.with(|partition| async move { Ok(partition.segment_summaries()) }).await;
        let plan = plan::plan(Order::Ewma, &summaries.unwrap_or_default(), |_| true);
        plan.iter().map(|entry| entry.token.segment).collect()
    }

    async fn demand_lane(self: Arc<Self>) {
        let (attempt, mut failures) = (self.context.attempt, 0);
        loop {
            let taken = self.partition.with(move |partition| async move { Ok(partition.take_wanted(attempt).await) });
            match taken.await {
                Ok(Some(segment)) => self.fetch(segment, true, &mut failures).await,
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Fetches one segment; `failures` counts those in a row.
    async fn fetch(&self, segment: SegmentId, urgent: bool, failures: &mut u32) {
        let attempt = self.context.attempt;
        let fetched = time::timeout(FETCH_MAX, self.fetch_one(segment, urgent)).await;
        let cause = match fetched {
            Some(Ok(())) => {
                if std::mem::take(failures) > 0 {
                    let note = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
                        partition.note_reachable(attempt);
                        Ok(())
                    };
                    let _ = self.partition.with(note).await;
                }
                if let Some(inbox) = self.host.inbox(attempt) {
                    inbox.note_held(segment);
                }
                return;
            }
            // Another lane or the copy's last stream was faster.
            Some(Err(Error::Engine(antumbra_engine::Error::Stale { .. }))) => return,
            Some(Err(cause)) => cause.to_string(),
            None => format!("not there within {FETCH_MAX:?}"),
        };
        *failures += 1;
        tracing::warn!(cause, partition = %self.context.partition, %segment, "a segment was not fetched; tried again");
        let why =
            (*failures >= PATIENCE).then(|| format!("it is at host {}, which does not answer: {cause}", self.source));
        let give_back = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
            partition.give_back(attempt, segment, why);
            Ok(())
        };
        let _ = self.partition.with(give_back).await;
        time::sleep(RETRY).await;
    }

    async fn fetch_one(&self, segment: SegmentId, urgent: bool) -> Result<()> {
        self.host.failpoint.pass("target:fetching");
        let addresses = self.host.routing.load().addresses(self.source).cloned();
        let addresses =
            addresses.ok_or_else(|| Error::Refused { what: format!("host {} is not known", self.source) })?;
        let (plane, address) =
            if urgent { (&self.host.control, addresses.control) } else { (&self.host.bulk, addresses.bulk) };
        let (mut send, mut recv) = plane.open_bi(address, self.source, StreamKind::Fetch).await?;
        let request = frame::encode(KIND_FETCH, self.context, &Columns::of([segment.0, u64::from(urgent)]))?;
        send.write_all(&request).await.map_err(|cause| Error::link(self.source, cause))?;
        let received = bulk::receive_segment(&mut recv).await?;
        if (received.context, received.segment) != (self.context, segment) {
            return Err(Error::protocol(format!("another segment than {segment} came")));
        }
        let (attempt, image) = (self.context.attempt, received.image.into_image()?);
        let install = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
            partition.install_image(attempt, segment, None, image, Vec::new()).await
        };
        Ok(self.partition.with(install).await?)
    }
}

/// Hands out one segment of a partition that this host has handed over.
pub(crate) async fn serve_fetch(host: Arc<Host>, incoming: Incoming) {
    let (peer, mut recv) = (incoming.peer, incoming.recv);
    let Some(mut send) = incoming.send else {
        return;
    };
    let (context, request) = match bulk::read_frame(&mut recv, KIND_FETCH).await {
        Ok(read) => read,
        Err(cause) => return tracing::warn!(%cause, %peer, "no request for a segment"),
    };
    let served = async {
        let (segment, urgent) = (SegmentId(request.number(0)?), request.number(1)? == 1);
        let partition = host.engine.partition(context.partition)?;
        let capture = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
            partition.capture_released(peer, segment).await
        };
        let image = partition.with(capture).await?;
        let pace = host.pace(context.attempt).unwrap_or_else(|| Pace::new(None));
        let pace = if urgent { pace.without_waiting() } else { pace };
        host.failpoint.pass("source:fetch");
        bulk::send_whole(&mut send, context, segment, image.table, &pace).await
    };
    if let Err(cause) = served.await {
        tracing::info!(%cause, %peer, "a segment was not handed out");
        let _ = message::send(&mut send, context, &Message::Failed(cause.to_string())).await;
    }
    let _ = send.finish();
    // What was written is on its way before the stream is dropped.
    let _ = time::timeout(FETCH_MAX, send.stopped()).await;
}
