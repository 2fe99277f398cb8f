//! What was measured: a histogram for each phase, replies by code, failures by kind, octets.
//!
//! Every core has [`Figures`] of its own and shares nothing while it runs; they are added up at the end. What happens
//! within an [`INTERVAL`] is told separately, as an [`Interval`], so that the course of a run can be seen.
//!
//! Times are nanoseconds within, from one microsecond to an hour, to three digits.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The grain of the course of a run.
pub const INTERVAL: Duration = Duration::from_millis(250);

const LATENCY_MIN_NS: u64 = 1_000;
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;

/// What a span of time was spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// From `connect` to the greeting.
    Connect,
    /// A TLS handshake.
    Tls,
    /// From EHLO to the end of its reply.
    Hello,
    /// From MAIL to its reply.
    Mail,
    /// From RCPT to its reply, each.
    Recipient,
    /// From DATA to its 354.
    Data,
    /// From the last octet of the content (the end-of-data of DATA, the last chunk of BDAT) to its reply.
    EndOfData,
    /// From the intended start of a message, which in a closed loop is its start, to its last reply.
    Transaction,
}

impl Phase {
    /// Every phase, in the order of a session.
    pub const ALL: [Phase; 8] = [
        Phase::Connect,
        Phase::Tls,
        Phase::Hello,
        Phase::Mail,
        Phase::Recipient,
        Phase::Data,
        Phase::EndOfData,
        Phase::Transaction,
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Connect => "connect → 220",
            Phase::Tls => "TLS handshake",
            Phase::Hello => "EHLO → 250",
            Phase::Mail => "MAIL → 250",
            Phase::Recipient => "RCPT → 250",
            Phase::Data => "DATA → 354",
            Phase::EndOfData => "end-of-data → 250",
            Phase::Transaction => "whole transaction",
        }
    }
}

/// Why a message or a connection came to nothing, other than by a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// `connect` failed.
    Connect,
    /// The server closed the connection when it owed a reply.
    Closed,
    /// The connection was reset or broke otherwise.
    Broken,
    /// A reply, a connection or a handshake took longer than the timeout.
    Timeout,
    /// The TLS handshake or the channel failed.
    Tls,
    /// Something that is no SMTP reply, or a reply nobody asked for.
    Protocol,
    /// The greeting, EHLO or STARTTLS was refused.
    Refused,
}

impl Failure {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Connect => "connect failed",
            Failure::Closed => "closed by the server",
            Failure::Broken => "connection broke",
            Failure::Timeout => "timed out",
            Failure::Tls => "TLS failed",
            Failure::Protocol => "not SMTP",
            Failure::Refused => "session refused",
        }
    }
}

/// How often something failed, and the first time in words.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Failed {
    /// How often.
    pub count: u64,
    /// What was said the first time.
    pub first: String,
}

/// An empty histogram of latencies.
pub fn histogram(digits: u8) -> Histogram<u64> {
    Histogram::new_with_bounds(LATENCY_MIN_NS, LATENCY_MAX_NS, digits).expect("valid bounds")
}

/// What one core, or all of them, measured while counting.
#[derive(Clone)]
pub struct Figures {
    phases: Vec<Histogram<u64>>,
    /// Messages whose end-of-data was answered 250.
    pub accepted: u64,
    /// 250s to an end-of-data that came within the window, whenever their messages fell due: what rates and costs are
    /// of. In an open loop that does not keep up these are others than `accepted`.
    pub answered: u64,
    /// Octets of content of those.
    pub answered_octets: u64,
    /// Messages begun that came to something else.
    pub failed: u64,
    /// Recipients of accepted messages that were accepted.
    pub recipients: u64,
    /// Octets of content of accepted messages.
    pub content_octets: u64,
    /// Octets sent and received, below TLS.
    pub sent_octets: u64,
    /// See `sent_octets`.
    pub received_octets: u64,
    /// Connections that were greeted.
    pub connections: u64,
    /// Handshakes that began a TLS session anew.
    pub tls_full: u64,
    /// Handshakes that resumed one.
    pub tls_resumed: u64,
    /// Replies by phase and code.
    pub replies: BTreeMap<(Phase, u16), u64>,
    /// The first refusing reply of each phase and code, in full.
    pub refusals: BTreeMap<(Phase, u16), String>,
    /// Failures by kind.
    pub failures: BTreeMap<Failure, Failed>,
    /// Open loop: from when a message fell due to when it was begun.
    pub lag: Histogram<u64>,
    /// Open loop: messages that fell due while counting and were not begun before the run ended.
    pub never_begun: u64,
}

