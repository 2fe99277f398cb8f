//! A transaction, from MAIL to the reply to end-of-data: its envelope, and its content on the way through.
//!
//! Invariants:
//! - an octet of content is in `buffer`, or was handed over in a piece, or is refused, and never two of
//!   these;
//! - once content is refused the buffer is gone and none is held again.
//!
//! Which bound is passed first is decided by position in the content, so it does not depend on how the input
//! is split.

use std::collections::HashSet;
use std::time::Instant;

use crate::limits::DSN_SIZE_MAX;
use crate::mail::{Body, Dsn, Envelope, ForwardPath, RecipientDsn, ReversePath};

use super::config::{BareLineEnds, SessionConfig};
use super::content::{Decoder, Found, Nowhere};
use super::header::HeaderSection;
use super::pace::Pace;
use super::params::{MailParams, RecipientParams};
use super::reply::ContentRefusal;

/// The first buffer of a content: one small message.
const BUFFER_SIZE_MIN: usize = 4 << 10;

/// What a stored recipient's DSN takes beside the text of ORCPT, in octets.
const RECIPIENT_DSN_SIZE: usize = 8;

/// How many times `recipients_max` a peer may come with one recipient more.
const EXCESS_RECIPIENTS_FACTOR: usize = 10;

/// Refused content is read to its end, so that the session stays in step; but only if that end comes: content of twice the size
/// permitted, with room for the dots that were stuffed, has had its chance.
const REFUSED_SIZE_FACTOR: u64 = 2;
/// And this more, octets: a sender's buffers.
const REFUSED_SIZE_MIN: u64 = 64 << 10;

/// Octets of refused content that are read in search of its end.
pub fn refused_size_max(config: &SessionConfig) -> u64 {
    config.message_size_max.saturating_mul(REFUSED_SIZE_FACTOR) + REFUSED_SIZE_MIN
}

/// One open transaction.
#[derive(Debug)]
pub struct Transaction {
    /// What MAIL and RCPT have said so far.
    pub envelope: Box<Envelope>,
    /// SIZE of MAIL.
    pub declared_size: Option<u64>,
    /// A RCPT was refused; DATA without any other is told so.
    pub is_recipient_refused: bool,
    /// RCPTs beyond the bound.
    pub excess_recipients_count: usize,
    /// RCPTs that were accepted: an alias is one, whatever it stands for.
    pub accepted_count: usize,
    /// What the recipients' DSN takes, in octets as stored.
    dsn_size: usize,
    /// What the recipients' paths take, in octets.
    paths_size: usize,
    /// From the 354, or the first BDAT, on.
    pub content: Option<Content>,
}

impl Transaction {
    /// Opened by a MAIL.
    pub fn new(reverse_path: ReversePath, params: MailParams) -> Self {
        let MailParams { size, body, smtputf8, require_tls, ret, envelope_id } = params;
        let dsn = (ret.is_some() || envelope_id.is_some())
            .then(|| Box::new(Dsn { ret, envelope_id, recipients: Vec::new() }));
        let body = body.unwrap_or_default();
        let envelope =
            Envelope { body, smtputf8, require_tls, dsn, ..Envelope::new(reverse_path, Vec::new()) };
        Transaction {
            envelope: Box::new(envelope),
            declared_size: size,
            is_recipient_refused: false,
            excess_recipients_count: 0,
            accepted_count: 0,
            dsn_size: 0,
            paths_size: 0,
            content: None,
        }
    }

    /// One recipient more than finds room. True if the peer has come with so many that it does not mean to send any more.
    pub fn note_excess(&mut self, config: &SessionConfig) -> bool {
        self.excess_recipients_count += 1;
        self.excess_recipients_count > config.recipients_max.saturating_mul(EXCESS_RECIPIENTS_FACTOR)
    }

    /// Whether what is said of one more recipient finds room.
    pub fn has_room(&self, params: &RecipientParams, config: &SessionConfig) -> bool {
        let count = self.envelope.forward_paths.len().max(self.accepted_count);
        let is_one_too_many = count >= config.recipients_max;
        !is_one_too_many && self.dsn_size + dsn_size(params) <= DSN_SIZE_MAX
    }

    /// Octets of memory that the envelope takes, about.
    pub fn envelope_size(&self) -> usize {
        self.paths_size + self.dsn_size
    }

    /// Adds an accepted recipient.
    pub fn add(&mut self, path: ForwardPath, params: RecipientParams) {
        let index = u32::try_from(self.envelope.forward_paths.len()).expect("recipients are bounded");
        self.paths_size += size_of::<ForwardPath>() + path.as_str().len();
        self.envelope.forward_paths.push(path);
        self.dsn_size += dsn_size(&params);
        let RecipientParams { notify, original } = params;
        if notify.is_some() || original.is_some() {
            let dsn = self.envelope.dsn.get_or_insert_default();
            dsn.recipients.push(RecipientDsn { index, notify, original });
        }
    }
}

