//! The decision table row by row, and what a scan finds.

use super::scan::scan_whole;
use super::*;
use crate::spool::format::{BLOCK_SIZE, EnvelopeOctets, MessageHead, Seal};
use crate::spool::memory_disk::{self, mail};

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
    /// A message that was moved: the number of its record, the horizon, its own number.
    Moved(u64, u64, u64),
    /// The seal, in the last block: records with smaller numbers are durable.
    Sealed(u64),
    /// The rest of the block is something else.
    Junk,
}
use Put::*;

const PIECE: &[u8] = b"piece";

fn message(sequence: u64, pieces: &[PieceRef]) -> Vec<u8> {
    let (envelope, arrival) = mail(1);
    let head = MessageHead {
        sequence,
        content_size: pieces.iter().map(|piece| u64::from(piece.size)).sum(),
        pieces,
        envelope: EnvelopeOctets::Of(&envelope, &arrival),
        progress: &[],
        trace_size: 0,
        tail_size: 0,
    };
    let mut payload = Vec::new();
    head.encode(&mut payload);
    payload
}

/// A segment, each record in a block of its own: the first at offset 8192.
fn segment(epoch: u64, puts: &[Put]) -> Vec<u8> {
    let header = SegmentHeader { log: 3, epoch, life: 100 + epoch, size: 1 << 20 };
    let mut octets = header.encode();
    let mut seal = None;
    for put in puts {
        let (kind, sequence, horizon, payload) = match *put {
            Open(sequence, horizon, void_from) => {
                let void = Some(void_from..sequence).filter(|void| !void.is_empty());
                (Kind::Open, sequence, horizon, format::encode_open(epoch, void.as_slice()))
            }
            Moved(sequence, horizon, of) => (Kind::Message, sequence, horizon, message(of, &[])),
            Sealed(next_sequence) => {
                seal = Some(Seal { next_sequence, index: 8192 }.encode(header.life));
                continue;
            }
            Piece(sequence, horizon) => (Kind::Piece, sequence, horizon, PIECE.to_vec()),
            Message(sequence, horizon) => (Kind::Message, sequence, horizon, message(sequence, &[])),
            MessageOf(sequence, horizon, epoch, offset) => {
                let piece = PieceRef { epoch, sequence: sequence - 1, offset, size: PIECE.len() as u32 };
                (Kind::Message, sequence, horizon, message(sequence, &[piece]))
            }
            Done(sequence, horizon, of) => {
                let mut payload = Vec::new();
                let head = format::OutcomeHead {
                    sequence: of,
                    is_message_done: true,
                    made: format::Made::default(),
                    target: "",
                    here_only: false,
                };
                format::encode_outcome(head, &[], &mut payload);
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
    if let Some(seal) = seal {
        let last_block = octets.len() - BLOCK_SIZE;
        octets[last_block..].copy_from_slice(&seal);
    }
    octets
}

/// What recovery makes of segments, each in the slot of its epoch, without saying where the damage is.
fn recover_all(segments: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Recovered {
    let files = segments.into_iter().map(|(slot, octets)| (Slot(slot as u32), octets)).collect();
    let mut recovered = memory_disk::recover(&files, Depth::Whole);
    recovered.findings.retain(|finding| !matches!(finding, Finding::NotARecord { .. }));
    recovered
}

fn corrupt(sequences: Range<u64>) -> Finding {
    Finding::Corrupt { sequences }
}

fn torn(sequences: Range<u64>) -> Finding {
    Finding::Torn { sequences }
}

/// Verdict, segments (epoch, records), messages kept, findings, the next number. What is torn is to be named void.
type Row = (&'static str, Vec<(u64, Vec<Put>)>, Vec<u64>, Vec<Finding>, u64);

#[test]
fn every_row_of_the_decision_table() {
    let missing = |was_durable| Finding::PieceMissing { sequence: 3, was_durable };
    let rows: Vec<Row> = vec![
        ("end: nothing at all", vec![], vec![], vec![], 1),
        ("end: no record in the only segment", vec![(1, vec![])], vec![], vec![], 1),
        (
            "keep: the numbers follow",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Message(3, 3)])],
            vec![2, 3],
            vec![],
            4,
        ),
        (
            "keep: the numbers follow from segment to segment, and what came before the first was recycled",
            vec![(5, vec![Open(7, 7, 7), Message(8, 7)]), (6, vec![Open(9, 8, 9), Message(10, 8)])],
            vec![8, 10],
            vec![],
            11,
        ),
        (
            "keep: less what is done",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Message(3, 1), Done(4, 4, 2)])],
            vec![3],
            vec![],
            5,
        ),
        (
            "keep: with its piece",
            vec![(1, vec![Open(1, 1, 1), Piece(2, 1), MessageOf(3, 1, 1, 3 * 4096)])],
            vec![3],
            vec![],
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
        ),
        (
            "corrupt: damaged, and a horizon is beyond it",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Broken(3), Message(4, 4)])],
            vec![2, 4],
            vec![corrupt(3..4)],
            5,
        ),
        (
            "corrupt: its header too",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Junk, Message(4, 4)])],
            vec![2, 4],
            vec![corrupt(3..4)],
            5,
        ),
        (
            "corrupt: the horizon is in the next segment",
            vec![(1, vec![Open(1, 1, 1), Broken(2)]), (2, vec![Open(3, 3, 3), Message(4, 3)])],
            vec![4],
            vec![corrupt(2..3)],
            5,
        ),
        (
            "corrupt: the log's first record",
            vec![(1, vec![Junk, Message(2, 1), Message(3, 3)])],
            vec![2, 3],
            vec![corrupt(1..2)],
            4,
        ),
        (
            "torn: no horizon is beyond it; keep: valid behind it",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Broken(3), Message(4, 3)])],
            vec![2, 4],
            vec![torn(3..4)],
            5,
        ),
        (
            "corrupt up to the horizon, torn behind it",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Message(6, 4)])],
            vec![2, 6],
            vec![corrupt(3..4), torn(4..6)],
            7,
        ),
        (
            "keep: an outcome behind what is torn",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Broken(3), Done(4, 3, 2)])],
            vec![],
            vec![torn(3..4)],
            5,
        ),
        (
            "end: the last record is damaged and nothing tells of it",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Broken(3)])],
            vec![2],
            vec![],
            3,
        ),
        (
            "corrupt: a valid message's piece is missing",
            vec![(1, vec![Open(1, 1, 1), Broken(2), MessageOf(3, 3, 1, 3 * 4096), Message(4, 4)])],
            vec![4],
            vec![corrupt(2..3), missing(true)],
            5,
        ),
        (
            "corrupt: a piece's segment is missing",
            vec![(2, vec![Open(2, 2, 2), MessageOf(3, 2, 1, 3 * 4096)])],
            vec![],
            vec![missing(false)],
            4,
        ),
        (
            "keep: blocks that changed places",
            vec![(1, vec![Open(1, 1, 1), Message(4, 4), Message(3, 3), Message(2, 1), Message(5, 5)])],
            vec![2, 3, 4, 5],
            vec![],
            6,
        ),
        (
            "keep: a copy of a message that is done does not bring it back",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Done(3, 3, 2), Message(2, 1), Message(5, 5)])],
            vec![5],
            vec![corrupt(4..5)],
            6,
        ),
        (
            "corrupt: the seal is beyond it",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Broken(3), Message(4, 1), Sealed(5)])],
            vec![2, 4],
            vec![corrupt(3..4)],
            5,
        ),
        (
            "corrupt: the last record, and the seal is beyond it",
            vec![(1, vec![Open(1, 1, 1), Message(2, 1), Broken(3), Sealed(5)])],
            vec![2],
            vec![corrupt(3..5)],
            5,
        ),
        (
            "void: a valid record, in a range an Open record names",
            vec![
                (1, vec![Open(1, 1, 1), Message(2, 1), Message(3, 1)]),
                (2, vec![Open(4, 3, 3), Message(5, 3)]),
            ],
            vec![2, 5],
            vec![],
            6,
        ),
        (
            "keep: a message that was moved, once",
            vec![
                (1, vec![Open(1, 1, 1), Message(2, 1)]),
                (2, vec![Open(3, 3, 3), Moved(4, 3, 2), Message(5, 5)]),
            ],
            vec![2, 5],
            vec![],
            6,
        ),
        (
            "keep: a message that was moved, its former segment used again",
            vec![(2, vec![Open(3, 3, 3), Moved(4, 3, 2), Message(5, 5)])],
            vec![2, 5],
            vec![],
            6,
        ),
        (
            "keep: less a message that was moved and is done",
            vec![
                (1, vec![Open(1, 1, 1), Message(2, 1)]),
                (2, vec![Open(3, 3, 3), Moved(4, 3, 2), Done(5, 5, 2)]),
            ],
            vec![],
            vec![],
            6,
        ),
        (
            "torn: a valid message whose piece is",
            vec![(1, vec![Open(1, 1, 1), Broken(2), MessageOf(3, 2, 1, 3 * 4096), Message(4, 2)])],
            vec![4],
            vec![torn(2..3), missing(false)],
            5,
        ),
        (
            "numbers that nothing comes behind end the log",
            vec![(1, vec![Open(0, 0, 0), Message(u64::MAX, u64::MAX)])],
            vec![u64::MAX],
            vec![corrupt(1..u64::MAX)],
            u64::MAX,
        ),
    ];
    for (verdict, segments, kept, findings, next_sequence) in rows {
        // Segments come in the order of the directory: any.
        let recovered =
            recover_all(segments.iter().rev().map(|(epoch, puts)| (*epoch, segment(*epoch, puts))));
        assert_eq!(recovered.messages.keys().collect::<Vec<_>>(), kept, "{verdict}");
        assert_eq!(recovered.findings, findings, "{verdict}");
        let voids = findings.into_iter().filter_map(|finding| match finding {
            Finding::Torn { sequences } => Some(sequences),
            Finding::PieceMissing { sequence, was_durable: false } => Some(sequence..sequence + 1),
            _ => None,
        });
        let voids: Vec<_> = voids.collect();
        assert_eq!((recovered.voids, recovered.next_sequence), (voids, next_sequence), "{verdict}");
    }
}

