//! The states of a message in the spool, and what a power cut makes of each: the table at the top of `spool::mod`, row by row.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use incoming::spool::format::{Made, Order, OrderKind, RecipientOutcome};
use incoming::spool::memory_disk::{MemoryDisk, mail, recover};
use incoming::spool::recovery::{Depth, Recovered};
use incoming::spool::{Entry, Incoming, Io, Lane, Obeyed, Receiving, Slot, Spool, SpoolConfig};

const CONFIG: SpoolConfig =
    SpoolConfig { segment_size: 128 << 10, sync: true, page_size: 16 << 10, pages_max: 8 };

/// A log on a disk with a volatile cache.
struct Log {
    spool: Spool<Vec<u8>>,
    disk: MemoryDisk,
    /// What was synced.
    durable: BTreeMap<Slot, Vec<u8>>,
    now: Instant,
}

impl Log {
    fn new() -> Self {
        let now = Instant::now();
        let mut life = 0_u64;
        let entropy = move || {
            life += 1;
            life.wrapping_mul(0x9E37_79B9_7F4A_7C15)
        };
        let make_page = Box::new(|| vec![0; CONFIG.page_size]);
        let recovered = Recovered { log: 1, ..Recovered::default() };
        let spool = Spool::new(CONFIG, recovered, make_page, Box::new(entropy), (now, 1000));
        let mut log = Log { spool, disk: MemoryDisk::default(), durable: BTreeMap::new(), now };
        log.run(|_| true);
        log
    }

