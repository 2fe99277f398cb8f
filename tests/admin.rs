//! The admin interface and the commands that use it, against the built binary: what they say, who may ask, that secrets stay secret, and
//! that mail goes on whatever is asked.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use serde_json::Value;
use support::certificates::Authority;
use support::client::Client;
use support::disk::Mount;
use support::ledger;
use support::maildir;
use support::server::Server;
use support::setup::{Setup, incoming};
use support::tools;
use support::wait;

const DOCUMENT: &str = include_str!("../docs/ADMIN.md");

/// `incoming …`, with the configuration.
fn command(setup: &Setup, arguments: &[&str]) -> Output {
    incoming()
        .env("NO_COLOR", "1")
        .args(arguments)
        .arg("--config")
        .arg(setup.write())
        .output()
        .expect("the binary runs")
}

/// What it says when it succeeds.
#[track_caller]
fn said(setup: &Setup, arguments: &[&str]) -> String {
    let output = command(setup, arguments);
    let [out, err] = [output.stdout, output.stderr].map(|o| String::from_utf8(o).expect("UTF-8"));
    assert!(output.status.success() && err.is_empty(), "{arguments:?}: {}\n{out}{err}", output.status);
    out
}

/// What it says on both of its outputs when it fails.
#[track_caller]
fn complained(setup: &Setup, arguments: &[&str]) -> String {
    let output = command(setup, arguments);
    let [out, err] = [output.stdout, output.stderr].map(|o| String::from_utf8(o).expect("UTF-8"));
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {out}{err}");
    out + &err
}

#[track_caller]
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Asks over the socket, and gives status and body.
fn ask(setup: &Setup, request: &str, body: &str) -> (u16, String) {
    let stream = UnixStream::connect(setup.data().join("admin.sock")).expect("the socket");
    exchange(stream, request, "", body)
}

fn exchange(mut stream: impl Read + Write, request: &str, fields: &str, body: &str) -> (u16, String) {
    let size = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n{fields}Content-Length: {size}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_string());
    (status.unwrap_or_else(|| panic!("{answer}")), body.expect("a body"))
}

/// Where something listens on TCP, as the log says.
fn logged_address(server: &Server, what: &str) -> SocketAddr {
    let words = format!("the {what} is at");
    // The log's lines may come a little after the word that it is ready.
    let found = wait::poll(wait::PATIENCE, || {
        let log = server.log();
        let line = log.lines().find(|line| line.contains(&words))?;
        line.rsplit("address=").next()?.split_whitespace().next()?.parse().ok()
    });
    found.unwrap_or_else(|| panic!("no {words:?} in\n{}", server.log()))
}

#[test]
fn the_socket_is_for_the_gateways_user_and_goes_with_it() {
    let setup = Setup::new();
    let mut server = setup.start();
    let socket = setup.data().join("admin.sock");
    assert_eq!(fs::metadata(&socket).expect("the socket").mode() & 0o777, 0o600);
    assert!(server.stop().success());
    assert!(!socket.exists());
    let words = complained(&setup, &["stats", "--json"]);
    assert!(words.contains("no gateway answers at") && words.contains("admin.sock"), "{words}");

    // What a killed one leaves is replaced.
    let mut server = setup.start();
    server.kill();
    assert!(socket.exists());
    let _server = setup.start();
    said(&setup, &["health"]);
}

#[test]
fn a_gateway_without_a_socket_says_what_is_missing() {
    let mut setup = Setup::new();
    setup.set("admin.socket", "\"none\"");
    let _server = setup.start();
    assert!(!setup.data().join("admin.sock").exists());
    let words = complained(&setup, &["stats"]);
    assert!(words.contains("admin.socket is \"none\"") && words.contains("admin.listen"), "{words}");
}

