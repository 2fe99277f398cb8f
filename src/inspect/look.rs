//! A look at a log that may be in use: what is certain of it.
//!
//! While a log is read its gateway appends to it, uses its oldest files again, and removes some. So one look may find octets
//! in front of what was written after they were read, or miss the outcome of a message whose pieces it finds gone. Neither is damage,
//! and neither is found twice: what was being written at the end of a look is there in the next, and a message that was
//! done then is not in the next at all. Damage stays. Therefore
//!
//! - a log without damage needs one look;
//! - damage counts when each look has found it: two, if no file with a life had another one, or was gone, between the beginning of
//!   the first and the end of the second; else three. (Two could agree on a falsehood only where the files of a message were used
//!   again during each, between the reading of their headers and of their records; which is possible once for one message.)
//! - a look is settled when no file had another life at its end than at its beginning: then every message that was not done
//!   all the time is in it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::shard::directory::{self, Access, DirectoryError, lives};
use crate::spool::Slot;
use crate::spool::recovery::{Depth, Finding, Recovered, Seen};

const LOOKS_MAX: u32 = 3;

/// What was found.
pub struct Look<T> {
    /// What the last look found. Of its findings those that are damage are certain.
    pub recovered: Recovered,
    /// What the last look was told of records.
    pub tally: T,
    /// How often it was looked.
    pub count: u32,
    /// No file was used again during the last look.
    pub is_settled: bool,
}

impl<T> Look<T> {
    /// Acknowledged mail may be lost.
    pub fn has_damage(&self) -> bool {
        self.recovered.findings.iter().any(Finding::is_damage)
    }
}

/// Looks at the log in this folder. `see` is told of each record, with a tally that is new for each look.
pub fn look<T: Default>(
    log: &Path,
    depth: Depth,
    mut see: impl FnMut(&mut T, Seen),
) -> Result<Look<T>, DirectoryError> {
    let first = lives(log)?;
    let mut before = first.clone();
    let mut damage: Option<Vec<Finding>> = None;
    let mut count = 0;
    loop {
        let mut tally = T::default();
        let mut recovered = directory::recover(log, depth, Access::Look, |seen| see(&mut tally, seen))?;
        count += 1;
        let after = lives(log)?;
        let (found, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut recovered.findings).into_iter().partition(Finding::is_damage);
        let certain = match &damage {
            None => found,
            Some(damage) => common(damage, &found),
        };
        let is_settled = is_kept(&before, &after);
        let is_certain = certain.is_empty() || (count > 1 && is_kept(&first, &after));
        if is_settled && is_certain || count == LOOKS_MAX {
            recovered.findings = others;
            recovered.findings.extend(certain);
            return Ok(Look { recovered, tally, count, is_settled });
        }
        (damage, before) = (Some(certain), after);
    }
}

/// Every file that had a life has it still. Files that are new are no matter: the log goes on in them.
fn is_kept(before: &BTreeMap<Slot, u64>, after: &BTreeMap<Slot, u64>) -> bool {
    before.iter().all(|(slot, life)| after.get(slot) == Some(life))
}

/// What two looks have both found.
fn common(before: &[Finding], after: &[Finding]) -> Vec<Finding> {
    let shared = |after: &Finding, before: &Finding| match (after, before) {
        (Finding::Corrupt { sequences: a }, Finding::Corrupt { sequences: b }) => {
            let sequences = a.start.max(b.start)..a.end.min(b.end);
            (!sequences.is_empty()).then_some(Finding::Corrupt { sequences })
        }
        _ => (after == before).then(|| after.clone()),
    };
    let after = after.iter().flat_map(|after| before.iter().filter_map(move |before| shared(after, before)));
    after.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_what_both_looks_found() {
        let corrupt = |start, end| Finding::Corrupt { sequences: start..end };
        let missing = |sequence| Finding::PieceMissing { sequence, was_durable: true };
        let table = [
            (vec![], vec![corrupt(1, 2)], vec![]),
            (vec![corrupt(1, 5)], vec![corrupt(5, 9)], vec![]),
            (vec![corrupt(1, 5), corrupt(7, 9)], vec![corrupt(3, 8)], vec![corrupt(3, 5), corrupt(7, 8)]),
            (vec![missing(3), missing(4)], vec![missing(4), corrupt(3, 4)], vec![missing(4)]),
        ];
        for (before, after, expected) in table {
            assert_eq!(common(&before, &after), expected, "{before:?} {after:?}");
        }
    }

    #[test]
    fn a_file_with_another_life_or_gone_is_noticed_and_a_new_one_is_no_matter() {
        let lives = |lives: &[(u32, u64)]| lives.iter().map(|(slot, life)| (Slot(*slot), *life)).collect();
        let before: BTreeMap<_, _> = lives(&[(1, 7), (2, 8)]);
        for (after, expected) in [
            (&[(1, 7), (2, 8)][..], true),
            (&[(1, 7), (2, 8), (3, 9)], true),
            (&[(1, 7)], false),
            (&[(1, 9), (2, 8)], false),
        ] {
            assert_eq!(is_kept(&before, &lives(after)), expected, "{after:?}");
        }
    }
}
