//! What an operator's tools and browser read from a node: metrics for Prometheus, the state of the cluster as JSON and as
//! a page that follows it, and the few actions that the page offers to who has the token.
//!
//! | path | what |
//! |---|---|
//! | `/metrics` | OpenMetrics text: `net/docs/metrics.md` |
//! | `/healthz` | 200 while this node serves, 503 while its coordinator cannot be reached |
//! | `/api/status` | [`Status`](status::Status) |
//! | `/api/partitions/{id}/segments` | segments of a partition here: observed and predicted accesses, what is held |
//! | `/api/stream` | server-sent events: `status` each second, `event` for each event of the history |
//! | `POST /api/move`, `/api/abort`, `/api/switch`, `/api/drain` | actions; `Authorization: Bearer TOKEN` |
//! | `/` | the page |

mod actions;
mod drain;
mod listener;
mod metrics;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event as SentEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream::{self, Stream};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};
use crate::events::Event;
use crate::host::Host;
use crate::resp::Service;
use crate::status;

use listener::Bounded;

/// Connections at a time; others wait.
const CONNECTIONS_MAX: usize = 256;
/// Browsers that follow at a time.
const FOLLOWERS_MAX: usize = 64;
/// Largest body of a request, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Between two states that a follower gets.
const PERIOD: Duration = Duration::from_secs(1);
/// Shortest token that is accepted: less is guessed.
const TOKEN_BYTES_MIN: usize = 16;

/// Configuration.
#[derive(Clone)]
pub struct HttpConfig {
    /// TCP address.
    pub listen: SocketAddr,
    /// What an operator has to show for an action; without it there are none.
    pub token: Option<String>,
}

impl std::fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "***");
        f.debug_struct("HttpConfig").field("listen", &self.listen).field("token", &token).finish_non_exhaustive()
    }
}

/// What the handlers share.
struct App {
    host: Arc<Host>,
    service: Arc<Service>,
    config: HttpConfig,
    followers: Arc<Semaphore>,
    /// One place: who empties this host.
    drains: Arc<Semaphore>,
}

type Shared = State<Arc<App>>;

impl App {
    async fn status(&self) -> Result<Arc<status::Status>> {
        self.service.status(&self.host).await
    }
}

/// Listens; the returned future serves until it is dropped. Runs on a tokio runtime.
///
/// # Errors
/// [`Error::Link`] when the address cannot be had, [`Error::Refused`] for a token that is too short.
pub async fn bind(
    host: Arc<Host>,
    service: Arc<Service>,
    config: HttpConfig,
) -> Result<(SocketAddr, impl Future<Output = std::io::Result<()>> + Send)> {
    if config.token.as_ref().is_some_and(|token| token.len() < TOKEN_BYTES_MIN) {
        let what = format!("the operators' token is shorter than {TOKEN_BYTES_MIN} bytes: it would be guessed");
        return Err(Error::Refused { what });
    }
    let listen = config.listen;
    let listener = TcpListener::bind(listen).await.map_err(|cause| Error::link(listen, cause))?;
    let address = listener.local_addr().map_err(|cause| Error::link(listen, cause))?;
    let followers = Arc::new(Semaphore::new(FOLLOWERS_MAX));
    let app = Arc::new(App { host, service, config, followers, drains: Arc::new(Semaphore::new(1)) });
    let served = axum::serve(Bounded::new(listener, CONNECTIONS_MAX), router(app));
    Ok((address, async move { served.await }))
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(|| async { asset("text/html; charset=utf-8", include_str!("page/index.html")) }))
        .route("/page.css", get(|| async { asset("text/css; charset=utf-8", include_str!("page/page.css")) }))
        .route("/page.js", get(|| async { asset("text/javascript; charset=utf-8", include_str!("page/page.js")) }))
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/api/status", get(state))
        .route("/api/partitions/{id}/segments", get(segments))
        .route("/api/stream", get(follow))
        .route("/api/move", post(actions::begin))
        .route("/api/abort", post(actions::abort))
        .route("/api/switch", post(actions::switch))
        .route("/api/drain", post(actions::drain))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app)
}

