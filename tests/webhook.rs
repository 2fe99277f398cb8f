//! Messages posted to an application: `webhook_service.py`, a real HTTP(S) server that verifies signatures by code of its own, keeps
//! what it takes, and answers as it is told.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};

use support::certificates::Authority;
use support::client::Client;
use support::ledger::Ledger;
use support::load::Load;
use support::maildir;
use support::setup::Setup;
use support::tools;
use support::trial;
use support::wait;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0";

/// The application; dropped, it is ended.
struct Service {
    process: Option<Child>,
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
        self.stop();
        let mut command = Command::new(tools::PYTHON);
        let _ = fs::remove_file(self.file("port"));
        command.arg(tools::test_file("webhook_service.py")).arg(self.folder.path()).arg(port);
        command.args(&self.certificate).stdin(Stdio::null());
        self.process = Some(command.spawn().expect("python runs"));
        wait::until("the service listens", || self.file("port").is_file());
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn port(&self) -> String {
        fs::read_to_string(self.file("port")).expect("a port")
    }

    /// What it took, as a Maildir.
    fn taken(&self) -> &Path {
        self.folder.path()
    }

    /// How it answers from now on.
    fn answer(&self, told: Value) {
        let new = self.file("answer.new");
        fs::write(&new, told.to_string()).expect("a file");
        fs::rename(new, self.file("answer")).expect("it is put in place");
    }

    fn requests(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.file("requests")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("an entry")).collect()
    }

    #[track_caller]
    fn wait_for(&self, count: usize) -> Vec<Value> {
        wait::until("the requests have come", || self.requests().len() >= count);
        self.requests()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A gateway that posts everything to `service`.
fn setup(service: &Service, scheme: &str) -> Setup {
    let mut setup = Setup::new();
    setup.retry_soon().set("accept.domains", "[\"x.example\", \"mx.test\"]");
    let url = format!("{scheme}://localhost:{}/in?tenant=7", service.port());
    setup
        .set("transport.hook.type", "\"webhook\"")
        .set("transport.hook.url", format!("{url:?}"))
        .set("transport.hook.breaker_interval", "\"1s\"")
        .set("delivery.transport", "\"hook\"");
    setup
}

fn sign(setup: &mut Setup, service: &Service, ours: &[&str], theirs: &[&str]) {
    fs::write(service.file("secrets"), theirs.join("\n")).expect("a file");
    let file = setup.file("secrets", ours.join("\n"));
    setup.set("transport.hook.secret_file", format!("{file:?}"));
}

/// One of the texts of an entry.
#[track_caller]
fn text<'a>(entry: &'a Value, path: &str) -> &'a str {
    entry.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("no {path} in {entry}"))
}

/// So many octets of every value, with lines of every length and, where `is_binary`, bare line ends and no end.
fn odd_content(size: usize, is_binary: bool) -> Vec<u8> {
    let mut content =
        b"Subject: =?utf-8?q?h=C3=A9?=\r\n there\r\nTo: a@x.example\r\n\r\n.\r\n..\r\n".to_vec();
    let mut state = size as u64 | 1;
    while content.len() < size {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let octet = (state >> 33) as u8;
        match octet {
            b'\r' | b'\n' | 0 if !is_binary => content.extend_from_slice(b"\r\n"),
            _ => content.push(octet),
        }
        if !is_binary && state.is_multiple_of(97) {
            content.extend_from_slice(b"\r\n");
        }
    }
    if is_binary {
        content.extend_from_slice(b"\r\r\n\n\rx");
    } else {
        content.extend_from_slice(b"\r\n");
    }
    content
}

