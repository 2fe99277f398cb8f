//! TLS, AUTH, proxies and LMTP with programs that other people wrote, against the built binary.
//!
//! - [`openssl`]: the handshake: versions, names, tickets, client certificates;
//! - [`senders`]: swaks, Postfix's and Python's clients send over it;
//! - [`scanners`]: testssl.sh and nmap look for what is weak or open;
//! - [`reload`]: certificates and credentials change under a gateway that runs;
//! - [`front_ends`]: HAProxy and XCLIENT before it;
//! - [`logins`]: AUTH, alone and many at once.

#[path = "../support/mod.rs"]
mod support;

mod front_ends;
mod logins;
mod openssl;
mod reload;
mod scanners;
mod senders;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use support::certificates::Authority;
use support::maildir::{self, Stored};
use support::server::Server;
use support::setup::Setup;
use support::wait;

/// A listener with STARTTLS, and one that is TLS from its first octet.
const BOTH: [&str; 2] = ["tls = \"optional\"", "tls = \"implicit\""];

/// A gateway named `mx.test` with a certificate for that name, and whoever issued it.
struct Gateway {
    // Dropped first: its log and its data are in the folder of the setup.
    server: Server,
    setup: Setup,
    authority: Authority,
}

impl Gateway {
    /// With [`BOTH`] listeners.
    fn start() -> Self {
        Self::with(&BOTH, |_| {})
    }

    /// With listeners of these settings, and whatever else is set.
    fn with(listeners: &[&str], set: impl FnOnce(&mut Setup)) -> Self {
        let authority = Authority::new();
        let mut setup = Setup::new();
        setup.certificates(&[&authority.issue(&["mx.test", "localhost"])]).listeners(listeners);
        setup.set("accept.domains", "[\"mx.test\"]");
        set(&mut setup);
        let server = setup.start();
        Gateway { server, setup, authority }
    }

    /// The address of the listener with this number.
    fn address(&self, n: usize) -> SocketAddr {
        self.server.addresses()[n]
    }

    /// The file of the authority's certificate.
    fn authority_file(&self) -> PathBuf {
        self.setup.file("authority.pem", self.authority.pem())
    }

    /// A client that trusts the authority.
    fn client(&self) -> Arc<ClientConfig> {
        self.authority.client()
    }

    /// Waits for `count` messages, and makes sure that there are no others.
    #[track_caller]
    fn delivered(&self, count: usize) -> Vec<Stored> {
        wait::until("every message is in the Maildir", || maildir::count(self.setup.maildir()) >= count);
        let stored = maildir::read(self.setup.maildir());
        assert_eq!(stored.len(), count, "messages in the Maildir");
        stored
    }

    /// Waits until so many lines of the log have these words in them.
    #[track_caller]
    fn wait_for_lines(&self, words: &str, count: usize) {
        wait::until(words, || self.server.log().lines().filter(|line| line.contains(words)).count() >= count);
    }
}

/// Replaces a file as whoever renews certificates does: whole, or not at all.
fn replace(path: &std::path::Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).expect("a file");
    fs::rename(new, path).expect("it is put in place");
}
