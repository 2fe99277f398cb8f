//! The queue: what is in it, message by message, and orders to hold, release, drop or retry.
//!
//! Shards are asked for what their memory knows, in pages that take them microseconds; envelopes and content are read here, from the
//! log's files, on a thread that may wait. What memory alone can tell never reads a file. A call that would take long gives what it has
//! and where to go on: nothing is kept here between two calls.
//!
//! Messages come log by log, and in each in the order in which they arrived. One that is delivered while the queue is looked at may be told of
//! or not; no other is left out or told of twice.
//!
//! An order is answered when no restart forgets it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{Response, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::http::{ApiError, AppState, duration};
use crate::delivery::StoredContent;
use crate::mail::MessageId;
use crate::shard::queue::{Done, Found, LogFacts, Meant, Page, RowPart, Sought, Standing as Stands, Want};
use crate::spool::format::{ORDER_BY_SIZE_MAX, ORDER_NOTE_SIZE_MAX, Order, OrderKind};

/// A call goes no further after this long: whoever asked asks on.
const CALL_TIME: Duration = Duration::from_secs(2);
/// Messages in an answer at most.
const LIMIT_MAX: usize = 1000;
/// Messages told of where no limit is given.
const LIMIT_DEFAULT: usize = 100;
/// Messages that are named in one call at most.
const IDS_MAX: usize = 10_000;
/// Messages that a shard is asked for at once; it gives fewer where these would take long.
const PAGE_MAX: usize = 64;
/// A log is left when so many pages of it, one after the other, came too late.
const LATE_PAGES_MAX: usize = 2;
/// A message whose record was moved while it was read is asked for again so often.
const MOVES_MAX: usize = 3;
/// Parts of an order that may wait to be settled.
const UNSETTLED_MAX: usize = 16;
/// How long one waits: the disk may not answer.
const SETTLED_TIMEOUT: Duration = Duration::from_secs(10);
/// Recipients told of in a list; all of them are shown where one message is.
const RECIPIENTS_MAX: usize = 5;

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/v1/queue/list", post(list))
        .route("/v1/queue/order", post(order))
        .route("/v1/queue/{id}", get(show))
        .route("/v1/queue/{id}/content", get(content))
}

/// How a message stands, or what is left of it at one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// The operator holds it.
    Held,
    /// A delivery has it.
    InDelivery,
    /// It waits for nothing but room.
    Backlog,
    /// It waits for its time.
    Deferred,
}

impl Standing {
    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Held => "held",
            Standing::InDelivery => "in-delivery",
            Standing::Backlog => "backlog",
            Standing::Deferred => "deferred",
        }
    }
}

impl From<Stands> for Standing {
    fn from(stands: Stands) -> Self {
        match stands {
            Stands::Held => Standing::Held,
            Stands::InDelivery => Standing::InDelivery,
            Stands::Backlog => Standing::Backlog,
            Stands::Deferred => Standing::Deferred,
        }
    }
}

impl From<Standing> for Stands {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Held => Stands::Held,
            Standing::InDelivery => Stands::InDelivery,
            Standing::Backlog => Stands::Backlog,
            Standing::Deferred => Stands::Deferred,
        }
    }
}

/// Which messages: those of which all holds that is said. Addresses are compared without regard to case: one with an at sign as a whole, one
/// with `*` or `?` as a pattern, another as a domain; `<>` is the null reverse-path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Its reverse-path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// One of its recipients, those included that have it already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Some of it is left at this target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// It stands so, at that target or at any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Standing>,
    /// It arrived longer ago than this, as "2h".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_than: Option<String>,
    /// The reason why an attempt did not deliver has this in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// It came from an address in this network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// It takes more octets than this in the spool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_over: Option<u64>,
}

impl Filter {
    /// It lets everything through.
    pub fn is_empty(&self) -> bool {
        *self == Filter::default()
    }
}

/// What `POST /v1/queue/list` takes; everything may be left out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct List {
    /// Which.
    pub filter: Filter,
    /// How many at most; 0: as many as usual.
    pub limit: usize,
    /// Only how many there are.
    pub count: bool,
    /// Where the answer before has stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Only what was there then: [`Listed::until`] of an answer before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Vec<String>>,
}

