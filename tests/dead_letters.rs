//! What is given up is kept, listed, sent again, removed; and what is not given up keeps its attempts and its time, whatever
//! happens to the process meanwhile.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;
use support::client::Client;
use support::ledger::{self, Ledger};
use support::maildir;
use support::server::Server;
use support::setup::{Setup, incoming};
use support::tools;
use support::wait;

/// A recipient that is rejected where each recipient has a folder: its name would be too long.
fn nameless() -> String {
    format!("\"{}\"@{}", " ".repeat(62), "d".repeat(63))
}

/// Every recipient has a folder of its own below the Maildir that [`one_for_all`] makes one again.
fn one_for_each(setup: &mut Setup) -> &mut Setup {
    let path = setup.home().join("boxes/{recipient}");
    setup.maildir_at(path)
}

fn one_for_all(setup: &mut Setup) -> &mut Setup {
    let path = setup.home().join("maildir");
    setup.maildir_at(path)
}

/// `incoming dead …`.
fn dead(setup: &Setup, arguments: &[&str]) -> Output {
    let mut command = incoming();
    command.env("NO_COLOR", "1").arg("dead").args(arguments).arg("--config").arg(setup.write());
    command.output().expect("the binary runs")
}

/// What it says when it succeeds.
#[track_caller]
fn said(setup: &Setup, arguments: &[&str]) -> String {
    let output = dead(setup, arguments);
    let [out, err] = [output.stdout, output.stderr].map(|o| String::from_utf8(o).expect("UTF-8"));
    assert!(output.status.success() && err.is_empty(), "{arguments:?}: {}\n{out}{err}", output.status);
    out
}