#[test]
fn a_file_without_records_is_free_and_one_with_damage_is_not() {
    let segments = [(1, segment(1, &[])), (2, segment(2, &[Broken(1)])), (3, segment(3, &[Open(2, 1, 1)]))];
    let recovered = recover_all(segments);
    assert_eq!(recovered.free, [(Slot(1), 1 << 20)]);
    assert_eq!(recovered.segments.iter().map(|s| s.slot).collect::<Vec<_>>(), [Slot(2), Slot(3)]);
    assert_eq!((recovered.log, recovered.next_epoch, recovered.next_slot), (3, 4, 4));
}

#[test]
fn of_two_files_that_say_they_are_one_segment_the_fuller_is_read_and_the_other_left_alone() {
    let fuller = segment(1, &[Open(1, 1, 1), Message(2, 1)]);
    let copy = segment(1, &[Open(1, 1, 1)]);
    for (fuller_in, copy_in) in [(1, 9), (9, 1)] {
        let recovered = recover_all([(fuller_in, fuller.clone()), (copy_in, copy.clone())]);
        assert!(recovered.messages.keys().eq([2]));
        assert_eq!(recovered.findings, [Finding::SegmentTwice { slot: Slot(copy_in as u32) }]);
        assert_eq!((recovered.segments.len(), recovered.free.len(), recovered.next_slot), (1, 0, 10));
    }
}

