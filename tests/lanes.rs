//! Several targets of one message: each has its own progress, across restarts and moves in the log, and nobody gets anything twice that
//! the log knows to be delivered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use incoming::spool::format::{Made, RecipientOutcome};
use incoming::spool::memory_disk::{MemoryDisk, mail};
use incoming::spool::recovery::Depth;
use incoming::spool::{Incoming, Lane, Receiving, Spool, SpoolConfig, Wanted};
use proptest::prelude::*;

const PAGE_SIZE: usize = 64 << 10;
const CONFIG: SpoolConfig =
    SpoolConfig { segment_size: 1 << 20, sync: true, page_size: PAGE_SIZE, pages_max: 4 };
const NAMES: [&str; 3] = ["store", "archive", "hook"];

/// A log with one message in it, and what is true of it.
struct Lab {
    disk: MemoryDisk,
    spool: Spool<Vec<u8>>,
    now: Instant,
    unix: u64,
    lives: u64,
    sequence: u64,
    /// Who is to get it, by recipient and lane, by the routes that hold now.
    wanted: Vec<(u32, Lane)>,
    delivered: BTreeSet<(u32, Lane)>,
    /// Done with, at whatever target it was last wanted by.
    gone: BTreeSet<u32>,
    /// Left nowhere since routes have changed.
    dropped: BTreeSet<u32>,
    attempts: BTreeMap<(u32, Lane), u32>,
    recipients: u32,
}

fn open(disk: &mut MemoryDisk, lives: u64, now: Instant, unix: u64) -> Spool<Vec<u8>> {
    let mut recovered = disk.recover(Depth::Quick);
    assert!(recovered.findings.is_empty(), "{:?}", recovered.findings);
    // The order of the configuration, which may change from start to start.
    let mut names = NAMES.to_vec();
    names.rotate_left(lives as usize % 3);
    recovered.name_lanes(names.into_iter().map(Into::into));
    let make_page = Box::new(|| vec![0; PAGE_SIZE]);
    let mut spool = Spool::new(CONFIG, recovered, make_page, Box::new(move || lives + 7), (now, unix));
    disk.settle(&mut spool, now);
    spool
}

impl Lab {
    fn new(recipients: u32) -> Self {
        let (mut disk, now, unix) = (MemoryDisk::default(), Instant::now(), 1_000_000);
        let mut spool = open(&mut disk, 0, now, unix);
        let (mut envelope, arrival) = mail(1);
        let path = envelope.forward_paths[0].clone();
        envelope.forward_paths = vec![path; recipients as usize];
        let message = Incoming { envelope: &envelope, arrival: &arrival, tail: b"x" };
        let (id, _) = spool.append_message(&mut Receiving::default(), message, |_| Vec::new()).unwrap();
        disk.settle(&mut spool, now);
        assert_eq!(spool.poll_stored(), Some((id.sequence, true)));
        Lab {
            disk,
            spool,
            now,
            unix,
            lives: 0,
            sequence: id.sequence,
            wanted: Vec::new(),
            delivered: BTreeSet::new(),
            gone: BTreeSet::new(),
            dropped: BTreeSet::new(),
            attempts: BTreeMap::new(),
            recipients,
        }
    }

    /// By the number it has under any configuration.
    fn lane(&mut self, n: usize) -> Lane {
        self.spool.lane(NAMES[n])
    }

    /// What the log says is left, in lanes by their fixed numbers.
    fn left(&mut self) -> BTreeMap<(u32, Lane), u32> {
        let lanes: Vec<Lane> = (0..3).map(|n| self.lane(n)).collect();
        let Some(entry) = self.spool.entry(self.sequence) else { return BTreeMap::new() };
        let fixed =
            |lane| lanes.iter().position(|l| *l == lane).map(|n| Lane(n as u16)).expect("it is routed");
        entry
            .outstanding()
            .into_iter()
            .map(|(lane, left)| ((left.index, fixed(lane)), left.attempts))
            .collect()
    }

