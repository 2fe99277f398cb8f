//! What is known of a session when a policy is asked.

use std::net::SocketAddr;
use std::time::Instant;

use crate::mail::{ForwardPath, ReversePath, Tls};

/// What is known when a policy is asked. What a phase does not know yet is `None`, empty or 0.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Now, on the monotonic clock.
    pub now: Instant,
    /// Now, in seconds since 1970.
    pub unix_time: u64,
    /// A number of the session that no other session of this process has.
    pub session: u64,
    /// Transactions begun in this session, this one included.
    pub transaction: u32,
    /// The peer's address and port: of the client that a proxy or XCLIENT has named, if one has.
    pub peer: SocketAddr,
    /// The address it has connected to, as it is configured.
    pub listener: SocketAddr,
    /// The peer's name, where a policy has found and confirmed it in the DNS.
    pub client_name: Option<&'a str>,
    /// The argument of HELO or EHLO; empty before it.
    pub hello: &'a str,
    /// It was EHLO (or LHLO).
    pub is_extended: bool,
    /// From MAIL on.
    pub reverse_path: Option<&'a ReversePath>,
    /// The recipient in question, at [`Phase::Recipient`](super::Phase::Recipient) only.
    pub recipient: Option<&'a ForwardPath>,
    /// Those that stand for it if it is accepted, where a policy before has said so.
    pub instead: &'a [ForwardPath],
    /// Recipients accepted so far in this transaction.
    pub recipients: &'a [ForwardPath],
    /// SIZE= of MAIL, in octets (RFC 1870).
    pub declared_size: Option<u64>,
    /// The content's size in octets, at [`Phase::Message`](super::Phase::Message) only.
    pub size: u64,
    /// What protects the connection, if anything does; with the peer's certificate, if it gave one that was verified.
    pub tls: Option<&'a Tls>,
    /// As whom the peer has authenticated itself, if it has.
    pub authenticated: Option<&'a str>,
    /// A policy before, the listener or a password vouches for the peer.
    pub is_trusted: bool,
    /// Nothing has happened, somebody only wants to know the verdict: nothing is to be counted or remembered.
    pub is_rehearsal: bool,
}

impl<'a> Facts<'a> {
    /// What is known of a peer that has said nothing yet.
    pub fn of_peer(peer: SocketAddr, now: Instant, unix_time: u64) -> Facts<'a> {
        Facts {
            now,
            unix_time,
            session: 0,
            transaction: 0,
            peer,
            listener: SocketAddr::from(([0, 0, 0, 0], 25)),
            client_name: None,
            hello: "",
            is_extended: true,
            reverse_path: None,
            recipient: None,
            instead: &[],
            recipients: &[],
            declared_size: None,
            size: 0,
            tls: None,
            authenticated: None,
            is_trusted: false,
            is_rehearsal: false,
        }
    }
}

#[cfg(test)]
impl Facts<'_> {
    /// Of a peer, now, for tests.
    pub fn of(peer: &str) -> Self {
        Facts::of_peer(SocketAddr::new(peer.parse().expect("an address"), 25), Instant::now(), 1_800_000_000)
    }
}
