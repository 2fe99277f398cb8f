//! What a session asks its driver to do.

use std::fmt;
use std::time::Duration;

use zeroize::Zeroizing;

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
    /// Begin TLS: answer with `Session::handle_tls_ready` or `handle_tls_unavailable`. Once ready: write the replies there are, forget
    /// every octet that was received, and shake hands; then `handle_secured` or `handle_tls_failed`.
    StartTls,
    /// Is this the user's password? Answer with `Session::handle_authenticated`.
    Authenticate(Credentials),
    /// Wait so long, with the replies unsent and nothing received; then say so with `Session::handle_pause_over`.
    Pause(Duration),
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

/// A name and a password, as a peer gives them.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name; printable, at most 255 octets.
    pub user: Box<str>,
    /// The password; its memory is overwritten when it is dropped.
    pub password: Zeroizing<Vec<u8>>,
}

/// Without the password.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What became of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// They are right.
    Accepted,
    /// They are not.
    Refused,
    /// Nobody could tell: too many ask at once.
    Unavailable,
}
