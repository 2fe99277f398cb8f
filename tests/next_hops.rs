//! What the gateway accepts and hands on: to Dovecot by LMTP, read back over IMAP; to Postfix by SMTP, read back from its Maildir; to Postfix's
//! sink where a server has to be odd.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;

use support::certificates::Authority;
use support::client::Client;
use support::dns::Unbound;
use support::ledger::{self, Ledger};
use support::load::Load;
use support::mail_servers::{Beside, Dovecot, Postfix, free_port};
use support::server::Server;
use support::setup::Setup;
use support::{tools, wait};

/// A gateway that hands everything to a transport of this type, with these settings, as they stand in TOML.
fn handing_on(kind: &str, settings: &[(&str, String)]) -> Setup {
    let mut setup = Setup::new();
    setup.retry_soon().set("accept.any", true).set("delivery.transport", "\"hop\"");
    setup.set("transport.hop.type", format!("{kind:?}")).set("transport.hop.breaker_interval", "\"1s\"");
    for (key, value) in settings {
        setup.set(&format!("transport.hop.{key}"), value);
    }
    setup
}

fn text(value: impl std::fmt::Display) -> String {
    format!("{:?}", value.to_string())
}

/// Contents of many sorts: lines that begin with dots, long ones, octets above ASCII, more than a record of the spool holds.
fn contents() -> Vec<Vec<u8>> {
    let long = [&b"Subject: long\r\n\r\n"[..], &b"x".repeat(70_000), b"\r\n.\r\n..\r\n"].concat();
    let eight =
        "Subject: ü\r\nContent-Type: text/plain; charset=utf-8\r\n\r\näöü\r\n.ä\r\n".as_bytes().to_vec();
    let lone = b"Subject: no body\r\n\r\n".to_vec();
    (0..8).map(ledger::content).chain([long, eight, lone]).collect()
}

/// Whether a message of a store is `content` with trace fields before it: the gateway's own right before it, those of the store above.
fn is_traced(message: &[u8], content: &[u8]) -> bool {
    let Some(trace) = message.strip_suffix(content) else { return false };
    let trace = String::from_utf8_lossy(trace);
    let last = trace.rfind("Received: ").map(|at| &trace[at..]).unwrap_or_default();
    trace.ends_with("\r\n") && last.contains("by mx.test") && !trace.contains("\r\n\r\n")
}

#[track_caller]
fn assert_each_is_there(messages: &[Vec<u8>], contents: &[Vec<u8>]) {
    assert_eq!(messages.len(), contents.len());
    for content in contents {
        let shown = String::from_utf8_lossy(&content[..content.len().min(40)]);
        assert!(
            messages.iter().any(|message| is_traced(message, content)),
            "{shown:?} is not there as it was sent"
        );
    }
}

fn has_logged(server: &Server, words: &str) -> bool {
    server.log().lines().any(|line| line.contains(words))
}

#[test]
fn dovecot_has_each_message_octet_for_octet() {
    let authority = Authority::new();
    let issued = authority.issue(&["store.test"]);
    let dovecot = Dovecot::start_with(&["unix@mx.test", "tcp@mx.test", "tls@mx.test"], Some(&issued));
    let pem = Setup::new();
    let authorities = pem.file("authority.pem", authority.pem());
    let unix = text(format!("unix:{}", dovecot.socket().display()));
    let tls =
        [("address", text(dovecot.lmtp())), ("tls", text("required")), ("tls_name", text("store.test"))];
    let cases = [
        ("unix@mx.test", vec![("address", unix)]),
        ("tcp@mx.test", vec![("address", text(dovecot.lmtp())), ("chunking", "true".into())]),
        ("tls@mx.test", [&tls[..], &[("authorities", text(authorities.display()))]].concat()),
    ];
    for (user, settings) in cases {
        let setup = handing_on("lmtp", &settings);
        let server = setup.start();
        let mut client = Client::greet(server.address());
        let contents = contents();
        for content in &contents {
            client.deliver("sender@client.test", &[user], content);
        }
        wait::until("Dovecot has them", || dovecot.count(user) >= contents.len());
        assert_each_is_there(&dovecot.inbox(user), &contents);
    }
    assert!(!dovecot.log().contains("Panic"), "{}", dovecot.log());
}

