//! When messages came, by their numbers: so that the age of the oldest one that waits is known, and the ledger's entries need not have it.
//!
//! Numbers are given out in the order of arrival, so a sample of (number, time) now and then tells of all between: a message came after the
//! sample below its number, and its age is taken from that. There are a few hundred samples at most; of what is long ago there are fewer
//! than of what is recent, so that an age is wrong by a few parts in a hundred.
//!
//! Of messages that an earlier process has accepted nothing is known before they are read, which those that are deferred are at their next attempt:
//! until then they count as having come when this log was opened.

use std::collections::BTreeMap;

/// Samples at most.
const SAMPLES_MAX: usize = 512;
/// When there are more, those go without which an age is wrong by no more than one of so many parts of it. Of a year 24 * ln(seconds of it),
/// some 400, are left.
const THINNED_PART: u64 = 24;
/// A time that is known is worth a sample if an age is wrong otherwise by this part of it, or by more than some seconds.
const ERROR_PART: u64 = 64;
const ERROR_MIN: u64 = 2;

/// See the module. Times are seconds since 1970.
#[derive(Debug, Default)]
pub struct Ages {
    samples: BTreeMap<u64, u64>,
}

impl Ages {
    /// Of a log that is opened now: what it has, has come before.
    pub fn new(unix_now: u64) -> Self {
        Ages { samples: BTreeMap::from([(0, unix_now)]) }
    }

    /// Messages from `next` on come at `unix_now` or later. `oldest`: the number of the oldest message that is not done.
    pub fn note(&mut self, next: u64, oldest: Option<u64>, unix_now: u64) {
        let oldest = oldest.unwrap_or(next);
        // The sample below the oldest is the one that tells of it.
        if let Some((&below, _)) = self.samples.range(..=oldest).next_back() {
            while self.samples.first_key_value().is_some_and(|(first, _)| *first < below) {
                self.samples.pop_first();
            }
        }
        match self.samples.last_key_value() {
            // The clock was set back: nobody has come from the future.
            Some((_, latest)) if *latest > unix_now => {
                self.samples.values_mut().for_each(|time| *time = (*time).min(unix_now));
            }
            // Nobody has come since: whoever comes next comes later than then.
            Some((last, _)) if *last == next => {}
            Some((_, latest)) if *latest == unix_now => return,
            _ => {}
        }
        self.insert(next, unix_now);
    }

    /// The message of this number came at `unix_time`, as its record says.
    pub fn learn(&mut self, sequence: u64, unix_time: u64, unix_now: u64) {
        let age = unix_now.saturating_sub(unix_time);
        let known = self.time_of(sequence).unwrap_or(unix_now);
        if known.abs_diff(unix_time) > ERROR_MIN.max(age / ERROR_PART) {
            self.insert(sequence, unix_time.min(unix_now));
        }
    }

    fn insert(&mut self, sequence: u64, unix_time: u64) {
        self.samples.insert(sequence, unix_time);
        if self.samples.len() <= SAMPLES_MAX {
            return;
        }
        let now = self.samples.last_key_value().map_or(0, |(_, time)| *time);
        let mut kept = None;
        let mut following = self.samples.values().copied().skip(1).collect::<Vec<_>>().into_iter();
        self.samples.retain(|_, time| {
            // Without this one, what came just before the next would be taken to have come when the one before this did.
            let error = following
                .next()
                .zip(kept)
                .map(|(next, kept)| (next.saturating_sub(kept), now.saturating_sub(next)));
            let is_kept = error.is_none_or(|(error, age)| error > age / THINNED_PART);
            if is_kept {
                kept = Some(*time);
            }
            is_kept
        });
        // Only where times are no times.
        while self.samples.len() > SAMPLES_MAX {
            self.samples.pop_first();
        }
    }

    /// When the message of this number came, or somewhat before; for one that came before all that is known of: somewhat after.
    pub fn time_of(&self, sequence: u64) -> Option<u64> {
        let below = self.samples.range(..=sequence).next_back();
        below.or_else(|| self.samples.first_key_value()).map(|(_, time)| *time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_as_old_as_the_sample_below_it_says() {
        let mut ages = Ages::default();
        assert_eq!(ages.time_of(7), None);
        // (next number, time): numbers from there on came then or later.
        for (next, time) in [(10, 100), (10, 101), (30, 102), (40, 102), (50, 110)] {
            ages.note(next, Some(1), time);
        }
        for (sequence, time) in [(1, 101), (10, 101), (29, 101), (30, 102), (49, 102), (50, 110), (99, 110)] {
            assert_eq!(ages.time_of(sequence), Some(time), "{sequence}");
        }
    }

    #[test]
    fn who_comes_after_a_long_silence_is_not_old() {
        let mut ages = Ages::default();
        for time in 100..4000 {
            ages.note(10, None, time);
        }
        assert_eq!((ages.time_of(10), ages.samples.len()), (Some(3999), 1));
        ages.note(11, Some(10), 4000);
        ages.note(11, Some(10), 9000);
        assert_eq!([10, 11].map(|sequence| ages.time_of(sequence)), [3999, 9000].map(Some));
    }

    #[test]
    fn what_is_read_of_recovered_messages_is_learned() {
        let mut ages = Ages::new(10_000);
        (10_000..10_010).for_each(|now| ages.note(1000, Some(5), now));
        assert_eq!(ages.time_of(5), Some(10_000), "as far as is known");
        ages.learn(5, 4000, 10_009);
        ages.learn(6, 4001, 10_009);
        ages.learn(700, 9000, 10_009);
        for (sequence, time) in [(5, 4000), (6, 4000), (699, 4000), (700, 9000), (1000, 10_009)] {
            assert_eq!(ages.time_of(sequence), Some(time), "{sequence}");
        }
    }

    /// A week of a message each second, none of which is done: an age is wrong by less than a twentieth.
    #[test]
    fn samples_are_bounded_and_ages_are_about_right() {
        let mut ages = Ages::default();
        const WEEK: u64 = 7 * 86_400;
        for second in 0..WEEK {
            ages.note(second, Some(0), 1_000_000 + second);
            assert!(ages.samples.len() <= SAMPLES_MAX);
        }
        for sequence in (0..WEEK).step_by(997) {
            let (came, told) = (1_000_000 + sequence, ages.time_of(sequence).unwrap());
            let age = 1_000_000 + WEEK - came;
            assert!(told <= came && came - told <= age / 20 + 2, "{sequence}: {told} for {came}, age {age}");
        }
        ages.note(WEEK, Some(WEEK - 1), 1_000_000 + WEEK);
        assert!(ages.samples.len() <= 3, "of what is done nothing is known: {}", ages.samples.len());
    }

    #[test]
    fn nobody_comes_from_the_future() {
        let mut ages = Ages::default();
        ages.note(1, None, 1000);
        ages.note(2, Some(1), 2000);
        ages.note(3, Some(1), 1500);
        assert_eq!([1, 2, 3].map(|sequence| ages.time_of(sequence)), [1000, 1500, 1500].map(Some));
    }
}
