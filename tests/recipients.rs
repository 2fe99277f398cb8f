//! Whose mail is taken, by the built binary: maps that change, rules of domains, and others who are asked, an HTTP service, Dovecot's LMTP
//! server and Postfix's SMTP sink.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use support::certificates::Authority;
use support::client::Client;
use support::mail_servers::{Beside, Dovecot};
use support::server::Server;
use support::setup::{Setup, incoming};
use support::tools;
use support::wait;

const UNKNOWN: &str = "550 5.1.1 No such user here";
const RELAY: &str = "550 5.7.1 Relay access denied";
const DOWN: &str = "451 4.3.0 Temporary lookup failure, try again later";
const OK: &str = "250 2.1.5 Ok";

/// What RCPT is answered in a session of its own.
#[track_caller]
fn rcpt(server: &Server, recipient: &str) -> String {
    let mut client = Client::greet(server.address());
    client.expect("MAIL FROM:<sender@client.test>", 250);
    client.say(&format!("RCPT TO:<{recipient}>")).line()
}

#[track_caller]
fn assert_answers(server: &Server, table: &[(&str, &str)]) {
    for (recipient, expected) in table {
        assert_eq!(rcpt(server, recipient), *expected, "{recipient}\n{}", server.log());
    }
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("a file");
    fs::rename(new, path).expect("it is put in place");
}

fn lines_with(server: &Server, words: &str) -> usize {
    server.log().lines().filter(|line| line.contains(words)).count()
}

#[test]
fn maps_say_who_exists_and_are_read_again_when_they_change() {
    let mut setup = Setup::new();
    let map = setup.file(
        "map",
        "alice@x.example\ninfo@x.example alice@x.example\ny.example\n/^sales-[0-9]+@x\\.example$/\n@z.example\n",
    );
    setup
        .set("shards", 2)
        .set("accept.domains", "[\"open.example\"]")
        .set("accept.maps", format!("[{map:?}]"));
    let server = setup.start();
    assert_answers(
        &server,
        &[
            ("Alice@X.example", OK),
            ("alice+detail@x.example", OK),
            ("info@x.example", OK),
            ("sales-7@x.example", OK),
            ("sales-x@x.example", UNKNOWN),
            ("bob@x.example", UNKNOWN),
            ("anybody@y.example", UNKNOWN),
            ("anybody@z.example", OK),
            ("anybody@open.example", OK),
            ("postmaster@y.example", OK),
            ("abuse@x.example", OK),
            ("postmaster", OK),
            ("a@elsewhere.example", RELAY),
            ("postmaster@elsewhere.example", RELAY),
            ("a%elsewhere.example@x.example", "550 5.7.1 Routes in addresses are not accepted"),
        ],
    );
    // By itself, on every shard.
    replace(&map, "bob@x.example\n");
    wait::until("the map is read anew", || rcpt(&server, "bob@x.example") == OK);
    for _ in 0..8 {
        assert_answers(
            &server,
            &[("alice@x.example", UNKNOWN), ("a@z.example", RELAY), ("bob@x.example", OK)],
        );
    }
    // Told to: what is wrong changes nothing, and is told.
    let faults = [
        ("carol@x.example\nb@d bob@\n", ":2: expected an address such as alice@example.com, not bob@"),
        ("a@x.example b@x.example\nb@x.example a@x.example\n", ":1: the alias leads back to itself"),
    ];
    for (text, words) in faults {
        replace(&map, text);
        server.signal("HUP");
        let words = format!("maps were not replaced, the old ones are used on: {}{words}", map.display());
        wait::until(&words, || lines_with(&server, &words) > 0);
        assert_answers(&server, &[("bob@x.example", OK), ("carol@x.example", UNKNOWN)]);
    }
    let check = incoming().arg("check").arg("--config").arg(setup.write()).output().expect("it runs");
    assert!(!check.status.success());
    assert!(tools::said(&check).contains(":1: the alias leads back to itself"), "{}", tools::said(&check));
    fs::remove_file(&map).expect("the map goes");
    server.signal("HUP");
    wait::until("the loss is told", || lines_with(&server, "cannot read it") > 0);
    assert_answers(&server, &[("bob@x.example", OK)]);
    replace(&map, "carol@x.example\n");
    server.signal("HUP");
    wait::until("the map is read anew", || rcpt(&server, "carol@x.example") == OK);
}

