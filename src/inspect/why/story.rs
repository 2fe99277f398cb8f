//! What happened to a message, and what stands: made of records, without a word about how it is shown.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

use super::{Stored, Trace, is_on_disk};
use crate::config::Config;
use crate::delivery::dead::{Letter, ReadError, SentAgain};
use crate::delivery::record::{ArrivalRecord, EnvelopeRecord};
use crate::delivery::{DeadLetters, Schedule};
use crate::inspect::kind_name;
use crate::mail::{Arrival, Envelope, MessageId, Provenance};
use crate::shard;
use crate::spool::format::{Made, OrderKind, OutcomeEntry, RecipientOutcome};

/// Where is looked, and what is in force.
pub struct Ground {
    pub spool: PathBuf,
    pub dead: PathBuf,
    pub damaged: PathBuf,
    pub schedule: Schedule,
    /// A gateway has the data folder; `None`: that cannot be found out.
    pub runs: Option<bool>,
    /// Messages that wait are in files, not in memory.
    pub is_on_disk: bool,
    /// Milliseconds since 1970.
    pub now: u64,
}

impl Ground {
    pub fn here(config: &Config, now: SystemTime) -> Self {
        Ground {
            spool: config.spool_dir(),
            dead: config.dead_dir(),
            damaged: config.data.join("damaged"),
            schedule: config.delivery.schedule(),
            runs: shard::is_locked(&config.data).ok(),
            is_on_disk: is_on_disk(config),
            now: now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
        }
    }
}

/// The answer.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Told {
    Known(Box<Story>),
    Unknown(Box<Missing>),
}

/// A message that is known. Times are in milliseconds since 1970, unless the name says seconds.
#[derive(Serialize)]
pub struct Story {
    pub message_id: String,
    pub state: State,
    /// The folder of its log; none: its records are gone, and this is what its dead letter says.
    pub log: Option<String>,
    /// What happened before these events is not known: the records of it were recycled.
    pub begins_late: bool,
    /// A gateway used files again while they were read, each time: something may be missing.
    pub unsettled: bool,
    pub gateway_runs: Option<bool>,
    pub envelope: EnvelopeRecord,
    pub arrival: ArrivalRecord,
    /// Octets of its content, with the trace field.
    pub size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resent_from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notification_about: Option<String>,
    pub events: Vec<Event>,
    /// What stands, for each recipient at each target.
    pub recipients: Vec<Standing>,
    #[serde(skip)]
    pub shown: Shown,
}

/// What a text needs of the types behind the JSON.
pub struct Shown {
    pub envelope: Envelope,
    pub arrival: Arrival,
}

/// How it stands with a message as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Somebody is left, and not yet due; or due, and no gateway runs.
    Waiting,
    /// Somebody is left and due: a delivery has it, or it waits for a place at its target.
    InDelivery,
    /// No delivery is to have it.
    Held,
    Delivered,
    /// Somebody was given up, and the dead letter is there.
    DeadLetter,
    /// Somebody was given up, and the dead letter was sent again.
    SentAgain,
    Dropped,
    /// It was damaged on the disk.
    Damaged,
    /// Nobody is left.
    Done,
}

/// Something that happened.
#[derive(Serialize)]
pub struct Event {
    /// When; none: it was not noted.
    pub unix_millis: Option<u64>,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    Connected {
        peer: String,
    },
    /// It was made durable, and the peer was told so.
    Accepted {
        /// Since the session began.
        #[serde(skip_serializing_if = "Option::is_none")]
        waited_millis: Option<u32>,
        /// Which of the session's contents.
        #[serde(skip_serializing_if = "Option::is_none")]
        number: Option<u16>,
    },
    Attempt {
        target: Option<String>,
        duration_millis: u32,
        recipients: Vec<Outcome>,
    },
    /// It counted as an attempt, and none was made: its target was not to be had, or its record could not be read.
    NotTried {
        target: Option<String>,
        recipients: Vec<Outcome>,
    },
    /// The operator said so.
    Order {
        order: &'static str,
        by: String,
        note: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// It could not be read and had to make room: its octets were kept apart.
    Discarded {
        kept_in: String,
    },
    /// As the dead letter says it, where the record of the attempt is gone.
    GivenUp {
        target: Option<String>,
        recipients: Vec<Outcome>,
    },
    SentAgain {
        as_message: String,
    },
}

#[derive(Serialize)]
pub struct Outcome {
    /// Place in `envelope.forward_paths`, from 0.
    pub index: u32,
    pub forward_path: String,
    pub outcome: &'static str,
    pub attempts: u32,
    /// The other side's, or why not.
    pub reply: String,
    /// Seconds since 1970; 0: at once, or none.
    pub next_attempt: u64,
}

/// What stands for a recipient at a target.
#[derive(Serialize)]
pub struct Standing {
    pub index: u32,
    pub forward_path: String,
    /// None: it is decided when the message is handed to a delivery.
    pub target: Option<String>,
    #[serde(flatten)]
    pub how: How,
}

#[derive(Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum How {
    Delivered {
        unix_millis: u64,
        reply: String,
    },
    Waiting {
        /// Seconds since 1970; none: it is due.
        next_attempt: Option<u64>,
        /// Which attempt that is, from 1.
        attempt: u32,
        reason: Option<String>,
        held: bool,
        /// A failure after this gives up, if enough attempts were made. Seconds since 1970.
        gives_up_after: u64,
        /// The failure of this attempt gives up, whenever it is; none: there is no such bound.
        last_attempt: Option<u32>,
    },
    GivenUp {
        unix_millis: u64,
        attempts: u32,
        reason: String,
        #[serde(flatten)]
        letter: LetterState,
    },
    Dropped,
    Damaged,
    /// Nothing more is to be done; the record of how is gone.
    Done,
}

