//! Trouble the spool must get over: media that fail for good, records of the largest size, disks that stay full, files of another size.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use incoming::spool::format::{Made, RecipientOutcome};
use incoming::spool::memory_disk::{mail, recover};
use incoming::spool::recovery::{Depth, Recovered};
use incoming::spool::{
    AppendError, Completion, Incoming, Io, IoFailure, Lane, Receiving, RecordPlace, Slot, Spool, SpoolConfig,
};

/// As a shard has it.
const CONFIG: SpoolConfig =
    SpoolConfig { segment_size: 64 << 20, sync: true, page_size: 256 << 10, pages_max: 20 };
const SMALL: SpoolConfig =
    SpoolConfig { segment_size: 256 << 10, sync: true, page_size: 16 << 10, pages_max: 8 };

type Fails = fn(&Io<Vec<u8>>) -> Option<IoFailure>;

struct Lab {
    spool: Spool<Vec<u8>>,
    files: BTreeMap<Slot, Vec<u8>>,
    now: Instant,
    stored: Vec<(u64, bool)>,
    prepared_new: Vec<bool>,
    keeps_octets: bool,
    /// Reads wait for [`Lab::answer_reads`].
    holds_reads: bool,
    held: Vec<Vec<RecordPlace>>,
}

fn nothing(_: &Io<Vec<u8>>) -> Option<IoFailure> {
    None
}

impl Lab {
    fn new(config: SpoolConfig, recovered: Recovered, files: BTreeMap<Slot, Vec<u8>>) -> Lab {
        let now = Instant::now();
        let mut life = 77;
        let entropy = Box::new(move || {
            life += 1;
            life
        });
        let make_page = Box::new(move || vec![0; config.page_size]);
        let spool = Spool::new(config, recovered, make_page, entropy, (now, 0));
        Lab {
            spool,
            files,
            now,
            stored: vec![],
            prepared_new: vec![],
            keeps_octets: config.segment_size <= 1 << 20,
            holds_reads: false,
            held: vec![],
        }
    }

    fn fresh(config: SpoolConfig) -> Lab {
        let recovered = Recovered { log: 1, next_epoch: 1, next_sequence: 1, ..Default::default() };
        let mut lab = Lab::new(config, recovered, BTreeMap::new());
        lab.run(nothing);
        lab
    }

    /// Performs everything that is wanted, until nothing is.
    fn run(&mut self, fails: Fails) {
        loop {
            while let Some(stored) = self.spool.poll_stored() {
                self.stored.push(stored);
            }
            let Some(io) = self.spool.poll_io(self.now) else { return };
            let result = fails(&io).map_or(Ok(()), Err);
            let completion = match io {
                Io::Prepare { slot, is_new, size, header } => {
                    self.prepared_new.push(is_new);
                    if result.is_ok() && self.keeps_octets {
                        let file = self.files.entry(slot).or_default();
                        if is_new {
                            *file = vec![0; size as usize];
                        }
                        file[..header.len()].copy_from_slice(&header);
                    }
                    Completion::Prepared { slot, result }
                }
                Io::Write { slot, offset, size, page } => {
                    if self.keeps_octets
                        && let Some(file) = self.files.get_mut(&slot)
                    {
                        let end = offset as usize + size as usize;
                        if file.len() < end {
                            file.resize(end, 0);
                        }
                        file[offset as usize..end].copy_from_slice(&page[..size as usize]);
                    }
                    Completion::Written { slot, offset, result }
                }
                Io::Sync { slot } => Completion::Synced { slot, result },
                Io::Read { places } if self.holds_reads => {
                    self.held.push(places);
                    continue;
                }
                Io::Read { places } => Completion::Read { records: self.read(&places) },
                Io::Remove { slot } => {
                    if result.is_ok() {
                        self.files.remove(&slot);
                    }
                    Completion::Removed { slot, result }
                }
            };
            self.spool.handle_io(completion, self.now);
        }
    }

