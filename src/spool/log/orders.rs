//! Orders of the operator: hold, release, drop, retry. In force at once; recorded among the outcomes, and settled when that is durable.
//!
//! ```text
//! order ──(in force)──► given ──with outcomes, its sync──► settled
//! ```
//!
//! An order is acknowledged when it is settled: from then on no restart forgets it. Where the disk has no room for the record it is
//! settled without one, and counted: it is in force until the process ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Spool;
use crate::spool::entry::{Entry, Lane, Part};
use crate::spool::format::{Order, OrderKind};
use crate::spool::io::Page;

/// What has become of an order for one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obeyed {
    /// It has changed something.
    Yes,
    /// There was nothing to change: it is held already, or is not held, or waits for no time.
    Nothing,
    /// There is no such message, or it is not durable yet.
    Unknown,
}

/// How far orders have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// How many were given since the log was opened.
    pub given: u64,
    /// Of them the first so many are settled.
    pub settled: u64,
    /// How many of these are not recorded, for want of room.
    pub unrecorded: u64,
}

impl<P: Page> Spool<P> {
    /// Gives an order for a message; `lane`: of a retry, where, if not everywhere. What changes something counts in
    /// [`Spool::orders`].
    ///
    /// A drop is for whoever is left: a delivery that has the message keeps it, and what it reports is ignored.
    pub fn order(&mut self, sequence: u64, lane: Option<Lane>, order: &Arc<Order>, now: Instant) -> Obeyed {
        if self.ledger.entry(sequence).is_none_or(|entry| entry.is_appended()) {
            return Obeyed::Unknown;
        }
        let mut needs = None;
        let is_obeyed = match order.kind {
            OrderKind::Hold => self.ledger.hold_back(sequence, order),
            OrderKind::Release => self.ledger.let_go(sequence),
            OrderKind::Retry => self.ledger.hasten_message(sequence, lane),
            OrderKind::Drop => {
                needs = Some(self.ledger.give_up(sequence));
                true
            }
        };
        if !is_obeyed {
            return Obeyed::Nothing;
        }
        let target = lane.map(|lane| self.ledger.name(lane).clone());
        self.orders.given += 1;
        self.outcomes.note_order(
            (sequence, needs),
            target.as_deref().unwrap_or(""),
            order,
            self.orders.given,
            now,
        );
        Obeyed::Yes
    }

    /// What was ordered is to be recorded without waiting for company.
    pub fn hurry_orders(&mut self, now: Instant) {
        if self.orders.settled < self.orders.given {
            self.outcomes.hurry(now);
        }
    }

    /// How far orders have come.
    pub fn orders(&self) -> Orders {
        self.orders
    }

    /// How many messages are held.
    pub fn held_count(&self) -> usize {
        self.ledger.held_count()
    }

    /// Messages that are not done and durable, from this number on, in the order of their numbers, which is that of their arrival.
    pub fn entries_from(&self, sequence: u64) -> impl Iterator<Item = (u64, &Entry)> {
        self.ledger.entries_from(sequence).filter(|(_, entry)| !entry.is_appended())
    }

    /// Does this part of the message wait for nothing but room in its delivery channel, though its time has not come?
    pub fn is_hastened(&self, sequence: u64, part: &Part) -> bool {
        self.ledger.is_hastened(sequence, part)
    }

    /// The name of a lane; empty: of those of whom it is not decided who gets theirs.
    pub fn lane_name(&self, lane: Lane) -> &Arc<str> {
        self.ledger.name(lane)
    }

    /// The lane of the target with this name, if there is one.
    pub fn known_lane(&self, name: &str) -> Option<Lane> {
        self.ledger.known_lane(name)
    }

    /// How long after `now` this part of a message is to be tried again, if it waits for its time.
    pub fn wait_of(&self, part: &Part, now: Instant) -> Option<Duration> {
        self.ledger.wait_of(part, now)
    }
}
