//! The gateway at a glance: `GET /v1/stats`. Counters are since its start: who wants rates asks twice.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::Stage;
use super::http::{ApiError, AppState};
use crate::shard::meters::ShardReading;
use crate::telemetry::process::Process;

pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/v1/stats", get(stats))
}

/// Everything at a glance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// When this was said, in milliseconds since 1970.
    pub unix_millis: u64,
    /// The process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Seconds since its start.
    pub uptime_seconds: Option<u64>,
    /// How far it is in its life.
    #[serde(flatten)]
    pub stage: Stage,
    /// How much is asked of peers, of the shard that asks most: calm, busy, strained or full.
    pub load: String,
    /// Shards.
    pub shards: usize,
    /// Sessions.
    pub sessions: Sessions,
    /// Messages.
    pub messages: Messages,
    /// The queue.
    pub queue: Queue,
    /// The spool.
    pub spool: Spool,
    /// Memory.
    pub memory: Memory,
}

/// Sessions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sessions {
    /// Now.
    pub open: usize,
    /// At most.
    pub max: usize,
    /// Since the start.
    pub total: u64,
    /// With TLS, since the start.
    pub tls: u64,
}

/// Messages, since the start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Messages {
    /// Accepted.
    pub accepted: u64,
    /// Recipients of those.
    pub recipients: u64,
    /// Octets of those.
    pub bytes: u64,
    /// Refusals, of sessions, recipients and messages.
    pub refused: u64,
    /// Not stored for want of room, or because the medium failed.
    pub not_stored: u64,
}

/// The queue.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Queue {
    /// Messages in it.
    pub depth: usize,
    /// At most.
    pub max: usize,
    /// By target.
    pub targets: Vec<Target>,
}

/// What waits for one target, and what became of what it was given.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Target {
    /// Its name; empty: it is not decided yet who gets it.
    pub target: String,
    /// Closed: it is asked. Open: it has failed again and again, and is left alone for a while.
    pub breaker: String,
    /// Messages that wait for room in its channel.
    pub backlog: usize,
    /// Messages that wait for the time of their next attempt.
    pub deferred: usize,
    /// Messages that are being delivered, or about to be.
    pub handed_off: usize,
    /// How long the oldest of all these is in the queue.
    pub oldest_seconds: Option<u64>,
    /// Recipients who have got theirs, since the start.
    pub delivered_total: u64,
    /// Recipients to be tried again, since the start.
    pub deferred_total: u64,
    /// Recipients who were given up, since the start.
    pub rejected_total: u64,
}

/// The spool.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Spool {
    /// Octets of records that are needed.
    pub live_bytes: u64,
    /// Octets of all segments.
    pub bytes: u64,
    /// Segments with records.
    pub segments: usize,
    /// Segments without.
    pub free_segments: usize,
}

/// Memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Of the process.
    pub resident_bytes: Option<u64>,
    /// What shards allow themselves.
    pub budgets: Vec<Budget>,
}

/// An amount of memory that is bounded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Budget {
    /// What it is for.
    pub name: String,
    /// Octets in use.
    pub used_bytes: usize,
    /// At most.
    pub max_bytes: usize,
}

fn level(word: u64) -> &'static str {
    ["calm", "busy", "strained", "full"][word.min(3) as usize]
}

async fn stats(State(state): State<AppState>) -> Result<Json<Stats>, ApiError> {
    let shards = state.shards();
    let mut readings = Vec::with_capacity(shards.len());
    for (n, reading) in shards.ask_all(|shard| shard.read_meters()).await.into_iter().enumerate() {
        readings.push(reading.ok_or_else(|| ApiError::silent_shard(n))?);
    }
    let process = Process::read();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = |start: f64| (now.as_secs_f64() - start).max(0.0) as u64;
    Ok(Json(Stats {
        unix_millis: now.as_millis() as u64,
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_seconds: process.start_unix.map(since),
        stage: state.stage().await?,
        load: level(readings.iter().map(|reading| reading.level).max().unwrap_or(0)).into(),
        shards: shards.len(),
        sessions: sessions(&readings),
        messages: messages(&readings),
        queue: queue(&state, &readings, now.as_secs()),
        spool: spool(&readings),
        memory: Memory { resident_bytes: process.resident_bytes, budgets: budgets(&readings) },
    }))
}

fn sum<'a>(counts: impl IntoIterator<Item = &'a (&'static str, u64)>) -> u64 {
    counts.into_iter().map(|(_, count)| count).sum()
}

fn sessions(readings: &[ShardReading]) -> Sessions {
    let mut all = Sessions::default();
    for reading in readings {
        all.open += reading.sessions_open;
        all.max += reading.sessions_max;
        all.total += reading.counts.sessions;
        all.tls += sum(&reading.counts.tls);
    }
    all
}

fn messages(readings: &[ShardReading]) -> Messages {
    let mut all = Messages::default();
    for counts in readings.iter().map(|reading| &reading.counts) {
        all.accepted += sum(&counts.messages);
        all.recipients += counts.recipients;
        all.bytes += counts.octets;
        all.refused += counts.refusals.iter().map(|(_, count)| count).sum::<u64>();
        all.not_stored += sum(&counts.not_stored);
    }
    all
}

fn queue(state: &AppState, readings: &[ShardReading], now: u64) -> Queue {
    let mut targets: Vec<Target> = Vec::new();
    for target in state.operations().targets().iter() {
        let done = target.read_meters();
        targets.push(Target {
            target: target.name().to_string(),
            breaker: if target.is_down() { "open" } else { "closed" }.into(),
            delivered_total: done.delivered,
            deferred_total: done.deferred,
            rejected_total: done.rejected,
            ..Target::default()
        });
    }
    let mut depth = 0;
    for log in readings.iter().flat_map(|reading| &reading.logs) {
        depth += log.depth;
        for lane in &log.lanes {
            let n = targets.iter().position(|target| *target.target == *lane.target).unwrap_or_else(|| {
                targets.push(Target { target: lane.target.to_string(), ..Target::default() });
                targets.len() - 1
            });
            let target = &mut targets[n];
            target.backlog += lane.waiting.backlog;
            target.deferred += lane.waiting.deferred;
            target.handed_off += lane.handed_off;
            let age = lane.oldest.map(|came| now.saturating_sub(came));
            target.oldest_seconds = target.oldest_seconds.max(age);
        }
    }
    Queue { depth, max: readings.iter().map(|reading| reading.depth_max).sum(), targets }
}

fn spool(readings: &[ShardReading]) -> Spool {
    let mut all = Spool::default();
    for log in readings.iter().flat_map(|reading| &reading.logs) {
        all.live_bytes += log.live_size;
        all.segments += log.segments;
        all.free_segments += log.free_segments;
        all.bytes += (log.segments + log.free_segments) as u64 * u64::from(log.segment_size);
    }
    all
}

fn budgets(readings: &[ShardReading]) -> Vec<Budget> {
    let mut all: Vec<Budget> = Vec::new();
    for (name, used, max) in readings.iter().flat_map(|reading| reading.budgets) {
        match all.iter_mut().find(|budget| budget.name == name) {
            Some(budget) => {
                budget.used_bytes += used;
                budget.max_bytes += max;
            }
            None => all.push(Budget { name: name.into(), used_bytes: used, max_bytes: max }),
        }
    }
    all
}
