//! What a session is configured with. Every bound is the operator's; the floors the RFC sets are named at
//! each.

use std::time::Duration;

use crate::mail::Phases;

/// The bounds and names all sessions of a listener share.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Our name, in greetings, replies and `Received:` fields. Printable ASCII.
    pub hostname: Box<str>,
    /// The largest content in octets, after transparency is undone and without our trace field; offered as
    /// SIZE (RFC 1870).
    pub message_size_max: u64,
    /// Recipients of one transaction; at least 100 (RFC 5321 §4.5.3.1.8).
    pub recipients_max: usize,
    /// The longest command line in octets, CRLF included; at least 512 (RFC 5321 §4.5.3.1.4).
    pub command_size_max: usize,
    /// `Received:` fields a message may carry before it is taken to loop; at least 100 (RFC 5321 §6.3).
    pub hops_max: usize,
    /// The largest header section in octets, up to its end.
    pub header_size_max: usize,
    /// Content is handed over in pieces of about this many octets.
    pub piece_size: usize,
    /// A whole command must arrive within this, counted from the end of the one before it.
    pub command_timeout: Duration,
    /// The next octets of content must arrive within this.
    pub data_timeout: Duration,
    /// How long a session may last.
    pub session_timeout: Duration,
    /// The rate content must keep on average once its grace is over, in octets per second as sent; 0 demands
    /// none.
    pub content_rate_min: u32,
    /// Commands that may be refused since the last accepted message; the next refused one is answered 421.
    pub errors_max: u32,
    /// HELO, EHLO, NOOP, VRFY and HELP permitted since the last accepted message; the next is answered
    /// 421.
    pub idle_commands_max: u32,
    /// At which phases the driver is asked; at the others everything is accepted.
    pub phases: Phases,
}

impl SessionConfig {
    /// The defaults, under the given name.
    pub fn new(hostname: &str) -> Self {
        SessionConfig {
            hostname: hostname.into(),
            message_size_max: 50 << 20,
            recipients_max: 1000,
            // SMTPUTF8 adds 10 octets to the 512 of RFC 5321, DSN 500, AUTH up to 12 k; none needs more than
            // this today.
            command_size_max: 2048,
            hops_max: 100,
            header_size_max: 1 << 20,
            piece_size: 64 << 10,
            command_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(180),
            session_timeout: Duration::from_secs(3600),
            content_rate_min: 500,
            errors_max: 20,
            idle_commands_max: 100,
            phases: Phases::NONE,
        }
    }
}

/// What is done with a CR or LF that stands alone in content (RFC 5321 §2.3.8 forbids both).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BareLineEnds {
    /// The message is refused at its end-of-data.
    #[default]
    Refuse,
    /// It becomes CRLF in what is stored. It still never ends a line for transparency or end-of-data.
    Normalise,
}
