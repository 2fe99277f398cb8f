//! What is said of a message before its content: which parameters, which commands, and whether a server can be given it at all.

use std::fmt;
use std::fmt::Write;

use super::{Offers, Protocol};
use crate::mail::{
    Arrival, Body, Envelope, ForwardPath, Mailbox, MessageId, Notify, Protocol as By, ReversePath, Status,
};

/// A command line in octets with its CRLF at most, where no extension says more (RFC 5321 §4.5.3.1.4).
const LINE_SIZE_MAX: usize = 512;
/// The value of an attribute of XFORWARD at most, encoded.
const ATTRIBUTE_SIZE_MAX: usize = 255;
/// What XFORWARD says where something is not known.
const UNAVAILABLE: &str = "[UNAVAILABLE]";

/// Whether a header section has octets above ASCII.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderText {
    /// Nobody has looked.
    Unknown,
    /// It has none.
    Ascii,
    /// It has some.
    Utf8,
}

/// A message for some of its recipients.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its envelope.
    pub envelope: &'a Envelope,
    /// The recipients, by their places in the envelope.
    pub recipients: &'a [u32],
    /// Its content in octets.
    pub size: u64,
    /// What its header section is written in; asked only where SMTPUTF8 is needed and not offered.
    pub header: HeaderText,
    /// Told to servers that offer XFORWARD.
    pub origin: Option<Origin<'a>>,
    /// Whether the server tells the sender of success where it offers DSN; otherwise that is somebody else's, and it would be told twice.
    pub tells_success: bool,
    /// In chunks (BDAT, RFC 3030) wherever that is offered, and not only where the content is binary.
    pub in_chunks: bool,
}

/// Where a message came from, for the log of the server behind us.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Our own name for the message.
    pub id: MessageId,
    /// How it came.
    pub arrival: &'a Arrival,
}

/// Why a server cannot be given a message. No later attempt there would change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objection {
    /// It takes no message larger than this, in octets.
    TooLarge(u64),
    /// Content of any octets, which it does not take.
    Binary,
    /// An address beyond ASCII, which it does not take.
    Address,
    /// A header section beyond ASCII, which it does not take.
    Header,
    /// It does not promise to send the message on over verified TLS only.
    RequireTls,
    /// Content with a CR or an LF that is no part of a CRLF, behind DATA: what it means there is anybody's guess.
    LineEnds,
}

impl Objection {
    /// As an enhanced status code.
    pub fn status(self) -> Status {
        match self {
            // RFC 1870 §6.1, with the status of RFC 3463 §3.4.
            Objection::TooLarge(_) => Status::permanent(3, 4),
            // RFC 3463 §3.7, X.6.3: conversion required but not supported.
            Objection::Binary => Status::permanent(6, 3),
            // RFC 6531 §3.5 and §4.2.
            Objection::Address => Status::permanent(6, 7),
            Objection::Header => Status::permanent(6, 9),
            // RFC 8689 §5.
            Objection::RequireTls => Status::permanent(7, 30),
            // RFC 3463 §3.7, X.6.0: other media error.
            Objection::LineEnds => Status::permanent(6, 0),
        }
    }
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Objection::TooLarge(max) => write!(f, "the server takes no message larger than {max} octets"),
            Objection::Binary => {
                f.write_str("the server does not take binary content (BINARYMIME, CHUNKING)")
            }
            Objection::Address => f.write_str("the server does not take addresses beyond ASCII (SMTPUTF8)"),
            Objection::Header => {
                f.write_str("the server does not take header fields beyond ASCII (SMTPUTF8)")
            }
            Objection::RequireTls => f.write_str("the server does not offer REQUIRETLS"),
            Objection::LineEnds => {
                f.write_str("the content has a bare CR or LF, which is sent to nobody behind DATA")
            }
        }
    }
}

/// How a message is given to a certain server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    /// In chunks instead of behind DATA.
    pub in_chunks: bool,
    /// With SMTPUTF8, and addresses in it.
    pub utf8: bool,
    /// With what the sender asks to be told.
    pub dsn: bool,
}

