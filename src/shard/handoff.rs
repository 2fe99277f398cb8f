//! Durable messages → delivery, and the outcomes back.
//!
//! A just-accepted small message is handed over from memory while the bounded cache holds it. What finds no room in the
//! cache or the channel waits in the spool's backlog, which is in the log, and is read back when there is room: a slow
//! delivery stops nobody, and costs no more memory than the channel's jobs: each holds one record, of a small message or of the
//! end of a large one.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

use super::medium::DmaPage;
use super::read_back::{Batch, StoredMessage, Wanted};
use crate::delivery::{Content, Job, JobSender, Outcome, OutcomeSender, Recipient, Report, Schedule};
use crate::mail::{Arrival, Envelope, MessageId};
use crate::spool::Spool;
use crate::spool::format::RecipientOutcome;

/// Messages read back at once: enough to pay for the way to the blocking thread, few enough to hold in memory.
const BATCH_COUNT_MAX: usize = 64;
/// A message whose record cannot be read is tried again after this many seconds: media sometimes recover, and the message is
/// not ours to drop.
const UNREADABLE_RETRY: u64 = 3600;

/// Messages read back may take this much memory at least, in octets, however small the cache is.
const READ_BACK_SIZE_MIN: usize = 4 << 20;
/// What a forward-path usually costs in memory, octets: the enum and its text.
const PATH_COST: usize = 96;

/// A message as its session gave it.
pub struct JustAccepted {
    /// Who gets it.
    pub envelope: Box<Envelope>,
    /// How it came.
    pub arrival: Arrival,
    /// The trace field; known once it is appended.
    pub trace: Vec<u8>,
    /// The content behind what was stored in pieces; all of it for a small message.
    pub tail: Vec<u8>,
}

/// The shard's end of the two delivery channels.
pub struct Handoff {
    jobs: JobSender,
    outcomes: OutcomeSender,
    schedule: Schedule,
    cache_size: usize,
    cached: Cell<usize>,
    /// What each message in the cache costs, by id.
    costs: RefCell<HashMap<MessageId, usize>>,
}

impl Handoff {
    /// `cache_size`: octets of just-accepted messages kept in memory for their first attempt.
    pub fn new(jobs: JobSender, outcomes: OutcomeSender, schedule: Schedule, cache_size: usize) -> Self {
        let (cached, costs) = (Cell::new(0), RefCell::default());
        Handoff { jobs, outcomes, schedule, cache_size, cached, costs }
    }

    fn cost(message: &JustAccepted) -> usize {
        let paths = message.envelope.forward_paths.len() * PATH_COST;
        message.tail.capacity() + message.trace.capacity() + size_of::<Envelope>() + paths
    }

    /// Takes room in the cache for the message, if there is some.
    pub fn keep(&self, message: &JustAccepted) -> bool {
        let cached = self.cached.get() + Self::cost(message);
        let has_room = cached <= self.cache_size;
        if has_room {
            self.cached.set(cached);
        }
        has_room
    }

    fn forget(&self, cost: usize) {
        self.cached.set(self.cached.get() - cost);
    }

    /// A message of the cache will not be durable.
    pub fn drop_kept(&self, message: &JustAccepted) {
        self.forget(Self::cost(message));
    }

    /// The message has become durable: offers it from memory, or leaves it to the backlog.
    pub fn offer(&self, spool: &mut Spool<DmaPage>, sequence: u64, message: Option<JustAccepted>) {
        let Some(message) = message else { return };
        let cost = Self::cost(&message);
        let id = MessageId { log: spool.log(), sequence };
        let JustAccepted { envelope, arrival, trace, tail } = message;
        let recipients =
            (0..envelope.forward_paths.len() as u32).map(|index| Recipient { index, attempts: 0 });
        let job = Job {
            id,
            recipients: recipients.collect(),
            envelope: Arc::from(envelope),
            arrival: Arc::new(arrival),
            content: Content::Memory(vec![trace, tail]),
            outcomes: self.outcomes.clone(),
        };
        if self.jobs.try_send(job).is_ok() {
            spool.hand_off(sequence);
            self.costs.borrow_mut().insert(id, cost);
        } else {
            self.forget(cost);
        }
    }