/// Its answer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Listed {
    /// How many were found by this call.
    pub count: usize,
    /// They, unless only their number was asked for.
    pub messages: Vec<Message>,
    /// There may be more: the cursor to go on with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// What comes later than this answer: of each log the id from which on its messages do.
    #[serde(default)]
    pub until: Vec<String>,
}

/// A message of the queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Message {
    /// Its id.
    pub id: String,
    /// How it stands.
    pub state: Standing,
    /// Octets it takes in the spool.
    pub size: u64,
    /// What its record says; nothing where that cannot be read.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub envelope: Option<Envelope>,
    /// Why it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// What is left of it, target by target.
    pub targets: Vec<Target>,
    /// Who holds it, if somebody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
}

/// What a message's record says of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// Its reverse-path; empty: null.
    pub from: String,
    /// Its recipients; in a list the first of them.
    pub to: Vec<String>,
    /// How many recipients its envelope has.
    pub recipient_count: usize,
    /// Octets of its content, with our trace field.
    pub content_size: u64,
    /// When it arrived, in seconds since 1970.
    pub arrived: u64,
    /// Where it came from.
    pub peer: IpAddr,
    /// As whom the peer has introduced itself.
    pub hello: String,
    /// With which protocol.
    pub protocol: String,
    /// As whom the peer has authenticated itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authenticated: Option<String>,
    /// What policies have noticed.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tags: Vec<String>,
}

/// What is left of a message at one target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// Its name; none: it was not decided yet.
    pub target: Option<String>,
    /// How it stands.
    pub state: Standing,
    /// Recipients that are left.
    pub recipient_count: usize,
    /// Attempts made: the most for one of them.
    pub attempts: u32,
    /// When the next is due, in seconds since 1970; none: it waits for no time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<u64>,
    /// Why the last did not deliver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who is left, where one message is shown.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub recipients: Vec<Recipient>,
}

/// A recipient who is left at a target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recipient {
    /// Its address.
    pub address: String,
    /// Attempts made.
    pub attempts: u32,
    /// Why the last did not deliver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Who holds a message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hold {
    /// Since when, in milliseconds since 1970.
    pub unix_millis: u64,
    /// Who ordered it.
    pub by: String,
    /// Why; empty: nothing was said.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub note: String,
}

/// What is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// No delivery is to have it until it is released.
    Hold,
    /// Deliveries may have it again.
    Release,
    /// It is done, without being delivered; nobody is told.
    Drop,
    /// What waits for its time is due.
    Retry,
}

impl Action {
    /// A word for it.
    pub fn as_str(self) -> &'static str {
        self.kind().as_str()
    }

    fn kind(self) -> OrderKind {
        match self {
            Action::Hold => OrderKind::Hold,
            Action::Release => OrderKind::Release,
            Action::Drop => OrderKind::Drop,
            Action::Retry => OrderKind::Retry,
        }
    }
}

/// What `POST /v1/queue/order` takes: `order`, and one of `ids`, a `filter` that is one, and `all`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GiveOrder {
    /// What is to be done.
    pub order: Action,
    /// With these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// With all of which this holds. With a target, a retry is for what is left there; with ids, only that may be said.
    #[serde(default)]
    pub filter: Filter,
    /// With all that there are.
    #[serde(default)]
    pub all: bool,
    /// Only with what was there then: [`Listed::until`] of a list. Without it, with what comes meanwhile too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Vec<String>>,
    /// A drop with a target in the filter: also of messages of which something is left at another target. They are dropped there too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub everywhere: bool,
    /// Where the answer before has stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Who orders it; "operator" where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// For how many messages it has changed something.
    pub changed: usize,
    /// For how many there was nothing to change.
    pub unchanged: usize,
    /// How many are not in the queue (any more).
    pub unknown: usize,
    /// For how many it is in force, but not recorded: a restart may forget it. The disk is full or does not answer.
    pub unrecorded: usize,
    /// How many were left alone, for something of them is left at another target.
    #[serde(default)]
    pub elsewhere: usize,
    /// Why it was not done wholly: the counts are of what was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// There may be more: the cursor to go on with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Ordered {
    /// Both together.
    pub fn add(&mut self, other: Ordered) {
        self.changed += other.changed;
        self.unchanged += other.unchanged;
        self.unknown += other.unknown;
        self.unrecorded += other.unrecorded;
        self.elsewhere += other.elsewhere;
        self.fault = other.fault.or(self.fault.take());
        self.next = other.next;
    }
}

