//! `incoming spool verify | dump | export`: what they say of a spool is what was sent to it, whether its gateway runs or not, and
//! nothing under the data folder changes.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use serde_json::Value;
use support::client::Client;
use support::ledger::{self, Ledger};
use support::load::Load;
use support::setup::{Setup, incoming};
use support::{maildir, wait};

/// What a command said.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    /// Each line of standard output, parsed.
    #[track_caller]
    fn json(&self) -> Vec<Value> {
        let parse =
            |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}\n{}", self.err));
        self.out.lines().map(parse).collect()
    }

    /// Panics unless the exit code is this one.
    #[track_caller]
    fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        self
    }
}

/// `incoming spool ARGUMENTS --config FILE`.
fn spool(setup: &Setup, arguments: &[&str]) -> Said {
    let mut command = incoming();
    command.arg("spool").args(arguments).arg("--config").arg(setup.home().join("incoming.toml"));
    let Output { status, stdout, stderr } = command.output().expect("it is started");
    let text = |octets| String::from_utf8(octets).expect("UTF-8");
    Said { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// Every file and folder below: its size and when it was changed.
fn tree(folder: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let about = path.metadata().expect("its metadata");
            if about.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, (about.size(), about.mtime(), about.mtime_nsec()));
        }
    }
    found
}

/// A stopped gateway's spool, and what was sent to it.
struct Stopped {
    setup: Setup,
    /// By id: the contents of messages that are not done.
    waiting: BTreeMap<String, Vec<u8>>,
    delivered: BTreeSet<String>,
}

/// Two recipients: the first one's Maildir works, the second one's does not.
const BOTH: [&str; 2] = ["good@mx.test", "bad@mx.test"];

/// Delivered, deferred, in several pieces: 8 delivered, 6 of which one of two recipients is left, and one large.
fn stopped() -> Stopped {
    let mut setup = Setup::new();
    setup.small_segments().set("delivery.backoff_base", "\"1h\"").set("delivery.backoff_max", "\"1h\"");
    let mail = setup.home().join("mail");
    setup.maildir_at(mail.join("{local}"));
    fs::create_dir_all(&mail).expect("a folder");
    fs::write(mail.join("bad"), "in the way of a Maildir").expect("a file");
    let mut server = setup.start();
    let mut client = Client::greet(server.address());
    let delivered = (0..8).map(|n| client.deliver("a@e.org", &BOTH[..1], &ledger::content(n)));
    let delivered: BTreeSet<_> = delivered.collect();
    let mut waiting = BTreeMap::new();
    for n in 8..14 {
        let content = ledger::content(n);
        waiting.insert(client.deliver("b@e.org", &BOTH, &content), content);
    }
    let large = b"0123456789 large\r\n".repeat(40_000);
    waiting.insert(client.deliver("", &BOTH[1..], &large), large);
    wait::until("all were attempted", || {
        let said = spool(&setup, &["dump", "--json"]);
        let tried: BTreeSet<_> = outcomes(&said.json()).map(|o| o["message"].to_string()).collect();
        tried.len() == 15
    });
    drop(client);
    assert!(server.stop().success());
    assert_eq!(maildir::count(&mail), 14);
    Stopped { setup, waiting, delivered }
}

fn outcomes(lines: &[Value]) -> impl Iterator<Item = &Value> {
    lines.iter().filter_map(|line| line["outcomes"].as_array()).flatten()
}

/// An exported file below its first field, our `Received:`.
#[track_caller]
fn below_trace(octets: &[u8]) -> &[u8] {
    assert!(octets.starts_with(b"Received: "));
    let ends = octets.windows(3).position(|w| w.starts_with(b"\r\n") && !matches!(w[2], b' ' | b'\t'));
    &octets[ends.expect("the field ends") + 2..]
}