#[test]
fn over_tcp_the_commands_show_the_token_and_nobody_gets_in_without() {
    let mut setup = Setup::new();
    let token = setup.file("token", "0123456789abcdef0123456789abcdef\n");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).expect("its mode");
    setup.set("admin.socket", "\"none\"").set("admin.listen", "\"127.0.0.1:0\"");
    setup.set("admin.token_file", format!("{token:?}")).set("monitor.listen", "\"127.0.0.1:0\"");
    // Everybody can read it: then it is no secret, and the start says so.
    let refused = setup.try_start().err().expect("it does not start");
    assert!(refused.log.contains("chmod o-rwx"), "{refused}");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("its mode");
    let server = setup.start();
    let address = logged_address(&server, "admin interface");
    let monitor = logged_address(&server, "monitor");
    let connect = |address| TcpStream::connect(address).expect("a connection");

    setup.set("admin.listen", format!("\"{address}\""));
    assert_eq!(said(&setup, &["health"]), "ready\n");
    let wrong = setup.file("wrong", "0123456789abcdef0123456789abcdeF\n");
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600)).expect("its mode");
    setup.set("admin.token_file", format!("{wrong:?}"));
    let words = complained(&setup, &["stats"]);
    assert!(words.contains("the token is missing or wrong"), "{words}");
    let (status, _) = exchange(connect(address), "GET /v1/stats", "", "");
    assert_eq!(status, 401);

    for (path, expected) in [("/livez", 200), ("/readyz", 200), ("/metrics", 200), ("/v1/stats", 404)] {
        let (status, body) = exchange(connect(monitor), &format!("GET {path}"), "", "");
        assert_eq!(status, expected, "{path}: {body}");
    }
}

#[test]
fn stats_sessions_and_health_are_shown_to_people_and_programs() {
    let mut setup = Setup::new();
    setup.hold_deliveries();
    setup.set("shards", 2);
    let server = setup.start();
    let mut client = Client::greet(server.address());
    client.deliver("a@client.test", &["b@mx.test", "c@mx.test"], &ledger::content(0));
    client.expect("MAIL FROM:<a@client.test>", 250);

    let stats = json(&said(&setup, &["stats", "--json"]));
    assert_eq!(stats["messages"]["accepted"], 1, "{stats}");
    assert_eq!(stats["messages"]["recipients"], 2);
    assert_eq!(
        (&stats["sessions"]["open"], &stats["queue"]["depth"], &stats["shards"]),
        (&1.into(), &1.into(), &2.into())
    );
    assert_eq!((&stats["stage"], &stats["pid"]), (&"ready".into(), &server.pid().into()));
    let targets = stats["queue"]["targets"].as_array().expect("targets");
    let store = targets.iter().find(|target| target["target"] == "store").expect("the target");
    let waiting: u64 =
        ["backlog", "deferred", "handed_off"].iter().map(|key| store[key].as_u64().unwrap()).sum();
    assert_eq!(waiting, 1, "{store}");
    let screen = said(&setup, &["stats", "--interval", "1ms"]);
    for part in ["2 shards: ready, load calm", "1 of ", "TARGET", "store", "spool ", "resident; content "] {
        assert!(screen.contains(part), "no {part:?} in\n{screen}");
    }

    let lines = said(&setup, &["sessions", "--json"]);
    let session = json(lines.trim_end());
    assert_eq!(
        (&session["hello"], &session["state"]),
        (&"client.test".into(), &"transaction".into()),
        "{session}"
    );
    assert_eq!(
        (&session["messages"], &session["tls"], &session["user"]),
        (&1.into(), &Value::Null, &Value::Null)
    );
    let peer = client.socket().local_addr().expect("its address").to_string();
    assert_eq!(
        (&session["peer"], &session["listener"]),
        (&peer.into(), &server.address().to_string().into())
    );
    assert!(
        session["received_bytes"].as_u64() > Some(100) && session["sent_bytes"].as_u64() > Some(100),
        "{session}"
    );
    let table = said(&setup, &["sessions", "--ip", "127.0.0.0/8"]);
    assert!(table.contains("client.test") && table.ends_with("1 session\n"), "{table}");
    assert_eq!(said(&setup, &["sessions", "--ip", "192.0.2.0/24"]), "0 sessions\n");
    let words = complained(&setup, &["sessions", "--ip", "192.0.2.0/33"]);
    assert!(words.contains("expected an address or a network"), "{words}");

    assert_eq!(said(&setup, &["health"]), "ready\n");
    assert_eq!(said(&setup, &["health", "--live"]), "alive\n");
    assert_eq!(json(&said(&setup, &["health", "--json"]))["ok"], true);
}