#[test]
fn messages_arrive_octet_for_octet_and_signed_in_both_formats() {
    for format in ["rfc822", "json"] {
        let service = Service::start(None);
        let mut setup = setup(&service, "http");
        sign(&mut setup, &service, &[SECRET, OTHER_SECRET], &[OTHER_SECRET]);
        let fields = setup.file("fields", "Authorization: Bearer token\nX-Tenant: 7\n");
        setup.set("transport.hook.format", format!("{format:?}"));
        setup.set("transport.hook.header_file", format!("{fields:?}"));
        let mut server = setup.start();
        let contents = [
            (Vec::new(), false),
            (odd_content(4096, false), false),
            (odd_content(5 << 20, false), false),
            (odd_content(70_000, true), true),
        ];
        let mut ids = BTreeMap::new();
        for (content, is_binary) in &contents {
            let mut client = Client::greet(server.address());
            let id = if *is_binary {
                client.expect("MAIL FROM:<a%2C@client.test> BODY=BINARYMIME", 250);
                client.expect("RCPT TO:<\"b, c\"@x.example>", 250);
                client.send(format!("BDAT {} LAST\r\n", content.len()).as_bytes()).expect("it is sent");
                client.send(content).expect("it is sent");
                let reply = client.reply().expect("a reply");
                assert_eq!(reply.code, 250, "{}", reply.line());
                reply.message_id().expect("an id").to_string()
            } else {
                client.deliver("a%2C@client.test", &["\"b, c\"@x.example", "d@x.example"], content)
            };
            ids.insert(id, content.clone());
        }
        let requests = service.wait_for(contents.len());
        assert_eq!(requests.len(), contents.len());
        for entry in &requests {
            assert_eq!((&entry["signed"], &entry["status"]), (&json!(true), &json!(204)), "{entry}");
            assert_eq!(text(entry, "/path"), "/in?tenant=7");
            assert_eq!(text(entry, "/headers/authorization"), "Bearer token");
            assert_eq!(text(entry, "/headers/x-tenant"), "7");
            assert_eq!(text(entry, "/headers/idempotency-key"), text(entry, "/headers/webhook-id"));
            assert_eq!(text(entry, "/sender"), "a%2C@client.test");
            assert_eq!(entry["paths"][0], "\"b, c\"@x.example");
            let content = &ids[text(entry, "/headers/x-incoming-message-id")];
            if format == "json" && !content.is_empty() {
                let message = &entry["message"];
                assert_eq!(message["subject"], "hé there");
                assert_eq!(message["to"], json!([{ "name": null, "address": "a@x.example" }]));
                assert_eq!(message["header"][0][0], "Received");
                assert_eq!(message["header"][1], json!(["Subject", "=?utf-8?q?h=C3=A9?= there"]));
                assert_eq!(text(message, "/arrival/protocol"), "ESMTP");
            }
        }
        let taken = maildir::read(service.taken());
        assert_eq!(taken.len(), contents.len());
        for stored in taken {
            let key = stored.path.file_name().expect("a name").to_string_lossy().into_owned();
            let (id, _) = key.split_once('-').expect("the key begins with the id");
            assert!(stored.content == ids[id], "{format}: {id} of {} octets", ids[id].len());
        }
        assert!(server.stop().success());
        assert!(!server.log().contains("token") && !server.log().contains(SECRET));
    }
}

#[test]
fn an_endpoint_that_goes_away_and_comes_back_loses_nothing_and_gets_nothing_twice() {
    let mut service = Service::start(None);
    let mut setup = setup(&service, "http");
    sign(&mut setup, &service, &[SECRET], &[SECRET]);
    let mut server = setup.start();
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(server.address(), &ledger, trial::SESSIONS);
    trial::wait_for_more(&ledger, &mut server, 100);
    // It dies with requests on their way, and its port is closed.
    let port = service.port();
    service.stop();
    trial::wait_for_more(&ledger, &mut server, 100);
    // It comes back and asks for time; then the gateway is killed as well.
    service.answer(json!({ "status": 503, "headers": { "Retry-After": "1" }, "body": "not yet" }));
    service.restart(&port);
    trial::wait_for_more(&ledger, &mut server, 100);
    wait::until("it was asked meanwhile", || service.requests().iter().any(|entry| entry["status"] == 503));
    load.stop();
    server.kill();
    let mut server = setup.start();
    wait::until("it was asked again", || {
        let after = service.requests();
        after.iter().filter(|entry| entry["status"] == 503).count() > 1
    });
    service.answer(json!({}));
    let balance = ledger.assert_kept(service.taken());
    assert_eq!(balance.duplicates, 0, "{balance}");
    assert!(setup.dead_letters().is_empty());
    // One message, one key, however often it was sent.
    let mut keys: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in service.requests().iter().filter(|entry| entry["broken"].is_null()) {
        let id = text(entry, "/headers/x-incoming-message-id");
        keys.entry(id.into()).or_default().insert(text(entry, "/headers/webhook-id").into());
        assert_eq!(entry["signed"], true);
    }
    assert!(keys.values().all(|keys| keys.len() == 1), "{keys:?}");
    let sent_again = service.requests().len() - keys.len();
    println!(
        "{balance}; {} requests, {sent_again} of them for messages that had been sent before",
        service.requests().len()
    );
    assert!(server.stop().success());
}

