//! What is logged: `GET` and `PUT /v1/log-level`. It holds until it is changed again, for as long as was said, or until the next start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::http::{ApiError, AppState, duration};
use crate::telemetry::log;

/// For how long at most.
const TIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// The longest filter, octets.
const FILTER_SIZE_MAX: usize = 4096;
/// Counts the changes: one that was made for a while is taken back only if nobody has made another since.
static CHANGES: AtomicU64 = AtomicU64::new(0);

pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/v1/log-level", get(show).put(change))
}

/// What is logged.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevel {
    /// A level, or levels by where events come from.
    pub filter: String,
    /// In an order: for how long, `10m`; then it is as it was before.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// In an answer to an order: what it was before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

async fn show() -> Result<Json<LogLevel>, ApiError> {
    let filter = log::filter().ok_or_else(|| ApiError::not_found("there is no log in this process"))?;
    Ok(Json(LogLevel { filter, time: None, before: None }))
}

async fn change(Json(wanted): Json<LogLevel>) -> Result<Json<LogLevel>, ApiError> {
    let time = wanted.time.as_deref().map(duration).transpose()?;
    if time.is_some_and(|time| time > TIME_MAX) {
        return Err(ApiError::bad_request("for: expected 24h at most"));
    }
    if wanted.filter.len() > FILTER_SIZE_MAX {
        return Err(ApiError::bad_request(format!("filter: expected {FILTER_SIZE_MAX} octets at most")));
    }
    let before =
        log::set_filter(&wanted.filter).map_err(|words| ApiError::new(StatusCode::BAD_REQUEST, words))?;
    let change = CHANGES.fetch_add(1, Ordering::Relaxed) + 1;
    tracing::warn!(
        filter = wanted.filter,
        before,
        for_seconds = time.map(|time| time.as_secs()),
        "what is logged was changed"
    );
    if let Some(time) = time {
        let before = before.clone();
        // A thread of its own: the control plane may be stopped and started anew meanwhile.
        let take_back = move || {
            std::thread::sleep(time);
            if CHANGES.load(Ordering::Relaxed) == change && log::set_filter(&before).is_ok() {
                tracing::warn!(filter = before, "what is logged is as before");
            }
        };
        std::thread::Builder::new().name("log-level".into()).spawn(take_back).map_err(|e| {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("cannot wait for the end: {e}"))
        })?;
    }
    Ok(Json(LogLevel { filter: wanted.filter, time: wanted.time, before: Some(before) }))
}
