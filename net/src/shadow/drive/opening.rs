//! The shadow as the target creates it.

use std::collections::BTreeSet;
use std::sync::Arc;

use antumbra_engine::partition::Base;
use antumbra_engine::types::{AttemptId, HostId, Lsn, PartitionId, SegmentId};
use antumbra_engine::{PartitionHandle, PartitionOptions, PartitionSpec};

use crate::coordinator::{self, RecordState};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::resp::slot;
use crate::shadow::frame::FrameContext;
use crate::shadow::message::Opening;

/// What this host has of a partition from before.
#[derive(Clone, Debug, Default)]
pub(super) struct Leftover {
    /// The state that it has, if that can be a base.
    pub base: Option<Base>,
    /// The segments that are there with the bounds of the new ones.
    pub segments: Arc<BTreeSet<SegmentId>>,
    /// Why there are none, if the source has named a base.
    pub why_none: String,
}

/// Creates the shadow that the source asks for, on what an earlier move has left here if that can be a base.
pub(super) async fn create(
    host: &Host,
    peer: HostId,
    context: FrameContext,
    opening: Opening,
) -> Result<(PartitionHandle, Leftover)> {
    let record = coordinator::read(host.coordinator.as_ref(), context.partition.0).await?;
    let ours = matches!(&record.state, RecordState::Moving(moving)
        if moving.attempt == context.attempt.0 && moving.destination == host.id.0);
    if !ours || record.owner != peer.0 || record.epoch != context.epoch.0 {
        return Err(Error::Refused { what: format!("attempt {} is not in the coordinator's record", context.attempt) });
    }
    let spec = PartitionSpec {
        id: context.partition,
        keyspace: opening.keyspace,
        range: slot::range_of(opening.slots),
        epoch: context.epoch,
        options: PartitionOptions {
            segment_target_bytes: opening.segment_target_bytes,
            block_bytes: opening.block_bytes,
            // How blocks are stored is each host's own choice.
            ..host.options
        },
    };
    let (attempt, segments, from) = (context.attempt, opening.segments, opening.from);
    let mut copy = Leftover::default();
    if let Some(base) = opening.base {
        match create_on_base(host, peer, attempt, &spec, (&segments, from), base).await {
            Ok(created) => return Ok(created),
            Err(cause) => copy.why_none = cause.to_string(),
        }
    }
    let shard = host.shard_of(context.partition);
    drop_leftover(host, context.partition).await?;
    host.engine
        .on_shard(shard, move |shard| async move { shard.create_shadow(spec, attempt, segments, from).await.map(drop) })
        .await??;
    Ok((host.engine.partition(context.partition)?, copy))
}

/// The shadow on top of the copy that an earlier move has left here.
async fn create_on_base(
    host: &Host,
    owner: HostId,
    attempt: AttemptId,
    spec: &PartitionSpec,
    (segments, from): (&[(SegmentId, Vec<u8>)], Lsn),
    base: Base,
) -> Result<(PartitionHandle, Leftover)> {
    let shard = host.engine.partition(spec.id)?.shard();
    let (id, spec, segments) = (spec.id, spec.clone(), segments.to_vec());
    let create = move |shard: std::rc::Rc<antumbra_engine::Shard>| async move {
        shard.create_shadow_on_base(spec, attempt, segments, from, (owner, base.lsn)).await
    };
    host.engine.on_shard(shard, create).await??;
    let partition = host.engine.partition(id)?;
    let based = partition.with(|partition| async move { Ok(partition.based_segments()) }).await?;
    Ok((
        partition,
        Leftover { base: Some(base), segments: Arc::new(based.into_iter().collect()), why_none: String::new() },
    ))
}

/// What an earlier ownership or attempt left: this host does not own the partition, the record says so.
async fn drop_leftover(host: &Host, id: PartitionId) -> Result<()> {
    if let Ok(partition) = host.engine.partition(id) {
        let shard = partition.shard();
        host.engine.on_shard(shard, move |shard| async move { shard.drop_partition(id).await }).await??;
    }
    Ok(())
}