    fn read(&self, places: &[RecordPlace]) -> Vec<Option<Vec<u8>>> {
        let read = |place: &RecordPlace| {
            let octets = self.files.get(&place.slot)?.get(place.offset as usize..)?;
            octets.get(..place.size as usize).map(<[u8]>::to_vec)
        };
        places.iter().map(read).collect()
    }

    /// Reads that were held back are answered, and no more are.
    fn answer_reads(&mut self) {
        self.holds_reads = false;
        for places in std::mem::take(&mut self.held) {
            let records = self.read(&places);
            self.spool.handle_io(Completion::Read { records }, self.now);
        }
        self.run(nothing);
    }

    fn deliver(&mut self, sequence: u64) {
        self.spool.hand_off(sequence, Lane::UNROUTED);
        let done = RecipientOutcome {
            index: 0,
            is_done: true,
            is_given_up: false,
            attempts: 1,
            next_attempt: 0,
            reason: "".into(),
        };
        self.spool.handle_outcome(sequence, Lane::UNROUTED, Made::default(), &[done], (self.now, 0));
    }

    fn append(
        &mut self,
        receiving: &mut Receiving,
        recipients: usize,
        tail: &[u8],
    ) -> Result<u64, AppendError> {
        let (envelope, arrival) = mail(recipients);
        let message = Incoming { envelope: &envelope, arrival: &arrival, tail };
        self.spool
            .append_message(receiving, message, |_| b"Received: x\r\n".to_vec())
            .map(|(id, _)| id.sequence)
    }

    fn recover(&self) -> Recovered {
        recover(&self.files, Depth::Whole)
    }
}

fn deferred(index: u32, reason: usize, next_attempt: u64) -> RecipientOutcome {
    RecipientOutcome {
        index,
        is_done: false,
        is_given_up: false,
        attempts: 1,
        next_attempt,
        reason: "x".repeat(reason).into(),
    }
}

fn syncs_fail(io: &Io<Vec<u8>>) -> Option<IoFailure> {
    matches!(io, Io::Sync { .. }).then_some(IoFailure::Failed)
}

fn prepares_find_no_space(io: &Io<Vec<u8>>) -> Option<IoFailure> {
    matches!(io, Io::Prepare { .. }).then_some(IoFailure::NoSpace)
}

fn prepares_fail(io: &Io<Vec<u8>>) -> Option<IoFailure> {
    matches!(io, Io::Prepare { .. }).then_some(IoFailure::Failed)
}

fn syncs_and_removals_fail(io: &Io<Vec<u8>>) -> Option<IoFailure> {
    matches!(io, Io::Sync { .. } | Io::Remove { .. }).then_some(IoFailure::Failed)
}

fn removals_fail(io: &Io<Vec<u8>>) -> Option<IoFailure> {
    matches!(io, Io::Remove { .. }).then_some(IoFailure::Failed)
}

/// A shard over its content budget has its sessions hand over whatever each receive brought: `hand_over_early`.
#[test]
fn a_message_of_many_small_pieces_is_stored_or_refused_not_waited_for_for_ever() {
    let mut lab = Lab::fresh(CONFIG);
    let mut receiving = Receiving::default();
    for i in 0..340_000 {
        let mut appended = lab.spool.append_piece(&mut receiving, b"x");
        while appended == Err(AppendError::Busy) {
            lab.run(nothing);
            appended = lab.spool.append_piece(&mut receiving, b"x");
        }
        // Refusing is as good as storing.
        if appended.is_err() {
            return;
        }
        if i % 10_000 == 0 {
            lab.run(nothing);
        }
    }
    let mut appended = lab.append(&mut receiving, 1, b"");
    for _ in 0..100 {
        if appended != Err(AppendError::Busy) {
            return;
        }
        lab.run(nothing);
        lab.now += Duration::from_secs(1);
        appended = lab.append(&mut receiving, 1, b"");
    }
    panic!("all I/O is done, and the session is still told to wait");
}

