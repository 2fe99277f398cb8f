//! What a policy answers: a verdict at once, or one that takes its time.

use std::fmt;
use std::pin::Pin;

use crate::mail::{ForwardPath, Refusal, Tag};

/// What a policy decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As far as this policy is concerned, go on.
    Accept,
    /// Do not go on: the peer is told why. Of class 5 it is rejected, of class 4 deferred; [`Refusal::disconnect`] ends the session.
    Refuse(Refusal),
    /// Go on, and remember this. Said at CONNECT or HELO it is of the session, and goes with every message of it; said later it
    /// is of the transaction.
    Tag(Tag),
    /// Go on, and do not ask those who only guard against strangers ([`Policy::is_guard`](super::Policy::is_guard)) from here on: in the
    /// rest of the session if it is said at CONNECT, until the next HELO if it is said there, and otherwise in this transaction.
    Trust,
    /// Go on; this is the peer's name, found and confirmed in the DNS.
    Name(Box<str>),
    /// At [`Phase::Recipient`](super::Phase::Recipient) only: go on, with these recipients in place of the one in question.
    Replace(Vec<ForwardPath>),
}

impl Verdict {
    /// The word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Verdict::Accept => "accept",
            Verdict::Refuse(Refusal { disconnect: true, .. }) => "disconnect",
            Verdict::Refuse(refusal) if refusal.status.class == crate::mail::Class::Temporary => "defer",
            Verdict::Refuse(_) => "reject",
            Verdict::Tag(_) => "tag",
            Verdict::Trust => "trust",
            Verdict::Name(_) => "name",
            Verdict::Replace(_) => "replace",
        }
    }
}

/// Why a policy could not decide: in words for the operator. Never the peer's fault, so never a refusal of class 5.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(pub String);

impl Unavailable {
    /// In these words.
    pub fn new(words: impl Into<String>) -> Self {
        Unavailable(words.into())
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// What somebody found who had to wait for it.
pub type Found = Result<Verdict, Unavailable>;

/// A policy's answer. `Verdict::Accept.into()` is the shortest.
#[derive(Debug)]
pub enum Answer {
    /// At once.
    Now(Found),
    /// Somebody must be waited for, elsewhere than on a shard.
    Later(Later),
}

impl Answer {
    /// The verdict is what `future` finds. It runs beside others on one thread, with tokio's timers and sockets; it must not
    /// block. It is dropped when its time is over.
    pub fn wait(future: impl Future<Output = Found> + Send + 'static) -> Self {
        Answer::Later(Later::Wait(Box::pin(future)))
    }

    /// The verdict is what `work` finds. It has a thread for itself meanwhile, and may block; nobody can end it when its time is over.
    pub fn block(work: impl FnOnce() -> Found + Send + 'static) -> Self {
        Answer::Later(Later::Block(Box::new(work)))
    }
}

impl From<Verdict> for Answer {
    fn from(verdict: Verdict) -> Self {
        Answer::Now(Ok(verdict))
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Verdict::Refuse(refusal).into()
    }
}

impl From<Unavailable> for Answer {
    fn from(why: Unavailable) -> Self {
        Answer::Now(Err(why))
    }
}

/// Work that leads to a verdict; `Lookups` does it.
pub enum Later {
    /// See [`Answer::wait`].
    Wait(Pin<Box<dyn Future<Output = Found> + Send>>),
    /// See [`Answer::block`].
    Block(Box<dyn FnOnce() -> Found + Send>),
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Later::Wait(_) => "Wait",
            Later::Block(_) => "Block",
        })
    }
}
