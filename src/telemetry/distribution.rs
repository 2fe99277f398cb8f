//! How values are distributed: durations, and counts of what went together.
//!
//! Recorded into an [hdrhistogram] of two significant digits, which costs some nanoseconds and, from the first value on, 20 KiB
//! of durations; one in which nothing is recorded costs nothing. Read as the buckets that are exposed: a value is in the right one but for
//! its third digit.
//!
//! One thread records; what it gives away ([`Distribution::read`]) goes to any other.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest duration that is told from a longer one, in microseconds: a power of two beyond the last bucket.
const MICROS_MAX: u64 = 1 << 27;
/// The same of counts.
const COUNT_MAX: u64 = 1 << 16;

/// What is distributed, and where its buckets end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Durations, recorded in microseconds and shown in seconds.
    Seconds,
    /// Numbers of things.
    Count,
}

impl Scale {
    fn max(self) -> u64 {
        match self {
            Scale::Seconds => MICROS_MAX,
            Scale::Count => COUNT_MAX,
        }
    }

    /// The ends of the buckets, as recorded.
    fn bounds(self) -> &'static [u64] {
        match self {
            Scale::Seconds => &[
                50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
                1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
            ],
            Scale::Count => &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
        }
    }

    /// As what it is shown.
    fn shown(self, value: u64) -> f64 {
        match self {
            Scale::Seconds => value as f64 / 1e6,
            Scale::Count => value as f64,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Distribution {
    scale: Scale,
    histogram: RefCell<Option<Box<Histogram<u64>>>>,
    sum: Cell<u64>,
}

impl Distribution {
    /// Nothing is recorded yet.
    pub const fn new(scale: Scale) -> Self {
        Distribution { scale, histogram: RefCell::new(None), sum: Cell::new(0) }
    }

    /// Records a duration, which is what this is of.
    pub fn record(&self, duration: Duration) {
        self.record_value(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Records a count, which is what this is of.
    pub fn record_value(&self, value: u64) {
        let mut histogram = self.histogram.borrow_mut();
        let histogram = histogram.get_or_insert_with(|| {
            let made = Histogram::new_with_bounds(1, self.scale.max(), 2);
            Box::new(made.expect("the bounds are those of a histogram"))
        });
        histogram.saturating_record(value);
        self.sum.set(self.sum.get().saturating_add(value));
    }

    /// What was recorded so far. Copies at most 20 KiB.
    pub fn read(&self) -> Recorded {
        let histogram = self.histogram.borrow().clone();
        Recorded { scale: self.scale, histogram, sum: self.sum.get() }
    }
}

/// A copy of what was recorded, for any thread.
#[derive(Clone, Debug)]
pub struct Recorded {
    scale: Scale,
    histogram: Option<Box<Histogram<u64>>>,
    sum: u64,
}

impl Recorded {
    /// As buckets.
    pub fn buckets(&self) -> Buckets {
        let bounds = self.scale.bounds();
        let mut counts = vec![0; bounds.len() + 1];
        for recorded in self.histogram.iter().flat_map(|histogram| histogram.iter_recorded()) {
            let value = recorded.value_iterated_to();
            let lowest =
                self.histogram.as_ref().map_or(value, |histogram| histogram.lowest_equivalent(value));
            counts[bounds.partition_point(|bound| *bound < lowest)] += recorded.count_at_value();
        }
        Buckets { scale: self.scale, counts, sum: self.sum }
    }
}

/// How many values fell between the bounds of a scale; of several threads they are added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    scale: Scale,
    /// The last is of what is larger than every bound.
    counts: Vec<u64>,
    sum: u64,
}

impl Buckets {
    /// Of nothing.
    pub fn none(scale: Scale) -> Self {
        Buckets { scale, counts: vec![0; scale.bounds().len() + 1], sum: 0 }
    }

    /// These too.
    pub fn add(&mut self, other: &Buckets) {
        assert!(self.scale == other.scale, "only what has the same bounds is added");
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, other)| *count += other);
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// Each bound and how many values were not beyond it.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut sum = 0;
        self.scale.bounds().iter().zip(&self.counts).map(move |(bound, count)| {
            sum += count;
            (self.scale.shown(*bound), sum)
        })
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What they amount to.
    pub fn sum(&self) -> f64 {
        self.scale.shown(self.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_bucket_that_ends_at_or_beyond_it() {
        for scale in [Scale::Seconds, Scale::Count] {
            let bounds = scale.bounds();
            for (n, bound) in bounds.iter().enumerate() {
                let distribution = Distribution::new(scale);
                distribution.record_value(*bound);
                assert_eq!(distribution.read().buckets().counts[n], 1, "{scale:?} {bound}");
                // Its third digit may be lost.
                let beyond = Distribution::new(scale);
                beyond.record_value(bound + bound.div_ceil(64));
                assert_eq!(beyond.read().buckets().counts[n + 1], 1, "{scale:?} beyond {bound}");
            }
        }
    }

    #[test]
    fn what_is_longer_than_can_be_told_is_counted_and_summed() {
        let distribution = Distribution::new(Scale::Seconds);
        for seconds in [0, 1, 3600] {
            distribution.record(Duration::from_secs(seconds));
        }
        let buckets = distribution.read().buckets();
        assert_eq!((buckets.count(), buckets.sum()), (3, 3601.0));
        let cumulative: Vec<_> = buckets.cumulative().collect();
        assert_eq!((cumulative[0], cumulative[12], cumulative[13]), ((0.00005, 1), (0.5, 1), (1.0, 2)));
        assert_eq!(cumulative.last(), Some(&(60.0, 2)));
    }

    #[test]
    fn one_in_which_nothing_is_recorded_has_no_memory_of_its_own_and_others_a_bound() {
        let distribution = Distribution::new(Scale::Seconds);
        assert!(distribution.read().histogram.is_none());
        assert_eq!(distribution.read().buckets(), Buckets::none(Scale::Seconds));
        (0..60).for_each(|n| distribution.record_value(1 << n));
        let size = distribution.read().histogram.unwrap().distinct_values() * size_of::<u64>();
        assert!(size <= 24 << 10, "{size}");
    }

    #[test]
    fn several_are_added() {
        let (one, other) = (Distribution::new(Scale::Count), Distribution::new(Scale::Count));
        [1, 5, 5].into_iter().for_each(|value| one.record_value(value));
        [5, 1000].into_iter().for_each(|value| other.record_value(value));
        let mut both = one.read().buckets();
        both.add(&other.read().buckets());
        assert_eq!((both.count(), both.sum(), both.counts[0], both.counts[3]), (5, 1016.0, 1, 3));
    }
}