/// What became of a dead letter.
#[derive(Clone, Serialize)]
#[serde(tag = "dead_letter", rename_all = "snake_case")]
pub enum LetterState {
    Kept { path: String, is_to_be_sent_again: bool },
    SentAgain { as_messages: Vec<String> },
    Removed,
    Unreadable { error: String },
}

/// What there is of a message beside its records.
pub struct Afterlife {
    letter: Option<(Letter, bool)>,
    path: String,
    pub sent: Vec<SentAgain>,
    /// Why the letter, or what was sent, cannot be read.
    pub unreadable: Option<String>,
}

impl Afterlife {
    pub fn of(dead: &DeadLetters, id: MessageId) -> Self {
        let path = dead.path(id).display().to_string();
        let (mut letter, mut unreadable) = (None, None);
        match dead.read(id) {
            Ok(read) => letter = Some((read, dead.requests().has(id))),
            Err(ReadError::Gone(_)) => {}
            Err(e) => unreadable = Some(e.to_string()),
        }
        let sent = dead.sent().find(id).unwrap_or_else(|e| {
            unreadable.get_or_insert_with(|| format!("{}: {e}", dead.dir().display()));
            Vec::new()
        });
        Afterlife { letter, path, sent, unreadable }
    }

    /// Of the recipient with this place, given up by this target.
    fn state(&self, index: u32, target: &str) -> LetterState {
        let is_it = |letter: &Letter| {
            letter
                .recipients
                .iter()
                .any(|r| r.index == index && r.target.as_deref().is_none_or(|name| name == target))
        };
        match &self.letter {
            Some((letter, is_to_be_sent_again)) if is_it(letter) => {
                LetterState::Kept { path: self.path.clone(), is_to_be_sent_again: *is_to_be_sent_again }
            }
            _ if !self.sent.is_empty() => {
                let as_messages = self.sent.iter().map(|sent| sent.as_id.to_string()).collect();
                LetterState::SentAgain { as_messages }
            }
            _ => match &self.unreadable {
                Some(error) => LetterState::Unreadable { error: error.clone() },
                None => LetterState::Removed,
            },
        }
    }

    fn events(&self) -> impl Iterator<Item = Event> {
        self.sent.iter().map(|sent| Event {
            unix_millis: Some(sent.unix_time.saturating_mul(1000)),
            what: What::SentAgain { as_message: sent.as_id.to_string() },
        })
    }
}

