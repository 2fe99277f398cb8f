//! One message on its way to one server, without I/O: which commands are said, what their replies mean for each recipient.
//!
//! ```text
//!              RSET XFORWARD MAIL RCPT… DATA               end of the content
//!   Commands ──────────────────┬─────354, some taken──▶ Content ────────▶ Endings ──▶ Done
//!                              ├─────354, none taken──▶ Dot ──▶ Endings ──────────────▲
//!                              └─────refused──────────────────────────────────────────┘
//! ```
//!
//! With PIPELINING all commands up to DATA are said at once (RFC 2920), otherwise each after the reply to the one before. In chunks
//! (RFC 3030) the content begins when RCPT has been answered: it would be on its way for nobody otherwise.
//!
//! Invariants:
//! - replies belong to commands in their order; more replies than commands are an error;
//! - content is said only where somebody gets it, and never in part behind an end-of-data: who tells this machine of the end of the
//!   content has said all of it;
//! - a recipient whose fate is known keeps it, whatever happens to the connection.
//!
//! Knows nothing of sockets and time.

use std::collections::VecDeque;

use super::message::{Manner, Message, Objection};
use super::{BadReply, Offers, Protocol, Reply, Step, Why};

/// Commands are made in portions of so many octets, one of them written before the next is made.
const PORTION_SIZE: usize = 16 << 10;

/// What became of a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The server has the message for it.
    Taken(Reply),
    /// The server has refused the recipient, or the message for it, with 4xx or 5xx.
    Refused(Reply, Step),
    /// The server wants fewer recipients in one transaction (RFC 5321 §4.5.3.1.10): it is for the next one.
    Postponed(Reply),
    /// The server was not asked, for it cannot be given this.
    Unfit(Objection),
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Commands are said and answered.
    Commands,
    /// The content is to be said.
    Content,
    /// A lone dot is to be said: the server wants content for nobody.
    Dot,
    /// All is said, and not all answered.
    Endings,
    /// Everything is answered.
    Done,
}

/// A command that waits for its reply. Recipients by their place in the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Reset,
    Forward,
    Mail,
    Recipient(usize),
    Data,
    /// The end of the content, in LMTP for one recipient.
    End(Option<usize>),
    /// The end of nothing.
    Dot,
}

/// See the module.
#[derive(Debug)]
pub struct Transaction<'a> {
    message: Message<'a>,
    protocol: Protocol,
    manner: Manner,
    pipelining: bool,
    /// RSET and XFORWARD.
    preludes: Vec<(Asked, String)>,
    mail: String,
    /// The command that is said next: a prelude, MAIL, a recipient, DATA, and then none.
    next: usize,
    asked: VecDeque<Asked>,
    stage: Stage,
    fates: Vec<Option<Fate>>,
    /// The recipients that RCPT has taken, in order.
    taken: Vec<usize>,
    /// MAIL was taken, and no reply has ended the transaction.
    is_open: bool,
    /// The server may have a transaction open: this one, or the one before as long as RSET is not answered.
    needs_reset: bool,
    is_content_said: bool,
    /// The server has answered the content before its end.
    is_cut: bool,
}

impl<'a> Transaction<'a> {
    /// Of `message` with a server that offers `offers`; with RSET before it where the last transaction did not end.
    pub fn new(
        message: Message<'a>,
        protocol: Protocol,
        offers: &Offers,
        needs_reset: bool,
    ) -> Result<Self, Objection> {
        let manner = message.manner(offers)?;
        let mut preludes = Vec::new();
        if needs_reset {
            preludes.push((Asked::Reset, "RSET".into()));
        }
        let forwarded = message.origin.map(|origin| origin.commands(offers)).unwrap_or_default();
        preludes.extend(forwarded.into_iter().map(|line| (Asked::Forward, line)));
        let mut transaction = Transaction {
            message,
            protocol,
            manner,
            pipelining: offers.has("PIPELINING"),
            preludes,
            mail: message.mail(manner, offers),
            next: 0,
            asked: VecDeque::new(),
            stage: Stage::Commands,
            fates: vec![None; message.recipients.len()],
            taken: Vec::new(),
            is_open: false,
            needs_reset,
            is_content_said: false,
            is_cut: false,
        };
        for (fate, place) in transaction.fates.iter_mut().zip(message.recipients) {
            *fate = message.rcpt(*place, manner).err().map(Fate::Unfit);
        }
        if transaction.fates.iter().all(Option::is_some) {
            transaction.stage = Stage::Done;
        }
        Ok(transaction)
    }