/// Part of the page. It may load nothing from elsewhere and be framed by nobody.
fn asset(kind: &'static str, text: &'static str) -> Response {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                          frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

/// An answer that is no success, as JSON.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, axum::Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<Error> for Refusal {
    fn from(cause: Error) -> Refusal {
        let status = match &cause {
            Error::Refused { .. } | Error::Conflict { .. } => StatusCode::CONFLICT,
            Error::Engine(antumbra_engine::Error::UnknownPartition { .. }) => StatusCode::NOT_FOUND,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refusal(status, cause.to_string())
    }
}

async fn metrics(State(app): Shared) -> std::result::Result<Response, Refusal> {
    let status = app.status().await?;
    let text = metrics::encode(&status, &app.service.figures());
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

async fn health(State(app): Shared) -> std::result::Result<&'static str, Refusal> {
    let status = app.status().await?;
    match &status.coordinator_error {
        None => Ok("ok\n"),
        Some(cause) => Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, format!("the coordinator: {cause}"))),
    }
}

async fn state(State(app): Shared) -> std::result::Result<Response, Refusal> {
    let status = app.status().await?;
    Ok(axum::Json(&*status).into_response())
}

async fn segments(State(app): Shared, Path(id): Path<u64>) -> std::result::Result<Response, Refusal> {
    Ok(axum::Json(status::segments(&app.host, id).await?).into_response())
}

async fn follow(
    State(app): Shared,
    headers: HeaderMap,
) -> std::result::Result<Sse<impl Stream<Item = std::result::Result<SentEvent, Infallible>>>, Refusal> {
    let place = Arc::clone(&app.followers).try_acquire_owned().map_err(|_| {
        Refusal(StatusCode::SERVICE_UNAVAILABLE, format!("{FOLLOWERS_MAX} browsers follow already: try again later"))
    })?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok()).unwrap_or(0);
    // Numbers begin anew with each life of the node.
    let last = if last > *app.host.events.watch().borrow() { 0 } else { last };
    let follower = Follower { app, _place: place, last, waiting: VecDeque::new(), next: tokio::time::Instant::now() };
    Ok(Sse::new(stream::unfold(follower, |mut follower| async move {
        let sent = follower.next().await;
        Some((Ok(sent), follower))
    }))
    .keep_alive(KeepAlive::default()))
}

/// A browser that follows.
struct Follower {
    app: Arc<App>,
    _place: OwnedSemaphorePermit,
    /// The last event that it has, or that waits to be sent.
    last: u64,
    waiting: VecDeque<Event>,
    /// When it gets the next state.
    next: tokio::time::Instant,
}

impl Follower {
    async fn next(&mut self) -> SentEvent {
        let host = Arc::clone(&self.app.host);
        let mut newest = host.events.watch();
        loop {
            newest.borrow_and_update();
            if self.waiting.is_empty() {
                self.waiting = host.events.since(self.last, usize::MAX).into();
                self.last = self.waiting.back().map_or(self.last, |newest| newest.number);
            }
            if let Some(event) = self.waiting.pop_front() {
                let sent = SentEvent::default().event("event").id(event.number.to_string());
                return sent.json_data(&event).unwrap_or_default();
            }
            tokio::select! {
                _ = newest.changed() => {}
                () = tokio::time::sleep_until(self.next) => {
                    self.next = tokio::time::Instant::now() + PERIOD;
                    let sent = SentEvent::default().event("status");
                    return match self.app.status().await {
                        Ok(status) => sent.json_data(&*status).unwrap_or_default(),
                        Err(cause) => SentEvent::default().event("failure").data(cause.to_string()),
                    };
                }
            }
        }
    }
}
