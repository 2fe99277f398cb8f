//! Sets of cores, as the kernel writes them.

use std::collections::BTreeSet;
use std::fmt;

/// Some cores, by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cores(pub BTreeSet<usize>);

impl Cores {
    /// A list as `0-3,8`. None: it is no list.
    pub fn from_list(text: &str) -> Option<Self> {
        let mut cores = BTreeSet::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            // Four thousand cores and no more: what is read is not trusted to be small.
            cores.extend((first..=last).take_while(|core| *core <= crate::limits::CORE_MAX));
        }
        Some(Cores(cores))
    }

    /// A mask as `00000000,0000000f`, the highest cores first. None: it is no mask.
    pub fn from_mask(text: &str) -> Option<Self> {
        let mut cores = BTreeSet::new();
        for (word, digits) in text.trim().rsplit(',').enumerate() {
            let mask = u32::from_str_radix(digits, 16).ok()?;
            cores.extend((0..32).filter(|bit| mask >> bit & 1 == 1).map(|bit| word * 32 + bit));
        }
        Some(Cores(cores))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that are in this and not in `other`.
    pub fn without(&self, other: &Cores) -> Cores {
        Cores(self.0.difference(&other.0).copied().collect())
    }

    /// Those that are in both.
    pub fn and(&self, other: &Cores) -> Cores {
        Cores(self.0.intersection(&other.0).copied().collect())
    }

    pub fn add(&mut self, other: &Cores) {
        self.0.extend(&other.0);
    }
}

impl FromIterator<usize> for Cores {
    fn from_iter<I: IntoIterator<Item = usize>>(cores: I) -> Self {
        Cores(cores.into_iter().collect())
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for core in self.0.iter().copied() {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == core => *last = core,
                _ => runs.push((core, core)),
            }
        }
        for (n, (first, last)) in runs.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        if runs.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_read_as_the_kernel_writes_them() {
        let table = [
            ("0", Some("0")),
            ("0-3,8\n", Some("0-3,8")),
            ("0,1,2,4", Some("0-2,4")),
            ("", Some("none")),
            ("0-", None),
            ("(null)", None),
        ];
        for (text, cores) in table {
            assert_eq!(Cores::from_list(text).map(|c| c.to_string()).as_deref(), cores, "{text:?}");
        }
        let table = [
            ("3", Some("0-1")),
            ("00000000,0000000f", Some("0-3")),
            ("80000000,00000001,00000000", Some("32,95")),
            ("0", Some("none")),
            ("x", None),
        ];
        for (text, cores) in table {
            assert_eq!(Cores::from_mask(text).map(|c| c.to_string()).as_deref(), cores, "{text:?}");
        }
    }

    #[test]
    fn a_huge_list_is_cut() {
        assert_eq!(Cores::from_list("0-18446744073709551615").unwrap().0.len(), crate::limits::CORE_MAX + 1);
    }
}
