//! How much a shard asks of new peers, by how much it has to do: one state, from what was measured, several times a second.
//!
//! ```text
//!            busy_at              strained_at              100 %
//!   Calm ───────────────► Busy ───────────────► Strained ───────────► Full
//!        ◄───────────────      ◄───────────────          ◄───────────
//!             a tenth below the same, for HOLD
//! ```
//!
//! | level | what is asked beside what was before |
//! |---|---|
//! | Busy | strangers wait for their greeting: whoever only wants to be quick goes elsewhere |
//! | Strained | an address has a quarter of the connections it may have; sessions that say nothing end early |
//! | Full | new connections are told to come later, and why |
//!
//! It rises at once, by as many levels as it takes, and falls by itself, level by level. Sessions that work are left alone at every level:
//! they are what the room is for.

use std::time::{Duration, Instant};

use crate::mail::{Refusal, Status};

/// How long it must have been better before a level is left.
pub const HOLD: Duration = Duration::from_secs(2);
/// By how much it must be better: a load that sits on a bound does not swing.
const SLACK: f32 = 0.1;

/// What may run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Sessions of those that may be.
    Sessions,
    /// Memory for content and envelopes.
    Memory,
    /// Messages in the queue of those that may be.
    Queue,
    /// The time for which a message waits to be durable.
    Storage,
}

impl Resource {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Resource::Sessions => "sessions",
            Resource::Memory => "memory",
            Resource::Queue => "queue",
            Resource::Storage => "storage",
        }
    }

    /// What a peer is told when it has run out.
    pub fn refusal(self) -> Refusal {
        let text = match self {
            Resource::Sessions => "Too many sessions, try again later",
            Resource::Memory => "Too much mail at once, try again later",
            Resource::Queue => "Too much mail is waiting, try again later",
            Resource::Storage => "Storage is too slow at the moment, try again later",
        };
        // RFC 3463 X.3.2: system not accepting network messages.
        Refusal::final_one(Status::temporary(3, 2), text)
    }
}

/// How much is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing beyond what is configured.
    #[default]
    Calm,
    /// See the module.
    Busy,
    /// See the module.
    Strained,
    /// See the module.
    Full,
}

/// Where the levels begin, in parts of 1.
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    /// Busy from here.
    pub busy_at: f32,
    /// Strained from here; Full is at 1.
    pub strained_at: f32,
}

/// See the module. One for each shard.
#[derive(Debug)]
pub struct Overload {
    marks: Marks,
    level: Level,
    /// What was nearest to its end the last time.
    resource: Resource,
    /// Since when it has been well below what the level needs.
    better_since: Option<Instant>,
}

impl Overload {
    /// Calm.
    pub fn new(marks: Marks) -> Self {
        Overload { marks, level: Level::Calm, resource: Resource::Sessions, better_since: None }
    }

    /// How much is asked now.
    pub fn level(&self) -> Level {
        self.level
    }

    /// What is nearest to its end.
    pub fn resource(&self) -> Resource {
        self.resource
    }

    /// What was measured, each in parts of what there may be: 1 and more is all of it. True if the level is another now.
    pub fn handle_load(&mut self, load: &[(Resource, f32)], now: Instant) -> bool {
        let (resource, most) =
            load.iter().copied().max_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap_or((self.resource, 0.0));
        let level = self.level_of(most);
        if level > self.level {
            self.resource = resource;
            self.level = level;
            self.better_since = None;
            return true;
        }
        if self.level_of(most + SLACK) >= self.level {
            self.better_since = None;
            return false;
        }
        let since = *self.better_since.get_or_insert(now);
        let is_over = now.saturating_duration_since(since) >= HOLD;
        if is_over {
            self.level = match self.level {
                Level::Full => Level::Strained,
                Level::Strained => Level::Busy,
                _ => Level::Calm,
            };
            self.better_since = None;
        }
        is_over
    }

    fn level_of(&self, part: f32) -> Level {
        let Marks { busy_at, strained_at } = self.marks;
        match part {
            _ if part >= 1.0 => Level::Full,
            _ if part >= strained_at => Level::Strained,
            _ if part >= busy_at => Level::Busy,
            _ => Level::Calm,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: Marks = Marks { busy_at: 0.7, strained_at: 0.85 };

    #[test]
    fn it_rises_at_once_and_falls_level_by_level_when_it_has_been_better_for_a_while() {
        let mut overload = Overload::new(MARKS);
        let start = Instant::now();
        // Milliseconds, load, level.
        let table = [
            (0, 0.5, Level::Calm),
            (250, 0.7, Level::Busy),
            (500, 0.65, Level::Busy),
            (9000, 0.65, Level::Busy),
            (9250, 1.2, Level::Full),
            (9500, 0.95, Level::Full),
            (20_000, 0.95, Level::Full),
            (20_250, 0.2, Level::Full),
            (22_000, 0.2, Level::Full),
            (22_250, 0.2, Level::Strained),
            (22_500, 0.2, Level::Strained),
            (23_000, 0.8, Level::Strained),
            (23_250, 0.2, Level::Strained),
            (25_000, 0.2, Level::Strained),
            (25_250, 0.2, Level::Busy),
            (25_500, 0.2, Level::Busy),
            (27_500, 0.2, Level::Calm),
            (90_000, 0.0, Level::Calm),
        ];
        let mut before = Level::Calm;
        for (millis, load, level) in table {
            let now = start + Duration::from_millis(millis);
            let load = [(Resource::Memory, 0.1), (Resource::Queue, load)];
            let changed = overload.handle_load(&load, now);
            assert_eq!((overload.level(), changed), (level, level != before), "{millis} ms");
            before = level;
        }
        assert_eq!(overload.resource(), Resource::Queue);
    }

    #[test]
    fn every_refusal_is_temporary_and_ends_the_session() {
        for resource in [Resource::Sessions, Resource::Memory, Resource::Queue, Resource::Storage] {
            let refusal = resource.refusal();
            assert!(refusal.disconnect && refusal.status.class == crate::mail::Class::Temporary);
        }
    }
}
