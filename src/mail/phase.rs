//! The moments of a session at which something may be refused.

use std::ops::BitOr;

/// A moment of a session at which something may be refused, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The connection was accepted; nothing was said.
    Connect,
    /// HELO or EHLO.
    Hello,
    /// MAIL.
    Mail,
    /// One RCPT.
    Recipient,
    /// DATA, before 354.
    Data,
    /// End-of-data, before anything is made durable.
    Message,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Phase; 6] =
        [Phase::Connect, Phase::Hello, Phase::Mail, Phase::Recipient, Phase::Data, Phase::Message];
}

/// A set of phases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases(u8);

impl Phases {
    /// No phase.
    pub const NONE: Phases = Phases(0);
    /// Every phase.
    pub const ALL: Phases = Phases((1 << Phase::ALL.len()) - 1);

    /// The set of one phase.
    pub const fn of(phase: Phase) -> Self {
        Phases(1 << phase as u8)
    }

    /// Whether `phase` is in the set.
    pub const fn contains(self, phase: Phase) -> bool {
        self.0 & Phases::of(phase).0 != 0
    }
}

impl BitOr for Phases {
    type Output = Phases;

    fn bitor(self, other: Phases) -> Phases {
        Phases(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in() {
        for one in Phase::ALL {
            assert!(Phases::ALL.contains(one) && !Phases::NONE.contains(one));
            for other in Phase::ALL {
                assert_eq!(Phases::of(one).contains(other), one == other);
                assert!((Phases::of(one) | Phases::of(other)).contains(one));
            }
        }
    }
}