#[test]
fn who_does_not_exist_is_a_dead_letter_and_the_others_have_their_mail() {
    let dovecot = Dovecot::start(&["alice@mx.test", "bob@mx.test"]);
    let setup = handing_on("lmtp", &[("address", text(dovecot.lmtp()))]);
    let server = setup.start();
    let recipients = ["alice@mx.test", "nobody@mx.test", "bob+detail@mx.test"];
    let content = ledger::content(1);
    let id = Client::greet(server.address()).deliver("sender@client.test", &recipients, &content);
    wait::until("there is a dead letter", || setup.dead_letters().len() == 1);
    wait::until("the others have it", || dovecot.count("alice@mx.test") + dovecot.count("bob@mx.test") == 2);
    assert_each_is_there(&dovecot.inbox("alice@mx.test"), std::slice::from_ref(&content));
    assert_each_is_there(&dovecot.inbox("bob@mx.test"), std::slice::from_ref(&content));
    let letter = setup.data().join("dead").join(&setup.dead_letters()[0]);
    let letter = fs::read_to_string(letter.join("dead.json")).expect("the letter");
    let letter: serde_json::Value = serde_json::from_str(&letter).expect("JSON");
    assert_eq!(letter["message_id"], id);
    let given_up = letter["recipients"].as_array().expect("recipients");
    assert_eq!((given_up.len(), given_up[0]["forward_path"].as_str()), (1, Some("nobody@mx.test")));
    assert!(given_up[0]["reason"].as_str().expect("a reason").starts_with("550 5.1.1 "), "{letter}");
}

/// The settings of a transport to Postfix.
fn to(address: SocketAddr, more: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
    [&[("hosts", format!("[{:?}]", address.to_string()))], more].concat()
}

#[test]
fn postfix_has_each_message_octet_for_octet() {
    for settings in [&[("tls", text("off"))][..], &[("chunking", "true".into())]] {
        let authority = Authority::new();
        let postfix = Postfix::start("", Some(&authority.issue(&["store.test"])));
        let setup = handing_on("smtp", &to(postfix.address(), settings));
        let server = setup.start();
        let mut client = Client::greet(server.address());
        let contents = contents();
        for content in &contents {
            client.deliver("sender@client.test", &["inbox@mx.test"], content);
        }
        wait::until("Postfix has them", || postfix.messages().len() >= contents.len());
        assert_each_is_there(&postfix.messages(), &contents);
        let is_protected = postfix.log().contains("TLS connection established");
        assert_eq!(is_protected, settings[0].0 != "tls", "it is opportunistic, unless it is off");
    }
}

#[test]
fn nothing_goes_to_a_server_that_has_not_shown_who_it_is() {
    let (authority, other) = (Authority::new(), Authority::new());
    let postfix = Postfix::start("", Some(&authority.issue(&["store.test"])));
    let files = Setup::new();
    let (ours, other) = (files.file("ours.pem", authority.pem()), files.file("other.pem", other.pem()));
    let bare = Postfix::start("", None);
    let required = |address, authorities: &std::path::Path, name: &str| {
        let settings = [
            ("tls", text("required")),
            ("tls_name", text(name)),
            ("authorities", text(authorities.display())),
        ];
        handing_on("smtp", &to(address, &settings))
    };
    let content = ledger::content(2);
    let refused = [
        (postfix.address(), &other, "store.test", "invalid peer certificate"),
        (postfix.address(), &ours, "elsewhere.test", "invalid peer certificate"),
        (bare.address(), &ours, "store.test", "STARTTLS is not offered"),
    ];
    for (address, authorities, name, words) in refused {
        let setup = required(address, authorities, name);
        let server = setup.start();
        Client::greet(server.address()).deliver("sender@client.test", &["inbox@mx.test"], &content);
        wait::until(words, || has_logged(&server, words));
        assert!(setup.dead_letters().is_empty(), "it is tried again");
    }
    for postfix in [&postfix, &bare] {
        assert!(postfix.messages().is_empty());
        assert!(!postfix.log().contains("client="), "no MAIL was said: {}", postfix.log());
    }
    let setup = required(postfix.address(), &ours, "store.test");
    let server = setup.start();
    Client::greet(server.address()).deliver("sender@client.test", &["inbox@mx.test"], &content);
    wait::until("Postfix has it", || !postfix.messages().is_empty());
    assert_each_is_there(&postfix.messages(), &[content]);
    assert!(String::from_utf8_lossy(&postfix.messages()[0]).contains("using TLSv1.3"));
}

