//! The bytes on disk do not change: what version 1 wrote is read, and what is written is version 1.
//!
//! `tests/format/*.hex` are records written out by hand from the description in `spool::format`, not by its code. And a
//! small segment is damaged in every way one block or octet can be: exactly what was damaged is lost, and it is said so.

#[path = "support/log.rs"]
mod log;

use std::time::Duration;

use std::sync::Arc;

use incoming::mail::{
    Arrival, Body, ClientCertificate, Dsn, Envelope, EnvelopeId, ForwardPath, Notify, OriginalRecipient,
    Protocol, Provenance, RecipientDsn, Ret, ReversePath, Tag, Tls, TlsVersion, Via,
};
use incoming::spool::format::{
    self, BLOCK_SIZE, EnvelopeOctets, IndexBuilder, IndexPayload, IndexedMessage, Kind, Made, MessageHead,
    MessagePayload, Order, OrderKind, OutcomeEntry, OutcomeHead, PieceRef, RECORDS_OFFSET, RecipientOutcome,
    RecordHeader, Seal, SegmentHeader, TargetOutcomes,
};
use incoming::spool::memory_disk::MemoryDisk;
use incoming::spool::recovery::{Depth, Finding, Recovered};
use incoming::spool::{Slot, SpoolConfig};
use log::Log;

const LIFE: u64 = 0x0123_4567_89ab_cdef;

/// The octets of a golden file.
fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/format/{name}.v1.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let octets = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let octets = octets.flat_map(|line| line.split_whitespace());
    octets
        .map(|octet| u8::from_str_radix(octet, 16).unwrap_or_else(|e| panic!("{path}: {octet}: {e}")))
        .collect()
}

/// A golden record's payload, after its header was compared with these fields and written again.
#[track_caller]
fn golden_payload(name: &str, kind: Kind, sequence: u64, horizon: u64) -> Vec<u8> {
    let octets = golden(name);
    let (header, payload) = format::decode_record(&octets, LIFE).expect("a valid record");
    let payload_crc = crc32c::crc32c(payload);
    let payload_size = payload.len() as u32;
    let expected = RecordHeader { life: LIFE, sequence, horizon, payload_size, payload_crc, kind };
    assert_eq!(header, expected);
    let mut written = [&header.encode()[..], payload].concat();
    written.resize(header.record_size(), 0);
    assert_eq!(written, octets);
    payload.to_vec()
}

#[test]
fn the_segment_header_of_version_1() {
    let mut block = golden("segment_header");
    block.resize(BLOCK_SIZE, 0);
    let octets = block.repeat(2);
    let header = SegmentHeader { log: 7, epoch: 8, life: LIFE, size: 1 << 20 };
    assert_eq!(SegmentHeader::decode(&octets), Ok(header));
    assert_eq!(header.encode(), octets);
}

#[test]
fn the_open_record_of_version_1() {
    let payload = golden_payload("open", Kind::Open, 11, 9);
    let voids = vec![3..5, 9..11];
    assert_eq!(format::encode_open(8, &voids), payload);
    assert_eq!(format::decode_open(&payload), Some((8, voids)));
}

#[test]
fn the_piece_record_of_version_1() {
    assert_eq!(golden_payload("piece", Kind::Piece, 12, 11), b"From: a\r\n\r\nhello");
}

