//! What the DNS says about a peer: the gateway, a real unbound with zones of the test's own, and clients of any address, whom a proxy
//! names.
//!
//! Between the two stands a [`Tap`], which counts questions and holds them back.

mod support;

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use support::client::{Client, Reply};
use support::dns::Unbound;
use support::server::Server;
use support::setup::Setup;
use support::wait;

/// All that is; whatever else is asked does not exist. `REFUSED` zones answer nobody.
const ZONES: &str = r#"
    local-zone: "." static
    local-zone: "refused.example." refuse
    local-zone: "2.0.192.in-addr.arpa." static
    local-zone: "8.b.d.0.1.0.0.2.ip6.arpa." static
    local-data: "2.2.0.192.bl.example. 300 A 127.0.0.2"
    local-data: "3.2.0.192.bl.example. 300 A 127.0.0.2"
    local-data: "3.2.0.192.wl.example. 300 A 127.0.3.2"
    local-data: "4.2.0.192.bl.example. 300 A 127.0.0.10"
    local-data: "5.2.0.192.wl.example. 300 A 127.0.3.2"
    local-data: "6.2.0.192.bl.example. 300 A 127.255.255.254"
    local-data: "7.2.0.192.bl.example. 300 A 198.51.100.1"
    local-data: "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.bl.example. 300 A 127.0.0.3"
    local-data: "spam.example.rhs.example. 300 A 127.0.1.2"
    local-data: "2.2.0.192.in-addr.arpa. 300 PTR mx.peer.example."
    local-data: "mx.peer.example. 300 A 192.0.2.2"
    local-data: "3.2.0.192.in-addr.arpa. 300 PTR liar.example."
    local-data: "liar.example. 300 A 198.51.100.1"
    local-data: '4.2.0.192.in-addr.arpa. 300 PTR under_score.example.'
    local-data: "under_score.example. 300 A 192.0.2.4"
    local-data: "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 300 PTR six.peer.example."
    local-data: "six.peer.example. 300 AAAA 2001:db8::1"
    local-data: "mail.only.example. 300 MX 10 mx.peer.example."
    local-data: "no.mail.example. 300 MX 0 ."
"#;

#[derive(Default)]
struct Heard {
    is_over: AtomicBool,
    /// Questions are neither answered nor forgotten while they are held.
    is_holding: AtomicBool,
    /// The ids of the questions for each name: one that is sent again has the same.
    questions: Mutex<BTreeMap<String, Vec<u16>>>,
}

/// Hands questions to a server, and its answers back.
struct Tap {
    address: SocketAddr,
    heard: Arc<Heard>,
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    fn start(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let address = socket.local_addr().expect("its address");
        let heard = Arc::<Heard>::default();
        let thread = {
            let heard = heard.clone();
            thread::spawn(move || Self::run(&socket, server, &heard))
        };
        Tap { address, heard, thread: Some(thread) }
    }

    fn run(socket: &UdpSocket, server: SocketAddr, heard: &Heard) {
        let beyond = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        beyond.connect(server).expect("a way to the server");
        beyond.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        socket.set_read_timeout(Some(Duration::from_millis(5))).expect("a timeout");
        let (mut octets, mut waiting) = ([0; 4096], Vec::new());
        while !heard.is_over.load(Ordering::Relaxed) {
            if let Ok((size, from)) = socket.recv_from(&mut octets) {
                let question = octets[..size].to_vec();
                let id = u16::from_be_bytes([question[0], question[1]]);
                let mut questions = heard.questions.lock().unwrap();
                let ids = questions.entry(name_of(&question)).or_default();
                if !ids.contains(&id) {
                    ids.push(id);
                }
                waiting.push((question, from));
            }
            if heard.is_holding.load(Ordering::Relaxed) {
                continue;
            }
            for (question, from) in waiting.drain(..) {
                let _ = beyond.send(&question);
                // Where the server is gone there is nothing to hand back.
                while let Ok(size) = beyond.recv(&mut octets) {
                    if octets[..2] == question[..2] {
                        let _ = socket.send_to(&octets[..size], from);
                        break;
                    }
                }
            }
        }
    }

    fn hold(&self) {
        self.heard.is_holding.store(true, Ordering::Relaxed);
    }