#[test]
fn postfix_is_told_who_we_are_and_where_the_message_came_from() {
    let dovecot = Dovecot::start(&["gateway@mx.test"]);
    let authority = Authority::new();
    let settings = format!(
        "smtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = {}\nsmtpd_tls_auth_only = yes\n\
         smtpd_recipient_restrictions = permit_sasl_authenticated, reject\nsmtpd_relay_restrictions =\n\
         smtpd_authorized_xforward_hosts = 127.0.0.0/8",
        dovecot.auth_socket().display()
    );
    let postfix = Postfix::start(&settings, Some(&authority.issue(&["store.test"])));
    let files = Setup::new();
    let authorities = files.file("ours.pem", authority.pem());
    let with = |password: &str| {
        let password = files.file("password", format!("{password}\n"));
        let settings = [
            ("tls", text("required")),
            ("tls_name", text("store.test")),
            ("authorities", text(authorities.display())),
            ("user", text("gateway@mx.test")),
            ("password_file", text(password.display())),
            ("xforward", "true".into()),
        ];
        handing_on("smtp", &to(postfix.address(), &settings))
    };
    let content = ledger::content(3);
    let setup = with("wrong");
    let server = setup.start();
    Client::greet(server.address()).deliver("sender@client.test", &["inbox@mx.test"], &content);
    wait::until("the password is refused", || has_logged(&server, "535 5.7.8"));
    assert!(setup.dead_letters().is_empty(), "it is the operator's mistake, and not the message's");
    drop(server);
    let setup = with(support::mail_servers::PASSWORD);
    let server = setup.start();
    let id = Client::greet(server.address()).deliver("sender@client.test", &["inbox@mx.test"], &content);
    wait::until("Postfix has it", || !postfix.messages().is_empty());
    let log = postfix.log();
    let words = [
        "sasl_method=PLAIN, sasl_username=gateway@mx.test".into(),
        format!("orig_queue_id={id}"),
        "orig_client=unknown[127.0.0.1]".into(),
    ];
    for words in words {
        assert!(log.contains(&words), "{words}: {log}");
    }
    assert!(!server.log().contains(support::mail_servers::PASSWORD));
}

#[test]
fn large_messages_and_many_recipients_are_handed_on() {
    let postfix = Postfix::start("", None);
    let mut setup = handing_on("smtp", &to(postfix.address(), &[]));
    setup.set("smtp.message_size_max", "\"64 MiB\"");
    let server = setup.start();
    let mut client = Client::greet(server.address());
    let line = [&b".a line of a large message"[..], &b" with words".repeat(4), b"\r\n"].concat();
    let large = [&b"Subject: large\r\n\r\n"[..], &line.repeat((30 << 20) / line.len())].concat();
    let before = server.memory();
    client.deliver("sender@client.test", &["inbox@mx.test"], &large);
    wait::until("Postfix has it", || !postfix.messages().is_empty());
    assert_each_is_there(&postfix.messages(), &[large]);
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 20 << 20, "the gateway has grown by {grown} octets: it holds the message");
    let many: Vec<_> = (0..100).map(|n| format!("r{n}@mx.test")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    client.deliver("sender@client.test", &many, &ledger::content(5));
    wait::until("everybody has it", || postfix.messages().len() == 101);
    assert_eq!(postfix.log().matches("nrcpt=100 ").count(), 1, "in one transaction");
}