#[test]
fn a_message_of_very_many_small_pieces_does_not_end_the_process() {
    let mut lab = Lab::fresh(CONFIG);
    let mut receiving = Receiving::default();
    for _ in 0..4_300_000 {
        let mut appended = lab.spool.append_piece(&mut receiving, b"x");
        while appended == Err(AppendError::Busy) {
            lab.run(nothing);
            appended = lab.spool.append_piece(&mut receiving, b"x");
        }
        if appended.is_err() {
            return;
        }
    }
    let _ = lab.append(&mut receiving, 1, b"");
}

/// `smtp.recipients_max` may be 10,000 and a reason 1,024 octets.
#[test]
fn outcomes_of_any_permitted_size_are_recorded() {
    let mut lab = Lab::fresh(CONFIG);
    let sequence = lab.append(&mut Receiving::default(), 10_000, b"x").unwrap();
    lab.run(nothing);
    assert_eq!(lab.stored, [(sequence, true)]);
    lab.spool.hand_off(sequence, Lane::UNROUTED);
    let outcomes: Vec<_> = (0..10_000).map(|index| deferred(index, 600, 60)).collect();
    lab.spool.handle_outcome(sequence, Lane::UNROUTED, Made::default(), &outcomes, (lab.now, 0));
    for _ in 0..100 {
        lab.now += Duration::from_millis(30);
        lab.spool.finish(lab.now);
        lab.run(nothing);
    }
    assert!(lab.spool.is_idle(), "all I/O succeeds, and the outcomes are never written");
}

/// Preparing fails for a while (no descriptors, a bad directory block); deliveries of what is there go on.
#[test]
fn outcomes_that_gathered_while_no_segment_could_be_prepared_are_recorded_when_one_can() {
    let mut lab = Lab::fresh(CONFIG);
    let mut sequences = Vec::new();
    for _ in 0..120 {
        sequences.push(lab.append(&mut Receiving::default(), 1000, b"x").unwrap());
        lab.run(prepares_fail);
    }
    loop {
        match lab.append(&mut Receiving::default(), 1, &[b'x'; 60_000]) {
            Err(AppendError::Failed) => break,
            _ => lab.run(prepares_fail),
        }
    }
    for _ in 0..20 {
        // What is left of the segment goes to outcomes.
        for sequence in sequences.iter().copied() {
            let Some(entry) = lab.spool.entry(sequence) else { continue };
            let _ = entry;
            lab.spool.next_of_backlog(Lane::UNROUTED, lab.now);
            lab.spool.hand_off(sequence, Lane::UNROUTED);
            let outcomes: Vec<_> = (0..1000).map(|index| deferred(index, 30, 0)).collect();
            lab.spool.handle_outcome(sequence, Lane::UNROUTED, Made::default(), &outcomes, (lab.now, 0));
            lab.now += Duration::from_millis(30);
            lab.run(prepares_fail);
        }
    }
    for _ in 0..100 {
        lab.now += Duration::from_secs(2);
        lab.spool.finish(lab.now);
        lab.run(nothing);
    }
    assert!(lab.spool.is_idle(), "all I/O succeeds again, and the outcomes are never written");
}

/// The driver sets a timer for `poll_timeout`; if that stays in the past it runs in a circle.
#[test]
fn a_due_message_that_the_full_channel_does_not_take_does_not_spin_the_driver() {
    let mut lab = Lab::fresh(SMALL);
    let sequence = lab.append(&mut Receiving::default(), 1, b"x").unwrap();
    lab.run(nothing);
    lab.spool.hand_off(sequence, Lane::UNROUTED);
    lab.spool.handle_outcome(sequence, Lane::UNROUTED, Made::default(), &[deferred(0, 10, 60)], (lab.now, 0));
    lab.now += Duration::from_secs(61);
    // What Disk::perform_all does; Handoff::take_backlog does not ask while the channel is full.
    lab.run(nothing);
    assert!(lab.spool.poll_timeout().is_none_or(|due| due > lab.now));
}