impl Story {
    /// What the records say.
    pub fn of(id: MessageId, log: &str, trace: Trace, after: &Afterlife, ground: &Ground) -> Self {
        let Trace { message, outcomes, trail, is_unsettled, .. } = trace;
        let Stored { is_first, envelope, arrival, size, progress } =
            message.expect("there is a record of it");
        let mut events = arrived(&arrival);
        let mut last: Last = BTreeMap::new();
        for before in &progress {
            for recipient in &before.recipients {
                last.insert((recipient.index, before.target.to_string()), (recipient.clone(), None));
            }
        }
        let (mut is_done, mut is_dropped, mut is_damaged) = (false, false, false);
        for entry in &outcomes {
            is_done |= entry.is_message_done;
            is_dropped |= entry.outcomes.order.as_ref().is_some_and(|order| order.kind == OrderKind::Drop);
            is_damaged |= is_discarded(entry);
            for recipient in &entry.outcomes.recipients {
                let place = (recipient.index, entry.outcomes.target.to_string());
                last.insert(place, (recipient.clone(), Some(entry.made)));
            }
            tell_entry(entry, &envelope, ground, &mut events);
        }
        events.extend(after.events());
        let mut recipients = Vec::new();
        let standing = trail.standing.messages.get(id.sequence).filter(|_| !is_done);
        for ((index, target), (outcome, made)) in &last {
            let how = match (outcome.is_done, made) {
                (true, None) => How::Done,
                (true, Some(_)) if outcome.is_given_up => How::GivenUp {
                    unix_millis: ended(*made),
                    attempts: outcome.attempts,
                    reason: outcome.reason.to_string(),
                    letter: after.state(*index, target),
                },
                (true, Some(_)) => {
                    How::Delivered { unix_millis: ended(*made), reply: outcome.reason.to_string() }
                }
                (false, _) if standing.is_some() => continue,
                (false, _) => over(is_dropped, is_damaged),
            };
            recipients.push(standing_of(&envelope, *index, target, how));
        }
        if let Some(entry) = standing {
            for part in entry.parts().iter().filter(|part| !part.is_done()) {
                let everybody: Vec<_> = (0..entry.recipient_count).map(|index| (index, 0, None)).collect();
                let left = part.outstanding().map_or(everybody, |left| {
                    left.iter().map(|left| (left.index, left.attempts, left.reason.clone())).collect()
                });
                let target = trail.standing.lanes.get(usize::from(part.lane.0));
                let target = target.map_or("", |name| name);
                for (index, attempts, reason) in left {
                    // The log does not name a target before its first attempt, only that there is another. Once two are known, each
                    // may have meant the other.
                    if target.is_empty() && last.keys().filter(|(of, _)| *of == index).count() > 1 {
                        continue;
                    }
                    let how = How::Waiting {
                        next_attempt: part.due().map(|due| due / 1000),
                        attempt: attempts.saturating_add(1),
                        reason: reason.as_deref().map(str::to_owned),
                        held: entry.is_held(),
                        gives_up_after: arrival
                            .unix_time
                            .saturating_add(ground.schedule.queue_lifetime.as_secs()),
                        last_attempt: Some(ground.schedule.attempts_max).filter(|max| *max > 0),
                    };
                    recipients.push(standing_of(&envelope, index, target, how));
                }
            }
        }
        for index in 0..envelope.forward_paths.len() as u32 {
            if !recipients.iter().any(|known| known.index == index) {
                recipients.push(standing_of(&envelope, index, "", over(is_dropped, is_damaged)));
            }
        }
        recipients.sort_by(|a, b| (a.index, &a.target).cmp(&(b.index, &b.target)));
        let begins_late = !is_first;
        let story = Story::new(id, events, recipients, (envelope, arrival, size), ground);
        Story { log: Some(log.into()), begins_late, unsettled: is_unsettled, ..story }
    }

    /// What the dead letter says, where the records are gone.
    pub fn of_letter(id: MessageId, after: &Afterlife, ground: &Ground) -> Option<Self> {
        let (letter, _) = after.letter.as_ref()?;
        let mut events = arrived(&letter.arrival);
        let mut given_up: BTreeMap<(u64, Option<&str>), Vec<Outcome>> = BTreeMap::new();
        let mut recipients = Vec::new();
        for recipient in &letter.recipients {
            let place = (recipient.unix_time, recipient.target.as_deref());
            given_up.entry(place).or_default().push(Outcome {
                index: recipient.index,
                forward_path: path(&letter.envelope, recipient.index),
                outcome: "given_up",
                attempts: recipient.attempts,
                reply: recipient.reason.clone(),
                next_attempt: 0,
            });
            let target = recipient.target.as_deref().unwrap_or_default();
            let how = How::GivenUp {
                unix_millis: recipient.unix_time.saturating_mul(1000),
                attempts: recipient.attempts,
                reason: recipient.reason.clone(),
                letter: after.state(recipient.index, target),
            };
            recipients.push(standing_of(&letter.envelope, recipient.index, target, how));
        }
        for index in 0..letter.envelope.forward_paths.len() as u32 {
            if !recipients.iter().any(|known| known.index == index) {
                recipients.push(standing_of(&letter.envelope, index, "", How::Done));
            }
        }
        events.extend(given_up.into_iter().map(|((unix_time, target), recipients)| Event {
            unix_millis: Some(unix_time.saturating_mul(1000)),
            what: What::GivenUp { target: target.map(str::to_owned), recipients },
        }));
        events.extend(after.events());
        let stored = (letter.envelope.clone(), letter.arrival.clone(), letter.size);
        Some(Story { begins_late: true, ..Story::new(id, events, recipients, stored, ground) })
    }

