//! One command: read what it needs, let the machine decide, write in one transaction that compares all that was read.
//!
//! What the watch has shown last is as good as a read, as long as something is written: the comparison tells. So the
//! commit of a move, for which writes wait, is one round trip.

use std::cell::RefCell;
use std::time::Duration;

use etcd_client::{GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse};

use crate::coordinator::machine::Machine;
use crate::coordinator::{Answer, ClusterState, Command, HostInfo};

use super::follow::Picture;
use super::layout::{Layout, Scope};
use super::members::{Failure, Members, kv};

/// A command that takes longer is of unknown result.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Others that wrote in between; a command that loses more often is given up.
const RACES_MAX: u32 = 32;

/// Applies a command that decides something.
pub(super) async fn decide(
    members: &Members,
    layout: &Layout,
    latest: &RefCell<Picture>,
    command: &Command,
) -> Result<Answer, Failure> {
    let Some(scope) = Scope::of(layout, command) else {
        return Err(Failure::Unknown("not a command that decides".into()));
    };
    members.persist(ANSWER_MAX, async || once(members, &scope, latest, command).await).await
}

async fn once(
    members: &Members,
    scope: &Scope,
    latest: &RefCell<Picture>,
    command: &Command,
) -> Result<Answer, Failure> {
    let mut shown = scope.shown(&latest.borrow());
    let mut response = None;
    for race in 0..RACES_MAX {
        let is_shown = shown.is_some();
        let seen = match (shown.take(), response.take()) {
            (Some(seen), _) => seen,
            (None, Some(response)) => scope.seen(&response).map_err(Failure::Unknown)?,
            (None, None) => {
                let read = Txn::new().and_then(scope.reads());
                let response = members.ask(async |client| kv(&client).txn(read).await).await?;
                scope.seen(&response).map_err(Failure::Unknown)?
            }
        };
        let mut machine = Machine { state: seen.state.clone() };
        // What was read is the state at one revision, so that a refusal is as good as one by a single machine.
        let answer = match machine.apply(command.clone()) {
            Ok(answer) => answer,
            Err(_) if is_shown => continue,
            Err(what) => return Err(Failure::Conflict(what)),
        };
        let writes = scope.writes(&seen, &machine.state).map_err(Failure::Unknown)?;
        if writes.is_empty() {
            if is_shown {
                continue;
            }
            return Ok(answer);
        }
        let txn = Txn::new().when(seen.compares).and_then(writes).or_else(scope.reads());
        response = match members.ask(async |client| kv(&client).txn(txn).await).await {
            Ok(response) if response.succeeded() => return Ok(answer),
            Ok(response) => Some(response),
            // Every other command finds out by its attempt that it was done already.
            Err(Failure::Silent(what)) if matches!(command, Command::Begin { .. } | Command::Lead { .. }) => {
                return Err(Failure::Unknown(what));
            }
            Err(failure) => return Err(failure),
        };
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..1_000) * u64::from(race))).await;
    }
    Err(Failure::Unknown(format!("{RACES_MAX} times somebody else wrote first")))
}

/// Reads everything, with the revision that it is of.
pub(super) async fn list(members: &Members, layout: &Layout) -> Result<(Picture, i64), Failure> {
    let read =
        async |client: etcd_client::Client| kv(&client).get(layout.all(), Some(GetOptions::new().with_prefix())).await;
    let found = members.ask(read).await?;
    let picture = Picture::of(layout, found.kvs()).map_err(Failure::Unknown)?;
    Ok((picture, found.header().map_or(0, |header| header.revision())))
}

/// Writes where a host is, as long as its lease lives, and reads everything.
pub(super) async fn register(
    members: &Members,
    layout: &Layout,
    info: &HostInfo,
    lease: i64,
) -> Result<ClusterState, Failure> {
    let value = serde_json::to_vec(info).map_err(|cause| Failure::Unknown(cause.to_string()))?;
    let txn = Txn::new().and_then([
        TxnOp::put(layout.host(info.host), value, Some(PutOptions::new().with_lease(lease))),
        TxnOp::get(layout.all(), Some(GetOptions::new().with_prefix())),
    ]);
    let response = members.ask(async |client| kv(&client).txn(txn).await).await?;
    let mut state = ClusterState::default();
    for answer in response.op_responses() {
        if let TxnOpResponse::Get(found) = answer {
            layout.take_all(&mut state, found.kvs()).map_err(Failure::Unknown)?;
        }
    }
    Ok(state)
}
