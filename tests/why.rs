//! What happened to a message is told from the spool alone: beside a gateway, without one, and after it was started again.

mod support;

use std::fs;
use std::process::Output;

use serde_json::Value;
use support::client::Client;
use support::moody_store::MoodyStore;
use support::setup::{Setup, incoming};
use support::wait;

const CONTENT: &[u8] = b"Subject: why\r\n\r\nhello\r\n";

fn why(setup: &Setup, arguments: &[&str]) -> Output {
    let mut command = incoming();
    command.arg("why").args(arguments).arg("--config").arg(setup.write());
    command.output().expect("the binary runs")
}

#[track_caller]
fn text(setup: &Setup, id: &str) -> String {
    let output = why(setup, &[id]);
    let [out, err] = [output.stdout, output.stderr].map(|o| String::from_utf8(o).expect("UTF-8"));
    assert!(output.status.success() && err.is_empty(), "{}\n{out}{err}", output.status);
    out
}

#[track_caller]
fn json(setup: &Setup, id: &str) -> Value {
    let output = why(setup, &["--json", id]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Asks until it stands so: an outcome is in the log some milliseconds after it has happened.
#[track_caller]
fn json_when(setup: &Setup, id: &str, state: &str) -> Value {
    let mut last = Value::Null;
    let found = wait::poll(wait::PATIENCE, || {
        last = json(setup, id);
        (last["state"] == state).then(|| last.clone())
    });
    found.unwrap_or_else(|| panic!("it is never {state}: {last:#}"))
}

fn words(story: &Value) -> Vec<&str> {
    story["events"].as_array().expect("events").iter().filter_map(|event| event["event"].as_str()).collect()
}

#[track_caller]
fn assert_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { panic!("no {part:?} in its place in\n{text}") };
        rest = after;
    }
}

/// Times rise, but for those that were not noted.
#[track_caller]
fn assert_rises(story: &Value) {
    let events = story["events"].as_array().expect("events");
    let times: Vec<u64> = events.iter().filter_map(|event| event["unix_millis"].as_u64()).collect();
    assert!(times.is_sorted() && times[0] > 1_700_000_000_000, "{story:#}");
}

#[test]
fn a_message_is_told_from_its_session_to_its_delivery() {
    let mut setup = Setup::new();
    // A log for each of two shards: the id says which.
    setup.set("shards", "2").retry_soon().hold_deliveries();
    let mut server = setup.start();
    let ids: Vec<String> = (0..4)
        .map(|n| {
            let to = format!("r{n}@mx.test");
            Client::greet(server.address()).deliver("a@client.test", &[&to], CONTENT)
        })
        .collect();
    for (n, id) in ids.iter().enumerate() {
        let tried = |story: &Value| words(story).contains(&"attempt");
        wait::until("it was tried", || tried(&json(&setup, id)));
        let story = json(&setup, id);
        assert_eq!(story["envelope"]["forward_paths"], serde_json::json!([format!("r{n}@mx.test")]));
        assert_eq!(story["envelope"]["reverse_path"], "a@client.test");
        assert_eq!(
            (&story["arrival"]["hello"], &story["gateway_runs"]),
            (&"client.test".into(), &true.into())
        );
        let waiting = &story["recipients"][0];
        assert_eq!((&waiting["state"], &waiting["target"]), (&"waiting".into(), &"store".into()));
        assert!(waiting["attempt"].as_u64().expect("its number") >= 2);
        assert_rises(&story);
    }
    assert!(server.stop().success());

    let id = &ids[0];
    let story = json(&setup, id);
    assert_eq!((&story["state"], &story["gateway_runs"]), (&"waiting".into(), &false.into()));
    assert_in_order(
        &text(&setup, &id.to_lowercase()),
        &[
            id,
            "no gateway runs",
            "connected  from 127.0.0.1:",
            "hello client.test, ESMTP",
            "accepted ",
            "from <a@client.test> to 1 recipient",
            "attempt    at store",
            "<r0@mx.test> deferred, 1 attempt so far, again at",
            "Now, ",
            "<r0@mx.test> at store: attempt ",
            "given up when an attempt fails later than",
        ],
    );

    setup.release_deliveries();
    let mut server = setup.start();
    for id in &ids {
        let story = json_when(&setup, id, "delivered");
        assert_eq!(words(&story)[..3], ["connected", "accepted", "attempt"]);
        let last = story["events"].as_array().and_then(|events| events.last()).expect("events").clone();
        assert_eq!((&last["event"], &last["target"]), (&"attempt".into(), &"store".into()));
        assert_eq!(last["recipients"][0]["outcome"], "delivered");
        assert_rises(&story);
    }
    assert_in_order(
        &text(&setup, id),
        &["delivered\n", "attempt    at store", "<r0@mx.test> delivered", "Now,", "at store: delivered at"],
    );
    assert!(server.stop().success());
    assert_eq!(json(&setup, id)["state"], "delivered", "and without a gateway");
}

