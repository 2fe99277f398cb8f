use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::story::Reason;
use super::*;
use crate::delivery::Schedule;
use crate::mail::{Arrival, Envelope, Provenance};
use crate::spool::format::{Made, Order, OrderKind, RecipientOutcome};
use crate::spool::memory_disk::{MemoryDisk, mail};
use crate::spool::recovery::Recovered;
use crate::spool::{Incoming, Receiving, Spool, SpoolConfig, Wanted};

const CONFIG: SpoolConfig =
    SpoolConfig { segment_size: 64 << 10, sync: true, page_size: 16 << 10, pages_max: 4 };
const LOG: u32 = 7;
/// When the first message comes, in seconds since 1970.
const UNIX: u64 = 1_700_000_000;

/// A log in files, and its dead letters.
struct Lab {
    root: tempfile::TempDir,
    disk: MemoryDisk,
    spool: Spool<Vec<u8>>,
    now: Instant,
    unix: u64,
    lives: u64,
}

impl Lab {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("spool/000")).unwrap();
        let (mut disk, now) = (MemoryDisk::default(), Instant::now());
        let recovered = Recovered { log: LOG, ..Recovered::default() };
        let spool = open(&mut disk, recovered, 1, (now, UNIX));
        Lab { root, disk, spool, now, unix: UNIX, lives: 1 }
    }

    fn restart(&mut self) {
        self.lives += 1;
        let recovered = self.disk.recover(crate::spool::recovery::Depth::Quick);
        self.spool = open(&mut self.disk, recovered, self.lives, (self.now, self.unix));
    }

    fn settle(&mut self) {
        self.now += Duration::from_secs(1);
        self.unix += 1;
        self.disk.settle(&mut self.spool, self.now);
    }

    /// A message of this size to so many recipients comes.
    fn accept(&mut self, recipients: usize, size: usize) -> u64 {
        let (envelope, arrival) = mail(recipients);
        let connected = self.unix * 1000 - 250;
        let provenance = Provenance::Session { connected, waited_millis: 250, number: 2 };
        let arrival = Arrival { unix_time: self.unix, provenance, ..arrival };
        self.accept_as(&envelope, &arrival, size)
    }

    fn accept_as(&mut self, envelope: &Envelope, arrival: &Arrival, size: usize) -> u64 {
        let content = vec![b'x'; size];
        let message = Incoming { envelope, arrival, tail: &content };
        let trace = |_| b"Received: x\r\n".to_vec();
        let (id, _) = self.spool.append_message(&mut Receiving::default(), message, trace).unwrap();
        self.settle();
        // Where a segment is full the next one is made ready first.
        let stored = (0..9).find_map(|_| {
            self.disk.settle(&mut self.spool, self.now);
            self.spool.poll_stored()
        });
        assert_eq!(stored, Some((id.sequence, true)));
        id.sequence
    }

    fn route(&mut self, sequence: u64, each: &[(u32, &str)]) {
        let wanted = each.iter().map(|(index, name)| (*index, self.spool.lane(name))).collect();
        self.spool.route(sequence, &Wanted::Each(wanted), self.now);
    }

    /// An attempt at a target, 40 ms long, by which recipients are delivered to (`+`), given up (`x`) or deferred for a minute (`-`).
    fn attempt(&mut self, sequence: u64, target: &str, said: &[(u32, char, &str)]) {
        let lane = self.spool.lane(target);
        if self.spool.entry(sequence).unwrap().part(lane).unwrap().due().is_some() {
            self.now += Duration::from_secs(100);
            self.unix += 100;
        }
        self.spool.next_of_backlog(lane, self.now);
        self.spool.hand_off(sequence, lane);
        let part = self.spool.entry(sequence).unwrap().part(lane).unwrap();
        let before = part.outstanding().map(<[_]>::to_vec).unwrap_or_default();
        let outcome = |(index, how, reason): &(u32, char, &str)| RecipientOutcome {
            index: *index,
            is_done: *how != '-',
            is_given_up: *how == 'x',
            attempts: before.iter().find(|left| left.index == *index).map_or(0, |left| left.attempts) + 1,
            next_attempt: if *how == '-' { self.unix + 60 } else { 0 },
            reason: (*reason).into(),
        };
        let outcomes: Vec<_> = said.iter().map(outcome).collect();
        let made = Made { unix_millis: self.unix * 1000, duration_millis: 40 };
        self.spool.handle_outcome(sequence, lane, made, &outcomes, (self.now, self.unix));
        self.settle();
    }

    fn ground(&self) -> Ground {
        let data = self.root.path();
        Ground {
            spool: data.join("spool"),
            dead: data.join("dead"),
            damaged: data.join("damaged"),
            schedule: Schedule { attempts_max: 9, ..Schedule::default() },
            runs: Some(true),
            is_on_disk: true,
            now: self.unix * 1000,
        }
    }

    fn write(&self) {
        let folder = self.root.path().join("spool/000");
        for entry in fs::read_dir(&folder).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (slot, octets) in &self.disk.files {
            fs::write(folder.join(slot.file_name()), octets).unwrap();
        }
    }

    fn tell(&self, sequence: u64) -> Told {
        self.write();
        tell(MessageId { log: LOG, sequence }, &self.ground()).unwrap()
    }

    /// As JSON, and as text.
    fn story(&self, sequence: u64) -> (Value, String) {
        match self.tell(sequence) {
            Told::Known(story) => {
                let text = words::Shown { story: &story, now: self.unix * 1000 }.to_string();
                (serde_json::to_value(&story).unwrap(), text)
            }
            Told::Unknown(missing) => panic!("{missing}"),
        }
    }

    fn missing(&self, id: MessageId) -> (Reason, String) {
        self.write();
        match tell(id, &self.ground()).unwrap() {
            Told::Unknown(missing) => (missing.reason, missing.to_string()),
            Told::Known(story) => panic!("{}", story.message_id),
        }
    }
}

