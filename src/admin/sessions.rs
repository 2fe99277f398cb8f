//! Who is connected: `GET /v1/sessions`.
//!
//! Shards are asked one after the other and page by page, so that a hundred thousand sessions are listed while mail goes on. A list is no
//! picture of one moment: sessions come and go while it is made.

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::http::{ApiError, AppState};
use crate::shard::sessions::SessionFacts;

/// Sessions in one answer at most; the next are asked for with what it gives as `next`.
const SESSIONS_MAX: usize = 10_000;
/// And where nobody says how many.
const SESSIONS_DEFAULT: usize = 1000;

pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/v1/sessions", get(list))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    ip: Option<String>,
    limit: Option<usize>,
    from: Option<String>,
}

/// A part of the sessions.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sessions {
    /// They.
    pub sessions: Vec<Session>,
    /// Where to go on (`from`); nothing: these were the last.
    pub next: Option<String>,
}

/// One session.
#[derive(Debug, Serialize, Deserialize)]
pub struct Session {
    /// Shard and place there. Another session may have it once this one has ended.
    pub id: String,
    /// Its client, as policies see it.
    pub peer: String,
    /// The address of ours.
    pub listener: Option<String>,
    /// The version of TLS, if there is any.
    pub tls: Option<String>,
    /// How the client names itself.
    pub hello: Option<String>,
    /// Who has logged in.
    pub user: Option<String>,
    /// connected, greeted, ready, transaction, content, waiting (for us) or closed.
    pub state: String,
    /// When it began, RFC 3339.
    pub since: String,
    /// Octets received, as TCP counts them.
    pub received_bytes: Option<u64>,
    /// Octets sent and acknowledged, as TCP counts them.
    pub sent_bytes: Option<u64>,
    /// Messages accepted.
    pub messages: u32,
}

/// Of a network, or of one address.
pub(super) fn network(text: &str) -> Result<IpNet, ApiError> {
    let address = || text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or_else(|_| address()).map_err(|_| {
        ApiError::bad_request(format!("expected an address or a network such as 192.0.2.0/24, not {text:?}"))
    })
}

/// A time as RFC 3339 writes it.
pub(super) fn date(unix_seconds: u64) -> String {
    // Of a clock that is that wrong nothing better can be said.
    let seconds = unix_seconds.min(253_402_300_799);
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}

fn shown(shard: usize, facts: SessionFacts) -> Session {
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    Session {
        id: format!("{shard}.{}", facts.key),
        peer: facts.peer.to_string(),
        listener: facts.listener.map(|address| address.to_string()),
        tls: facts.tls.map(|version| version.to_string()),
        hello: some(facts.hello),
        user: some(facts.user),
        state: facts.standing.as_str().into(),
        since: date(facts.since),
        received_bytes: facts.octets.map(|(received, _)| received),
        sent_bytes: facts.octets.map(|(_, sent)| sent),
        messages: facts.messages,
    }
}

async fn list(
    State(state): State<AppState>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Sessions>, ApiError> {
    let networks: Vec<IpNet> = match &wanted.ip {
        Some(list) => list.split(',').map(network).collect::<Result<_, _>>()?,
        None => Vec::new(),
    };
    let limit = wanted.limit.unwrap_or(SESSIONS_DEFAULT).clamp(1, SESSIONS_MAX);
    let begins = wanted.from.as_deref().unwrap_or("0.0").split_once('.');
    let begins = begins.and_then(|(shard, place)| Some((shard.parse().ok()?, place.parse().ok()?)));
    let Some((mut shard, mut place)) = begins else {
        return Err(ApiError::bad_request("from: expected what an earlier answer gave as next"));
    };
    let shards = state.shards();
    let mut sessions = Vec::new();
    while shard < shards.len() {
        if sessions.len() >= limit {
            return Ok(Json(Sessions { sessions, next: Some(format!("{shard}.{place}")) }));
        }
        let (at, networks) = (place, networks.clone());
        let page = shards.ask(shard, move |shard| shard.session_page(at, &networks)).await;
        let page = page.ok_or_else(|| ApiError::silent_shard(shard))?;
        sessions.extend(page.sessions.into_iter().map(|facts| shown(shard, facts)));
        (shard, place) = match page.next {
            Some(next) => (shard, next),
            None => (shard + 1, 0),
        };
    }
    Ok(Json(Sessions { sessions, next: None }))
}