impl Default for Figures {
    fn default() -> Self {
        Figures {
            phases: Phase::ALL.iter().map(|_| histogram(3)).collect(),
            accepted: 0,
            answered: 0,
            answered_octets: 0,
            failed: 0,
            recipients: 0,
            content_octets: 0,
            sent_octets: 0,
            received_octets: 0,
            connections: 0,
            tls_full: 0,
            tls_resumed: 0,
            replies: BTreeMap::new(),
            refusals: BTreeMap::new(),
            failures: BTreeMap::new(),
            lag: histogram(3),
            never_begun: 0,
        }
    }
}

impl Figures {
    /// The latencies of a phase, in nanoseconds.
    pub fn phase(&self, phase: Phase) -> &Histogram<u64> {
        &self.phases[phase as usize]
    }

    /// Notes how long a phase took.
    pub fn record(&mut self, phase: Phase, took: Duration) {
        self.phases[phase as usize].saturating_record(nanoseconds(took));
    }

    /// Notes a reply; `text` is kept of the first that refuses.
    pub fn record_reply(&mut self, phase: Phase, code: u16, text: &[u8]) {
        *self.replies.entry((phase, code)).or_default() += 1;
        if code >= 400 {
            self.refusals
                .entry((phase, code))
                .or_insert_with(|| String::from_utf8_lossy(text).trim_end().to_owned());
        }
    }

    /// Notes a failure.
    pub fn record_failure(&mut self, failure: Failure, words: &dyn std::fmt::Display) {
        let failed = self.failures.entry(failure).or_default();
        failed.count += 1;
        if failed.count == 1 {
            failed.first = words.to_string();
        }
    }

    /// Adds what another core measured.
    pub fn add(&mut self, other: &Figures) {
        for (mine, others) in self.phases.iter_mut().zip(&other.phases) {
            mine.add(others).expect("histograms of the same bounds");
        }
        self.lag.add(&other.lag).expect("histograms of the same bounds");
        self.accepted += other.accepted;
        self.answered += other.answered;
        self.answered_octets += other.answered_octets;
        self.failed += other.failed;
        self.recipients += other.recipients;
        self.content_octets += other.content_octets;
        self.sent_octets += other.sent_octets;
        self.received_octets += other.received_octets;
        self.connections += other.connections;
        self.tls_full += other.tls_full;
        self.tls_resumed += other.tls_resumed;
        self.never_begun += other.never_begun;
        for (key, count) in &other.replies {
            *self.replies.entry(*key).or_default() += count;
        }
        for (key, text) in &other.refusals {
            self.refusals.entry(*key).or_insert_with(|| text.clone());
        }
        for (failure, failed) in &other.failures {
            let mine = self.failures.entry(*failure).or_default();
            if mine.count == 0 {
                mine.first.clone_from(&failed.first);
            }
            mine.count += failed.count;
        }
    }
}

/// What one core saw within one [`INTERVAL`], warm-up included.
pub struct Interval {
    /// Which one, counted from the start of the load.
    pub index: usize,
    /// Messages accepted.
    pub accepted: u64,
    /// Messages that came to something else, and connections that failed.
    pub failed: u64,
    /// Octets of content accepted.
    pub content_octets: u64,
    /// End-of-data to 250, nanoseconds, two digits.
    pub end_of_data: Histogram<u64>,
    /// Whole transactions from their intended start, nanoseconds, two digits.
    pub transaction: Histogram<u64>,
}

impl Interval {
    /// An interval in which nothing has happened.
    pub fn new(index: usize) -> Self {
        Interval {
            index,
            accepted: 0,
            failed: 0,
            content_octets: 0,
            end_of_data: histogram(2),
            transaction: histogram(2),
        }
    }

    /// Adds what another core saw in the same interval.
    pub fn add(&mut self, other: &Interval) {
        self.accepted += other.accepted;
        self.failed += other.failed;
        self.content_octets += other.content_octets;
        self.end_of_data.add(&other.end_of_data).expect("histograms of the same bounds");
        self.transaction.add(&other.transaction).expect("histograms of the same bounds");
    }
}

/// A duration in nanoseconds.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_two_cores_add_up() {
        let mut one = Figures { accepted: 3, ..Figures::default() };
        let mut two = Figures { accepted: 4, ..Figures::default() };
        one.record(Phase::Mail, Duration::from_micros(100));
        two.record(Phase::Mail, Duration::from_micros(300));
        two.record_reply(Phase::Mail, 451, b"451 4.3.0 no\r\n");
        two.record_failure(Failure::Closed, &"gone");
        one.add(&two);
        assert_eq!(one.accepted, 7);
        assert_eq!(one.phase(Phase::Mail).len(), 2);
        assert_eq!(one.replies[&(Phase::Mail, 451)], 1);
        assert_eq!(one.refusals[&(Phase::Mail, 451)], "451 4.3.0 no");
        assert_eq!(one.failures[&Failure::Closed].count, 1);
        assert_eq!(one.failures[&Failure::Closed].first, "gone");
    }
}
