//! A circuit breaker: somebody who fails again and again is left alone for a while.
//!
//! ```text
//!            failures_max in a row                       the interval is over: one turn
//!   closed ───────────────────────► open ───────────────────────────────────────────► probing
//!     ▲                              ▲                                                   │
//!     │                              └────────────────────── it failed ──────────────────┤
//!     └───────────────────────────────────────────────────── it succeeded ───────────────┘
//! ```
//!
//! Ask for a [`Turn`] before asking whoever is guarded, and say how it went with [`Breaker::handle_success`],
//! [`Breaker::handle_failure`], or [`Breaker::handle_unused`] where nobody was asked after all.
//!
//! Invariants:
//! - a success, whosever, ends a row of failures;
//! - while it is open, at most one turn is given per interval: the probe, whose outcome alone closes it or opens it anew;
//! - a probe of which nothing is ever heard holds nobody up for longer than an interval.
//!
//! Time is an argument; it knows nothing of whom it guards.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug)]
pub struct Breaker {
    failures_max: u32,
    interval: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Probes so far: no two have one number.
    probes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Everybody is let through; so many have failed in a row.
    Closed { failures: u32 },
    /// Nobody is, before then.
    Open { until: Instant },
    /// One was; another may, then.
    Probing { number: u64, until: Instant },
}

/// A permission to ask once.
#[derive(Debug, PartialEq, Eq)]
pub struct Turn {
    /// The number of the probe, if it is one.
    probe: Option<u64>,
}

/// What an outcome has changed, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Nobody is let through from now on.
    Opened,
    /// Everybody is, again.
    Closed,
}

impl Breaker {
    /// Opens after `failures_max` failures in a row, for `interval`; with 0 it never does.
    pub fn new(failures_max: u32, interval: Duration) -> Self {
        let inner = Inner { state: State::Closed { failures: 0 }, probes: 0 };
        Breaker { failures_max, interval, inner: Mutex::new(inner) }
    }

    /// A turn, or how long there will be none.
    pub fn turn(&self, now: Instant) -> Result<Turn, Duration> {
        let mut inner = self.inner();
        match inner.state {
            State::Closed { .. } => return Ok(Turn { probe: None }),
            State::Open { until } | State::Probing { until, .. } if now < until => return Err(until - now),
            // Of a probe before nothing was heard.
            State::Open { .. } | State::Probing { .. } => {}
        }
        let number = inner.probes;
        *inner = Inner { state: State::Probing { number, until: now + self.interval }, probes: number + 1 };
        Ok(Turn { probe: Some(number) })
    }

    /// Whether [`Breaker::turn`] would give one.
    pub fn has_turn(&self, now: Instant) -> bool {
        match self.inner().state {
            State::Closed { .. } => true,
            State::Open { until } | State::Probing { until, .. } => now >= until,
        }
    }

    /// Who was asked has answered.
    pub fn handle_success(&self, turn: Turn) -> Change {
        let state = &mut self.inner().state;
        match *state {
            State::Closed { .. } => {
                *state = State::Closed { failures: 0 };
                Change::None
            }
            State::Probing { number, .. } if turn.probe == Some(number) => {
                *state = State::Closed { failures: 0 };
                Change::Closed
            }
            // Asked before it opened: the probe will tell.
            _ => Change::None,
        }
    }

    /// Who was asked has not answered, or nothing that can be understood.
    pub fn handle_failure(&self, turn: Turn, now: Instant) -> Change {
        let state = &mut self.inner().state;
        let until = now + self.interval;
        match *state {
            State::Closed { failures } => {
                let failures = failures.saturating_add(1);
                let opens = self.failures_max != 0 && failures >= self.failures_max;
                *state = if opens { State::Open { until } } else { State::Closed { failures } };
                if opens { Change::Opened } else { Change::None }
            }
            State::Probing { number, .. } if turn.probe == Some(number) => {
                *state = State::Open { until };
                Change::None
            }
            _ => Change::None,
        }
    }

    /// Nobody was asked: the turn is another's.
    pub fn handle_unused(&self, turn: Turn, now: Instant) {
        let state = &mut self.inner().state;
        if matches!(*state, State::Probing { number, .. } if turn.probe == Some(number)) {
            *state = State::Open { until: now };
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    /// Plays a line of words, `+N` of which let seconds pass; what was said to each other word.
    fn play(failures_max: u32, script: &str) -> String {
        let breaker = Breaker::new(failures_max, INTERVAL);
        let mut now = Instant::now();
        let mut turns = std::collections::VecDeque::new();
        let mut said = Vec::new();
        for word in script.split_whitespace() {
            let change = match word {
                "ask" => {
                    said.push(match breaker.turn(now) {
                        Ok(turn) => {
                            let word = if turn.probe.is_some() { "probe" } else { "go" };
                            turns.push_back(turn);
                            word.to_string()
                        }
                        Err(left) => format!("no:{}", left.as_secs()),
                    });
                    continue;
                }
                "well" => breaker.handle_success(turns.pop_front().unwrap()),
                "badly" => breaker.handle_failure(turns.pop_front().unwrap(), now),
                "unused" => {
                    breaker.handle_unused(turns.pop_front().unwrap(), now);
                    Change::None
                }
                "lost" => {
                    turns.pop_front().unwrap();
                    Change::None
                }
                seconds => {
                    now += Duration::from_secs(seconds.strip_prefix('+').unwrap().parse().unwrap());
                    continue;
                }
            };
            match change {
                Change::None => {}
                Change::Opened => said.push("opened".into()),
                Change::Closed => said.push("closed".into()),
            }
        }
        said.join(" ")
    }

    #[test]
    fn it_opens_after_a_row_of_failures_and_closes_by_a_probe() {
        let table = [
            ("a success ends a row", 2, "ask badly ask well ask badly ask", "go go go go"),
            ("a row opens it", 2, "ask badly ask badly ask +29 ask", "go go opened no:30 no:1"),
            (
                "one probe, which closes",
                1,
                "ask badly +30 ask ask +5 ask well ask",
                "go opened probe no:30 no:25 closed go",
            ),
            (
                "one probe, which fails",
                1,
                "ask badly +30 ask badly ask +30 ask",
                "go opened probe no:30 probe",
            ),
            (
                "closed, the row begins anew",
                2,
                "ask badly ask badly +30 ask well ask badly ask",
                "go go opened probe closed go go",
            ),
            (
                "who asked before it opened does not tell",
                1,
                "ask ask ask badly badly +30 ask well ask",
                "go go go opened probe no:30",
            ),
            (
                "a probe nobody used is given again",
                1,
                "ask badly +30 ask unused ask",
                "go opened probe probe",
            ),
            (
                "a probe that is lost is given again",
                1,
                "ask badly +30 ask lost +29 ask +1 ask",
                "go opened probe no:1 probe",
            ),
            (
                "a lost probe that comes late tells nothing",
                1,
                "ask badly +30 ask +30 ask well ask",
                "go opened probe probe no:30",
            ),
            (
                "nor does one that comes in the time of a later one",
                1,
                "ask badly +30 ask lost +30 ask badly +30 ask",
                "go opened probe probe probe",
            ),
            ("an unused turn of a closed one", 1, "ask unused ask badly", "go go opened"),
            ("it never opens", 0, "ask badly ask badly ask badly ask", "go go go go"),
        ];
        for (claim, failures_max, script, said) in table {
            assert_eq!(play(failures_max, script), said, "{claim}");
        }
    }
}
