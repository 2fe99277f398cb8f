//! The gateway's life: how far it is, and drain, reload, upgrade.
//!
//! A drain is ordered and goes on by itself: who wants to know how far it is asks for the stage. Reload and upgrade are answered when they
//! are done.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::http::{ApiError, AppState, duration};
use super::{DRAIN_TIME_MAX, DrainOrder, Reloaded, Stage};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/v1/stage", get(stage))
        .route("/v1/drain", post(drain))
        .route("/v1/reload", post(reload))
        .route("/v1/upgrade", post(upgrade))
}

/// How far the gateway is, and which process that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// How far.
    #[serde(flatten)]
    pub stage: Stage,
}

async fn progress(state: &AppState) -> Result<Json<Progress>, ApiError> {
    let stage = state.stage().await?;
    Ok(Json(Progress { pid: std::process::id(), version: env!("CARGO_PKG_VERSION").into(), stage }))
}

async fn stage(State(state): State<AppState>) -> Result<Json<Progress>, ApiError> {
    progress(&state).await
}

/// What `POST /v1/drain` takes; everything may be left out.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// How long the queue is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deliveries: Option<String>,
    /// How long sessions may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

async fn drain(
    State(state): State<AppState>,
    body: Option<Json<Drain>>,
) -> Result<(StatusCode, Json<Progress>), ApiError> {
    let Json(Drain { deliveries, timeout }) = body.unwrap_or_default();
    let some = |key: &str, text: Option<String>| match text.map(|text| duration(&text)).transpose()? {
        Some(time) if time > DRAIN_TIME_MAX => {
            Err(ApiError::bad_request(format!("{key}: expected 30 days at most")))
        }
        time => Ok(time),
    };
    let order =
        DrainOrder { deliveries: some("deliveries", deliveries)?, timeout: some("timeout", timeout)? };
    state.blocking(move |operations| operations.drain(order)).await?;
    Ok((StatusCode::ACCEPTED, progress(&state).await?))
}

async fn reload(State(state): State<AppState>) -> Result<Json<Reloaded>, ApiError> {
    let done = state.blocking(|operations| operations.reload()).await?;
    done.map(Json).map_err(|words| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, words))
}

/// What an upgrade came to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Upgraded {
    /// The words of who did it.
    pub message: String,
}

async fn upgrade(State(state): State<AppState>) -> Result<Json<Upgraded>, ApiError> {
    let done = state.blocking(|operations| operations.upgrade()).await?;
    done.map(|message| Json(Upgraded { message })).map_err(|words| ApiError::new(StatusCode::CONFLICT, words))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::admin::testing::FakeGateway;

    #[test]
    fn orders_reach_the_gateway_and_its_words_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let gateway = FakeGateway::new(folder.path(), "");
        let _served = gateway.serve();
        let progress: Progress = gateway.get("/v1/stage").unwrap();
        assert_eq!((progress.pid, progress.stage), (std::process::id(), Stage::Ready));

        let reloaded: Reloaded = gateway.post("/v1/reload", json!({})).unwrap();
        assert_eq!(reloaded, Reloaded::default());
        *gateway.reload.lock().unwrap() = Err("FILE:2: no".into());
        assert_eq!(gateway.post::<Reloaded>("/v1/reload", json!({})).unwrap_err(), "FILE:2: no");

        let upgraded: Upgraded = gateway.post("/v1/upgrade", json!({})).unwrap();
        assert_eq!(upgraded.message, "process 7 serves");

        let body = json!({"deliveries": "10m", "timeout": "5s"});
        let progress: Progress = gateway.post("/v1/drain", body).unwrap();
        assert_eq!(progress.stage, Stage::Draining { sessions: 3, messages: 4 });
        let _: Progress = gateway.post("/v1/drain", json!({})).unwrap();
        let seconds = |n| Some(Duration::from_secs(n));
        let first = DrainOrder { deliveries: seconds(600), timeout: seconds(5) };
        assert_eq!(*gateway.drained.lock().unwrap(), [first, DrainOrder::default()]);
    }

    #[test]
    fn orders_that_make_no_sense_change_nothing_and_are_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let gateway = FakeGateway::new(folder.path(), "");
        let _served = gateway.serve();
        for (path, body, part) in [
            ("/v1/drain", json!({"timeout": "soon"}), "expected a duration"),
            ("/v1/drain", json!({"timeout": "31days"}), "timeout: expected 30 days at most"),
            ("/v1/drain", json!({"deliveries": "500000000years"}), "deliveries: expected"),
            ("/v1/drain", json!({"tiemout": "5s"}), "unknown field"),
            ("/v1/drain", json!("now"), "invalid type"),
            ("/v1/nothing", json!({}), "there is no such resource"),
            ("/v1/stage", json!({}), "method not allowed"),
        ] {
            let error = gateway.post::<Progress>(path, body).unwrap_err();
            assert!(error.contains(part), "{path}: {error}");
        }
        assert!(gateway.drained.lock().unwrap().is_empty());
    }
}