    /// What became of the recipients, in their order; nothing is known of those who have none.
    pub fn into_fates(self) -> Vec<Option<Fate>> {
        self.fates
    }

    /// The end of the content was said: a server that has not answered may have it.
    pub fn is_content_said(&self) -> bool {
        self.is_content_said
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether something has to be undone before the next transaction.
    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset
    }

    /// Whether the server has answered the content before its end: what was to be content is not on its way any more.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// What was asked and is not answered, or is to be done.
    pub(super) fn step(&self) -> Step {
        match (self.asked.front(), self.stage) {
            (Some(Asked::Reset), _) => Step::Reset,
            (Some(Asked::Forward), _) => Step::Forward,
            (Some(Asked::Mail), _) => Step::Mail,
            (Some(Asked::Recipient(_)), _) => Step::Recipient,
            (Some(Asked::Data), _) => Step::Data,
            (Some(Asked::End(_) | Asked::Dot), _) | (None, Stage::Endings | Stage::Done) => Step::End,
            (None, Stage::Commands) => Step::Mail,
            (None, Stage::Content | Stage::Dot) => Step::Content,
        }
    }

    /// Puts the commands that may be said now behind `out`, a portion of them. Where all are said and answered the next stage begins.
    pub(super) fn say(&mut self, out: &mut Vec<u8>) {
        while self.stage == Stage::Commands && out.len() < PORTION_SIZE {
            if !self.pipelining && !self.asked.is_empty() {
                return;
            }
            let Some((asked, line)) = self.next_command() else {
                if self.asked.is_empty() {
                    let is_for_nobody = self.taken.is_empty() || !self.manner.in_chunks;
                    self.stage = if is_for_nobody { Stage::Done } else { Stage::Content };
                }
                return;
            };
            // Parsed paths and encoded texts have none; a command is one line whatever comes.
            assert!(!line.contains(['\r', '\n', '\0']), "a command is one line");
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
            self.asked.push_back(asked);
        }
    }

    fn next_command(&mut self) -> Option<(Asked, String)> {
        loop {
            let at = self.next;
            let recipients_begin = self.preludes.len() + 1;
            let recipients_end = recipients_begin + self.fates.len();
            if at > recipients_end {
                return None;
            }
            self.next += 1;
            if at < self.preludes.len() {
                return Some(self.preludes[at].clone());
            }
            if at < recipients_begin {
                return Some((Asked::Mail, std::mem::take(&mut self.mail)));
            }
            if at < recipients_end {
                let n = at - recipients_begin;
                if self.fates[n].is_some() {
                    continue;
                }
                let line = self.message.rcpt(self.message.recipients[n], self.manner);
                return Some((Asked::Recipient(n), line.expect("those that cannot be said have a fate")));
            }
            // Where replies are waited for they may have left nobody.
            let is_for_nobody = self.taken.is_empty() && self.asked.is_empty();
            if self.manner.in_chunks || is_for_nobody {
                return None;
            }
            return Some((Asked::Data, "DATA".into()));
        }
    }

    /// Takes the reply to the command that waits longest for one, and whether everything had been written when it came. An error is the end of the
    /// connection.
    pub(super) fn handle_reply(&mut self, reply: Reply, is_all_written: bool) -> Result<(), Why> {
        // RFC 5321 §3.8: no answer, but the end.
        if reply.code == 421 {
            return Err(Why::Refused(reply));
        }
        if self.stage == Stage::Endings && !is_all_written {
            return self.handle_early(reply);
        }
        let Some(asked) = self.asked.pop_front() else { return self.handle_early(reply) };
        let handled = self.handle_answer(asked, &reply);
        if handled.is_err() {
            // It is not answered.
            self.asked.push_front(asked);
        }
        handled
    }

