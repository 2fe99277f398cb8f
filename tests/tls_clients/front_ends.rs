//! What stands before the gateway and speaks for others: HAProxy with the PROXY protocol, and XCLIENT.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use crate::Gateway;
use crate::support::client::Client;
use crate::support::setup::Setup;
use crate::support::tools;
use crate::support::wait;

/// Seconds that a client may take.
const TIMEOUT: u32 = 120;
/// Where clients of the proxy come from: of this machine, and another than its own.
const CLIENT: &str = "127.0.0.77";

/// A HAProxy that passes connections on; ended when it is dropped.
struct Haproxy {
    child: Child,
    address: SocketAddr,
}

impl Haproxy {
    /// Before `server`, which it tells of its clients with `word`.
    fn start(setup: &Setup, server: SocketAddr, word: &str) -> Self {
        // It takes no port of the kernel's choice that it would tell of: one that was free a moment ago is asked for, until one still is.
        let started = wait::poll(wait::PATIENCE, || {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
            let text = format!(
                "global\n maxconn 100\ndefaults\n mode tcp\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n\
                 listen mail\n bind {free}\n server gateway {server} {word}\n"
            );
            let file = setup.file("haproxy.cfg", text);
            let mut command = Command::new(tools::program("haproxy"));
            command.args(["-db", "-q", "-f"]).arg(file).stdin(Stdio::null()).stdout(Stdio::null());
            let mut child = command.spawn().expect("haproxy is started");
            let is_there = wait::poll(wait::PATIENCE, || match child.try_wait().expect("its status") {
                Some(_) => Some(false),
                None => TcpStream::connect(free).is_ok().then_some(true),
            });
            (is_there == Some(true)).then_some(Haproxy { child, address: free })
        });
        started.expect("haproxy listens")
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// swaks from [`CLIENT`], which ends well or not.
fn swaks(address: SocketAddr, arguments: &[&str]) -> String {
    let mut command = tools::bounded("swaks", TIMEOUT);
    command.args(["--server", &address.ip().to_string(), "--port", &address.port().to_string()]);
    command.args(["--from", "a@client.test", "--to", "b@mx.test", "--helo", "client.test"]);
    command.args(["--local-interface", CLIENT]).args(arguments);
    tools::said(&command.output().expect("swaks runs"))
}

const FROM_LOOPBACK: &str = "proxy_from = [\"127.0.0.1/32\"]";

#[test]
fn behind_haproxy_the_client_is_who_connected_to_it() {
    let listeners =
        [format!("tls = \"optional\"\n{FROM_LOOPBACK}"), format!("tls = \"implicit\"\n{FROM_LOOPBACK}")];
    let gateway = Gateway::with(&listeners.each_ref().map(String::as_str), |_| {});
    let mut sent = 0;
    for word in ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl"] {
        for (n, ways) in [(0, &[&[][..], &["--tls"]][..]), (1, &[&["--tls-on-connect"]])] {
            let proxy = Haproxy::start(&gateway.setup, gateway.address(n), word);
            for way in ways {
                let said = swaks(proxy.address, way);
                assert!(said.contains("queued as"), "{word} {way:?}: {said}");
                sent += 1;
            }
        }
    }
    for stored in gateway.delivered(sent) {
        assert!(
            stored.received.contains(&format!("({CLIENT}]"))
                || stored.received.contains(&format!("([{CLIENT}])")),
            "{}",
            stored.received
        );
    }
    gateway.wait_for_lines("accepted", sent);
    let log = gateway.server.log();
    let accepted: Vec<_> = log.lines().filter(|line| line.contains("accepted")).collect();
    assert_eq!(accepted.len(), sent);
    assert!(accepted.iter().all(|line| line.contains(&format!("peer={CLIENT}:"))), "{accepted:?}");
}

#[test]
fn who_is_no_proxy_cannot_say_who_he_is() {
    let listeners =
        [format!("tls = \"optional\"\nproxy_from = [\"{CLIENT}/32\"]"), "tls = \"optional\"".to_string()];
    let gateway = Gateway::with(&listeners.each_ref().map(String::as_str), |_| {});
    let headers: [&[u8]; 2] = [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 12345 25\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\x30\x39\0\x19",
    ];
    for n in 0..2 {
        for header in headers {
            let mut client = Client::connect(gateway.address(n)).expect("a connection");
            assert_eq!(client.reply().expect("a greeting").code, 220);
            client.send(header).expect("it is sent");
            let reply = client.reply().expect("a reply");
            assert_eq!(reply.code / 100, 5, "{reply:?}");
        }
    }
    assert!(!gateway.server.log().contains("192.0.2.1"), "{}", gateway.server.log());
}

#[test]
fn from_a_proxy_there_is_a_header_or_nothing() {
    let listener = format!("tls = \"optional\"\n{FROM_LOOPBACK}");
    let gateway = Gateway::with(&[&listener], |_| {});
    // Neither a greeting nor a reply, whatever comes instead of a header: to have an answer would be to be served.
    let long = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
    let table: [&[u8]; 6] = [
        b"EHLO client.test\r\n",
        b"PROXY TCP4 192.0.2.1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 70000 25\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc",
        &long,
    ];
    for (n, octets) in table.into_iter().enumerate() {
        let mut client = Client::connect(gateway.address(0)).expect("a connection");
        client.send(octets).expect("it is sent");
        assert!(client.is_closed(), "{octets:?}");
        gateway.wait_for_lines("closed: no PROXY header", n + 1);
    }
    // Nor is it waited for without end.
    let mut silent = Client::connect(gateway.address(0)).expect("a connection");
    assert!(silent.is_closed());
    // LOCAL and UNKNOWN are the proxy itself, as when it looks whether we are there.
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let mut client = Client::connect(gateway.address(0)).expect("a connection");
        client.send(header).expect("it is sent");
        assert_eq!(client.reply().expect("a greeting").code, 220);
        client.expect("QUIT", 221);
    }
}

#[test]
fn xclient_says_who_the_client_is_where_it_may() {
    let gateway = Gateway::with(&["xclient_from = [\"127.0.0.77/32\"]\ntls = \"optional\""], |_| {});
    let xclient = ["--xclient", "ADDR=192.0.2.1 HELO=other.test PORT=4711"];
    let said = swaks(gateway.address(0), &xclient);
    assert!(said.contains("queued as"), "{said}");
    let said = swaks(gateway.address(0), &["--xclient", "ADDR=IPv6:2001:db8::1 HELO=six.test"]);
    assert!(said.contains("queued as"), "{said}");
    let received: String = gateway.delivered(2).iter().map(|s| format!("{}\n", s.received)).collect();
    assert!(received.contains("from other.test ([192.0.2.1])"), "{received}");
    assert!(received.contains("from six.test ([IPv6:2001:db8::1])"), "{received}");
    // Others are neither offered it nor may they.
    let mut client = Client::connect(gateway.address(0)).expect("a connection");
    assert_eq!(client.reply().expect("a greeting").code, 220);
    assert!(!client.expect("EHLO client.test", 250).text.contains("XCLIENT"));
    client.expect("XCLIENT ADDR=192.0.2.9", 550);
    assert!(!gateway.server.log().contains("192.0.2.9"));
}
