//! The decision table row by row, and what a scan finds.

use super::*;
use crate::mail::{Arrival, Body, Envelope, ForwardPath, Protocol, ReversePath};
use format::RecordHeader;

/// What a test puts into a segment: a record with its number and horizon, or damage.
enum Put {
    Open(u64, u64, u64),
    Piece(u64, u64),
    Message(u64, u64),
    /// Its pieces: epoch and offset.
    MessageOf(u64, u64, u64, u32),
    Done(u64, u64, u64),
    /// A message's record with a damaged payload.
    Broken(u64),
    /// The rest of the block is something else.
    Junk,
}
use Put::*;

const PIECE: &[u8] = b"piece";

fn message(sequence: u64, pieces: &[PieceRef]) -> Vec<u8> {
    let envelope = Envelope {
        reverse_path: ReversePath::Null,
        forward_paths: vec![ForwardPath::parse("b@example.com", false).unwrap()],
        body: Body::SevenBit,
        smtputf8: false,
    };
    let arrival = Arrival {
        peer: "192.0.2.1:25".parse().unwrap(),
        hello: "c.example".into(),
        protocol: Protocol::Esmtp,
        unix_time: 1,
    };
    let mut payload = Vec::new();
    let size = pieces.iter().map(|piece| u64::from(piece.size)).sum();
    format::encode_message_head(sequence, size, pieces, (&envelope, &arrival), (0, 0), &mut payload);
    payload
}

/// A segment, each record in a block of its own: the first at offset 8192.
fn segment(epoch: u64, puts: &[Put]) -> Scan {
    let header = SegmentHeader { log: 3, epoch, life: 100 + epoch, size: 1 << 20 };
    let mut octets = header.encode();
    for put in puts {
        let (kind, sequence, horizon, payload) = match *put {
            Open(sequence, horizon, void_from) => {
                (Kind::Open, sequence, horizon, format::encode_open(epoch, void_from).to_vec())
            }
            Piece(sequence, horizon) => (Kind::Piece, sequence, horizon, PIECE.to_vec()),
            Message(sequence, horizon) => (Kind::Message, sequence, horizon, message(sequence, &[])),
            MessageOf(sequence, horizon, epoch, offset) => {
                let piece = PieceRef { epoch, sequence: sequence - 1, offset, size: PIECE.len() as u32 };
                (Kind::Message, sequence, horizon, message(sequence, &[piece]))
            }
            Done(sequence, horizon, of) => {
                let mut payload = Vec::new();
                format::encode_outcome(of, &[], &mut payload);
                (Kind::Outcomes, sequence, horizon, payload)
            }
            Broken(sequence) => (Kind::Message, sequence, 0, message(sequence, &[])),
            Junk => {
                octets.resize(octets.len() + BLOCK_SIZE, 0xa5);
                continue;
            }
        };
        let payload_size = payload.len() as u32;
        let payload_crc = crc32c::crc32c(&payload) ^ u32::from(matches!(put, Broken(_)));
        let life = header.life;
        let record = RecordHeader { life, sequence, horizon, payload_size, payload_crc, kind };
        octets.extend_from_slice(&record.encode());
        octets.extend_from_slice(&payload);
        octets.resize(octets.len().next_multiple_of(BLOCK_SIZE), 0);
    }
    octets.resize(header.size as usize, 0);
    scan(Slot(epoch as u32), header, &octets)
}

fn corrupt(sequences: Range<u64>) -> Finding {
    Finding::Corrupt { sequences }
}

fn cut(from: u64, record_count: usize) -> Finding {
    Finding::TailCut { from, record_count }
}

