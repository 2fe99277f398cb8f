//! The envelope of a message, and how it arrived.

use std::net::SocketAddr;

use super::path::{ForwardPath, ReversePath};

/// What kind of content was declared (RFC 6152). `EightBit` also covers clients that declared nothing but sent 8-bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Body {
    /// `BODY=7BIT`, or nothing declared.
    #[default]
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBit,
}

/// Who gets a message and who is told when they do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The reverse-path of MAIL; null for notifications.
    pub reverse_path: ReversePath,
    /// The forward-paths of RCPT in the order they were accepted; never empty for an accepted message.
    pub forward_paths: Vec<ForwardPath>,
    /// BODY= of MAIL.
    pub body: Body,
    /// SMTPUTF8 was given with MAIL (RFC 6531).
    pub smtputf8: bool,
}

/// The protocol keyword of a `Received:` line (RFC 3848, RFC 6531 §4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HELO.
    Smtp,
    /// EHLO.
    #[default]
    Esmtp,
    /// EHLO, and SMTPUTF8 was used.
    Utf8Smtp,
}

impl Protocol {
    /// The registered keyword.
    pub fn keyword(self) -> &'static str {
        match self {
            Protocol::Smtp => "SMTP",
            Protocol::Esmtp => "ESMTP",
            Protocol::Utf8Smtp => "UTF8SMTP",
        }
    }
}

/// How and when a message arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The peer's address and port.
    pub peer: SocketAddr,
    /// The argument of its HELO or EHLO, as given (printable, no control characters).
    pub hello: Box<str>,
    /// With which protocol.
    pub protocol: Protocol,
    /// When its content had arrived, in seconds since 1970 (wall clock).
    pub unix_time: u64,
}
