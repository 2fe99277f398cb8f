//! Notifications: what the sender of a message is told of its recipients (RFC 3461, RFC 3464, RFC 6533). Pure: time and chance are
//! arguments.
//!
//! [`wants`] says who is told what, [`Notification::write`] makes a message of it, [`NotificationRate`] bounds how many there are.
//!
//! Invariants:
//! - a message with a null reverse-path causes no notification, and every notification has one: none is caused by another
//!   (RFC 5321 §4.5.5, RFC 3461 §5.2, §6.1);
//! - what others have written (addresses, ENVID, replies, content) ends no field, no line and no part;
//! - lines end in CRLF and have at most 998 octets; octets above 127 are there only as the envelope says;
//! - what goes to an address in ASCII needs no SMTPUTF8: whether its server has that is not known (RFC 6533 §4.5);
//! - of a message from nobody we know its header section comes back at most: whoever forged the reverse-path has no body of his own
//!   delivered by us, whatever he asks for with RET;
//! - of reasons the sender is shown replies, and words of ours that begin with a status code. Other reasons are our operator's: they
//!   name folders, URLs and machines, and the sender may be anybody.
//!
//! A message that looks automatic is treated as any other. Who answers on behalf of a person must be silent then (RFC 3834 §2); of notifications
//! RFC 3461 §5.2.6 demands the contrary, mailing lists live by them, and the null reverse-path is enough against loops.
//!
//! Nobody is told of delays: that is never required (RFC 3461 §5.2.5).
//!
//! What it does not know: whether the reverse-path is forged. A gateway that notifies strangers sends backscatter.

mod diagnosis;
mod encoding;
mod rate;
mod returned;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::io::Read;

use diagnosis::diagnose;
use encoding::{Encoding, encode, push_exactly, push_words};
use returned::{Part, Wish, returned};

use crate::limits::REASON_SIZE_MAX;
use crate::mail::{Body, Domain, Envelope, ForwardPath, MessageId, Ret, ReversePath, Status, format_date};

pub use rate::{NotificationRate, Over};

/// Recipients that the words name at most; the others are in the part for programs only.
const NAMED_MAX: usize = 50;
/// Recipients in the part for programs: some 4 MiB at worst.
const STATUS_MAX: usize = 1000;

/// What happened to a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// It was rejected, for this reason.
    Failed(&'a str),
    /// It was given up: no attempt made it, the last one for this reason.
    Expired(&'a str),
    /// It was delivered.
    Delivered,
    /// It was given to a system that will not say what becomes of it (RFC 3461 §5.2.2).
    Relayed,
}

impl Event<'_> {
    fn is_failure(self) -> bool {
        matches!(self, Event::Failed(_) | Event::Expired(_))
    }
}

/// What the sender is told of one recipient.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Its place in the envelope's forward-paths.
    pub index: u32,
    /// What happened.
    pub event: Event<'a>,
    /// Attempts made.
    pub attempts: u32,
    /// When the last was made, in seconds since 1970.
    pub unix_time: u64,
}

/// Whether the sender is to be told of `event` (RFC 3461 §4.1, §5.2).
pub fn wants(envelope: &Envelope, index: u32, event: Event<'_>) -> bool {
    if envelope.reverse_path == ReversePath::Null {
        return false;
    }
    let notify = envelope.recipient_dsn(index).and_then(|asked| asked.notify);
    match event.is_failure() {
        true => notify.is_none_or(|notify| notify.has_failure()),
        false => notify.is_some_and(|notify| notify.has_success()),
    }
}

/// A notification about a message.
pub struct Notification<'a> {
    /// Who we are.
    pub host: &'a Domain,
    /// The message.
    pub id: MessageId,
    /// Its whole envelope.
    pub envelope: &'a Envelope,
    /// Its client had authenticated itself: who sent it is no stranger.
    pub is_authenticated: bool,
    /// When it arrived, in seconds since 1970.
    pub arrived: u64,
    /// What happened to which of its recipients. Those of whom the sender does not want to hear are left out.
    pub recipients: &'a [Told<'a>],
    /// The time, in seconds since 1970.
    pub now: u64,
    /// Whatever nobody can foresee: the notification's own name is made of it.
    pub seed: u64,
}

/// A notification as a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// From nobody, to the sender.
    pub envelope: Envelope,
    /// Header section and body, in lines that end in CRLF.
    pub content: Vec<u8>,
}

