//! While a policy waits for somebody else: the session waits, the shard does not, and what the peer sends meanwhile is not mail.
//!
//! The one who is waited for is a service of Postfix's policy protocol that answers when it is told to.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use support::client::Client;
use support::maildir;
use support::server::Server;
use support::setup::Setup;
use support::wait;

/// Answers when it is told to.
struct Service(TcpListener);

/// A question that was asked, and waits.
struct Question(TcpStream);

impl Service {
    fn start() -> Self {
        Service(TcpListener::bind("127.0.0.1:0").expect("a port"))
    }

    /// Waits until it is asked.
    fn question(&self) -> Question {
        let (stream, _) = self.0.accept().expect("the gateway asks");
        stream.set_read_timeout(Some(wait::PATIENCE)).expect("a timeout");
        let mut lines = BufReader::new(&stream).lines();
        while !lines.next().expect("a request").expect("in lines").is_empty() {}
        drop(lines);
        Question(stream)
    }
}

impl Question {
    /// The connection ends with the answer, so that the next question is asked on another.
    fn answer(mut self, action: &str) {
        write!(self.0, "action={action}\n\n").expect("the answer is taken");
    }
}

/// A gateway with one shard that asks the service at `phase`.
fn asks_at(phase: &str) -> (Setup, Server, Service) {
    let service = Service::start();
    let mut setup = Setup::new();
    let address = service.0.local_addr().expect("an address");
    setup.set("accept.domains", "[\"mx.test\"]");
    let policy = format!(
        "[{{ type = \"policy_service\", address = \"{address}\", at = [\"{phase}\"], timeout = \"60s\" }}]"
    );
    setup.set("policy", policy);
    let server = setup.start();
    (setup, server, service)
}

/// RFC 2920 §3.1: what comes before the 354 nobody has asked for.
#[test]
fn content_sent_while_data_is_decided_ends_the_session() {
    let (setup, server, service) = asks_at("data");
    let mut client = Client::greet(server.address());
    client.expect("MAIL FROM:<a@client.test>", 250);
    client.expect("RCPT TO:<inbox@mx.test>", 250);
    client.send(b"DATA\r\n").expect("sent");
    let question = service.question();
    client.send(b"Subject: early\r\n\r\nearly\r\n.\r\n").expect("sent");
    // What was sent on loopback is there when the send has returned.
    question.answer("DUNNO");
    let reply = client.reply().expect("a reply");
    assert_eq!(reply.line(), "554 5.5.0 Content before 354, closing");
    assert!(client.is_closed());
    // And who waits is served.
    let mut client = Client::greet(server.address());
    client.expect("MAIL FROM:<a@client.test>", 250);
    client.expect("RCPT TO:<inbox@mx.test>", 250);
    client.send(b"DATA\r\n").expect("sent");
    service.question().answer("DUNNO");
    assert_eq!(client.reply().expect("a reply").code, 354);
    assert_eq!(client.content(b"Subject: in time\r\n\r\nin time\r\n").expect("a reply").code, 250);
    wait::until("it is delivered", || maildir::count(setup.maildir()) > 0);
    let messages = maildir::read(setup.maildir());
    assert_eq!(messages.len(), 1);
    assert!(String::from_utf8_lossy(&messages[0].content).contains("in time"));
}

/// It would be read as commands.
#[test]
fn content_sent_while_data_is_decided_ends_the_session_also_where_data_is_refused() {
    let (setup, server, service) = asks_at("data");
    for action in ["DEFER later", "REJECT never"] {
        let mut client = Client::greet(server.address());
        client.expect("MAIL FROM:<a@client.test>", 250);
        client.expect("RCPT TO:<inbox@mx.test>", 250);
        client.send(b"DATA\r\n").expect("sent");
        let question = service.question();
        client.send(b"MAIL FROM:<evil@client.test>\r\nRCPT TO:<inbox@mx.test>\r\n.\r\n").expect("sent");
        question.answer(action);
        assert_eq!(client.reply().expect("a reply").line(), "554 5.5.0 Content before 354, closing");
        assert!(client.is_closed(), "{action}");
    }
    assert_eq!(maildir::count(setup.maildir()), 0);
}

/// DATA is the last of its group (RFC 2920 §3.1), also where the group is taken in two parts because somebody was waited for.
#[test]
fn content_sent_while_a_recipient_before_data_is_decided_ends_the_session() {
    let (setup, server, service) = asks_at("recipient");
    for (action, code) in [("DUNNO", 250), ("DEFER later", 450), ("REJECT never", 550)] {
        let mut client = Client::greet(server.address());
        client.expect("MAIL FROM:<a@client.test>", 250);
        client.send(b"RCPT TO:<inbox@mx.test>\r\nDATA\r\n").expect("sent");
        let question = service.question();
        client.send(b"RSET\r\nMAIL FROM:<evil@client.test>\r\n.\r\n").expect("sent");
        question.answer(action);
        let reply = client.reply().expect("to RCPT").code;
        assert!(reply == code || action.starts_with("DEFER") && reply == 451, "{action}: {reply}");
        assert_eq!(client.reply().expect("to DATA").line(), "554 5.5.0 Content before 354, closing");
        assert!(client.is_closed(), "{action}");
    }
    assert_eq!(maildir::count(setup.maildir()), 0);
}

#[test]
fn others_are_served_while_one_waits() {
    for phase in ["connect", "hello", "mail", "recipient", "message"] {
        let (_setup, server, service) = asks_at(phase);
        let mut waits = Client::connect(server.address()).expect("a connection");
        let asked = std::thread::scope(|scope| {
            let session = scope.spawn(|| {
                let _ = waits.reply();
                for line in ["EHLO c.test", "MAIL FROM:<a@c.test>", "RCPT TO:<b@mx.test>", "DATA"] {
                    if waits.send(format!("{line}\r\n").as_bytes()).is_err() || waits.reply().is_err() {
                        return None;
                    }
                }
                waits.send(b"hello\r\n.\r\n").ok()?;
                waits.reply().ok()
            });
            let first = service.question();
            // Another session comes as far as the same question while the first waits for its answer.
            let mut other = Client::connect(server.address()).expect("a connection");
            let other = scope.spawn(move || {
                other.reply().ok()?;
                for line in ["EHLO c.test", "MAIL FROM:<a@c.test>", "RCPT TO:<b@mx.test>", "DATA"] {
                    other.send(format!("{line}\r\n").as_bytes()).ok()?;
                    other.reply().ok()?;
                }
                other.content(b"hello\r\n").ok()
            });
            service.question().answer("DUNNO");
            let other = other.join().expect("no panic").expect("a reply");
            first.answer("DUNNO");
            (other.code, session.join().expect("no panic").expect("a reply").code)
        });
        assert_eq!(asked, (250, 250), "{phase}");
    }
}

#[test]
fn a_session_that_waits_is_answered_while_the_gateway_stops() {
    let (_setup, mut server, service) = asks_at("recipient");
    let mut client = Client::greet(server.address());
    client.send(b"MAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\n").expect("sent");
    let question = service.question();
    server.signal("TERM");
    question.answer("REJECT not now");
    assert_eq!(client.reply().expect("to MAIL").code, 250);
    assert_eq!(client.reply().expect("to RCPT").code, 550);
    drop(client);
    assert!(server.wait().success());
}