    /// Performs what is wanted, up to the first I/O that `may` not be performed.
    fn run(&mut self, may: impl Fn(&Io<Vec<u8>>) -> bool) {
        while let Some(io) = self.spool.poll_io(self.now) {
            if !may(&io) {
                return;
            }
            let synced = match &io {
                Io::Prepare { slot, .. } | Io::Sync { slot } | Io::Remove { slot } => Some(*slot),
                Io::Write { .. } | Io::Read { .. } => None,
            };
            let done = self.disk.perform(io);
            if let Some(slot) = synced {
                match self.disk.files.get(&slot) {
                    Some(file) => drop(self.durable.insert(slot, file.clone())),
                    None => drop(self.durable.remove(&slot)),
                }
            }
            self.spool.handle_io(done, self.now);
            while self.spool.poll_stored().is_some() {}
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.run(|_| true);
    }

    fn append(&mut self, receiving: &mut Receiving) -> u64 {
        let (envelope, arrival) = mail(1);
        let message = Incoming { envelope: &envelope, arrival: &arrival, tail: &[b'x'; 1000] };
        self.spool.append_message(receiving, message, |_| Vec::new()).unwrap().0.sequence
    }

    fn stored(&mut self) -> u64 {
        let sequence = self.append(&mut Receiving::default());
        self.run(|_| true);
        sequence
    }

    fn attempt(&mut self, sequence: u64, is_done: bool) {
        self.spool.hand_off(sequence, Lane::UNROUTED);
        let outcome = RecipientOutcome {
            index: 0,
            is_done,
            is_given_up: false,
            attempts: 1,
            next_attempt: 5000,
            reason: "busy".into(),
        };
        self.spool.handle_outcome(sequence, Lane::UNROUTED, Made::default(), &[outcome], (self.now, 1000));
    }

    fn order(&mut self, sequence: u64, kind: OrderKind) {
        let order = Order { kind, unix_millis: 1, by: "operator".into(), note: "".into() };
        assert_eq!(self.spool.order(sequence, None, &Arc::new(order), self.now), Obeyed::Yes, "{kind:?}");
    }

    /// The power goes, and what was synced is read: the message, if it is in the queue, and whether it is held.
    fn held_after_a_cut(&self, sequence: u64) -> Option<bool> {
        let recovered = recover(&self.durable, Depth::Quick);
        recovered.messages.get(sequence).map(Entry::is_held)
    }

    /// The power goes, and what was synced is read: is the message in the queue, and with how many attempts made?
    fn after_a_cut(&self, sequence: u64) -> Option<u32> {
        let recovered = recover(&self.durable, Depth::Quick);
        assert!(recovered.findings.iter().all(|finding| !finding.is_damage()), "{:?}", recovered.findings);
        let message = recovered.messages.get(sequence)?;
        Some(message.outstanding()[0].1.attempts)
    }
}

/// What a row of the table leads to: the log, and the message.
type Reach = fn(&mut Log) -> u64;

#[test]
fn every_state_of_a_message_is_after_a_power_cut_what_the_table_says() {
    let rows: [(&str, Reach, Option<u32>); 17] = [
        ("absent", |_| 2, None),
        (
            "receiving",
            |log| {
                let mut receiving = Receiving::default();
                log.spool.append_piece(&mut receiving, &[b'x'; 50_000]).unwrap();
                log.run(|_| true);
                2
            },
            None,
        ),
        ("appended", |log| log.append(&mut Receiving::default()), None),
        (
            "written, not synced",
            |log| {
                let sequence = log.append(&mut Receiving::default());
                log.run(|io| !matches!(io, Io::Sync { .. }));
                sequence
            },
            None,
        ),
        ("durable", |log| log.stored(), Some(0)),
        (
            "handed off",
            |log| {
                let sequence = log.stored();
                log.spool.hand_off(sequence, Lane::UNROUTED);
                sequence
            },
            Some(0),
        ),
        (
            "deferred, the outcome not synced",
            |log| {
                let sequence = log.stored();
                log.attempt(sequence, false);
                sequence
            },
            Some(0),
        ),
        (
            "deferred",
            |log| {
                let sequence = log.stored();
                log.attempt(sequence, false);
                log.pass(Duration::from_secs(1));
                sequence
            },
            Some(1),
        ),
        (
            "done, the outcome not synced",
            |log| {
                let sequence = log.stored();
                log.attempt(sequence, true);
                sequence
            },
            Some(0),
        ),
        (
            "done",
            |log| {
                let sequence = log.stored();
                log.attempt(sequence, true);
                log.pass(Duration::from_secs(1));
                sequence
            },
            None,
        ),
        (
            "held",
            |log| {
                let sequence = log.stored();
                log.order(sequence, OrderKind::Hold);
                log.pass(Duration::from_secs(1));
                assert_eq!(log.held_after_a_cut(sequence), Some(true));
                sequence
            },
            Some(0),
        ),
        (
            "dropped, the order not synced",
            |log| {
                let sequence = log.stored();
                log.order(sequence, OrderKind::Drop);
                sequence
            },
            Some(0),
        ),
        (
            "dropped",
            |log| {
                let sequence = log.stored();
                log.order(sequence, OrderKind::Drop);
                log.pass(Duration::from_secs(1));
                sequence
            },
            None,
        ),
        (
            "held and moved",
            |log| {
                let sequence = log.stored();
                log.order(sequence, OrderKind::Hold);
                let home = log.spool.entry(sequence).map(|entry| entry.location);
                go_round(log);
                assert_ne!(log.spool.entry(sequence).map(|entry| entry.location), home, "it was moved");
                assert_eq!(log.held_after_a_cut(sequence), Some(true));
                sequence
            },
            Some(0),
        ),
        ("moved", |log| surrounded(log, false), Some(1)),
        (
            "moved, then done",
            |log| {
                let sequence = surrounded(log, false);
                log.pass(Duration::from_secs(5000));
                assert_eq!(log.spool.next_of_backlog(Lane::UNROUTED, log.now), Some(sequence));
                log.attempt(sequence, true);
                log.pass(Duration::from_secs(1));
                sequence
            },
            None,
        ),
        ("recycled", |log| surrounded(log, true), None),
    ];
    for (state, reach, expected) in rows {
        let mut log = Log::new();
        let sequence = reach(&mut log);
        assert_eq!(log.after_a_cut(sequence), expected, "{state}");
    }
}

/// A message behind which the log goes round: it waits, or it is done before.
fn surrounded(log: &mut Log, is_done: bool) -> u64 {
    let sequence = log.stored();
    log.attempt(sequence, is_done);
    let home = log.spool.entry(sequence).map(|entry| entry.location);
    go_round(log);
    assert_eq!(log.spool.entry(sequence).is_some(), !is_done);
    assert!(log.spool.entry(sequence).is_none_or(|entry| Some(entry.location) != home), "it was moved");
    sequence
}

/// So much is stored and delivered that every segment is used again.
fn go_round(log: &mut Log) {
    for _ in 0..3000 {
        let other = log.stored();
        log.attempt(other, true);
        log.pass(Duration::from_millis(20));
    }
}

/// `None`: gone; else whether it is held.
type Found = Option<bool>;

#[test]
fn settled_orders_survive_a_cut_at_every_io() {
    use OrderKind::{Drop, Hold, Release};
    let script = [
        (0, Hold),
        (1, Hold),
        (2, Drop),
        (1, Release),
        (3, Hold),
        (3, Drop),
        (0, Release),
        (1, Hold),
        (0, Hold),
        (4, Drop),
    ];
    for cut in 0_u32.. {
        let mut log = Log::new();
        let messages: Vec<u64> = (0..5).map(|_| log.stored()).collect();
        // What a delivery has when it is dropped does not come back either.
        log.spool.hand_off(messages[4], Lane::UNROUTED);
        let left = Cell::new(cut);
        let may = |_: &Io<Vec<u8>>| left.replace(left.get().saturating_sub(1)) > 0;
        let mut states: Vec<Vec<(u64, Found)>> = vec![vec![(0, Some(false))]; messages.len()];
        for (n, (at, kind)) in script.into_iter().enumerate() {
            log.order(messages[at], kind);
            let state = match kind {
                Drop => None,
                kind => Some(kind == Hold),
            };
            states[at].push((log.spool.orders().given, state));
            // Some share a record, some do not; others come in between.
            if n % 3 == 0 {
                log.append(&mut Receiving::default());
            } else {
                log.spool.hurry_orders(log.now);
            }
            log.now += Duration::from_millis(7);
            log.run(may);
        }
        log.now += Duration::from_secs(1);
        log.run(may);
        let settled = log.spool.orders().settled;
        for (sequence, states) in messages.iter().zip(&states) {
            let found = log.held_after_a_cut(*sequence);
            let floor =
                states.iter().rposition(|(number, _)| *number <= settled).expect("the first is settled");
            let may_be: Vec<Found> = states[floor..].iter().map(|(_, state)| *state).collect();
            assert!(may_be.contains(&found), "cut {cut}: {sequence} is {found:?}, not one of {may_be:?}");
        }
        if left.get() > 0 {
            assert_eq!(settled, script.len() as u64, "nothing was cut off");
            assert!(cut > 10, "{cut} are not many");
            return;
        }
    }
}