/// A log, and the shard that serves it.
#[derive(Clone, Copy, Debug)]
struct Log {
    shard: usize,
    log: u32,
    depth: usize,
    held: usize,
    next: u64,
}

/// The shards' logs, in the order in which they are gone through.
async fn logs(state: &AppState) -> Result<Vec<Log>, ApiError> {
    let answers = state.shards().ask_all(|shard| shard.queue_logs()).await;
    let mut logs = Vec::new();
    for (shard, answer) in answers.into_iter().enumerate() {
        let answer = answer.ok_or_else(|| ApiError::silent_shard(shard))?;
        logs.extend(answer.into_iter().map(|LogFacts { log, depth, held, next }| Log {
            shard,
            log,
            depth,
            held,
            next,
        }));
    }
    Ok(logs)
}

/// What messages come from now on: in each log from this number on.
fn bounds(logs: &[Log]) -> Vec<String> {
    logs.iter().map(|log| MessageId { log: log.log, sequence: log.next }.to_string()).collect()
}

/// As far as a walk goes in each log. What is not bounded is walked through to its end; a log that is not in the bounds was not there then.
struct Bounds(Option<Vec<MessageId>>);

impl Bounds {
    fn parse(until: Option<&[String]>) -> Result<Self, ApiError> {
        let ids = until.map(|until| until.iter().map(|id| id.parse()).collect::<Result<_, _>>());
        let ids = ids.transpose().map_err(|_| ApiError::bad_request("until: not one that was given"))?;
        Ok(Bounds(ids))
    }

    fn of(&self, log: u32) -> u64 {
        let Some(ids) = &self.0 else { return u64::MAX };
        ids.iter().find(|id| id.log == log).map_or(0, |id| id.sequence)
    }
}

/// Where a walk through the queue is: in the log of this place, at this number.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    at: usize,
    from: u64,
}

impl Cursor {
    /// A cursor as text is the id of the message to go on with.
    fn parse(text: Option<&str>, logs: &[Log]) -> Result<Self, ApiError> {
        let Some(text) = text else { return Ok(Cursor { at: 0, from: 0 }) };
        let id: MessageId =
            text.parse().map_err(|_| ApiError::bad_request("cursor: not one that was given"))?;
        let at = logs.iter().position(|log| log.log == id.log);
        let at =
            at.ok_or_else(|| ApiError::bad_request("cursor: its log is not served any more: begin anew"))?;
        Ok(Cursor { at, from: id.sequence })
    }

    fn text(self, logs: &[Log]) -> Option<String> {
        let log = logs.get(self.at)?.log;
        Some(MessageId { log, sequence: self.from }.to_string())
    }

    /// Goes on behind a page.
    fn pass(&mut self, next: Option<u64>) {
        *self = match next {
            Some(from) => Cursor { from, ..*self },
            None => Cursor { at: self.at + 1, from: 0 },
        };
    }
}

/// A filter, understood.
struct Search {
    sought: Sought,
    from: Option<Pattern>,
    to: Option<Pattern>,
    /// It arrived before then, in seconds since 1970.
    before: Option<u64>,
    peer: Option<IpNet>,
}

impl Search {
    fn parse(filter: &Filter) -> Result<Self, ApiError> {
        let before = match &filter.older_than {
            None => None,
            Some(text) => Some(unix_now().saturating_sub(duration(text)?.as_secs())),
        };
        let peer = filter.peer.as_deref().map(|text| {
            let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            let words =
                || format!("peer: expected an address or a network such as \"192.0.2.0/24\", not {text:?}");
            network.map_err(|_| ApiError::bad_request(words()))
        });
        Ok(Search {
            sought: Sought {
                target: filter.target.as_deref().map(Arc::from),
                standing: filter.state.map(Stands::from),
                reason: filter.reason.as_deref().map(Arc::from),
                size_over: filter.size_over,
            },
            from: filter.from.as_deref().map(Pattern::new),
            to: filter.to.as_deref().map(Pattern::new),
            before,
            peer: peer.transpose()?,
        })
    }

