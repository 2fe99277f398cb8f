//! The twin of `shard/handoff.rs`: durable messages to the deliveries through a bounded channel, from memory where the cache has
//! room, and the outcomes back.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use incoming::delivery::{Recipient, Schedule};
use incoming::spool::{Lane, Page, Spool};

use crate::disk::{RecipientOutcome, Whole};
use crate::gateway::JustAccepted;

const BATCH_COUNT_MAX: usize = 64;
const UNREADABLE_RETRY: u64 = 3600;

/// Where a job's message is.
pub enum Content {
    Memory(Box<Whole>),
    Stored,
}

/// A message for a delivery worker.
pub struct Job {
    pub sequence: u64,
    pub recipients: Vec<u32>,
    pub content: Content,
}

/// The shard's end of the two delivery channels.
pub struct Handoff {
    jobs: VecDeque<Job>,
    channel_size: usize,
    schedule: Schedule,
    cache_size: usize,
    cached: usize,
    costs: BTreeMap<u64, usize>,
}

impl Handoff {
    pub fn new(cache_size: usize, channel_size: usize) -> Self {
        let schedule = Schedule {
            backoff_base: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            ..Schedule::default()
        };
        Handoff {
            jobs: VecDeque::new(),
            channel_size,
            schedule,
            cache_size,
            cached: 0,
            costs: BTreeMap::new(),
        }
    }

    /// The worker's end of the channel.
    pub fn take_job(&mut self) -> Option<Job> {
        self.jobs.pop_front()
    }

    fn try_send(&mut self, job: Job) -> bool {
        let has_room = self.jobs.len() < self.channel_size;
        if has_room {
            self.jobs.push_back(job);
        }
        has_room
    }

    fn cost(message: &JustAccepted) -> usize {
        message.tail.len() + message.trace.len() + 200
    }

    /// Takes room in the cache for the message, if there is some.
    pub fn keep(&mut self, message: &JustAccepted) -> bool {
        let cached = self.cached + Self::cost(message);
        let has_room = cached <= self.cache_size;
        if has_room {
            self.cached = cached;
        }
        has_room
    }

    /// A message of the cache will not be durable.
    pub fn drop_kept(&mut self, message: &JustAccepted) {
        self.cached -= Self::cost(message);
    }

    /// The message has become durable: offers it from memory, or leaves it to the backlog.
    pub fn offer<P: Page>(&mut self, spool: &mut Spool<P>, sequence: u64, message: Option<JustAccepted>) {
        let Some(message) = message else { return };
        let cost = Self::cost(&message);
        let JustAccepted { envelope, arrival, trace, tail } = message;
        let recipients = (0..envelope.forward_paths.len() as u32).collect();
        let whole = Whole { envelope: *envelope, arrival, octets: [trace, tail].concat() };
        if self.try_send(Job { sequence, recipients, content: Content::Memory(Box::new(whole)) }) {
            spool.hand_off(sequence, Lane::UNROUTED);
            self.costs.insert(sequence, cost);
        } else {
            self.cached -= cost;
        }
    }

    /// Takes messages from the backlog, as many as the channel may have room for.
    pub fn take_backlog<P: Page>(&mut self, spool: &mut Spool<P>, now: Instant) -> Vec<u64> {
        let mut batch = Vec::new();
        let memory_max = self.cache_size.max(64 << 10);
        while batch.len() < BATCH_COUNT_MAX && self.cached < memory_max && self.jobs.len() < self.channel_size
        {
            let Some(sequence) = spool.next_of_backlog(Lane::UNROUTED, now) else { break };
            spool.hand_off(sequence, Lane::UNROUTED);
            let entry = spool.entry(sequence).expect("what is in the backlog is in the ledger");
            let cost = entry.location.size as usize;
            self.cached += cost;
            self.costs.insert(sequence, cost);
            batch.push(sequence);
        }
        batch
    }

    /// Offers a message that was read back, or puts it back into the backlog.
    pub fn offer_again<P: Page>(&mut self, spool: &mut Spool<P>, sequence: u64, _: Whole) {
        let recipients = outstanding(spool, sequence).into_iter().map(|recipient| recipient.index).collect();
        if !self.try_send(Job { sequence, recipients, content: Content::Stored }) {
            self.forget_job(sequence);
            spool.take_back(sequence, Lane::UNROUTED);
        }
    }

    fn forget_job(&mut self, sequence: u64) {
        self.cached -= self.costs.remove(&sequence).unwrap_or(0);
    }

    /// What a report means for the spool: attempts counted, the next ones scheduled.
    pub fn judge<P: Page>(
        &mut self,
        spool: &Spool<P>,
        sequence: u64,
        outcomes: &[(u32, bool)],
        unix_now: u64,
    ) -> Vec<RecipientOutcome> {
        self.forget_job(sequence);
        let left = outstanding(spool, sequence);
        let judged = outcomes.iter().map(|(index, is_done)| {
            let before = left.iter().find(|r| r.index == *index).map_or(0, |r| r.attempts);
            let attempts = before.saturating_add(1);
            let wait =
                self.schedule.next_attempt(attempts, sequence ^ u64::from(*index) << 16).as_secs().max(1);
            RecipientOutcome {
                index: *index,
                is_done: *is_done,
                is_given_up: false,
                attempts,
                next_attempt: if *is_done { 0 } else { unix_now + wait },
                reason: if *is_done { "".into() } else { "451 4.2.0 later".into() },
            }
        });
        judged.collect()
    }

    /// The outcomes of a message whose record cannot be read.
    pub fn unreadable<P: Page>(
        &mut self,
        spool: &Spool<P>,
        sequence: u64,
        unix_now: u64,
    ) -> Vec<RecipientOutcome> {
        self.forget_job(sequence);
        let outcomes = outstanding(spool, sequence).into_iter().map(|recipient| RecipientOutcome {
            index: recipient.index,
            is_done: false,
            is_given_up: false,
            attempts: recipient.attempts,
            next_attempt: unix_now + UNREADABLE_RETRY,
            reason: "its record in the spool cannot be read".into(),
        });
        outcomes.collect()
    }
}

/// Who still wants the message.
fn outstanding<P: Page>(spool: &Spool<P>, sequence: u64) -> Vec<Recipient> {
    let Some(entry) = spool.entry(sequence) else { return Vec::new() };
    entry.outstanding().iter().map(|(_, o)| Recipient { index: o.index, attempts: o.attempts }).collect()
}
