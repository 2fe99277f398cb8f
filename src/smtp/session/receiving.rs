//! Content: from the 354, or the first chunk, to the reply to its end.

use std::time::Instant;

use super::super::config::Dialect;
use super::super::effect::{Effect, NotStored, Submission};
use super::super::reply::{ContentRefusal, Reply};
use super::super::state::Event;
use super::super::transaction::{Content, Progress};
use super::{Awaits, Session, Stored};
use crate::mail::Phase;

impl Session {
    /// Takes content; returns how many octets.
    pub(super) fn take_content(&mut self, octets: &[u8], now: Instant, replies: &mut Vec<u8>) -> usize {
        let transaction = self.transaction.as_mut().expect("in this state there is a transaction");
        let content = transaction.content.as_mut().expect("in this state there is content");
        let (taken, progress) = content.take(octets, &self.config, now);
        self.make_progress(progress, now, replies);
        taken
    }

    pub(super) fn make_progress(&mut self, progress: Progress, now: Instant, replies: &mut Vec<u8>) {
        let content = self.content().expect("it has made progress");
        if content.refusal.is_some() && !std::mem::replace(&mut content.is_abandoned, true) {
            self.effect = Some(Effect::Abandon);
        }
        match progress {
            Progress::More | Progress::Refused => {}
            Progress::Full => self.hand_over_piece(),
            Progress::Endless => self.end_with(Reply::FarTooLarge, replies),
            Progress::ChunkEnd => self.take_chunk_end(now, replies),
            Progress::End => self.take_end_of_data(now, replies),
        }
    }

    /// Hands over the content that has been gathered, though it is less than a piece: the driver is short of memory.
    /// False where it is less than `size_min` octets, or while something else is pending: then nothing happens.
    pub fn hand_over_early(&mut self, size_min: usize) -> bool {
        let is_enough = |content: &mut Content| content.refusal.is_none() && content.buffer.len() >= size_min;
        let hands_over = self.takes_input() && self.content().is_some_and(is_enough);
        if hands_over {
            self.hand_over_piece();
        }
        hands_over
    }

    fn hand_over_piece(&mut self) {
        let content = self.content().expect("in this state there is content");
        let piece = std::mem::take(&mut content.buffer);
        self.effect = Some(Effect::Piece(piece));
        self.awaits = Awaits::PieceTaken;
    }

    fn take_end_of_data(&mut self, now: Instant, replies: &mut Vec<u8>) {
        self.latest = now;
        let refusal = self.content().and_then(|content| content.refusal);
        if refusal.is_none() {
            self.advance(Event::EndOfData);
            if self.asks(Phase::Message, Awaits::Message) {
                return;
            }
        }
        self.store_or_refuse(replies);
    }

    /// The content is complete and nobody has anything against it, unless we have.
    pub(super) fn store_or_refuse(&mut self, replies: &mut Vec<u8>) {
        match self.content().and_then(|content| content.refusal) {
            Some(refusal) => {
                let count = self.conclude_without_store();
                self.reply_refused_content(refusal, count, replies);
            }
            None => self.store(),
        }
    }

    fn store(&mut self) {
        let replies_count = self.replies_count();
        let transaction = self.transaction.take().expect("content belongs to a transaction");
        let content = transaction.content.expect("its content has arrived");
        let envelope = transaction.envelope;
        let recipient = match envelope.forward_paths.as_slice() {
            [only] => Some(only.clone()),
            _ => None,
        };
        self.awaits = Awaits::Stored(Stored { recipient, smtputf8: envelope.smtputf8, replies_count });
        self.effect =
            Some(Effect::Store(Submission { envelope, tail: content.buffer, content_size: content.size }));
    }

    /// Ends the transaction at the end of its content, abandoning what of it was not refused before. Returns how many replies that
    /// end is owed.
    pub(super) fn conclude_without_store(&mut self) -> usize {
        let count = self.replies_count();
        self.abandon();
        self.advance(Event::Conclude);
        count
    }

    /// RFC 2033 §4.2: in LMTP the end of content is answered once for each RCPT that was accepted.
    fn replies_count(&self) -> usize {
        match (self.config.dialect, &self.transaction) {
            (Dialect::Lmtp, Some(transaction)) => transaction.accepted_count,
            _ => 1,
        }
    }

    pub(super) fn reply_refused_content(
        &mut self,
        refusal: ContentRefusal,
        count: usize,
        replies: &mut Vec<u8>,
    ) {
        match refusal {
            ContentRefusal::NotStored(why) => self.reply_not_stored(why, count, replies),
            // Counted, but answered as it is: a 421 in its place would have the peer send it again.
            _ => {
                self.errors_count = self.errors_count.saturating_add(1);
                (0..count).for_each(|_| refusal.reply().write(replies));
            }
        }
    }

    pub(super) fn reply_not_stored(&mut self, why: NotStored, count: usize, replies: &mut Vec<u8>) {
        let reply = ContentRefusal::NotStored(why).reply();
        match reply {
            Reply::TryAgainLater => self.end_with(reply, replies),
            _ => (0..count).for_each(|_| reply.write(replies)),
        }
    }

    pub(super) fn content(&mut self) -> Option<&mut Content> {
        self.transaction.as_mut()?.content.as_mut()
    }
}
