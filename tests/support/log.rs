//! A log on a disk of vectors that performs at once: messages in, messages out, nothing waits.

use std::time::{Duration, Instant};

use incoming::mail::{Arrival, Envelope, MessageId};
use incoming::spool::format::{Made, RecipientOutcome};
use incoming::spool::memory_disk::{MemoryDisk, mail};
use incoming::spool::recovery::Depth;
use incoming::spool::{AppendError, Incoming, Lane, Receiving, Spool, SpoolConfig};

/// A spool, its disk and its clock.
pub struct Log {
    /// What it has written.
    pub disk: MemoryDisk,
    spool: Spool<Vec<u8>>,
    now: Instant,
    envelope: Envelope,
    arrival: Arrival,
}

#[allow(dead_code, reason = "each test uses a part of it")]
impl Log {
    /// An empty one.
    pub fn new(config: SpoolConfig) -> Self {
        let (disk, now) = (MemoryDisk::default(), Instant::now());
        let mut life = 0_u64;
        let entropy = move || {
            life += 1;
            life.wrapping_mul(0x9E37_79B9_7F4A_7C15)
        };
        let make_page = Box::new(move || vec![0; config.page_size]);
        let spool = Spool::new(config, disk.recover(Depth::Quick), make_page, Box::new(entropy), (now, 0));
        let (envelope, arrival) = mail(1);
        Log { disk, spool, now, envelope, arrival }
    }

    /// Appends a message and returns its sequence. What is in the way is written first.
    pub fn append(&mut self, content: &[u8]) -> u64 {
        loop {
            let message = Incoming { envelope: &self.envelope, arrival: &self.arrival, tail: content };
            let trace = |id: MessageId| format!("Received: by mx.example.com id {id}\r\n").into_bytes();
            match self.spool.append_message(&mut Receiving::default(), message, trace) {
                Ok((id, _)) => return id.sequence,
                Err(error) => assert_eq!(error, AppendError::Busy),
            }
            self.disk.settle(&mut self.spool, self.now);
        }
    }

    /// Makes everything durable that was appended; returns the messages that were stored since the last time.
    pub fn settle(&mut self) -> Vec<u64> {
        let mut messages = Vec::new();
        while let Some(io) = self.spool.poll_io(self.now) {
            let done = self.disk.perform(io);
            self.spool.handle_io(done, self.now);
            // To be told may free a segment, and that is work again.
            while let Some((sequence, is_stored)) = self.spool.poll_stored() {
                assert!(is_stored, "this disk does not fail");
                messages.push(sequence);
            }
        }
        messages
    }

    /// The message is delivered to everybody.
    pub fn deliver(&mut self, sequence: u64) {
        self.spool.hand_off(sequence, Lane::UNROUTED);
        let done = RecipientOutcome {
            index: 0,
            is_done: true,
            is_given_up: false,
            attempts: 1,
            next_attempt: 0,
            reason: "".into(),
        };
        self.spool.handle_outcome(sequence, Lane::UNROUTED, Made::default(), &[done], (self.now, 0));
    }

    /// The message is deferred for so many seconds.
    pub fn defer(&mut self, sequence: u64, attempts: u32, seconds: u64, reason: &str) {
        self.spool.hand_off(sequence, Lane::UNROUTED);
        let reason = reason.into();
        let outcome = RecipientOutcome {
            index: 0,
            is_done: false,
            is_given_up: false,
            attempts,
            next_attempt: seconds,
            reason,
        };
        self.spool.handle_outcome(sequence, Lane::UNROUTED, Made::default(), &[outcome], (self.now, 0));
    }

    /// The log.
    pub fn spool(&self) -> &Spool<Vec<u8>> {
        &self.spool
    }

    /// A clean end. The log cannot be used any more.
    pub fn finish(&mut self) {
        loop {
            self.spool.finish(self.now);
            self.settle();
            if self.spool.is_idle() {
                return;
            }
        }
    }

    /// Time goes on, and what waited for it is written.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        assert!(self.settle().is_empty(), "no message was on its way");
    }
}