#[test]
fn a_segment_without_header_blocks_is_read_by_what_its_first_record_says() {
    let mut damaged = segment(1, &[Open(1, 1, 1), Message(2, 1)]);
    damaged[..2 * BLOCK_SIZE].fill(0xa5);
    let other = segment(2, &[Open(3, 3, 3), Message(4, 4)]);
    let recovered = recover_all([(1, damaged.clone()), (2, other.clone())]);
    assert!(recovered.messages.keys().eq([2, 4]));
    assert_eq!(recovered.findings, [Finding::HeaderLost { slot: Slot(1), is_rebuilt: true }]);
    damaged[2 * BLOCK_SIZE + RECORD_HEADER_SIZE] ^= 1;
    let recovered = recover_all([(1, damaged), (2, other)]);
    assert!(recovered.messages.keys().eq([4]));
    assert_eq!(recovered.findings, [Finding::HeaderLost { slot: Slot(1), is_rebuilt: false }]);
    assert_eq!((recovered.unfinished.len(), recovered.next_slot), (0, 3), "it is left alone");
}

#[test]
fn a_log_that_begins_beside_a_file_whose_log_is_not_known_stays_apart_from_it() {
    let mut damaged = segment(7, &[Open(40, 40, 40), Message(41, 40)]);
    damaged[..2 * BLOCK_SIZE].fill(0xa5);
    let recovered = recover_all([(1, damaged.clone())]);
    assert_eq!(recovered.findings, [Finding::HeaderLost { slot: Slot(1), is_rebuilt: false }]);
    assert_eq!((recovered.next_epoch, recovered.next_sequence, recovered.next_slot), (8, 42, 2));
    // The log that began: now it is known whose the file is.
    let recovered = recover_all([(1, damaged), (2, segment(8, &[Open(42, 42, 42), Message(43, 42)]))]);
    assert!(recovered.messages.keys().eq([41, 43]));
}

#[test]
fn a_file_of_zeros_was_never_finished() {
    let recovered = recover_all([(1, segment(1, &[Open(1, 1, 1)])), (2, vec![0; 1 << 20])]);
    assert_eq!((&recovered.unfinished[..], &recovered.findings[..]), (&[Slot(2)][..], &[][..]));
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
    let scan = scan_whole(&header, &octets);
    assert_eq!(scan.records.iter().map(|r| r.sequence).collect::<Vec<_>>(), [1, 3, 4]);
    let block = BLOCK_SIZE as u32;
    assert_eq!((scan.damaged.len(), &scan.damaged[0]), (1, &(6 * block..7 * block)));
}

#[test]
fn records_of_a_former_life_are_not_records() {
    let former = SegmentHeader { log: 3, epoch: 1, life: 5, size: 1 << 20 };
    let open = format::encode_open(1, &[]);
    let record = RecordHeader {
        life: former.life,
        sequence: 1,
        horizon: 1,
        payload_size: open.len() as u32,
        payload_crc: crc32c::crc32c(&open),
        kind: Kind::Open,
    };
    let octets = [&former.encode()[..], &record.encode(), &open].concat();
    assert_eq!(scan_whole(&former, &octets).records.len(), 1);
    let found = scan_whole(&SegmentHeader { life: 6, ..former }, &octets);
    assert!(found.records.is_empty() && found.damaged.is_empty());
}