    fn new(
        id: MessageId,
        events: Vec<Event>,
        recipients: Vec<Standing>,
        (envelope, arrival, size): (Envelope, Arrival, u64),
        ground: &Ground,
    ) -> Self {
        let (resent_from, notification_about) = match arrival.provenance {
            Provenance::Resent(of) => (Some(of.to_string()), None),
            Provenance::About(of) => (None, Some(of.to_string())),
            Provenance::Unknown | Provenance::Session { .. } => (None, None),
        };
        Story {
            message_id: id.to_string(),
            state: state(&recipients, ground),
            log: None,
            begins_late: false,
            unsettled: false,
            gateway_runs: ground.runs,
            envelope: EnvelopeRecord::from(&envelope),
            arrival: ArrivalRecord::from(&arrival),
            size,
            resent_from,
            notification_about,
            events,
            recipients,
            shown: Shown { envelope, arrival },
        }
    }
}

/// What was said last of a recipient at a target, and by which attempt; none: before the records that are there.
type Last = BTreeMap<(u32, String), (RecipientOutcome, Option<Made>)>;

/// The message was given up for damage.
fn is_discarded(entry: &OutcomeEntry) -> bool {
    entry.is_message_done && entry.outcomes.recipients.is_empty() && entry.outcomes.order.is_none()
}

/// Of somebody who is left where the message is done.
fn over(is_dropped: bool, is_damaged: bool) -> How {
    match (is_dropped, is_damaged) {
        (true, _) => How::Dropped,
        (false, true) => How::Damaged,
        (false, false) => How::Done,
    }
}

fn ended(made: Option<Made>) -> u64 {
    made.map_or(0, |made| made.unix_millis.saturating_add(made.duration_millis.into()))
}

fn path(envelope: &Envelope, index: u32) -> String {
    envelope.forward_paths.get(index as usize).map_or_else(String::new, |path| path.as_str().into())
}

fn standing_of(envelope: &Envelope, index: u32, target: &str, how: How) -> Standing {
    Standing { index, forward_path: path(envelope, index), target: name(target), how }
}

fn name(target: &str) -> Option<String> {
    (!target.is_empty()).then(|| target.into())
}

/// How it came.
fn arrived(arrival: &Arrival) -> Vec<Event> {
    let accepted = |unix_millis, waited_millis, number| Event {
        unix_millis: Some(unix_millis),
        what: What::Accepted { waited_millis, number },
    };
    let Provenance::Session { connected, waited_millis, number } = arrival.provenance else {
        return vec![accepted(arrival.unix_time.saturating_mul(1000), None, None)];
    };
    let at = match waited_millis {
        u32::MAX => arrival.unix_time.saturating_mul(1000),
        waited => connected.saturating_add(waited.into()),
    };
    let what = What::Connected { peer: arrival.peer.to_string() };
    vec![Event { unix_millis: Some(connected), what }, accepted(at, Some(waited_millis), Some(number))]
}

/// Adds what an entry of an Outcomes record says. What belongs to the attempt told last is added to it: of many recipients an attempt
/// has several entries.
fn tell_entry(entry: &OutcomeEntry, envelope: &Envelope, ground: &Ground, events: &mut Vec<Event>) {
    let OutcomeEntry { made, outcomes, .. } = entry;
    let target = name(&outcomes.target);
    if let Some(order) = &outcomes.order {
        let (by, note) = (order.by.to_string(), order.note.to_string());
        let what = What::Order { order: order.kind.as_str(), by, note, target };
        return events.push(Event { unix_millis: Some(order.unix_millis), what });
    }
    if is_discarded(entry) {
        let what = What::Discarded { kept_in: ground.damaged.display().to_string() };
        return events.push(Event { unix_millis: None, what });
    }
    let mut recipients: Vec<Outcome> = outcomes
        .recipients
        .iter()
        .map(|recipient| Outcome {
            index: recipient.index,
            forward_path: path(envelope, recipient.index),
            outcome: match (recipient.is_done, recipient.is_given_up) {
                (_, true) => "given_up",
                (true, false) => "delivered",
                (false, false) => "deferred",
            },
            attempts: recipient.attempts,
            reply: recipient.reason.to_string(),
            next_attempt: recipient.next_attempt,
        })
        .collect();
    let unix_millis = (made.unix_millis != 0).then_some(made.unix_millis);
    if let Some(Event { unix_millis: before, what: What::Attempt { target: at, recipients: told, .. } }) =
        events.last_mut()
        && unix_millis.is_some()
        && (*before, &*at) == (unix_millis, &target)
    {
        told.append(&mut recipients);
        return told.sort_by_key(|outcome| outcome.index);
    }
    let what = match unix_millis {
        Some(_) => What::Attempt { target, duration_millis: made.duration_millis, recipients },
        None => What::NotTried { target, recipients },
    };
    events.push(Event { unix_millis, what });
}