#[track_caller]
fn assert_exported(folder: &Path, expected: &BTreeMap<String, Vec<u8>>) {
    let mut names: Vec<_> =
        fs::read_dir(folder).expect("the folder").map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let wanted = expected.keys().flat_map(|id| [format!("{id}.eml").into(), format!("{id}.json").into()]);
    let mut wanted: Vec<std::ffi::OsString> = wanted.collect();
    wanted.sort();
    assert_eq!(names, wanted);
    for (id, content) in expected {
        let octets = fs::read(folder.join(format!("{id}.eml"))).expect("the message");
        assert!(
            below_trace(&octets) == content,
            "{id}: {} octets instead of {}",
            octets.len(),
            content.len()
        );
        let record = fs::read(folder.join(format!("{id}.json"))).expect("its record");
        let record: Value = serde_json::from_slice(&record).expect("JSON");
        assert_eq!((&record["message_id"], &record["size"]), (&id.as_str().into(), &octets.len().into()));
    }
}

#[test]
fn a_stopped_spool_is_verified_dumped_and_exported_and_nothing_of_it_changes() {
    let Stopped { setup, waiting, delivered } = stopped();
    let before = tree(setup.data());

    let said = spool(&setup, &["verify"]).ended(0);
    assert!(said.out.starts_with("log 000: sound\n") && said.err.is_empty(), "{}{}", said.out, said.err);
    assert!(
        said.out.contains("messages  7 not done, 7 recipients outstanding, the oldest for"),
        "{}",
        said.out
    );
    let report = &spool(&setup, &["verify", "--json", "--log", "0"]).ended(0).json()[0];
    assert_eq!(
        (&report["sound"], &report["messages"], &report["looks"]),
        (&true.into(), &7.into(), &1.into())
    );
    assert_eq!((&report["records"]["message"], &report["records"]["seal"]), (&15.into(), &1.into()));
    let octets = |name: &str| report["octets"][name].as_u64().expect("a number");
    let waits: usize = waiting.values().map(Vec::len).sum();
    assert!(waits as u64 <= octets("live") && octets("live") < octets("used"), "{report}");
    assert!(octets("used") <= octets("files"), "{report}");

    let said = spool(&setup, &["dump"]).ended(0);
    let lines = spool(&setup, &["dump", "--json"]).ended(0).json();
    assert_eq!(said.out.lines().count(), lines.len() + 1, "a line for each, and the heads of the columns");
    let records = report["records"].as_object().expect("counts").values().filter_map(Value::as_u64);
    assert_eq!(lines.len() as u64, records.sum::<u64>(), "as many as verify has counted");
    let numbers: Vec<_> = lines.iter().filter_map(|line| line["sequence"].as_u64()).collect();
    assert!(
        numbers.is_sorted() && numbers.len() == lines.len() - 1,
        "every record but the seal: {numbers:?}"
    );
    assert!(lines.iter().all(|line| line["verdict"] == "kept"));
    let state = |of: &str| {
        let messages = lines.iter().filter(|line| line["kind"] == "message" && line["state"] == of);
        messages.map(|line| line["message"].as_str().expect("an id").to_string()).collect::<BTreeSet<_>>()
    };
    assert_eq!(state("live"), waiting.keys().cloned().collect());
    assert_eq!(state("done"), delivered);
    let left = outcomes(&lines).filter(|outcome| outcome["done"] == false);
    let mut left = left.flat_map(|outcome| outcome["recipients"].as_array().expect("recipients"));
    assert!(left.any(|r| r["done"] == false && r["attempts"] == 1 && r["reason"] != ""), "{lines:?}");

    let folder = setup.home().join("exported");
    let at = folder.to_str().expect("UTF-8");
    spool(&setup, &["export", at]).ended(0);
    assert_exported(&folder, &waiting);
    let (id, _) = waiting.iter().find(|(_, content)| **content == ledger::content(8)).expect("it waits");
    let record = fs::read(folder.join(format!("{id}.json"))).expect("its record");
    let mut record: Value = serde_json::from_slice(&record).expect("JSON");
    assert!(record["next_attempt"].take().as_u64() > record["arrival"]["unix_time"].take().as_u64());
    assert!(record["arrival"]["peer"].take().as_str().expect("a text").starts_with("127.0.0.1:"));
    assert!(!record["recipients"][0]["reason"].take().as_str().expect("a text").is_empty());
    let session = record["arrival"]["provenance"]["session"].take();
    assert!(session["connected"].as_u64() > Some(1_700_000_000_000) && session["number"] == 9, "{session}");
    let expected = serde_json::json!({
        "message_id": id,
        "size": record["size"],
        "envelope": { "reverse_path": "b@e.org", "forward_paths": BOTH, "body": "7BIT", "smtputf8": false },
        "arrival": { "peer": null, "hello": "client.test", "protocol": "ESMTP", "unix_time": null, "provenance": { "session": null } },
        "next_attempt": null,
        "recipients": [
            { "index": 1, "forward_path": BOTH[1], "target": "store", "attempts": 1, "reason": null }
        ],
    });
    assert_eq!(record, expected);
    let one = setup.home().join("one");
    spool(&setup, &["export", one.to_str().expect("UTF-8"), id]).ended(0);
    assert_exported(&one, &BTreeMap::from([(id.clone(), waiting[id].clone())]));

    assert_eq!(tree(setup.data()), before, "nothing under the data folder has changed");
}