    fn handle_answer(&mut self, asked: Asked, reply: &Reply) -> Result<(), Why> {
        if reply.code / 100 == 3 && asked != Asked::Data {
            return Err(Why::Bad(BadReply::UNFIT));
        }
        match asked {
            Asked::Reset if !reply.is_positive() => return Err(Why::Refused(reply.clone())),
            Asked::Reset => self.needs_reset = false,
            // What the log of the server behind us says is not worth a message.
            Asked::Forward => {}
            Asked::Mail if reply.is_positive() => (self.is_open, self.needs_reset) = (true, true),
            Asked::Mail => {
                // What was refused as nested, or out of order, would be so for ever.
                self.needs_reset = true;
                self.refuse_rest(reply, Step::Mail);
                self.next = usize::MAX;
            }
            Asked::Recipient(_) if !self.is_open => {}
            Asked::Recipient(n) if reply.is_positive() => self.taken.push(n),
            Asked::Recipient(n) if !self.taken.is_empty() && is_too_many(reply) => {
                self.fates[n] = Some(Fate::Postponed(reply.shortened()));
            }
            Asked::Recipient(n) => self.fates[n] = Some(Fate::Refused(reply.shortened(), Step::Recipient)),
            Asked::Data => return self.handle_data(reply),
            Asked::End(only) => {
                (self.is_open, self.needs_reset) = (false, false);
                self.end(only, reply);
            }
            Asked::Dot => (self.is_open, self.needs_reset) = (false, false),
        }
        if self.stage == Stage::Endings && self.asked.is_empty() {
            self.stage = Stage::Done;
        }
        Ok(())
    }

    fn handle_data(&mut self, reply: &Reply) -> Result<(), Why> {
        match (reply.code / 100, self.taken.is_empty()) {
            (3, false) => self.stage = Stage::Content,
            // RFC 2920 §3.1 has the client end what the server should not have begun.
            (3, true) if self.protocol == Protocol::Smtp => self.stage = Stage::Dot,
            // In LMTP nobody could tell how many replies that would have (RFC 2033 §4.2).
            (3, true) | (2, _) => return Err(Why::Bad(BadReply::UNFIT)),
            _ => {
                self.refuse_rest(reply, Step::Data);
                self.stage = Stage::Done;
            }
        }
        Ok(())
    }

    /// A reply that nothing asked for: within the content it can only be its refusal.
    fn handle_early(&mut self, reply: Reply) -> Result<(), Why> {
        if !matches!((self.stage, reply.code / 100), (Stage::Content | Stage::Endings, 4 | 5)) {
            return Err(Why::Bad(BadReply::UNASKED));
        }
        self.refuse_rest(&reply, Step::Content);
        self.is_cut = true;
        self.stage = Stage::Done;
        Ok(())
    }

    fn end(&mut self, only: Option<usize>, reply: &Reply) {
        let fate = || match reply.is_positive() {
            true => Fate::Taken(reply.shortened()),
            false => Fate::Refused(reply.shortened(), Step::End),
        };
        match only {
            Some(n) => self.fates[n] = Some(fate()),
            None => self.taken.iter().for_each(|n| self.fates[*n] = Some(fate())),
        }
    }

    fn refuse_rest(&mut self, reply: &Reply, step: Step) {
        for fate in self.fates.iter_mut().filter(|fate| fate.is_none()) {
            *fate = Some(Fate::Refused(reply.shortened(), step));
        }
    }

    /// Whether the content goes behind DATA, with transparency. Otherwise it goes as it is, behind this command.
    pub(super) fn chunk(&self) -> Option<String> {
        self.manner.in_chunks.then(|| format!("BDAT {} LAST\r\n", self.message.size))
    }

    /// The content's size in octets, as it was said with MAIL.
    pub(super) fn size(&self) -> u64 {
        self.message.size
    }

    /// The end of the content is about to be said, or that of nothing.
    pub(super) fn handle_end_said(&mut self) {
        match (self.stage, self.protocol) {
            (Stage::Dot, _) => self.asked.push_back(Asked::Dot),
            (_, Protocol::Smtp) => self.asked.push_back(Asked::End(None)),
            (_, Protocol::Lmtp) => self.asked.extend(self.taken.iter().map(|n| Asked::End(Some(*n)))),
        }
        self.is_content_said |= self.stage == Stage::Content;
        self.stage = Stage::Endings;
    }
}