    /// Routes say that each recipient goes to these targets, a bit for each.
    fn route(&mut self, targets: &[u8]) {
        let all = (0..self.recipients).flat_map(|index| (0..3).map(move |n| (index, n)));
        let wanted: Vec<_> = all
            .filter(|(index, n)| targets[*index as usize] & 1 << n != 0)
            .map(|(index, n)| (index, Lane(n)))
            .collect();
        let lanes: Vec<Lane> = (0..3).map(|n| self.lane(n)).collect();
        let each = wanted.iter().map(|(index, lane)| (*index, lanes[usize::from(lane.0)])).collect();
        // Who is not wanted in a lane any more begins anew when it is again.
        self.attempts.retain(|key, _| wanted.contains(key));
        self.wanted = wanted;
        self.spool.route(self.sequence, &Wanted::Each(each), self.now);
        self.settle();
        // Who is left nowhere by these routes may be by others, or may be taken for done: both is right. If that is true of everybody
        // the message is done.
        let (left, expected) = (self.left(), self.expected());
        for index in 0..self.recipients {
            let is_of = |key: &(u32, Lane)| key.0 == index;
            let is_missing = expected.keys().any(is_of) && !left.keys().any(is_of);
            if expected.is_empty() || self.dropped.contains(&index) && is_missing {
                self.gone.insert(index);
            } else if !expected.keys().any(is_of) {
                self.dropped.insert(index);
            }
        }
    }

    /// Who should be left.
    fn expected(&self) -> BTreeMap<(u32, Lane), ()> {
        let is_left = |(index, lane): &&(u32, Lane)| {
            !self.gone.contains(index) && !self.delivered.contains(&(*index, *lane))
        };
        self.wanted.iter().filter(is_left).map(|key| (*key, ())).collect()
    }

    /// An attempt in a lane, for all who are left there; those whose bit is set get it.
    fn attempt(&mut self, n: usize, served: u8) {
        let lane = self.lane(n);
        let Some(entry) = self.spool.entry(self.sequence) else { return };
        let Some(part) = entry.part(lane) else { return };
        let left: Vec<(u32, u32)> = match part.outstanding() {
            Some(left) => left.iter().map(|left| (left.index, left.attempts)).collect(),
            None => (0..self.recipients).map(|index| (index, 0)).collect(),
        };
        // Its time comes.
        self.now += Duration::from_secs(100);
        self.unix += 100;
        self.spool.next_of_backlog(lane, self.now);
        assert!(self.spool.is_in_backlog(self.sequence, lane));
        self.spool.hand_off(self.sequence, lane);
        let mut outcomes = Vec::new();
        for (index, attempts) in left {
            let key = (index, Lane(n as u16));
            assert!(!self.delivered.contains(&key), "{key:?} has it already");
            let (is_done, attempts) = (served & 1 << index != 0, attempts + 1);
            if is_done {
                self.delivered.insert(key);
            } else {
                self.attempts.insert(key, attempts);
            }
            let (next_attempt, reason) = (if is_done { 0 } else { self.unix + 50 }, "busy".into());
            outcomes.push(RecipientOutcome {
                index,
                is_done,
                is_given_up: false,
                attempts,
                next_attempt,
                reason,
            });
        }
        let made = Made { unix_millis: self.unix * 1000, duration_millis: 1 };
        self.spool.handle_outcome(self.sequence, lane, made, &outcomes, (self.now, self.unix));
        // Who was served, and is left nowhere else, is done. (Of whom only the routes have changed, they may change again.)
        for outcome in outcomes.iter().filter(|outcome| outcome.is_done) {
            if !self.expected().keys().any(|(of, _)| *of == outcome.index) {
                self.gone.insert(outcome.index);
            }
        }
        self.settle();
    }

    fn settle(&mut self) {
        self.now += Duration::from_secs(1);
        self.unix += 1;
        self.disk.settle(&mut self.spool, self.now);
    }

    /// The process ends and starts again; what was recorded is durable.
    fn restart(&mut self, targets: &[u8]) {
        self.settle();
        self.lives += 1;
        self.spool = open(&mut self.disk, self.lives, self.now, self.unix);
        if self.spool.entry(self.sequence).is_some() {
            assert!(!self.spool.is_routed(self.sequence));
            self.route(targets);
        }
    }