    /// Records have to be read to tell.
    fn needs_records(&self) -> bool {
        self.from.is_some() || self.to.is_some() || self.before.is_some() || self.peer.is_some()
    }

    /// What cannot be read is sought by nobody who has to read it.
    fn is_met(&self, found: &Found) -> bool {
        let Ok(message) = &found.message else { return !self.needs_records() };
        let (envelope, arrival) = (&message.envelope, &message.arrival);
        self.from.as_ref().is_none_or(|from| from.fits(envelope.reverse_path.as_str()))
            && self
                .to
                .as_ref()
                .is_none_or(|to| envelope.forward_paths.iter().any(|path| to.fits(path.as_str())))
            && self.before.is_none_or(|before| arrival.unix_time < before)
            && self.peer.is_none_or(|peer| peer.contains(&arrival.peer.ip().to_canonical()))
    }

    /// All of these came too late: so have, most likely, those behind them in their log. Clocks are set, though.
    fn is_past(&self, found: &[Found]) -> bool {
        let is_late = |found: &Found| {
            let arrived = found.message.as_ref().map(|message| message.arrival.unix_time);
            arrived.is_ok_and(|arrived| self.before.is_some_and(|before| arrived >= before))
        };
        found.len() >= PAGE_MAX / 2 && found.iter().all(is_late)
    }
}

/// What an address is compared with.
#[derive(Debug, PartialEq, Eq)]
enum Pattern {
    Null,
    /// Lower case.
    Whole(String),
    Domain(String),
    Glob(String),
}

impl Pattern {
    fn new(text: &str) -> Self {
        let lower = text.to_lowercase();
        match lower.as_str() {
            "<>" | "" => Pattern::Null,
            text if text.contains(['*', '?']) => Pattern::Glob(lower),
            text if text.contains('@') => Pattern::Whole(lower),
            _ => Pattern::Domain(lower),
        }
    }

    fn fits(&self, path: &str) -> bool {
        let path = path.to_lowercase();
        match self {
            Pattern::Null => path.is_empty(),
            Pattern::Whole(whole) => path == *whole,
            Pattern::Domain(domain) => path.rsplit_once('@').is_some_and(|(_, of)| of == domain),
            Pattern::Glob(glob) => fits(glob.as_bytes(), path.as_bytes()),
        }
    }
}

