//! What this shard has to do, measured several times a second; and what it asks of peers because of it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Shard, clock};
use crate::mail::Refusal;
use crate::policy::{Level, Marks, Resource};

/// How often sessions are looked at that keep others waiting.
const IMPATIENCE_INTERVAL: Duration = Duration::from_secs(1);
/// See [`Level::Strained`].
const STRAINED_PARTS: u32 = 4;
/// Sessions alone never make a shard full: the last place is given away, and that there is none is known exactly when somebody comes.
const SESSIONS_PART_MAX: f32 = 0.99;

/// What is asked of peers when there is much to do.
#[derive(Clone, Copy, Debug)]
pub struct Pressure {
    /// Where the levels begin.
    pub marks: Marks,
    /// How long strangers wait for their greeting from `Level::Busy` on, in milliseconds.
    pub greeting_delay_millis: u16,
    /// How long a session may say nothing from `Level::Strained` on.
    pub patience: Duration,
    /// Messages that have waited so long to be durable make the shard full.
    pub storage_wait_max: Duration,
}

impl Shard {
    /// Measures, and says in the log if that changes anything.
    pub(super) fn measure(&self, now: Instant) {
        let part = |count: usize, max: usize| count as f32 / max.max(1) as f32;
        let settings = self.settings();
        let content = part(self.content_memory.get(), settings.content_memory_max);
        let envelopes = part(self.envelope_memory.get(), settings.content_memory_max);
        let depth = self.depth();
        let wait = self.disk().oldest_wait(now);
        let sessions = part(self.connections.borrow().len(), settings.sessions_max);
        let load = [
            (Resource::Sessions, sessions.min(SESSIONS_PART_MAX)),
            (Resource::Memory, content.max(envelopes)),
            (Resource::Queue, part(depth, settings.depth_max)),
            (Resource::Storage, wait.as_secs_f32() / settings.pressure.storage_wait_max.as_secs_f32()),
        ];
        let mut overload = self.overload.borrow_mut();
        let before = overload.level();
        if overload.handle_load(&load, now) {
            let (level, resource) = (overload.level(), overload.resource().word());
            match level > before {
                true => tracing::warn!(?level, resource, "more is asked of peers: there is much to do"),
                false => tracing::info!(?level, resource, "less is asked of peers again"),
            }
        }
        let is_strained = overload.level() >= Level::Strained;
        drop(overload);
        if is_strained && now >= self.impatient_at.get() {
            self.impatient_at.set(now + IMPATIENCE_INTERVAL);
            self.connections.borrow().iter().for_each(|(_, connection)| connection.look_at_time());
        }
    }

    /// How much is asked of peers now.
    pub(super) fn level(&self) -> Level {
        self.overload.borrow().level()
    }

    /// An address may have one of so many parts of the connections it may have otherwise.
    pub(super) fn parts(&self) -> u32 {
        if self.level() >= Level::Strained { STRAINED_PARTS } else { 1 }
    }

    /// How long a session may say nothing, if that is less than otherwise.
    pub(super) fn patience(&self) -> Option<Duration> {
        (self.level() >= Level::Strained).then(|| self.settings.borrow().pressure.patience)
    }

    /// How long a stranger from there waits for its greeting, in milliseconds.
    pub(super) fn greeting_delay_millis(&self, peer: IpAddr) -> u16 {
        let now = clock::now();
        let settings = self.settings();
        match self.level() {
            Level::Calm => settings.greetings.delay_millis(peer, now),
            _ => settings.greetings.delay_millis_of_at_least(
                settings.pressure.greeting_delay_millis,
                peer,
                now,
            ),
        }
    }

    /// Why a new connection is not taken at all, if it is not.
    pub(super) fn refusal_of_all(&self) -> Option<Refusal> {
        let overload = self.overload.borrow();
        (overload.level() == Level::Full).then(|| overload.resource().refusal())
    }
}
