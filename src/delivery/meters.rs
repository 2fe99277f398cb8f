//! What is counted of a target's attempts.
//!
//! Each thread counts in a place of its own, as far as there are places; so no two cores write to one line of memory for it, and a lock is
//! only waited for by a thread that has to share its place, or while somebody reads.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Outcome;
use crate::telemetry::distribution::{Buckets, Distribution, Scale};

/// Places: threads beyond them share. Those of transports that block are many, and slower than what they would wait for.
const PLACES: usize = 16;

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// This thread's place.
    static PLACE: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed) % PLACES);
}

/// See the module. Two cache lines, because processors fetch them in pairs.
#[repr(align(128))]
struct Counted {
    begun: AtomicU64,
    ended: AtomicU64,
    results: Mutex<Results>,
}

struct Results {
    attempts: u64,
    delivered: u64,
    deferred: u64,
    rejected: u64,
    durations: Distribution,
}

/// What was counted of a target, over all threads.
#[derive(Clone, Debug)]
pub struct TargetReading {
    /// Attempts made.
    pub attempts: u64,
    /// Recipients who have it.
    pub delivered: u64,
    /// Recipients who are to be tried again.
    pub deferred: u64,
    /// Recipients who were given up.
    pub rejected: u64,
    /// Attempts being made now.
    pub in_flight: u64,
    /// How long attempts took.
    pub durations: Buckets,
}

/// The meters of one target.
#[derive(Clone)]
pub(super) struct Meters(Arc<[Counted; PLACES]>);

impl Default for Meters {
    fn default() -> Self {
        let counted = || Counted {
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            results: Mutex::new(Results {
                attempts: 0,
                delivered: 0,
                deferred: 0,
                rejected: 0,
                durations: Distribution::new(Scale::Seconds),
            }),
        };
        Meters(Arc::new(std::array::from_fn(|_| counted())))
    }
}

impl Meters {
    fn place(&self) -> &Counted {
        &self.0[PLACE.get()]
    }

    /// An attempt begins; it ends when what is returned is dropped.
    pub fn begin(&self) -> Ongoing {
        self.place().begun.fetch_add(1, Ordering::Relaxed);
        Ongoing(self.clone())
    }

    /// So much of it was told; `duration`: how long the attempt took, if one was made.
    pub fn count(&self, outcomes: &[Outcome], duration: Option<Duration>) {
        let mut results = self.place().results.lock().unwrap_or_else(PoisonError::into_inner);
        for outcome in outcomes {
            match outcome {
                Outcome::Delivered { .. } => results.delivered += 1,
                Outcome::Deferred { .. } => results.deferred += 1,
                Outcome::Rejected { .. } => results.rejected += 1,
            }
        }
        if let Some(duration) = duration {
            results.attempts += 1;
            results.durations.record(duration);
        }
    }

    /// What all threads have counted.
    pub fn read(&self) -> TargetReading {
        let none = Buckets::none(Scale::Seconds);
        let mut all = TargetReading {
            attempts: 0,
            delivered: 0,
            deferred: 0,
            rejected: 0,
            in_flight: 0,
            durations: none,
        };
        let (mut begun, mut ended) = (0, 0);
        for counted in self.0.iter() {
            // In this order: what ends meanwhile is still in flight.
            ended += counted.ended.load(Ordering::Acquire);
        }
        for counted in self.0.iter() {
            begun += counted.begun.load(Ordering::Acquire);
            let durations = {
                let results = counted.results.lock().unwrap_or_else(PoisonError::into_inner);
                all.attempts += results.attempts;
                all.delivered += results.delivered;
                all.deferred += results.deferred;
                all.rejected += results.rejected;
                results.durations.read()
            };
            all.durations.add(&durations.buckets());
        }
        all.in_flight = begun.saturating_sub(ended);
        all
    }
}

/// An attempt that is being made.
pub(super) struct Ongoing(Meters);

impl Drop for Ongoing {
    fn drop(&mut self) {
        self.0.place().ended.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_more_threads_than_there_are_places_count_is_all_read() {
        const EACH: u64 = 1000;
        let meters = Meters::default();
        let outcomes = [Outcome::delivered(), Outcome::deferred("later"), Outcome::rejected("never")];
        thread::scope(|scope| {
            for _ in 0..2 * PLACES {
                scope.spawn(|| {
                    for n in 0..EACH {
                        let ongoing = meters.begin();
                        // Of every other an attempt was made.
                        meters.count(&outcomes, (n % 2 == 0).then_some(Duration::from_millis(2)));
                        drop(ongoing);
                    }
                });
            }
        });
        let ongoing = meters.begin();
        let read = meters.read();
        let all = 2 * PLACES as u64 * EACH;
        assert_eq!(
            [read.delivered, read.deferred, read.rejected, read.attempts, read.in_flight],
            [all, all, all, all / 2, 1]
        );
        assert_eq!(read.durations.count(), all / 2);
        drop(ongoing);
        assert_eq!(meters.read().in_flight, 0);
    }
}
