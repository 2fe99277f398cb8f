use std::fs;

use super::*;
use crate::content::{Catalogue, Contents, Form, Generated, Source};
use crate::ledger::Writer;

const RUN: u32 = 0x1a2b_3c4d;
const SIZE: usize = 3000;

/// What a server did to a message.
type Alter = fn(&mut Vec<u8>);

/// A ledger of messages 0 to 9, and a Maildir that has each of them once.
struct Trial {
    folder: tempfile::TempDir,
    contents: Contents,
}

impl Trial {
    fn new() -> Self {
        let contents = Contents::Generated(Generated::new(vec![SIZE, 200_000]));
        Trial::of(contents, 1)
    }

    fn of(contents: Contents, recipients: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["new", "cur", "tmp"] {
            fs::create_dir_all(folder.path().join("mail").join(name)).unwrap();
        }
        let trial = Trial { folder, contents };
        let header = Header::new(RUN, 0, "mx".to_owned(), trial.contents.catalogue());
        Writer::create(&trial.ledger(), &header).unwrap();
        let mut writer = Writer::append(&trial.ledger()).unwrap();
        for number in 0..10 {
            writer
                .note(number, Entry { content: trial.index(number), recipients, milliseconds: number * 100 });
            trial.deliver(&format!("new/{number}"), &trial.sent(number));
        }
        writer.write().unwrap();
        trial
    }

    fn ledger(&self) -> PathBuf {
        self.folder.path().join("ledger")
    }

    fn index(&self, number: u64) -> usize {
        number as usize % self.contents.count()
    }

    fn sent(&self, number: u64) -> Vec<u8> {
        let mut octets = Vec::new();
        let id = MessageId { run: RUN, number }.to_octets();
        let index = self.index(number);
        self.contents.copy(index, &id, Form::Chunk, 0, usize::MAX / 2, &mut octets);
        octets
    }

    fn deliver(&self, name: &str, octets: &[u8]) {
        fs::write(self.folder.path().join("mail").join(name), octets).unwrap();
    }

    fn question(&self) -> Question {
        Question {
            ledger: self.ledger(),
            folders: vec![self.folder.path().join("mail")],
            is_per_recipient: false,
            list_max: 10,
        }
    }

    fn verify(&self) -> Findings {
        verify(&self.question()).unwrap()
    }
}

fn numbers<T>(named: &[Named<T>]) -> Vec<u64> {
    named.iter().map(|named| MessageId::parse(named.id.as_bytes()).unwrap().number).collect()
}

#[test]
fn what_is_there_once_as_it_was_sent_is_good() {
    let findings = Trial::new().verify();
    assert!(findings.are_good(true));
    assert_eq!((findings.acknowledged, findings.delivered, findings.files), (10, 10, 10));
    assert_eq!(findings.lf_line_ends, 0);
}

#[test]
fn each_missing_message_is_named_with_its_time() {
    let trial = Trial::new();
    for number in [3, 7] {
        fs::remove_file(trial.folder.path().join(format!("mail/new/{number}"))).unwrap();
    }
    // What is being delivered is not delivered.
    trial.deliver("tmp/3", &trial.sent(3));
    let findings = trial.verify();
    assert!(!findings.are_good(false));
    assert_eq!((findings.missing, findings.missing_copies, findings.delivered), (2, 2, 8));
    assert_eq!(numbers(&findings.first_missing), [3, 7]);
    assert_eq!(findings.first_missing[1].milliseconds, Some(700));
    assert!(findings.to_string().contains("1a2b3c4d-000000000007   acknowledged at 700 ms"), "{findings}");
}

#[test]
fn copies_too_many_are_told_and_are_a_fault_only_if_asked_for() {
    let trial = Trial::new();
    trial.deliver("cur/a", &trial.sent(4));
    trial.deliver("cur/b", &trial.sent(4));
    let findings = trial.verify();
    assert!(findings.are_good(false) && !findings.are_good(true));
    assert_eq!((findings.duplicated, findings.surplus_copies), (1, 2));
    assert_eq!(findings.first_duplicated[0].what, Copies { found: 3, expected: 1 });
}