#[test]
fn a_dead_letter_is_linked_to_what_it_was_sent_again_as() {
    let store = MoodyStore::start(false);
    let mut setup = Setup::new();
    setup
        .set("transport.lmtp.type", "\"lmtp\"")
        .set("transport.lmtp.address", format!("{:?}", store.address().to_string()))
        .set("delivery.transport", "\"lmtp\"");
    let mut server = setup.start();
    let to = ["no-one@mx.test", "some@mx.test"];
    let first = Client::greet(server.address()).deliver("a@client.test", &to, CONTENT);
    let story = json_when(&setup, &first, "dead_letter");
    let [given_up, delivered] = &story["recipients"].as_array().expect("two")[..] else { panic!("{story}") };
    assert_eq!((&given_up["state"], &delivered["state"]), (&"given_up".into(), &"delivered".into()));
    assert_eq!((&given_up["dead_letter"], &given_up["is_to_be_sent_again"]), (&"kept".into(), &false.into()));
    for (recipient, reply) in [(given_up, "550 5.1.1 nobody of that name"), (delivered, "250 2.0.0 kept")] {
        let said = recipient["reason"].as_str().or(recipient["reply"].as_str()).expect("what was said");
        assert!(said.starts_with(reply), "{said}");
    }
    assert_in_order(
        &text(&setup, &first),
        &[
            "a dead letter",
            "<no-one@mx.test> given up after 1 attempt: 550 5.1.1",
            "its dead letter is in",
            &first,
            "incoming dead resend",
        ],
    );

    let resent = incoming().args(["dead", "resend", &first]).arg("--config").arg(setup.write()).output();
    assert!(resent.expect("the binary runs").status.success());
    let story = json_when(&setup, &first, "sent_again");
    assert_eq!(words(&story).last(), Some(&"sent_again"));
    let second = story["recipients"][0]["as_messages"][0].as_str().expect("an id").to_owned();
    assert_in_order(&text(&setup, &first), &["sent again as", &second, &format!("incoming why {second}")]);
    let story = json_when(&setup, &second, "dead_letter");
    assert_eq!((&story["resent_from"], words(&story)[0]), (&first.as_str().into(), "accepted"));
    assert_in_order(
        &text(&setup, &second),
        &[&format!("It is the dead letter of {first}, sent again"), "hello client.test"],
    );
    assert!(server.stop().success());

    // Where the records are gone the dead letter tells what it knows.
    fs::remove_dir_all(setup.data().join("spool")).expect("the spool goes");
    let story = json(&setup, &second);
    assert_eq!((&story["log"], &story["state"]), (&Value::Null, &"dead_letter".into()));
    assert_eq!(words(&story), ["accepted", "given_up"]);
    let output = why(&setup, &[&first]);
    let err = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err.contains("There is no spool in") && err.contains(&format!("sent again as {second}")),
        "{err}"
    );
}

#[test]
fn each_target_of_a_message_has_its_own_story() {
    let mut setup = Setup::new();
    let archive = setup.home().join("archive");
    fs::write(&archive, "in the way of a Maildir").expect("a file");
    setup
        .set("transport.archive.type", "\"maildir\"")
        .set("transport.archive.path", format!("{archive:?}"))
        .set("route", "[{ also = true, to = [\"archive\"] }]");
    let mut server = setup.start();
    let id = Client::greet(server.address()).deliver("a@client.test", &["b@mx.test"], CONTENT);
    let attempts = |story: &Value| words(story).iter().filter(|word| **word == "attempt").count();
    wait::until("both were tried", || attempts(&json(&setup, &id)) == 2);
    let story = json(&setup, &id);
    let stands: Vec<_> =
        story["recipients"].as_array().expect("two").iter().map(|r| (&r["target"], &r["state"])).collect();
    assert_eq!(stands, [(&"archive".into(), &"waiting".into()), (&"store".into(), &"delivered".into())]);
    assert_eq!(story["state"], "waiting");
    assert_in_order(
        &text(&setup, &id),
        &[
            "1 of 2 deliveries outstanding",
            "<b@mx.test> at archive: attempt 2 is made at",
            "<b@mx.test> at store: delivered at",
        ],
    );
    assert!(server.stop().success());
    fs::remove_file(&archive).expect("the way is free");
    setup.retry_soon();
    assert_eq!(json(&setup, &id)["recipients"][1]["state"], "delivered");
}

#[test]
fn who_asks_for_a_message_that_nobody_knows_is_told_where_was_looked() {
    let setup = Setup::new();
    let mut server = setup.start();
    let id = Client::greet(server.address()).deliver("a@client.test", &["b@mx.test"], CONTENT);
    let other = format!("{}{}", if id.starts_with('0') { "1" } else { "0" }, &id[1..]);
    let output = why(&setup, &[&other]);
    let err = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains("looked into 000") && err.contains(&setup.data().display().to_string()), "{err}");
    let output = why(&setup, &["--json", &other]);
    let unknown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((&unknown["state"], &unknown["reason"]), (&"unknown".into(), &"no_such_log".into()));
    let output = why(&setup, &["not an id"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(server.stop().success());
}