/// `*`: any octets; `?`: any one. Each octet of the text is looked at once for each star at most.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Behind the last star, and where in the text it ends so far.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                star = Some((p, t));
            }
            Some(c) if *c == b'?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match &mut star {
                Some((behind, end)) => {
                    *end += 1;
                    (p, t) = (*behind, *end);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

async fn page(
    state: &AppState,
    log: Log,
    range: Range<u64>,
    search: &Search,
    want: Want,
    count: usize,
) -> Result<Page, ApiError> {
    let sought = search.sought.clone();
    let asked = state
        .shards()
        .ask(log.shard, move |shard| shard.queue_page(log.log, range, &sought, want, count))
        .await;
    asked.flatten().ok_or_else(|| ApiError::silent_shard(log.shard))
}

/// Reads the records of a page; those that were moved meanwhile where they are now. What is done meanwhile is left out.
async fn read(state: &AppState, log: Log, page: Page) -> Result<Vec<Found>, ApiError> {
    let mut found = state.blocking(move |_| page.read()).await?;
    for _ in 0..MOVES_MAX {
        let lost: Vec<u64> = found.iter().filter(|f| f.message.is_err()).map(|f| f.row.id.sequence).collect();
        if lost.is_empty() {
            break;
        }
        let asked = state.shards().ask(log.shard, move |shard| shard.queue_rows(log.log, &lost)).await;
        let page = asked.flatten().ok_or_else(|| ApiError::silent_shard(log.shard))?;
        let there = page.ids.clone();
        found.retain(|found| found.message.is_ok() || there.contains(&found.row.id));
        for again in state.blocking(move |_| page.read()).await? {
            if let Some(found) = found.iter_mut().find(|found| found.row.id == again.row.id) {
                *found = again;
            }
        }
    }
    Ok(found)
}

async fn list(State(state): State<AppState>, body: Option<Json<List>>) -> Result<Json<Listed>, ApiError> {
    let Json(List { filter, limit, count, cursor, until }) = body.unwrap_or_default();
    let until_of = Bounds::parse(until.as_deref())?;
    let search = Search::parse(&filter)?;
    let limit = if limit == 0 { LIMIT_DEFAULT } else { limit.min(LIMIT_MAX) };
    let logs = logs(&state).await?;
    let is_bounded = until.is_some();
    let mut listed = Listed { until: until.unwrap_or_else(|| bounds(&logs)), ..Listed::default() };
    // What is known without a look at any message.
    let known = match &filter {
        filter if filter.is_empty() => Some(logs.iter().map(|log| log.depth).sum()),
        filter if *filter == (Filter { state: Some(Standing::Held), ..Filter::default() }) => {
            Some(logs.iter().map(|log| log.held).sum())
        }
        _ => None,
    };
    if let Some(known) = known.filter(|known| (count && !is_bounded || *known == 0) && cursor.is_none()) {
        listed.count = known;
        return Ok(Json(listed));
    }
    let mut place = Cursor::parse(cursor.as_deref(), &logs)?;
    let (began, unix_now) = (Instant::now(), unix_now());
    let is_read = !count || search.needs_records();
    let want = if is_read { Want::Rows } else { Want::Count };
    let mut late_count = 0;
    while let Some(log) = logs.get(place.at).copied() {
        if listed.messages.len() >= limit || began.elapsed() >= CALL_TIME {
            listed.next = place.text(&logs);
            break;
        }
        let wanted = if search.needs_records() { PAGE_MAX } else { limit - listed.messages.len() };
        let page =
            page(&state, log, place.from..until_of.of(log.log), &search, want, wanted.min(PAGE_MAX)).await?;
        let mut next = page.next;
        if !is_read {
            listed.count += page.count;
            place.pass(next);
            continue;
        }
        let found = read(&state, log, page).await?;
        late_count = if search.is_past(&found) { late_count + 1 } else { 0 };
        if late_count == LATE_PAGES_MAX {
            (next, late_count) = (None, 0);
        }
        for found in found.iter().filter(|found| search.is_met(found)) {
            if listed.messages.len() >= limit {
                next = Some(found.row.id.sequence);
                break;
            }
            listed.count += 1;
            if !count {
                listed.messages.push(message(found, unix_now, false));
            }
        }
        place.pass(next);
    }
    Ok(Json(listed))
}

fn message(found: &Found, unix_now: u64, is_whole: bool) -> Message {
    let Found { row, message } = found;
    let envelope = message.as_ref().ok().map(|message| {
        let (envelope, arrival) = (&message.envelope, &message.arrival);
        let shown = if is_whole { usize::MAX } else { RECIPIENTS_MAX };
        Envelope {
            from: envelope.reverse_path.as_str().into(),
            to: envelope.forward_paths.iter().take(shown).map(|path| path.as_str().into()).collect(),
            recipient_count: envelope.forward_paths.len(),
            content_size: message.content.size(),
            arrived: arrival.unix_time,
            peer: arrival.peer.ip(),
            hello: arrival.hello.as_ref().into(),
            protocol: arrival.keyword(envelope.smtputf8).into(),
            authenticated: arrival.authenticated.as_deref().map(String::from),
            tags: arrival.tags.iter().map(|tag| tag.as_str().into()).collect(),
        }
    });
    let hold = row.hold.as_ref().map(|order| Hold {
        unix_millis: order.unix_millis,
        by: order.by.as_ref().into(),
        note: order.note.as_ref().into(),
    });
    Message {
        id: row.id.to_string(),
        state: row.standing().into(),
        size: row.size,
        unreadable: message.as_ref().err().map(ToString::to_string),
        targets: row
            .parts
            .iter()
            .map(|part| target(part, envelope.as_ref().filter(|_| is_whole), unix_now))
            .collect(),
        envelope,
        hold,
    }
}

fn target(part: &RowPart, envelope: Option<&Envelope>, unix_now: u64) -> Target {
    let address = |index: u32| envelope.and_then(|envelope| envelope.to.get(index as usize).cloned());
    let mut recipients: Vec<Recipient> = part
        .recipients
        .iter()
        .filter_map(|left| {
            let reason = left.reason.as_deref().map(String::from);
            Some(Recipient { address: address(left.index)?, attempts: left.attempts, reason })
        })
        .collect();
    if part.recipients.is_empty() && part.attempts == 0 {
        let everybody = envelope.iter().flat_map(|envelope| &envelope.to);
        recipients =
            everybody.map(|to| Recipient { address: to.clone(), attempts: 0, reason: None }).collect();
    }
    Target {
        target: Some(part.target.to_string()).filter(|name| !name.is_empty()),
        state: part.standing.into(),
        recipient_count: part.recipient_count,
        attempts: part.attempts,
        // To the second, and not too early.
        next_attempt: part.wait.map(|wait| unix_now.saturating_add(wait.as_millis().div_ceil(1000) as u64)),
        reason: part.reason.as_deref().map(String::from),
        recipients,
    }
}

fn message_id(text: &str) -> Result<MessageId, ApiError> {
    text.parse().map_err(|e| ApiError::bad_request(format!("{text:?}: {e}")))
}

fn gone(id: MessageId) -> ApiError {
    ApiError::not_found(format!("{id} is not in the queue: it is done, or never was (incoming why {id})"))
}

/// The message with this id, as its log has it; `is_whole`: with its content at hand.
async fn find(state: &AppState, id: MessageId, is_whole: bool) -> Result<Found, ApiError> {
    let logs = logs(state).await?;
    let log = logs.into_iter().find(|log| log.log == id.log).ok_or_else(|| gone(id))?;
    let shards = state.shards();
    let mut last = None;
    for _ in 0..MOVES_MAX {
        let asked = shards.ask(log.shard, move |shard| match is_whole {
            true => shard.queue_content(id.log, id.sequence),
            false => shard.queue_rows(id.log, &[id.sequence]),
        });
        let page = asked.await.flatten().ok_or_else(|| ApiError::silent_shard(log.shard))?;
        let found = state.blocking(move |_| page.read().pop()).await?.ok_or_else(|| gone(id))?;
        if found.message.is_ok() {
            return Ok(found);
        }
        last = Some(found);
    }
    last.ok_or_else(|| gone(id))
}

async fn show(State(state): State<AppState>, Path(id): Path<String>) -> Result<Json<Message>, ApiError> {
    let found = find(&state, message_id(&id)?, false).await?;
    Ok(Json(message(&found, unix_now(), true)))
}

/// The content part by part, as the client takes it. What cannot be read breaks the answer off: no part of it is made up.
async fn content(State(state): State<AppState>, Path(id): Path<String>) -> Result<Response<Body>, ApiError> {
    let id = message_id(&id)?;
    let message = find(&state, id, true).await?.message;
    let message = message.map_err(|e| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("{id} cannot be read: {e} (incoming spool verify)"),
        )
    })?;
    let (size, content) = (message.content.size(), Arc::new(message.content));
    let parts = futures_lite::stream::unfold((content, 0), |(content, n)| async move {
        if n == content.parts_count() {
            return None;
        }
        let reading = content.clone();
        let part = tokio::task::spawn_blocking(move || reading.part(n)).await;
        let part: std::io::Result<Bytes> = part.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        let n = if part.is_ok() { n + 1 } else { content.parts_count() };
        Some((part, (content, n)))
    });
    let response = Response::builder().header(CONTENT_TYPE, "message/rfc822").header(CONTENT_LENGTH, size);
    response
        .body(Body::from_stream(parts))
        .map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

