//! The pipe transport of the real binary: what commands get, what becomes of their exit codes, and that none is left behind.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::client::Client;
use support::setup::Setup;
use support::{tools, wait};

/// A gateway that delivers to `/bin/sh -c script`, with `arguments` as `$1` and so on, and its home as `$HOME`.
fn setup(script: &str, arguments: &[&str]) -> Setup {
    let mut setup = Setup::new();
    let user = tools::said(&tools::run("id", ["-un"])).trim().to_owned();
    let command: Vec<_> = ["/bin/sh", "-c", script, "sh"].iter().chain(arguments).copied().collect();
    let home = setup.home().to_owned();
    setup
        .retry_soon()
        .set("delivery.transport", "\"command\"")
        .set("transport.command.type", "\"pipe\"")
        .set("transport.command.user", format!("{user:?}"))
        .set("transport.command.command", format!("{command:?}"))
        .set("transport.command.environment", format!("{{ HOME = {home:?} }}"));
    setup
}

fn lines(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().lines().map(String::from).collect()
}

/// Whether a process runs. One that waits to be reaped by init does not.
fn runs(id: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn dead_letter(setup: &Setup, id: &str) -> String {
    fs::read_to_string(setup.data().join("dead").join(id).join("dead.json")).unwrap_or_default()
}

#[test]
fn a_command_gets_the_content_octet_for_octet() {
    let script = "cat >\"$HOME/got.$MESSAGE_ID\"; echo kept";
    for (line_ends, separator) in [("crlf", "\r\n"), ("lf", "\n")] {
        let mut setup = setup(script, &[]);
        setup.set("transport.command.line_ends", format!("{line_ends:?}"));
        setup.set("transport.command.return_path", true).set("transport.command.delivered_to", true);
        let server = setup.start();
        let large = ["x".repeat(900), ".".into(), "..".into()].join("\r\n").repeat(2000);
        for content in
            ["Subject: x\r\n\r\n.\r\nFrom x\r\nbödy\r\n", &format!("Subject: y\r\n\r\n{large}\r\n")]
        {
            let mut session = Client::greet(server.address());
            let id = session.deliver("s@e.net", &["a@e.org"], content.as_bytes());
            let file = setup.home().join(format!("got.{id}"));
            let expected = content.replace("\r\n", separator);
            wait::until("the command has it all", || {
                fs::read(&file).is_ok_and(|got| got.ends_with(expected.as_bytes()))
            });
            let got = fs::read(&file).expect("it is there");
            let head =
                format!("Return-Path: <s@e.net>{separator}Delivered-To: a@e.org{separator}Received: from ");
            assert!(got.starts_with(head.as_bytes()), "{}", got[..200].escape_ascii());
        }
        wait::until("what it said is in the log", || server.log().matches("kept").count() >= 2);
        assert!(setup.dead_letters().is_empty());
    }
}

#[test]
fn what_a_command_says_is_what_becomes_of_each_recipient() {
    let script = "case $1 in \
        unknown@*) exit 67;; \
        full@*) echo 5.2.2 mailbox full; exit 1;; \
        later@*) [ -e \"$HOME/now\" ] || exit 75;; \
        esac; echo $1 >>\"$HOME/done\"";
    let setup = setup(script, &["{recipient}"]);
    let server = setup.start();
    let mut session = Client::greet(server.address());
    let recipients = ["unknown@e.org", "a@e.org", "full@e.org", "later@e.org", "-b@e.org"];
    let id = session.deliver("s@e.net", &recipients, b"Subject: x\r\n\r\nbody\r\n");
    wait::until("three are given up", || dead_letter(&setup, &id).matches("\"reason\"").count() == 3);
    let letter = dead_letter(&setup, &id);
    for reason in
        ["5.1.1 user unknown", "5.2.2 mailbox full (exit code 1)", "5.1.3 an address that begins with -"]
    {
        assert!(letter.contains(reason), "{reason}: {letter}");
    }
    assert_eq!(lines(&setup.home().join("done")), ["a@e.org"]);
    fs::write(setup.home().join("now"), "").expect("a file");
    wait::until("who was deferred has it", || {
        lines(&setup.home().join("done")) == ["a@e.org", "later@e.org"]
    });
}

#[test]
fn twenty_commands_run_at_a_time() {
    // Each ends when twenty have begun.
    let script = "touch \"$HOME/begun.$MESSAGE_ID\"; \
        until [ $(ls \"$HOME\" | grep -c begun) -ge 20 ]; do sleep 0.1; done; echo . >>\"$HOME/done\"";
    let mut setup = setup(script, &[]);
    setup.set("transport.command.concurrency", 20);
    let server = setup.start();
    let mut session = Client::greet(server.address());
    for _ in 0..20 {
        session.deliver("s@e.net", &["a@e.org"], b"Subject: x\r\n\r\nbody\r\n");
    }
    wait::until("all are done", || lines(&setup.home().join("done")).len() == 20);
    assert!(!server.log().contains("killed"));
}

#[test]
fn when_the_gateway_ends_a_hung_command_is_gone_and_its_mail_is_not() {
    let hung = "trap '' TERM; sleep 1000 & echo $! >>\"$HOME/ids\"; echo $$ >>\"$HOME/ids\"; sleep 1000";
    let mut setup = setup(hung, &[]);
    let mut server = setup.start();
    let mut session = Client::greet(server.address());
    session.deliver("s@e.net", &["a@e.org"], b"Subject: kept\r\n\r\nbody\r\n");
    drop(session);
    let ids = setup.home().join("ids");
    wait::until("the command hangs", || lines(&ids).len() == 2);
    let ids = lines(&ids);
    assert!(ids.iter().all(|id| runs(id)));
    assert!(server.stop().success(), "{}", server.log());
    assert!(ids.iter().all(|id| !runs(id)), "{}", server.log());
    assert!(!server.log().contains("did not end in time"), "{}", server.log());
    let command = ["/bin/sh", "-c", "cat >\"$HOME/got\""];
    setup.set("transport.command.command", format!("{command:?}"));
    let _server = setup.start();
    let got = setup.home().join("got");
    wait::until("another command gets the mail", || {
        fs::read_to_string(&got).is_ok_and(|text| text.ends_with("Subject: kept\n\nbody\n"))
    });
}

#[test]
fn a_command_that_takes_too_long_is_killed_and_its_mail_tried_again() {
    let script = "echo $$ >>\"$HOME/ids\"; [ -e \"$HOME/now\" ] || sleep 1000; cat >\"$HOME/got\"";
    let mut setup = setup(script, &[]);
    setup.set("transport.command.timeout", "\"1s\"");
    let server = setup.start();
    Client::greet(server.address()).deliver("s@e.net", &["a@e.org"], b"Subject: x\r\n\r\nbody\r\n");
    wait::until("it was killed", || server.log().contains("/bin/sh was killed after 1s"));
    assert!(!runs(&lines(&setup.home().join("ids"))[0]));
    fs::write(setup.home().join("now"), "").expect("a file");
    let got = setup.home().join("got");
    wait::until("the next attempt is done", || fs::read(&got).is_ok_and(|text| text.ends_with(b"body\n")));
}

#[test]
fn a_command_inherits_nothing_of_the_gateway() {
    let script = "ls /proc/self/fd >\"$HOME/fds\"; grep -E '^Sig(Blk|Ign)' /proc/self/status >\"$HOME/signals\"; \
        env >\"$HOME/environment\"; echo >\"$HOME/done\"";
    let setup = setup(script, &[]);
    let server = setup.start();
    Client::greet(server.address()).deliver("s@e.net", &["a@e.org"], b"Subject: x\r\n\r\nbody\r\n");
    wait::until("it ran", || setup.home().join("done").exists());
    // The fourth is the folder that is listed.
    assert_eq!(lines(&setup.home().join("fds")), ["0", "1", "2", "3"]);
    let blocked = lines(&setup.home().join("signals"));
    assert!(blocked[0].ends_with("\t0000000000000000"), "no signal is blocked: {blocked:?}");
    let names: Vec<_> = lines(&setup.home().join("environment"))
        .iter()
        .filter_map(|line| line.split_once('=').map(|(name, _)| name.to_owned()))
        .filter(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(&name.as_str()))
        .collect();
    let mut sorted = names;
    sorted.sort();
    assert_eq!(sorted, ["CLIENT_ADDRESS", "HOME", "MESSAGE_ID", "PATH", "RECIPIENT", "SENDER"]);
}

#[test]
fn what_cannot_be_is_refused_at_the_start() {
    let is_root = tools::said(&tools::run("id", ["-u"])).trim() == "0";
    let table = [
        ("command", "[\"x\"]", "transport.command.command: expected the whole path of a program"),
        ("command", "[]", "transport.command.command: expected a program and its arguments"),
        ("command", "[\"/x\", \"{recipent}\"]", "transport.command.command: expected one of {sender}"),
        ("timeout", "\"2d\"", "transport.command.timeout"),
        ("environment", "{ \"A=B\" = \"c\" }", "transport.command.environment: expected names"),
        ("user", "\"nobody-knows-them\"", "transport.command: user: there is no \"nobody-knows-them\""),
        ("group", "\"nobody-knows-them\"", "transport.command: group: there is no \"nobody-knows-them\""),
    ];
    for (key, value, expected) in table {
        let mut setup = setup("exit 0", &[]);
        setup.set(&format!("transport.command.{key}"), value);
        let refused = setup.try_start().err().unwrap_or_else(|| panic!("{key} = {value} was taken"));
        assert!(refused.log.contains(expected), "{expected}: {}", refused.log);
    }
    let mut many = setup("exit 0", &["{recipients}"]);
    many.set("transport.command.delivered_to", true);
    assert!(many.try_start().is_err_and(|refused| refused.log.contains("transport.command: delivered_to: ")));
    if is_root {
        let mut nobody = Setup::new();
        nobody
            .set("delivery.transport", "\"command\"")
            .set("transport.command.type", "\"pipe\"")
            .set("transport.command.command", "[\"/bin/true\"]");
        assert!(
            nobody
                .try_start()
                .is_err_and(|refused| refused.log.contains("transport.command: user: expected"))
        );
    }
}

/// Every key of the section of docs/DELIVERY.md has its row, and its example loads.
#[test]
fn the_documentation_is_of_what_there_is() {
    let reference = include_str!("../docs/DELIVERY.md");
    let section = reference.split("\n## ").find(|section| section.starts_with("`pipe`")).expect("a section");
    let example =
        section.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let folder = tempfile::tempdir().expect("a folder");
    let file: PathBuf = folder.path().join("incoming.toml");
    fs::write(&file, example).expect("a file");
    let system =
        incoming::config::System { hostname: "mx.test".into(), cores_count: 2, descriptors_max: 20_000 };
    let sources = incoming::config::Sources { file: Some(file), ..Default::default() };
    let config = incoming::config::Config::load(&sources, &system).unwrap_or_else(|e| panic!("{e}"));
    let printed: toml::Table = toml::from_str(&config.to_toml()).expect("TOML");
    let common = ["type", "concurrency", "rate", "breaker_failures", "breaker_interval"];
    let printed = printed["transport"]["store"].as_table().expect("the transport");
    let unprinted = ["group", "environment"].map(String::from);
    for key in printed.keys().chain(&unprinted).filter(|key| !common.contains(&key.as_str())) {
        assert!(section.lines().any(|line| line.starts_with(&format!("| `{key}` | "))), "no row for {key}");
    }
}