/// What it says on standard output and standard error when it has something to complain of.
#[track_caller]
fn complained(setup: &Setup, arguments: &[&str]) -> (String, String) {
    let output = dead(setup, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    let [out, err] = [output.stdout, output.stderr].map(|o| String::from_utf8(o).expect("UTF-8"));
    (out, err)
}

#[track_caller]
fn letters(setup: &Setup) -> Vec<Value> {
    let lines = said(setup, &["list", "--json"]);
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn id_of(letter: &Value) -> String {
    letter["message_id"].as_str().expect("an id").into()
}

/// The folder of a dead letter.
fn folder(setup: &Setup, id: &str) -> PathBuf {
    setup.data().join("dead").join(id)
}

/// How many folders of letters there are, without a command.
fn count(setup: &Setup) -> usize {
    let entries = fs::read_dir(setup.data().join("dead")).into_iter().flatten().flatten();
    entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count()
}

/// Has one message rejected for `to`, and waits for its dead letter; the message id.
#[track_caller]
fn reject(setup: &Setup, server: &Server, to: &[&str], content: &[u8]) -> String {
    let id = Client::greet(server.address()).deliver("s@client.test", to, content);
    wait::until("there is a dead letter", || folder(setup, &id).is_dir());
    id
}

/// Makes the letter look as if it had been given up long ago.
fn age(setup: &Setup, id: &str) {
    let path = folder(setup, id).join("dead.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).expect("a record")).expect("JSON");
    record["recipients"][0]["unix_time"] = 1_000_000_000.into();
    fs::write(&path, record.to_string()).expect("it is written");
}

#[test]
fn a_letter_is_sent_again_to_those_given_up_and_nobody_else() {
    let mut setup = Setup::new();
    let mut server = one_for_each(&mut setup).start();
    let nameless = nameless();
    let content = b"Subject: large\r\n\r\n.a line of sixteen\r\n".repeat(80_000);
    let first = reject(&setup, &server, &["good@mx.test", &nameless], &content);
    let stored = fs::read(folder(&setup, &first).join("message.eml")).expect("its content");
    assert!(stored.ends_with(&content) && stored.starts_with(b"Received: "));

    let list = said(&setup, &["list"]);
    let line = list.lines().find(|line| line.starts_with(&first)).expect("a line for the letter");
    for part in ["<s@client.test>", "@dddd", "name of more than 255 octets"] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    let shown = said(&setup, &["show", &first.to_lowercase()]);
    for part in [&first, "message.eml", "after 1 attempt: ", "client.test, with ESMTP", "<s@client.test>"] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }

    // Beside the gateway: given up again, it is a letter of another message.
    let answer = said(&setup, &["resend", &first]);
    assert!(answer.contains("by the running gateway, which begins within 1s"), "{answer}");
    wait::until("the letter has become another", || count(&setup) == 1 && !folder(&setup, &first).exists());
    let [second] = &letters(&setup)[..] else { panic!("one letter") };
    assert_eq!(second["envelope"]["forward_paths"], serde_json::json!([nameless]));
    assert_eq!((&second["recipients"][0]["attempts"], &second["resend"]), (&1.into(), &false.into()));
    assert_eq!(second["arrival"]["hello"], "client.test");
    let second = id_of(second);
    assert!(fs::read(folder(&setup, &second).join("message.eml")).expect("its content") == stored);

    // Without it: at the next start, and this time it can be delivered.
    assert!(server.stop().success());
    let answer = said(&setup, &["resend", "--all"]);
    assert!(answer.contains("at the next start"), "{answer}");
    assert_eq!(letters(&setup)[0]["resend"], true);
    assert!(said(&setup, &["list"]).contains("(to be sent again)"));
    let mut server = one_for_all(&mut setup).start();
    wait::until("the message is delivered", || maildir::count(setup.maildir()) == 1);
    wait::until("its letter is removed", || count(&setup) == 0);
    let file = &maildir::read(setup.maildir())[0].path;
    assert!(!file.to_string_lossy().contains(&format!("_{second}.")), "a new id: {}", file.display());
    let delivered = fs::read(file).expect("the delivered file");
    let below = delivered.strip_prefix(b"Return-Path: <s@client.test>\r\n".as_slice());
    assert!(below == Some(&stored[..]), "octet for octet, and no further trace line");
    assert_eq!(maildir::count(&setup.home().join("boxes")), 1, "the good recipient got it once");
    assert_eq!(said(&setup, &["list"]), "");
    assert!(server.stop().success());
}

#[test]
fn letters_are_removed_beside_a_gateway_and_without_one() {
    let mut setup = Setup::new();
    assert_eq!(said(&setup, &["list"]), "", "no data folder, no letters");
    let mut server = one_for_each(&mut setup).start();
    let ids = [0, 1, 2].map(|n| reject(&setup, &server, &[&nameless()], &ledger::content(n)));
    assert_eq!(said(&setup, &["remove", &ids[0]]), format!("{} removed\n", ids[0]));
    assert!(server.stop().success());
    said(&setup, &["resend", &ids[1]]);
    let (out, err) = complained(&setup, &["remove", &ids[0], &ids[1]]);
    assert_eq!(out, format!("{} removed\n", ids[1]));
    assert!(err.contains(&folder(&setup, &ids[0]).display().to_string()), "{err}");
    assert_eq!(letters(&setup).iter().map(id_of).collect::<Vec<_>>(), [ids[2].clone()]);

    // What was removed is not sent again.
    let mut server = one_for_all(&mut setup).start();
    said(&setup, &["resend", &ids[2]]);
    wait::until("the other letter is gone", || count(&setup) == 0);
    wait::until("it is delivered", || maildir::count(setup.maildir()) == 1);
    assert!(server.stop().success());
    assert_eq!(maildir::count(setup.maildir()), 1);
}

#[test]
fn a_command_line_that_makes_no_sense_changes_nothing() {
    let mut setup = Setup::new();
    let mut server = one_for_each(&mut setup).start();
    let id = reject(&setup, &server, &[&nameless()], &ledger::content(0));
    assert!(server.stop().success());
    let table: [(&[&str], i32); 9] = [
        (&[], 2),
        (&["resend"], 2),
        (&["resend", "--all", &id], 2),
        (&["remove"], 2),
        (&["remove", "../spool"], 2),
        (&["remove", "--all"], 2),
        (&["show", "not-an-id"], 2),
        (&["show", "000000111"], 1),
        (&["resend", "000000111"], 1),
    ];
    for (arguments, code) in table {
        assert_eq!(dead(&setup, arguments).status.code(), Some(code), "{arguments:?}");
        assert_eq!(letters(&setup)[0]["resend"], false, "{arguments:?}");
    }
}

#[test]
fn a_resend_survives_kill_9_at_any_moment() {
    let letters = if tools::is_long() { 400 } else { 48 };
    let mut setup = Setup::new();
    let mut server = one_for_each(&mut setup).small_segments().start();
    let ledger = Ledger::default();
    let mut client = Client::greet(server.address());
    for _ in 0..letters {
        let number = ledger.number();
        client.deliver("s@client.test", &[&nameless()], &ledger::content(number));
        ledger.acknowledge(number);
    }
    wait::until("all are given up", || count(&setup) == letters);
    assert!(server.stop().success());

    said(&setup, &["resend", "--all"]);
    one_for_all(&mut setup).retry_soon();
    let mut kills = 0;
    while count(&setup) > 0 {
        let mut server = setup.start();
        // The one after those that are gone is on its way by then, somewhere.
        let wanted = count(&setup).saturating_sub(kills % 4);
        wait::until("some letters are gone", || count(&setup) <= wanted);
        server.kill();
        kills += 1;
    }
    let mut server = setup.start();
    let balance = ledger.assert_kept(setup.maildir());
    println!("{kills} times kill -9: {balance}");
    assert!(kills >= 10, "only {kills} kills");
    assert!(server.stop().success());
    assert_eq!(count(&setup), 0);
}

#[test]
fn a_full_queue_makes_letters_wait_and_they_go_on_by_themselves() {
    let mut setup = Setup::new();
    let mut server = one_for_each(&mut setup).start();
    let id = reject(&setup, &server, &[&nameless()], &ledger::content(1));
    assert!(server.stop().success());
    one_for_all(&mut setup).retry_soon().set("spool.depth_max", 1);
    setup.hold_deliveries();
    let mut server = setup.start();
    Client::greet(server.address()).deliver("a@client.test", &["b@mx.test"], &ledger::content(2));
    said(&setup, &["resend", &id]);
    wait::until("the log says why it waits", || {
        server.log().contains("dead letters wait to be sent again: the queue is full")
    });
    assert_eq!(letters(&setup)[0]["resend"], true);
    setup.release_deliveries();
    wait::until("both are delivered", || maildir::count(setup.maildir()) == 2);
    wait::until("the letter is gone", || count(&setup) == 0);
    assert!(server.stop().success());
}

#[test]
fn old_letters_are_removed_and_young_ones_kept() {
    let mut setup = Setup::new();
    let mut server = one_for_each(&mut setup).start();
    let [old, young] = [0, 1].map(|n| reject(&setup, &server, &[&nameless()], &ledger::content(n)));
    assert!(server.stop().success());
    age(&setup, &old);
    let checked = setup.data().join("dead/.checked");

    // A gateway that was away for years, or whose clock says so, removes nothing yet.
    fs::write(&checked, "1000000000").expect("it is written");
    let mut server = setup.start();
    wait::until("the log says so", || server.log().contains("no dead letters are removed for 1day"));
    assert!(server.stop().success());
    assert_eq!(letters(&setup).len(), 2);

    // One that was there a moment ago does.
    let now = letters(&setup).iter().map(|l| l["recipients"][0]["unix_time"].as_u64().unwrap()).max();
    fs::write(&checked, now.unwrap().to_string()).expect("it is written");
    let mut server = setup.start();
    wait::until("the old letter is removed", || !folder(&setup, &old).exists());
    wait::until("the log says so", || {
        let log = server.log();
        log.lines().any(|line| line.contains("an old dead letter is removed") && line.contains(&old))
    });
    assert!(server.stop().success());
    assert_eq!(letters(&setup).iter().map(id_of).collect::<Vec<_>>(), [young]);
}

#[test]
fn a_short_retention_ends_by_itself() {
    let mut setup = Setup::new();
    let mut server = one_for_each(&mut setup).set("delivery.dead_retention", "\"2s\"").start();
    // The letter may have gone before a busy machine looks for it.
    let id = Client::greet(server.address()).deliver("s@client.test", &[&nameless()], &ledger::content(0));
    wait::until("the letter is removed", || {
        let log = server.log();
        log.lines().any(|line| line.contains("an old dead letter is removed") && line.contains(&id))
    });
    assert_eq!(count(&setup), 0);
    assert!(server.stop().success());
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_goes_on() {
    let mut setup = Setup::new();
    let mut server = one_for_each(&mut setup).start();
    let ids = [0, 1, 2].map(|n| reject(&setup, &server, &[&nameless()], &ledger::content(n)));
    let [torn, short, good] = &ids;
    assert!(server.stop().success());
    let record = folder(&setup, torn).join("dead.json");
    fs::write(&record, "{\"message_id\":").expect("it is written");
    let content = folder(&setup, short).join("message.eml");
    fs::write(&content, "cut").expect("it is written");
    let strange = setup.data().join("dead");
    std::os::unix::fs::symlink(folder(&setup, good), strange.join("000000111")).expect("a link");
    fs::create_dir(strange.join("lost+found")).expect("a folder");

    let (out, err) = complained(&setup, &["list"]);
    assert_eq!(out.lines().count(), 3, "a head and two letters\n{out}");
    assert!(err.contains(&format!("{}: EOF", record.display())) && err.lines().count() == 1, "{err}");
    let (_, err) = complained(&setup, &["show", short]);
    assert!(err.contains(&format!("{}: 3 octets", content.display())), "{err}");
    let (out, err) = complained(&setup, &["resend", "--all"]);
    assert!(out.starts_with(&format!("{good}\n1 dead letter, 1 recipient: ")), "{out}");
    assert_eq!(err.lines().count(), 2, "{err}");

    // A request for one that was broken since: said once, and the others go on.
    fs::write(strange.join(".resend").join(torn), "").expect("a request");
    let mut server = one_for_all(&mut setup).start();
    wait::until("the good one is delivered", || maildir::count(setup.maildir()) == 1);
    wait::until("the other is reported", || {
        let log = server.log();
        log.lines().any(|line| line.contains("malformed") && line.contains(&record.display().to_string()))
    });
    wait::until("the good one's letter is gone", || count(&setup) == 4);
    assert!(server.stop().success());
    assert_eq!(complained(&setup, &["list"]).0.lines().count(), 2);
    said(&setup, &["remove", torn, short]);
    assert_eq!(said(&setup, &["list"]), "");
    assert!(strange.join("000000111").is_symlink() && strange.join("lost+found").is_dir());
}

// ---- what is not given up

/// The attempts that the log tells of for a message.
fn attempts(log: &str, id: &str) -> usize {
    log.lines()
        .filter(|line| line.contains("attempt") && line.contains(id) && line.contains("deferred"))
        .count()
}

#[test]
fn attempts_are_counted_on_after_a_restart() {
    let mut setup = Setup::new();
    setup.retry_soon().set("delivery.attempts_max", 4);
    setup.hold_deliveries();
    let mut server = setup.start();
    let to = ["b@mx.test", "c@mx.test"];
    let id = Client::greet(server.address()).deliver("s@client.test", &to, &ledger::content(0));
    let mut made = 0;
    loop {
        wait::until("an attempt is made", || attempts(&server.log(), &id) > 0);
        assert!(server.stop().success());
        made += attempts(&server.log(), &id);
        if made >= 4 || folder(&setup, &id).is_dir() {
            break;
        }
        server = setup.start();
    }
    assert_eq!(made, 4);
    let [letter] = &letters(&setup)[..] else { panic!("one letter") };
    for recipient in letter["recipients"].as_array().expect("recipients") {
        assert_eq!(recipient["attempts"], 4);
        assert!(recipient["reason"].as_str().unwrap().contains("maildir"), "the last reason: {recipient}");
    }
    assert_eq!(letter["recipients"].as_array().map(Vec::len), Some(2));
}

#[test]
fn the_next_attempt_keeps_its_time_over_a_restart() {
    let mut setup = Setup::new();
    setup.set("delivery.backoff_base", "\"1h\"").set("delivery.workers", 1);
    setup.hold_deliveries();
    let mut server = setup.start();
    let first = Client::greet(server.address()).deliver("s@client.test", &["b@mx.test"], &ledger::content(0));
    wait::until("an attempt is made", || attempts(&server.log(), &first) == 1);
    assert!(server.stop().success());
    let mut server = setup.start();
    // Older messages are handed over first: were the first one due, it would have its attempt before this one.
    let second =
        Client::greet(server.address()).deliver("s@client.test", &["b@mx.test"], &ledger::content(1));
    wait::until("an attempt is made", || attempts(&server.log(), &second) == 1);
    assert!(server.stop().success());
    assert_eq!(attempts(&server.log(), &first), 0, "it was tried before its time");
}