    fn release(&self) {
        self.heard.is_holding.store(false, Ordering::Relaxed);
    }

    /// How often this name was asked about, by whatever kind of question.
    fn count(&self, name: &str) -> usize {
        self.heard.questions.lock().unwrap().get(name).map_or(0, Vec::len)
    }

    fn all(&self) -> BTreeMap<String, usize> {
        let questions = self.heard.questions.lock().unwrap();
        questions.iter().map(|(name, ids)| (name.clone(), ids.len())).collect()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.heard.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The name in a question (RFC 1035 §4.1.2).
fn name_of(message: &[u8]) -> String {
    let (mut at, mut labels) = (12, Vec::new());
    while message[at] != 0 {
        let size = usize::from(message[at]);
        labels.push(String::from_utf8_lossy(&message[at + 1..=at + size]).to_lowercase());
        at += 1 + size;
    }
    labels.join(".")
}

/// A gateway with these policies behind a proxy, and its DNS.
struct Lab {
    server: Server,
    tap: Tap,
    unbound: Option<Unbound>,
    _setup: Setup,
}

impl Lab {
    fn new(timeout: &str, policies: &str) -> Self {
        let mut setup = Setup::new();
        let unbound = Unbound::start(setup.home(), ZONES);
        let tap = Tap::start(unbound.address);
        setup.listeners(&[&format!("proxy_from = [\"127.0.0.0/8\"]\n{policies}")]);
        setup.set("accept.domains", "[\"mx.test\"]");
        setup.set("dns.servers", format!("[\"{}\"]", tap.address)).set("dns.timeout", format!("{timeout:?}"));
        let server = setup.start();
        Lab { server, tap, unbound: Some(unbound), _setup: setup }
    }

    /// A connection of a client with this address; its greeting is to be read.
    fn connect(&self, address: &str) -> Client {
        let mut client = Client::connect(self.server.address()).expect("a connection");
        let header = match address.contains(':') {
            true => format!("PROXY TCP6 {address} ::1 40000 25\r\n"),
            false => format!("PROXY TCP4 {address} 127.0.0.1 40000 25\r\n"),
        };
        client.send(header.as_bytes()).expect("a header");
        client
    }

    /// A session with everything said before the recipient.
    fn session(&self, address: &str, hello: &str, from: &str) -> Client {
        let mut client = self.connect(address);
        assert_eq!(client.reply().expect("a greeting").code, 220);
        client.expect(&format!("EHLO {hello}"), 250);
        client.expect(&format!("MAIL FROM:<{from}>"), 250);
        client
    }

    /// The reply to the recipient.
    fn recipient(&self, address: &str, hello: &str, from: &str) -> String {
        line(self.session(address, hello, from).say("RCPT TO:<inbox@mx.test>"))
    }

    fn peer(&self, address: &str) -> String {
        self.recipient(address, "client.example", "a@client.example")
    }

    /// Waits for a line in the log, which is written when there is time.
    fn until_logged(&self, words: &str) {
        wait::until(words, || self.server.log().contains(words));
    }

    fn kill_dns(&mut self) {
        self.unbound = None;
    }
}

fn line(reply: Reply) -> String {
    format!("{} {}", reply.code, reply.text)
}

/// Two lists, of which one speaks for peers.
const LISTS: &str = r#"
[[policy]]
type = "dnsbl"
lists = [
  { zone = "bl.example", weight = 3, answers = ["127.0.0.2-127.0.0.9"] },
  { zone = "bl.example", weight = 1, answers = ["127.0.0.10"] },
  { zone = "wl.example", weight = -2 },
]
reject_at = 3
trust_at = -2
timeout = "1m"

[[policy]]
type = "hello"
"#;

const OK: &str = "250 2.1.5 Ok";

#[test]
fn lists_tell_peers_apart() {
    // One more, which answers nobody.
    let third = "{ zone = \"wl.example\", weight = -2 },\n  { zone = \"refused.example\", weight = 5 },";
    let lab = Lab::new("20s", &LISTS.replace("{ zone = \"wl.example\", weight = -2 },", third));
    let table = [
        ("192.0.2.1", OK),
        ("192.0.2.2", "550 5.7.1 192.0.2.2 is listed by bl.example"),
        // Somebody speaks for it.
        ("192.0.2.3", OK),
        ("192.0.2.4", OK),
        // Neither of these answers is a listing.
        ("192.0.2.6", OK),
        ("192.0.2.7", OK),
        ("2001:db8::1", "550 5.7.1 2001:db8::1 is listed by bl.example"),
        ("2001:db8::2", OK),
    ];
    for (address, said) in table {
        assert_eq!(lab.peer(address), said, "{address}");
    }
    let own = ["10.0.0.1", "192.168.7.7", "127.0.0.1", "fd00::1"];
    let asked = lab.tap.all();
    for address in own {
        assert_eq!(lab.peer(address), OK, "{address}");
    }
    assert_eq!(lab.tap.all(), asked, "nobody is asked about these");
    // Who is vouched for is not asked by the guard behind it.
    assert_eq!(lab.recipient("192.0.2.5", "localhost", "a@client.example"), OK);
    let refused = lab.recipient("192.0.2.1", "localhost", "a@client.example");
    assert!(refused.starts_with("550 5.7.1 The name in HELO is neither"), "{refused}");
    lab.until_logged("bl.example score 3");
    lab.until_logged("a list answers what is no listing");
    lab.until_logged("a list does not answer and is left alone for a while");
    lab.until_logged(&refused);
    let log = lab.server.log();
    let warned = log.lines().filter(|line| line.contains("a list answers what is no listing")).count();
    assert_eq!(warned, 1, "once for the zone:\n{log}");
}

#[test]
fn at_connect_nothing_more_is_heard() {
    let lab = Lab::new(
        "20s",
        "[[policy]]\ntype = \"dnsbl\"\nat = \"connect\"\nlists = [{ zone = \"bl.example\" }]\nreject_at = 1\n",
    );
    let mut client = lab.connect("192.0.2.2");
    assert_eq!(line(client.reply().unwrap()), "554 5.7.1 192.0.2.2 is listed by bl.example");
    assert!(client.is_closed());
    assert_eq!(lab.connect("192.0.2.1").reply().unwrap().code, 220);
}

#[test]
fn domains_of_senders_and_in_hello_are_looked_up() {
    let policy = |name: &str, query: &str| {
        format!(
            "[[policy]]\ntype = \"dnsbl\"\nname = \"{name}\"\nquery = \"{query}\"\nlists = [{{ zone = \"rhs.example\" }}]\nreject_at = 1\n"
        )
    };
    let lab = Lab::new("20s", &(policy("senders", "sender") + &policy("names", "hello")));
    let table = [
        ("ok.example", "a@ok.example", OK),
        ("ok.example", "a@spam.example", "550 5.7.1 The domain of the sender is listed by rhs.example"),
        ("spam.example", "a@ok.example", "550 5.7.1 The name in HELO is listed by rhs.example"),
        ("[10.0.0.1]", "", OK),
    ];
    for (hello, from, said) in table {
        assert_eq!(lab.recipient("10.0.0.1", hello, from), said, "{hello} {from}");
    }
}

#[test]
fn names_of_addresses_must_lead_back() {
    let lab = Lab::new(
        "20s",
        "[[policy]]\ntype = \"reverse_dns\"\nrequire = \"confirmed\"\nrefuse = \"reject\"\nat = \"recipient\"\n",
    );
    let none = |address: &str| format!("550 5.7.25 {address} has no name in the DNS (PTR)");
    let table = [
        ("192.0.2.1", none("192.0.2.1")),
        ("192.0.2.2", OK.into()),
        ("192.0.2.3", "550 5.7.25 192.0.2.3 has a name in the DNS that does not lead back to it".into()),
        // Its name is no domain of mail.
        ("192.0.2.4", none("192.0.2.4")),
        ("2001:db8::1", OK.into()),
        ("2001:db8::2", none("2001:db8::2")),
    ];
    for (address, said) in table {
        assert_eq!(lab.peer(address), said, "{address}");
    }
}

#[test]
fn names_in_hello_must_be_in_the_dns() {
    let lab = Lab::new("20s", "[[policy]]\ntype = \"hello\"\nresolves = true\nat = \"hello\"\n");
    let unknown = "451 4.7.1 The name in HELO is not in the DNS";
    let table = [
        ("mx.peer.example", None),
        ("six.peer.example", None),
        ("mail.only.example", None),
        ("under_score.example", None),
        ("nobody.example", Some(unknown)),
        ("no.mail.example", Some(unknown)),
        ("mx.test", Some("550 5.7.1 The name in HELO is mine, not yours")),
    ];
    for (hello, refused) in table {
        let mut client = lab.connect("192.0.2.1");
        assert_eq!(client.reply().expect("a greeting").code, 220);
        let said = client.say(&format!("EHLO {hello}"));
        match refused {
            None => assert_eq!(said.code, 250, "{hello}: {said:?}"),
            Some(refused) => assert_eq!(line(said), refused, "{hello}"),
        }
    }
}

#[test]
fn a_dead_server_defers_or_is_ignored_and_what_is_known_stays_known() {
    let policy = |name: &str, zone: &str, on_error: &str| {
        format!(
            "[[policy]]\ntype = \"dnsbl\"\nname = \"{name}\"\nlists = [{{ zone = \"{zone}\" }}]\nreject_at = 1\non_error = \"{on_error}\"\n"
        )
    };
    for (on_error, unknown) in
        [("defer", "451 4.3.0 Temporary lookup failure, try again later"), ("ignore", OK)]
    {
        let mut lab = Lab::new("1s", &policy("lists", "bl.example", on_error));
        assert_eq!(lab.peer("192.0.2.1"), OK);
        lab.kill_dns();
        assert_eq!(lab.peer("192.0.2.2"), unknown, "{on_error}");
        assert_eq!(lab.peer("192.0.2.1"), OK, "it is remembered");
        lab.until_logged("policy could not decide");
    }
    // So does one that refuses to answer.
    let lab = Lab::new("20s", &policy("lists", "refused.example", "defer"));
    assert_eq!(lab.peer("192.0.2.1"), "451 4.3.0 Temporary lookup failure, try again later");
}

#[test]
fn only_who_waits_for_the_dns_waits() {
    let lab = Lab::new("50s", LISTS);
    assert_eq!(lab.peer("192.0.2.2"), "550 5.7.1 192.0.2.2 is listed by bl.example");
    lab.tap.hold();
    let mut waits = lab.session("192.0.2.4", "client.example", "a@client.example");
    waits.send(b"RCPT TO:<inbox@mx.test>\r\n").unwrap();
    wait::until("its question is on its way", || lab.tap.count("4.2.0.192.bl.example") > 0);
    // On the same shard: of one the answer is known, of the other none is needed.
    assert_eq!(lab.peer("192.0.2.2"), "550 5.7.1 192.0.2.2 is listed by bl.example");
    let mut other = lab.session("10.0.0.1", "client.example", "a@client.example");
    other.expect("RCPT TO:<inbox@mx.test>", 250);
    other.expect("DATA", 354);
    assert_eq!(other.content(b"Subject: x\r\n\r\nx\r\n").unwrap().code, 250);
    assert!(waits.is_silent_for(Duration::from_millis(1)), "it still waits");
    lab.tap.release();
    assert_eq!(line(waits.reply().unwrap()), OK);
}

#[test]
fn an_address_is_asked_about_once_however_often_it_comes() {
    let lab = Lab::new("50s", LISTS);
    lab.tap.hold();
    let mut clients: Vec<_> =
        (0..20).map(|_| lab.session("192.0.2.2", "client.example", "a@client.example")).collect();
    for client in &mut clients {
        client.send(b"RCPT TO:<inbox@mx.test>\r\n").unwrap();
    }
    wait::until("its question is on its way", || lab.tap.count("2.2.0.192.bl.example") > 0);
    lab.tap.release();
    let listed = "550 5.7.1 192.0.2.2 is listed by bl.example";
    for client in &mut clients {
        assert_eq!(line(client.reply().unwrap()), listed);
    }
    for _ in 0..5 {
        assert_eq!(lab.peer("192.0.2.2"), listed);
        assert_eq!(lab.peer("192.0.2.1"), OK);
    }
    // That there is nothing is remembered as well.
    for name in
        ["2.2.0.192.bl.example", "2.2.0.192.wl.example", "1.2.0.192.bl.example", "1.2.0.192.wl.example"]
    {
        assert_eq!(lab.tap.count(name), 1, "{name}: {:?}", lab.tap.all());
    }
}
