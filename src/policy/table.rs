//! A bounded table that all shards share: what is remembered of addresses, senders and lookups, each for its time.
//!
//! Invariants:
//! - one key's value is changed by one caller at a time: what is counted here is exact across shards;
//! - never more entries than permitted (rounded up to a multiple of the stripes): a new one beyond takes the place of one that has expired, or
//!   else of that among a few taken at random that expires first;
//! - an expired value is never given out.
//!
//! Each change also looks at a few entries in turn and drops them if they have expired, so that what nobody asks for any more goes away without
//! anybody's having to sweep.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use indexmap::IndexMap;

/// Callers are few (shards and lookups), and each holds a stripe for less than a microsecond.
const STRIPES_MAX: usize = 64;
/// Entries among which the one that has to go is chosen.
const CANDIDATES: usize = 8;
/// Entries looked at with each change.
const SWEPT: usize = 4;

/// What is kept for a key, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept<V> {
    /// What is kept.
    pub value: V,
    /// Then it has expired.
    pub until: Instant,
}

struct Stripe<K, V> {
    /// Never `None` but while it is being changed.
    entries: IndexMap<K, Option<Kept<V>>, RandomState>,
    /// Where the sweep goes on, and a source of places that nobody can foresee.
    cursor: usize,
    random: u64,
}

/// See the module.
pub struct Table<K, V> {
    stripes: Box<[Mutex<Stripe<K, V>>]>,
    stripe_max: usize,
    hasher: RandomState,
}

impl<K: Hash + Eq, V> Table<K, V> {
    /// For up to `entries_max` keys; at least one.
    pub fn new(entries_max: usize) -> Self {
        let entries_max = entries_max.max(1);
        let count = (entries_max / 64).clamp(1, STRIPES_MAX);
        let hasher = RandomState::new();
        let stripe = |n: usize| {
            Mutex::new(Stripe {
                entries: IndexMap::with_hasher(hasher.clone()),
                cursor: 0,
                random: hasher.hash_one(n) | 1,
            })
        };
        Table {
            stripes: (0..count).map(stripe).collect(),
            stripe_max: entries_max.div_ceil(count),
            hasher: hasher.clone(),
        }
    }

    /// Gives `change` what is kept for `key`, and keeps what it leaves there. Nobody else sees or changes it meanwhile; `change` must
    /// be quick and must not come back to this table.
    pub fn update<R>(&self, key: K, now: Instant, change: impl FnOnce(&mut Option<Kept<V>>) -> R) -> R {
        let mut stripe = self.stripe(&key);
        stripe.sweep(now);
        let Some((index, _, kept)) = stripe.entries.get_full_mut(&key) else {
            let mut kept = None;
            let result = change(&mut kept);
            if kept.as_ref().is_some_and(|kept| now < kept.until) {
                if stripe.entries.len() >= self.stripe_max {
                    stripe.make_room();
                }
                stripe.entries.insert(key, kept);
            }
            return result;
        };
        if has_expired(kept, now) {
            *kept = None;
        }
        let result = change(kept);
        if has_expired(kept, now) {
            stripe.entries.swap_remove_index(index);
        }
        result
    }

    /// What is kept for `key`.
    pub fn get(&self, key: &K, now: Instant) -> Option<V>
    where
        V: Clone,
    {
        let stripe = self.stripe(key);
        let kept = stripe.entries.get(key)?.as_ref()?;
        (now < kept.until).then(|| kept.value.clone())
    }

    /// Keeps `value` for `key`, in place of what was kept.
    pub fn insert(&self, key: K, value: V, until: Instant, now: Instant) {
        self.update(key, now, |kept| *kept = Some(Kept { value, until }));
    }

    /// Keeps nothing for `key` any more.
    pub fn remove(&self, key: &K) {
        self.stripe(key).entries.swap_remove(key);
    }

    /// Entries now, some of which may have expired.
    pub fn len(&self) -> usize {
        self.stripes.iter().map(|stripe| lock(stripe).entries.len()).sum()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shows `look` every entry that has not expired, stripe by stripe: what changes meanwhile may be seen or not.
    pub fn for_each(&self, now: Instant, mut look: impl FnMut(&K, &Kept<V>)) {
        for stripe in &self.stripes {
            let stripe = lock(stripe);
            for (key, kept) in &stripe.entries {
                if let Some(kept) = kept.as_ref().filter(|kept| now < kept.until) {
                    look(key, kept);
                }
            }
        }
    }

    fn stripe(&self, key: &K) -> MutexGuard<'_, Stripe<K, V>> {
        // The low bits choose the place within a stripe's own table.
        let hash = self.hasher.hash_one(key) >> 32;
        lock(&self.stripes[hash as usize % self.stripes.len()])
    }
}

