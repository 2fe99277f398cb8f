use super::*;
use std::sync::Arc;

use crate::mail::{
    Arrival, Body, ClientCertificate, Dsn, Envelope, EnvelopeId, ForwardPath, MessageId, Notify,
    OriginalRecipient, Protocol, Provenance, RecipientDsn, Ret, ReversePath, Tag, Tls, TlsVersion,
};

fn envelope() -> (Envelope, Arrival) {
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
        via: None,
    };
    let arrival = Arrival {
        peer: "[::1]:25".parse().unwrap(),
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
    (envelope, arrival)
}

#[test]
fn what_is_encoded_is_decoded() {
    let header = SegmentHeader { log: 7, epoch: 8, life: 9, size: 1 << 20 };
    assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));

    let (envelope, arrival) = envelope();
    let pieces = [(3, 8192, 100), (4, 16384, 50)].map(|(epoch, offset, size)| PieceRef {
        epoch,
        sequence: epoch,
        offset,
        size,
    });
    let tried = RecipientOutcome {
        index: 0,
        is_done: true,
        is_given_up: false,
        attempts: 1,
        next_attempt: 0,
        reason: "".into(),
    };
    let tried =
        TargetOutcomes { target: "archive".into(), here_only: true, recipients: vec![tried], order: None };
    let hold = Order { kind: OrderKind::Hold, unix_millis: 1, by: "operator".into(), note: "why".into() };
    let held = TargetOutcomes { order: Some(Box::new(hold)), ..TargetOutcomes::default() };
    let progress = [tried, held];
    let head = MessageHead {
        sequence: 5,
        content_size: 154,
        pieces: &pieces,
        envelope: EnvelopeOctets::Of(&envelope, &arrival),
        progress: &progress,
        trace_size: 5,
        tail_size: 4,
    };
    let mut payload = Vec::new();
    head.encode(&mut payload);
    payload.extend_from_slice(b"tracetail");
    let message = MessagePayload::decode(&payload).unwrap();
    assert_eq!((message.sequence, message.content_size, &message.pieces[..]), (5, 154, &pieces[..]));
    assert_eq!((message.trace, message.tail), (&b"trace"[..], &b"tail"[..]));
    assert_eq!(decode_envelope(message.envelope), Some((envelope.clone(), arrival.clone())));
    assert_eq!(payload.len(), head.payload_size());
    assert_eq!(message.progress, progress);
    let again = MessageHead { envelope: EnvelopeOctets::Encoded(message.envelope), ..head };
    let mut copied = Vec::new();
    again.encode(&mut copied);
    assert_eq!([&copied[..], b"tracetail"].concat(), payload);
    assert_eq!(again.payload_size(), payload.len());

    let deferred = RecipientOutcome {
        index: 1,
        is_done: false,
        is_given_up: false,
        attempts: 3,
        next_attempt: 99,
        reason: "451 busy".into(),
    };
    let mut payload = Vec::new();
    let made = Made { unix_millis: 1_700_000_000_123, duration_millis: 42 };
    let heads = [
        OutcomeHead {
            sequence: 5,
            is_message_done: true,
            made: Made::default(),
            target: "",
            here_only: false,
        },
        OutcomeHead { sequence: 6, is_message_done: false, made, target: "store", here_only: true },
    ];
    let recipients = [vec![], vec![deferred]];
    for (head, recipients) in heads.into_iter().zip(&recipients) {
        encode_outcome(head, recipients, &mut payload);
    }
    let entry = |head: OutcomeHead<'_>, recipients: &Vec<_>| OutcomeEntry {
        sequence: head.sequence,
        is_message_done: head.is_message_done,
        made: head.made,
        outcomes: TargetOutcomes {
            target: head.target.into(),
            here_only: head.here_only,
            recipients: recipients.clone(),
            order: None,
        },
    };
    let expected = [entry(heads[0], &recipients[0]), entry(heads[1], &recipients[1])];
    assert_eq!(decode_outcomes(&payload).unwrap(), expected);
}

#[test]
fn what_a_message_came_out_of_is_kept() {
    let id = MessageId { log: u32::MAX, sequence: u64::MAX - 1 };
    let session = Provenance::Session { connected: u64::MAX, waited_millis: u32::MAX, number: u16::MAX };
    for provenance in [Provenance::Unknown, session, Provenance::Resent(id), Provenance::About(id)] {
        let (envelope, arrival) = envelope();
        let arrival = Arrival { provenance, ..arrival };
        let head = MessageHead {
            sequence: 5,
            content_size: 0,
            pieces: &[],
            envelope: EnvelopeOctets::Of(&envelope, &arrival),
            progress: &[],
            trace_size: 0,
            tail_size: 0,
        };
        let mut payload = Vec::new();
        head.encode(&mut payload);
        assert_eq!(payload.len(), head.payload_size());
        let message = MessagePayload::decode(&payload).unwrap();
        assert_eq!(decode_envelope(message.envelope), Some((envelope, arrival)));
    }
}