#[test]
fn many_sessions_are_listed_page_by_page_each_once() {
    const COUNT: usize = 150;
    let mut setup = Setup::new();
    setup.set("shards", 2).set("admission.max_connections_per_ip", 0);
    let server = setup.start();
    let clients: Vec<_> = (0..COUNT).map(|_| Client::greet(server.address())).collect();
    let lines = said(&setup, &["sessions", "--json"]);
    let mut peers: Vec<_> = lines.lines().map(|line| json(line)["peer"].to_string()).collect();
    peers.sort();
    peers.dedup();
    assert_eq!((lines.lines().count(), peers.len()), (COUNT, COUNT));
    // In parts.
    let (mut from, mut seen) = (String::new(), 0);
    loop {
        let (status, body) = ask(&setup, &format!("GET /v1/sessions?limit=10{from}"), "");
        assert_eq!(status, 200, "{body}");
        let page = json(&body);
        seen += page["sessions"].as_array().expect("a list").len();
        match page["next"].as_str() {
            Some(next) => from = format!("&from={next}"),
            None => break,
        }
    }
    assert_eq!(seen, COUNT);
    assert_eq!(said(&setup, &["sessions", "--json", "--limit", "7"]).lines().count(), 7);
    drop(clients);
    wait::until("they are gone", || said(&setup, &["sessions"]) == "0 sessions\n");
}

#[test]
fn what_is_logged_can_be_changed_while_it_runs() {
    let setup = Setup::new();
    let server = setup.start();
    assert_eq!(said(&setup, &["log-level"]), "info\n");
    let accepted = |server: &Server| server.log().lines().filter(|line| line.contains("accepted")).count();
    let mut client = Client::greet(server.address());
    let mut deliver = || client.deliver("a@client.test", &["b@mx.test"], &ledger::content(0));
    deliver();
    wait::until("it is logged", || accepted(&server) == 1);
    assert_eq!(said(&setup, &["log-level", "warn"]), "warn until the next start (it was info)\n");
    deliver();
    let answer = json(&said(&setup, &["log-level", "warn,incoming::shard=info", "--json"]));
    assert_eq!(answer["before"], "warn");
    deliver();
    // Lines keep their order: were the second logged, it would be there by now.
    wait::until("the third is logged", || accepted(&server) >= 2);
    assert_eq!(accepted(&server), 2);
    for wrong in ["loud", "incoming=loud", "a b", "[[["] {
        let words = complained(&setup, &["log-level", wrong]);
        assert!(words.contains("expected error, warn, info"), "{wrong}: {words}");
    }
    // For a while.
    said(&setup, &["log-level", "debug", "--for", "100ms"]);
    wait::until("it is as before", || said(&setup, &["log-level"]) == "warn,incoming::shard=info\n");
}

#[test]
fn a_reload_says_what_it_did_and_a_faulty_file_changes_nothing() {
    let mut setup = Setup::new();
    let server = setup.start();
    assert_eq!(said(&setup, &["reload"]), "nothing has changed\n");
    setup.set("smtp.recipients_max", 123);
    let words = said(&setup, &["reload"]);
    assert!(words.contains("in force now: ") && words.contains("recipients_max"), "{words}");
    let answer = json(&said(&setup, &["reload", "--json"]));
    assert_eq!(answer["changed"], Value::Array(Vec::new()));
    // The command finds the fault before the gateway does; over the API it is the gateway that says so.
    setup.set("smtp.recipients_max", 1);
    setup.write();
    let (status, body) = ask(&setup, "POST /v1/reload", "");
    assert!(status == 422 && body.contains("recipients_max"), "{status} {body}");
    Client::greet(server.address()).expect("NOOP", 250);
}

