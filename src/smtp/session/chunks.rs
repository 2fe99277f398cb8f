//! BDAT (RFC 3030): chunks of content, and those that are refused.
//!
//! Whatever is said to a BDAT, its octets are taken: they are content, and would be read as commands. Where their number is not known,
//! or is far more than any message may have, the session ends instead.

use std::time::Instant;

use crate::mail::{Class, Phase, Refusal};

use super::super::command;
use super::super::pace::Pace;
use super::super::reply::{ContentRefusal, Reply};
use super::super::state::{Event, State};
use super::super::transaction::{Chunk, Content, refused_size_max};
use super::{Awaits, Session};

/// A chunk of fewer octets brings a message hardly nearer: a line of text is longer.
const SMALL_CHUNK_SIZE: u64 = 64;

/// Octets of a refused chunk that are still to come, and what is said then.
#[derive(Debug)]
pub(super) struct Skipped {
    left: u64,
    why: Why,
    pub(super) pace: Pace,
}

/// A message of which a chunk was refused, while the peer may still send the others in good faith.
#[derive(Debug)]
pub(super) struct Refused {
    /// It may be sent again. Said to each of its chunks: the peer may go by what is said to the last.
    is_temporary: bool,
    /// Chunks behind the refused one, and their octets.
    followers_count: u32,
    followers_size: u64,
}

impl Refused {
    fn new(is_temporary: bool) -> Option<Box<Self>> {
        Some(Box::new(Refused { is_temporary, followers_count: 0, followers_size: 0 }))
    }
}

/// Why a chunk is refused.
#[derive(Debug)]
enum Why {
    /// It is out of order.
    Sequence(Reply),
    /// It follows one that was refused: the peer could not know.
    Follows(Reply),
    /// Somebody is against the message.
    Policy(Refusal),
}

impl Session {
    pub(super) fn take_chunk(&mut self, arguments: &[u8], now: Instant, replies: &mut Vec<u8>) {
        let Some(chunk) = command::chunk(arguments) else {
            return self.end_with(Reply::BadChunk, replies);
        };
        // SIZE was announced: nobody sends so much in good faith, and it is not waited for.
        if chunk.left > self.config.message_size_max {
            return self.end_with(Reply::FarTooLarge, replies);
        }
        if self.state.next(Event::Chunk).is_none() {
            let is_refused = self.transaction.as_ref().is_some_and(|t| t.is_recipient_refused);
            let reply = if is_refused { self.no_recipients() } else { Reply::ChunkOutOfSequence };
            let is_nothing = chunk.left < SMALL_CHUNK_SIZE && !chunk.is_last;
            let why = match &mut self.refused {
                Some(refused) if !is_nothing => {
                    refused.followers_count += 1;
                    refused.followers_size += chunk.left;
                    // More than any message has: this is no good faith.
                    if refused.followers_count > self.config.small_chunks_max
                        || refused.followers_size > refused_size_max(&self.config)
                    {
                        return self.end_with(Reply::TooManyErrors, replies);
                    }
                    Why::Follows(if refused.is_temporary { Reply::ChunkOfDeferred } else { reply })
                }
                _ => Why::Sequence(reply),
            };
            return self.skip_chunk(chunk, why, now, replies);
        }
        if self.state == State::Chunked {
            return self.begin_chunk(chunk, now, replies);
        }
        if !self.asks(Phase::Data, Awaits::Chunk(chunk)) {
            self.accept_first_chunk(chunk, now, replies);
        }
    }

    pub(super) fn accept_first_chunk(&mut self, chunk: Chunk, now: Instant, replies: &mut Vec<u8>) {
        if let Some(transaction) = &mut self.transaction {
            let (bare, body) = (self.peer.bare_line_ends, transaction.envelope.body);
            transaction.content = Some(Content::of_chunks(&self.config, bare, body, now));
            self.refused = None;
            self.contents_count = self.contents_count.saturating_add(1);
            self.begin_chunk(chunk, now, replies);
        }
    }

    /// The message is refused; its transaction ends with its first chunk.
    pub(super) fn refuse_first_chunk(
        &mut self,
        chunk: Chunk,
        why: Refusal,
        now: Instant,
        replies: &mut Vec<u8>,
    ) {
        self.transaction = None;
        self.advance(Event::Reset);
        if why.disconnect {
            return self.refuse_and_end(&why, Phase::Data, replies);
        }
        self.skip_chunk(chunk, Why::Policy(why), now, replies);
    }

    fn begin_chunk(&mut self, chunk: Chunk, now: Instant, replies: &mut Vec<u8>) {
        self.advance(Event::Chunk);
        let config = self.config.clone();
        let content = self.content().expect("chunks are content");
        if chunk.left < SMALL_CHUNK_SIZE && !chunk.is_last {
            content.small_chunks_count += 1;
            if content.small_chunks_count > config.small_chunks_max {
                return self.end_with(Reply::TooManyIdle, replies);
            }
        }
        let progress = content.begin_chunk(chunk, &config, now);
        self.make_progress(progress, now, replies);
    }

    /// A chunk is complete, and another is to follow; unless the message is refused, which is said at once (RFC 3030 §2).
    pub(super) fn take_chunk_end(&mut self, now: Instant, replies: &mut Vec<u8>) {
        self.latest = now;
        match self.content().and_then(|content| content.refusal) {
            None => {
                self.advance(Event::ChunkEnd);
                Reply::ChunkOk.write(replies);
            }
            Some(refusal) => {
                self.conclude_without_store();
                self.refused = Refused::new(matches!(refusal, ContentRefusal::NotStored(_)));
                self.reply_refused_content(refusal, 1, replies);
            }
        }
    }

    fn skip_chunk(&mut self, chunk: Chunk, why: Why, now: Instant, replies: &mut Vec<u8>) {
        // The last chunk of a refused message ends what the peer could not know.
        match &why {
            _ if chunk.is_last => self.refused = None,
            Why::Follows(_) => {}
            Why::Sequence(_) if self.refused.is_some() => {}
            Why::Sequence(_) => self.refused = Refused::new(false),
            Why::Policy(refusal) => self.refused = Refused::new(refusal.status.class == Class::Temporary),
        }
        let skipped = Skipped { left: chunk.left, why, pace: Pace::new(now) };
        self.skipped = Some(Box::new(skipped));
        self.skip(&[], now, replies);
    }

    /// Takes octets of a refused chunk; returns how many. The reply is given behind the last.
    pub(super) fn skip(&mut self, octets: &[u8], now: Instant, replies: &mut Vec<u8>) -> usize {
        let Some(skipped) = &mut self.skipped else { return 0 };
        let taken = usize::try_from(skipped.left).map_or(octets.len(), |left| left.min(octets.len()));
        skipped.left -= taken as u64;
        skipped.pace.receive(taken, now);
        if skipped.left == 0 {
            let why = self.skipped.take().expect("it was just looked at").why;
            self.latest = now;
            match why {
                Why::Sequence(reply) => self.refuse(reply, replies),
                Why::Follows(reply) => reply.write(replies),
                Why::Policy(refusal) => self.refuse_by_policy(&refusal, Phase::Data, replies),
            }
        }
        taken
    }
}