#[test]
fn an_endpoint_that_is_not_who_it_should_be_gets_nothing() {
    let (authority, other) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().expect("a folder");
    let issued = authority.issue(&["localhost"]);
    let certificate = folder.path().join("certificate");
    fs::write(&certificate, issued.chain + &issued.key).expect("a file");
    let service = Service::start(Some(certificate));
    let mut setup = setup(&service, "https");
    let wrong = setup.file("wrong.pem", other.pem());
    setup.set("transport.hook.authorities", format!("{wrong:?}"));
    let mut server = setup.start();
    Client::greet(server.address()).deliver("a@client.test", &["b@x.example"], b"Subject: x\r\n\r\nx\r\n");
    wait::until("it is deferred", || server.log().contains("invalid peer certificate"));
    // A name that the certificate does not have.
    assert!(server.stop().success());
    let right = setup.file("right.pem", authority.pem());
    setup.set("transport.hook.authorities", format!("{right:?}"));
    let url = format!("\"https://127.0.0.1:{}/in\"", service.port());
    setup.set("transport.hook.url", url);
    let mut server = setup.start();
    wait::until("it is deferred", || server.log().contains("not valid for name"));
    assert!(server.stop().success());
    assert_eq!(service.requests(), Vec::<Value>::new());
    let url = format!("\"https://localhost:{}/in\"", service.port());
    setup.set("transport.hook.url", url);
    let mut server = setup.start();
    service.wait_for(1);
    wait::until("it is there", || maildir::count(service.taken()) == 1);
    assert!(server.stop().success());
    assert!(setup.dead_letters().is_empty());
}

#[test]
fn what_an_endpoint_answers_is_delivered_deferred_or_rejected() {
    let service = Service::start(None);
    let mut setup = setup(&service, "http");
    setup.set("transport.hook.reject_statuses", "[404]");
    let mut server = setup.start();
    let send =
        |content: &[u8]| Client::greet(server.address()).deliver("a@client.test", &["b@x.example"], content);
    let small = b"Subject: x\r\n\r\nx\r\n".as_slice();
    let rejected = [
        (
            json!({ "status": 422, "headers": { "Content-Type": "text/plain" }, "body": "too\r\nugly" }),
            "HTTP 422 Unprocessable Entity: too ugly",
        ),
        (
            json!({ "status": 404, "headers": { "Content-Type": "text/html" }, "body": "<p>" }),
            "HTTP 404 Not Found (localhost",
        ),
        // Before it has read the message.
        (json!({ "status": 413, "early": true }), "HTTP 413 Payload Too Large"),
    ];
    for (told, words) in rejected {
        service.answer(told);
        let content =
            if words.starts_with("HTTP 413") { odd_content(5 << 20, false) } else { small.to_vec() };
        let id = send(&content);
        wait::until(words, || setup.dead_letters().contains(&id));
        let letter =
            fs::read_to_string(setup.data().join("dead").join(&id).join("dead.json")).expect("a letter");
        assert!(letter.contains(words), "{letter}");
    }
    let deferred = [
        json!({ "status": 302, "headers": { "Location": "/elsewhere" } }),
        json!({ "status": 400 }),
        json!({ "status": 401 }),
        json!({ "status": 429, "headers": { "Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT" } }),
        json!({ "status": 500 }),
        // It cannot have what it says that it has.
        json!({ "status": 200, "early": true }),
    ];
    let dead_count = setup.dead_letters().len();
    for told in deferred {
        let (is_early, status) = (told["early"] == true, told["status"].clone());
        service.answer(told);
        let id = send(&if is_early { odd_content(5 << 20, false) } else { small.to_vec() });
        let is_it = |entry: &Value| entry.pointer("/headers/x-incoming-message-id") == Some(&json!(id));
        wait::until("it was answered", || {
            service.requests().iter().any(|entry| is_it(entry) && entry["status"] == status)
        });
        service.answer(json!({}));
        wait::until("it was sent again", || {
            service.requests().iter().any(|entry| is_it(entry) && entry["is_new"] == true)
        });
    }
    assert_eq!(setup.dead_letters().len(), dead_count);
    assert!(
        service.requests().iter().all(|entry| text(entry, "/path") == "/in?tenant=7"),
        "no redirect is followed"
    );
    // Of many, one after the other, most go through a connection that is there.
    let connections: BTreeSet<u64> = {
        let before = service.requests().len();
        let mut client = Client::greet(server.address());
        for n in 1..=20 {
            client.deliver("a@client.test", &["b@x.example"], small);
            service.wait_for(before + n);
        }
        let requests = service.requests();
        requests[before..].iter().map(|entry| entry["connection"].as_u64().expect("a port")).collect()
    };
    assert!(connections.len() < 10, "{} connections for 20 messages", connections.len());
    assert!(server.stop().success());
}

