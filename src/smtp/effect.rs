//! What a session asks its driver to do.

use crate::mail::{Envelope, Phase};

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
