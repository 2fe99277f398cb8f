//! The live dialogue of sessions: `GET /v1/trace?ip=…`, one JSON object a line until the client goes, or a bound is reached.
//!
//! Bounds: sessions at a time, lines, time, and what waits to be sent ([`WAITING_MAX`]); what a client is too slow for is left out, and the
//! stream says how much. Now and then it says something though nothing happens, so that a client that has gone is found out.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Response, StatusCode};
use axum::routing::get;
use http_body::Frame;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use super::http::{ApiError, AppState, duration};
use super::sessions::network;
use crate::shard::Shards;
use crate::shard::sessions::{Seen, Sight, Tap};
use crate::smtp::Heard;
use crate::telemetry::Escaped;

/// What waits to be sent to one client, over all shards: at 512 octets each half a mebioctet.
const WAITING_MAX: usize = 1024;
/// Sessions at a time of a shard, where nobody says how many, and at most.
const SESSIONS: (usize, usize) = (100, 10_000);
/// Lines.
const LINES: (u64, u64) = (100_000, 100_000_000);
/// Time.
const TIME: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(24 * 3600));
/// How often something is said at least.
const PULSE: Duration = Duration::from_secs(5);
/// What one frame carries at most, octets.
const FRAME_SIZE: usize = 16 << 10;
/// Networks at a time.
const NETWORKS_MAX: usize = 64;

pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/v1/trace", get(trace))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    ip: String,
    sessions: Option<usize>,
    lines: Option<u64>,
    #[serde(rename = "for")]
    time: Option<String>,
}

/// One line of a trace.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When, RFC 3339 with microseconds.
    pub at: String,
    /// Which session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Its client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What happened: `begun`, `joined` (it was there before), `client` (said so), `server` (said so), `content`, `ignored`, `tls`, `ended`;
    /// and of the trace itself `ready`, `pulse`, `missed`, `left_out`, `over`.
    pub event: String,
    /// What was said, escaped; or the version of TLS, or why it is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Octets that are not shown, of content or of a line; how many were missed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

impl Line {
    /// Of the trace itself.
    fn own(event: &str, text: Option<String>, size: Option<u64>) -> Line {
        Line { at: now(), session: None, peer: None, event: event.into(), text, size }
    }