impl Transaction {
    /// Adds those that an accepted recipient stands for and that are not there yet. False, and nothing added, if they find no room.
    pub fn add_all(
        &mut self,
        mut paths: Vec<ForwardPath>,
        params: &RecipientParams,
        config: &SessionConfig,
    ) -> bool {
        let mut known: HashSet<&ForwardPath> = self.envelope.forward_paths.iter().collect();
        let is_new: Vec<bool> = paths.iter().map(|path| known.insert(path)).collect();
        let mut is_new = is_new.into_iter();
        paths.retain(|_| is_new.next().expect("as many as there are paths"));
        let count = self.envelope.forward_paths.len() + paths.len();
        let has_room =
            count <= config.recipients_max && self.dsn_size + dsn_size(params) * paths.len() <= DSN_SIZE_MAX;
        if has_room {
            paths.into_iter().for_each(|path| self.add(path, params.clone()));
        }
        has_room
    }
}

fn dsn_size(params: &RecipientParams) -> usize {
    match (&params.notify, &params.original) {
        (None, None) => 0,
        (_, original) => RECIPIENT_DSN_SIZE + original.as_ref().map_or(0, |text| text.as_str().len()),
    }
}

/// What taking content led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The octets are used up.
    More,
    /// The buffer is full and must be handed over.
    Full,
    /// From here on the content is refused.
    Refused,
    /// Refused content whose end does not come.
    Endless,
    /// A chunk is complete, and another is to follow.
    ChunkEnd,
    /// The content is complete.
    End,
}

/// A chunk on its way (RFC 3030).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Octets of it that are still to come.
    pub left: u64,
    /// No other follows.
    pub is_last: bool,
}

/// Content on its way.
#[derive(Debug)]
pub struct Content {
    decoder: Decoder,
    header: HeaderSection,
    /// Decoded and not handed over yet.
    pub buffer: Vec<u8>,
    /// The size of the decoded content, buffer included.
    pub size: u64,
    /// Why it will be refused.
    pub refusal: Option<ContentRefusal>,
    /// `Effect::Abandon` was raised for it.
    pub is_abandoned: bool,
    pub pace: Pace,
    /// The chunk that is on its way; `None`: content behind DATA, which ends with end-of-data.
    chunk: Option<Chunk>,
    /// Chunks that bring next to nothing.
    pub small_chunks_count: u32,
}

impl Content {
    /// At the 354.
    pub fn new(config: &SessionConfig, bare: BareLineEnds, now: Instant) -> Self {
        Content {
            decoder: Decoder::new(bare),
            header: HeaderSection::new(config.header_size_max, config.hops_max),
            buffer: Vec::new(),
            size: 0,
            refusal: None,
            is_abandoned: false,
            pace: Pace::new(now),
            chunk: None,
            small_chunks_count: 0,
        }
    }

    /// At the first BDAT.
    pub fn of_chunks(config: &SessionConfig, bare: BareLineEnds, body: Body, now: Instant) -> Self {
        let decoder = Decoder::of_chunks(bare, body == Body::Binary);
        Content { decoder, ..Content::new(config, bare, now) }
    }

    /// A chunk begins. What it leads to at once: it may be empty, or more than the message may have.
    pub fn begin_chunk(&mut self, chunk: Chunk, config: &SessionConfig, now: Instant) -> Progress {
        self.pace.resume(now);
        self.chunk = Some(chunk);
        // Known before its octets come, and no octet of them is worth keeping.
        if chunk.left > config.message_size_max - self.size {
            self.refuse(ContentRefusal::TooLarge);
        }
        self.at_chunk_end(Progress::More, config)
    }

    /// Takes octets until something is to be done about them; returns how many.
    pub fn take(&mut self, octets: &[u8], config: &SessionConfig, now: Instant) -> (usize, Progress) {
        let left = self.chunk.map_or(u64::MAX, |chunk| chunk.left);
        let octets = &octets[..usize::try_from(left).map_or(octets.len(), |left| octets.len().min(left))];
        let mut taken = 0;
        let mut progress = Progress::More;
        while taken < octets.len() && progress == Progress::More {
            let rest = &octets[taken..];
            let (size, next) =
                if self.refusal.is_some() { self.skip(rest, config) } else { self.keep(rest, config) };
            self.pace.receive(size, now);
            taken += size;
            progress = next;
        }
        if let Some(chunk) = &mut self.chunk {
            chunk.left -= taken as u64;
            return (taken, self.at_chunk_end(progress, config));
        }
        (taken, progress)
    }

    /// Refuses the content, at once and for good. The first reason stands.
    pub fn refuse(&mut self, refusal: ContentRefusal) {
        self.refusal.get_or_insert(refusal);
        self.buffer = Vec::new();
    }

