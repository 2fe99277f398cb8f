//! `incoming explain`: what the configured policies would say, phase by phase, and nothing comes of it.

mod support;

use std::process::Output;

use support::setup::{Setup, incoming};

fn explain(setup: &Setup, arguments: &[&str]) -> Output {
    let mut command = incoming();
    command.arg("explain").arg("--config").arg(setup.write()).args(arguments);
    command.output().expect("incoming is run")
}

fn said(setup: &Setup, arguments: &[&str]) -> String {
    let output = explain(setup, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn setup() -> Setup {
    let mut setup = Setup::new();
    setup.set("accept.domains", "[\"example.com\"]");
    setup.set(
        "policy",
        r#"[
            { type = "networks", allow = ["198.51.100.0/24"], deny = ["203.0.113.0/24"] },
            { type = "tls_required", dry_run = true },
            { type = "rate_limit", count = "recipients", limit = 1, window = "1h" },
            { type = "greylist" },
        ]"#,
    );
    setup
}

#[test]
fn every_verdict_is_printed_in_order_with_its_reply_and_key() {
    let setup = setup();
    let text = said(
        &setup,
        &["--ip", "192.0.2.1", "--from", "a@e.org", "--rcpt", "b@example.com", "--rcpt", "c@evil.org"],
    );
    let expected = "  networks                 accept\n\
        connect: accept\n\
        hello: accept\n\
        \x20 tls_required             reject  550 5.7.10 Encryption needed: issue STARTTLS first  [no TLS]  (dry run)\n\
        mail: accept\n\
        \x20 recipients               accept\n\
        \x20 rate_limit               accept\n\
        \x20 greylist                 defer  451 4.7.1 Greylisted, try again in 300 seconds  [192.0.2.0/24]\n\
        recipient <b@example.com>: refuse  451 4.7.1 Greylisted, try again in 300 seconds\n\
        \x20 recipients               reject  550 5.7.1 Relay access denied\n\
        recipient <c@evil.org>: refuse  550 5.7.1 Relay access denied\n";
    assert_eq!(text, expected);
}

#[test]
fn who_is_vouched_for_is_not_asked_about_by_guards() {
    let setup = setup();
    let text = said(&setup, &["--ip", "198.51.100.7", "--rcpt", "b@example.com"]);
    assert!(text.contains("  networks                 trust\n"), "{text}");
    assert!(!text.contains("greylist") && text.ends_with("message: accept\n"), "{text}");
    let text = said(&setup, &["--ip", "192.0.2.1", "--auth", "alice", "--rcpt", "b@example.com"]);
    assert!(!text.contains("greylist") && text.ends_with("message: accept\n"), "{text}");
}

#[test]
fn it_ends_where_the_session_would_unless_all_is_asked_for() {
    let setup = setup();
    let refused = "connect: refuse  554 5.7.1 Your network is not welcome here\n";
    let text = said(&setup, &["--ip", "203.0.113.1", "--rcpt", "b@example.com"]);
    assert!(text.ends_with(refused), "{text}");
    let text = said(&setup, &["--ip", "203.0.113.1", "--rcpt", "b@example.com", "--all", "--tls"]);
    assert!(text.contains(refused) && text.ends_with("message: accept\n"), "{text}");
    let text = said(&setup, &["--ip", "192.0.2.1", "--size", "1GB", "--rcpt", "b@example.com"]);
    assert!(text.contains("smtp.message_size_max"), "{text}");
}

#[test]
fn nothing_is_counted_remembered_or_written() {
    let setup = setup();
    let arguments = ["--ip", "192.0.2.1", "--from", "a@e.org", "--rcpt", "b@example.com", "--json"];
    let first = said(&setup, &arguments);
    assert_eq!(said(&setup, &arguments), first);
    assert!(!setup.data().exists(), "it has left something in the data folder");
    let lines: Vec<serde_json::Value> =
        first.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let greylist = lines.iter().find(|line| line["policy"] == "greylist").expect("its verdict");
    assert_eq!(greylist["verdict"], "defer");
    assert_eq!(greylist["recipient"], "b@example.com");
}

#[test]
fn what_cannot_be_asked_is_told() {
    let setup = setup();
    let output = explain(&setup, &["--ip", "192.0.2.1", "--listener", "192.0.2.9:25"]);
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(words, "incoming: no [[listener]] has the address 192.0.2.9:25\n");
    assert_eq!(explain(&setup, &["--ip", "192.0.2"]).status.code(), Some(2));
}
