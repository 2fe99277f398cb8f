//! `/metrics`: what scrapers read; see docs/METRICS.md.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;

use super::http::AppState;
use crate::scrape::{Scraper, Sources};
use crate::telemetry::exposition::Format;

pub(super) fn routes() -> Router<AppState> {
    let scraper = Arc::new(Scraper::default());
    let metrics = move |State(state): State<AppState>, headers: HeaderMap| async move {
        let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        let format = Format::accepted(accept);
        let operations = state.operations();
        let sources = Sources {
            shards: operations.shards(),
            targets: operations.targets(),
            policies: operations.policies(),
            config: operations.config(),
        };
        let text = scraper.exposition(sources, format).await;
        ([(CONTENT_TYPE, format.content_type())], text).into_response()
    };
    Router::new().route("/metrics", get(metrics))
}
