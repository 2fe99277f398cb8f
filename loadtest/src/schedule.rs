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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::MessageId;

    const MS: Duration = Duration::from_millis(1);

    fn plan(goal: Goal, rate: Option<f64>, arrivals: Arrivals, warm_up: Duration) -> Plan {
        Plan { goal, warm_up, rate, arrivals, ..Plan::against(([127, 0, 0, 1], 25).into(), 0) }
    }

    /// The schedules of `count` cores, and when their load begins.
    fn cores(plan: &Plan, count: usize) -> (Instant, Vec<Schedule>) {
        let begin = Instant::now();
        let tickets = match plan.goal {
            Goal::Messages(count) => count,
            Goal::Duration(_) => 0,
        };
        let tickets = Arc::new(AtomicU64::new(tickets));
        let schedule = |index| Schedule::new(plan, index, count, Window::new(plan, begin), &tickets);
        (begin, (0..count).map(schedule).collect())
    }

    /// Everything that is due at `now`: numbers and times.
    fn take(schedule: &mut Schedule, now: Instant) -> (Vec<(u64, Instant)>, Due) {
        let mut begun = Vec::new();
        loop {
            match schedule.next(now) {
                Due::Now { number, intended } => begun.push((number, intended)),
                due => return (begun, due),
            }
        }
    }

    fn message(intended: Instant) -> Message {
        Message { id: MessageId { run: 0, number: 0 }, content: 0, size: 0, is_8bit: false, intended }
    }

    #[test]
    fn a_closed_loop_has_something_due_from_its_beginning_to_its_end() {
        let plan = plan(Goal::Duration(100 * MS), None, Arrivals::Even, 50 * MS);
        let (begin, mut cores) = cores(&plan, 2);
        let schedule = &mut cores[1];
        assert_eq!(schedule.next(begin - MS), Due::At(begin));
        for (k, at) in [0, 1, 49, 50, 149].into_iter().enumerate() {
            let now = begin + MS * at;
            assert_eq!(schedule.next(now), Due::Now { number: 1 + 2 * k as u64, intended: now });
        }
        assert_eq!(schedule.next(begin + 150 * MS), Due::Over);
        assert_eq!(schedule.never_begun().count(), 0);
    }

    #[test]
    fn a_closed_loop_counts_by_the_reply_and_everything_else_by_the_beginning() {
        let length = Goal::Duration(100 * MS);
        for (goal, rate, is_by_reply) in
            [(length, None, true), (Goal::Messages(5), None, false), (length, Some(10.0), false)]
        {
            let plan = plan(goal, rate, Arrivals::Even, 50 * MS);
            let begin = Instant::now();
            let window = Window::new(&plan, begin);
            let [before, within, after] = [49, 50, 150].map(|at| begin + MS * at);
            assert!(!window.contains(before) && window.contains(within));
            assert_eq!(window.contains(after), matches!(goal, Goal::Messages(_)));
            assert_eq!(window.counts(&message(before), within), is_by_reply);
            assert_eq!(window.counts(&message(within), after), !is_by_reply);
            assert!(window.counts(&message(within), after - MS));
        }
    }

    #[test]
    fn tickets_that_cores_share_are_as_many_messages_as_were_asked_for_and_warm_up_needs_none() {
        for rate in [None, Some(1000.0)] {
            let plan = plan(Goal::Messages(100), rate, Arrivals::Even, 10 * MS);
            let (begin, mut cores) = cores(&plan, 3);
            let mut counted = std::collections::BTreeSet::new();
            let mut warm_up_count = 0;
            for at in 0..1000 {
                for schedule in &mut cores {
                    let now = begin + MS * at;
                    if let Due::Now { number, intended } = schedule.next(now) {
                        if intended < begin + plan.warm_up {
                            warm_up_count += 1;
                        } else {
                            assert!(counted.insert(number), "{number} twice");
                        }
                    }
                }
            }
            assert_eq!(counted.len(), 100);
            assert!(warm_up_count >= 10, "{warm_up_count}");
            for schedule in &mut cores {
                assert_eq!(schedule.next(begin + 2000 * MS), Due::Over);
                assert_eq!(schedule.never_begun().count(), 0);
            }
        }
    }

    #[test]
    fn an_open_loop_has_its_messages_due_at_their_times_whenever_it_is_asked() {
        let plan = plan(Goal::Duration(110 * MS), Some(1000.0), Arrivals::Even, Duration::ZERO);
        // Asked every millisecond, and asked once when it is nearly over: the same messages at the same times.
        let mut seen = Vec::new();
        for step in [1, 109] {
            let (begin, mut cores) = cores(&plan, 2);
            let mut begun = Vec::new();
            for (index, schedule) in cores.iter_mut().enumerate() {
                let mut next = MS * index as u32;
                for at in (0..110).filter(|at| at % step == 0) {
                    let (now_begun, due) = take(schedule, begin + MS * at);
                    next += MS * 2 * now_begun.len() as u32;
                    assert_eq!(due, if next < MS * 110 { Due::At(begin + next) } else { Due::Over });
                    begun.extend(now_begun.iter().map(|(number, at)| (*number, at.duration_since(begin))));
                }
            }
            begun.sort();
            let numbers: Vec<u64> = begun.iter().map(|(number, _)| *number).collect();
            assert_eq!(numbers, (0..110).collect::<Vec<_>>());
            assert!(begun.iter().enumerate().all(|(k, (_, at))| *at == MS * k as u32));
            seen.push(begun);
        }
        assert_eq!(seen[0], seen[1]);
    }

    #[test]
    fn what_was_due_within_the_window_and_not_begun_is_told_with_its_time() {
        let plan = plan(Goal::Duration(100 * MS), Some(1000.0), Arrivals::Even, 10 * MS);
        for last_asked in [0, 5, 10, 60, 109] {
            let (begin, mut cores) = cores(&plan, 2);
            let (mut begun_count, mut never) = (0, Vec::new());
            for schedule in &mut cores {
                let (begun, _) = take(schedule, begin + MS * last_asked);
                begun_count += begun.iter().filter(|(_, at)| *at >= begin + plan.warm_up).count();
                assert_eq!(schedule.next(begin + 110 * MS + GRACE), Due::Over);
                never.extend(schedule.never_begun());
                assert_eq!(schedule.never_begun().count(), 0, "told once");
            }
            assert_eq!(begun_count + never.len(), 100, "asked last at {last_asked}");
            let window = Window::new(&plan, begin);
            assert!(never.iter().all(|due| window.contains(*due) && *due > begin + MS * last_asked));
        }
    }

    #[test]
    fn what_the_warm_up_left_is_dropped_and_what_fell_due_at_the_end_still_begins() {
        let plan = plan(Goal::Duration(100 * MS), Some(1000.0), Arrivals::Even, 10 * MS);
        let (begin, mut cores) = cores(&plan, 1);
        let (begun, _) = take(&mut cores[0], begin + 12 * MS);
        let times: Vec<Duration> = begun.iter().map(|(_, at)| at.duration_since(begin)).collect();
        assert_eq!(times, [10 * MS, 11 * MS, 12 * MS]);
        let (begun, due) = take(&mut cores[0], begin + 110 * MS + GRACE / 2);
        assert_eq!((begun.len(), due), (97, Due::Over));
    }

    #[test]
    fn poisson_arrivals_have_their_mean_and_their_spread_and_are_the_same_for_a_seed() {
        let length = Duration::from_secs(1000);
        let times = |seed, index| {
            let plan =
                Plan { seed, ..plan(Goal::Duration(length), Some(100.0), Arrivals::Poisson, Duration::ZERO) };
            let (begin, mut cores) = cores(&plan, 2);
            let (begun, _) = take(&mut cores[index], begin + length - Duration::from_nanos(1));
            begun.iter().map(|(_, at)| at.duration_since(begin)).collect::<Vec<_>>()
        };
        let gaps = |times: &[Duration]| -> Vec<f64> {
            times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()
        };
        let (one, two) = (times(1, 0), times(1, 1));
        // 50,000 each: three deviations are some 670.
        for times in [&one, &two] {
            assert!((49_300..50_700).contains(&times.len()), "{}", times.len());
            let gaps = gaps(times);
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let spread = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            // The deviation of an exponential distribution is its mean.
            assert!((0.95..1.05).contains(&(spread.sqrt() / mean)), "{}", spread.sqrt() / mean);
        }
        assert_ne!(gaps(&one)[..100], gaps(&two)[..100], "cores are independent");
        assert_eq!(one, times(1, 0));
        assert_ne!(one, times(2, 0));
    }
}