#[test]
fn the_message_record_of_version_1() {
    let payload = golden_payload("message", Kind::Message, 13, 12);
    let envelope = Envelope {
        reverse_path: ReversePath::parse("a@e.org", false).unwrap(),
        forward_paths: ["b@example.com", "postmaster"].map(|p| ForwardPath::parse(p, false).unwrap()).into(),
        body: Body::EightBit,
        smtputf8: true,
        require_tls: true,
        dsn: Some(Box::new(Dsn {
            ret: Some(Ret::Headers),
            envelope_id: EnvelopeId::parse("QQ+2B1"),
            recipients: vec![
                RecipientDsn { index: 0, notify: Some(Notify::NEVER), original: None },
                RecipientDsn {
                    index: 1,
                    notify: None,
                    original: OriginalRecipient::parse("rfc822;x@e.org", false),
                },
            ],
        })),
        via: Some(Via::Only("archive".into())),
    };
    let arrival = Arrival {
        peer: "[2001:db8::1]:25".parse().unwrap(),
        hello: "c.example".into(),
        protocol: Protocol::Esmtp,
        tls: Some(Arc::new(Tls {
            version: TlsVersion::Tls13,
            cipher: "TLS13_AES_256_GCM_SHA384".into(),
            server_name: Some("mx.example.com".into()),
            client: Some(ClientCertificate { name: "client.example".into(), fingerprint: [0xa7; 32] }),
        })),
        authenticated: Some("user".into()),
        client_name: Some("mail.peer.example".into()),
        tags: ["list:zen", "seen"].map(|text| Tag::parse(text).unwrap()).to_vec(),
        unix_time: 1_700_000_000,
        provenance: Provenance::Session { connected: 1_699_999_999_123, waited_millis: 877, number: 2 },
    };
    let pieces = [PieceRef { epoch: 8, sequence: 11, offset: 8192, size: 16 }];
    let (trace, tail) = (&b"Received: by mx\r\n"[..], &b"world\r\n"[..]);
    let message = MessagePayload::decode(&payload).expect("a Message payload");
    assert_eq!((message.sequence, message.content_size, &message.pieces[..]), (13, 23, &pieces[..]));
    assert_eq!((message.trace, message.tail), (trace, tail));
    assert_eq!(format::decode_envelope(message.envelope), Some((envelope.clone(), arrival.clone())));
    let reason = "451 busy".into();
    let tried = RecipientOutcome {
        index: 1,
        is_done: false,
        is_given_up: false,
        attempts: 3,
        next_attempt: 1_700_000_060,
        reason,
    };
    let tried =
        TargetOutcomes { target: "store".into(), here_only: false, recipients: vec![tried], order: None };
    assert_eq!(message.progress, std::slice::from_ref(&tried));
    let head = MessageHead {
        sequence: 13,
        content_size: 23,
        pieces: &pieces,
        envelope: EnvelopeOctets::Of(&envelope, &arrival),
        progress: &[tried],
        trace_size: trace.len(),
        tail_size: tail.len(),
    };
    let mut written = Vec::new();
    head.encode(&mut written);
    assert_eq!([&written, trace, tail].concat(), payload);
}

#[test]
fn the_outcomes_record_of_version_1() {
    let payload = golden_payload("outcomes", Kind::Outcomes, 14, 14);
    let done = RecipientOutcome {
        index: 0,
        is_done: true,
        is_given_up: false,
        attempts: 1,
        next_attempt: 0,
        reason: "".into(),
    };
    let reason = "451 busy".into();
    let deferred = RecipientOutcome {
        index: 1,
        is_done: false,
        is_given_up: false,
        attempts: 3,
        next_attempt: 1_700_000_060,
        reason,
    };
    let entries = format::decode_outcomes(&payload).expect("an Outcomes payload");
    let made = Made { unix_millis: 1_700_000_000_123, duration_millis: 250 };
    let expected = [
        OutcomeHead {
            sequence: 5,
            is_message_done: true,
            made: Made::default(),
            target: "",
            here_only: false,
        },
        OutcomeHead { sequence: 13, is_message_done: false, made, target: "store", here_only: true },
    ];
    let recipients = [vec![], vec![done, deferred]];
    let mut written = Vec::new();
    for (head, recipients) in expected.into_iter().zip(&recipients) {
        format::encode_outcome(head, recipients, &mut written);
    }
    assert_eq!(written, payload);
    for (entry, (head, recipients)) in entries.into_iter().zip(expected.into_iter().zip(recipients)) {
        let OutcomeHead { target, here_only, .. } = head;
        let outcomes = TargetOutcomes { target: target.into(), here_only, recipients, order: None };
        let OutcomeHead { sequence, is_message_done, made, .. } = head;
        assert_eq!(entry, OutcomeEntry { sequence, is_message_done, made, outcomes });
    }
}