    fn check(&mut self, what: &str) {
        let left = self.left();
        assert!(left.keys().eq(self.expected().keys()), "{what}: {left:?}, not {:?}", self.expected());
        for (key, attempts) in left {
            let known = self.attempts.get(&key).copied().unwrap_or(0);
            assert!(attempts >= known, "{what}: {key:?} was tried {known} times, not {attempts}");
        }
    }
}

#[test]
fn of_two_targets_one_is_served_and_the_other_keeps_what_it_waits_for() {
    let mut lab = Lab::new(2);
    lab.route(&[0b011, 0b001]);
    lab.check("routed");
    lab.attempt(1, 0b00);
    lab.attempt(0, 0b11);
    lab.check("the store has it, the archive has not");
    assert_eq!(lab.left(), BTreeMap::from([((0, Lane(1)), 1)]));
    lab.restart(&[0b011, 0b001]);
    assert_eq!(lab.left(), BTreeMap::from([((0, Lane(1)), 1)]), "the same after a restart");
    // The routes name another target now.
    lab.restart(&[0b101, 0b001]);
    assert_eq!(
        lab.left(),
        BTreeMap::from([((0, Lane(2)), 1)]),
        "who comes into another lane brings its attempts"
    );
    lab.attempt(2, 0b01);
    assert!(lab.spool.entry(lab.sequence).is_none(), "nobody is left");
    lab.restart(&[0b111, 0b111]);
    assert!(lab.spool.entry(lab.sequence).is_none(), "done is done");
}

#[test]
fn a_target_that_was_not_tried_yet_is_tried_at_once_after_a_restart_whatever_another_waits_for() {
    let mut lab = Lab::new(1);
    lab.route(&[0b011]);
    for _ in 0..8 {
        lab.attempt(1, 0);
    }
    lab.settle();
    lab.lives += 1;
    lab.spool = open(&mut lab.disk, lab.lives, lab.now, lab.unix);
    assert_eq!(lab.spool.next_of_backlog(Lane::UNROUTED, lab.now), Some(lab.sequence));
    lab.route(&[0b011]);
    let expected = BTreeMap::from([((0, Lane(0)), 0), ((0, Lane(1)), 8)]);
    assert_eq!(lab.left(), expected, "each has its own attempts");
}

#[test]
fn what_is_hastened_waits_for_its_time_only_while_it_must() {
    let mut lab = Lab::new(1);
    lab.route(&[0b001]);
    lab.attempt(0, 0);
    let lane = lab.lane(0);
    let is_next = |lab: &mut Lab| lab.spool.next_of_backlog(lane, lab.now).is_some();
    assert!(!is_next(&mut lab));
    lab.spool.hasten(lane);
    assert!(is_next(&mut lab));
    assert_eq!(lab.spool.next_due_of_backlog(lane, lab.now), None, "its time has not come");
    lab.now += Duration::from_secs(60);
    assert_eq!(lab.spool.next_due_of_backlog(lane, lab.now), Some(lab.sequence), "and now it has");
}

#[derive(Clone, Debug)]
enum Step {
    Attempt(usize, u8),
    Restart(Option<Vec<u8>>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0..3_usize, 0..16_u8).prop_map(|(n, served)| Step::Attempt(n, served)),
        1 => Just(Step::Restart(None)),
        1 => prop::collection::vec(1..8_u8, 4).prop_map(|targets| Step::Restart(Some(targets))),
    ];
    prop::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_target_has_its_own_progress_whatever_happens(
        recipients in 1..5_u32,
        targets in prop::collection::vec(1..8_u8, 4),
        steps in steps(),
    ) {
        let mut lab = Lab::new(recipients);
        let mut targets = targets;
        lab.route(&targets);
        lab.check("at first");
        for step in steps {
            match &step {
                Step::Attempt(n, served) => lab.attempt(*n, *served),
                Step::Restart(None) => lab.restart(&targets),
                Step::Restart(Some(new)) => {
                    targets = new.clone();
                    lab.restart(&targets);
                }
            }
            lab.check(&format!("{step:?}"));
        }
        // All is delivered at last.
        for n in 0..3 {
            lab.attempt(n, 0b1111);
        }
        prop_assert!(lab.spool.entry(lab.sequence).is_none());
        lab.restart(&targets);
        prop_assert!(lab.spool.entry(lab.sequence).is_none());
    }
}