#[test]
fn a_copy_for_each_recipient_is_expected_where_it_is_said_so() {
    let trial = Trial::of(Contents::Generated(Generated::new(vec![SIZE])), 2);
    for number in 0..10 {
        trial.deliver(&format!("cur/{number}"), &trial.sent(number));
    }
    assert_eq!(trial.verify().duplicated, 10);
    let question = Question { is_per_recipient: true, ..trial.question() };
    assert!(verify(&question).unwrap().are_good(true));
    fs::remove_file(trial.folder.path().join("mail/cur/5")).unwrap();
    trial.deliver("cur/6b", &trial.sent(6));
    let findings = verify(&question).unwrap();
    assert_eq!((findings.missing, findings.missing_copies), (1, 1));
    assert_eq!(findings.first_missing[0].what, Copies { found: 1, expected: 2 });
    assert_eq!(numbers(&findings.first_duplicated), [6]);
}

#[test]
fn an_alteration_is_found_at_its_octet() {
    let long = 200_000;
    let table: [(u64, Alter, Alteration); 8] = [
        (0, |octets| octets[2999] ^= 1, Alteration::Differs { octet: 2999 }),
        (0, |octets| octets[1500] = b'#', Alteration::Differs { octet: 1500 }),
        (0, |octets| octets[0] = b'x', Alteration::Differs { octet: 0 }),
        (1, |octets| octets[150_000] ^= 0x80, Alteration::Differs { octet: 150_000 }),
        (1, |octets| octets.truncate(70_000), Alteration::Ends { size: 70_000, expected: long }),
        (0, |octets| octets.extend_from_slice(b"\r\n"), Alteration::GoesOn { expected: SIZE as u64 }),
        (1, |octets| drop(octets.drain(65_000..66_000)), Alteration::Differs { octet: 0 }),
        // One line end of many: not a change of line ends.
        (0, |octets| _ = octets.remove(36), Alteration::Differs { octet: 36 }),
    ];
    for (number, alter, expected) in table {
        let trial = Trial::new();
        let mut octets = trial.sent(number);
        alter(&mut octets);
        trial.deliver(&format!("new/{number}"), &octets);
        let findings = trial.verify();
        assert!(!findings.are_good(false));
        assert_eq!((findings.altered, findings.missing, findings.duplicated), (1, 0, 0), "{expected:?}");
        assert_eq!(numbers(&findings.first_altered), [number]);
        let found = &findings.first_altered[0].what.alteration;
        match (found, &expected) {
            // Where a run of letters meets one that is like it is the generator's affair.
            (Alteration::Differs { octet }, Alteration::Differs { octet: 0 }) if number == 1 => {
                assert!((65_000..65_700).contains(octet), "{octet}");
            }
            _ => assert_eq!(found, &expected),
        }
    }
}

#[test]
fn two_messages_whose_middles_were_exchanged_are_both_altered() {
    let trial = Trial::new();
    let (mut two, mut four) = (trial.sent(2), trial.sent(4));
    two[1000..2000].swap_with_slice(&mut four[1000..2000]);
    trial.deliver("new/2", &two);
    trial.deliver("new/4", &four);
    let findings = trial.verify();
    assert_eq!(numbers(&findings.first_altered), [2, 4]);
}

#[test]
fn fields_above_the_name_and_changed_line_ends_are_no_alteration() {
    let trial = Trial::new();
    let trace = b"Return-Path: <a@b.test>\nReceived: from x\n\tby y; Mon\nDelivered-To: z\n";
    for number in 0..5 {
        let text = String::from_utf8(trial.sent(number)).unwrap().replace("\r\n", "\n");
        trial.deliver(&format!("new/{number}"), &[trace, text.as_bytes()].concat());
    }
    let findings = trial.verify();
    assert!(findings.are_good(true), "{findings}");
    assert_eq!(findings.lf_line_ends, 5);
    assert_eq!(findings.to_string().matches("line ends were changed to LF in 5 messages").count(), 1);
    // An alteration is found in those as well, and told where it is in what was sent.
    let mut text = String::from_utf8(trial.sent(0)).unwrap();
    text.replace_range(1999..2000, "#");
    trial.deliver("new/0", text.replace("\r\n", "\n").as_bytes());
    let findings = trial.verify();
    assert_eq!(findings.first_altered[0].what.alteration, Alteration::Differs { octet: 1999 });
}

