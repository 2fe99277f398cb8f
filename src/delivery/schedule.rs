//! When to try again, and when to give up. Pure.
//!
//! The wait before the next attempt doubles from `backoff_base` to `backoff_max` and is then shortened by up to a quarter, by
//! chance that depends on a seed alone: messages deferred together do not come back together, and a test or a restart computes
//! the same wait again.
//!
//! Invariant: an age alone never gives up. A clock that was set ten days ahead makes every queued message ten days old; so the
//! attempts made must also fill half the lifetime.

use std::time::Duration;

/// How deferred recipients are retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The wait after the first attempt.
    pub backoff_base: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
    /// Attempts at most; 0: as many as the lifetime has room for.
    pub attempts_max: u32,
    /// How long a message may wait in the queue.
    pub queue_lifetime: Duration,
}

impl Default for Schedule {
    /// One minute, doubling to four hours, for five days (RFC 5321 §4.5.4.1: "at least 4-5 days").
    fn default() -> Self {
        Schedule {
            backoff_base: Duration::from_secs(60),
            backoff_max: Duration::from_secs(4 * 3600),
            attempts_max: 0,
            queue_lifetime: Duration::from_secs(5 * 24 * 3600),
        }
    }
}

impl Schedule {
    /// How long to wait for the next attempt after `attempts_made` (at least 1): from three quarters of the full wait to all of it.
    pub fn next_attempt(&self, attempts_made: u32, seed: u64) -> Duration {
        let full = self.full_wait(attempts_made).as_nanos() as u64;
        let chance = mix(seed ^ u64::from(attempts_made).rotate_left(32));
        let less = ((u128::from(full / 4) * u128::from(chance)) >> 64) as u64;
        Duration::from_nanos(full - less)
    }

    /// Whether to give up after `attempts_made`, the message being `age` old by the wall clock.
    pub fn is_exhausted(&self, attempts_made: u32, age: Duration) -> bool {
        let is_last = self.attempts_max > 0 && attempts_made >= self.attempts_max;
        is_last || age >= self.queue_lifetime && self.may_be_exhausted(attempts_made)
    }

    /// Whether there is an age at which to give up after `attempts_made`.
    pub fn may_be_exhausted(&self, attempts_made: u32) -> bool {
        let is_last = self.attempts_max > 0 && attempts_made >= self.attempts_max;
        is_last || self.span(attempts_made) >= self.queue_lifetime / 2
    }

    /// The wait after `attempts_made`, not shortened.
    fn full_wait(&self, attempts_made: u32) -> Duration {
        let doublings = attempts_made.saturating_sub(1).min(31);
        let longest = self.backoff_max.min(Duration::from_nanos(u64::MAX));
        self.backoff_base.saturating_mul(1 << doublings).min(longest)
    }

    /// The time from the first attempt to the one after `attempts_made`, if no wait is shortened.
    fn span(&self, attempts_made: u32) -> Duration {
        let doubling = attempts_made.min(32);
        let growing =
            (1..=doubling).map(|n| self.full_wait(n)).fold(Duration::ZERO, Duration::saturating_add);
        growing.saturating_add(self.full_wait(u32::MAX).saturating_mul(attempts_made - doubling))
    }
}

/// SplitMix64's finalizer: every bit of the seed changes half the bits of the result.
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;

    #[test]
    fn waits_double_up_to_the_longest_and_shrink_by_at_most_a_quarter() {
        let schedule = Schedule::default();
        let table = [
            (0, MINUTE),
            (1, MINUTE),
            (2, 2 * MINUTE),
            (3, 4 * MINUTE),
            (8, 128 * MINUTE),
            (9, 4 * HOUR),
            (10, 4 * HOUR),
            (1000, 4 * HOUR),
            (u32::MAX, 4 * HOUR),
        ];
        for (attempts_made, full) in table {
            let full = Duration::from_secs(full);
            let waits: Vec<_> = (0..1000).map(|seed| schedule.next_attempt(attempts_made, seed)).collect();
            assert!(waits.iter().all(|wait| *wait <= full && *wait >= full * 3 / 4), "{attempts_made}");
            let spread = *waits.iter().max().unwrap() - *waits.iter().min().unwrap();
            assert!(spread > full / 5, "{attempts_made}: {spread:?}");
            assert_eq!(waits[7], schedule.next_attempt(attempts_made, 7), "the seed decides alone");
        }
    }

    #[test]
    fn giving_up_takes_age_and_attempts() {
        let patient = Schedule::default();
        let counted = Schedule { attempts_max: 3, ..patient };
        let hasty = Schedule { queue_lifetime: Duration::ZERO, ..patient };
        let table = [
            // one attempt an hour ago
            (patient, 1, HOUR, false),
            // half the lifetime's attempts, and its age on both sides
            (patient, 23, 5 * DAY - 1, false),
            (patient, 23, 5 * DAY, true),
            // the clock jumped, or the gateway was down for a week
            (patient, 1, 365 * DAY, false),
            (patient, 20, 365 * DAY, false),
            (patient, u32::MAX, 5 * DAY, true),
            (counted, 2, 0, false),
            (counted, 3, 0, true),
            (counted, 4, 0, true),
            (hasty, 1, 0, true),
        ];
        for (schedule, attempts_made, age, expected) in table {
            let exhausted = schedule.is_exhausted(attempts_made, Duration::from_secs(age));
            assert_eq!(exhausted, expected, "{attempts_made} attempts, {age} s");
        }
    }

    /// A recipient that is never reached, from the first attempt to the one that gives up.
    #[test]
    fn a_recipient_that_is_never_reached_is_given_up_when_its_lifetime_is_over() {
        let table = [
            // (schedule, lifetime in seconds, the longest wait, attempts at least, at most)
            (Schedule::default(), 5 * DAY, 4 * HOUR, 35, 50),
            (
                Schedule { queue_lifetime: Duration::from_secs(HOUR), ..Schedule::default() },
                HOUR,
                64 * MINUTE,
                6,
                9,
            ),
            (
                Schedule { backoff_max: Duration::from_secs(MINUTE), ..Schedule::default() },
                5 * DAY,
                MINUTE,
                5 * 24 * 60,
                5 * 24 * 80,
            ),
        ];
        for (schedule, lifetime, longest_wait, attempts_min, attempts_max) in table {
            for seed in 0..50 {
                let (mut age, mut attempts) = (Duration::ZERO, 1);
                while !schedule.is_exhausted(attempts, age) {
                    age += schedule.next_attempt(attempts, seed);
                    attempts += 1;
                }
                let at = age.as_secs();
                assert!((lifetime..=lifetime + longest_wait).contains(&at), "{schedule:?}: after {at} s");
                let range = attempts_min..=attempts_max;
                assert!(range.contains(&attempts), "{schedule:?}: {attempts} attempts");
            }
        }
    }

    #[test]
    fn no_setting_overflows() {
        let longest = Duration::MAX;
        let schedule = Schedule {
            backoff_base: longest,
            backoff_max: longest,
            attempts_max: 0,
            queue_lifetime: longest,
        };
        for attempts_made in [0, 1, 2, 33, u32::MAX] {
            schedule.next_attempt(attempts_made, u64::MAX);
            schedule.is_exhausted(attempts_made, longest);
        }
    }
}