    fn at_chunk_end(&mut self, progress: Progress, config: &SessionConfig) -> Progress {
        match self.chunk {
            Some(Chunk { left: 0, is_last: false }) => Progress::ChunkEnd,
            Some(Chunk { left: 0, is_last: true }) => {
                if self.refusal.is_none() {
                    let before = self.buffer.len();
                    let found = self.decoder.finish(&mut self.buffer);
                    self.weigh(before, found, config);
                }
                Progress::End
            }
            _ => progress,
        }
    }

    fn skip(&mut self, octets: &[u8], config: &SessionConfig) -> (usize, Progress) {
        let left = refused_size_max(config).saturating_sub(self.pace.received_size());
        let octets = match (self.chunk, usize::try_from(left)) {
            (None, Ok(0)) => return (0, Progress::Endless),
            (None, Ok(left)) => &octets[..octets.len().min(left)],
            // A chunk's end is known.
            _ => octets,
        };
        match self.decoder.decode(octets, &mut Nowhere) {
            (taken, Found::EndOfData) => (taken, Progress::End),
            (taken, _) => (taken, Progress::More),
        }
    }

    fn keep(&mut self, octets: &[u8], config: &SessionConfig) -> (usize, Progress) {
        let room = config.piece_size.saturating_sub(self.buffer.len());
        let permitted = match self.decoder.taken_max(room) {
            0 if !self.buffer.is_empty() => return (0, Progress::Full),
            // However small a piece is to be, content goes on.
            permitted => permitted.max(1),
        };
        let octets = &octets[..octets.len().min(permitted)];
        self.reserve(self.decoder.put_max(octets.len()), config.piece_size);
        let before = self.buffer.len();
        let (taken, found) = self.decoder.decode(octets, &mut self.buffer);
        let refusal = self.weigh(before, found, config);
        // A refusal with the last line of the content is both; the end is what matters then.
        match (found, refusal) {
            (Found::EndOfData, _) => (taken, Progress::End),
            (_, Some(_)) => (taken, Progress::Refused),
            (_, None) => (taken, Progress::More),
        }
    }

    /// Counts what was put into the buffer behind `before`, and refuses the content if there is something against it.
    fn weigh(&mut self, before: usize, found: Found, config: &SessionConfig) -> Option<ContentRefusal> {
        let fresh = &self.buffer[before..];
        let permitted = config.message_size_max - self.size;
        let within = usize::try_from(permitted).map_or(fresh.len(), |permitted| fresh.len().min(permitted));
        let mut refusal = self.header.watch(&fresh[..within]).err();
        if within < fresh.len() {
            refusal.get_or_insert(ContentRefusal::TooLarge);
        }
        match found {
            Found::BareLineEnd => _ = refusal.get_or_insert(ContentRefusal::BareLineEnd),
            Found::Nul => _ = refusal.get_or_insert(ContentRefusal::Nul),
            Found::Nothing | Found::EndOfData => {}
        }
        self.size += within as u64;
        if let Some(refusal) = refusal {
            self.refuse(refusal);
        }
        refusal
    }

