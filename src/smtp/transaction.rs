//! A transaction, from MAIL to the reply to end-of-data: its envelope, and its content on the way through.
//!
//! Invariants:
//! - an octet of content is in `buffer`, or was handed over in a piece, or is refused, and never two of
//!   these;
//! - once content is refused the buffer is gone and none is held again.
//!
//! Which bound is passed first is decided by position in the content, so it does not depend on how the input
//! is split.

use std::time::{Duration, Instant};

use crate::mail::{Envelope, ReversePath};

use super::config::{BareLineEnds, SessionConfig};
use super::content::{Decoder, Found, Nowhere};
use super::header::HeaderSection;
use super::params::MailParams;
use super::reply::ContentRefusal;

/// The first buffer of a content: one small message.
const BUFFER_SIZE_MIN: usize = 4 << 10;

/// Content's rate is not looked at before this: slow start and a greylisting peer's first pause are within
/// it.
const RATE_GRACE: Duration = Duration::from_secs(30);

/// One open transaction.
#[derive(Debug)]
pub struct Transaction {
    /// What MAIL and RCPT have said so far.
    pub envelope: Box<Envelope>,
    /// SIZE of MAIL.
    pub declared_size: Option<u64>,
    /// A RCPT was refused; DATA without any other is told so.
    pub is_recipient_refused: bool,
    /// From the 354 on.
    pub content: Option<Content>,
}

impl Transaction {
    /// Opened by a MAIL.
    pub fn new(reverse_path: ReversePath, params: MailParams) -> Self {
        let MailParams { size, body, smtputf8 } = params;
        let envelope = Box::new(Envelope { reverse_path, forward_paths: Vec::new(), body, smtputf8 });
        Transaction { envelope, declared_size: size, is_recipient_refused: false, content: None }
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
    /// End-of-data.
    End,
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
    /// When the 354 was given, later by every time we kept the peer waiting.
    started: Instant,
    /// When the last octets came, or we went on after a wait of our own.
    latest: Instant,
    /// Octets as they were sent.
    received_size: u64,
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
            started: now,
            latest: now,
            received_size: 0,
        }
    }

    /// Takes octets until something is to be done about them; returns how many.
    pub fn take(&mut self, octets: &[u8], config: &SessionConfig, now: Instant) -> (usize, Progress) {
        self.latest = now;
        let mut taken = 0;
        let mut progress = Progress::More;
        while taken < octets.len() && progress == Progress::More {
            let rest = &octets[taken..];
            let (size, next) = if self.refusal.is_some() { self.skip(rest) } else { self.keep(rest, config) };
            taken += size;
            progress = next;
        }
        self.received_size += taken as u64;
        (taken, progress)
    }

    /// Refuses the content, at once and for good. The first reason stands.
    pub fn refuse(&mut self, refusal: ContentRefusal) {
        self.refusal.get_or_insert(refusal);
        self.buffer = Vec::new();
    }

    /// The driver has kept us from taking anything since `latest`: that time is not the peer's.
    pub fn resume(&mut self, now: Instant) {
        self.started += now.saturating_duration_since(self.latest);
        self.latest = now;
    }

    /// When the peer has been too slow, if nothing more comes.
    pub fn deadline(&self, config: &SessionConfig) -> Instant {
        let deadline = self.latest + config.data_timeout;
        match u64::from(config.content_rate_min) {
            0 => deadline,
            rate => {
                let earned = Duration::from_millis(self.received_size.saturating_mul(1000) / rate);
                deadline.min(self.started + earned.max(RATE_GRACE))
            }
        }
    }

    fn skip(&mut self, octets: &[u8]) -> (usize, Progress) {
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
        // A refusal with the last line of the content is both; the end is what matters then.
        match (found, refusal) {
            (Found::EndOfData, _) => (taken, Progress::End),
            (_, Some(_)) => (taken, Progress::Refused),
            (_, None) => (taken, Progress::More),
        }
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

    const SECOND: Duration = Duration::from_secs(1);

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
    fn the_deadline_is_of_the_block_and_of_the_rate() {
        let config =
            SessionConfig { data_timeout: 100 * SECOND, content_rate_min: 10, ..SessionConfig::new("mx") };
        let start = Instant::now();
        let mut content = content(&config, start);
        assert_eq!(content.deadline(&config), start + RATE_GRACE);
        // 350 octets pay for 35 seconds.
        content.take(&[b'x'; 350], &config, start + SECOND);
        assert_eq!(content.deadline(&config), start + 35 * SECOND);
        // A wait of ours is not the peer's.
        content.resume(start + 21 * SECOND);
        assert_eq!(content.deadline(&config), start + 55 * SECOND);
        // 10,000 octets pay for more than a block may take.
        content.take(&[b'x'; 10_000], &config, start + 30 * SECOND);
        assert_eq!(content.deadline(&config), start + 130 * SECOND);
        let patient = SessionConfig { content_rate_min: 0, ..config };
        assert_eq!(content.deadline(&patient), start + 130 * SECOND);
    }
}