#[test]
fn a_domain_has_its_own_size_tls_and_policies() {
    let authority = Authority::new();
    let mut setup = Setup::new();
    setup.certificates(&[&authority.issue(&["mx.test"])]).listeners(&["tls = \"optional\""]);
    setup
        .set("accept.domains", "[\"small.example\", \"secret.example\", \"free.example\", \"large.example\"]")
        .set("policy", "[{ type = \"callout\", address = \"unix:/nonexistent/lmtp\", name = \"store\", domains = [\"free.example\", \"secret.example\"] }]")
        .set(
            "domain",
            "{ \"small.example\" = { message_size_max = \"64 KiB\" }, \"secret.example\" = { tls_required = true, skip = [\"store\"] } }",
        );
    let server = setup.start();
    let mut client = Client::greet(server.address());
    client.expect("MAIL FROM:<a@client.test> SIZE=65537", 250);
    assert_eq!(client.say("RCPT TO:<a@small.example>").line(), "552 5.3.4 Message too large for this domain");
    assert_eq!(client.say("RCPT TO:<a@large.example>").line(), OK);
    assert_eq!(
        client.say("RCPT TO:<a@secret.example>").line(),
        "550 5.7.10 This domain takes mail over TLS only"
    );
    assert_eq!(client.say("RCPT TO:<a@free.example>").line(), DOWN);
    client.expect("RSET", 250);
    let content = format!("Subject: x\r\n\r\n{}", format!("{}\r\n", "x".repeat(70)).repeat(1000));
    let refused =
        client.transact("a@client.test", &["a@large.example", "a@small.example"], content.as_bytes());
    assert_eq!(refused.expect("a reply").line(), "552 5.3.4 Message too large for this domain");
    client.deliver("a@client.test", &["a@large.example"], content.as_bytes());
    client.deliver("a@client.test", &["a@small.example"], b"Subject: small\r\n\r\nx\r\n");
    let mut client = Client::try_greet_tls(server.address(), &authority.client()).expect("TLS");
    client.expect("MAIL FROM:<a@client.test>", 250);
    assert_eq!(client.say("RCPT TO:<a@secret.example>").line(), OK);
    drop(server);
    // A domain that only a map could make ours.
    let map = setup.file("map", "a@x.example\n");
    setup
        .set("accept.maps", format!("[{map:?}]"))
        .set("domain", "{ \"y.example\" = { tls_required = true } }");
    let refused = setup.try_start().err().expect("it does not start");
    assert!(refused.log.contains("domain.\"y.example\": its mail is not taken"), "{}", refused.log);
}

/// The HTTP service of `lookup_service.py`.
struct Service {
    process: Option<Beside>,
    folder: tempfile::TempDir,
    certificate: Option<PathBuf>,
}

impl Service {
    fn start(certificate: Option<PathBuf>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut service = Service { process: None, folder, certificate };
        service.restart("0");
        service
    }

    fn restart(&mut self, port: &str) {
        let mut command = Command::new(tools::PYTHON);
        let _ = fs::remove_file(self.folder.path().join("port"));
        command.arg(tools::test_file("lookup_service.py")).arg(self.folder.path()).arg(port);
        command.args(&self.certificate);
        self.process = Some(Beside::start(&mut command));
        wait::until("the service listens", || self.folder.path().join("port").is_file());
    }

    fn port(&self) -> String {
        fs::read_to_string(self.folder.path().join("port")).expect("a port")
    }

    fn stop(&mut self) {
        self.process = None;
    }

    /// The requests that begin so.
    fn requests(&self, start: &str) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("requests")).unwrap_or_default();
        text.lines().filter(|line| line.starts_with(start)).map(String::from).collect()
    }

    fn open_gate(&self) {
        fs::write(self.folder.path().join("gate"), "").expect("a gate");
    }
}

#[test]
fn an_http_service_says_who_exists() {
    let service = Service::start(None);
    let mut setup = Setup::new();
    let header = setup.file("header", "Authorization: Bearer secret\n");
    setup.set("accept.domains", "[\"x.example\", \"y.example\"]").set(
        "policy",
        format!(
            "[{{ type = \"http_lookup\", url = \"http://127.0.0.1:{}/{{local}}?of={{address}}&from={{sender}}&ip={{client}}\", \
             header_file = {header:?}, domains = [\"x.example\"] }}]",
            service.port()
        ),
    );
    let server = setup.start();
    let table = [
        ("alice@x.example", OK),
        ("page@x.example", OK),
        ("vip@x.example", OK),
        ("info@x.example", OK),
        ("nobody@x.example", UNKNOWN),
        ("gone@x.example", UNKNOWN),
        ("left@x.example", "550 5.1.1 Left us??250 in May"),
        ("closed@x.example", DOWN),
        ("full@x.example", "451 4.2.0 Mailbox is full"),
        ("broken@x.example", DOWN),
        ("moved@x.example", DOWN),
        ("mad@x.example", DOWN),
        ("huge@x.example", DOWN),
        ("postmaster@x.example", OK),
        ("nobody@y.example", OK),
        ("alice@z.example", RELAY),
    ];
    for _ in 0..3 {
        assert_answers(&server, &table);
    }
    let counts = ["alice", "nobody", "left", "closed", "full", "broken", "postmaster"]
        .map(|name| service.requests(&format!("/{name}?")).len());
    assert_eq!(counts, [1, 1, 1, 3, 3, 3, 0], "what was answered for good is asked once");
    assert_eq!(
        service.requests("/alice"),
        ["/alice?of=alice%40x.example&from=sender%40client.test&ip=127.0.0.1 Bearer secret"]
    );
    assert!(server.log().contains("HTTP: the service answered 500"), "{}", server.log());
    assert!(!server.log().contains("secret"));
}

