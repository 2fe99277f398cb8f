//! Hostile peers on real sockets, against the built binary.
//!
//! - [`handshakes`]: TLS that is none, that never ends, that ends too early;
//! - [`floods`]: more than anybody asked for;
//! - [`slow`]: little by little, or nothing at all;
//! - [`resets`]: gone at every moment;
//! - [`words`]: what is said to be something else where it is read.
//!
//! Beside each of them, on the same shard, a well-behaved client keeps exchanging messages. It is served to its end; what it
//! feels, and what the gateway holds, is bounded. What was never accepted is never delivered, and no descriptor is lost.

#[path = "../support/mod.rs"]
mod support;

mod floods;
mod handshakes;
mod resets;
mod slow;
mod words;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use support::certificates::Authority;
use support::client::Client;
use support::maildir;
use support::neighbour::Neighbour;
use support::server::Server;
use support::setup::{Setup, incoming};
use support::tools;
use support::wait;

/// A listener with STARTTLS, and one that is TLS from its first octet.
const BOTH: [&str; 2] = ["tls = \"optional\"", "tls = \"implicit\""];

/// How many times longer the slowest hundredth of a neighbour's exchanges may take beside an attack: attackers take their part of
/// two cores that also run the tests, and a shard that stands still would be a hundred times beyond this.
const RATIO_MAX: f64 = 60.0;

/// What an attack may make the gateway hold, in octets.
const GROWTH_MAX: u64 = 32 << 20;

/// A gateway with one shard, under attack.
struct Ground {
    // Dropped first: the others' ends would be its failures.
    neighbour: Neighbour,
    server: Server,
    setup: Setup,
    authority: Authority,
    descriptors: usize,
}

impl Ground {
    /// With [`BOTH`] listeners.
    fn start() -> Self {
        Self::with(&BOTH, |_| {})
    }

    /// With listeners of these settings, the first for the neighbour, and whatever else is set.
    fn with(listeners: &[&str], set: impl FnOnce(&mut Setup)) -> Self {
        let authority = Authority::new();
        let mut setup = Setup::new();
        setup.certificates(&[&authority.issue(&["mx.test"])]).listeners(listeners);
        setup.set("accept.domains", "[\"mx.test\"]");
        set(&mut setup);
        let server = setup.start();
        let neighbour = Neighbour::start(server.address());
        let descriptors = descriptors(&server);
        Ground { neighbour, server, setup, authority, descriptors }
    }

    /// The address of the listener with this number.
    fn address(&self, n: usize) -> SocketAddr {
        self.server.addresses()[n]
    }

    /// A client that trusts the authority.
    fn tls(&self) -> Arc<ClientConfig> {
        self.authority.client()
    }

    /// A session in clear or over TLS.
    #[track_caller]
    fn greet(&self, is_tls: bool) -> Client {
        match is_tls {
            false => Client::greet(self.address(0)),
            true => Client::try_greet_tls(self.address(0), &self.tls()).expect("a session over TLS"),
        }
    }

    /// Does `deed`, beside which the neighbour must be served, and the gateway's memory stay what it was.
    #[track_caller]
    fn endures<T>(&self, what: &str, deed: impl FnOnce() -> T) -> T {
        let before = self.server.memory();
        let (done, ratio) = self.neighbour.feels(deed);
        let growth = self.server.memory().saturating_sub(before);
        println!(
            "{what}: the neighbour's p99 is {ratio:.1} times the quiet one's, memory grew by {} KiB",
            growth >> 10
        );
        assert!(ratio <= RATIO_MAX, "{what}: the neighbour's p99 is {ratio:.1} times the quiet one's");
        assert!(growth <= GROWTH_MAX, "{what}: memory grew by {growth} octets");
        done
    }

    /// The end: everybody has gone, and what is delivered are the neighbour's messages and `more` others.
    #[track_caller]
    fn settle(self, more: usize) {
        let Ground { neighbour, mut server, setup, descriptors: before, .. } = self;
        let expected = neighbour.stop() + more;
        wait::until("every message is in the Maildir", || maildir::count(setup.maildir()) >= expected);
        let now = || descriptors(&server);
        // The neighbour's own connection was counted.
        let is_back = wait::poll(wait::PATIENCE, || (now() < before).then_some(()));
        assert!(is_back.is_some(), "{} descriptors, {before} before the attack", now());
        assert!(server.stop().success());
        assert_eq!(maildir::count(setup.maildir()), expected, "messages were delivered that nobody had sent");
        let left = setup.home().join("left");
        let mut export = incoming();
        export.args(["spool", "export", "--config"]).arg(setup.home().join("incoming.toml")).arg(&left);
        tools::assert_succeeded(&export.output().expect("the binary runs"));
        let left = fs::read_dir(&left).map_or(0, Iterator::count);
        assert_eq!(left, 0, "files of messages that are left in the spool");
    }
}

/// `alice` may log in.
fn logins_of(setup: &mut Setup) {
    let line = tools::converse(incoming().args(["auth", "hash", "alice"]), b"secret\n");
    let file = setup.file("credentials", line);
    setup.set("auth.credentials", format!("{file:?}"));
}

/// How many descriptors the gateway has open, but for the segments of its spool, which come and go as it is written.
fn descriptors(server: &Server) -> usize {
    let all = fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("it runs").flatten();
    let targets = all.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.filter(|target| !target.to_string_lossy().contains("/spool/")).count()
}
