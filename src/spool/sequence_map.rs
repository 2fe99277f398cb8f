//! A map from message numbers, for a million messages: what lies together is kept together.
//!
//! Numbers are given out in order and most messages of a time go at about the same time, so the numbers in use are dense
//! in places. A page holds those of [`PAGE`] numbers in a row: a bit for each number, and the values of those that are there,
//! in order. That costs little more than the values; a balanced tree filled in order is half empty.
//!
//! Invariant: a page has as many values as bits, and at least one.

use std::collections::BTreeMap;
use std::ops::Index;

/// Numbers in a page: the bits of a word.
const PAGE: u64 = 64;

/// Values by number.
#[derive(Debug)]
pub struct SequenceMap<T> {
    pages: BTreeMap<u64, Page<T>>,
    len: usize,
    /// The page that was last added to: it may have room for more.
    growing: u64,
}

#[derive(Debug)]
struct Page<T> {
    present: u64,
    values: Vec<T>,
}

impl<T> Page<T> {
    /// How many values are in front of this number's.
    fn rank(&self, bit: u64) -> usize {
        (self.present & (bit - 1)).count_ones() as usize
    }
}

fn place(sequence: u64) -> (u64, u64) {
    (sequence / PAGE, 1 << (sequence % PAGE))
}

impl<T> Default for SequenceMap<T> {
    fn default() -> Self {
        SequenceMap { pages: BTreeMap::new(), len: 0, growing: 0 }
    }
}

impl<T> SequenceMap<T> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a number.
    pub fn get(&self, sequence: u64) -> Option<&T> {
        let (number, bit) = place(sequence);
        let page = self.pages.get(&number).filter(|page| page.present & bit != 0)?;
        Some(&page.values[page.rank(bit)])
    }

    /// The value of a number, to be changed.
    pub fn get_mut(&mut self, sequence: u64) -> Option<&mut T> {
        let (number, bit) = place(sequence);
        let page = self.pages.get_mut(&number).filter(|page| page.present & bit != 0)?;
        let rank = page.rank(bit);
        Some(&mut page.values[rank])
    }

    /// Is there a value of this number?
    pub fn contains(&self, sequence: u64) -> bool {
        self.get(sequence).is_some()
    }

    /// Sets the value of a number; returns the one it had.
    pub fn insert(&mut self, sequence: u64, value: T) -> Option<T> {
        let (number, bit) = place(sequence);
        if number != self.growing {
            // What a page that has been left behind reserved is given back.
            if let Some(left) = self.pages.get_mut(&self.growing) {
                left.values.shrink_to_fit();
            }
            self.growing = number;
        }
        let page = self.pages.entry(number).or_insert_with(|| Page { present: 0, values: Vec::new() });
        let rank = page.rank(bit);
        if page.present & bit != 0 {
            return Some(std::mem::replace(&mut page.values[rank], value));
        }
        page.present |= bit;
        page.values.insert(rank, value);
        self.len += 1;
        None
    }

    /// Removes the value of a number.
    pub fn remove(&mut self, sequence: u64) -> Option<T> {
        let (number, bit) = place(sequence);
        let page = self.pages.get_mut(&number).filter(|page| page.present & bit != 0)?;
        let value = page.values.remove(page.rank(bit));
        page.present &= !bit;
        self.len -= 1;
        if page.present == 0 {
            self.pages.remove(&number);
        } else if page.values.capacity() > 2 * page.values.len() {
            page.values.shrink_to_fit();
        }
        Some(value)
    }

    /// Numbers and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.pages.iter().flat_map(|(number, page)| numbers(*number, page.present).zip(&page.values))
    }

    /// Numbers and values to be changed, in order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        self.pages.iter_mut().flat_map(|(number, page)| numbers(*number, page.present).zip(&mut page.values))
    }

    /// Numbers, in order.
    pub fn keys(&self) -> impl Iterator<Item = u64> {
        self.iter().map(|(sequence, _)| sequence)
    }

    /// The first number.
    pub fn first(&self) -> Option<u64> {
        let (number, page) = self.pages.first_key_value()?;
        Some(number * PAGE + u64::from(page.present.trailing_zeros()))
    }

    /// Numbers from `start` up to `end`, without it, and their values, in order.
    pub fn range(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, &T)> {
        let last = end / PAGE;
        let pages = self.pages.range((start / PAGE).min(last)..=last);
        let values = pages.flat_map(|(number, page)| numbers(*number, page.present).zip(&page.values));
        values.filter(move |(sequence, _)| (start..end).contains(sequence))
    }
}

/// The numbers of a page whose bits are set, in order.
fn numbers(page: u64, mut present: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let bit = (present != 0).then(|| present.trailing_zeros())?;
        present &= present - 1;
        Some(page * PAGE + u64::from(bit))
    })
}

impl<T> Index<&u64> for SequenceMap<T> {
    type Output = T;

    fn index(&self, sequence: &u64) -> &T {
        self.get(*sequence).expect("the number has a value")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((any::<bool>(), 0_u64..400, any::<u8>()), 0..400)) {
            let (mut map, mut model) = (SequenceMap::default(), BTreeMap::new());
            for (is_insert, step, value) in steps {
                // Some at the end of what numbers there are.
                let sequence = if step >= 350 { u64::MAX - (step - 350) } else { step };
                match is_insert {
                    true => prop_assert_eq!(map.insert(sequence, value), model.insert(sequence, value)),
                    false => prop_assert_eq!(map.remove(sequence), model.remove(&sequence)),
                }
                prop_assert_eq!(map.len(), model.len());
                prop_assert_eq!(map.get(sequence), model.get(&sequence));
                prop_assert_eq!(map.first(), model.keys().next().copied());
                let range = map.range(step, step + 100).map(|(sequence, _)| sequence);
                prop_assert!(range.eq(model.range(step..step + 100).map(|(sequence, _)| *sequence)));
            }
            prop_assert!(map.iter().eq(model.iter().map(|(sequence, value)| (*sequence, value))));
            let is_sound =
                |page: &Page<u8>| page.present.count_ones() as usize == page.values.len() && page.present != 0;
            prop_assert!(map.pages.values().all(is_sound));
        }
    }

    #[test]
    fn filled_in_order_it_costs_little_more_than_its_values() {
        let mut map = SequenceMap::default();
        for sequence in 0..100_000 {
            assert_eq!(map.insert(sequence * 2, [0_u64; 10]), None);
        }
        let reserved: usize = map.pages.values().map(|page| page.values.capacity()).sum();
        assert!(reserved <= 100_000 + PAGE as usize, "{reserved}");
    }
}
