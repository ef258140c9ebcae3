//! Empties this host: one partition after the other moves to the host that answers and has the least data.

use antumbra_engine::types::{HostId, PartitionId};
use tokio::sync::OwnedSemaphorePermit;

use crate::error::Result;
use crate::events::Topic;
use crate::shadow::MoveOptions;

use super::App;

/// Goes on until the host owns nothing or a move fails; the event history says how it ended. Aborting its move ends it.
pub(super) async fn run(app: &App, _alone: OwnedSemaphorePermit) {
    let id = app.host.id;
    let note = |text: String| app.host.events.note(Topic::Move, None, text);
    note(format!("host {id} is being emptied, as an operator has asked"));
    match empty(app).await {
        Ok(moved) => note(format!("host {id} owns nothing any more: {moved} partitions have moved")),
        Err(cause) => note(format!("host {id} is not emptied any further: {cause}")),
    }
}

async fn empty(app: &App) -> Result<usize> {
    let id = app.host.id.0;
    let mut moved = 0;
    loop {
        let Some(next) = app.service.status_now(&app.host).await?.next_drain_move(id)? else {
            return Ok(moved);
        };
        let (partition, destination) = (PartitionId(next.partition), HostId(next.destination));
        app.host.start_move(partition, destination, MoveOptions::default())?.wait().await?;
        moved += 1;
    }
}