/// Verdict, segments (epoch, records), messages kept, findings, where the log is cut, the next number.
type Row = (&'static str, Vec<(u64, Vec<Put>)>, Vec<u64>, Vec<Finding>, u64, u64);

#[test]
fn every_row_of_the_decision_table() {
    let missing = Finding::PieceMissing { sequence: 3 };
    let rows: Vec<Row> = vec![
        ("end: nothing at all", vec![], vec![], vec![], 1, 1),
        ("end: no record in the only segment", vec![(1, vec![])], vec![], vec![], 1, 1),
        (
            "keep: the numbers follow",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Message(3, 3)])],
            vec![2, 3],
            vec![],
            4,
            4,
        ),
        (
            "keep: the numbers follow from segment to segment, and what came before the first was recycled",
            vec![(5, vec![Open(7, 7, 7), Message(8, 7)]), (6, vec![Open(9, 8, 9), Message(10, 8)])],
            vec![8, 10],
            vec![],
            11,
            11,
        ),
        (
            "keep: less what is done",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Message(3, 1), Done(4, 4, 2)])],
            vec![3],
            vec![],
            5,
            5,
        ),
        (
            "keep: with its piece",
            vec![(1, vec![Open(1, 1, 1), Piece(2, 1), MessageOf(3, 1, 1, 3 * 4096)])],
            vec![3],
            vec![],
            4,
            4,
        ),
        (
            "void: missing, damaged or valid, an Open record voids it",
            vec![
                (1, vec![Open(1, 1, 1), Message(2, 1), Broken(3), Message(5, 2)]),
                (2, vec![Open(6, 3, 3), Message(7, 3)]),
            ],
            vec![2, 7],
            vec![],
            8,
            8,
        ),
        (
            "corrupt: damaged, and a horizon is beyond it",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Broken(3), Message(4, 4)])],
            vec![2, 4],
            vec![corrupt(3..4)],
            5,
            5,
        ),
        (
            "corrupt: its header too",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Junk, Message(4, 4)])],
            vec![2, 4],
            vec![corrupt(3..4)],
            5,
            5,
        ),
        (
            "corrupt: the horizon is in the next segment",
            vec![(1, vec![Open(1, 1, 1), Broken(2)]), (2, vec![Open(3, 3, 3), Message(4, 3)])],
            vec![4],
            vec![corrupt(2..3)],
            5,
            5,
        ),
        (
            "corrupt: the log's first record",
            vec![(1, vec![Junk, Message(2, 1), Message(3, 3)])],
            vec![2, 3],
            vec![corrupt(1..2)],
            4,
            4,
        ),
        (
            "cut: no horizon is beyond it; void: valid behind the cut",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Broken(3), Message(4, 3)])],
            vec![2],
            vec![cut(3, 1)],
            3,
            5,
        ),
        (
            "corrupt up to the horizon, cut behind it",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Message(6, 4)])],
            vec![2],
            vec![corrupt(3..4), cut(4, 1)],
            4,
            7,
        ),
        (
            "void: an outcome behind the cut",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Broken(3), Done(4, 3, 2)])],
            vec![2],
            vec![cut(3, 1)],
            3,
            5,
        ),
        (
            "end: the last record is damaged and nothing tells of it",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Broken(3)])],
            vec![2],
            vec![],
            3,
            3,
        ),
        (
            "corrupt: a valid message's piece is missing",
            vec![(1, vec![Open(1, 1, 1), Broken(2), MessageOf(3, 3, 1, 3 * 4096), Message(4, 4)])],
            vec![4],
            vec![corrupt(2..3), missing.clone()],
            5,
            5,
        ),
        (
            "corrupt: a piece's segment is missing",
            vec![(2, vec![Open(2, 2, 2), MessageOf(3, 2, 1, 3 * 4096)])],
            vec![],
            vec![missing],
            4,
            4,
        ),
        (
            "keep: blocks that changed places",
            vec![(1, vec![Open(1, 1, 1), Message(4, 4), Message(3, 3), Message(2, 1), Message(5, 5)])],
            vec![2, 3, 4, 5],
            vec![],
            6,
            6,
        ),
        (
            "keep: a copy of a message that is done does not bring it back",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Done(3, 3, 2), Message(2, 1), Message(5, 5)])],
            vec![5],
            vec![corrupt(4..5)],
            6,
            6,
        ),
        (
            "numbers that nothing comes behind end the log",
            vec![(1, vec![Open(0, 0, 0), Message(u64::MAX, u64::MAX)])],
            vec![],
            vec![corrupt(1..u64::MAX)],
            u64::MAX,
            u64::MAX,
        ),
    ];
    for (verdict, segments, kept, findings, void_from, next_sequence) in rows {
        // Segments come in the order of the directory: any.
        let scans = segments.iter().rev().map(|(epoch, puts)| segment(*epoch, puts)).collect();
        let recovered = merge(scans);
        assert_eq!(recovered.messages.keys().copied().collect::<Vec<_>>(), kept, "{verdict}");
        assert_eq!(recovered.findings, findings, "{verdict}");
        assert_eq!((recovered.void_from, recovered.next_sequence), (void_from, next_sequence), "{verdict}");
    }
}