#[test]
fn an_endpoint_that_says_nothing_is_left_and_asked_again() {
    let service = Service::start(None);
    let mut setup = setup(&service, "http");
    setup.set("transport.hook.timeout", "\"1s\"");
    let mut server = setup.start();
    service.answer(json!({ "wait": true, "status": 500 }));
    let mut client = Client::greet(server.address());
    let ids = [
        client.deliver("a@client.test", &["b@x.example"], b"Subject: small\r\n\r\nx\r\n"),
        client.deliver("a@client.test", &["b@x.example"], &odd_content(1 << 20, false)),
    ];
    wait::until("both are deferred", || {
        let log = server.log();
        ids.iter().all(|id| log.lines().any(|line| line.contains(id) && line.contains("no answer in time")))
    });
    service.answer(json!({}));
    fs::write(service.file("gate"), "").expect("a gate");
    wait::until("both are there", || maildir::count(service.taken()) == 2);
    assert!(server.stop().success());
    assert!(setup.dead_letters().is_empty());
}

#[test]
fn recipients_of_several_requests_have_their_own_outcomes_and_keys() {
    let service = Service::start(None);
    let mut setup = setup(&service, "http");
    setup.set("transport.hook.recipients_per_request_max", 2);
    let mut server = setup.start();
    service.answer(json!({ "status": 500, "for": "c@x.example" }));
    let recipients = ["a@x.example", "b@x.example", "c@x.example", "d@x.example", "e@x.example"];
    Client::greet(server.address()).deliver("a@client.test", &recipients, b"Subject: x\r\n\r\nx\r\n");
    let requests = service.wait_for(4);
    let paths = |entry: &Value| entry["paths"].clone();
    let keys: Vec<_> = requests.iter().map(|entry| text(entry, "/headers/webhook-id").to_string()).collect();
    assert_eq!(paths(&requests[0]), json!(["a@x.example", "b@x.example"]));
    assert_eq!(paths(&requests[1]), json!(["c@x.example", "d@x.example"]));
    assert_eq!(paths(&requests[2]), json!(["e@x.example"]));
    assert_eq!(keys[..3].iter().collect::<BTreeSet<_>>().len(), 3);
    // Only those go again, as they went before.
    assert_eq!((paths(&requests[3]), &keys[3]), (paths(&requests[1]), &keys[1]));
    service.answer(json!({}));
    wait::until("all are there", || maildir::count(service.taken()) == 3);
    assert!(server.stop().success());
}

#[test]
fn a_wrong_secret_loses_nothing() {
    let service = Service::start(None);
    let mut setup = setup(&service, "http");
    sign(&mut setup, &service, &[OTHER_SECRET], &[SECRET]);
    let mut server = setup.start();
    Client::greet(server.address()).deliver("a@client.test", &["b@x.example"], b"Subject: x\r\n\r\nx\r\n");
    assert_eq!(service.wait_for(1)[0]["status"], 401);
    assert!(server.stop().success());
    sign(&mut setup, &service, &[SECRET], &[SECRET]);
    let mut server = setup.start();
    wait::until("it is there", || maildir::count(service.taken()) == 1);
    assert!(server.stop().success());
    assert!(setup.dead_letters().is_empty());
    // What is no secret is told before anything listens.
    let file = setup.file("secrets", "secret\n");
    setup.set("transport.hook.secret_file", format!("{file:?}"));
    let refused = setup.try_start().err().expect("it does not start");
    assert!(refused.log.contains("whsec_"), "{}", refused.log);
}
