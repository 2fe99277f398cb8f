//! Which message begins when, and which of them count. Pure: time is an argument.
//!
//! **Closed loop**: a message begins when a connection is free for it. With a duration, those count whose 250 comes within
//! the window; with a number of messages, those that begin once the warm-up is over.
//!
//! **Open loop**: message k falls due at its time whatever the server does. Those count that fall due within the window,
//! however late their 250 is, and they are measured from when they fell due. One that finds no free connection waits; one
//! that still waits shortly behind the window's end is not begun any more and is told of. What fell due in the warm-up and
//! still waits when it is over is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand_distr::{Distribution, Exp1};

use crate::plan::{Arrivals, Goal, Plan};
use crate::smtp::Message;

/// When counting begins and ends.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The load begins.
    pub begin: Instant,
    /// Counting begins.
    pub from: Instant,
    /// Counting ends; nothing where a number of messages ends it.
    pub until: Option<Instant>,
    is_by_reply: bool,
}

impl Window {
    /// The window of `plan` when its load begins at `begin`.
    pub fn new(plan: &Plan, begin: Instant) -> Self {
        let from = begin + plan.warm_up;
        let until = match plan.goal {
            Goal::Duration(duration) => Some(from + duration),
            Goal::Messages(_) => None,
        };
        Window { begin, from, until, is_by_reply: plan.rate.is_none() && until.is_some() }
    }

    /// Whether `time` lies within.
    pub fn contains(&self, time: Instant) -> bool {
        time >= self.from && self.until.is_none_or(|until| time < until)
    }

    /// Whether a 250 at `now` is one of those that rates are of: where time ends the window, those that come within it.
    pub fn is_answer(&self, message: &Message, now: Instant) -> bool {
        self.contains(if self.until.is_some() { now } else { message.intended })
    }

    /// Whether a message counts that was answered at `now`.
    pub fn counts(&self, message: &Message, now: Instant) -> bool {
        self.contains(if self.is_by_reply { now } else { message.intended })
    }
}

/// In an open loop the last messages that fall due within the window may begin this much behind it: the turn of a core that
/// is not late takes less.
const GRACE: Duration = Duration::from_millis(100);

/// What a core has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Begin message `number`, which was due at `intended`.
    Now {
        /// Its number within the run.
        number: u64,
        /// The time it is measured from.
        intended: Instant,
    },
    /// Nothing before this.
    At(Instant),
    /// Nothing any more.
    Over,
}

/// One core's part of the messages.
pub struct Schedule {
    window: Window,
    /// Messages that may still begin, of all cores together.
    tickets: Option<Arc<AtomicU64>>,
    number: u64,
    stride: u64,
    arrivals: Option<Times>,
    grace: Duration,
}

/// The times of an open loop.
struct Times {
    interval: Duration,
    next: Instant,
    poisson: Option<SmallRng>,
}

impl Schedule {
    /// The part of core `index` of `count`. `tickets` is shared by all of them.
    pub fn new(plan: &Plan, index: usize, count: usize, window: Window, tickets: &Arc<AtomicU64>) -> Self {
        let interval = |rate: f64| Duration::from_secs_f64(count as f64 / rate);
        Schedule {
            window,
            tickets: matches!(plan.goal, Goal::Messages(_)).then(|| tickets.clone()),
            number: index as u64,
            stride: count as u64,
            grace: if plan.rate.is_some() { GRACE } else { Duration::ZERO },
            arrivals: plan.rate.map(|rate| Times {
                interval: interval(rate),
                // The cores take turns.
                next: window.begin + interval(rate).mul_f64(index as f64 / count as f64),
                poisson: (plan.arrivals == Arrivals::Poisson)
                    .then(|| SmallRng::seed_from_u64(plan.seed.wrapping_add(index as u64))),
            }),
        }
    }

    /// What is due at `now`: a message that is told of has begun.
    pub fn next(&mut self, now: Instant) -> Due {
        self.leave_warm_up(now);
        let due = self.peek(now);
        let Due::Now { intended, .. } = due else {
            return due;
        };
        if intended >= self.window.from && !self.take_ticket() {
            return Due::Over;
        }
        self.number += self.stride;
        if let Some(times) = &mut self.arrivals {
            times.advance();
        }
        due
    }

    /// A server that did not keep up during the warm-up does not begin the window with what is left of it: before those
    /// were sent, none that count would be.
    fn leave_warm_up(&mut self, now: Instant) {
        if now < self.window.from {
            return;
        }
        if let Some(times) = &mut self.arrivals {
            while times.next < self.window.from {
                times.advance();
            }
        }
    }

    /// What would be due at `now`, as far as tickets permit.
    pub fn peek(&self, now: Instant) -> Due {
        let intended = match &self.arrivals {
            Some(times) => times.next,
            None => now.max(self.window.begin),
        };
        let is_over = |until: Instant| intended >= until || now >= until + self.grace;
        if self.window.until.is_some_and(is_over) {
            return Due::Over;
        }
        if intended > now {
            return Due::At(intended);
        }
        Due::Now { number: self.number, intended }
    }

    /// Open loop, once it is over: the times of messages that fell due within the window and were not begun.
    pub fn never_begun(&mut self) -> impl Iterator<Item = Instant> {
        let window = self.window;
        let mut times = self.arrivals.take();
        std::iter::from_fn(move || {
            let times = times.as_mut()?;
            while times.next < window.from {
                times.advance();
            }
            let due = times.next;
            times.advance();
            window.until.is_some_and(|until| due < until).then_some(due)
        })
    }

    fn take_ticket(&self) -> bool {
        self.tickets.as_ref().is_none_or(|tickets| {
            tickets.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
        })
    }
}

impl Times {
    fn advance(&mut self) {
        self.next += match &mut self.poisson {
            Some(random) => self.interval.mul_f64(Exp1.sample(random)),
            None => self.interval,
        };
    }
}
