//! Everything that counts, against the built binary with two shards: rate limits, connections of an address, bans, and one address's share
//! of what all share.
//!
//! Peers come from the addresses of the loopback network, each of which is a peer of its own where loopback is not exempt.

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use rustls::ClientConfig;
use support::certificates::Authority;
use support::client::{Client, Reply};
use support::server::Server;
use support::setup::{Setup, incoming};
use support::tools;
use support::wait;

/// Clients that come at once: enough that each shard has several of them.
const CLIENTS: usize = 40;

/// A gateway with two shards that counts loopback as any other network.
fn setup() -> Setup {
    let mut setup = Setup::new();
    setup.set("shards", 2).set("accept.domains", "[\"mx.test\"]").set("admission.exempt", "[]");
    setup.set("admission.max_connections_per_ip", 0).set("admission.max_connections_per_network", 0);
    setup
}

fn loopback(n: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, n).into()
}

/// Connects, and reads what it is told first.
fn meet(source: IpAddr, address: SocketAddr) -> (Client, Reply) {
    let mut client = Client::connect_from(source, address).expect("a connection");
    let reply = client.reply().expect("a greeting or a refusal");
    (client, reply)
}

/// Does `what` with each of the numbers, all at once.
fn at_once<T: Send>(count: usize, what: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (together, what) = (&Barrier::new(count), &what);
    thread::scope(|scope| {
        let one = |n| {
            move || {
                together.wait();
                what(n)
            }
        };
        let threads: Vec<_> = (0..count).map(|n| scope.spawn(one(n))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Keeps those who were greeted; all others were told `refusal`, and the connection was closed.
#[track_caller]
fn greeted(met: Vec<(Client, Reply)>, refusal: &str) -> Vec<Client> {
    let mut greeted = Vec::new();
    for (mut client, reply) in met {
        if reply.code == 220 {
            greeted.push(client);
        } else {
            assert!(reply.line().starts_with(refusal), "{reply:?}");
            assert!(client.is_closed());
        }
    }
    greeted
}

fn lines(server: &Server, words: &[&str]) -> usize {
    let log = server.log();
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// The log is written a moment later.
#[track_caller]
fn wait_for_lines(server: &Server, words: &[&str], count: usize) {
    wait::until(&format!("{count} lines with {words:?}"), || lines(server, words) >= count);
    assert_eq!(lines(server, words), count, "{words:?}");
}

#[test]
fn a_limit_of_five_lets_five_through_on_two_shards() {
    let mut setup = setup();
    let limit = "type = \"rate_limit\", window = \"1h\"";
    setup.set(
        "policy",
        format!(
            "[{{ {limit}, name = \"mail\", count = \"transactions\", per = \"sender\", limit = 5 }}, \
              {{ {limit}, name = \"to\", count = \"recipients\", per = \"recipient\", limit = 35 }}]"
        ),
    );
    let server = setup.start();
    let address = server.address();
    const KEYS: usize = 10;
    let replies = at_once(CLIENTS, |n| {
        let mut client = Client::greet(address);
        let mail = |key: usize| {
            let reply = client.say(&format!("MAIL FROM:<{key}@client.test>"));
            client.expect("RSET", 250);
            reply
        };
        // All begin with the same key.
        let mail: Vec<_> = (0..KEYS).map(mail).collect();
        client.expect(&format!("MAIL FROM:<of-{n}@client.test>"), 250);
        (mail, client.say("RCPT TO:<b@mx.test>"))
    });
    for key in 0..KEYS {
        let (let_in, refused): (Vec<_>, Vec<_>) =
            replies.iter().map(|(mail, _)| &mail[key]).partition(|reply| reply.code == 250);
        assert_eq!(let_in.len(), 5, "sender {key}");
        for reply in refused {
            let text = "451 4.7.1 Too many messages from this sender, try again in ";
            let rest = reply.line();
            let rest = rest.strip_prefix(text).unwrap_or_else(|| panic!("{reply:?}"));
            let seconds: u32 = rest.strip_suffix(" seconds").expect("seconds").parse().expect("a number");
            assert!((1..=3600).contains(&seconds), "{seconds}");
        }
        wait_for_lines(
            &server,
            &["refused", "policy=\"mail\"", &format!("key={key}@client.test: 5")],
            CLIENTS - 5,
        );
    }
    let taken = replies.iter().filter(|(_, rcpt)| rcpt.code == 250).count();
    assert_eq!(taken, 35, "beyond what is remembered one by one it is exact too");
}

#[test]
fn connections_of_an_address_are_limited_in_time() {
    let mut setup = setup();
    let limit = "[{ type = \"rate_limit\", count = \"connections\", limit = 5, window = \"1h\" }]";
    let server = setup.set("policy", limit).start();
    for peer in [2, 3] {
        let met = at_once(CLIENTS, |_| meet(loopback(peer), server.address()));
        let refusal = "421 4.7.0 Too many connections from your address, try again in ";
        assert_eq!(greeted(met, refusal).len(), 5, "also when those before have gone");
        assert!(meet(loopback(peer), server.address()).1.line().starts_with(refusal));
    }
}

#[test]
fn who_waits_gets_in() {
    let mut setup = setup();
    let limit = "[{ type = \"rate_limit\", count = \"transactions\", limit = 1, window = \"2s\" }]";
    let server = setup.set("policy", limit).start();
    let mut client = Client::greet(server.address());
    let mut codes = Vec::new();
    wait::until("it was let in, refused, and let in again", || {
        codes.push(client.say("MAIL FROM:<a@client.test>").code);
        if codes.last() == Some(&451) && codes.len() % 15 == 0 {
            client = Client::greet(server.address());
        } else if codes.last() == Some(&250) {
            client.expect("RSET", 250);
        }
        codes.first() == Some(&250) && codes.contains(&451) && codes.last() == Some(&250)
    });
}

#[test]
fn octets_are_refused_before_they_are_sent_or_when_they_have_come() {
    let mut setup = setup();
    setup.set("policy", "[{ type = \"rate_limit\", count = \"bytes\", limit = 1000, window = \"1h\" }]");
    let server = setup.start();
    let mut client = Client::greet(server.address());
    let content = [b"Subject: x\r\n\r\n".as_slice(), &[b'x'; 584], b"\r\n"].concat();
    assert_eq!(content.len(), 600);
    client.expect("MAIL FROM:<a@client.test> SIZE=600", 250);
    client.expect("RSET", 250);
    client.deliver("a@client.test", &["b@mx.test"], &content);
    let reply = client.expect("MAIL FROM:<a@client.test> SIZE=401", 451);
    assert!(reply.text.starts_with("4.7.1 Too much mail from your address, try again in "), "{reply:?}");
    // Who does not declare it is told at the end, and it does not count.
    let reply = client.transact("a@client.test", &["b@mx.test"], &content).expect("a reply");
    assert!(reply.line().starts_with("451 4.7.1 Too much mail"), "{reply:?}");
    client.expect("MAIL FROM:<a@client.test> SIZE=400", 250);
    client.expect("RSET", 250);
    client.expect("MAIL FROM:<a@client.test> SIZE=1001", 552);
}

#[test]
fn an_address_has_so_many_connections_on_two_shards_and_has_them_back() {
    let mut setup = setup();
    setup.set("admission.max_connections_per_ip", 5).set("admission.max_connections_per_network", 8);
    let server = setup.start();
    let address = server.address();
    for network in 0..3 {
        let peer = |n: u8| IpAddr::from(Ipv4Addr::new(127, 0, network, n));
        let met = at_once(CLIENTS, |_| meet(peer(2), address));
        let first = greeted(met, "421 4.7.0 Too many connections");
        assert_eq!(first.len(), 5);
        let key = format!("key=127.0.{network}.2: 5 connections");
        wait_for_lines(&server, &["refused", "policy=\"admission\"", &key], CLIENTS - 5);
        // Another address of the network has what is left to the network.
        let met = at_once(CLIENTS, |_| meet(peer(3), address));
        let mut second = greeted(met, "421 4.7.0 Too many connections");
        assert_eq!(second.len(), 3);
        let key = format!("key=127.0.{network}.0/24: 8 connections");
        wait_for_lines(&server, &["refused", "policy=\"admission\"", &key], CLIENTS - 3);
        assert_eq!(meet(Ipv4Addr::new(127, 1, network, 1).into(), address).1.code, 220, "another network");
        // However a session ends its place is given back.
        second.remove(0).expect("QUIT", 221);
        second.remove(0).reset();
        drop(first);
        for _ in 0..7 {
            wait::until("a place is free", || {
                let (client, reply) = meet(peer(4 + second.len() as u8), address);
                if reply.code == 220 {
                    second.push(client);
                }
                reply.code == 220
            });
        }
        assert_eq!(second.len(), 8);
        assert_eq!(meet(peer(200), address).1.code, 421);
    }
}

#[test]
fn behind_a_proxy_it_is_the_named_client_who_is_counted() {
    let authority = Authority::new();
    let mut setup = setup();
    setup.certificates(&[&authority.issue(&["mx.test"])]);
    let proxies = "proxy_from = [\"127.0.0.1/32\"]";
    setup.listeners(&[&format!("tls = \"disabled\"\n{proxies}"), &format!("tls = \"implicit\"\n{proxies}")]);
    setup.set("admission.max_connections_per_ip", 3);
    let server = setup.start();
    let named = |listener: usize, name: &str| {
        let mut client = Client::connect(server.addresses()[listener]).expect("a connection");
        client.send(format!("PROXY TCP4 {name} 192.0.2.25 4711 25\r\n").as_bytes()).expect("it is sent");
        client
    };
    let meet = |name: &str| {
        let mut client = named(0, name);
        let reply = client.reply().expect("a greeting or a refusal");
        (client, reply)
    };
    let mut kept = Vec::new();
    for name in ["192.0.2.1", "192.0.2.2"] {
        let let_in = greeted(at_once(CLIENTS, |_| meet(name)), "421 4.7.0 Too many connections");
        assert_eq!(let_in.len(), 3, "{name}");
        wait_for_lines(
            &server,
            &["refused", &format!("peer={name}:4711"), "policy=\"admission\"", "reply=\"421 4.7.0 "],
            CLIENTS - 3,
        );
        kept.extend(let_in);
    }
    // Where TLS comes first there is nothing to be said in clear.
    assert!(named(1, "192.0.2.1").is_closed());
    let tls = authority.client();
    let mut client = named(1, "192.0.2.3").shake_hands(&tls).expect("TLS");
    assert_eq!(client.reply().expect("a greeting").code, 220);
    // The proxy itself is not counted.
    let itself: Vec<_> = (0..10)
        .map(|_| {
            let mut client = Client::connect(server.address()).expect("a connection");
            client.send(b"PROXY UNKNOWN\r\n").expect("it is sent");
            assert_eq!(client.reply().expect("a greeting").code, 220);
            client
        })
        .collect();
    drop((kept, itself));
    wait::until("the places are free", || meet("192.0.2.1").1.code == 220);
}

#[test]
fn whom_xclient_names_takes_the_place_of_whom_it_named_before() {
    let mut setup = setup();
    setup.listeners(&["xclient_from = [\"127.0.0.1/32\"]"]).set("admission.max_connections_per_ip", 2);
    let server = setup.start();
    // The front end itself has as many as it wants.
    let mut clients: Vec<_> = (0..6).map(|_| Client::greet(server.address())).collect();
    clients[0].expect("XCLIENT ADDR=192.0.2.1", 220);
    clients[1].expect("XCLIENT ADDR=192.0.2.1", 220);
    let reply = clients[2].expect("XCLIENT ADDR=192.0.2.1", 421);
    assert!(reply.text.starts_with("4.7.0 Too many connections"), "{reply:?}");
    assert!(clients[2].is_closed());
    wait_for_lines(
        &server,
        &["refused", "peer=192.0.2.1:0", "policy=\"admission\"", "key=192.0.2.1: 2 connections"],
        1,
    );
    // The same again is no other, and another gives the place back.
    clients[0].expect("XCLIENT ADDR=192.0.2.1 PORT=7", 220);
    clients[0].expect("XCLIENT ADDR=192.0.2.2", 220);
    clients[3].expect("XCLIENT ADDR=192.0.2.1", 220);
    clients[4].expect("XCLIENT ADDR=192.0.2.1", 421);
    drop(clients.remove(1));
    wait::until("the place of who has gone is free", || {
        let mut client = Client::greet(server.address());
        client.say("XCLIENT ADDR=192.0.2.1").code == 220
    });
    // Who may not say so is counted himself.
    let strangers: Vec<_> = (0..3).map(|_| meet(loopback(9), server.address())).collect();
    let codes: Vec<_> = strangers.iter().map(|(_, reply)| reply.code).collect();
    assert_eq!(codes, [220, 220, 421]);
}

#[test]
fn who_has_to_be_sent_away_again_and_again_is_banned_for_a_while() {
    let mut setup = setup();
    setup.set("admission.ban_after", 3).set("admission.ban_window", "\"1h\"");
    setup.set("admission.ban_time", "\"3s\"");
    let server = setup.start();
    let address = server.address();
    let misbehave = |source: u8| {
        let (mut client, reply) = meet(loopback(source), address);
        assert_eq!(reply.code, 220, "{reply:?}");
        client.expect("GET / HTTP/1.1", 554);
        assert!(client.is_closed());
    };
    let behave = |source: u8| {
        let (mut client, reply) = meet(loopback(source), address);
        assert_eq!(reply.code, 220, "{reply:?}");
        client.expect("XYZZY", 500);
        client.expect("QUIT", 221);
    };
    (0..10).for_each(|_| behave(2));
    (0..2).for_each(|_| misbehave(2));
    (0..3).for_each(|_| behave(2));
    assert_eq!(lines(&server, &["banned"]), 0);
    misbehave(2);
    let mut refusal = None;
    wait::until("the ban has begun", || {
        refusal = Some(meet(loopback(2), address).1).filter(|reply| reply.code != 220);
        refusal.is_some()
    });
    let refusal = refusal.expect("a refusal").line();
    let text = "421 4.7.0 Too many errors from your address, try again in ";
    assert!(refusal.starts_with(text), "{refusal}");
    behave(3);
    wait::until("the ban is over", || meet(loopback(2), address).1.code == 220);
    wait_for_lines(&server, &["banned", "address=127.0.0.2", "time_seconds=3"], 1);
    assert!(lines(&server, &["refused", "policy=\"admission\"", "key=ban of 127.0.0.2"]) >= 1);
    // Who goes on as before is banned for longer.
    (0..3).for_each(|_| misbehave(2));
    wait_for_lines(&server, &["banned", "address=127.0.0.2", "time_seconds=6"], 1);
}

/// A gateway with TLS where `alice` may log in with the password `right`.
fn with_logins(set: impl FnOnce(&mut Setup)) -> (Setup, Server, Arc<ClientConfig>) {
    let authority = Authority::new();
    let mut setup = setup();
    setup
        .certificates(&[&authority.issue(&["mx.test"])])
        .listeners(&["tls = \"implicit\"\nauth = \"required\""]);
    let line = tools::converse(incoming().args(["auth", "hash", "alice"]), b"right\n");
    let file = setup.file("credentials", line);
    setup.set("auth.credentials", format!("{file:?}")).set("auth.threads", 1);
    set(&mut setup);
    let server = setup.start();
    (setup, server, authority.client())
}

fn greet_tls(source: IpAddr, server: &Server, tls: &Arc<ClientConfig>) -> Client {
    let client = Client::connect_from(source, server.address()).expect("a connection");
    let mut client = client.shake_hands(tls).expect("TLS");
    assert_eq!(client.reply().expect("a greeting").code, 220);
    client.expect("EHLO client.test", 250);
    client
}

/// `alice` with the password `right`, and with `wrong`.
const RIGHT: &str = "AUTH PLAIN AGFsaWNlAHJpZ2h0";
const WRONG: &str = "AUTH PLAIN AGFsaWNlAHdyb25n";

/// Says so when it is dropped, also by a panic: others wait for it.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn one_host_that_hammers_at_auth_keeps_no_other_out() {
    // More than the queue and the thread have room for.
    const HAMMERS: usize = 24;
    const LOGINS: usize = 10;
    let (_setup, server, tls) = with_logins(|setup| {
        setup.set("auth.queue_max", 16);
    });
    let (is_over, busy) = (AtomicBool::new(false), AtomicUsize::new(0));
    let hammer = || {
        let mut client = greet_tls(loopback(2), &server, &tls);
        while !is_over.load(Ordering::Relaxed) {
            match client.say(WRONG).code {
                454 => {
                    busy.fetch_add(1, Ordering::Relaxed);
                    // A hammer, not a load on the machine: that is another test's.
                    thread::sleep(Duration::from_millis(5));
                }
                535 => {}
                _ => client = greet_tls(loopback(2), &server, &tls),
            }
        }
    };
    let codes = thread::scope(|scope| {
        let _over = Over(&is_over);
        (0..HAMMERS).for_each(|_| drop(scope.spawn(hammer)));
        wait::until("the hammers have all they can get", || busy.load(Ordering::Relaxed) > 0);
        let log_in = |_| {
            let codes: Vec<_> =
                (0..3).map(|n| greet_tls(loopback(3 + n), &server, &tls).say(RIGHT).code).collect();
            codes
        };
        (0..LOGINS).flat_map(log_in).collect::<Vec<_>>()
    });
    assert_eq!(codes, vec![235; codes.len()], "nobody else is told to come later");
}

#[test]
fn who_has_gone_has_his_password_not_looked_at() {
    const GONE: usize = 60;
    let (_setup, server, tls) = with_logins(|setup| {
        setup.set("auth.queue_max", 1000);
    });
    let mut clients: Vec<_> = (0..GONE).map(|_| greet_tls(loopback(2), &server, &tls)).collect();
    for client in &mut clients {
        client.send(format!("{WRONG}\r\n").as_bytes()).expect("it is sent");
    }
    drop(clients);
    let (looked_at, not): (&[_], &[_]) = (&["authentication", "outcome="], &["the peer has gone before"]);
    wait::until("all are dealt with", || lines(&server, looked_at) + lines(&server, not) >= GONE);
    assert!(lines(&server, not) > 0, "{} passwords were looked at for nobody", lines(&server, looked_at));
    assert_eq!(greet_tls(loopback(2), &server, &tls).say(RIGHT).code, 235);
}

#[test]
fn one_address_has_a_quarter_of_the_handshakes() {
    let (_setup, server, tls) = with_logins(|setup| {
        setup.set("shards", 1).set("tls.handshakes_max", 8).set("tls.handshake_timeout", "\"5m\"");
    });
    // They begin and say nothing.
    let parked: Vec<_> =
        (0..2).map(|_| Client::connect_from(loopback(2), server.address()).expect("a connection")).collect();
    for _ in 0..20 {
        let mut client = Client::connect_from(loopback(2), server.address()).expect("a connection");
        assert!(client.is_closed(), "more than a quarter");
    }
    greet_tls(loopback(3), &server, &tls).expect("QUIT", 221);
    drop(parked);
    wait::until("the places are free", || {
        let client = Client::connect_from(loopback(2), server.address()).expect("a connection");
        client.shake_hands(&tls).is_ok()
    });
}
