//! What a session is configured with. Every bound is the operator's; the floors the RFC sets are named at
//! each.

use std::net::SocketAddr;
use std::time::Duration;

use crate::mail::{Capabilities, Phases};

/// Which side of the gateway a listener is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// SMTP (RFC 5321).
    #[default]
    Smtp,
    /// LMTP (RFC 2033): LHLO, and a reply for each recipient when the content has come.
    Lmtp,
}

/// TLS of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// There is none.
    #[default]
    Disabled,
    /// STARTTLS is offered.
    Optional,
    /// STARTTLS is offered, and no mail is taken without it.
    Required,
    /// A connection begins with TLS.
    Implicit,
}

/// AUTH of a listener. Only within TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthMode {
    /// There is none.
    #[default]
    Disabled,
    /// It is offered.
    Optional,
    /// It is offered, and no mail is taken without it.
    Required,
}

/// Who a session is with, and what only such a peer may do.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its address and port.
    pub address: SocketAddr,
    /// What is done with its bare line ends.
    pub bare_line_ends: BareLineEnds,
    /// It may speak for others: XCLIENT.
    pub may_xclient: bool,
    /// How long its greeting is kept back, in milliseconds, so at most 65 seconds; if it speaks before, it is sent away. 0: nobody is listened to before it.
    pub greeting_delay_millis: u16,
}

impl Peer {
    /// See `greeting_delay_millis`.
    pub(super) fn greeting_delay(&self) -> Duration {
        Duration::from_millis(self.greeting_delay_millis.into())
    }

    /// A peer that may do nothing out of the ordinary.
    pub fn stranger(address: SocketAddr) -> Self {
        Peer { address, bare_line_ends: BareLineEnds::Refuse, may_xclient: false, greeting_delay_millis: 0 }
    }
}

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
    /// Chunks of next to nothing permitted in a transaction (RFC 3030); one more ends the session.
    pub small_chunks_max: u32,
    /// Credentials that may be wrong in a session; then it ends.
    pub wrong_credentials_max: u8,
    /// How long the reply to a refused command is kept back, once `error_delay_after` were refused since the last accepted message.
    pub error_delay: Duration,
    /// Refused commands that are answered at once.
    pub error_delay_after: u32,
    /// What is spoken.
    pub dialect: Dialect,
    /// TLS.
    pub tls: TlsMode,
    /// AUTH.
    pub auth: AuthMode,
    /// What the transports behind can carry; no more is offered.
    pub capabilities: Capabilities,
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
            // SMTPUTF8 adds 10 octets to the 512 of RFC 5321, DSN 628.
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
            small_chunks_max: 1000,
            wrong_credentials_max: 3,
            error_delay: Duration::ZERO,
            error_delay_after: 10,
            dialect: Dialect::Smtp,
            tls: TlsMode::Disabled,
            auth: AuthMode::Disabled,
            capabilities: Capabilities::default(),
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