fn open(disk: &mut MemoryDisk, recovered: Recovered, lives: u64, at: (Instant, u64)) -> Spool<Vec<u8>> {
    let mut life = lives << 32;
    let entropy = move || {
        life += 1;
        life
    };
    let make_page = Box::new(|| vec![0; CONFIG.page_size]);
    let mut spool = Spool::new(CONFIG, recovered, make_page, Box::new(entropy), at);
    disk.settle(&mut spool, at.0);
    spool
}

fn events(story: &Value) -> Vec<String> {
    let word = |event: &Value| event["event"].as_str().unwrap().to_owned();
    story["events"].as_array().unwrap().iter().map(word).collect()
}

fn states(story: &Value) -> Vec<String> {
    let word = |r: &Value| format!("{} {} {}", r["index"], r["target"].as_str().unwrap_or("-"), r["state"]);
    story["recipients"].as_array().unwrap().iter().map(word).map(|word| word.replace('"', "")).collect()
}

#[track_caller]
fn assert_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { panic!("no {part:?} in its place in\n{text}") };
        rest = after;
    }
}

#[test]
fn what_happened_is_told_in_order_and_what_stands_after_it() {
    let mut lab = Lab::new();
    lab.accept(1, 10);
    let sequence = lab.accept(3, 1000);
    let (story, text) = lab.story(sequence);
    assert_eq!(events(&story), ["connected", "accepted"]);
    assert_eq!((&story["state"], &story["size"]), (&"in_delivery".into(), &1013.into()));
    assert_eq!(states(&story), ["0 - waiting", "1 - waiting", "2 - waiting"]);
    assert_in_order(
        &text,
        &["attempt 1 is due", "given up when an attempt fails later than", "or when attempt 9"],
    );

    lab.route(sequence, &[(0, "store"), (1, "store"), (1, "archive"), (2, "store")]);
    let busy = [(0, '+', "250 2.0.0 kept"), (1, '-', "451 4.2.0 busy\r\n"), (2, 'x', "550 no")];
    lab.attempt(sequence, "store", &busy);
    lab.attempt(sequence, "archive", &[(1, '+', "")]);
    let (story, text) = lab.story(sequence);
    assert_eq!(events(&story), ["connected", "accepted", "attempt", "attempt"]);
    assert_eq!(story["state"], "waiting");
    let expected = ["0 store delivered", "1 archive delivered", "1 store waiting", "2 store given_up"];
    assert_eq!(states(&story), expected);
    assert_eq!(story["events"][0]["unix_millis"], UNIX * 1000 + 1000 - 250);
    assert_eq!(story["events"][2]["duration_millis"], 40);
    assert_eq!(story["events"][2]["recipients"].as_array().unwrap().len(), 3, "one attempt is one event");
    let waiting = &story["recipients"][2];
    assert_eq!((&waiting["attempt"], &waiting["last_attempt"]), (&2.into(), &9.into()));
    assert_eq!(waiting["gives_up_after"], UNIX + 1 + 5 * 24 * 3600);
    assert_in_order(
        &text,
        &[
            "waiting, 1 of 4 deliveries outstanding",
            "2023-11-14T22:13:20.750Z  connected  from 192.0.2.1:25, hello c.example, ESMTP",
            "2023-11-14T22:13:21.000Z  accepted   250ms later, message 2 of its session, from <> to 3 recipients, 1013 octets",
            "attempt    at store, 40ms",
            "<r0@example.com> delivered: 250 2.0.0 kept",
            "<r1@example.com> deferred, 1 attempt so far, again at 2023-11-14T22:14:22Z: 451 4.2.0 busy\\x0d\\x0a",
            "<r2@example.com> given up after 1 attempt: 550 no",
            "attempt    at archive, 40ms",
            "Now, ",
            "<r0@example.com> at store: delivered at 2023-11-14T22:13:22Z (2s ago): 250 2.0.0 kept",
            "<r1@example.com> at archive: delivered at",
            "<r1@example.com> at store: attempt 2 is made at 2023-11-14T22:14:22Z (in 58s) at the latest; given up when an attempt fails later than 2023-11-19T22:13:21Z (in 4days 23h), or when attempt 9 fails; the last one said: 451",
            "<r2@example.com> at store: given up at",
            "its dead letter is not there any more",
        ],
    );

    lab.restart();
    lab.route(sequence, &[(1, "store")]);
    lab.attempt(sequence, "store", &[(1, '+', "250 at last")]);
    let (story, text) = lab.story(sequence);
    assert_eq!(events(&story), ["connected", "accepted", "attempt", "attempt", "attempt"]);
    assert_eq!(story["state"], "done", "somebody was given up");
    assert_in_order(&text, &["<r1@example.com> at store: delivered", "250 at last"]);
    assert!(!text.contains("outstanding"), "{text}");
}

