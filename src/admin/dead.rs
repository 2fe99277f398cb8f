//! Dead letters: `/v1/dead`. The same as the command `incoming dead` does on the folder, for those who are not on this machine.
//!
//! | | |
//! |---|---|
//! | `GET /v1/dead` | lists them, in pages |
//! | `GET /v1/dead/<id>` | what is known of one |
//! | `GET /v1/dead/<id>/content` | its content, octet for octet |
//! | `POST /v1/dead/retry` | has some or all sent again |
//! | `DELETE /v1/dead/<id>` | removes one |

use std::io::Read;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Response, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;

use super::Operations;
use super::http::{ApiError, AppState};
use crate::delivery::DeadLetters;
use crate::delivery::dead::ReadError;
use crate::limits::COPY_SIZE;
use crate::mail::MessageId;

/// Letters in one answer, where nobody says how many, and at most.
const LETTERS: (usize, usize) = (100, 1000);
/// Octets of letters in one answer: one alone may be larger.
const ANSWER_SIZE: usize = 4 << 20;

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/v1/dead", get(list))
        .route("/v1/dead/retry", post(retry))
        .route("/v1/dead/{id}", get(show).delete(remove))
        .route("/v1/dead/{id}/content", get(content))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    limit: Option<usize>,
    from: Option<String>,
}

/// Some of the letters.
#[derive(Serialize)]
struct Letters {
    /// As `dead.json` says, and whether they are to be sent again.
    letters: Vec<Value>,
    /// Such as cannot be read, and why.
    unreadable: Vec<String>,
    /// Where to go on (`from`); nothing: these were the last.
    next: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Chosen {
    #[serde(default)]
    ids: Vec<String>,
    #[serde(default)]
    all: bool,
}

/// What is done about letters.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    /// To be sent again; or removed.
    ids: Vec<String>,
    /// Those that were asked for and are not, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    faults: Vec<String>,
}

fn letters(operations: &dyn Operations) -> DeadLetters {
    DeadLetters::open(&operations.config().dead_dir())
}

fn id(text: &str) -> Result<MessageId, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request(format!("{text:?} is not a message id")))
}

fn unreadable(error: ReadError) -> ApiError {
    let status = match error {
        ReadError::Gone(_) => StatusCode::NOT_FOUND,
        ReadError::Malformed(..) | ReadError::Failed(..) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, error.to_string())
}

fn failed(dead: &DeadLetters, e: std::io::Error) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{}: {e}", dead.dir().display()))
}

fn raw(line: &str) -> Value {
    serde_json::from_str(line).expect("a letter's line is JSON")
}

async fn list(
    State(state): State<AppState>,
    Query(Wanted { limit, from }): Query<Wanted>,
) -> Result<Json<Letters>, ApiError> {
    let limit = limit.unwrap_or(LETTERS.0).clamp(1, LETTERS.1);
    let listed = state.blocking(move |operations| {
        let dead = letters(operations);
        let mut ids: Vec<String> =
            dead.ids().map_err(|e| failed(&dead, e))?.iter().map(MessageId::to_string).collect();
        ids.sort();
        let mut listed = Letters { letters: Vec::new(), unreadable: Vec::new(), next: None };
        let mut size = 0;
        for text in ids.into_iter().filter(|id| from.as_ref().is_none_or(|from| id >= from)) {
            if listed.letters.len() + listed.unreadable.len() >= limit || size >= ANSWER_SIZE {
                listed.next = Some(text);
                break;
            }
            let id = id(&text)?;
            match dead.read(id) {
                Ok(letter) => {
                    let line = letter.line(dead.requests().has(id));
                    size += line.len();
                    listed.letters.push(raw(&line));
                }
                // It went while they were listed.
                Err(ReadError::Gone(_)) => {}
                Err(e) => listed.unreadable.push(e.to_string()),
            }
        }
        Ok(Json(listed))
    });
    listed.await?
}

async fn show(State(state): State<AppState>, Path(text): Path<String>) -> Result<Json<Value>, ApiError> {
    let id = id(&text)?;
    let shown = state.blocking(move |operations| {
        let dead = letters(operations);
        let letter = dead.read(id).map_err(unreadable)?;
        Ok(Json(raw(&letter.line(dead.requests().has(id)))))
    });
    shown.await?
}

async fn content(
    State(state): State<AppState>,
    Path(text): Path<String>,
) -> Result<Response<Body>, ApiError> {
    let id = id(&text)?;
    let opened = state.blocking(move |operations| {
        let dead = letters(operations);
        let letter = dead.read(id).map_err(unreadable)?;
        dead.open_content(&letter).map_err(unreadable)
    });
    let mut file = opened.await??;
    // Two pieces: one is sent while the next is read.
    let (sender, pieces) = mpsc::channel::<std::io::Result<Bytes>>(1);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut piece = Vec::with_capacity(COPY_SIZE);
            let read = (&mut file).take(COPY_SIZE as u64).read_to_end(&mut piece);
            let is_last = !matches!(read, Ok(size) if size > 0);
            let sent = match read {
                Ok(0) => return,
                Ok(_) => sender.blocking_send(Ok(piece.into())),
                Err(e) => sender.blocking_send(Err(e)),
            };
            if is_last || sent.is_err() {
                return;
            }
        }
    });
    let response = Response::builder().header(CONTENT_TYPE, "message/rfc822").body(Body::new(Pieces(pieces)));
    Ok(response.expect("the field is well-formed"))
}

/// A body that is read while it is sent.
struct Pieces(mpsc::Receiver<std::io::Result<Bytes>>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(http_body::Frame::data)))
    }
}

async fn retry(State(state): State<AppState>, Json(chosen): Json<Chosen>) -> Result<Json<Asked>, ApiError> {
    if chosen.all != chosen.ids.is_empty() {
        return Err(ApiError::bad_request("expected ids, a list of message ids, or all: true"));
    }
    let wanted = chosen.ids.iter().map(|text| id(text)).collect::<Result<Vec<_>, _>>()?;
    let asked = state.blocking(move |operations| {
        let dead = letters(operations);
        let mut ids = if chosen.all { dead.ids().map_err(|e| failed(&dead, e))? } else { wanted };
        let mut faults = Vec::new();
        ids.retain(|id| {
            let readable = dead.read(*id).and_then(|letter| dead.open_content(&letter).map(drop));
            readable.map_err(|e| faults.push(e.to_string())).is_ok()
        });
        if !ids.is_empty() {
            dead.requests().add(&ids).map_err(|e| failed(&dead, e))?;
        }
        Ok(Json(Asked { ids: ids.iter().map(MessageId::to_string).collect(), faults }))
    });
    asked.await?
}

async fn remove(State(state): State<AppState>, Path(text): Path<String>) -> Result<Json<Asked>, ApiError> {
    let id = id(&text)?;
    let removed = state.blocking(move |operations| {
        let dead = letters(operations);
        match dead.remove(id) {
            Ok(true) => Ok(Json(Asked { ids: vec![id.to_string()], faults: Vec::new() })),
            Ok(false) => Err(unreadable(ReadError::Gone(dead.path(id)))),
            Err(e) => Err(unreadable(ReadError::Failed(dead.path(id), e))),
        }
    });
    removed.await?
}