#[test]
fn what_makes_no_sense_is_refused_with_what_to_do() {
    let setup = Setup::new();
    setup.write();
    let said = spool(&setup, &["verify"]).ended(1);
    assert!(said.err.contains("there is no spool in") && said.err.contains("--data"), "{}", said.err);
    assert!(!setup.data().exists());
    assert!(setup.start().stop().success());

    let home = setup.home().display().to_string();
    let data = setup.data().display().to_string();
    let inside = format!("{data}/spool/new/er");
    let outside = format!("{home}/out");
    let table: [(&[&str], i32, &str); 6] = [
        (&["verify", "--log", "7"], 2, "there is no log 7: there are 000"),
        (&["dump", "--log", "x"], 2, "invalid value"),
        (&["export", &home], 2, "is not empty: name another folder"),
        (&["export", &inside], 2, "is in the gateway's data folder"),
        (&["export", &outside, "U"], 2, "not a message id"),
        (&["export", &outside, "000000111"], 1, "message 000000111 is not in the spool"),
    ];
    let before = tree(setup.data());
    for (arguments, code, words) in table {
        let said = spool(&setup, arguments).ended(code);
        assert!(said.err.contains(words), "{arguments:?}: {}", said.err);
    }
    assert_eq!(tree(setup.data()), before);

    fs::write(setup.data().join("spool/VERSION"), "incoming spool 9\n").expect("another version");
    let said = spool(&setup, &["verify"]).ended(1);
    assert!(said.err.contains("written by another version"), "{}", said.err);
}

/// Its segment files.
fn segments(setup: &Setup) -> Vec<PathBuf> {
    let files = fs::read_dir(setup.data().join("spool/000")).expect("a log").map(|e| e.unwrap().path());
    files.collect()
}

/// Flips an octet of the first place where `octets` stand in a segment.
#[track_caller]
fn damage(setup: &Setup, octets: &[u8]) {
    for path in segments(setup) {
        let mut file = fs::read(&path).expect("a segment");
        if let Some(at) = file.windows(octets.len()).position(|window| window == octets) {
            file[at] ^= 1;
            return fs::write(&path, file).expect("it is written back");
        }
    }
    panic!("not in the spool");
}