    fn seen(shard: usize, seen: Seen) -> Line {
        let (event, text, size) = match seen.what {
            Sight::Begun => ("begun", None, None),
            Sight::Joined => ("joined", None, None),
            Sight::Heard(Heard::Line { shown, hidden }) => {
                ("client", Some(escaped(&shown)), Some(hidden as u64).filter(|hidden| *hidden > 0))
            }
            Sight::Heard(Heard::Content(size)) => ("content", None, Some(size as u64)),
            Sight::Heard(Heard::Ignored(size)) => ("ignored", None, Some(size as u64)),
            Sight::Heard(Heard::Missed(count)) => ("missed", None, Some(count as u64)),
            Sight::Said(line) => ("server", Some(escaped(&line)), None),
            Sight::Secured(version) => ("tls", Some(version.to_string()), None),
            Sight::Ended => ("ended", None, None),
            Sight::Missed(count) => ("missed", None, Some(count)),
            Sight::LeftOut(count) => ("left_out", None, Some(count)),
        };
        let is_own = matches!(event, "missed" | "left_out");
        Line {
            at: humantime::format_rfc3339_micros(seen.at).to_string(),
            session: (!is_own).then(|| format!("{shard}.{}", seen.key)),
            peer: (!is_own).then(|| seen.peer.to_string()),
            event: event.into(),
            text,
            size,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(&mut *out, self).expect("a line can be written to memory");
        out.push(b'\n');
    }
}

fn now() -> String {
    humantime::format_rfc3339_micros(std::time::SystemTime::now()).to_string()
}

/// All of it: the log's way of showing octets ends after 256 of them.
fn escaped(octets: &[u8]) -> String {
    octets.chunks(crate::limits::LOGGED_TEXT_SIZE_MAX).map(|part| Escaped(part).to_string()).collect()
}

async fn trace(
    State(state): State<AppState>,
    Query(wanted): Query<Wanted>,
) -> Result<Response<Body>, ApiError> {
    let networks: Vec<IpNet> = wanted.ip.split(',').map(network).collect::<Result<_, _>>()?;
    if networks.len() > NETWORKS_MAX {
        return Err(ApiError::bad_request(format!("ip: expected {NETWORKS_MAX} networks at most")));
    }
    let time = wanted.time.as_deref().map(duration).transpose()?.unwrap_or(TIME.0).min(TIME.1);
    let sessions_max = wanted.sessions.unwrap_or(SESSIONS.0).clamp(1, SESSIONS.1);
    let lines = wanted.lines.unwrap_or(LINES.0).clamp(1, LINES.1);
    let (sender, seen) = mpsc::channel(WAITING_MAX);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let id = COUNT.fetch_add(1, Ordering::Relaxed);
    let shards = state.shards();
    // From here on the taps are removed, whatever comes of the rest.
    let laid = Removal { shards: shards.clone(), id };
    for shard in 0..shards.len() {
        let (networks, sender) = (networks.clone(), sender.clone());
        let tap = Tap { id, shard, networks, sessions_max, sender };
        match shards.ask(shard, move |shard| shard.lay_tap(tap)).await {
            Some(true) => {}
            Some(false) => {
                let words = "as many traces as there may be are going on already: end one of them";
                return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, words));
            }
            None => return Err(ApiError::silent_shard(shard)),
        }
    }
    let stopped = state.clone();
    let stream = Stream {
        seen,
        lines,
        first: Some(Line::own("ready", None, None)),
        over: Box::pin(tokio::time::sleep(time)),
        pulse: Box::pin(tokio::time::sleep(PULSE)),
        stopped: Box::pin(async move { stopped.stopped().await }),
        is_over: false,
        _laid: laid,
    };
    let response = Response::builder().header(CONTENT_TYPE, "application/x-ndjson").body(Body::new(stream));
    Ok(response.expect("the field is well-formed"))
}

/// Removes the taps when the stream is dropped, for whatever reason.
struct Removal {
    shards: Shards,
    id: u64,
}

impl Drop for Removal {
    fn drop(&mut self) {
        let (shards, id) = (self.shards.clone(), self.id);
        // Without a runtime there is nobody to wait; then the shards find out by themselves that nobody is there.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { shards.ask_all(move |shard| shard.remove_tap(id)).await });
        }
    }
}

/// The body of the answer.
struct Stream {
    seen: mpsc::Receiver<Seen>,
    /// So many more may come.
    lines: u64,
    first: Option<Line>,
    over: Pin<Box<Sleep>>,
    pulse: Pin<Box<Sleep>>,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_over: bool,
    _laid: Removal,
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        if this.is_over {
            return Poll::Ready(None);
        }
        let mut out = Vec::new();
        if let Some(first) = this.first.take() {
            first.write(&mut out);
        }
        let mut why = None;
        while out.len() < FRAME_SIZE {
            if this.lines == 0 {
                why = Some("as many lines as were wanted");
                break;
            }
            match this.seen.poll_recv(context) {
                Poll::Ready(Some(seen)) => {
                    Line::seen(seen.shard, seen).write(&mut out);
                    this.lines -= 1;
                }
                Poll::Ready(None) => {
                    why = Some("the shards have ended");
                    break;
                }
                Poll::Pending => break,
            }
        }
        if this.over.as_mut().poll(context).is_ready() {
            why = Some("the time is over");
        }
        if this.stopped.as_mut().poll(context).is_ready() {
            why = Some("the admin interface is being stopped");
        }
        if let Some(why) = why {
            Line::own("over", Some(why.into()), None).write(&mut out);
            this.is_over = true;
        }
        if out.is_empty() {
            if this.pulse.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            Line::own("pulse", None, None).write(&mut out);
        }
        this.pulse.as_mut().reset(Instant::now() + PULSE);
        Poll::Ready(Some(Ok(Frame::data(out.into()))))
    }
}