/// Orders under way.
struct Orders<'a> {
    state: &'a AppState,
    order: Arc<Order>,
    meant: Meant,
    done: Ordered,
    /// For how many messages something was changed, and who tells that no restart forgets it.
    unsettled: VecDeque<(usize, oneshot::Receiver<u64>)>,
}

impl Orders<'_> {
    async fn give(&mut self, log: Log, mut sequences: Vec<u64>) -> Result<(), ApiError> {
        while !sequences.is_empty() {
            let rest = sequences.split_off(sequences.len().min(PAGE_MAX));
            let (order, meant) = (self.order.clone(), self.meant.clone());
            let (settled, settles) = oneshot::channel();
            let shards = self.state.shards();
            let asked = shards.ask(log.shard, move |shard| {
                let done = shard.queue_order((log.log, &sequences), &meant, &order, settled);
                (done, sequences)
            });
            let (done, mut left) = asked.await.ok_or_else(|| ApiError::silent_shard(log.shard))?;
            let Done { taken, changed, unchanged, unknown, elsewhere } =
                done.ok_or_else(|| ApiError::silent_shard(log.shard))?;
            self.done.add(Ordered { changed, unchanged, unknown, elsewhere, ..Ordered::default() });
            self.unsettled.push_back((changed, settles));
            if self.unsettled.len() > UNSETTLED_MAX {
                self.settle_first().await;
            }
            left.drain(..taken);
            left.extend(rest);
            sequences = left;
        }
        Ok(())
    }

    async fn give_named(&mut self, logs: &[Log], ids: &[MessageId]) -> Result<(), ApiError> {
        self.done.unknown += ids.iter().filter(|id| logs.iter().all(|log| log.log != id.log)).count();
        for log in logs {
            let of_log = ids.iter().filter(|id| id.log == log.log);
            self.give(*log, of_log.map(|id| id.sequence).collect()).await?;
        }
        Ok(())
    }

    /// From this place on.
    async fn give_sought(
        &mut self,
        logs: &[Log],
        search: &Search,
        until: &Bounds,
        mut place: Cursor,
    ) -> Result<(), ApiError> {
        let began = Instant::now();
        let want = if search.needs_records() { Want::Rows } else { Want::Ids };
        let mut late_count = 0;
        while let Some(log) = logs.get(place.at).copied() {
            if began.elapsed() >= CALL_TIME {
                self.done.next = place.text(logs);
                break;
            }
            let range = place.from..until.of(log.log);
            let page = page(self.state, log, range, search, want, PAGE_MAX).await?;
            let mut next = page.next;
            let sequences = match search.needs_records() {
                false => page.ids.iter().map(|id| id.sequence).collect(),
                true => {
                    let found = read(self.state, log, page).await?;
                    late_count = if search.is_past(&found) { late_count + 1 } else { 0 };
                    if late_count == LATE_PAGES_MAX {
                        (next, late_count) = (None, 0);
                    }
                    let met = found.iter().filter(|found| search.is_met(found));
                    met.map(|found| found.row.id.sequence).collect()
                }
            };
            self.give(log, sequences).await?;
            place.pass(next);
        }
        Ok(())
    }

    async fn settle_first(&mut self) {
        let Some((changed, settles)) = self.unsettled.pop_front() else { return };
        let unrecorded = match tokio::time::timeout(SETTLED_TIMEOUT, settles).await {
            Ok(Ok(unrecorded)) => changed.min(usize::try_from(unrecorded).unwrap_or(usize::MAX)),
            _ => changed,
        };
        self.done.unrecorded += unrecorded;
    }

    async fn settle(mut self) -> Ordered {
        while !self.unsettled.is_empty() {
            self.settle_first().await;
        }
        self.done
    }
}

