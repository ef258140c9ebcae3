//! What an operator may do from the page.

use std::sync::Arc;

use antumbra_engine::types::{HostId, PartitionId};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::Error;
use crate::shadow::{MoveHandle, MoveOptions};

use super::{App, Refusal, Shared, drain};

/// A move that is wanted.
#[derive(Deserialize)]
pub(super) struct Wanted {
    partition: u64,
    destination: u32,
    /// In MB per second on the wire.
    throttle_mb_s: Option<f64>,
}

/// A move under way.
#[derive(Deserialize)]
pub(super) struct Named {
    partition: u64,
}

type Done = Result<Json<Value>, Refusal>;

pub(super) async fn begin(State(app): Shared, headers: HeaderMap, Json(wanted): Json<Wanted>) -> Done {
    check(&app, &headers)?;
    let options = MoveOptions {
        throttle_bytes_s: wanted.throttle_mb_s.filter(|rate| *rate > 0.0).map(|rate| (rate * 1e6) as u64),
        ..MoveOptions::default()
    };
    app.host.start_move(PartitionId(wanted.partition), HostId(wanted.destination), options)?;
    Ok(Json(json!({ "done": true })))
}

pub(super) async fn abort(State(app): Shared, headers: HeaderMap, Json(named): Json<Named>) -> Done {
    check(&app, &headers)?;
    find(&app, named.partition)?.give_up();
    Ok(Json(json!({ "done": true })))
}

pub(super) async fn switch(State(app): Shared, headers: HeaderMap, Json(named): Json<Named>) -> Done {
    check(&app, &headers)?;
    find(&app, named.partition)?.switch();
    Ok(Json(json!({ "done": true })))
}

pub(super) async fn drain(State(app): Shared, headers: HeaderMap) -> Done {
    check(&app, &headers)?;
    let alone = Arc::clone(&app.drains).try_acquire_owned();
    let alone = alone.map_err(|_| Refusal(StatusCode::CONFLICT, "this host is being emptied already".into()))?;
    tokio::spawn(async move { drain::run(&app, alone).await });
    Ok(Json(json!({ "done": true })))
}

fn find(app: &App, partition: u64) -> Result<MoveHandle, Error> {
    let found = app.host.find_move(PartitionId(partition)).filter(|known| !known.is_finished());
    found.ok_or_else(|| Error::Refused {
        what: format!("no move of partition {partition} that began on host {} is under way", app.host.id),
    })
}

/// Whether the request brings the operators' token. A browser sends this header for no other site.
fn check(app: &Arc<App>, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(token) = &app.config.token else {
        return Err(Refusal(
            StatusCode::FORBIDDEN,
            "this node was given no token for operators: it is read only".into(),
        ));
    };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let same = given.is_some_and(|given| {
        // Digests, so that the time it takes says nothing of the token.
        ring::digest::digest(&ring::digest::SHA256, given.as_bytes()).as_ref()
            == ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref()
    });
    if same {
        Ok(())
    } else {
        Err(Refusal(StatusCode::UNAUTHORIZED, "the operators' token is missing or wrong".into()))
    }
}