#[test]
fn outcomes_on_a_failed_medium_do_not_spin_the_driver() {
    let mut lab = Lab::fresh(SMALL);
    let sequence = lab.append(&mut Receiving::default(), 1, b"x").unwrap();
    lab.run(nothing);
    lab.spool.hand_off(sequence, Lane::UNROUTED);
    for _ in 0..2 {
        let _ = lab.append(&mut Receiving::default(), 1, b"y");
        lab.run(syncs_fail);
    }
    assert!(!lab.spool.is_accepting());
    lab.spool.handle_outcome(
        sequence,
        Lane::UNROUTED,
        Made::default(),
        &[deferred(0, 10, 3600)],
        (lab.now, 0),
    );
    lab.now += Duration::from_secs(1);
    lab.run(syncs_fail);
    assert!(lab.spool.poll_timeout().is_none_or(|due| due > lab.now));
}

/// The peer was told 451, sends it again, and both are delivered; or gave up, and it is delivered all the same.
#[test]
fn a_message_that_was_refused_because_of_a_failed_sync_is_not_delivered_after_a_clean_restart() {
    let mut lab = Lab::fresh(SMALL);
    let first = lab.append(&mut Receiving::default(), 1, b"x").unwrap();
    lab.run(nothing);
    let second = lab.append(&mut Receiving::default(), 1, b"y").unwrap();
    lab.run(syncs_fail);
    assert_eq!(lab.stored, [(first, true), (second, false)]);
    for _ in 0..100 {
        lab.now += Duration::from_millis(20);
        lab.spool.finish(lab.now);
        lab.run(nothing);
    }
    assert!(lab.spool.is_idle());
    let kept: Vec<u64> = lab.recover().messages.keys().collect();
    assert_eq!(kept, [first]);
}

#[test]
fn a_segment_of_another_size_is_not_used_again_as_one_of_this_size() {
    let mut lab = Lab::fresh(SMALL);
    let sequence = lab.append(&mut Receiving::default(), 1, b"x").unwrap();
    lab.run(nothing);
    lab.spool.hand_off(sequence, Lane::UNROUTED);
    let done = RecipientOutcome { is_done: true, ..deferred(0, 0, 0) };
    lab.spool.handle_outcome(sequence, Lane::UNROUTED, Made::default(), &[done], (lab.now, 0));
    lab.now += Duration::from_secs(1);
    lab.run(nothing);
    let larger = SpoolConfig { segment_size: 2 * SMALL.segment_size, ..SMALL };
    let recovered = lab.recover();
    assert!(recovered.messages.is_empty());
    let mut lab = Lab::new(larger, recovered, lab.files);
    lab.run(nothing);
    assert_eq!(
        lab.prepared_new,
        [true],
        "a smaller file would grow while it is written: no space is then a failed write"
    );
}

#[test]
fn files_whose_preparation_was_cut_off_are_removed() {
    let mut recovered = Recovered { log: 1, next_epoch: 1, next_sequence: 1, ..Default::default() };
    (recovered.unfinished, recovered.next_slot) = (vec![Slot(0)], 1);
    let mut lab = Lab::new(SMALL, recovered, BTreeMap::from([(Slot(0), vec![0; 4096])]));
    lab.run(nothing);
    assert!(!lab.files.contains_key(&Slot(0)), "it holds a segment's space for ever");
}

#[test]
fn where_a_removal_fails_for_ever_sessions_are_told_so() {
    let mut lab = Lab::fresh(SMALL);
    // A poisoned segment that nobody needs is removed before another is prepared.
    let _ = lab.append(&mut Receiving::default(), 1, b"x");
    lab.run(syncs_and_removals_fail);
    for _ in 0..100_000 {
        lab.now += Duration::from_millis(20);
        match lab.append(&mut Receiving::default(), 1, &[b'x'; 1000]) {
            Err(AppendError::Busy) => {}
            Ok(_) => {
                lab.run(removals_fail);
                continue;
            }
            Err(_) => return,
        }
        for _ in 0..1000 {
            lab.now += Duration::from_secs(1);
            lab.run(removals_fail);
        }
        let appended = lab.append(&mut Receiving::default(), 1, &[b'x'; 1000]);
        assert_ne!(appended, Err(AppendError::Busy), "a quarter of an hour later");
        return;
    }
}

