//! The folder of dead letters: what is written, read, changed and removed.

use std::sync::Arc;
use std::thread;

use super::*;
use bytes::Bytes;

use crate::delivery::tests::attempt_for;
use crate::delivery::{Content, StoredContent};

fn some_attempt() -> Attempt {
    attempt_for(&["a@e.org", "b@e.org", "postmaster"])
}

fn recipient(index: u32) -> Recipient {
    Recipient { index, attempts: index }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != ".resend");
    names.sort();
    names
}

#[test]
fn a_dead_letter_has_content_envelope_and_reasons() {
    let root = tempfile::tempdir().unwrap();
    let dead = DeadLetters::new(&root.path().join("deep/dead")).unwrap();
    let attempt = some_attempt();
    dead.write(&attempt, "store", &[(recipient(1), "said \"no\"\n")]).unwrap();
    let path = dead.dir().join("000000111");
    assert_eq!(fs::read(path.join(CONTENT)).unwrap(), b"Received: x\r\n\r\nhello\r\n");
    let mut record: serde_json::Value =
        serde_json::from_slice(&fs::read(path.join(RECORD)).unwrap()).unwrap();
    assert!(record["recipients"][0]["unix_time"].take().as_u64().unwrap() > 1_700_000_000);
    let expected = serde_json::json!({
        "message_id": "000000111",
        "size": 22,
        "envelope": {
            "reverse_path": "s@e.net",
            "forward_paths": ["a@e.org", "b@e.org", "postmaster"],
            "body": "8BITMIME",
            "smtputf8": false,
        },
        "arrival": { "peer": "192.0.2.1:1234", "hello": "e.net", "protocol": "ESMTP", "unix_time": 1_700_000_000 },
        "recipients": [
            { "index": 1, "forward_path": "b@e.org", "attempts": 2, "target": "store", "reason": "said \"no\"\n", "unix_time": null }
        ],
    });
    assert_eq!(record, expected);
}

#[test]
fn recipients_given_up_later_are_added_and_none_twice() {
    let root = tempfile::tempdir().unwrap();
    let dead = DeadLetters::new(root.path()).unwrap();
    let attempt = some_attempt();
    let path = dead.dir().join(attempt.id.to_string());
    let writes: [&[(Recipient, &str)]; 4] = [
        &[(recipient(0), "first")],
        &[(recipient(0), "again")],
        &[(recipient(2), "second"), (recipient(0), "again")],
        &[(recipient(1), "third")],
    ];
    for given_up in writes {
        // What a crash in the middle of adding leaves must not be in the way.
        if path.exists() {
            fs::write(path.join(format!("{UNFINISHED}{RECORD}")), "torn").unwrap();
        }
        dead.write(&attempt, "store", given_up).unwrap();
    }
    let letter = dead.read(attempt.id).unwrap();
    let kept: Vec<_> = letter.recipients.iter().map(|r| (r.index, r.reason.as_str())).collect();
    assert_eq!(kept, [(0, "first"), (2, "second"), (1, "third")]);
    assert_eq!(names(&path), [RECORD, CONTENT]);
    assert_eq!(names(root.path()), [attempt.id.to_string()]);
}

#[test]
fn unfinished_ones_are_cleared_away_at_start() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join(format!("{UNFINISHED}000000111/x"))).unwrap();
    fs::create_dir_all(root.path().join(format!("{REMOVED}000000112/x"))).unwrap();
    fs::create_dir_all(root.path().join("000000112")).unwrap();
    DeadLetters::new(root.path()).unwrap();
    assert_eq!(names(root.path()), ["000000112"]);
}

fn id(sequence: u64) -> MessageId {
    MessageId { log: 1, sequence }
}