#[test]
fn a_drain_is_watched_to_its_end() {
    let setup = Setup::new();
    let mut server = setup.start();
    let mut busy = Client::greet(server.address());
    busy.envelope("a@client.test", &["b@mx.test"]).expect("replies");
    let mut watching = incoming();
    watching.args(["drain", "--timeout", "10m", "--config"]).arg(setup.write());
    let mut watching = Lines::start(watching);
    assert!(watching.next().starts_with("draining: 1 session, "));
    let words = complained(&setup, &["health"]);
    assert!(words.contains("draining"), "{words}");
    assert_eq!(said(&setup, &["health", "--live"]), "alive\n");
    let (status, body) = ask(&setup, "GET /v1/stage", "");
    assert!(status == 200 && json(&body)["stage"] == "draining" && json(&body)["sessions"] == 1, "{body}");
    assert_eq!(busy.content(b"Subject: last\r\n\r\n").expect("a reply").code, 250);
    let last = std::iter::repeat_with(|| watching.next())
        .find(|line| !line.starts_with("draining") && !line.starts_with("stopping"));
    assert!(last.expect("a line").contains("listens no more"));
    assert!(watching.child.wait().expect("its status").success());
    assert!(server.wait().success());
}

/// A command whose output is read while it runs; killed when this is dropped.
struct Lines {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Lines {
    fn start(mut command: std::process::Command) -> Lines {
        let mut child = command.env("NO_COLOR", "1").stdout(Stdio::piped()).spawn().expect("the binary runs");
        let out = BufReader::new(child.stdout.take().expect("its output"));
        Lines { child, out }
    }