#[test]
fn a_file_without_records_is_free_and_one_with_damage_is_not() {
    let recovered = merge(vec![segment(1, &[]), segment(2, &[Broken(1)]), segment(3, &[Open(2, 1, 1)])]);
    assert_eq!(recovered.free, [(Slot(1), 1 << 20)]);
    assert_eq!(recovered.segments.iter().map(|s| s.slot).collect::<Vec<_>>(), [Slot(2), Slot(3)]);
    assert_eq!((recovered.log, recovered.next_epoch, recovered.next_slot), (3, 4, 4));
}

#[test]
fn of_two_files_that_say_they_are_one_segment_the_fuller_is_read_and_the_other_left_alone() {
    let fuller = || segment(1, &[Open(1, 1, 1), Message(2, 1)]);
    let copy = || Scan { slot: Slot(9), ..segment(1, &[Open(1, 1, 1)]) };
    for scans in [vec![fuller(), copy()], vec![copy(), fuller()]] {
        let recovered = merge(scans);
        assert!(recovered.messages.keys().eq([&2]));
        assert_eq!(recovered.findings, [Finding::SegmentTwice { slot: Slot(9) }]);
        assert_eq!((recovered.segments.len(), recovered.free.len(), recovered.next_slot), (1, 0, 10));
    }
}

#[test]
fn a_copied_header_does_not_hide_the_records_behind_it() {
    let header = SegmentHeader { log: 3, epoch: 1, life: 5, size: 1 << 20 };
    let record = |sequence: u64, payload: &[u8]| {
        let payload_crc = crc32c::crc32c(payload);
        let payload_size = payload.len() as u32;
        let record =
            RecordHeader { life: 5, sequence, horizon: 1, payload_size, payload_crc, kind: Kind::Piece };
        let mut octets = [&record.encode()[..], payload].concat();
        octets.resize(octets.len().next_multiple_of(BLOCK_SIZE), 0);
        octets
    };
    let large = record(1, &[b'x'; 3 * BLOCK_SIZE]);
    let small = [record(3, b"a"), record(4, b"b")].concat();
    let octets = [&header.encode(), &large, &large[..BLOCK_SIZE], &small].concat();
    let scan = scan(Slot(1), header, &octets);
    assert_eq!(scan.records.iter().map(|r| r.sequence).collect::<Vec<_>>(), [1, 3, 4]);
    let block = BLOCK_SIZE as u32;
    assert_eq!((scan.damaged.len(), &scan.damaged[0]), (1, &(6 * block..7 * block)));
}

#[test]
fn records_of_a_former_life_are_not_records() {
    let former = SegmentHeader { log: 3, epoch: 1, life: 5, size: 1 << 20 };
    let open = format::encode_open(1, 1);
    let record = RecordHeader {
        life: former.life,
        sequence: 1,
        horizon: 1,
        payload_size: open.len() as u32,
        payload_crc: crc32c::crc32c(&open),
        kind: Kind::Open,
    };
    let octets = [&former.encode()[..], &record.encode(), &open].concat();
    assert_eq!(scan(Slot(1), former, &octets).records.len(), 1);
    let found = scan(Slot(1), SegmentHeader { life: 6, ..former }, &octets);
    assert!(found.records.is_empty() && found.damaged.is_empty());
}