#[test]
fn only_folders_named_as_ids_are_letters() {
    let root = tempfile::tempdir().unwrap();
    let dead = DeadLetters::new(&root.path().join("dead")).unwrap();
    let written = some_attempt();
    dead.write(&written, "store", &[(recipient(0), "no")]).unwrap();
    let dir = dead.dir();
    // In lower case, with a leading zero, and two that are no ids.
    for name in ["00000011z", "00000010111", "notes", "0000000"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    fs::write(dir.join("000000112"), "a file").unwrap();
    std::os::unix::fs::symlink(dir.join("000000111"), dir.join("000000113")).unwrap();
    assert_eq!(dead.ids().unwrap(), [written.id]);
    for id in [id(34), id(35), id(36)] {
        assert!(matches!(dead.read(id), Err(ReadError::Gone(_))), "{id}");
        assert!(!dead.remove(id).unwrap());
    }
    assert!(dir.join("000000112").exists() && dir.join("000000113").exists());
    assert_eq!(DeadLetters::open(&root.path().join("missing")).ids().unwrap(), []);
}

#[test]
fn what_is_malformed_is_named_with_its_file_and_can_be_removed() {
    type Damage = fn(&Path);
    let table: [(&str, Damage, &str); 8] = [
        ("no record", |p| fs::remove_file(p.join(RECORD)).unwrap(), "dead.json: it is missing"),
        ("an empty record", |p| fs::write(p.join(RECORD), "").unwrap(), "dead.json: EOF"),
        (
            "a folder",
            |p| {
                fs::remove_file(p.join(RECORD)).unwrap();
                fs::create_dir(p.join(RECORD)).unwrap();
            },
            "dead.json: not a regular file",
        ),
        (
            "a link",
            |p| {
                fs::rename(p.join(RECORD), p.join("elsewhere")).unwrap();
                std::os::unix::fs::symlink("elsewhere", p.join(RECORD)).unwrap();
            },
            "dead.json: not a regular file",
        ),
        (
            "a pipe",
            |p| {
                fs::remove_file(p.join(CONTENT)).unwrap();
                rustix::fs::mknodat(
                    rustix::fs::CWD,
                    p.join(CONTENT),
                    rustix::fs::FileType::Fifo,
                    rustix::fs::Mode::RWXU,
                    0,
                )
                .unwrap();
            },
            "message.eml: not a regular file",
        ),
        ("no content", |p| fs::remove_file(p.join(CONTENT)).unwrap(), "message.eml: it is missing"),
        ("short content", |p| fs::write(p.join(CONTENT), "x").unwrap(), "message.eml: 1 octets"),
        (
            "of another",
            |p| {
                let text = fs::read_to_string(p.join(RECORD)).unwrap();
                fs::write(p.join(RECORD), text.replace("000000111", "000000112")).unwrap();
            },
            "dead.json: message_id",
        ),
    ];
    for (what, damage, words) in table {
        let root = tempfile::tempdir().unwrap();
        let dead = DeadLetters::new(root.path()).unwrap();
        let attempt = some_attempt();
        dead.write(&attempt, "store", &[(recipient(0), "no")]).unwrap();
        damage(&dead.path(attempt.id));
        let opened = dead.read(attempt.id).and_then(|letter| dead.open_content(&letter));
        let error = opened.expect_err(what);
        assert!(matches!(error, ReadError::Malformed(..)), "{what}: {error:?}");
        assert!(error.to_string().contains(&format!("/000000111/{words}")), "{what}: {error}");
        dead.requests().add(&[attempt.id]).unwrap();
        assert!(dead.remove(attempt.id).unwrap(), "{what}");
        assert!(names(root.path()).is_empty() && !dead.requests().has(attempt.id), "{what}");
    }
}

#[test]
fn recipients_added_meanwhile_stay_when_the_others_are_taken_out() {
    let root = tempfile::tempdir().unwrap();
    let dead = DeadLetters::new(root.path()).unwrap();
    let attempt = some_attempt();
    dead.write(&attempt, "store", &[(recipient(0), "first"), (recipient(2), "first")]).unwrap();
    let sent = dead.read(attempt.id).unwrap().first_group();
    assert_eq!(sent.indices, [0, 2]);
    dead.write(&attempt, "store", &[(recipient(1), "second")]).unwrap();
    dead.take_out(attempt.id, &sent).unwrap();
    let left = dead.read(attempt.id).unwrap();
    assert_eq!(left.recipients.iter().map(|r| (r.index, &*r.reason)).collect::<Vec<_>>(), [(1, "second")]);
    assert!(dead.open_content(&left).is_ok());
    let second = left.first_group();
    assert!(dead.take_out(attempt.id, &second).unwrap());
    assert!(names(root.path()).is_empty());
    assert!(dead.take_out(attempt.id, &second).unwrap());
}

#[test]
fn two_targets_may_give_up_one_recipient_and_each_is_taken_out_by_itself() {
    let root = tempfile::tempdir().unwrap();
    let dead = DeadLetters::new(root.path()).unwrap();
    let attempt = some_attempt();
    thread::scope(|scope| {
        for target in ["store", "archive", "hook"] {
            let (dead, attempt) = (&dead, &attempt);
            scope.spawn(move || dead.write(attempt, target, &[(recipient(1), target)]).unwrap());
        }
    });
    let mut targets = Vec::new();
    while let Ok(letter) = dead.read(attempt.id) {
        let group = letter.first_group();
        assert_eq!(group.indices, [1]);
        assert_eq!(letter.envelope_of(&group).via.as_ref().map(|via| via.name()), group.target.as_deref());
        targets.extend(group.target.clone());
        assert_eq!(dead.take_out(attempt.id, &group).unwrap(), targets.len() == 3);
    }
    targets.sort();
    assert_eq!(targets, ["archive", "hook", "store"].map(Box::from));
}

#[test]
fn a_letter_is_changed_and_removed_by_one_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let dead = DeadLetters::new(root.path()).unwrap();
    // Whoever adds a recipient, and whoever removes the letter with those it knows of, must not lose one.
    for _ in 0..50 {
        let attempt = some_attempt();
        dead.write(&attempt, "store", &[(recipient(0), "first")]).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                dead.take_out(attempt.id, &Group { target: Some("store".into()), indices: vec![0] }).unwrap()
            });
            scope.spawn(|| dead.write(&attempt, "store", &[(recipient(1), "second")]).unwrap());
        });
        let left = dead.read(attempt.id).unwrap();
        assert_eq!(left.recipients.iter().map(|r| r.index).collect::<Vec<_>>(), [1]);
        dead.remove(attempt.id).unwrap();
    }
}

struct Damaged;

impl StoredContent for Damaged {
    fn size(&self) -> u64 {
        10
    }

    fn parts_count(&self) -> usize {
        1
    }

    fn part(&self, _: usize) -> io::Result<Bytes> {
        Ok(Bytes::from_static(b"part"))
    }

    fn is_at_hand(&self, _: usize) -> bool {
        false
    }
}

#[test]
fn a_message_that_cannot_be_read_whole_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dead = DeadLetters::new(root.path()).unwrap();
    let mut attempt = some_attempt();
    attempt.content = Arc::new(Content::Stored(Box::new(Damaged)));
    assert!(dead.write(&attempt, "store", &[(recipient(0), "no")]).is_err());
    assert!(names(root.path()).is_empty());
    attempt.content = Arc::new(Content::Memory(vec![]));
    dead.write(&attempt, "store", &[(recipient(0), "no")]).unwrap();
    assert_eq!(names(root.path()), [attempt.id.to_string()]);
}
