//! Outcomes on their way into the log: gathered, appended, durable.
//!
//! ```text
//! waiting ──append──► appended ──its sync──► what its done messages needed is released
//!    ▲                   │
//!    └──── poisoned ─────┘
//! ```
//!
//! Invariant: what a done message needed is released only when the record that says so is durable, or when there is no
//! room to say it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{AppendError, Purpose, Spool};
use crate::spool::format::{self, Kind, Order, OutcomeHead, RecipientOutcome};
use crate::spool::io::Page;
use crate::spool::ledger::Needs;

/// How long an outcome may wait for company before it is written: what a crash can make be delivered twice.
const OUTCOMES_DELAY: Duration = Duration::from_millis(20);
/// Outcomes are written at once when they are this many octets.
const OUTCOMES_SIZE: usize = 32 * 1024;
/// Recipients in one entry of outcomes: with the longest reasons they are half of [`OUTCOMES_SIZE`].
const OUTCOME_RECIPIENTS_MAX: usize = 16;

/// Outcomes that share a record.
#[derive(Default)]
struct Batch {
    payload: Vec<u8>,
    /// What the messages that are done by them needed.
    done: Vec<Needs>,
    /// How many orders are among them, and the number of the last.
    orders: (u64, u64),
}

/// Outcomes that are not durable yet.
#[derive(Default)]
pub struct Outcomes {
    /// Not yet appended, oldest first; each fits a record.
    waiting: VecDeque<Batch>,
    since: Option<Instant>,
    /// Appended and not yet durable, by the sequence of the record.
    appended: VecDeque<(u64, Batch)>,
}

impl Outcomes {
    /// None waits to be appended.
    pub fn is_empty(&self) -> bool {
        self.since.is_none()
    }

    /// When those that wait are to be appended.
    pub fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + OUTCOMES_DELAY)
    }

    /// They are to be appended now.
    pub fn hurry(&mut self, now: Instant) {
        self.since = self.since.map(|_| now - OUTCOMES_DELAY);
    }

    /// An order is to be recorded, which is the one of this number. `needs`: the message is done by it, and needed this.
    pub fn note_order(
        &mut self,
        (sequence, needs): (u64, Option<Needs>),
        target: &str,
        order: &Order,
        number: u64,
        now: Instant,
    ) {
        let batch = self.batch(now);
        format::encode_order((sequence, needs.is_some()), target, order, &mut batch.payload);
        batch.done.extend(needs);
        batch.orders = (batch.orders.0 + 1, number);
    }

    /// The batch that outcomes go into now.
    fn batch(&mut self, now: Instant) -> &mut Batch {
        self.since.get_or_insert(now);
        if self.waiting.back().is_none_or(|batch| batch.payload.len() >= OUTCOMES_SIZE) {
            self.waiting.push_back(Batch::default());
        }
        self.waiting.back_mut().expect("there is one now")
    }
}

impl<P: Page> Spool<P> {
    /// Outcomes of a message are to be recorded. `needs`: it is done, and needed this.
    pub(super) fn note_outcomes(
        &mut self,
        head: OutcomeHead<'_>,
        outcomes: &[RecipientOutcome],
        needs: Option<Needs>,
        now: Instant,
    ) {
        // In parts, so that each fits a record whatever the reasons are. The last of them says that the message is done.
        let (last, parts) = match outcomes.len().checked_sub(1) {
            None => (outcomes, outcomes),
            Some(before_last) => {
                let start = before_last / OUTCOME_RECIPIENTS_MAX * OUTCOME_RECIPIENTS_MAX;
                let (parts, last) = outcomes.split_at(start);
                (last, parts)
            }
        };
        for part in parts.chunks(OUTCOME_RECIPIENTS_MAX) {
            let head = OutcomeHead { is_message_done: false, ..head };
            format::encode_outcome(head, part, &mut self.outcomes.batch(now).payload);
        }
        let batch = self.outcomes.batch(now);
        let head = OutcomeHead { is_message_done: needs.is_some(), ..head };
        format::encode_outcome(head, last, &mut batch.payload);
        batch.done.extend(needs);
    }

    /// Appends the outcomes that have gathered, if they have waited long enough or a batch is about to be closed anyway.
    pub(super) fn append_outcomes(&mut self, now: Instant) {
        let Some(due) = self.outcomes.due() else { return };
        let is_due = now >= due || self.outcomes.waiting.len() > 1;
        let has_company = self.active.as_ref().is_some_and(|active| active.tail.is_closing());
        if !is_due && !has_company {
            return;
        }
        while let Some(batch) = self.outcomes.waiting.pop_front() {
            match self.append(Kind::Outcomes, &[&batch.payload], Purpose::Outcomes) {
                Ok(_) => {
                    let ticket = self.next_sequence - 1;
                    self.outcomes.appended.push_back((ticket, batch));
                    self.active.as_mut().expect("it was appended to").tail.wait(ticket);
                    self.index_if_full();
                }
                // A failed medium keeps what it holds: nothing is freed that a crash could miss.
                Err(AppendError::Busy | AppendError::Failed) => {
                    self.outcomes.waiting.push_front(batch);
                    self.outcomes.since = Some(now);
                    return;
                }
                // They are not recorded: the price is a second delivery after a crash. To wait for room instead would be
                // to wait for ever, for only deliveries make room.
                Err(AppendError::NoRoom) => {
                    self.orders.unrecorded += batch.orders.0;
                    self.settle(batch);
                }
            }
        }
        self.outcomes.since = None;
    }

    /// If the record is the next Outcomes record on its way, it is durable now: what its messages needed is not needed any
    /// more.
    pub(super) fn end_outcomes(&mut self, ticket: u64) -> bool {
        let Some((_, batch)) = self.outcomes.appended.pop_front_if(|(sequence, _)| *sequence == ticket)
        else {
            return false;
        };
        self.settle(batch);
        true
    }

    fn settle(&mut self, batch: Batch) {
        batch.done.into_iter().for_each(|needs| self.ledger.release(needs));
        self.orders.settled = self.orders.settled.max(batch.orders.1);
    }

    /// The records that were appended and are not durable never will be: their outcomes are appended again.
    pub(super) fn take_back_outcomes(&mut self, now: Instant) {
        while let Some((_, batch)) = self.outcomes.appended.pop_back() {
            self.outcomes.waiting.push_front(batch);
            self.outcomes.since.get_or_insert(now);
        }
    }
}