/// Postfix's sink on a port, with these options.
fn sink(options: &[&str]) -> (Beside, SocketAddr) {
    for _ in 0..20 {
        let address: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let mut command = Command::new(tools::program("smtp-sink"));
        command.args(["-u", "root"]).args(options).arg(address.to_string()).arg("100");
        let mut sink = Beside::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        let is_up = wait::poll(wait::PATIENCE, || {
            let is_up = std::net::TcpStream::connect(address).is_ok();
            (is_up || !sink.is_running()).then_some(is_up)
        });
        if is_up == Some(true) {
            return (sink, address);
        }
    }
    panic!("the sink does not start");
}

#[test]
fn odd_servers_defer_and_the_next_host_takes_over() {
    let postfix = Postfix::start("", None);
    let content = ledger::content(6);
    let nobody: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let sinks: Vec<_> =
        [&["-q", "CONNECT"][..], &["-q", "EHLO"], &["-q", "MAIL"], &["-q", "RCPT"], &["-q", "DATA"]]
            .iter()
            .map(|options| sink(options))
            .collect();
    for (count, first) in sinks.iter().map(|(_, address)| *address).chain([nobody]).enumerate() {
        let hosts = format!(
            "[{{ address = \"{}\", priority = 20 }}, {{ address = \"{first}\", priority = 10 }}]",
            postfix.address()
        );
        let setup = handing_on("smtp", &[("hosts", hosts)]);
        let server = setup.start();
        Client::greet(server.address()).deliver("sender@client.test", &["inbox@mx.test"], &content);
        wait::until("the next host has it", || postfix.messages().len() == count + 1);
        assert!(!has_logged(&server, "deferred=1"), "within one attempt: {}", server.log());
    }
    // The dot is said: it may have the message, and the next host is not asked in the same attempt.
    let (_sink, first) = sink(&["-q", "."]);
    let setup = handing_on("smtp", &to(first, &[]));
    let server = setup.start();
    Client::greet(server.address()).deliver("sender@client.test", &["inbox@mx.test"], &content);
    wait::until("it is deferred", || has_logged(&server, "it may be there, and will be twice"));
    // What is refused for now is taken later; what is refused is a dead letter.
    let (sink_away, away) = sink(&["-r", "RCPT"]);
    let setup = handing_on("smtp", &to(away, &[]));
    let server = setup.start();
    Client::greet(server.address()).deliver("sender@client.test", &["inbox@mx.test"], &content);
    wait::until("it is deferred", || has_logged(&server, "after RCPT"));
    assert!(setup.dead_letters().is_empty());
    drop((server, sink_away));
    let (_sink, never) = sink(&["-f", ".", "-B", "554 5.6.0 no such content"]);
    let setup = handing_on("smtp", &to(never, &[]));
    let server = setup.start();
    Client::greet(server.address()).deliver("sender@client.test", &["inbox@mx.test"], &content);
    wait::until("it is a dead letter", || setup.dead_letters().len() == 1);
    drop(server);
}