impl Message<'_> {
    /// How this is given to a server that offers `offers`; or why it cannot be, whoever it is for.
    pub(super) fn manner(&self, offers: &Offers) -> Result<Manner, Objection> {
        let is_binary = self.envelope.body == Body::Binary;
        let chunking = offers.has("CHUNKING");
        if let Some(max) = offers.size_max().filter(|max| self.size > *max) {
            return Err(Objection::TooLarge(max));
        }
        if is_binary && !(chunking && offers.has("BINARYMIME")) {
            return Err(Objection::Binary);
        }
        let utf8 = self.envelope.smtputf8 && offers.has("SMTPUTF8");
        if self.envelope.smtputf8 && !utf8 {
            if matches!(&self.envelope.reverse_path, ReversePath::Mailbox(mailbox) if !mailbox.local_part().is_ascii())
            {
                return Err(Objection::Address);
            }
            if self.header != HeaderText::Ascii {
                return Err(Objection::Header);
            }
        }
        if self.envelope.require_tls && !offers.has("REQUIRETLS") {
            return Err(Objection::RequireTls);
        }
        Ok(Manner { in_chunks: chunking && (is_binary || self.in_chunks), utf8, dsn: offers.has("DSN") })
    }

    /// Whether somebody has to look at the header section before this is given to a server that offers `offers`.
    pub fn needs_header(&self, offers: &Offers) -> bool {
        self.header == HeaderText::Unknown && self.envelope.smtputf8 && !offers.has("SMTPUTF8")
    }

    /// The MAIL command, without its CRLF.
    pub(super) fn mail(&self, manner: Manner, offers: &Offers) -> String {
        let path = match &self.envelope.reverse_path {
            ReversePath::Null => String::new(),
            ReversePath::Mailbox(mailbox) => address(mailbox, manner.utf8),
        };
        let mut line = format!("MAIL FROM:<{path}>");
        if offers.has("SIZE") {
            let _ = write!(line, " SIZE={}", self.size);
        }
        match self.envelope.body {
            Body::Binary => line.push_str(" BODY=BINARYMIME"),
            // To a server that does not offer it the octets go all the same: see docs/DELIVERY.md.
            Body::EightBit if offers.has("8BITMIME") => line.push_str(" BODY=8BITMIME"),
            Body::EightBit | Body::SevenBit => {}
        }
        if manner.utf8 {
            line.push_str(" SMTPUTF8");
        }
        if self.envelope.require_tls {
            line.push_str(" REQUIRETLS");
        }
        if let Some(dsn) = self.envelope.dsn.as_deref().filter(|_| manner.dsn) {
            if let Some(ret) = dsn.ret {
                let _ = write!(line, " RET={}", ret.as_str());
            }
            if let Some(id) = &dsn.envelope_id {
                let _ = write!(line, " ENVID={}", id.as_str());
            }
        }
        line
    }

    /// The RCPT command for the recipient at `place` of the envelope, without its CRLF.
    pub(super) fn rcpt(&self, place: u32, manner: Manner) -> Result<String, Objection> {
        let path = match &self.envelope.forward_paths[place as usize] {
            // RFC 5321 §4.1.1.3 and §4.5.1: the one mailbox that needs no domain.
            ForwardPath::Postmaster => "postmaster".into(),
            ForwardPath::Mailbox(mailbox) if !manner.utf8 && !mailbox.local_part().is_ascii() => {
                return Err(Objection::Address);
            }
            ForwardPath::Mailbox(mailbox) => address(mailbox, manner.utf8),
        };
        let mut line = format!("RCPT TO:<{path}>");
        if let Some(dsn) = self.envelope.recipient_dsn(place).filter(|_| manner.dsn) {
            if let Some(notify) = dsn.notify.map(|notify| self.notify(notify)) {
                let _ = write!(line, " NOTIFY={}", notify.text());
            }
            // RFC 6533 §3: what is beyond ASCII goes only where SMTPUTF8 does.
            if let Some(original) = dsn.original.as_ref().filter(|o| manner.utf8 || o.as_str().is_ascii()) {
                let _ = write!(line, " ORCPT={}", original.as_str());
            }
        }
        Ok(line)
    }

    /// What the server is asked to tell. Who wanted to hear of success only hears of nothing else.
    fn notify(&self, notify: Notify) -> Notify {
        if self.tells_success {
            return notify;
        }
        let success = Notify::parse("SUCCESS").expect("it is a keyword");
        Notify::from_bits(notify.bits() & !success.bits()).expect("they were bits of one")
    }
}

/// Every server knows A-labels.
fn address(mailbox: &Mailbox, utf8: bool) -> String {
    match utf8 {
        true => mailbox.as_str().into(),
        false => format!("{}@{}", mailbox.local_part(), mailbox.canonical_domain()),
    }
}

impl Origin<'_> {
    /// The XFORWARD commands that tell it, without their CRLF: the attributes that `offers` names, in as many lines as they need.
    pub(super) fn commands(&self, offers: &Offers) -> Vec<String> {
        let Origin { id, arrival } = self;
        let address = arrival.peer.ip().to_canonical();
        let protocol = match arrival.protocol {
            By::Smtp => "SMTP",
            By::Esmtp => "ESMTP",
            By::Lmtp => "LMTP",
        };
        let attributes = [
            ("NAME", arrival.client_name.as_deref().unwrap_or(UNAVAILABLE).to_string()),
            ("ADDR", if address.is_ipv4() { address.to_string() } else { format!("IPV6:{address}") }),
            ("PORT", arrival.peer.port().to_string()),
            ("PROTO", protocol.into()),
            ("HELO", if arrival.hello.is_empty() { UNAVAILABLE.into() } else { arrival.hello.to_string() }),
            ("IDENT", id.to_string()),
            ("SOURCE", "REMOTE".into()),
        ];
        let mut lines: Vec<String> = Vec::new();
        for (name, value) in attributes.iter().filter(|(name, _)| offers.names("XFORWARD", name)) {
            let is_plain = value.bytes().all(|c| c.is_ascii_graphic());
            let mut value = xtext(value);
            if !is_plain || value.len() > ATTRIBUTE_SIZE_MAX {
                value = UNAVAILABLE.into();
            }
            let word = format!(" {name}={value}");
            match lines.last_mut() {
                Some(line) if line.len() + word.len() + 2 <= LINE_SIZE_MAX => line.push_str(&word),
                _ => lines.push(format!("XFORWARD{word}")),
            }
        }
        lines
    }
}

/// RFC 3461 §4.
fn xtext(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for octet in text.bytes() {
        if octet.is_ascii_graphic() && !matches!(octet, b'+' | b'=') {
            encoded.push(char::from(octet));
        } else {
            let _ = write!(encoded, "+{octet:02X}");
        }
    }
    encoded
}

/// What a protocol calls its first command.
pub(super) fn hello(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Smtp => "EHLO",
        Protocol::Lmtp => "LHLO",
    }
}