#[test]
fn sessions_that_ask_at_once_make_one_request() {
    let service = Service::start(None);
    let mut setup = Setup::new();
    let url = format!("http://127.0.0.1:{}/{{local}}", service.port());
    setup.set("shards", 2).set("accept.domains", "[\"x.example\"]");
    setup.set("policy", format!("[{{ type = \"http_lookup\", url = {url:?}, timeout = \"1m\" }}]"));
    let server = setup.start();
    let address = server.address();
    let ask = |address: SocketAddr| {
        let mut client = Client::greet(address);
        client.expect("MAIL FROM:<sender@client.test>", 250);
        client.send(b"RCPT TO:<slow@x.example>\r\n").expect("it is sent");
        client
    };
    let mut clients: Vec<_> = (0..40).map(|_| ask(address)).collect();
    wait::until("the service is asked", || !service.requests("/slow").is_empty());
    // Sessions are served while others wait.
    assert_answers(&server, &[("alice@x.example", OK)]);
    // Who began it goes away.
    clients.remove(0).reset();
    let readers: Vec<_> = clients
        .into_iter()
        .map(|mut client| thread::spawn(move || client.reply().expect("a reply").line()))
        .collect();
    service.open_gate();
    for reader in readers {
        assert_eq!(reader.join().expect("it was answered"), OK);
    }
    assert_eq!(service.requests("/slow").len(), 1);
}

#[test]
fn while_the_service_is_down_what_was_known_serves_and_then_it_is_asked_again() {
    let mut service = Service::start(None);
    let port = service.port();
    let mut setup = Setup::new();
    let url = format!("http://127.0.0.1:{port}/{{local}}");
    setup.set("accept.domains", "[\"x.example\"]").set(
        "policy",
        format!(
            "[{{ type = \"http_lookup\", url = {url:?}, positive_ttl = \"1s\", negative_ttl = \"1s\" }}]"
        ),
    );
    let server = setup.start();
    let known = [("alice@x.example", OK), ("nobody@x.example", UNKNOWN)];
    assert_answers(&server, &known);
    service.stop();
    let words = "what was known of it is used on";
    wait::until("it is older than it may be", || {
        assert_answers(&server, &known[..1]);
        lines_with(&server, words) >= 1
    });
    // Who does not exist may since: a refusal does not outlive its time.
    let both = [("nobody@x.example", DOWN), ("stranger@x.example", DOWN)];
    wait::until("the refusal is older than it may be", || {
        let mut client = Client::greet(server.address());
        client.expect("MAIL FROM:<sender@client.test>", 250);
        client.say("RCPT TO:<nobody@x.example>").line() == DOWN
    });
    assert_answers(&server, &both);
    service.restart(&port);
    assert_answers(&server, &[("stranger@x.example", OK)]);
    let before = service.requests("/alice").len();
    wait::until("it is asked again", || {
        assert_answers(&server, &known);
        service.requests("/alice").len() > before
    });
}

#[test]
fn a_service_over_tls_must_be_vouched_for() {
    let authority = Authority::new();
    let issued = authority.issue(&["localhost"]);
    let mut setup = Setup::new();
    let pair = setup.file("service.pem", format!("{}{}", issued.chain, issued.key));
    let (ours, other) =
        (setup.file("ours.pem", authority.pem()), setup.file("other.pem", Authority::new().pem()));
    let service = Service::start(Some(pair));
    let url = format!("https://localhost:{}/{{local}}", service.port());
    let policy = |name: &str, domain: &str, settings: String| {
        format!(
            "{{ type = \"http_lookup\", name = \"{name}\", url = {url:?}, domains = [\"{domain}\"]{settings} }}"
        )
    };
    let policies = [
        policy("ours", "ours.example", format!(", authorities = {ours:?}")),
        policy("other", "other.example", format!(", authorities = {other:?}")),
        policy("system", "system.example", String::new()),
    ];
    setup
        .set("accept.domains", "[\"ours.example\", \"other.example\", \"system.example\"]")
        .set("policy", format!("[{}]", policies.join(", ")));
    let server = setup.start();
    assert_answers(
        &server,
        &[
            ("alice@ours.example", OK),
            ("nobody@ours.example", UNKNOWN),
            ("alice@other.example", DOWN),
            ("alice@system.example", DOWN),
        ],
    );
}