#[test]
fn the_dns_says_who_takes_the_mail_of_domains_that_the_operator_names() {
    const ZONES: &str = r#"
    local-zone: "." static
    local-zone: "refused.example." refuse
    local-data: "named.example. 300 MX 10 away.example."
    local-data: "named.example. 300 MX 20 store.example."
    local-data: "away.example. 300 A 127.0.0.2"
    local-data: "store.example. 300 A 127.0.0.1"
    local-data: "implicit.example. 300 A 127.0.0.1"
    local-data: "null.example. 300 MX 0 ."
    local-data: "loop.example. 300 MX 10 mx.test."
    local-data: "loop.example. 300 MX 20 store.example."
    local-data: "nowhere.example. 300 TXT x"
    local-data: "xn--bcher-kva.example. 300 MX 10 store.example."
    "#;
    let postfix =
        Postfix::start("virtual_mailbox_domains = static:all\nvirtual_mailbox_maps = static:inbox/", None);
    let domains = [
        "named.example",
        "implicit.example",
        "null.example",
        "loop.example",
        "nowhere.example",
        "missing.example",
        "refused.example",
        "bücher.example",
    ];
    let port = postfix.address().port().to_string();
    let mut setup = handing_on("smtp", &[("mx", format!("{domains:?}")), ("port", port.clone())]);
    let dns = Unbound::start(setup.home(), ZONES);
    setup.set("dns.servers", format!("[{:?}]", dns.address.to_string())).set("dns.timeout", "\"5s\"");
    let server = setup.start();
    let content = ledger::content(7);
    let mut client = Client::greet(server.address());
    let many = [
        "a@named.example",
        "b@implicit.example",
        "c@null.example",
        "d@named.example",
        "e@xn--bcher-kva.example",
    ];
    client.deliver("sender@client.test", &many, &content);
    wait::until("those who can have it have it", || postfix.messages().len() == 4);
    wait::until("who takes no mail is a dead letter", || setup.dead_letters().len() == 1);
    wait::until("its reason is told", || has_logged(&server, "5.1.10 null.example takes no mail (null MX)"));
    let table = [
        ("a@loop.example", "5.4.6 the mail of loop.example loops back"),
        ("a@refused.example", "DNS: refused.example MX"),
        ("a@other.example", "other.example is none of this transport's domains"),
        ("a@nowhere.example", "5.4.4 nowhere.example has neither MX records nor an address"),
        ("a@missing.example", "5.1.2 there is no domain missing.example"),
    ];
    for (recipient, words) in table {
        client.deliver("sender@client.test", &[recipient], &content);
        wait::until(words, || has_logged(&server, words));
    }
    assert_eq!(setup.dead_letters().len(), 1, "the operator's domains are no senders' mistakes");
    drop(server);
    // One domain's exchanges, whoever the recipient is.
    let mut setup = handing_on("smtp", &[("mx_domain", text("named.example")), ("port", port)]);
    setup.set("dns.servers", format!("[{:?}]", dns.address.to_string()));
    let server = setup.start();
    Client::greet(server.address()).deliver(
        "sender@client.test",
        &["a@any.example", "b@loop.example"],
        &content,
    );
    wait::until("it is there", || postfix.messages().len() == 6);
    assert!(postfix.log().contains("nrcpt=2 "), "in one transaction");
}

/// Sends under load while the store goes and comes back, and holds what it has against the ledger in the end.
fn survives(store: &mut dyn Store, settings: &[(&str, String)], kind: &str) {
    let mut setup = handing_on(kind, settings);
    setup.set("shards", 2);
    let server = setup.start();
    let ledger = Arc::new(Ledger::default());
    let handed_on = || server.log().matches(" delivered=1 ").count();
    let rounds = if tools::is_long() { 20 } else { 3 };
    for _ in 0..rounds {
        let goals = (ledger.acknowledged_count() + 50, handed_on() + 50);
        let load = Load::start(server.address(), &ledger, 2);
        wait::until("mail is accepted and handed on", || {
            ledger.acknowledged_count() >= goals.0 && handed_on() >= goals.1
        });
        store.stop();
        let goal = ledger.acknowledged_count() + 50;
        wait::until("mail is accepted while the store is away", || ledger.acknowledged_count() >= goal);
        store.restart();
        load.stop();
        // A store that is given more than it can put away in time would be the one that is tested.
        let mut seen = 0;
        while seen < ledger.acknowledged_count() {
            let goal = ledger.acknowledged_count().min(seen + 500);
            wait::until("what was accepted is handed on", || store.count() >= goal);
            seen = goal;
        }
    }
    let missing = || ledger.balance_of(&store.messages()).missing;
    wait::until("nothing is missing", || missing().is_empty());
    let balance = ledger.balance_of(&store.messages());
    println!("{kind}: {balance}, the store went {rounds} times");
    assert!(setup.dead_letters().is_empty());
    // At most what was on its way, or taken and not yet answered, each time the store went.
    let bound = rounds * 32;
    assert!(balance.duplicates <= bound, "{balance}: more than {bound}");
}

