//! Every reply there is. The only file that knows reply codes.
//!
//! All but 334, 354, the greeting and the answers to HELO, EHLO and LHLO carry an enhanced status code (RFC 2034 §4).
//! None holds an octet of the peer.

use crate::mail::{Class, MessageId, Refusal, Status};

use super::config::{Dialect, SessionConfig};
use super::effect::NotStored;
use super::params::Offered;
use crate::mail::Phase;

/// A reply line has at most 512 octets (RFC 5321 §4.5.3.1.5); this leaves room for the codes and CRLF.
const REFUSAL_TEXT_SIZE_MAX: usize = 480;

macro_rules! replies {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// A reply whose octets never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reply { $($(#[$doc])* $name,)* }

        impl Reply {
            /// The octets of the reply, CRLF included.
            pub fn octets(self) -> &'static [u8] {
                match self { $(Reply::$name => concat!($text, "\r\n").as_bytes(),)* }
            }

            #[cfg(test)]
            const ALL: &[Reply] = &[$(Reply::$name,)*];
        }
    };
}

replies! {
    /// To RSET and NOOP.
    Ok = "250 2.0.0 Ok";
    /// To MAIL.
    MailOk = "250 2.1.0 Ok";
    /// To RCPT.
    RecipientOk = "250 2.1.5 Ok";
    /// To VRFY: nothing is disclosed (RFC 5321 §7.3).
    CannotVerify = "252 2.5.0 Cannot verify, but will accept messages";
    /// To HELP.
    Help = "214 2.0.0 See RFC 5321 and what EHLO or LHLO announces";
    /// To a chunk that is not the last.
    ChunkOk = "250 2.0.0 Chunk received";
    /// To STARTTLS (RFC 3207 §4).
    StartTls = "220 2.0.0 Ready to start TLS";
    /// To AUTH: the credentials are right.
    Authenticated = "235 2.7.0 Authentication successful";
    /// To AUTH PLAIN without a response: go on (RFC 4954 §4).
    Challenge = "334 ";
    /// AUTH LOGIN asks for the name: `Username:` in base 64.
    ChallengeUser = "334 VXNlcm5hbWU6";
    /// AUTH LOGIN asks for the password: `Password:`.
    ChallengePassword = "334 UGFzc3dvcmQ6";
    /// To DATA.
    StartContent = "354 End data with <CR><LF>.<CR><LF>";

    /// A verb nobody knows.
    Unrecognized = "500 5.5.2 Command not recognized";
    /// A bare CR or LF or another control octet in a command.
    BadOctet = "500 5.5.2 Control octet in command";
    /// A command line over its bound.
    LineTooLong = "500 5.5.6 Line too long";
    /// A command line without an end.
    LineEndless = "421 4.5.6 Line too long, closing";
    /// Arguments that do not follow the grammar.
    BadArguments = "501 5.5.4 Syntax error in arguments";
    /// An argument where none may be.
    NoArguments = "501 5.5.4 No arguments permitted";
    /// HELO or EHLO without a usable name.
    BadHello = "501 5.5.4 Domain name or address literal required";
    /// A reverse-path that is none.
    BadReversePath = "501 5.1.7 Bad sender address syntax";
    /// A forward-path that is none.
    BadForwardPath = "501 5.1.3 Bad recipient address syntax";
    /// A parameter that is ill-formed, repeated or has an impossible value.
    BadParameter = "501 5.5.4 Syntax error in parameters";
    /// A parameter that is not offered.
    UnknownParameter = "555 5.5.4 Parameter not recognized";
    /// An address beyond ASCII without SMTPUTF8 (RFC 6531 §3.5).
    NeedsSmtpUtf8 = "553 5.6.7 Address requires SMTPUTF8";
    /// A command that exists but is not offered.
    NotOffered = "502 5.5.1 Command not implemented";
    /// A BDAT without a size: where its octets end cannot be known, so the session ends.
    BadChunk = "501 5.5.4 Bad chunk size, closing";
    /// A chunk of a message that was refused with an earlier one, or has begun with DATA.
    ChunkOutOfSequence = "503 5.5.1 Chunk without a message";
    /// A command that must wait for TLS (RFC 3207 §4).
    NeedsTls = "530 5.7.0 Must issue a STARTTLS command first";
    /// A command that must wait for AUTH (RFC 4954 §6).
    NeedsAuth = "530 5.7.0 Authentication required";
    /// AUTH outside of TLS (RFC 4954 §4).
    AuthNeedsTls = "538 5.7.11 Encryption required for authentication";
    /// A mechanism that is not offered.
    UnknownMechanism = "504 5.5.4 Mechanism not recognized";
    /// A response that is not base 64, or not the mechanism's.
    BadResponse = "501 5.5.2 Cannot decode response";
    /// AUTH was cancelled with `*`.
    Cancelled = "501 5.7.0 Authentication cancelled";
    /// The credentials are wrong.
    WrongCredentials = "535 5.7.8 Authentication credentials invalid";
    /// XCLIENT from somebody who may not.
    MayNotXclient = "550 5.7.0 Not permitted";
    /// BODY=BINARYMIME, and DATA (RFC 3030 §3).
    BinaryNeedsChunks = "503 5.5.1 BINARYMIME needs BDAT";
    /// A command out of order.
    BadSequence = "503 5.5.1 Bad sequence of commands";
    /// DATA after every RCPT was refused.
    NoRecipients = "554 5.5.1 No valid recipients";
    /// Octets behind DATA before the 354 (RFC 2920 §3.1).
    EarlyContent = "554 5.5.0 Content before 354, closing";
    /// Octets before the greeting.
    EarlyTalker = "554 5.5.1 Not so fast: wait for the greeting, closing";
    /// A web client or the like.
    NotSmtp = "554 5.5.0 This is an SMTP server, closing";
    /// The recipients are at their bound (RFC 5321 §4.5.3.1.10).
    TooManyRecipients = "452 4.5.3 Too many recipients";

    /// Declared or sent content over its bound (RFC 1870 §6).
    MessageTooLarge = "552 5.3.4 Message too large";
    /// The same for a chunk, or for refused content that does not end: it is not waited for.
    FarTooLarge = "552 5.3.4 Message too large, closing";
    /// A header section over its bound.
    HeaderTooLarge = "552 5.3.4 Header section too large";
    /// A mail loop (RFC 5321 §6.3).
    TooManyHops = "554 5.4.6 Too many hops";
    /// A CR or LF that stands alone in content (RFC 5321 §2.3.8).
    BareLineEnd = "550 5.5.2 Bare CR or LF in content";
    /// A NUL in content (RFC 5321 §4.5.2).
    Nul = "550 5.6.0 NUL in content";

    /// A chunk of a message that was refused with an earlier one, and may be sent again.
    ChunkOfDeferred = "451 4.3.0 Refused with an earlier chunk, try again later";
    /// The spool is full.
    NoRoom = "452 4.3.1 Insufficient storage";
    /// The spool failed.
    StorageFailed = "451 4.3.0 Storage failed, try again later";
    /// No handshake can be made now.
    TlsUnavailable = "454 4.7.0 TLS not available, try again later";
    /// Nobody can look at credentials now.
    AuthUnavailable = "454 4.7.0 Temporary authentication failure";
    /// Overloaded, or shutting down.
    TryAgainLater = "421 4.3.2 Try again later";
    /// To a peer that says nothing while others wait for its place.
    NoRoomForIdle = "421 4.3.2 Too busy to wait for commands, try again later";
    /// The peer was too slow.
    TimedOut = "421 4.4.2 Timeout, closing";
    /// Too much was refused.
    TooManyErrors = "421 4.7.0 Too many errors, closing";
    /// Credentials were wrong too often.
    TooManyWrong = "421 4.7.0 Too many authentication failures, closing";
    /// Too many commands that lead nowhere.
    TooManyIdle = "421 4.7.0 Too many commands without a message, closing";
}