#[test]
fn dovecot_is_asked_who_exists() {
    let mut dovecot = Dovecot::start(&["alice@x.example", "o.hara@x.example"]);
    let mut setup = Setup::new();
    let map = setup.file("map", "sales@x.example elsewhere@y.example\n@x.example\n");
    setup.set("shards", 2).set("accept.maps", format!("[{map:?}]")).set(
        "policy",
        format!(
            "[{{ type = \"callout\", address = \"unix:{}\", connections_max = 2 }}]",
            dovecot.socket().display()
        ),
    );
    let server = setup.start();
    let known = [
        ("alice@x.example", OK),
        ("o.hara@x.example", OK),
        ("nobody@x.example", UNKNOWN),
        ("postmaster@x.example", OK),
        ("sales@x.example", OK),
        ("alice@elsewhere.example", RELAY),
    ];
    assert_answers(&server, &known);
    // Many unknown ones over two connections: none is refused for want of connections or patience.
    let address = server.address();
    let threads: Vec<_> = (0..4)
        .map(|n| {
            thread::spawn(move || {
                for m in 0..10 {
                    let mut client = Client::greet(address);
                    client.expect("MAIL FROM:<sender@client.test>", 250);
                    let reply = client.say(&format!("RCPT TO:<stranger-{n}-{m}@x.example>"));
                    assert_eq!(reply.line(), UNKNOWN);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("each is answered"));
    dovecot.stop();
    assert_answers(&server, &known);
    assert_answers(&server, &[("new@x.example", DOWN)]);
    dovecot.restart();
    assert_answers(&server, &[("new@x.example", UNKNOWN)]);
    assert!(!dovecot.log().contains("Panic"), "{}", dovecot.log());
}

/// Postfix's sink on a socket, with these options.
fn sink(setup: &Setup, name: &str, options: &[&str]) -> (Beside, PathBuf) {
    let socket = setup.home().join(name);
    let mut command = Command::new(tools::program("smtp-sink"));
    command
        .args(["-u", "root"])
        .args(options)
        .arg(format!("unix:{}", socket.display()))
        .arg("10")
        .stderr(Stdio::null());
    let sink = Beside::start(&mut command);
    wait::until("the sink listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    (sink, socket)
}

#[test]
fn an_smtp_server_is_asked_who_exists() {
    let mut setup = Setup::new();
    let sinks = [
        ("takes", "smtp", sink(&setup, "takes", &[])),
        ("refuses", "smtp", sink(&setup, "refuses", &["-f", "RCPT", "-B", "550 5.1.1 no such user"])),
        (
            "unwilling",
            "smtp",
            sink(&setup, "unwilling", &["-f", "RCPT", "-B", "554 5.7.1 relay access denied"]),
        ),
        ("busy", "smtp", sink(&setup, "busy", &["-r", "RCPT"])),
        ("no-mail", "smtp", sink(&setup, "no-mail", &["-f", "MAIL"])),
        ("old", "smtp", sink(&setup, "old", &["-e"])),
        ("lmtp", "lmtp", sink(&setup, "lmtp", &["-L", "-f", "RCPT", "-B", "550 5.1.1 no such user"])),
        ("ends", "smtp", sink(&setup, "ends", &["-q", "RCPT"])),
    ];
    let policies: Vec<_> = sinks
        .iter()
        .map(|(name, protocol, (_, socket))| {
            format!(
                "{{ type = \"callout\", name = \"{name}\", protocol = \"{protocol}\", address = \"unix:{}\", domains = [\"{name}.example\"] }}",
                socket.display()
            )
        })
        .collect();
    setup.set("accept.any", true).set("policy", format!("[{}]", policies.join(", ")));
    let server = setup.start();
    for _ in 0..3 {
        assert_answers(
            &server,
            &[
                ("a@takes.example", OK),
                ("b@takes.example", OK),
                ("a@refuses.example", UNKNOWN),
                ("a@unwilling.example", DOWN),
                ("a@busy.example", DOWN),
                ("a@no-mail.example", DOWN),
                ("a@old.example", OK),
                ("a@lmtp.example", UNKNOWN),
                ("a@ends.example", DOWN),
            ],
        );
    }
}
