//! What a session asks its driver to do.

use crate::mail::Envelope;

/// A point of the session at which somebody outside may refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The peer has connected; nothing was said yet.
    Connect,
    /// HELO or EHLO; the candidate is `Session::hello`.
    Hello,
    /// MAIL; the candidate is the reverse-path of `Session::envelope`.
    Mail,
    /// RCPT; the candidate is `Session::recipient`.
    Recipient,
    /// DATA, before the 354.
    Data,
    /// The whole content has arrived; before it is stored for good.
    Message,
}

/// A set of phases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhaseSet(u8);

impl PhaseSet {
    /// No phase.
    pub const NONE: PhaseSet = PhaseSet(0);

    /// This set and `phase`.
    pub const fn with(self, phase: Phase) -> Self {
        PhaseSet(self.0 | 1 << phase as u8)
    }

    /// Whether `phase` is in the set.
    pub const fn contains(self, phase: Phase) -> bool {
        self.0 & 1 << phase as u8 != 0
    }
}

/// What is to be done next. Effects come one at a time, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Decide, and answer with `Session::handle_verdict`.
    Check(Phase),
    /// Keep this part of the content; answer with `handle_piece_taken` or `handle_not_stored`.
    Piece(Vec<u8>),
    /// Make the message durable; answer with `handle_stored`.
    Store(Submission),
    /// Forget the pieces of this transaction. Raised for every content that ends without `Store`, even if no
    /// piece was.
    Abandon,
    /// Write the replies there are and close the connection. Always the last effect.
    Close,
}

/// A message that is complete but for its trace field.
#[derive(Debug, PartialEq, Eq)]
pub struct Submission {
    /// Who it is from and for.
    pub envelope: Box<Envelope>,
    /// The content after the last piece; the whole content where there was no piece.
    pub tail: Vec<u8>,
    /// The size of the whole content in octets, pieces and tail.
    pub content_size: u64,
}

/// Why a message was not made durable. Never the peer's fault, so always a temporary refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStored {
    /// The spool is full.
    NoRoom,
    /// More is asked than can be done now; the session ends.
    TooBusy,
    /// A write or sync failed.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_set_holds_what_was_put_in() {
        use Phase::*;
        let all = [Connect, Hello, Mail, Recipient, Data, Message];
        for one in all {
            for other in all {
                assert_eq!(PhaseSet::NONE.with(one).contains(other), one == other);
            }
        }
    }
}