/// Orders of the operator are in Outcomes records, and a hold in the record of a message that was moved.
#[test]
fn the_orders_of_version_1() {
    let payload = golden_payload("orders", Kind::Outcomes, 15, 15);
    let order = |kind, note: &str| Order {
        kind,
        unix_millis: 1_700_000_000_456,
        by: "operator".into(),
        note: note.into(),
    };
    let table = [
        (5, "", order(OrderKind::Drop, "spam")),
        (13, "", order(OrderKind::Hold, "")),
        (13, "", order(OrderKind::Release, "")),
        (13, "store", order(OrderKind::Retry, "mended")),
    ];
    let entries = format::decode_outcomes(&payload).expect("an Outcomes payload");
    let mut written = Vec::new();
    for (entry, (sequence, target, order)) in entries.into_iter().zip(table) {
        let is_message_done = order.kind == OrderKind::Drop;
        format::encode_order((sequence, is_message_done), target, &order, &mut written);
        let order = Some(Box::new(order));
        let outcomes = TargetOutcomes { target: target.into(), order, ..TargetOutcomes::default() };
        assert_eq!(entry, OutcomeEntry { sequence, is_message_done, made: Made::default(), outcomes });
    }
    assert_eq!(written, payload);
}

#[test]
fn the_index_record_of_version_1() {
    let payload = golden_payload("index", Kind::Index, 14, 12);
    let piece = PieceRef { epoch: 8, sequence: 10, offset: 8192, size: 16 };
    let mut index = IndexBuilder::default();
    index.add(11, Kind::Open, 8192, 44);
    index.add(12, Kind::Message, 8288, 100);
    index.add_message(12, 2, &[piece], false);
    index.add(13, Kind::Message, 8440, 100);
    index.add_message(7, 1, &[], true);
    assert_eq!(index.payload(), payload);
    let page = IndexPayload::decode(&payload).expect("an Index payload");
    let messages: Vec<_> = page.entries.iter().filter_map(|entry| entry.message.clone()).collect();
    assert_eq!((page.previous, page.first, page.entries.len()), (0, 11, 3));
    let message = |sequence, recipient_count, pieces| IndexedMessage { sequence, recipient_count, pieces };
    assert_eq!(messages, [message(12, 2, Some([piece].into())), message(7, 1, None)]);
}

#[test]
fn the_seal_of_version_1() {
    let mut block = golden("seal");
    block.resize(BLOCK_SIZE, 0);
    let seal = Seal { next_sequence: 15, index: 8592 };
    assert_eq!((Seal::decode(&block, LIFE), &seal.encode(LIFE)[..]), (Some(seal), &block[..]));
}

const CONFIG: SpoolConfig =
    SpoolConfig { segment_size: 128 << 10, sync: true, page_size: 16 << 10, pages_max: 4 };
const SLOT: Slot = Slot(0);

/// A segment of three acknowledged messages, and a fourth that was appended after they were durable.
struct Segment {
    disk: MemoryDisk,
    undamaged: Recovered,
    /// The first three and the fourth.
    sequences: Vec<u64>,
    last: u64,
    contents: Vec<Vec<u8>>,
}

impl Segment {
    fn new(size: usize) -> Self {
        let mut log = Log::new(CONFIG);
        let mut sequences = Vec::new();
        for i in 0..4_u8 {
            let content: Vec<u8> = (0..size).map(|at| (at as u8).wrapping_mul(2 * i + 1)).collect();
            sequences.push(log.append(&content));
            assert_eq!(log.settle(), sequences[i as usize..], "acknowledged before the next is appended");
        }
        // The file that is prepared for what comes next is not looked at here.
        log.disk.files.retain(|slot, _| *slot == SLOT);
        let undamaged = log.disk.recover(Depth::Whole);
        assert_eq!(undamaged.findings, []);
        let contents =
            sequences.iter().map(|s| log.disk.message(&undamaged, *s).expect("a message")).collect();
        let last = sequences.pop().expect("four messages");
        Segment { disk: log.disk, undamaged, sequences, last, contents }
    }

    /// Octets of the message's record: header and payload.
    fn record(&self, sequence: u64) -> std::ops::Range<usize> {
        let offset = self.undamaged.messages[&sequence].location.offset as usize;
        let header = RecordHeader::decode(&self.disk.files[&SLOT][offset..]).expect("a record");
        offset..offset + format::RECORD_HEADER_SIZE + header.payload_size as usize
    }

    /// Octets up to the end of the last record's batch.
    fn used(&self) -> usize {
        self.record(self.last).end.next_multiple_of(BLOCK_SIZE)
    }

    fn block(&self, n: usize) -> Vec<u8> {
        self.disk.files[&SLOT][n * BLOCK_SIZE..][..BLOCK_SIZE].to_vec()
    }

