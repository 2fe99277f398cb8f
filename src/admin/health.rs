//! Health, for load balancers and supervisors: `/livez` and `/readyz`.
//!
//! Alive is who answers, with every shard: where one does not the process is to be restarted. Ready is who takes mail now; who is not says
//! why, and needs no restart for it.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::Stage;
use super::http::{ApiError, AppState};

pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/livez", get(livez)).route("/readyz", get(readyz))
}

/// What `/livez` and `/readyz` say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether all is well.
    pub ok: bool,
    /// What is not.
    pub reasons: Vec<String>,
}

fn answer(reasons: Vec<String>) -> Answer {
    let ok = reasons.is_empty();
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Health { ok, reasons }))
}

type Answer = (StatusCode, Json<Health>);

async fn livez(State(state): State<AppState>) -> Result<Answer, ApiError> {
    // Before the shards run, and when they are over, nobody is to answer for them.
    if matches!(state.stage().await?, Stage::Starting | Stage::Stopping { .. }) {
        return Ok(answer(Vec::new()));
    }
    let answers = state.shards().ask_all(|_| ()).await;
    let silent = answers.iter().enumerate().filter(|(_, answer)| answer.is_none());
    Ok(answer(silent.map(|(n, _)| format!("shard {n} does not answer")).collect()))
}

async fn readyz(State(state): State<AppState>) -> Result<Answer, ApiError> {
    let mut reasons: Vec<String> = match state.stage().await? {
        Stage::Ready => Vec::new(),
        Stage::Starting => return Ok(answer(vec!["starting: the shards do not all accept yet".into()])),
        Stage::Draining { .. } => vec!["draining: no new sessions are taken".into()],
        Stage::Stopping { .. } => return Ok(answer(vec!["stopping".into()])),
    };
    let shards = state.shards().ask_all(|shard| shard.troubles()).await;
    for (n, troubles) in shards.into_iter().enumerate() {
        let troubles = troubles.unwrap_or_else(|| vec!["it does not answer".into()]);
        reasons.extend(troubles.into_iter().map(|trouble| format!("shard {n}: {trouble}")));
    }
    Ok(answer(reasons))
}