#[test]
fn an_attempt_with_many_recipients_is_one_event() {
    let mut lab = Lab::new();
    let sequence = lab.accept(50, 10);
    lab.route(sequence, &(0..50).map(|index| (index, "store")).collect::<Vec<_>>());
    lab.attempt(sequence, "store", &(0..50).map(|index| (index, '+', "250 ok")).collect::<Vec<_>>());
    let (story, _) = lab.story(sequence);
    assert_eq!(events(&story), ["connected", "accepted", "attempt"]);
    assert_eq!(story["events"][2]["recipients"].as_array().unwrap().len(), 50);
    assert_eq!(story["state"], "delivered");
}

#[test]
fn orders_of_the_operator_are_told() {
    let mut lab = Lab::new();
    let sequence = lab.accept(1, 10);
    lab.route(sequence, &[(0, "store")]);
    let order = |lab: &mut Lab, kind| {
        let unix_millis = lab.unix * 1000;
        let order = Arc::new(Order { kind, unix_millis, by: "ops".into(), note: "because\n".into() });
        lab.spool.order(sequence, None, &order, lab.now);
        lab.settle();
        lab.story(sequence)
    };
    let (story, text) = order(&mut lab, OrderKind::Hold);
    assert_eq!((&story["state"], &story["recipients"][0]["held"]), (&"held".into(), &true.into()));
    assert_in_order(
        &text,
        &["held by the operator", "hold       by ops, because\\x0a", "held: attempt 1 is made when"],
    );
    lab.restart();
    assert_eq!(lab.story(sequence).0["state"], "held", "after a restart too");
    let (story, _) = order(&mut lab, OrderKind::Release);
    assert_eq!(story["state"], "in_delivery");
    let (story, text) = order(&mut lab, OrderKind::Drop);
    assert_eq!((&story["state"], states(&story)), (&"dropped".into(), vec!["0 - dropped".into()]));
    assert_eq!(events(&story)[2..], ["order", "order", "order"]);
    assert_in_order(&text, &["dropped by the operator", "drop       by ops", "<r0@example.com>: dropped"]);
}