    /// The next line. The test's own time is the bound.
    fn next(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("a line");
        assert!(!line.is_empty(), "it has ended");
        line.trim_end().into()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `incoming trace …`, once it looks.
fn trace(setup: &Setup, arguments: &[&str]) -> Lines {
    let mut command = incoming();
    command.arg("trace").args(arguments).arg("--json").arg("--config").arg(setup.write());
    let mut lines = Lines::start(command);
    assert_eq!(json(&lines.next())["event"], "ready");
    lines
}

/// What a trace shows until (and with) the end of a session, as a dialogue.
fn dialogue(lines: &mut Lines) -> Vec<String> {
    let mut shown = Vec::new();
    loop {
        let line = json(&lines.next());
        let (event, text) =
            (line["event"].as_str().expect("an event"), line["text"].as_str().unwrap_or_default());
        let size = line["size"].as_u64().map(|size| format!("+{size}")).unwrap_or_default();
        match event {
            "pulse" => {}
            "client" => shown.push(format!("C: {text}{size}")),
            "server" => shown.push(format!("S: {}", text.split(' ').next().unwrap_or_default())),
            _ => shown.push(format!("{event}{size}")),
        }
        if event == "ended" {
            return shown;
        }
    }
}

/// A gateway with TLS where `alice` may log in with the password `right`.
fn with_logins() -> (Setup, Server, Arc<ClientConfig>) {
    let authority = Authority::new();
    let mut setup = Setup::new();
    setup.certificates(&[&authority.issue(&["mx.test"])]);
    setup.listeners(&["tls = \"optional\"\nauth = \"optional\""]);
    let line = tools::converse(incoming().args(["auth", "hash", "alice"]), b"right\n");
    let file = setup.file("credentials", line);
    setup.set("auth.credentials", format!("{file:?}"));
    let server = setup.start();
    (setup, server, authority.client())
}

#[test]
fn a_trace_shows_the_dialogue_and_no_secret() {
    let (setup, server, tls) = with_logins();
    let mut traced = trace(&setup, &["--ip", "127.0.0.0/8"]);
    let mut client = Client::connect(server.address()).expect("a connection");
    assert_eq!(client.reply().expect("a greeting").code, 220);
    client.expect("EHLO client.test", 250);
    // In clear there is no AUTH; the password is in the clear all the same.
    let refused = client.say("AUTH PLAIN AGFsaWNlAHJpZ2h0");
    assert!(refused.code >= 500, "{refused:?}");
    client.say("AGFsaWNlAHJpZ2h0");
    client.expect("STARTTLS", 220);
    let mut client = client.shake_hands(&tls).expect("TLS");
    client.expect("EHLO client.test", 250);
    client.expect("AUTH LOGIN", 334);
    client.expect("YWxpY2U=", 334);
    client.expect("d3Jvbmc=", 535);
    client.expect("AUTH PLAIN", 334);
    client.expect("AGFsaWNlAHJpZ2h0", 235);
    client.deliver("a@client.test", &["b@mx.test"], b"Subject: secret\r\n\r\nsecret words\r\n");
    client.expect("QUIT", 221);
    drop(client);
    let shown = dialogue(&mut traced);
    let lines: Vec<&str> =
        shown.iter().map(String::as_str).filter(|line| !line.starts_with("S: 250")).collect();
    let expected = [
        "begun",
        "S: 220",
        "C: EHLO client.test",
        "C: AUTH PLAIN+17",
        "C: +16",
        "C: STARTTLS",
        "S: 220",
        "tls",
        "C: EHLO client.test",
        "C: AUTH LOGIN",
        "S: 334",
        "C: +8",
        "S: 334",
        "C: +8",
        "S: 535",
        "C: AUTH PLAIN",
        "S: 334",
        "C: +16",
        "S: 235",
        "C: MAIL FROM:<a@client.test>",
        "C: RCPT TO:<b@mx.test>",
        "C: DATA",
        "S: 354",
    ];
    let lines: Vec<&str> =
        lines.into_iter().filter(|line| !line.starts_with("S: 5") || *line == "S: 535").collect();
    assert_eq!(lines[..expected.len()], expected, "{shown:#?}");
    assert!(
        shown.iter().any(|line| line.starts_with("content+")) && shown.contains(&"C: QUIT".to_string()),
        "{shown:#?}"
    );
    for secret in ["AGFs", "d3Jv", "YWxp", "secret", "Subject"] {
        assert!(!shown.iter().any(|line| line.contains(secret)), "{secret} in {shown:#?}");
    }
}

#[test]
fn a_trace_joins_sessions_that_were_there_before_and_leaves_others_alone() {
    let setup = Setup::new();
    let server = setup.start();
    let mut before = Client::greet(server.address());
    let mut traced = trace(&setup, &["--ip", "127.0.0.1"]);
    let mut other = Client::connect_from([127, 0, 0, 2].into(), server.address()).expect("a connection");
    other.reply().expect("a greeting");
    other.expect("EHLO other.test", 250);
    other.expect("QUIT", 221);
    // It may be the answer to an AUTH that nobody has seen.
    before.say("aGVsbG8");
    before.expect("NOOP hello", 250);
    before.expect("QUIT", 221);
    drop(before);
    let shown = dialogue(&mut traced);
    let shown: Vec<_> = shown.iter().map(String::as_str).collect();
    assert_eq!(shown, ["joined", "C: +7", "S: 500", "C: NOOP hello", "S: 250", "C: QUIT", "S: 221", "ended"]);
    // Who has gone leaves nothing behind: as many as may can trace after it, again and again.
    drop(traced);
    for _ in 0..6 {
        let mut lines = trace(&setup, &["--ip", "127.0.0.1", "--for", "1ms"]);
        assert_eq!(json(&lines.next())["event"], "over");
        assert!(lines.child.wait().expect("its status").success());
    }
}

#[test]
fn a_trace_is_bounded_in_lines_and_sessions_and_in_number() {
    let setup = Setup::new();
    let server = setup.start();
    let mut few = trace(&setup, &["--ip", "127.0.0.1", "--lines", "3", "--sessions", "1"]);
    let _first = Client::greet(server.address());
    let mut events: Vec<_> =
        (0..4).map(|_| json(&few.next())["event"].as_str().unwrap().to_string()).collect();
    assert_eq!(events.pop().as_deref(), Some("over"), "{events:?}");
    let mut one = trace(&setup, &["--ip", "127.0.0.1", "--sessions", "1"]);
    let mut first = Client::greet(server.address());
    let mut second = Client::greet(server.address());
    let events = std::iter::repeat_with(|| json(&one.next())["event"].as_str().unwrap().to_string());
    assert!(events.take(20).any(|event| event == "left_out"));
    let _more: Vec<_> = (0..3).map(|_| trace(&setup, &["--ip", "127.0.0.1"])).collect();
    let words = complained(&setup, &["trace", "--ip", "127.0.0.1"]);
    assert!(words.contains("end one of them"), "{words}");
    first.expect("NOOP", 250);
    second.expect("NOOP", 250);
}

#[test]
fn readiness_says_that_there_is_no_room_and_that_there_is_again() {
    let mount = Mount::ext4_in_a_file(64);
    let mut setup = Setup::new();
    setup.small_segments().retry_soon().data_at(mount.path().join("data"));
    setup.hold_deliveries();
    let server = setup.start();
    let content = [b"Subject: large\r\n\r\n".as_slice(), &b"sixteen octets\r\n".repeat(64 << 10)].concat();
    let mut client = Client::greet(server.address());
    let is_refused = std::iter::repeat_with(|| client.transact("a@client.test", &["b@mx.test"], &content))
        .take(100)
        .any(|reply| reply.expect("a reply").code == 452);
    assert!(is_refused, "64 MiB are full");
    // What is large may find no room where something small still does.
    let small = &content[..18 + (16 << 12)];
    wait::until("nothing fits any more", || {
        let _ = client.transact("a@client.test", &["b@mx.test"], small);
        !command(&setup, &["health"]).status.success()
    });
    let words = complained(&setup, &["health"]);
    assert!(words.contains("shard 0: no room in the spool"), "{words}");
    assert_eq!(said(&setup, &["health", "--live"]), "alive\n");
    setup.release_deliveries();
    wait::until("there is room again", || command(&setup, &["health"]).status.success());
}

#[test]
fn who_floods_the_admin_interface_does_not_disturb_mail() {
    let mut setup = Setup::new();
    setup.set("monitor.listen", "\"127.0.0.1:0\"");
    let server = setup.start();
    let monitor = logged_address(&server, "monitor");
    // More than there are places, and none of them says anything; halves of requests; and orders that are asked for and not read.
    let _silent: Vec<_> =
        (0..200).map_while(|_| TcpStream::connect_timeout(&monitor, Duration::from_secs(1)).ok()).collect();
    let socket = setup.data().join("admin.sock");
    let mut halves: Vec<_> = (0..60).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
    for half in &mut halves {
        let _ = half.write_all(b"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nX-Half: ");
    }
    for _ in 0..50 {
        Client::greet(server.address()).deliver("a@client.test", &["b@mx.test"], &ledger::content(0));
    }
    wait::until("all are delivered", || maildir::count(setup.maildir()) == 50);
    drop(halves);
    wait::until("commands are answered again", || command(&setup, &["health"]).status.success());
}

#[test]
fn dead_letters_are_handled_from_afar_as_on_the_machine() {
    let mut setup = Setup::new();
    let boxes = setup.home().join("boxes/{recipient}");
    setup.maildir_at(boxes);
    let server = setup.start();
    let nameless = format!("\"{}\"@{}", " ".repeat(62), "d".repeat(63));
    let mut ids: Vec<_> = (0..3)
        .map(|_| {
            Client::greet(server.address()).deliver(
                "s@client.test",
                &[&nameless],
                b"Subject: x\r\n\r\nwords\r\n",
            )
        })
        .collect();
    wait::until("there are dead letters", || setup.dead_letters().len() == 3);
    ids.sort();
    let (status, body) = ask(&setup, "GET /v1/dead?limit=2", "");
    let page = json(&body);
    assert_eq!((status, page["letters"].as_array().map(Vec::len)), (200, Some(2)), "{body}");
    let next = page["next"].as_str().expect("there is another").to_string();
    let rest = json(&ask(&setup, &format!("GET /v1/dead?from={next}"), "").1);
    assert_eq!((rest["letters"].as_array().map(Vec::len), &rest["next"]), (Some(1), &Value::Null));

    let (status, letter) = ask(&setup, &format!("GET /v1/dead/{}", ids[0]), "");
    assert_eq!((status, &json(&letter)["message_id"]), (200, &Value::from(ids[0].clone())), "{letter}");
    let (status, content) = ask(&setup, &format!("GET /v1/dead/{}/content", ids[0]), "");
    assert!(status == 200 && content.contains("Subject: x\r\n\r\nwords\r\n"), "{content}");
    let (status, _) = ask(&setup, &format!("DELETE /v1/dead/{}", ids[0]), "");
    assert_eq!((status, setup.dead_letters().len()), (200, 2));
    for (request, body, expected) in [
        (format!("GET /v1/dead/{}", ids[0]), "", 404),
        (format!("DELETE /v1/dead/{}", ids[0]), "", 404),
        ("GET /v1/dead/nonsense%2f".into(), "", 400),
        ("POST /v1/dead/retry".into(), "{}", 400),
        ("POST /v1/dead/retry".into(), r#"{"all": true, "ids": ["x"]}"#, 400),
    ] {
        let (status, answer) = ask(&setup, &request, body);
        assert_eq!(status, expected, "{request} {answer}");
        assert!(json(&answer)["error"].is_string(), "{answer}");
    }
    let (status, body) = ask(&setup, "POST /v1/dead/retry", &format!(r#"{{"ids": ["{}"]}}"#, ids[1]));
    assert_eq!((status, &json(&body)["ids"][0]), (200, &Value::from(ids[1].clone())), "{body}");
    wait::until("it was sent again, and given up again", || !setup.dead_letters().contains(&ids[1]));
    // The names that the interface has are the commands' too.
    assert!(said(&setup, &["dead", "retry", &ids[2]]).contains("1 dead letter"));
    wait::until("so was this one", || {
        setup.dead_letters().len() == 2 && !setup.dead_letters().contains(&ids[2])
    });
    let id = setup.dead_letters().remove(0);
    assert_eq!(said(&setup, &["dead", "drop", &id]), format!("{id} removed\n"));
}

/// The blocks of the document: what is asked, and the JSON that answers.
fn examples() -> Vec<(String, String, Value)> {
    let mut blocks = DOCUMENT.split("```").skip(1).step_by(2).peekable();
    let mut examples = Vec::new();
    while let Some(block) = blocks.next() {
        let Some(request) = block.strip_prefix("http\n") else { continue };
        let (line, body) = request.split_once('\n').expect("a line");
        let answer =
            blocks.next().and_then(|block| block.strip_prefix("json\n")).expect("an answer behind it");
        examples.push((line.into(), body.trim().into(), json(answer)));
    }
    examples
}

/// Whether two answers have the same keys, as far as both have any.
fn shape(documented: &Value, given: &Value, place: &str) {
    match (documented, given) {
        (Value::Object(documented), Value::Object(given)) => {
            let keys = |object: &serde_json::Map<String, Value>| object.keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(documented), keys(given), "{place}");
            documented.iter().for_each(|(key, value)| shape(value, &given[key], &format!("{place}.{key}")));
        }
        (Value::Array(documented), Value::Array(given)) => {
            if let (Some(documented), Some(given)) = (documented.first(), given.first()) {
                shape(documented, given, &format!("{place}[]"));
            }
        }
        (Value::Null, _) | (_, Value::Null) => {}
        _ => {
            assert_eq!(std::mem::discriminant(documented), std::mem::discriminant(given), "{place}: {given}")
        }
    }
}

#[test]
fn the_examples_of_the_document_are_answered_as_it_says() {
    let setup = Setup::new();
    let server = setup.start();
    let _client = Client::greet(server.address());
    let examples = examples();
    assert!(examples.len() >= 9, "{}", examples.len());
    for (request, body, answer) in examples {
        let (status, given) = ask(&setup, &request, &body);
        assert_eq!(status, 200, "{request}: {given}");
        shape(&answer, &json(&given), &request);
    }
}