#[test]
fn either_header_block_is_enough_and_a_strange_version_is_named() {
    let header = SegmentHeader { log: 7, epoch: 8, life: 9, size: 1 << 20 };
    for damaged in [0, BLOCK_SIZE] {
        let mut blocks = header.encode();
        blocks[damaged + 20] ^= 1;
        assert_eq!(SegmentHeader::decode(&blocks), Ok(header));
    }
    assert_eq!(SegmentHeader::decode(&[0; 8192]), Err(BadHeader::NotAHeader));
    let mut blocks = header.encode();
    blocks[8] = 2;
    let crc = crc32c::crc32c(&blocks[..36]);
    blocks[36..40].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(SegmentHeader::decode(&blocks), Err(BadHeader::UnknownVersion(2)));
}

#[test]
fn a_record_with_any_bit_flipped_is_not_valid() {
    let payload = *b"payload";
    let header = RecordHeader {
        life: 11,
        sequence: 12,
        horizon: 13,
        payload_size: 7,
        payload_crc: crc32c::crc32c(&payload),
        kind: Kind::Piece,
    };
    let mut record = header.encode().to_vec();
    record.extend_from_slice(&payload);
    assert_eq!(decode_record(&record, 11), Some((header, &payload[..])));
    assert_eq!(decode_record(&record, 10), None, "another life");
    assert_eq!(decode_record(&record[..record.len() - 1], 11), None, "beyond the end");
    for bit in 0..record.len() * 8 {
        record[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_record(&record, 11), None, "bit {bit}");
        record[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn damaged_payloads_are_refused_not_trusted() {
    let (envelope, arrival) = envelope();
    let head = MessageHead {
        sequence: 5,
        content_size: 4,
        pieces: &[],
        envelope: EnvelopeOctets::Of(&envelope, &arrival),
        progress: &[],
        trace_size: 0,
        tail_size: 4,
    };
    let mut payload = Vec::new();
    head.encode(&mut payload);
    payload.extend_from_slice(b"tail");
    for size in 0..payload.len() {
        assert_eq!(MessagePayload::decode(&payload[..size]), None);
    }
    payload[16] = 0xff;
    assert_eq!(MessagePayload::decode(&payload), None);
    assert_eq!(decode_outcomes(&[1, 2, 3]), None);
}

#[test]
fn an_index_tells_what_it_was_told() {
    let piece = |sequence| PieceRef { epoch: 3, sequence, offset: 8192, size: 100 };
    let many: Vec<PieceRef> = (0..17).map(piece).collect();
    let mut index = IndexBuilder::default();
    index.add(10, Kind::Open, 8192, 12);
    index.add(11, Kind::Piece, 8256, 100);
    index.add(12, Kind::Message, 8408, 300);
    index.add_message(12, 2, &many[..16], false);
    index.add(13, Kind::Message, 8760, 300);
    index.add_message(7, 1, &many, false);
    index.add(14, Kind::Message, 9112, 300);
    index.add_message(8, 1, &[], true);
    let page = IndexPayload::decode(&index.payload()).unwrap();
    assert_eq!((page.previous, page.first, page.entries.len()), (0, 10, 5));
    let pieces: Vec<_> = page
        .entries
        .iter()
        .filter_map(|entry| entry.message.clone())
        .map(|m| (m.sequence, m.recipient_count, m.pieces))
        .collect();
    assert_eq!(pieces, [(12, 2, Some(many[..16].into())), (7, 1, None), (8, 1, None)]);
    let payload = index.payload();
    for size in 0..payload.len() {
        assert_eq!(IndexPayload::decode(&payload[..size]), None, "{size}");
    }
    index.begin(9464);
    index.add(15, Kind::Index, 9464, 500);
    assert_eq!(index.seal(), Seal { next_sequence: 16, index: 9464 });
    let seal = index.seal();
    let block = seal.encode(77);
    assert_eq!((Seal::decode(&block, 77), Seal::decode(&block, 78)), (Some(seal), None));
}

#[test]
fn the_largest_index_record_is_as_large_as_it_says() {
    let pieces = [PieceRef { epoch: 1, sequence: 1, offset: 1, size: 1 }; 16];
    let mut index = IndexBuilder::default();
    for sequence in 1.. {
        if index.is_full() {
            break;
        }
        index.add(sequence, Kind::Message, 8192, 100);
        index.add_message(sequence, 1, &pieces, false);
        assert!(record_size(index.payload().len()) <= INDEX_RECORD_SIZE_MAX);
    }
}