#[test]
fn a_damaged_message_is_named_and_the_others_are_exported() {
    let Stopped { setup, mut waiting, .. } = stopped();
    // One that is a single record, and a piece of the large one.
    let small = waiting.iter().find(|(_, content)| content.len() < 1000).expect("a small one").0.clone();
    let large = waiting.iter().max_by_key(|(_, content)| content.len()).expect("a large one").0.clone();
    damage(&setup, &waiting[&small][..50]);
    damage(&setup, &waiting[&large][..50]);
    let before = tree(setup.data());

    let said = spool(&setup, &["verify"]).ended(1);
    assert!(said.out.starts_with("log 000: damaged\n"), "{}", said.out);
    for id in [&small, &large] {
        assert!(said.err.contains(&format!("message {id} is damaged")), "{}", said.err);
    }
    let report = &spool(&setup, &["verify", "--json"]).ended(1).json()[0];
    assert_eq!(report["damaged_messages"], serde_json::json!([small, large]), "{report}");

    let lines = spool(&setup, &["dump", "--json"]).ended(1).json();
    let verdicts = |verdict: &str| lines.iter().filter(|line| line["verdict"] == verdict).count();
    assert_eq!((verdicts("damaged"), verdicts("missing")), (2, 2));
    assert!(lines.iter().any(|line| line["message"] == *large && line["state"] == "incomplete"));

    let folder = setup.home().join("exported");
    let said = spool(&setup, &["export", folder.to_str().expect("UTF-8")]).ended(1);
    for id in [&small, &large] {
        assert!(said.err.contains(&format!("message {id} is damaged")), "{}", said.err);
        waiting.remove(id);
    }
    assert_exported(&folder, &waiting);
    assert_eq!(tree(setup.data()), before);
}

#[test]
fn a_cut_tail_is_no_damage() {
    let setup = Setup::new();
    setup.hold_deliveries();
    let mut server = setup.start();
    let mut client = Client::greet(server.address());
    let ids = (0..3).map(|n| client.deliver("a@e.org", &BOTH[..1], &ledger::content(n))).collect::<Vec<_>>();
    server.kill();
    // The last record is not whole; nothing behind it says that it ever was.
    damage(&setup, &ledger::content(2)[..50]);
    let said = spool(&setup, &["verify"]).ended(0);
    assert!(said.err.is_empty() && said.out.contains("are not a record"), "{}{}", said.out, said.err);
    let lines = spool(&setup, &["dump", "--json"]).ended(0).json();
    assert_eq!(lines.iter().filter(|line| line["verdict"] == "damaged").count(), 1);
    let folder = setup.home().join("exported");
    spool(&setup, &["export", folder.to_str().expect("UTF-8")]).ended(0);
    assert_exported(&folder, &(0..2).map(|n| (ids[n].clone(), ledger::content(n as u64))).collect());
}

/// Small segments and deliveries that keep up: files are used again while they are looked at.
#[test]
fn a_running_spool_under_load_is_never_called_damaged() {
    let mut setup = Setup::new();
    setup.small_segments().set("delivery.transport", "\"nothing\"");
    let server = setup.start();
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(server.address(), &ledger, 8);
    let segments_begun = || {
        let lines = spool(&setup, &["dump", "--json"]).ended(0).json();
        lines.iter().filter_map(|line| line["epoch"].as_u64()).max().unwrap_or(0)
    };
    let mut looks = 0;
    while looks < 20 || segments_begun() < 20 {
        let said = spool(&setup, &["verify"]).ended(0);
        assert!(said.err.is_empty(), "look {looks}: {}", said.err);
        assert!(said.out.starts_with("log 000: sound\n"), "{}", said.out);
        looks += 1;
        assert!(ledger.acknowledged_count() < 200_000, "files are not used again");
    }
    assert!(segments(&setup).len() < 20, "files were used again");
    load.stop();
    drop(server);
}

#[test]
fn what_waits_in_a_running_spool_is_exported_whole() {
    let setup = Setup::new();
    setup.hold_deliveries();
    let server = setup.start();
    let mut client = Client::greet(server.address());
    let waiting =
        (0..40).map(|n| (client.deliver("a@e.org", &BOTH[..1], &ledger::content(n)), ledger::content(n)));
    let waiting: BTreeMap<_, _> = waiting.collect();
    let folder = setup.home().join("exported");
    spool(&setup, &["export", folder.to_str().expect("UTF-8")]).ended(0);
    assert_exported(&folder, &waiting);
    drop(server);
}