async fn order(
    State(state): State<AppState>,
    Json(given): Json<GiveOrder>,
) -> Result<Json<Ordered>, ApiError> {
    let GiveOrder { order: action, ids, filter, all, until, everywhere, cursor, by, note } = given;
    let by = by.unwrap_or_else(|| "operator".into());
    for (key, text, max) in [("by", &by, ORDER_BY_SIZE_MAX), ("note", &note, ORDER_NOTE_SIZE_MAX)] {
        if text.len() > max {
            return Err(ApiError::bad_request(format!(
                "{key}: expected at most {max} octets, not {}",
                text.len()
            )));
        }
    }
    let only_target = Filter { target: filter.target.clone(), ..Filter::default() };
    match (ids.is_empty(), filter.is_empty(), all) {
        (false, _, false) if filter == only_target && (action == Action::Retry || filter.is_empty()) => {}
        (true, false, false) | (true, true, true) => {}
        _ => return Err(ApiError::bad_request("expected one of \"ids\", a \"filter\" and \"all\": true")),
    }
    if ids.len() > IDS_MAX {
        return Err(ApiError::bad_request(format!(
            "ids: expected at most {IDS_MAX} at a time, not {}",
            ids.len()
        )));
    }
    let search = Search::parse(&filter)?;
    let unix_millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let order = Order { kind: action.kind(), unix_millis, by: by.as_str().into(), note: note.into() };
    let until_of = Bounds::parse(until.as_deref())?;
    let meant = match ids.is_empty() {
        true => Meant::Sought {
            sought: search.sought.clone(),
            is_only_there: action == Action::Drop && !everywhere,
        },
        false => Meant::Named(search.sought.target.clone()),
    };
    let ids = ids.iter().map(|id| message_id(id)).collect::<Result<Vec<_>, _>>()?;
    let logs = logs(&state).await?;
    let mut orders = Orders {
        state: &state,
        order: Arc::new(order),
        meant,
        done: Ordered::default(),
        unsettled: VecDeque::new(),
    };
    let place = Cursor::parse(cursor.as_deref(), &logs)?;
    let given = match ids.is_empty() {
        true => orders.give_sought(&logs, &search, &until_of, place).await,
        false => orders.give_named(&logs, &ids).await,
    };
    if let Err(error) = given {
        if orders.done == Ordered::default() {
            return Err(error);
        }
        orders.done.fault = Some(error.words().into());
    }
    let next = orders.done.next.take();
    let done = Ordered { next, ..orders.settle().await };
    let Ordered { changed, unrecorded, .. } = done;
    tracing::info!(order = action.as_str(), by, changed, unrecorded, "the queue was given an order");
    Ok(Json(done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_by_address_domain_and_pattern() {
        let table = [
            ("<>", "", true),
            ("<>", "a@e.org", false),
            ("a@e.org", "A@E.ORG", true),
            ("a@e.org", "ba@e.org", false),
            ("e.org", "a@E.org", true),
            ("e.org", "a@sub.e.org", false),
            ("e.org", "", false),
            ("*@e.org", "a@e.org", true),
            ("*.org", "a@e.org", true),
            ("a?@e.org", "ab@e.org", true),
            ("a?@e.org", "a@e.org", false),
            ("*b*b*@e.org", "abcb@e.org", true),
            ("*b*b*@e.org", "abc@e.org", false),
            ("**", "", true),
            ("?", "", false),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(Pattern::new(pattern).fits(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_of_stars_costs_little() {
        let (pattern, text) = ("*a".repeat(100) + "b", "a".repeat(10_000));
        let began = Instant::now();
        assert!(!fits(pattern.as_bytes(), text.as_bytes()));
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn filters_that_need_only_memory_read_nothing() {
        let some = |text: &str| Some(text.to_string());
        let table = [
            (Filter::default(), false),
            (Filter { target: some("a"), state: Some(Standing::Held), ..Filter::default() }, false),
            (Filter { reason: some("451"), size_over: Some(1), ..Filter::default() }, false),
            (Filter { from: some("e.org"), ..Filter::default() }, true),
            (Filter { to: some("e.org"), ..Filter::default() }, true),
            (Filter { older_than: some("1h"), ..Filter::default() }, true),
            (Filter { peer: some("192.0.2.1"), ..Filter::default() }, true),
        ];
        for (filter, expected) in table {
            let search = Search::parse(&filter).unwrap_or_else(|_| panic!("{filter:?}"));
            assert_eq!(search.needs_records(), expected, "{filter:?}");
        }
    }
}