impl Reply {
    /// Appends the reply.
    pub fn write(self, replies: &mut Vec<u8>) {
        replies.extend_from_slice(self.octets());
    }

    /// Whether a session ended with it is ended for what the peer did: what no client does that means to send mail, or so often that none
    /// does. Not for what may have happened to it, as a timeout, nor for one message.
    pub fn is_for_misconduct(self) -> bool {
        matches!(
            self,
            Reply::EarlyTalker
                | Reply::EarlyContent
                | Reply::NotSmtp
                | Reply::LineEndless
                | Reply::TooManyErrors
                | Reply::TooManyIdle
                | Reply::TooManyWrong
        )
    }
}

/// Why content is refused at its end-of-data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentRefusal {
    /// Over `message_size_max`.
    TooLarge,
    /// Over `header_size_max`.
    HeaderTooLarge,
    /// Over `hops_max`.
    TooManyHops,
    /// A bare CR or LF.
    BareLineEnd,
    /// A NUL.
    Nul,
    /// Ours, not the peer's.
    NotStored(NotStored),
}

impl ContentRefusal {
    /// The reply to end-of-data.
    pub fn reply(self) -> Reply {
        match self {
            ContentRefusal::TooLarge => Reply::MessageTooLarge,
            ContentRefusal::HeaderTooLarge => Reply::HeaderTooLarge,
            ContentRefusal::TooManyHops => Reply::TooManyHops,
            ContentRefusal::BareLineEnd => Reply::BareLineEnd,
            ContentRefusal::Nul => Reply::Nul,
            ContentRefusal::NotStored(NotStored::NoRoom) => Reply::NoRoom,
            ContentRefusal::NotStored(NotStored::TooBusy) => Reply::TryAgainLater,
            ContentRefusal::NotStored(NotStored::Failed) => Reply::StorageFailed,
        }
    }
}