    /// Recovers with `blocks` in place of those there are, and checks: lost is what has an octet in one of them that
    /// is not its own any more, and it is reported; the rest is recovered octet for octet.
    #[track_caller]
    fn check_blocks(&self, what: &str, blocks: &[(usize, Vec<u8>)], is_moved: bool) {
        let mut disk = self.disk.clone();
        let file = disk.files.get_mut(&SLOT).expect("the segment");
        for (n, block) in blocks {
            file[n * BLOCK_SIZE..][..BLOCK_SIZE].copy_from_slice(block);
        }
        let lost: Vec<u64> = self
            .all()
            .filter(|s| disk.files[&SLOT][self.record(*s)] != self.disk.files[&SLOT][self.record(*s)])
            .collect();
        self.check(what, &disk, &lost, is_moved);
    }

    /// `may_move`: of what is lost at its place, some may have been found elsewhere.
    #[track_caller]
    fn check(&self, what: &str, disk: &MemoryDisk, lost: &[u64], may_move: bool) {
        let recovered = disk.recover(Depth::Whole);
        for (sequence, content) in self.all().zip(&self.contents) {
            match disk.message(&recovered, sequence) {
                Some(found) => {
                    assert!(
                        may_move || !lost.contains(&sequence),
                        "{what}: {sequence} is there all the same"
                    );
                    assert_eq!(&found, content, "{what}: {sequence}");
                }
                None => assert!(lost.contains(&sequence), "{what}: {sequence} is lost"),
            }
        }
        // What is lost at the very end cannot be told from what was never acknowledged.
        let is_missing =
            |sequence: &&u64| !recovered.messages.contains(**sequence) && **sequence != self.last;
        let is_reported = |sequence: &u64| {
            let is_it =
                |f: &Finding| matches!(f, Finding::Corrupt { sequences } if sequences.contains(sequence));
            recovered.findings.iter().any(is_it)
        };
        if !lost.contains(&self.last) {
            let silent: Vec<_> = lost.iter().filter(is_missing).filter(|s| !is_reported(s)).collect();
            assert!(silent.is_empty(), "{what}: {silent:?} are lost in silence: {:?}", recovered.findings);
        }
        let is_false = |sequence: &u64| is_reported(sequence) && recovered.messages.contains(*sequence);
        assert!(!self.all().any(|s| is_false(&s)), "{what}: {:?}", recovered.findings);
    }

    fn all(&self) -> impl Iterator<Item = u64> {
        self.sequences.iter().copied().chain([self.last])
    }
}

/// Messages of less than a block, and of several.
const SIZES: [usize; 2] = [500, 9000];

#[test]
fn any_octet_flipped_loses_and_reports_the_message_it_is_in_and_no_other() {
    for size in SIZES {
        let segment = Segment::new(size);
        let mut disk = segment.disk.clone();
        let mut count = 0;
        for at in 0..segment.used() {
            for flip in [0x01, 0xff] {
                disk.files.get_mut(&SLOT).expect("the segment")[at] ^= flip;
                let lost: Vec<u64> = segment.all().filter(|s| segment.record(*s).contains(&at)).collect();
                segment.check(&format!("octet {at} ^ {flip:#x} of {size}"), &disk, &lost, false);
                disk.files.get_mut(&SLOT).expect("the segment")[at] ^= flip;
                count += lost.len();
            }
        }
        assert!(count > 2 * 4 * size, "the records were reached");
    }
}

#[test]
fn a_block_zeroed_or_overwritten_by_another_loses_what_was_in_it_and_no_more() {
    for size in SIZES {
        let segment = Segment::new(size);
        let first = RECORDS_OFFSET as usize / BLOCK_SIZE;
        let blocks = first..segment.used() / BLOCK_SIZE;
        for n in blocks.clone() {
            segment.check_blocks(&format!("{n} zeroed of {size}"), &[(n, vec![0; BLOCK_SIZE])], false);
            for other in 0..blocks.end {
                // The last message's block over another's takes the other's place in nothing but its number.
                segment.check_blocks(
                    &format!("{other} over {n} of {size}"),
                    &[(n, segment.block(other))],
                    false,
                );
            }
        }
    }
}

