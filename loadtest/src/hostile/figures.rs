//! What came of one scenario's connections.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::measure::{histogram, nanoseconds};

/// How a hostile connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The server closed it; its last reply had this code. Nothing: it had not said anything that is SMTP.
    Closed(Option<u16>),
    /// The server reset it, or it broke otherwise.
    Broken,
    /// This side left, as its scenario wants.
    Left,
    /// It was still there when the run ended.
    Held,
}

/// What one core, or all of them, saw of one scenario.
#[derive(Clone)]
pub struct Figures {
    /// Connections that were made.
    pub connections: u64,
    /// Connections that could not be made.
    pub refused: u64,
    /// Octets that were sent, below TLS.
    pub sent_octets: u64,
    /// TLS handshakes that came to their end.
    pub handshakes: u64,
    /// TLS handshakes that did not.
    pub failed_handshakes: u64,
    /// Replies by code.
    pub replies: BTreeMap<u16, u64>,
    /// How connections ended.
    pub endings: BTreeMap<Ending, u64>,
    /// How long they lasted, nanoseconds.
    pub stays: Histogram<u64>,
}

impl Default for Figures {
    fn default() -> Self {
        Figures {
            connections: 0,
            refused: 0,
            sent_octets: 0,
            handshakes: 0,
            failed_handshakes: 0,
            replies: BTreeMap::new(),
            endings: BTreeMap::new(),
            stays: histogram(2),
        }
    }
}

impl Figures {
    /// Notes that a connection ended after so long.
    pub fn record_ending(&mut self, ending: Ending, stay: Duration) {
        *self.endings.entry(ending).or_default() += 1;
        self.stays.saturating_record(nanoseconds(stay));
    }

    /// Adds what another core saw.
    pub fn add(&mut self, other: &Figures) {
        self.connections += other.connections;
        self.refused += other.refused;
        self.sent_octets += other.sent_octets;
        self.handshakes += other.handshakes;
        self.failed_handshakes += other.failed_handshakes;
        for (code, count) in &other.replies {
            *self.replies.entry(*code).or_default() += count;
        }
        for (ending, count) in &other.endings {
            *self.endings.entry(*ending).or_default() += count;
        }
        self.stays.add(&other.stays).expect("histograms of the same bounds");
    }

    /// Connections whose ending is one of those that `which` picks.
    pub fn ended(&self, which: impl Fn(Ending) -> bool) -> u64 {
        self.endings.iter().filter(|(ending, _)| which(**ending)).map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_has_one_ending_whichever_core_it_was_on() {
        let mut one = Figures { connections: 2, ..Figures::default() };
        one.record_ending(Ending::Closed(Some(421)), Duration::from_secs(1));
        one.record_ending(Ending::Held, Duration::from_secs(3));
        let mut two = Figures { connections: 1, ..Figures::default() };
        two.record_ending(Ending::Closed(Some(421)), Duration::from_secs(2));
        one.add(&two);
        assert_eq!(one.ended(|_| true), one.connections);
        assert_eq!(one.ended(|ending| ending == Ending::Closed(Some(421))), 2);
        assert_eq!(one.stays.len(), 3);
    }
}