/// A mail store that can go and come back.
trait Store {
    fn stop(&mut self);
    fn restart(&mut self);
    fn count(&self) -> usize;
    fn messages(&self) -> Vec<Vec<u8>>;
}

impl Store for Dovecot {
    fn stop(&mut self) {
        Dovecot::stop(self);
    }

    fn restart(&mut self) {
        Dovecot::restart(self);
    }

    fn count(&self) -> usize {
        Dovecot::count(self, "inbox@mx.test")
    }

    fn messages(&self) -> Vec<Vec<u8>> {
        self.inbox("inbox@mx.test")
    }
}

impl Store for Postfix {
    fn stop(&mut self) {
        Postfix::stop(self);
    }

    fn restart(&mut self) {
        Postfix::restart(self);
    }

    fn count(&self) -> usize {
        fs::read_dir(self.inbox().join("new")).map_or(0, Iterator::count)
    }

    fn messages(&self) -> Vec<Vec<u8>> {
        Postfix::messages(self)
    }
}

#[test]
fn nothing_is_missing_when_dovecot_goes_and_comes_back_under_load() {
    let mut dovecot = Dovecot::start(&["inbox@mx.test"]);
    let address = text(dovecot.lmtp());
    survives(&mut dovecot, &[("address", address)], "lmtp");
}

#[test]
fn nothing_is_missing_when_postfix_goes_and_comes_back_under_load() {
    let mut postfix = Postfix::start("", None);
    let settings = to(postfix.address(), &[]);
    survives(&mut postfix, &settings, "smtp");
}

/// Every key has its row in docs/DELIVERY.md, and the examples load.
#[test]
fn the_documentation_is_of_what_there_is() {
    let reference = include_str!("../docs/DELIVERY.md");
    let section = |word: &str| {
        let start = format!("`{word}`");
        reference.split("\n## ").find(|section| section.starts_with(&start)).expect("a section")
    };
    for word in ["lmtp", "smtp"] {
        let examples = section(word).split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
        let setup = Setup::new();
        let file = setup.file("example.toml", examples.expect("an example"));
        let system =
            incoming::config::System { hostname: "mx.test".into(), cores_count: 2, descriptors_max: 20_000 };
        let sources = incoming::config::Sources { file: Some(file), ..Default::default() };
        let config = incoming::config::Config::load(&sources, &system).unwrap_or_else(|e| panic!("{e}"));
        let printed: toml::Table = toml::from_str(&config.to_toml()).expect("TOML");
        let printed = printed["transport"]["store"].as_table().expect("the transport");
        let common = ["type", "concurrency", "rate", "breaker_failures", "breaker_interval"];
        let unprinted = ["tls_name", "authorities", "user", "password_file", "hello"].map(String::from);
        let only_smtp: &[&str] = if word == "smtp" { &["hosts", "mx", "mx_domain", "port"] } else { &[] };
        let keys = printed.keys().chain(&unprinted).map(String::as_str).chain(only_smtp.iter().copied());
        for key in keys.filter(|key| !common.contains(key)) {
            // What both have stands with `smtp`.
            let row = format!("| `{key}` | ");
            let is_there = [section(word), section("smtp")].iter().any(|text| text.contains(&row));
            assert!(is_there, "no row for {key}");
        }
    }
}
