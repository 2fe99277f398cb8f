//! The envelope of a message, and how it arrived.

use std::net::SocketAddr;
use std::sync::Arc;

use super::dsn::{Dsn, RecipientDsn};
use super::id::MessageId;
use super::path::{ForwardPath, ReversePath};
use super::tag::Tag;
use super::tls::Tls;

/// What kind of content was declared (RFC 6152, RFC 3030). `EightBit` also covers clients that declared nothing but sent 8-bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Body {
    /// `BODY=7BIT`, or nothing declared.
    #[default]
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBit,
    /// `BODY=BINARYMIME`: octets of any value, not in lines.
    Binary,
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
    /// REQUIRETLS was given with MAIL (RFC 8689): the message must not go on but over verified TLS.
    pub require_tls: bool,
    /// What the sender asks to be told (RFC 3461), if anything.
    pub dsn: Option<Box<Dsn>>,
    /// Who is to get it, where that does not follow from the recipients alone.
    pub via: Option<Via>,
}

/// Who gets a message that did not come by SMTP: the name of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// This one, whatever the routes say: a notification.
    Through(Box<str>),
    /// Of those that the routes say, this one alone: others have it already.
    Only(Box<str>),
}

impl Via {
    /// The target's name.
    pub fn name(&self) -> &str {
        let (Via::Through(name) | Via::Only(name)) = self;
        name
    }
}

impl Envelope {
    /// An envelope with nothing but its paths.
    pub fn new(reverse_path: ReversePath, forward_paths: Vec<ForwardPath>) -> Self {
        Envelope {
            reverse_path,
            forward_paths,
            body: Body::SevenBit,
            smtputf8: false,
            require_tls: false,
            dsn: None,
            via: None,
        }
    }

    /// What the sender asks to be told about the recipient with this place in the forward-paths.
    pub fn recipient_dsn(&self, index: u32) -> Option<&RecipientDsn> {
        let recipients = &self.dsn.as_ref()?.recipients;
        recipients.binary_search_by_key(&index, |recipient| recipient.index).ok().map(|at| &recipients[at])
    }

    /// The same message for these of its recipients only, given by their places.
    pub fn only(&self, indices: impl Iterator<Item = u32>) -> Self {
        let mut forward_paths = Vec::new();
        let mut recipients = Vec::new();
        for (new, old) in (0..).zip(indices) {
            forward_paths.push(self.forward_paths[old as usize].clone());
            recipients.extend(self.recipient_dsn(old).map(|dsn| RecipientDsn { index: new, ..dsn.clone() }));
        }
        let dsn = self.dsn.as_deref().map(|dsn| Box::new(Dsn { recipients, ..dsn.clone() }));
        Envelope { forward_paths, dsn, ..self.clone() }
    }
}

/// The protocol a message came by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HELO.
    Smtp,
    /// EHLO.
    #[default]
    Esmtp,
    /// LHLO (RFC 2033).
    Lmtp,
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
    /// What protected the connection, if anything did.
    pub tls: Option<Arc<Tls>>,
    /// As whom the peer has authenticated itself (AUTH, RFC 4954), if it has.
    pub authenticated: Option<Arc<str>>,
    /// The peer's name, where a policy has found and confirmed it in the DNS.
    pub client_name: Option<Box<str>>,
    /// What policies have noticed; at most [`TAGS_MAX`](super::TAGS_MAX), each once.
    pub tags: Vec<Tag>,
    /// When its content had arrived, in seconds since 1970 (wall clock).
    pub unix_time: u64,
    /// What it came out of.
    pub provenance: Provenance,
}

/// What a message came out of: for people who ask what happened to it. Times are those of the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provenance {
    /// It was not noted.
    #[default]
    Unknown,
    /// A session.
    Session {
        /// When it began, in milliseconds since 1970.
        connected: u64,
        /// From then until the content had arrived, in milliseconds; 2^32-1: that long or longer.
        waited_millis: u32,
        /// Which of the session's contents it was, from 1.
        number: u16,
    },
    /// The dead letter of this message, sent again.
    Resent(MessageId),
    /// It tells the sender of this message what became of it.
    About(MessageId),
}

impl Arrival {
    /// The keyword of a `Received:` line (RFC 3848, RFC 6531 §4.3). SMTP without EHLO has one only.
    pub fn keyword(&self, smtputf8: bool) -> &'static str {
        match (self.protocol, smtputf8, self.tls.is_some(), self.authenticated.is_some()) {
            (Protocol::Smtp, ..) => "SMTP",
            (Protocol::Esmtp, false, false, false) => "ESMTP",
            (Protocol::Esmtp, false, false, true) => "ESMTPA",
            (Protocol::Esmtp, false, true, false) => "ESMTPS",
            (Protocol::Esmtp, false, true, true) => "ESMTPSA",
            (Protocol::Esmtp, true, false, false) => "UTF8SMTP",
            (Protocol::Esmtp, true, false, true) => "UTF8SMTPA",
            (Protocol::Esmtp, true, true, false) => "UTF8SMTPS",
            (Protocol::Esmtp, true, true, true) => "UTF8SMTPSA",
            (Protocol::Lmtp, false, false, false) => "LMTP",
            (Protocol::Lmtp, false, false, true) => "LMTPA",
            (Protocol::Lmtp, false, true, false) => "LMTPS",
            (Protocol::Lmtp, false, true, true) => "LMTPSA",
            (Protocol::Lmtp, true, false, false) => "UTF8LMTP",
            (Protocol::Lmtp, true, false, true) => "UTF8LMTPA",
            (Protocol::Lmtp, true, true, false) => "UTF8LMTPS",
            (Protocol::Lmtp, true, true, true) => "UTF8LMTPSA",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Notify;

    #[test]
    fn a_part_of_the_recipients_keeps_what_was_asked_about_each() {
        let path = |n: u32| ForwardPath::parse(&format!("r{n}@e.org"), false).unwrap();
        let dsn = |index| RecipientDsn { index, notify: Notify::from_bits(index as u8), original: None };
        let whole = Envelope {
            dsn: Some(Box::new(Dsn { recipients: vec![dsn(1), dsn(3)], ..Dsn::default() })),
            ..Envelope::new(ReversePath::Null, (0..4).map(path).collect())
        };
        assert_eq!(whole.recipient_dsn(3), Some(&dsn(3)));
        assert_eq!(whole.recipient_dsn(2), None);
        let part = whole.only([0, 3].into_iter());
        assert_eq!(part.forward_paths, [path(0), path(3)]);
        assert_eq!(part.dsn.unwrap().recipients, [RecipientDsn { index: 1, ..dsn(3) }]);
    }
}
