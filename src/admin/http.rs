//! The routes together, what they share, and how faults are said.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Operations, Stage, dead, health, life, log_level, metrics, queue, sessions, stats, trace};
use crate::shard::Shards;

/// Of a fault that axum says in its own words.
const FAULT_SIZE_MAX: usize = 4096;

/// What every route knows.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

struct Shared {
    operations: Arc<dyn Operations>,
    stopped: watch::Receiver<bool>,
}

impl AppState {
    pub(super) fn new(operations: Arc<dyn Operations>, stopped: watch::Receiver<bool>) -> Self {
        AppState(Arc::new(Shared { operations, stopped }))
    }

    /// The gateway.
    pub(super) fn operations(&self) -> &Arc<dyn Operations> {
        &self.0.operations
    }

    /// Its shards.
    pub(super) fn shards(&self) -> Shards {
        self.0.operations.shards()
    }

    /// Does what blocks on a thread where that harms nobody.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        what: impl FnOnce(&dyn Operations) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let operations = self.0.operations.clone();
        let done = tokio::task::spawn_blocking(move || what(&*operations)).await;
        done.map_err(|_| {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the admin interface is being stopped")
        })
    }

    /// How far the gateway is in its life. While it ends its shards are asked for that, which takes as long as they take.
    pub(super) async fn stage(&self) -> Result<Stage, ApiError> {
        self.blocking(|operations| operations.stage()).await
    }

    /// Ends when the control plane stops: for answers that have no end of their own.
    pub(super) async fn stopped(&self) {
        let mut stopped = self.0.stopped.clone();
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }
}

/// All that there is.
pub(super) fn api(state: AppState) -> Router {
    let routes = health::routes()
        .merge(dead::routes())
        .merge(life::routes())
        .merge(log_level::routes())
        .merge(metrics::routes())
        .merge(queue::routes())
        .merge(sessions::routes())
        .merge(stats::routes())
        .merge(trace::routes());
    bounded(routes, state)
}

/// What anybody may see.
pub(super) fn monitor(state: AppState) -> Router {
    bounded(health::routes().merge(metrics::routes()), state)
}

fn bounded(routes: Router<AppState>, state: AppState) -> Router {
    routes
        .fallback(|| async {
            ApiError::new(StatusCode::NOT_FOUND, "there is no such resource: see docs/ADMIN.md")
        })
        .with_state(state)
}

/// What went wrong, in words for people: what, where, what to do.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    words: String,
}

/// A fault as it is sent.
#[derive(Serialize, Deserialize)]
pub(super) struct Fault {
    pub error: String,
}

impl ApiError {
    /// A fault.
    pub fn new(status: StatusCode, words: impl Into<String>) -> Self {
        ApiError { status, words: words.into() }
    }

    /// What was asked makes no sense.
    pub fn bad_request(words: impl Into<String>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, words)
    }

    /// There is no such thing.
    pub fn not_found(words: impl Into<String>) -> Self {
        ApiError::new(StatusCode::NOT_FOUND, words)
    }

    /// What it says.
    pub fn words(&self) -> &str {
        &self.words
    }

    /// A shard has ended or does not answer.
    pub fn silent_shard(n: usize) -> Self {
        let words = format!("shard {n} does not answer: it has ended, or is stuck");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, words)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> axum::response::Response {
        (self.status, axum::Json(Fault { error: self.words })).into_response()
    }
}

/// A duration in a query or a body: "10m", "30s".
pub(super) fn duration(text: &str) -> Result<Duration, ApiError> {
    let expected =
        || ApiError::bad_request(format!("expected a duration such as \"5m\" or \"300s\", not {text:?}"));
    humantime::parse_duration(text).map_err(|_| expected())
}

/// Faults have one shape, also those that axum finds.
pub(super) async fn plain_errors_as_json(response: Response<Body>) -> Response<Body> {
    let status = response.status();
    let is_json = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if !(status.is_client_error() || status.is_server_error()) || is_json {
        return response;
    }
    let words = match axum::body::to_bytes(response.into_body(), FAULT_SIZE_MAX).await {
        Ok(words) if !words.is_empty() => String::from_utf8_lossy(&words).into_owned(),
        _ => status.canonical_reason().unwrap_or("no reason is known").to_lowercase(),
    };
    ApiError::new(status, words).into_response()
}