#[test]
fn a_message_that_was_moved_is_told_with_what_is_left_of_its_records() {
    let mut lab = Lab::new();
    let sequence = lab.accept(1, 100);
    lab.route(sequence, &[(0, "store")]);
    lab.attempt(sequence, "store", &[(0, '-', "451 busy")]);
    for n in 0..400 {
        let other = lab.accept(1, 4000);
        lab.route(other, &[(0, "store")]);
        lab.attempt(other, "store", &[(0, '+', "250 ok")]);
        if n == 4 {
            assert_eq!(events(&lab.story(sequence).0), ["connected", "accepted", "attempt"]);
        }
    }
    lab.write();
    let trail = directory::follow(&lab.root.path().join("spool/000"), |_| true, sequence, |_| {}).unwrap();
    assert!(
        trail.oldest.is_some_and(|oldest| oldest > sequence),
        "its first segment is used again: {trail:?}"
    );
    let (story, text) = lab.story(sequence);
    assert_eq!(events(&story), ["connected", "accepted"], "when it was tried is not known any more");
    assert_eq!((&story["begins_late"], &story["recipients"][0]["attempt"]), (&true.into(), &2.into()));
    assert_eq!(states(&story), ["0 store waiting"]);
    assert_in_order(&text, &["earlier attempts are counted, and not told", "the last one said: 451 busy"]);
    lab.attempt(sequence, "store", &[(0, '+', "250 ok")]);
    assert_eq!(events(&lab.story(sequence).0), ["connected", "accepted", "attempt"]);
    // And of a message that is done and not there any more it is said since when others are.
    let (reason, words) = lab.missing(MessageId { log: LOG, sequence: sequence + 4 });
    assert_eq!(reason, Reason::Recycled);
    assert!(words.contains("remembers messages since 2023-11-14T22:"), "{words}");
}

#[test]
fn only_the_messages_own_part_of_the_log_is_read() {
    let mut lab = Lab::new();
    let mut sequences = Vec::new();
    for _ in 0..60 {
        let sequence = lab.accept(1, 7600);
        lab.route(sequence, &[(0, "store")]);
        sequences.push(sequence);
        if sequences.len() > 50 {
            lab.attempt(sequence, "store", &[(0, '+', "250 ok")]);
        }
    }
    lab.write();
    let looked = |sequence| {
        let log = lab.root.path().join("spool/000");
        directory::follow(&log, |_| true, sequence, |_| {}).unwrap().segments
    };
    let (all, _) = looked(sequences[0]);
    assert!(all > 4, "{all}");
    assert_eq!(looked(sequences[0]), (all, all), "one that waits: whatever came since may be about it");
    let (_, late) = looked(sequences[55]);
    assert!(late <= 2, "one that is done: where it came, and where its outcome is: {late}");
}

#[test]
fn where_a_message_comes_from_is_linked() {
    let mut lab = Lab::new();
    let (envelope, arrival) = mail(1);
    let of = MessageId { log: LOG, sequence: 77 };
    for (provenance, key, words) in [
        (Provenance::Resent(of), "resent_from", "It is the dead letter of"),
        (Provenance::About(of), "notification_about", "It tells the sender of"),
    ] {
        let arrival = Arrival { provenance, unix_time: lab.unix, ..arrival.clone() };
        let sequence = lab.accept_as(&envelope, &arrival, 1);
        let (story, text) = lab.story(sequence);
        assert_eq!(story[key], of.to_string());
        assert_eq!(events(&story), ["accepted"]);
        assert!(text.contains(&format!("{words} {of}")), "{text}");
    }
}

#[test]
fn who_is_not_known_is_said_with_where_was_looked() {
    let mut lab = Lab::new();
    let sequence = lab.accept(1, 10);
    lab.route(sequence, &[(0, "store")]);
    lab.attempt(sequence, "store", &[(0, '+', "")]);
    let last = lab.disk.recover(crate::spool::recovery::Depth::Whole).next_sequence;
    let table = [
        (MessageId { log: 8, sequence }, Reason::NoSuchLog, "looked into 000"),
        (
            MessageId { log: LOG, sequence: sequence - 1 },
            Reason::NotAMessage("open"),
            "another record (open)",
        ),
        (MessageId { log: LOG, sequence: last + 100 }, Reason::NotYetGiven, "no such number yet"),
    ];
    for (id, reason, words) in table {
        let (given, text) = lab.missing(id);
        assert_eq!(given, reason, "{text}");
        assert!(text.contains(words) && text.contains("no dead letter of it"), "{text}");
    }
    fs::remove_dir_all(lab.root.path().join("spool")).unwrap();
    let told = tell(MessageId { log: LOG, sequence }, &lab.ground()).unwrap();
    let Told::Unknown(missing) = told else { panic!("there is no spool") };
    assert!(missing.to_string().contains("There is no spool in"), "{missing}");
    assert_eq!(serde_json::to_value(&missing).unwrap()["reason"], "no_such_log");
}
