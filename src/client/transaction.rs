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
        self.is_open
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
        if reply.code / 100 == 3 && asked != Asked::Data {
            return Err(Why::Bad(BadReply::UNFIT));
        }
        match asked {
            Asked::Reset if !reply.is_positive() => return Err(Why::Refused(reply)),
            // What the log of the server behind us says is not worth a message.
            Asked::Reset | Asked::Forward => {}
            Asked::Mail if reply.is_positive() => self.is_open = true,
            Asked::Mail => {
                self.refuse_rest(&reply, Step::Mail);
                self.next = usize::MAX;
            }
            Asked::Recipient(_) if !self.is_open => {}
            Asked::Recipient(n) if reply.is_positive() => self.taken.push(n),
            Asked::Recipient(n) if !self.taken.is_empty() && is_too_many(&reply) => {
                self.fates[n] = Some(Fate::Postponed(reply.shortened()));
            }
            Asked::Recipient(n) => self.fates[n] = Some(Fate::Refused(reply.shortened(), Step::Recipient)),
            Asked::Data => return self.handle_data(&reply),
            Asked::End(only) => {
                self.is_open = false;
                self.end(only, &reply);
            }
            Asked::Dot => self.is_open = false,
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
