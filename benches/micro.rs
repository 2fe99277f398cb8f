//! What the parts cost, each by itself: parsing, decoding, a whole session, the spool's append and its recovery. No
//! socket, no disk: the spool writes to a disk of vectors that performs at once, so its figures are those of the code.
//!
//! ```text
//! cargo bench --bench micro                 all of it
//! cargo bench --bench micro -- content      one part
//! ```

#[allow(dead_code)] // a part of what the tests need
#[path = "../tests/support/log.rs"]
mod log;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use incoming::mail::MessageId;
use incoming::smtp::{self, Effect, Session, SessionConfig, fuzzing};
use incoming::spool::memory_disk;
use incoming::spool::recovery::Depth;
use incoming::spool::{Slot, SpoolConfig};
use log::Log;

fn main() {
    divan::main();
}

/// What a client sends in one write.
const GROUP: &[u8] =
    b"MAIL FROM:<sender@client.example> SIZE=4096 BODY=8BITMIME\r\nRCPT TO:<someone@example.com>\r\nDATA\r\n";

/// A session behind its EHLO, and where its replies go.
struct Peer {
    session: Session,
    replies: Vec<u8>,
    now: Instant,
}

impl Peer {
    fn new() -> Self {
        let now = Instant::now();
        let mut replies = Vec::with_capacity(4096);
        let address = "192.0.2.1:25".parse().expect("an address");
        let config = Arc::new(SessionConfig::new("mx.example.com"));
        let session = Session::new(config, smtp::Peer::stranger(address), now, &mut replies);
        let mut peer = Peer { session, replies, now };
        peer.send(b"EHLO client.example\r\n");
        peer
    }

    fn send(&mut self, octets: &[u8]) {
        let mut at = 0;
        while at < octets.len() {
            at += self.session.handle_input(&octets[at..], self.now, &mut self.replies);
            while let Some(effect) = self.session.poll_effect() {
                match effect {
                    Effect::Piece(piece) => self.session.handle_piece_taken(black_box(piece), self.now),
                    Effect::Store(submission) => {
                        black_box(submission);
                        let id = MessageId { log: 1, sequence: 1 };
                        self.session.handle_stored(Ok(id), self.now, &mut self.replies);
                    }
                    Effect::Abandon => {}
                    Effect::Check(_) | Effect::Close => unreachable!("nothing is checked or refused"),
                    Effect::StartTls | Effect::Authenticate(_) | Effect::Pause(_) => {
                        unreachable!("neither is configured")
                    }
                }
            }
        }
        black_box(&self.replies);
        self.replies.clear();
    }
}

/// Content as a client sends it, end-of-data included.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// 4 KiB of lines of 76 octets.
    Small,
    /// 64 KiB of them.
    Large,
    /// 64 KiB of short lines that begin with a dot, doubled.
    Dots,
    /// 64 KiB in lines of 16 KiB.
    LongLines,
}

impl Shape {
    const ALL: [Shape; 4] = [Shape::Small, Shape::Large, Shape::Dots, Shape::LongLines];

    fn octets(self) -> Vec<u8> {
        let (size, line) = match self {
            Shape::Small => (4 << 10, [&[b'x'; 76][..], b"\r\n"].concat()),
            Shape::Large => (64 << 10, [&[b'x'; 76][..], b"\r\n"].concat()),
            Shape::Dots => (64 << 10, b"..x\r\n".to_vec()),
            Shape::LongLines => (64 << 10, [&[b'x'; (16 << 10) - 2][..], b"\r\n"].concat()),
        };
        let header = b"From: <a@client.example>\r\nSubject: a message\r\n\r\n";
        let mut octets = [&header[..], &line.repeat((size - header.len()) / line.len())].concat();
        octets.extend_from_slice(b".\r\n");
        octets
    }
}

/// MAIL, RCPT and DATA in one write; then, at little cost, the end of an empty message.
#[divan::bench]
fn commands_pipelined(bencher: Bencher<'_, '_>) {
    let mut peer = Peer::new();
    // An empty message ends each transaction: there is no other way out of DATA.
    bencher.counter(ItemsCount::new(3_usize)).bench_local(|| {
        peer.send(black_box(GROUP));
        peer.send(b".\r\n");
    });
}

#[divan::bench(args = Shape::ALL)]
fn content(bencher: Bencher<'_, '_>, shape: Shape) {
    let octets = shape.octets();
    let mut out = Vec::with_capacity(octets.len());
    bencher.counter(BytesCount::new(octets.len())).bench_local(|| {
        out.clear();
        fuzzing::decode_whole(black_box(&octets), &mut out);
        black_box(&out);
    });
}

#[divan::bench]
fn session_message_4_kib(bencher: Bencher<'_, '_>) {
    let octets = Shape::Small.octets();
    let mut peer = Peer::new();
    let size = BytesCount::new(GROUP.len() + octets.len());
    bencher.counter(ItemsCount::new(1_usize)).counter(size).bench_local(|| {
        peer.send(black_box(GROUP));
        peer.send(black_box(&octets));
    });
}

const SPOOL: SpoolConfig =
    SpoolConfig { segment_size: 64 << 20, sync: true, page_size: 256 << 10, pages_max: 20 };
/// Messages that share a write and a sync.
const BATCH: usize = 16;

/// Batches of messages, each made durable and delivered: segments are recycled as in the long run.
#[divan::bench(args = [4 << 10, 64 << 10])]
fn spool_append(bencher: Bencher<'_, '_>, size: usize) {
    let content = vec![b'x'; size];
    let mut log = Log::new(SPOOL);
    bencher.counter(ItemsCount::new(BATCH)).counter(BytesCount::new(BATCH * size)).bench_local(|| {
        for _ in 0..BATCH {
            log.append(black_box(&content));
        }
        for sequence in log.settle() {
            log.deliver(sequence);
        }
        log.pass(std::time::Duration::from_millis(1));
    });
}

/// A full and sealed segment of messages of 4 KiB, alone.
fn full_segment() -> BTreeMap<Slot, Vec<u8>> {
    let mut log = Log::new(SPOOL);
    let content = vec![b'x'; 4 << 10];
    while !log.disk.files.contains_key(&Slot(2)) {
        log.append(&content);
        log.settle();
    }
    BTreeMap::from([(Slot(0), log.disk.files[&Slot(0)].clone())])
}

#[divan::bench(sample_count = 20)]
fn recovery_of_64_mib_record_by_record(bencher: Bencher<'_, '_>) {
    let files = full_segment();
    let size = files[&Slot(0)].len();
    bencher
        .counter(BytesCount::new(size))
        .bench_local(|| memory_disk::recover(black_box(&files), Depth::Whole));
}

#[divan::bench(sample_count = 20)]
fn recovery_of_64_mib_by_the_index(bencher: Bencher<'_, '_>) {
    let files = full_segment();
    let count = memory_disk::recover(&files, Depth::Quick).messages.len();
    bencher
        .counter(ItemsCount::new(count))
        .bench_local(|| memory_disk::recover(black_box(&files), Depth::Quick));
}