    /// Takes messages from the backlog, as many as the channel may have room for.
    pub fn take_backlog(&self, spool: &mut Spool<DmaPage>) -> Batch {
        let mut batch = Batch::default();
        let now = super::clock::now();
        let memory_max = self.cache_size.max(READ_BACK_SIZE_MIN);
        while batch.messages.len() < BATCH_COUNT_MAX && self.cached.get() < memory_max && !self.jobs.is_full()
        {
            let Some(sequence) = spool.next_of_backlog(now) else { break };
            spool.hand_off(sequence);
            let wanted = wanted(spool, sequence).expect("what is in the backlog is in the ledger");
            let cost = wanted.location.size as usize;
            self.cached.set(self.cached.get() + cost);
            self.costs.borrow_mut().insert(MessageId { log: spool.log(), sequence }, cost);
            batch.messages.push(wanted);
        }
        batch
    }

    /// Offers a message that was read back, or puts it back into the backlog.
    pub fn offer_again(&self, spool: &mut Spool<DmaPage>, sequence: u64, message: StoredMessage) {
        let id = MessageId { log: spool.log(), sequence };
        let job = Job {
            id,
            recipients: outstanding(spool, sequence),
            envelope: Arc::new(message.envelope),
            arrival: Arc::new(message.arrival),
            content: Content::Stored(Box::new(message.content)),
            outcomes: self.outcomes.clone(),
        };
        if self.jobs.try_send(job).is_err() {
            self.take_back(spool, sequence);
        }
    }

    /// The message goes back into the backlog.
    pub fn take_back(&self, spool: &mut Spool<DmaPage>, sequence: u64) {
        self.forget_job(MessageId { log: spool.log(), sequence });
        spool.take_back(sequence);
    }

    /// No job holds the message in memory any more.
    fn forget_job(&self, id: MessageId) {
        if let Some(cost) = self.costs.borrow_mut().remove(&id) {
            self.forget(cost);
        }
    }

    /// What a report means for the spool: attempts counted, the next ones scheduled.
    pub fn judge(&self, spool: &Spool<DmaPage>, report: &Report, unix_now: u64) -> Vec<RecipientOutcome> {
        self.forget_job(report.id);
        let left = outstanding(spool, report.id.sequence);
        let judged = report.recipients.iter().map(|(index, outcome)| {
            let before = left.iter().find(|r| r.index == *index).map_or(0, |r| r.attempts);
            let attempts = before.saturating_add(1);
            let is_done = !matches!(outcome, Outcome::Deferred { .. });
            let seed = report.id.sequence ^ u64::from(report.id.log) << 32 ^ u64::from(*index) << 16;
            let wait = self.schedule.next_attempt(attempts, seed).as_secs().max(1);
            RecipientOutcome {
                index: *index,
                is_done,
                attempts,
                next_attempt: if is_done { 0 } else { unix_now + wait },
                reason: outcome.reason().unwrap_or_default().into(),
            }
        });
        judged.collect()
    }

    /// The outcomes of a message whose record cannot be read.
    pub fn unreadable(&self, spool: &Spool<DmaPage>, sequence: u64, unix_now: u64) -> Vec<RecipientOutcome> {
        self.forget_job(MessageId { log: spool.log(), sequence });
        let outcomes = outstanding(spool, sequence).into_iter().map(|recipient| RecipientOutcome {
            index: recipient.index,
            is_done: false,
            attempts: recipient.attempts,
            next_attempt: unix_now + UNREADABLE_RETRY,
            reason: "its record in the spool cannot be read".into(),
        });
        outcomes.collect()
    }
}

/// Where the message is, if it is not done.
pub fn wanted(spool: &Spool<DmaPage>, sequence: u64) -> Option<Wanted> {
    let entry = spool.entry(sequence)?;
    let segment = |epoch| spool.segment(epoch).expect("a segment stays while it is needed");
    let pieces = entry.pieces.iter().map(|piece| (*piece, segment(piece.epoch))).collect();
    Some(Wanted { sequence, location: entry.location, segment: segment(entry.location.epoch), pieces })
}

/// Who still wants the message.
fn outstanding(spool: &Spool<DmaPage>, sequence: u64) -> Vec<Recipient> {
    let Some(entry) = spool.entry(sequence) else { return Vec::new() };
    match &entry.outstanding {
        Some(left) => left.iter().map(|o| Recipient { index: o.index, attempts: o.attempts }).collect(),
        None => (0..entry.recipient_count).map(|index| Recipient { index, attempts: 0 }).collect(),
    }
}
