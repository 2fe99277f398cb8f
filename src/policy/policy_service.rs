//! An external policy service: another daemon decides, asked by the policy delegation protocol of Postfix (SMTPD_POLICY_README).
//!
//! The facts become a [`request`], one `name=value` a line; the [`reply`] is an action as in Postfix's access(5). [`connections`] are
//! kept and used again, and a [`Breaker`] leaves a service alone that fails again and again.
//!
//! Invariants:
//! - nothing that a peer has said can end a line of a request;
//! - an answer is that to its own question: a connection of which one is still owed is closed, not used again;
//! - a service that cannot be reached, does not answer in time or answers what is none leads to [`Unavailable`], never to a refusal;
//!   nor is mail accepted as if the service had allowed it where it asked for what is not done here.

mod connections;
mod reply;
mod request;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use connections::Address;

use super::{Answer, Facts, Found, Phase, Phases, Policy, Unavailable, Verdict};
use crate::breaker::{Breaker, Change, Turn};
use connections::Connections;
use reply::Action;

/// How a policy service is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceSettings {
    /// Where it listens.
    pub address: Address,
    /// When it is asked.
    pub phases: Phases,
    /// It is asked about strangers only.
    pub is_guard: bool,
    /// What it is told as `policy_context`.
    pub context: String,
    /// Connections to it at most; who comes when all are in use waits.
    pub connections_max: usize,
    /// After so many failures in a row it is left alone; 0: never.
    pub failures_max: u32,
    /// For how long.
    pub retry_interval: Duration,
}

/// Asks another daemon.
pub struct PolicyService {
    name: String,
    settings: ServiceSettings,
    /// What distinguishes the sessions of this process from those of others.
    life: u64,
    shared: Arc<Shared>,
}

/// What questions under way have in common.
struct Shared {
    name: String,
    connections: Connections,
    breaker: Breaker,
    has_warned: AtomicBool,
}

impl PolicyService {
    /// `life` is a number that no other process is likely to have.
    pub fn new(name: &str, settings: ServiceSettings, life: u64) -> Self {
        let shared = Shared {
            name: name.into(),
            connections: Connections::new(settings.address.clone(), settings.connections_max),
            breaker: Breaker::new(settings.failures_max, settings.retry_interval),
            has_warned: AtomicBool::new(false),
        };
        PolicyService { name: name.into(), settings, life, shared: Arc::new(shared) }
    }
}

impl Policy for PolicyService {
    fn name(&self) -> &str {
        &self.name
    }

    fn phases(&self) -> Phases {
        self.settings.phases
    }

    fn is_guard(&self) -> bool {
        self.settings.is_guard
    }

    /// A rehearsal asks in earnest: the protocol has no other way.
    fn check(&self, phase: Phase, facts: &Facts<'_>) -> Answer {
        let turn = match self.shared.breaker.turn(facts.now) {
            Ok(turn) => turn,
            Err(left) => {
                let (name, left) = (&self.name, left.as_secs() + 1);
                return Unavailable(format!("{name} has failed again and again: not asked for {left} s"))
                    .into();
            }
        };
        let request = request::write(phase, facts, self.life, &self.settings.context);
        let mut asking = Asking { shared: self.shared.clone(), turn: Some(turn), has_begun: false };
        Answer::wait(async move {
            asking.has_begun = true;
            let action = match asking.shared.connections.ask(&request).await {
                Ok(reply) => reply::parse(&reply),
                Err(words) => Err(words),
            };
            asking.finish(action.as_ref().err());
            action.map_err(Unavailable).and_then(|action| asking.shared.verdict(action))
        })
    }
}

/// A question under way. It is dropped when its time is over, and that is a failure too.
struct Asking {
    shared: Arc<Shared>,
    turn: Option<Turn>,
    has_begun: bool,
}

impl Asking {
    fn finish(&mut self, failure: Option<&String>) {
        let Some(turn) = self.turn.take() else { return };
        let Shared { name, breaker, .. } = &*self.shared;
        let change = match failure {
            None => breaker.handle_success(turn),
            Some(_) => breaker.handle_failure(turn, Instant::now()),
        };
        match change {
            Change::None => {}
            Change::Opened => {
                let why = failure.map_or("", String::as_str);
                tracing::warn!(policy = name, why, "policy service failed again and again: it is left alone");
            }
            Change::Closed => tracing::info!(policy = name, "policy service answers again"),
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        match self.has_begun {
            true => self.finish(Some(&"no answer in time".into())),
            // There was no place among the lookups: that says nothing of the service.
            false => {
                if let Some(turn) = self.turn.take() {
                    self.shared.breaker.handle_unused(turn, Instant::now());
                }
            }
        }
    }
}

impl Shared {
    fn verdict(&self, action: Action) -> Found {
        match action {
            Action::Accept => Ok(Verdict::Accept),
            Action::Refuse(refusal) => Ok(Verdict::Refuse(refusal)),
            Action::Log { is_warning, text } => {
                match is_warning {
                    true => tracing::warn!(policy = self.name, text, "policy service warns"),
                    false => tracing::info!(policy = self.name, text, "policy service says"),
                }
                Ok(Verdict::Accept)
            }
            Action::Ignored(word) => {
                if !self.has_warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        policy = self.name,
                        action = word,
                        "policy service asks for what is not done here: taken as DUNNO, which is said once"
                    );
                }
                Ok(Verdict::Accept)
            }
            Action::NotDone(word) => {
                Err(Unavailable(format!("{} asks for {word}, which is not done here", self.name)))
            }
        }
    }
}
