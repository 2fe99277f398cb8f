//! Enhanced mail system status codes (RFC 3463) and the refusals that carry them.

use std::borrow::Cow;
use std::fmt;

/// The first digit of a status code (RFC 3463 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// 2: done.
    Success,
    /// 4: may work later.
    Temporary,
    /// 5: will not work as it is.
    Permanent,
}

/// An enhanced status code, as `4.3.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status {
    /// Success, temporary or permanent.
    pub class: Class,
    /// What it is about (RFC 3463 §3.2 ff.), as 1 for addresses, 7 for policy.
    pub subject: u16,
    /// The case within the subject.
    pub detail: u16,
}

impl Status {
    /// 2.0.0.
    pub const SUCCESS: Status = Status { class: Class::Success, subject: 0, detail: 0 };

    /// The status that is the first word of `text` (RFC 3463 §2).
    pub fn leading(text: &str) -> Option<Self> {
        let mut parts = text.split(' ').next()?.split('.');
        let class = match parts.next()? {
            "2" => Class::Success,
            "4" => Class::Temporary,
            "5" => Class::Permanent,
            _ => return None,
        };
        let mut number = || {
            let digits = parts.next()?;
            let is_number = (1..=3).contains(&digits.len())
                && digits.bytes().all(|c| c.is_ascii_digit())
                && (digits.len() == 1 || !digits.starts_with('0'));
            is_number.then(|| digits.parse().ok()).flatten()
        };
        let status = Status { class, subject: number()?, detail: number()? };
        parts.next().is_none().then_some(status)
    }

    /// A status of class 4.
    pub const fn temporary(subject: u16, detail: u16) -> Self {
        Status { class: Class::Temporary, subject, detail }
    }

    /// A status of class 5.
    pub const fn permanent(subject: u16, detail: u16) -> Self {
        Status { class: Class::Permanent, subject, detail }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = match self.class {
            Class::Success => 2,
            Class::Temporary => 4,
            Class::Permanent => 5,
        };
        write!(f, "{class}.{}.{}", self.subject, self.detail)
    }
}

/// Why something was not accepted: a status and words for people, without a reply code (`smtp` alone knows those).
///
/// The text is one line of printable ASCII that the gateway or its operator wrote; never octets of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Temporary or permanent, and what about.
    pub status: Status,
    /// The words of the reply.
    pub text: Cow<'static, str>,
    /// The session ends with this refusal.
    pub disconnect: bool,
    /// What decided it, for the log: an address, a list, a limit. May hold what a peer has said.
    pub key: Option<Box<str>>,
}

impl Refusal {
    /// A refusal after which the session goes on.
    pub const fn new(status: Status, text: &'static str) -> Self {
        Refusal { status, text: Cow::Borrowed(text), disconnect: false, key: None }
    }

    /// A refusal that ends the session.
    pub const fn final_one(status: Status, text: &'static str) -> Self {
        Refusal { status, text: Cow::Borrowed(text), disconnect: true, key: None }
    }

    /// The same, decided by `key`.
    pub fn keyed(mut self, key: impl Into<Box<str>>) -> Self {
        self.key = Some(key.into());
        self
    }
}
