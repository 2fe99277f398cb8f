//! What is logged: `GET` and `PUT /v1/log-level`. It holds until it is changed again, for as long as was said, or until the next start.

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

pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/v1/log-level", get(show).put(change))
}

/// What is logged.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevel {
    /// A level, or levels by where events come from.
    pub filter: String,
    /// In an order: for how long, `10m`; then what is wanted without an end is in force again.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// In an answer to an order: what was in force before, perhaps for a while only.
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
    let before = match time {
        Some(time) => log::set_filter_for(&wanted.filter, time),
        None => log::set_filter(&wanted.filter),
    };
    let before = before.map_err(|words| ApiError::new(StatusCode::BAD_REQUEST, words))?;
    tracing::warn!(
        filter = wanted.filter,
        before,
        for_seconds = time.map(|time| time.as_secs()),
        "what is logged was changed"
    );
    Ok(Json(LogLevel { filter: wanted.filter, time: wanted.time, before: Some(before) }))
}