fn has_expired<V>(kept: &Option<Kept<V>>, now: Instant) -> bool {
    kept.as_ref().is_none_or(|kept| now >= kept.until)
}

fn lock<T>(stripe: &Mutex<T>) -> MutexGuard<'_, T> {
    stripe.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Hash + Eq, V> Stripe<K, V> {
    fn sweep(&mut self, now: Instant) {
        for _ in 0..SWEPT.min(self.entries.len()) {
            if self.cursor >= self.entries.len() {
                self.cursor = 0;
            }
            match self.entries.get_index(self.cursor) {
                Some((_, kept)) if has_expired(kept, now) => {
                    self.entries.swap_remove_index(self.cursor);
                }
                _ => self.cursor += 1,
            }
        }
    }

    fn make_room(&mut self) {
        let places: [usize; CANDIDATES] = std::array::from_fn(|_| self.random_place());
        let expires = |place: &usize| self.entries[*place].as_ref().map(|kept| kept.until);
        let first = places.into_iter().min_by_key(expires).expect("there are candidates");
        self.entries.swap_remove_index(first);
    }

    /// Xorshift: nobody outside sees what it gives, so it need not be better.
    fn random_place(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % self.entries.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(100);

    fn count(table: &Table<u32, u32>, key: u32, now: Instant) -> u32 {
        table.update(key, now, |kept| {
            let kept = kept.get_or_insert(Kept { value: 0, until: now + LONG });
            kept.value += 1;
            kept.value
        })
    }

    #[test]
    fn counts_are_exact_whoever_counts() {
        let table = Arc::new(Table::new(1000));
        let now = Instant::now();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let table = table.clone();
                std::thread::spawn(move || {
                    for n in 0..1000 {
                        count(&table, n % 10, now);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        for key in 0..10 {
            assert_eq!(table.get(&key, now), Some(400));
        }
        assert_eq!(table.len(), 10);
    }

    #[test]
    fn the_number_of_entries_is_bounded_under_a_million_keys() {
        for (entries_max, bound) in [(1, 1), (100, 100), (10_000, 10_048)] {
            let table = Table::new(entries_max);
            let now = Instant::now();
            for key in 0..1_000_000 {
                count(&table, key, now);
            }
            assert!(table.len() <= bound && table.len() >= entries_max / 2, "{entries_max}: {}", table.len());
        }
    }

    #[test]
    fn what_has_expired_is_neither_given_nor_kept() {
        let table = Table::new(1000);
        let now = Instant::now();
        for key in 0..500 {
            count(&table, key, now);
        }
        let later = now + LONG;
        assert_eq!(table.get(&7, later), None);
        assert_eq!(count(&table, 7, later), 1, "it begins anew");
        // Nobody asks for the others again.
        for key in 1000..1700 {
            count(&table, key, later);
        }
        assert!(table.len() <= 705, "{}", table.len());
    }

    #[test]
    fn when_it_is_full_what_expires_first_goes() {
        let table = Table::new(60);
        let now = Instant::now();
        for key in 0..60u32 {
            table.insert(key, key, now + LONG * (key + 1), now);
        }
        for key in 100..130 {
            table.insert(key, key, now + LONG * 100, now);
        }
        let kept = |range: std::ops::Range<u32>| range.filter(|key| table.get(key, now).is_some()).count();
        assert!(kept(30..60) > kept(0..30) + 10, "{} and {}", kept(30..60), kept(0..30));
        assert_eq!(table.len(), 60);
        table.remove(&129);
        assert_eq!(table.get(&129, now), None);
    }

    #[test]
    fn what_is_left_expired_or_taken_out_is_not_kept() {
        let table: Table<u32, u32> = Table::new(10);
        let now = Instant::now();
        table.insert(1, 1, now + LONG, now);
        table.update(1, now, |kept| *kept = None);
        table.insert(2, 2, now, now);
        assert!(table.is_empty());
    }
}