impl Notification<'_> {
    /// The notification with what it brings back of `content`, which has `size` octets; `None` where there is nobody to tell, or nothing he
    /// wants to hear. Content that cannot be read is not brought back.
    ///
    /// Some 4 KiB for each recipient at most, a thousand of whom have their outcomes in it, and [`RETURNED_SIZE_MAX`](crate::limits::RETURNED_SIZE_MAX), three times as much where it has to be
    /// encoded.
    ///
    /// # Panics
    /// Where a recipient's index is outside the envelope.
    pub fn write(&self, content: impl Read, size: u64) -> Option<Written> {
        let ReversePath::Mailbox(sender) = &self.envelope.reverse_path else { return None };
        // RFC 3461 §5.2.8.
        let told: Vec<_> = (self.recipients.iter().copied())
            .filter(|told| wants(self.envelope, told.index, told.event))
            .collect();
        let is_failure = told.iter().any(|told| told.event.is_failure());
        if told.is_empty() {
            return None;
        }
        let to_utf8 = !sender.as_str().is_ascii();
        // All of it with a failure only (RFC 3461 §4.3), and not of what needs TLS (RFC 8689 §5). Where nothing is asked, or who asks is not
        // known, the header section says which message it was.
        let ret = self.envelope.dsn.as_ref().and_then(|dsn| dsn.ret);
        let whole =
            ret == Some(Ret::Full) && is_failure && self.is_authenticated && !self.envelope.require_tls;
        let wish = Wish { whole, is_utf8: self.envelope.smtputf8, to_utf8 };
        let returned = returned(content, size, wish);
        let status = self.status(&told, to_utf8);
        let kind =
            if status.is_ascii() { "message/delivery-status" } else { "message/global-delivery-status" };
        let words = self.words(&told, returned.as_ref());
        let charset = if words.is_ascii() { "us-ascii" } else { "utf-8" };
        let words_kind = format!("text/plain; charset={charset}");
        let (words_encoding, words) = encode(words.into(), to_utf8);
        let status_encoding = if status.is_ascii() { Encoding::SevenBit } else { Encoding::EightBit };
        let mut parts: Vec<(&str, Encoding, &[u8])> =
            vec![(&words_kind, words_encoding, &words), (kind, status_encoding, status.as_bytes())];
        if let Some(part) = &returned {
            parts.push((part.kind, part.encoding, &part.octets));
        }
        let boundary = self.boundary(&parts);
        let mut content = self.header(sender.as_str(), &told, &boundary).into_bytes();
        for (kind, encoding, octets) in parts {
            let encoding = encoding.as_str();
            let head = format!(
                "\r\n--{boundary}\r\nContent-Type: {kind}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
            );
            content.extend_from_slice(head.as_bytes());
            content.extend_from_slice(octets);
        }
        content.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        let envelope = Envelope {
            body: if content.is_ascii() { Body::SevenBit } else { Body::EightBit },
            smtputf8: to_utf8,
            require_tls: self.envelope.require_tls,
            ..Envelope::new(ReversePath::Null, vec![ForwardPath::Mailbox(sender.clone())])
        };
        Some(Written { envelope, content })
    }

    /// What ends no part: it cannot be foreseen, has what quoted-printable never has, and is in none of the parts.
    fn boundary(&self, parts: &[(&str, Encoding, &[u8])]) -> String {
        let candidates = (0u64..).map(|n| format!("=_{}/{:016x}", self.id, self.seed.wrapping_add(n)));
        let is_free = |boundary: &String| {
            parts.iter().all(|part| memchr::memmem::find(part.2, boundary.as_bytes()).is_none())
        };
        candidates.into_iter().find(is_free).expect("no part holds them all")
    }

    /// The header section.
    fn header(&self, sender: &str, told: &[Told<'_>], boundary: &str) -> String {
        let (host, id) = (self.host.canonical(), self.id);
        let failures = told.iter().filter(|told| told.event.is_failure()).count();
        let subject = match failures {
            0 if told.iter().any(|told| told.event == Event::Relayed) => "Your message was passed on",
            0 => "Your message was delivered",
            1 => "Your message could not be delivered to one recipient",
            _ => "Your message could not be delivered to several recipients",
        };
        let mut date = String::new();
        format_date(self.now, &mut date);
        // RFC 3464 §2: from somebody who can be asked. RFC 3834 §5.2: auto-replied, never auto-generated.
        format!(
            "From: Mail Delivery System <postmaster@{host}>\r\n\
             To: <{sender}>\r\n\
             Subject: {subject}\r\n\
             Date: {date}\r\n\
             Message-ID: <{id}.{:016x}@{host}>\r\n\
             Auto-Submitted: auto-replied\r\n\
             MIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"{boundary}\"\r\n",
            self.seed
        )
    }

    /// The part for people.
    fn words(&self, told: &[Told<'_>], returned: Option<&Part>) -> String {
        let (host, id) = (self.host.canonical(), self.id);
        let mut date = String::new();
        format_date(self.arrived, &mut date);
        let mut words = format!("This is the mail system at {host}.\r\n");
        type Kind = fn(Event<'_>) -> bool;
        let groups: [(&str, Kind); 3] = [
            ("could not be delivered to", |event| event.is_failure()),
            ("was delivered to", |event| event == Event::Delivered),
            ("was passed on, to a system that does not confirm deliveries, for", |event| {
                event == Event::Relayed
            }),
        ];
        let mut named = 0;
        for (what, is_of_kind) in groups {
            let group: Vec<_> = told.iter().filter(|told| is_of_kind(told.event)).collect();
            if group.is_empty() {
                continue;
            }
            let _ = write!(words, "\r\nYour message of {date}\r\n{what}\r\n\r\n");
            for told in group.iter().take(NAMED_MAX - named) {
                let path = &self.envelope.forward_paths[told.index as usize];
                let _ = write!(words, "  <{path}>\r\n");
                push_reason(told, &mut words);
            }
            let left = group.len().saturating_sub(NAMED_MAX - named);
            if left > 0 {
                let _ = write!(words, "  and to {left} more: see the next part of this notification\r\n");
            }
            named += group.len() - left;
        }
        if told.len() > STATUS_MAX {
            let _ =
                write!(words, "\r\nThe next part names {STATUS_MAX} of all {} recipients.\r\n", told.len());
        }
        if told.iter().any(|told| told.event.is_failure()) {
            words.push_str("\r\nNo further attempt will be made.\r\n");
        }
        let _ = write!(words, "\r\nFor help write to <postmaster@{host}> and name {id}.\r\n");
        match returned {
            Some(part) if part.is_whole => words.push_str("Your message follows below.\r\n"),
            Some(_) => words.push_str("The header of your message follows below.\r\n"),
            None => {}
        }
        words
    }

    /// The part for programs (RFC 3464 §2.1).
    fn status(&self, told: &[Told<'_>], to_utf8: bool) -> String {
        let mut status = String::new();
        let mut date = String::new();
        if let Some(id) = self.envelope.dsn.as_ref().and_then(|dsn| dsn.envelope_id.as_ref()) {
            push_exactly("Original-Envelope-Id", &id.decode(), &mut status);
        }
        push_exactly("Reporting-MTA", &format!("dns; {}", self.host.canonical()), &mut status);
        format_date(self.arrived, &mut date);
        push_exactly("Arrival-Date", &date, &mut status);
        for told in told.iter().take(STATUS_MAX) {
            status.push_str("\r\n");
            let asked = self.envelope.recipient_dsn(told.index);
            if let Some(original) = asked.and_then(|asked| asked.original.as_ref()) {
                let (kind, address) = original.decode();
                let address = match kind.eq_ignore_ascii_case("utf-8") && !to_utf8 {
                    true => in_ascii(&address),
                    false => address,
                };
                push_exactly("Original-Recipient", &format!("{kind};{address}"), &mut status);
            }
            let path = self.envelope.forward_paths[told.index as usize].as_str();
            let recipient = match (path.is_ascii(), to_utf8) {
                (true, _) => format!("rfc822;{path}"),
                (false, true) => format!("utf-8;{path}"),
                (false, false) => format!("utf-8;{}", in_ascii(path)),
            };
            push_exactly("Final-Recipient", &recipient, &mut status);
            // RFC 3463 §3.1 and §3.5, X.4.7: delivery time expired.
            let (action, reason, otherwise) = match told.event {
                Event::Failed(reason) => ("failed", Some(reason), Status::permanent(0, 0)),
                Event::Expired(reason) => ("failed", Some(reason), Status::temporary(4, 7)),
                Event::Delivered => ("delivered", None, Status::SUCCESS),
                Event::Relayed => ("relayed", None, Status::SUCCESS),
            };
            let diagnosis = reason.map(|reason| diagnose(bounded(reason), otherwise));
            let code = diagnosis.as_ref().map_or(otherwise, |diagnosis| diagnosis.status);
            let _ = write!(status, "Action: {action}\r\nStatus: {code}\r\n");
            if let Some(diagnosis) = diagnosis {
                if let Some(remote) = &diagnosis.remote {
                    push_exactly("Remote-MTA", &format!("dns; {remote}"), &mut status);
                }
                if let (Some(reply), true) = (diagnosis.words, diagnosis.is_reply) {
                    status.push_str("Diagnostic-Code: smtp;");
                    push_words(reply, " ", &mut status);
                    status.push_str("\r\n");
                }
            }
            date.clear();
            format_date(told.unix_time, &mut date);
            push_exactly("Last-Attempt-Date", &date, &mut status);
        }
        status
    }
}

/// Why it failed, for people.
fn push_reason(told: &Told<'_>, words: &mut String) {
    const INDENT: &str = "    ";
    let (reason, otherwise) = match told.event {
        Event::Failed(reason) => (reason, "It cannot be delivered there."),
        Event::Expired(reason) => (reason, "Where it had to go could not be reached, or did not take it."),
        Event::Delivered | Event::Relayed => return,
    };
    let shown = diagnose(bounded(reason), Status::permanent(0, 0)).words.unwrap_or(otherwise);
    words.push_str(INDENT);
    push_words(shown, INDENT, words);
    words.push_str("\r\n");
    if let Event::Expired(_) = told.event {
        let times = if told.attempts == 1 { "attempt" } else { "attempts" };
        let _ = write!(words, "{INDENT}Given up after {} {times}.\r\n", told.attempts);
    }
}

fn bounded(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_SIZE_MAX)]
}

/// An address as `utf-8-addr-xtext` (RFC 6533 §3).
fn in_ascii(address: &str) -> String {
    let mut encoded = String::with_capacity(address.len());
    for c in address.chars() {
        match c.is_ascii_graphic() && !"\\+=".contains(c) {
            true => encoded.push(c),
            false => write!(encoded, "\\x{{{:02X}}}", u32::from(c)).expect("a String takes every write"),
        }
    }
    encoded
}
