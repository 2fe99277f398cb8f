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
    use std::collections::BTreeSet;
    use std::fs;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::mail::{Arrival, Body, Envelope, ForwardPath, Protocol, ReversePath};
    use crate::spool::Lane;
    use crate::spool::format::{Made, RecipientOutcome};
    use crate::spool::memory_disk::MemoryDisk;
    use crate::spool::{Incoming, Receiving, Spool, SpoolConfig};

    const CONFIG: SpoolConfig =
        SpoolConfig { segment_size: 64 << 10, sync: true, page_size: 16 << 10, pages_max: 4 };

    /// A log with several segments of messages that wait; and later, when older ones are done and their files were used again.
    fn before_and_after() -> [MemoryDisk; 2] {
        let (mut disk, mut now, mut life) = (MemoryDisk::default(), Instant::now(), 0);
        let entropy = move || {
            life += 1;
            life
        };
        let recovered = Recovered { log: 1, ..Recovered::default() };
        let make_page = Box::new(|| vec![0; CONFIG.page_size]);
        let mut spool = Spool::new(CONFIG, recovered, make_page, Box::new(entropy), (now, 0));
        disk.settle(&mut spool, now);
        let envelope = Envelope {
            reverse_path: ReversePath::Null,
            forward_paths: vec![ForwardPath::Postmaster],
            body: Body::SevenBit,
            smtputf8: false,
            require_tls: false,
            dsn: None,
            via: None,
        };
        let peer = "127.0.0.1:25".parse().unwrap();
        let arrival = Arrival {
            peer,
            hello: "c.example".into(),
            protocol: Protocol::Esmtp,
            tls: None,
            authenticated: None,
            client_name: None,
            tags: Vec::new(),
            unix_time: 1,
            provenance: Default::default(),
        };
        let done = RecipientOutcome {
            index: 0,
            is_done: true,
            is_given_up: false,
            attempts: 1,
            next_attempt: 0,
            reason: "".into(),
        };
        let mut waiting = Vec::new();
        let mut before = None;
        for n in 0..60 {
            let message = Incoming { envelope: &envelope, arrival: &arrival, tail: &[b'x'; 4096] };
            spool.append_message(&mut Receiving::default(), message, |_| Vec::new()).unwrap();
            disk.settle(&mut spool, now);
            waiting.extend(std::iter::from_fn(|| spool.poll_stored()).map(|(sequence, _)| sequence));
            disk.settle(&mut spool, now);
            if n < 40 {
                before = Some(disk.clone());
                continue;
            }
            let now_done = if n == 40 { waiting.drain(..25).collect() } else { waiting.split_off(16) };
            for sequence in now_done {
                spool.hand_off(sequence, Lane::UNROUTED);
                spool.handle_outcome(
                    sequence,
                    Lane::UNROUTED,
                    Made::default(),
                    std::slice::from_ref(&done),
                    (now, 0),
                );
            }
            now += Duration::from_secs(1);
            disk.settle(&mut spool, now);
        }
        [before.unwrap(), disk]
    }

    fn write(folder: &Path, disk: &MemoryDisk) {
        let there = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        there.for_each(|path| fs::remove_file(path).unwrap());
        for (slot, octets) in &disk.files {
            fs::write(folder.join(slot.file_name()), octets).unwrap();
        }
    }

    #[test]
    fn files_that_are_used_again_while_they_are_read_are_not_damage() {
        let folder = tempfile::tempdir().unwrap();
        let [before, after] = before_and_after();
        write(folder.path(), &before);
        // The gateway goes on between the reading of the heads and of the second segment.
        let mut is_first = true;
        let mut go_on = || {
            if std::mem::take(&mut is_first) {
                write(folder.path(), &after);
            }
        };
        let one =
            directory::recover(folder.path(), Depth::Whole, Access::Look, |_| go_on()).unwrap().findings;
        assert!(one.iter().any(Finding::is_damage), "one look finds damage where there is none: {one:?}");
        write(folder.path(), &before);
        is_first = true;
        let mut go_on = || {
            if std::mem::take(&mut is_first) {
                write(folder.path(), &after);
            }
        };
        let look = look::<()>(folder.path(), Depth::Whole, |(), _| go_on()).unwrap();
        assert_eq!((look.count, look.is_settled), (2, true));
        assert!(!look.has_damage());
        assert_eq!(look.recovered.messages.len(), after.recover(Depth::Whole).messages.len());
    }

    #[test]
    fn damage_that_stays_is_found_in_two_looks_and_none_in_one() {
        let folder = tempfile::tempdir().unwrap();
        let [mut disk, _] = before_and_after();
        write(folder.path(), &disk);
        assert_eq!(look::<()>(folder.path(), Depth::Whole, |(), _| {}).unwrap().count, 1);
        let message = disk.recover(Depth::Whole).messages.iter().nth(1).unwrap().1.location;
        let slot = *disk.files.keys().next().unwrap();
        disk.files.get_mut(&slot).unwrap()[message.offset as usize + 1000] ^= 1;
        write(folder.path(), &disk);
        let mut seen = BTreeSet::new();
        let look = look::<()>(folder.path(), Depth::Whole, |(), record| {
            if let Seen::Record { message: Some(message), .. } = record {
                seen.insert(message);
            }
        });
        let look = look.unwrap();
        assert!(look.has_damage() && look.count == 2 && look.is_settled);
        assert_eq!(look.recovered.messages.keys().collect::<BTreeSet<_>>(), seen);
        assert_eq!(seen.len(), 39);
    }

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