/// The greeting (RFC 5321 §4.2: 220 begins with our name; RFC 2033 §4: LMTP has the same).
pub fn write_greeting(config: &SessionConfig, replies: &mut Vec<u8>) {
    let protocol = match config.dialect {
        Dialect::Smtp => " ESMTP\r\n",
        Dialect::Lmtp => " LMTP\r\n",
    };
    write_all(&[b"220 ", config.hostname.as_bytes(), protocol.as_bytes()], replies);
}

/// The answer to HELO.
pub fn write_helo(config: &SessionConfig, replies: &mut Vec<u8>) {
    write_all(&[b"250 ", config.hostname.as_bytes(), b"\r\n"], replies);
}

/// What the answer to EHLO depends on beside the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Offers {
    /// Parameters, and the extensions they belong to.
    pub params: Offered,
    /// STARTTLS.
    pub starttls: bool,
    /// AUTH.
    pub auth: bool,
    /// XCLIENT.
    pub xclient: bool,
}

/// The answer to EHLO and LHLO: what is offered.
pub fn write_ehlo(config: &SessionConfig, offers: Offers, replies: &mut Vec<u8>) {
    write_all(&[b"250-", config.hostname.as_bytes(), b"\r\n250-PIPELINING\r\n250-SIZE "], replies);
    push_number(config.message_size_max, replies);
    replies.extend_from_slice(b"\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n");
    let optional: [(bool, &[u8]); 6] = [
        (offers.params.binary, b"250-BINARYMIME\r\n"),
        (offers.params.dsn, b"250-DSN\r\n"),
        (offers.params.require_tls, b"250-REQUIRETLS\r\n"),
        (offers.starttls, b"250-STARTTLS\r\n"),
        (offers.auth, b"250-AUTH PLAIN LOGIN\r\n"),
        (offers.xclient, b"250-XCLIENT ADDR PORT HELO LOGIN\r\n"),
    ];
    optional
        .iter()
        .filter(|(is_offered, _)| *is_offered)
        .for_each(|(_, line)| replies.extend_from_slice(line));
    replies.extend_from_slice(b"250-ENHANCEDSTATUSCODES\r\n250-LIMITS RCPTMAX=");
    push_number(config.recipients_max as u64, replies);
    replies.extend_from_slice(b"\r\n250 HELP\r\n");
}

/// The answer to QUIT (RFC 5321 §4.2.2: 221 names us).
pub fn write_bye(config: &SessionConfig, replies: &mut Vec<u8>) {
    write_all(&[b"221 2.0.0 ", config.hostname.as_bytes(), b" Bye\r\n"], replies);
}

/// The answer to end-of-data that makes the message ours.
pub fn write_queued(id: MessageId, replies: &mut Vec<u8>) {
    let mut text = [0; MessageId::TEXT_SIZE_MAX];
    write_all(&[b"250 2.0.0 Ok: queued as ", id.encode(&mut text).as_bytes(), b"\r\n"], replies);
}

/// A refusal that somebody outside decided at `phase`.
///
/// The code follows the status and the phase: a permanent one is 550 for an address or a name, 554 for a
/// session or a message, 552 for one that is too large; a temporary one is 452 for want of room or too many recipients and
/// 451 otherwise; one that ends the session is 554 or 421.
pub fn write_refusal(refusal: &Refusal, phase: Phase, replies: &mut Vec<u8>) {
    let ends = refusal.disconnect || phase == Phase::Connect;
    let Status { class, subject, detail } = refusal.status;
    let codes: &[u8] = match (class, phase) {
        (Class::Permanent, _) if !ends && (subject, detail) == (3, 4) => b"552 5.",
        (Class::Permanent, Phase::Hello | Phase::Mail | Phase::Recipient) if !ends => b"550 5.",
        (Class::Permanent, _) => b"554 5.",
        (_, _) if ends => b"421 4.",
        (_, _) if matches!((subject, detail), (3, 1) | (5, 3)) => b"452 4.",
        (_, _) => b"451 4.",
    };
    replies.extend_from_slice(codes);
    push_number(subject.into(), replies);
    replies.push(b'.');
    push_number(detail.into(), replies);
    replies.push(b' ');
    // The text is promised to be printable ASCII; a line break in it would be a second reply, so the promise
    // is kept here too.
    let printable = |c: u8| if matches!(c, 0x20..=0x7e) { c } else { b'?' };
    replies.extend(refusal.text.bytes().take(REFUSAL_TEXT_SIZE_MAX).map(printable));
    replies.extend_from_slice(b"\r\n");
}