#[test]
fn blocks_that_changed_places_lose_no_message_of_one_block() {
    for size in SIZES {
        let segment = Segment::new(size);
        let first = RECORDS_OFFSET as usize / BLOCK_SIZE;
        // One unused block too.
        let blocks = first..segment.used() / BLOCK_SIZE + 1;
        for (a, b) in blocks.clone().flat_map(|a| (a + 1..blocks.end).map(move |b| (a, b))) {
            let swapped = [(a, segment.block(b)), (b, segment.block(a))];
            segment.check_blocks(&format!("{a} and {b} of {size} swapped"), &swapped, true);
            if size < BLOCK_SIZE {
                let mut disk = segment.disk.clone();
                let file = disk.files.get_mut(&SLOT).expect("the segment");
                swapped
                    .iter()
                    .for_each(|(n, block)| file[n * BLOCK_SIZE..][..BLOCK_SIZE].copy_from_slice(block));
                segment.check(&format!("{a} and {b} swapped"), &disk, &[], true);
            }
        }
    }
}

#[test]
fn one_header_block_is_enough_whatever_the_other_holds() {
    let segment = Segment::new(500);
    let other = SegmentHeader { log: 7, epoch: 99, life: 5, size: CONFIG.segment_size }.encode();
    for n in [0, 1] {
        for block in
            [vec![0; BLOCK_SIZE], vec![0xff; BLOCK_SIZE], other[..BLOCK_SIZE].to_vec(), segment.block(2)]
        {
            segment.check_blocks(&format!("header {n}"), &[(n, block)], false);
        }
    }
}

#[test]
fn a_damaged_outcome_brings_its_message_back_and_is_reported() {
    let mut log = Log::new(CONFIG);
    let first = log.append(b"first");
    log.settle();
    log.deliver(first);
    log.pass(Duration::from_secs(1));
    let second = log.append(b"second");
    log.settle();
    assert!(log.disk.recover(Depth::Whole).messages.keys().eq([second]));
    let file = log.disk.files.get_mut(&SLOT).expect("the segment");
    let is_outcomes =
        |at: &usize| RecordHeader::decode(&file[*at..]).is_some_and(|header| header.kind == Kind::Outcomes);
    let at = (0..file.len()).step_by(BLOCK_SIZE).find(is_outcomes).expect("an Outcomes record");
    file[at + format::RECORD_HEADER_SIZE] ^= 1;
    let recovered = log.disk.recover(Depth::Whole);
    assert!(recovered.messages.keys().eq([first, second]), "at least once, so it is delivered again");
    assert!(matches!(recovered.findings[..], [Finding::NotARecord { .. }, Finding::Corrupt { .. }]));
}

#[test]
fn behind_an_index_damage_loses_what_it_is_in_and_is_found_at_the_latest_when_that_is_read() {
    let mut log = Log::new(CONFIG);
    let contents = [b"first".repeat(100), b"second".repeat(100), b"third".repeat(1000)];
    let sequences: Vec<u64> = contents.iter().map(|content| log.append(content)).collect();
    log.settle();
    log.finish();
    let undamaged = log.disk.recover(Depth::Quick);
    assert!(undamaged.messages.keys().eq(sequences.iter().copied()) && undamaged.findings.is_empty());
    let mut disk = log.disk.clone();
    let size = disk.files[&SLOT].len();
    let (mut lost_count, mut told_count) = (0, 0);
    for at in (0..size).filter(|at| log.disk.files[&SLOT][*at] != 0) {
        disk.files.get_mut(&SLOT).expect("the segment")[at] ^= 0xff;
        let recovered = disk.recover(Depth::Quick);
        for sequence in &sequences {
            let location = undamaged.messages[sequence].location;
            let is_hit = (location.offset..location.offset + location.size).contains(&(at as u32));
            let read = disk.message(&recovered, *sequence);
            let expected = (!is_hit).then(|| log.disk.message(&undamaged, *sequence).expect("it is there"));
            assert_eq!(read, expected, "octet {at}, message {sequence}");
            lost_count += usize::from(is_hit);
        }
        told_count += usize::from(recovered.findings.iter().any(Finding::is_damage));
        disk.files.get_mut(&SLOT).expect("the segment")[at] ^= 0xff;
    }
    assert!(lost_count > 5000, "the records were reached");
    assert!(told_count > 0, "where the index is damaged, the records are read");
}