fn state(recipients: &[Standing], ground: &Ground) -> State {
    let is_due = |next: &Option<u64>| next.is_none_or(|next| next.saturating_mul(1000) <= ground.now);
    let has = |is_it: &dyn Fn(&How) -> bool| recipients.iter().any(|standing| is_it(&standing.how));
    if has(&|how| matches!(how, How::Waiting { held: true, .. })) {
        State::Held
    } else if ground.runs != Some(false)
        && has(&|how| matches!(how, How::Waiting { next_attempt, .. } if is_due(next_attempt)))
    {
        State::InDelivery
    } else if has(&|how| matches!(how, How::Waiting { .. })) {
        State::Waiting
    } else if has(&|how| matches!(how, How::Damaged)) {
        State::Damaged
    } else if has(&|how| matches!(how, How::Dropped)) {
        State::Dropped
    } else if has(&|how| matches!(how, How::GivenUp { letter: LetterState::Kept { .. }, .. })) {
        State::DeadLetter
    } else if has(&|how| matches!(how, How::GivenUp { letter: LetterState::SentAgain { .. }, .. })) {
        State::SentAgain
    } else if recipients.iter().all(|standing| matches!(standing.how, How::Delivered { .. })) {
        State::Delivered
    } else {
        State::Done
    }
}

/// A message that nobody knows, and where was looked.
#[derive(Serialize)]
pub struct Missing {
    pub message_id: String,
    state: &'static str,
    #[serde(flatten)]
    pub reason: Reason,
    /// The folders of the logs that were looked at.
    pub looked: Vec<String>,
    spool: String,
    dead: String,
    /// When the content of the oldest message had arrived that the log still knows, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    remembers_since: Option<u64>,
    /// A gateway used files again during each look.
    unsettled: bool,
    #[serde(serialize_with = "as_messages")]
    pub sent: Vec<SentAgain>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

fn as_messages<S: serde::Serializer>(sent: &[SentAgain], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(sent.iter().map(|sent| sent.as_id.to_string()))
}

/// Why it is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason", content = "kind")]
pub enum Reason {
    /// The queue is in memory, and the spool has no files.
    InMemory,
    /// No log has ids that begin so.
    NoSuchLog,
    /// The log has given no such number yet.
    NotYetGiven,
    /// The record with this number was taken back: the sender was told 451.
    NotAccepted,
    /// The record with this number is none of a message.
    NotAMessage(&'static str),
    /// The record is older than what the log still has.
    Recycled,
    /// It should be there and is not.
    NotThere,
}

impl Missing {
    pub fn new(id: MessageId, ground: &Ground) -> Self {
        Missing {
            message_id: id.to_string(),
            state: "unknown",
            reason: if ground.is_on_disk { Reason::NoSuchLog } else { Reason::InMemory },
            looked: Vec::new(),
            spool: ground.spool.display().to_string(),
            dead: ground.dead.display().to_string(),
            remembers_since: None,
            unsettled: false,
            sent: Vec::new(),
            unreadable: None,
        }
    }

    /// Its log was found, and no message in it.
    pub fn met(&mut self, log: &str, trace: &Trace, id: MessageId) {
        self.looked = vec![log.into()];
        self.remembers_since = trace.trail.remembers_since;
        self.unsettled = trace.is_unsettled;
        self.reason = match (trace.other, trace.trail.oldest) {
            _ if trace.is_void => Reason::NotAccepted,
            (Some(kind), _) => Reason::NotAMessage(kind_name(kind)),
            _ if id.sequence >= trace.trail.next => Reason::NotYetGiven,
            (None, Some(oldest)) if id.sequence >= oldest => Reason::NotThere,
            _ => Reason::Recycled,
        };
    }

    pub fn spool(&self) -> &str {
        &self.spool
    }

    pub fn dead(&self) -> &str {
        &self.dead
    }

    pub fn remembers_since(&self) -> Option<u64> {
        self.remembers_since
    }

    pub fn is_unsettled(&self) -> bool {
        self.unsettled
    }
}