/// The reply that `write_refusal` writes, without its CRLF: for the log.
pub fn refusal_line(refusal: &Refusal, phase: Phase) -> String {
    let mut reply = Vec::new();
    write_refusal(refusal, phase, &mut reply);
    reply.truncate(reply.len() - 2);
    String::from_utf8(reply).expect("replies are ASCII")
}

/// Appends a number in decimal.
pub fn push_number(number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut rest = number;
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn write_all(parts: &[&[u8]], replies: &mut Vec<u8>) {
    for part in parts {
        replies.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reply_is_one_short_line_whose_two_codes_agree() {
        for reply in Reply::ALL {
            let line = std::str::from_utf8(reply.octets()).unwrap();
            assert!(line.len() <= 80 && line.ends_with("\r\n"), "{line:?}");
            assert!(line[..line.len() - 2].bytes().all(|c| matches!(c, 0x20..=0x7e)), "{line:?}");
            let (code, rest) = line.split_once(' ').unwrap();
            assert!(code.len() == 3 && code.bytes().all(|c| c.is_ascii_digit()), "{line:?}");
            if line.starts_with('3') {
                continue;
            }
            let status = rest.split_once(' ').unwrap().0;
            assert_eq!(status.split('.').count(), 3, "{line:?}");
            assert_eq!(status.as_bytes()[0], code.as_bytes()[0], "RFC 2034 §4: {line:?}");
        }
    }

    #[test]
    fn refusals_become_codes_by_status_and_phase() {
        let table = [
            (Status::permanent(1, 1), Phase::Recipient, false, "550 5.1.1 "),
            (Status::permanent(1, 8), Phase::Mail, false, "550 5.1.8 "),
            (Status::permanent(7, 1), Phase::Hello, false, "550 5.7.1 "),
            (Status::permanent(7, 1), Phase::Data, false, "554 5.7.1 "),
            (Status::permanent(7, 1), Phase::Message, false, "554 5.7.1 "),
            (Status::permanent(7, 1), Phase::Connect, false, "554 5.7.1 "),
            (Status::permanent(3, 4), Phase::Recipient, false, "552 5.3.4 "),
            (Status::permanent(3, 4), Phase::Message, false, "552 5.3.4 "),
            (Status::permanent(7, 1), Phase::Recipient, true, "554 5.7.1 "),
            (Status::temporary(3, 1), Phase::Mail, false, "452 4.3.1 "),
            (Status::temporary(7, 1), Phase::Mail, false, "451 4.7.1 "),
            (Status::temporary(7, 1), Phase::Mail, true, "421 4.7.1 "),
            (Status::temporary(7, 1), Phase::Connect, false, "421 4.7.1 "),
        ];
        for (status, phase, disconnect, expected) in table {
            let refusal = Refusal { status, text: "No".into(), disconnect, key: None };
            let mut replies = Vec::new();
            write_refusal(&refusal, phase, &mut replies);
            assert_eq!(String::from_utf8(replies).unwrap(), format!("{expected}No\r\n"));
        }
    }

    #[test]
    fn a_refusals_text_cannot_make_a_second_line_or_a_long_one() {
        let text = format!("a\r\n250 b\0é{}", "x".repeat(1000)).into();
        let refusal = Refusal { status: Status::permanent(7, 1), text, disconnect: false, key: None };
        let mut replies = Vec::new();
        write_refusal(&refusal, Phase::Mail, &mut replies);
        assert!(replies.len() <= 512 && replies.starts_with(b"550 5.7.1 a??250 b???x"));
        assert_eq!(replies.iter().filter(|c| **c == b'\n').count(), 1);
    }

    #[test]
    fn numbers_are_decimal() {
        for n in [0, 9, 10, 12345, u64::MAX] {
            let mut out = Vec::new();
            push_number(n, &mut out);
            assert_eq!(out, n.to_string().as_bytes());
        }
    }
}