#[test]
fn the_room_kept_for_outcomes_is_kept_while_a_full_disk_is_tried_again() {
    let mut lab = Lab::fresh(SMALL);
    // The first segment and the spare are there; then the disk is full.
    let mut last = Ok(0);
    while last.is_ok() {
        last = lab.append(&mut Receiving::default(), 1, &[b'x'; 1000]);
        lab.run(prepares_find_no_space);
        if last == Err(AppendError::Busy) {
            last = Ok(0);
        }
    }
    assert_eq!(last, Err(AppendError::NoRoom));
    assert!(!lab.spool.has_room(0));
    // A second later it is tried again: the driver has the preparation in its hands.
    lab.now += Duration::from_secs(2);
    let io = loop {
        match lab.spool.poll_io(lab.now) {
            Some(io @ Io::Prepare { .. }) => break io,
            Some(Io::Remove { slot }) => {
                lab.spool.handle_io(Completion::Removed { slot, result: Ok(()) }, lab.now)
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(!lab.spool.has_room(0), "a peer is sent 354 for what then finds no room");
    assert_eq!(lab.append(&mut Receiving::default(), 1, &[b'x'; 1000]), Err(AppendError::NoRoom), "{io:?}");
}

/// The queue of what is to be moved is longer than a read. While the first read is under way, all of it ends, and its segment with it.
#[test]
fn what_ends_while_its_segment_is_emptied_is_not_looked_for_any_more() {
    let config = SpoolConfig { segment_size: 1 << 20, page_size: 64 << 10, ..CONFIG };
    let part = vec![b'x'; 60 << 10];
    // How many whole messages, messages with a piece, and messages that still arrive; together more than a read.
    for (whole, in_pieces, arriving) in [(14, 0, 0), (0, 7, 0), (0, 0, 14), (5, 2, 5)] {
        let mut lab = Lab::fresh(config);
        let mut waiting = Vec::new();
        for _ in 0..whole {
            waiting.push(lab.append(&mut Receiving::default(), 1, &part).expect("room"));
            lab.run(nothing);
        }
        for _ in 0..in_pieces {
            let mut receiving = Receiving::default();
            lab.spool.append_piece(&mut receiving, &part).expect("room");
            waiting.push(lab.append(&mut receiving, 1, &part).expect("room"));
            lab.run(nothing);
        }
        let mut uploads: Vec<_> = (0..arriving).map(|_| Receiving::default()).collect();
        for receiving in &mut uploads {
            lab.spool.append_piece(receiving, &part).expect("room");
            lab.run(nothing);
        }
        lab.holds_reads = true;
        while lab.held.is_empty() {
            let sequence = lab.append(&mut Receiving::default(), 1, &part).expect("room");
            lab.run(nothing);
            lab.deliver(sequence);
            lab.now += Duration::from_secs(1);
            lab.run(nothing);
        }
        assert!(lab.held[0].len() < whole + 2 * in_pieces + arriving, "one read is not all");
        let (before, _) = lab.spool.disk_use();
        waiting.into_iter().for_each(|sequence| lab.deliver(sequence));
        uploads.iter_mut().for_each(|receiving| lab.spool.abandon(receiving));
        lab.now += Duration::from_secs(1);
        lab.run(nothing);
        let (after, _) = lab.spool.disk_use();
        assert!(after < before, "the segment that is being emptied has gone: {after} of {before}");
        lab.answer_reads();
        assert_eq!((lab.spool.depth(), lab.spool.counters().carried), (0, 0));
        // It goes on as if nothing had been.
        lab.append(&mut Receiving::default(), 1, &part).expect("room");
        lab.run(nothing);
        assert_eq!(lab.spool.depth(), 1);
    }
}