#[test]
fn what_the_ledger_does_not_know_is_counted_and_no_fault() {
    let trial = Trial::new();
    let other = String::from_utf8(trial.sent(0)).unwrap().replace("1a2b3c4d", "1a2b3c4e");
    trial.deliver("new/other", other.as_bytes());
    trial.deliver("new/unacknowledged", &trial.sent(77));
    trial.deliver("new/torn-name", b"X-Loadtest-Id: 1a2b3c4d-00000000000\r\n\r\n");
    trial.deliver("new/empty", b"");
    trial.deliver("new/in-the-body", &[b"Subject: a\r\n\r\n", trial.sent(0).as_slice()].concat());
    trial.deliver("new/0.json", &trial.sent(0));
    let findings = trial.verify();
    assert!(findings.are_good(true));
    assert_eq!((findings.other_runs, findings.unacknowledged, findings.nameless), (1, 1, 3));
    assert_eq!(numbers(&findings.first_unacknowledged), [77]);
    assert_eq!(findings.files, 15);
}

#[test]
fn messages_of_a_corpus_are_known_by_size_and_checksum() {
    let source = tempfile::tempdir().unwrap();
    for (name, octets) in [
        ("a.eml", b".\n..dots\n.".as_slice()),
        ("b.eml", b"\xff\xfe 8-bit\r\n\r\nno end"),
        ("c.eml", b""),
        ("d.eml", &[b'y'; 100_000]),
    ] {
        fs::write(source.path().join(name), octets).unwrap();
    }
    let contents = || Contents::prepare(&Source::Corpus(source.path().to_owned()), 1).unwrap();
    assert!(Trial::of(contents(), 1).verify().are_good(true));
    let whole = Trial::of(contents(), 1).sent(3).len();
    let table: [(u64, Alter, Alteration); 5] = [
        (3, |octets| octets[80_000] = b'Y', Alteration::Checksum),
        (3, |octets| octets.truncate(90_000), Alteration::Size { size: 89_962, expected: 100_002 }),
        (
            3,
            |octets| octets.extend_from_slice(b"\r\n"),
            Alteration::Size { size: 100_004, expected: 100_002 },
        ),
        (2, |octets| octets.truncate(36), Alteration::Ends { size: 36, expected: 38 }),
        (3, |octets| octets[37] = b' ', Alteration::Differs { octet: 37 }),
    ];
    assert_eq!(whole, 38 + 100_002);
    for (number, alter, expected) in table {
        let trial = Trial::of(contents(), 1);
        let mut octets = trial.sent(number);
        alter(&mut octets);
        trial.deliver(&format!("new/{number}"), &octets);
        let findings = trial.verify();
        assert_eq!(findings.first_altered[0].what.alteration, expected);
    }
    assert!(matches!(contents().catalogue(), Catalogue::Corpus(_)));
}

#[test]
fn the_lowest_numbers_are_named_and_all_are_counted() {
    let trial = Trial::new();
    for number in 0..10 {
        let mut octets = trial.sent(number);
        octets[100] ^= 1;
        trial.deliver(&format!("new/{number}"), &octets);
    }
    let findings = verify(&Question { list_max: 3, ..trial.question() }).unwrap();
    assert_eq!(findings.altered, 10);
    assert_eq!(numbers(&findings.first_altered), [0, 1, 2]);
    assert!(findings.to_string().contains("and 7 more"), "{findings}");
    let findings = verify(&Question { list_max: 0, ..trial.question() }).unwrap();
    assert_eq!((findings.altered, findings.first_altered.len()), (10, 0));
}

#[test]
fn what_cannot_be_read_is_said_by_name() {
    let trial = Trial::new();
    let fault = |question: &Question| verify(question).unwrap_err().to_string();
    let gone = trial.folder.path().join("gone");
    let question = Question { ledger: gone.clone(), ..trial.question() };
    assert!(fault(&question).starts_with(&format!("the ledger {}: ", gone.display())));
    let question = Question { folders: vec![gone.clone()], ..trial.question() };
    assert!(fault(&question).starts_with(&format!("{}: ", gone.display())));
    let question = Question { folders: vec![trial.ledger()], ..trial.question() };
    assert!(fault(&question).starts_with(&format!("{}: ", trial.ledger().display())));
    let mail = trial.folder.path().join("mail");
    for second in [mail.clone(), mail.join("new"), trial.folder.path().to_owned()] {
        let question = Question { folders: vec![mail.clone(), second], ..trial.question() };
        assert!(fault(&question).contains("given twice"));
    }
}