/// Whether RCPT was answered that there are enough recipients. 552 is what RFC 821 had for it; both are also said of a mailbox that is full,
/// then with another status.
fn is_too_many(reply: &Reply) -> bool {
    let is_about_count = |status: crate::mail::Status| (status.subject, status.detail) == (5, 3);
    matches!(reply.code, 452 | 552) && reply.status().is_none_or(is_about_count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::message::{HeaderText, Origin};
    use crate::mail::{Arrival, Body, Envelope, ForwardPath, MessageId, Protocol as By, ReversePath};

    const ALL: &str = "mx\nPIPELINING\nSIZE 1000\n8BITMIME\nSMTPUTF8\nDSN\nCHUNKING\nBINARYMIME";

    fn envelope(recipients: &[&str]) -> Envelope {
        let path = |text: &&str| ForwardPath::parse(text, true).unwrap();
        let reverse_path = ReversePath::parse("s@client.example", false).unwrap();
        Envelope::new(reverse_path, recipients.iter().map(path).collect())
    }

    fn message<'a>(envelope: &'a Envelope, recipients: &'a [u32]) -> Message<'a> {
        let header = HeaderText::Unknown;
        Message {
            envelope,
            recipients,
            size: 100,
            header,
            origin: None,
            tells_success: true,
            in_chunks: false,
        }
    }

    /// What is said, with a `|` wherever a reply is waited for, and what becomes of each recipient: the code, and `+` where it was postponed.
    fn converse(mut transaction: Transaction<'_>, replies: &[u16]) -> Result<(String, String), String> {
        let (mut said, mut replies) = (String::new(), replies.iter());
        while transaction.stage() != Stage::Done {
            let mut out = Vec::new();
            transaction.say(&mut out);
            said += &String::from_utf8(out).unwrap().replace("\r\n", " ");
            match transaction.stage() {
                Stage::Content | Stage::Dot => {
                    let is_dot = transaction.stage() == Stage::Dot;
                    said +=
                        if is_dot { "dot " } else { transaction.chunk().map_or("content ", |_| "chunk ") };
                    transaction.handle_end_said();
                }
                Stage::Done => break,
                Stage::Commands | Stage::Endings => {
                    said += "| ";
                    let code = *replies.next().ok_or("more replies are waited for")?;
                    let reply = Reply { code, text: "x".into() };
                    transaction
                        .handle_reply(reply, true)
                        .map_err(|why| super::super::Failure { step: transaction.step(), why }.to_string())?;
                }
            }
        }
        assert_eq!(replies.next(), None, "{said}");
        let fate = |fate: Option<Fate>| match fate.expect("a fate") {
            Fate::Taken(reply) | Fate::Refused(reply, _) => reply.code.to_string(),
            Fate::Postponed(reply) => format!("{}+", reply.code),
            Fate::Unfit(objection) => objection.status().to_string(),
        };
        let fates: Vec<_> = transaction.into_fates().into_iter().map(fate).collect();
        let short = said.replace("MAIL FROM:<s@client.example>", "M").replace("RCPT TO:", "R");
        Ok((short.trim_end().into(), fates.join(" ")))
    }

    #[test]
    fn each_recipient_has_its_own_fate() {
        use Protocol::{Lmtp, Smtp};
        let (all, one, two) = ("mx\nPIPELINING", "mx", &["a@x", "b@x"]);
        type Case<'a> = (Protocol, &'a str, &'a [u16], &'a str, &'a str);
        let table: [Case; 22] = [
            (Smtp, all, &[250, 250, 250, 354, 250], "M R<a@x> R<b@x> DATA | | | | content |", "250 250"),
            (Smtp, one, &[250, 250, 250, 354, 250], "M | R<a@x> | R<b@x> | DATA | content |", "250 250"),
            (
                Lmtp,
                all,
                &[250, 250, 250, 354, 250, 452],
                "M R<a@x> R<b@x> DATA | | | | content | |",
                "250 452",
            ),
            (
                Lmtp,
                one,
                &[250, 250, 250, 354, 550, 250],
                "M | R<a@x> | R<b@x> | DATA | content | |",
                "550 250",
            ),
            // A part of the recipients.
            (Smtp, all, &[250, 550, 250, 354, 250], "M R<a@x> R<b@x> DATA | | | | content |", "550 250"),
            (Lmtp, all, &[250, 250, 451, 354, 250], "M R<a@x> R<b@x> DATA | | | | content |", "250 451"),
            (Smtp, one, &[250, 250, 553, 354, 554], "M | R<a@x> | R<b@x> | DATA | content |", "554 553"),
            (Smtp, all, &[250, 251, 250, 354, 451], "M R<a@x> R<b@x> DATA | | | | content |", "451 451"),
            // None of them.
            (Smtp, all, &[250, 550, 450, 554], "M R<a@x> R<b@x> DATA | | | |", "550 450"),
            (Smtp, all, &[250, 550, 450, 354, 554], "M R<a@x> R<b@x> DATA | | | | dot |", "550 450"),
            (Smtp, all, &[250, 550, 450, 354, 250], "M R<a@x> R<b@x> DATA | | | | dot |", "550 450"),
            (Smtp, one, &[250, 550, 450], "M | R<a@x> | R<b@x> |", "550 450"),
            (Lmtp, all, &[250, 550, 450, 503], "M R<a@x> R<b@x> DATA | | | |", "550 450"),
            // MAIL is refused.
            (Smtp, all, &[452, 503, 503, 503], "M R<a@x> R<b@x> DATA | | | |", "452 452"),
            (Smtp, all, &[552, 250, 250, 503], "M R<a@x> R<b@x> DATA | | | |", "552 552"),
            (Smtp, one, &[550], "M |", "550 550"),
            // DATA is.
            (Smtp, all, &[250, 250, 550, 451], "M R<a@x> R<b@x> DATA | | | |", "451 550"),
            (Smtp, one, &[250, 250, 550, 554], "M | R<a@x> | R<b@x> | DATA |", "554 550"),
            // There are too many of them.
            (Smtp, all, &[250, 250, 452, 354, 250], "M R<a@x> R<b@x> DATA | | | | content |", "250 452+"),
            (Lmtp, one, &[250, 250, 552, 354, 250], "M | R<a@x> | R<b@x> | DATA | content |", "250 552+"),
            (Smtp, all, &[250, 452, 552, 503], "M R<a@x> R<b@x> DATA | | | |", "452 552"),
            (Smtp, all, &[250, 452, 250, 354, 250], "M R<a@x> R<b@x> DATA | | | | content |", "452 250"),
        ];
        for (protocol, offers, replies, said, fates) in table {
            let envelope = envelope(two);
            let offers = Offers::new(offers.into());
            let transaction =
                Transaction::new(message(&envelope, &[0, 1]), protocol, &offers, false).unwrap();
            let expected = Ok((said.into(), fates.into()));
            assert_eq!(converse(transaction, replies), expected, "{protocol:?} {replies:?}");
        }
    }

    #[test]
    fn what_is_open_stays_to_be_reset_until_a_reply_has_ended_it() {
        type Case<'a> = (&'a str, bool, &'a [u16], bool);
        let table: [Case; 8] = [
            // Nothing is said for a recipient that this server cannot be given.
            ("\u{fc}@x", true, &[], true),
            ("\u{fc}@x", false, &[], false),
            ("a@x", false, &[503], true),
            ("a@x", true, &[250, 451], true),
            ("a@x", true, &[250, 250, 550], true),
            ("a@x", false, &[250, 250, 554], true),
            ("a@x", true, &[250, 250, 250, 354, 250], false),
            ("a@x", false, &[250, 250, 354, 451], false),
        ];
        for (to, before, replies, expected) in table {
            let envelope = Envelope { smtputf8: true, ..envelope(&[to]) };
            let message = Message { header: HeaderText::Ascii, ..message(&envelope, &[0]) };
            let offers = Offers::new("mx".into());
            let mut transaction = Transaction::new(message, Protocol::Smtp, &offers, before).unwrap();
            for code in replies {
                transaction.say(&mut Vec::new());
                if transaction.stage() == Stage::Content {
                    transaction.handle_end_said();
                }
                transaction.handle_reply(Reply { code: *code, text: String::new() }, true).unwrap();
            }
            transaction.say(&mut Vec::new());
            assert_eq!(transaction.stage(), Stage::Done, "{to} {replies:?}");
            assert_eq!(transaction.needs_reset(), expected, "{to} {before} {replies:?}");
        }
    }

    #[test]
    fn chunks_begin_when_somebody_gets_them() {
        let table: [(Protocol, &[u16], &str, &str); 4] = [
            (Protocol::Smtp, &[250, 250, 550, 250], "M SIZE=100 R<a@x> R<b@x> | | | chunk |", "250 550"),
            (
                Protocol::Lmtp,
                &[250, 250, 250, 250, 452],
                "M SIZE=100 R<a@x> R<b@x> | | | chunk | |",
                "250 452",
            ),
            (Protocol::Smtp, &[250, 450, 550], "M SIZE=100 R<a@x> R<b@x> | | |", "450 550"),
            (Protocol::Smtp, &[451, 503, 503], "M SIZE=100 R<a@x> R<b@x> | | |", "451 451"),
        ];
        for (protocol, replies, said, fates) in table {
            let envelope = envelope(&["a@x", "b@x"]);
            let message = Message { in_chunks: true, ..message(&envelope, &[0, 1]) };
            let transaction = Transaction::new(message, protocol, &Offers::new(ALL.into()), false).unwrap();
            assert_eq!(converse(transaction, replies), Ok((said.into(), fates.into())), "{replies:?}");
        }
    }

    #[test]
    fn replies_that_do_not_fit_end_the_connection() {
        let table: [(Protocol, &[u16], &str); 9] = [
            (Protocol::Smtp, &[421], "MAIL: 421 x"),
            (Protocol::Smtp, &[250, 421], "RCPT: 421 x"),
            (Protocol::Smtp, &[250, 250, 250, 421], "DATA: 421 x"),
            (Protocol::Smtp, &[250, 250, 250, 354, 421], "the end of the content: 421 x"),
            (Protocol::Smtp, &[250, 250, 250, 250], "DATA: a reply that does not fit"),
            (Protocol::Smtp, &[354], "MAIL: a reply that does not fit"),
            (Protocol::Smtp, &[250, 354], "RCPT: a reply that does not fit"),
            (Protocol::Smtp, &[250, 250, 250, 354, 354], "the end of the content: a reply that does not fit"),
            (Protocol::Lmtp, &[250, 550, 550, 354], "DATA: a reply that does not fit"),
        ];
        for (protocol, replies, expected) in table {
            let envelope = envelope(&["a@x", "b@x"]);
            let offers = Offers::new("mx\nPIPELINING".into());
            let transaction =
                Transaction::new(message(&envelope, &[0, 1]), protocol, &offers, false).unwrap();
            assert_eq!(converse(transaction, replies), Err(expected.into()), "{replies:?}");
        }
    }

    #[test]
    fn what_is_answered_before_its_end_was_never_there() {
        let envelope = envelope(&["a@x", "b@x"]);
        for (code, all_written, stage) in [(552, false, "content"), (451, false, "end"), (250, false, "end")]
        {
            let offers = Offers::new("mx\nPIPELINING".into());
            let mut transaction =
                Transaction::new(message(&envelope, &[0, 1]), Protocol::Smtp, &offers, false).unwrap();
            transaction.say(&mut Vec::new());
            for code in [250, 250, 550, 354] {
                transaction.handle_reply(Reply { code, text: String::new() }, true).unwrap();
            }
            assert_eq!(transaction.stage(), Stage::Content);
            if stage == "end" {
                transaction.handle_end_said();
            }
            let handled = transaction.handle_reply(Reply { code, text: String::new() }, all_written);
            if code == 250 {
                assert!(handled.is_err(), "nobody can have taken what was not all said");
                continue;
            }
            handled.unwrap();
            assert!(transaction.is_cut() && transaction.stage() == Stage::Done);
            let codes: Vec<_> = transaction.into_fates().into_iter().flatten().collect();
            assert!(
                matches!(&codes[..], [Fate::Refused(a, Step::Content), Fate::Refused(b, Step::Recipient)]
                if (a.code, b.code) == (code, 550))
            );
        }
    }

    /// The parameters of MAIL and RCPT, or the objection's status.
    fn parameters(envelope: &Envelope, offers: &str, header: HeaderText) -> Result<String, String> {
        let places: Vec<_> = (0..envelope.forward_paths.len() as u32).collect();
        let offers = Offers::new(format!("mx\nPIPELINING\n{offers}"));
        let message = Message { header, ..message(envelope, &places) };
        let transaction = Transaction::new(message, Protocol::Smtp, &offers, false);
        let mut transaction = transaction.map_err(|objection| objection.status().to_string())?;
        let mut out = Vec::new();
        transaction.say(&mut out);
        let unfit = transaction.fates.iter().flatten().map(|fate| match fate {
            Fate::Unfit(objection) => format!("unfit {}", objection.status()),
            other => panic!("{other:?}"),
        });
        let lines = String::from_utf8(out).unwrap();
        Ok(lines
            .lines()
            .map(String::from)
            .filter(|line| line != "DATA")
            .chain(unfit)
            .collect::<Vec<_>>()
            .join("; "))
    }

    #[test]
    fn what_a_server_offers_is_used_and_nothing_else() {
        use crate::mail::{Dsn, EnvelopeId, Notify, OriginalRecipient, RecipientDsn, Ret};
        let plain = envelope(&["postmaster", "b@bücher.example"]);
        let null = Envelope { reverse_path: ReversePath::Null, ..envelope(&["A.b@x"]) };
        let bits = |body| Envelope { body, ..envelope(&["a@x"]) };
        let utf8 = |sender: &str, to: &[&str]| Envelope {
            reverse_path: ReversePath::parse(sender, true).unwrap(),
            smtputf8: true,
            ..envelope(to)
        };
        let dsn = Envelope {
            dsn: Some(Box::new(Dsn {
                ret: Some(Ret::Headers),
                envelope_id: EnvelopeId::parse("QQ+2B1"),
                recipients: vec![RecipientDsn {
                    index: 1,
                    notify: Notify::parse("SUCCESS,DELAY"),
                    original: OriginalRecipient::parse("rfc822;b+2Bc@e.org", false),
                }],
            })),
            ..envelope(&["a@x", "b@x"])
        };
        let tls = Envelope { require_tls: true, ..envelope(&["a@x"]) };
        let s = "MAIL FROM:<s@client.example>";
        let unknown = HeaderText::Unknown;
        let table: &[(&Envelope, &str, HeaderText, Result<String, &str>)] = &[
            (
                &plain,
                "",
                unknown,
                Ok(format!("{s}; RCPT TO:<postmaster>; RCPT TO:<b@xn--bcher-kva.example>")),
            ),
            (&null, "SIZE", unknown, Ok("MAIL FROM:<> SIZE=100; RCPT TO:<A.b@x>".into())),
            (&null, "SIZE 100", unknown, Ok("MAIL FROM:<> SIZE=100; RCPT TO:<A.b@x>".into())),
            (&null, "SIZE 99", unknown, Err("5.3.4")),
            (&null, "SIZE 0", unknown, Ok("MAIL FROM:<> SIZE=100; RCPT TO:<A.b@x>".into())),
            (&bits(Body::EightBit), "8BITMIME", unknown, Ok(format!("{s} BODY=8BITMIME; RCPT TO:<a@x>"))),
            (&bits(Body::EightBit), "", unknown, Ok(format!("{s}; RCPT TO:<a@x>"))),
            (&bits(Body::Binary), "8BITMIME\nCHUNKING", unknown, Err("5.6.3")),
            (&bits(Body::Binary), "BINARYMIME", unknown, Err("5.6.3")),
            (
                &bits(Body::Binary),
                "BINARYMIME\nCHUNKING",
                unknown,
                Ok(format!("{s} BODY=BINARYMIME; RCPT TO:<a@x>")),
            ),
            (
                &utf8("ü@é.example", &["ö@bücher.example"]),
                "SMTPUTF8",
                unknown,
                Ok("MAIL FROM:<ü@é.example> SMTPUTF8; RCPT TO:<ö@bücher.example>".into()),
            ),
            (&utf8("ü@e.example", &["a@x"]), "", HeaderText::Ascii, Err("5.6.7")),
            (&utf8("u@é.example", &["a@x"]), "", unknown, Err("5.6.9")),
            (&utf8("u@é.example", &["a@x"]), "", HeaderText::Utf8, Err("5.6.9")),
            (
                &utf8("u@é.example", &["ö@x", "a@bücher.example"]),
                "",
                HeaderText::Ascii,
                Ok("MAIL FROM:<u@xn--9ca.example>; RCPT TO:<a@xn--bcher-kva.example>; unfit 5.6.7".into()),
            ),
            (&dsn, "", unknown, Ok(format!("{s}; RCPT TO:<a@x>; RCPT TO:<b@x>"))),
            (
                &dsn,
                "DSN",
                unknown,
                Ok(format!(
                    "{s} RET=HDRS ENVID=QQ+2B1; RCPT TO:<a@x>; RCPT TO:<b@x> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;b+2Bc@e.org"
                )),
            ),
            (&tls, "", unknown, Err("5.7.30")),
            (&tls, "REQUIRETLS", unknown, Ok(format!("{s} REQUIRETLS; RCPT TO:<a@x>"))),
        ];
        for (envelope, offers, header, expected) in table {
            let found = parameters(envelope, offers, *header);
            assert_eq!(found, expected.clone().map_err(String::from), "{offers:?}");
        }
    }

    #[test]
    fn success_is_told_by_one() {
        use crate::mail::{Dsn, Notify, RecipientDsn};
        let table = [
            (Some("SUCCESS"), true, " NOTIFY=SUCCESS"),
            (Some("SUCCESS"), false, " NOTIFY=NEVER"),
            (Some("SUCCESS,FAILURE,DELAY"), false, " NOTIFY=FAILURE,DELAY"),
            (Some("DELAY"), false, " NOTIFY=DELAY"),
            (Some("NEVER"), false, " NOTIFY=NEVER"),
            (None, false, ""),
        ];
        for (notify, tells_success, expected) in table {
            let notify = notify.map(|words| Notify::parse(words).unwrap());
            let recipients = vec![RecipientDsn { index: 0, notify, original: None }];
            let dsn = Dsn { ret: None, envelope_id: None, recipients };
            let envelope = Envelope { dsn: Some(Box::new(dsn)), ..envelope(&["a@x"]) };
            let message = Message { tells_success, ..message(&envelope, &[0]) };
            let manner = message.manner(&Offers::new("mx\nDSN".into())).unwrap();
            assert_eq!(message.rcpt(0, manner), Ok(format!("RCPT TO:<a@x>{expected}")));
        }
    }

    #[test]
    fn the_origin_is_told_in_lines_that_fit() {
        let arrival = |hello: &str, peer: &str, name: Option<&str>| Arrival {
            peer: peer.parse().unwrap(),
            hello: hello.into(),
            protocol: By::Esmtp,
            tls: None,
            authenticated: None,
            client_name: name.map(Into::into),
            tags: Vec::new(),
            unix_time: 0,
            provenance: Default::default(),
        };
        let id = MessageId { log: 1, sequence: 1 };
        let all = "NAME ADDR PORT PROTO HELO IDENT SOURCE";
        let long = "h".repeat(250);
        let odd = arrival("a=b c", "[2001:db8::1]:25", None);
        let known = arrival("h+x", "192.0.2.1:1025", Some("c.example"));
        let wide = arrival(&long, "[::ffff:192.0.2.1]:1", Some(&long));
        let table = [
            (&known, "NAME helo Addr", vec!["NAME=c.example ADDR=192.0.2.1 HELO=h+2Bx".into()]),
            (
                &odd,
                all,
                vec![format!(
                    "NAME=[UNAVAILABLE] ADDR=IPV6:2001:db8::1 PORT=25 PROTO=ESMTP HELO=[UNAVAILABLE] IDENT={id} SOURCE=REMOTE"
                )],
            ),
            (
                &wide,
                all,
                vec![
                    format!("NAME={long} ADDR=192.0.2.1 PORT=1 PROTO=ESMTP"),
                    format!("HELO={long} IDENT={id} SOURCE=REMOTE"),
                ],
            ),
            (&known, "", vec![]),
        ];
        for (arrival, attributes, expected) in table {
            let offers = Offers::new(format!("mx\nXFORWARD {attributes}"));
            let lines = Origin { id, arrival }.commands(&offers);
            let expected: Vec<_> = expected.iter().map(|words| format!("XFORWARD {words}")).collect();
            assert_eq!(lines, expected);
            assert!(lines.iter().all(|line| line.len() <= 510));
        }
        assert!(Origin { id, arrival: &known }.commands(&Offers::new("mx".into())).is_empty());
    }

    #[test]
    fn what_is_before_mail_does_not_decide_about_it() {
        let envelope = envelope(&["a@x"]);
        let arrival = Arrival {
            peer: "192.0.2.1:25".parse().unwrap(),
            hello: "h".into(),
            protocol: By::Smtp,
            tls: None,
            authenticated: None,
            client_name: None,
            tags: Vec::new(),
            unix_time: 0,
            provenance: Default::default(),
        };
        let origin = Some(Origin { id: MessageId { log: 1, sequence: 1 }, arrival: &arrival });
        let offers = Offers::new("mx\nPIPELINING\nXFORWARD PROTO".into());
        let transaction = || {
            let message = Message { origin, ..message(&envelope, &[0]) };
            Transaction::new(message, Protocol::Smtp, &offers, true).unwrap()
        };
        let said = "RSET XFORWARD PROTO=SMTP M R<a@x> DATA | | | | | content |";
        for replies in [[250, 250, 250, 250, 354, 250], [250, 550, 250, 250, 354, 250]] {
            assert_eq!(converse(transaction(), &replies), Ok((said.into(), "250".into())));
        }
        assert_eq!(converse(transaction(), &[503]), Err("RSET: 503 x".into()));
    }
}