    /// Doubles from the smallest buffer up to a piece, or goes at once as far as what is here already needs.
    fn reserve(&mut self, more: usize, piece_size: usize) {
        let needed = self.buffer.len() + more;
        if needed > self.buffer.capacity() {
            let size = needed.next_power_of_two().max(BUFFER_SIZE_MIN).min(piece_size).max(needed);
            self.buffer.reserve_exact(size - self.buffer.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(config: &SessionConfig, now: Instant) -> Content {
        Content::new(config, BareLineEnds::Refuse, now)
    }

    #[test]
    fn the_buffer_starts_small_doubles_and_stops_at_a_piece() {
        let config = SessionConfig { piece_size: 16 << 10, ..SessionConfig::new("mx") };
        let now = Instant::now();
        let mut content = content(&config, now);
        assert_eq!(content.buffer.capacity(), 0);
        let mut capacities = Vec::new();
        for _ in 0..16 {
            assert_eq!(content.take(&[b'x'; 1000], &config, now), (1000, Progress::More));
            capacities.push(content.buffer.capacity() >> 10);
        }
        assert_eq!(capacities, [4, 4, 4, 4, 8, 8, 8, 8, 16, 16, 16, 16, 16, 16, 16, 16]);
        assert_eq!(content.take(&[b'x'; 1000], &config, now), (383, Progress::Full));
        assert_eq!(content.buffer.capacity(), 16 << 10);
    }

    #[test]
    fn the_buffer_never_outgrows_a_piece() {
        let config = SessionConfig { piece_size: 100, ..SessionConfig::new("mx") };
        let now = Instant::now();
        for bare in [BareLineEnds::Refuse, BareLineEnds::Normalise] {
            for filling in 0..110 {
                let mut content = Content::new(&config, bare, now);
                content.take(&vec![b'x'; filling], &config, now);
                content.buffer.clear();
                content.take(b"\r", &config, now);
                content.take(&b"\n\r\r\r\r\r\r".repeat(30)[..200], &config, now);
                assert!(content.buffer.capacity() <= 100, "{bare:?}: {} octets", content.buffer.capacity());
            }
        }
    }

    #[test]
    fn a_refusal_frees_the_buffer_and_the_first_one_stands() {
        let config = SessionConfig::new("mx");
        let now = Instant::now();
        let mut content = content(&config, now);
        assert_eq!(content.take(b"x\ny\0z", &config, now), (2, Progress::Refused));
        assert_eq!(content.take(b"y\0z\r\n.\r\nQUIT", &config, now), (8, Progress::End));
        assert_eq!(content.refusal, Some(ContentRefusal::BareLineEnd));
        assert_eq!(content.buffer.capacity(), 0);
    }

    #[test]
    fn refused_content_is_read_to_its_end_but_not_for_ever() {
        let config = SessionConfig { message_size_max: 100, ..SessionConfig::new("mx") };
        let now = Instant::now();
        let mut content = content(&config, now);
        assert_eq!(content.take(&[b'x'; 101], &config, now), (101, Progress::Refused));
        let left = 99 + REFUSED_SIZE_MIN as usize;
        assert_eq!(content.take(&vec![b'x'; left], &config, now), (left, Progress::More));
        assert_eq!(content.take(b"x", &config, now), (0, Progress::Endless));
    }

    #[test]
    fn a_chunk_ends_with_its_size_and_a_message_with_the_last_of_them() {
        let config = SessionConfig { message_size_max: 10, ..SessionConfig::new("mx") };
        let now = Instant::now();
        let mut content = Content::of_chunks(&config, BareLineEnds::Refuse, Body::SevenBit, now);
        let chunk = |left, is_last| Chunk { left, is_last };
        assert_eq!(content.begin_chunk(chunk(3, false), &config, now), Progress::More);
        assert_eq!(content.take(b"a\r\n.\r\n", &config, now), (3, Progress::ChunkEnd));
        assert_eq!(content.begin_chunk(chunk(0, false), &config, now), Progress::ChunkEnd);
        assert_eq!(content.begin_chunk(chunk(3, true), &config, now), Progress::More);
        assert_eq!(content.take(b".\r", &config, now), (2, Progress::More));
        assert_eq!(content.take(b"\nQUIT", &config, now), (1, Progress::End));
        assert_eq!((&content.buffer[..], content.refusal), (&b"a\r\n.\r\n"[..], None));
        // A CR at the end of all is bare.
        assert_eq!(content.begin_chunk(chunk(1, true), &config, now), Progress::More);
        assert_eq!(content.take(b"\r", &config, now), (1, Progress::End));
        assert_eq!(content.refusal, Some(ContentRefusal::BareLineEnd));
    }

    #[test]
    fn a_line_end_that_is_made_of_the_last_octet_is_counted() {
        let config = SessionConfig { message_size_max: 3, ..SessionConfig::new("mx") };
        let now = Instant::now();
        for (text, size, refusal) in [(&b"x\r"[..], 3, None), (b"xy\r", 3, Some(ContentRefusal::TooLarge))] {
            let mut content = Content::of_chunks(&config, BareLineEnds::Normalise, Body::SevenBit, now);
            content.begin_chunk(Chunk { left: text.len() as u64, is_last: true }, &config, now);
            assert_eq!(content.take(text, &config, now), (text.len(), Progress::End));
            assert_eq!((content.size, content.refusal), (size, refusal), "{text:?}");
            assert_eq!(content.buffer.len() as u64, if refusal.is_none() { size } else { 0 });
        }
    }

    #[test]
    fn a_chunk_over_the_bound_is_refused_before_it_comes_and_taken_all_the_same() {
        let config = SessionConfig { message_size_max: 10, ..SessionConfig::new("mx") };
        let now = Instant::now();
        let mut content = Content::of_chunks(&config, BareLineEnds::Refuse, Body::SevenBit, now);
        assert_eq!(content.begin_chunk(Chunk { left: 5, is_last: false }, &config, now), Progress::More);
        assert_eq!(content.take(b"12345", &config, now), (5, Progress::ChunkEnd));
        assert_eq!(content.begin_chunk(Chunk { left: 6, is_last: true }, &config, now), Progress::More);
        assert_eq!(content.refusal, Some(ContentRefusal::TooLarge));
        assert_eq!(content.take(b"123456RSET", &config, now), (6, Progress::End));
        assert_eq!(content.buffer.capacity(), 0);
    }
}
