//! The file of a greylist: a header, and records in the order in which things happened. The last of a key is what holds.
//!
//! ```text
//! header, 32 octets:  "incoming greylist 1\n", zeros
//! record, 32 octets, numbers little-endian:
//!    0   4  CRC-32C of the octets 4 to 32
//!    4   1  1 waiting, 2 passed, 3 network
//!    5   1  zero
//!    6   2  of a network: triples that have passed; otherwise zero
//!    8   8  when, in seconds since 1970
//!   16  16  the key
//! ```
//!
//! A record is valid if and only if its checksum is, its kind is one of the three, and its zeros are zero. What is not a valid record is
//! damage, and the next record is looked for at every octet behind it: whatever was torn, overwritten, cut out or put in, what is intact on
//! both sides is used. The file is replaced by a rename, so a rewrite is there in whole or not at all.
//!
//! Knows nothing of what the records mean.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// The size of a record, and of the header.
pub const RECORD_SIZE: usize = 32;
const HEADER: [u8; RECORD_SIZE] = *b"incoming greylist 1\n\0\0\0\0\0\0\0\0\0\0\0\0";
/// Read at a time.
const READ_SIZE: usize = 1 << 20;

const _: () = assert!(4 + 1 + 1 + 2 + 8 + 16 == RECORD_SIZE && READ_SIZE.is_multiple_of(RECORD_SIZE));

/// What has happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A triple was deferred for the first time.
    Waiting,
    /// It was let through.
    Passed,
    /// Of a network so many triples were.
    Network(u16),
}

/// What has happened, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub event: Event,
    pub unix_time: u64,
    pub key: [u8; 16],
}

/// What a file was found to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Valid records.
    pub records_count: u64,
    /// Octets that are part of none, but for a record cut short at the end: so ends what was being written when the process was.
    pub damaged_size: u64,
    /// Octets of the record that is cut short.
    pub torn_size: u64,
}

impl Record {
    pub fn encode(&self) -> [u8; RECORD_SIZE] {
        let (kind, count) = match self.event {
            Event::Waiting => (1, 0),
            Event::Passed => (2, 0),
            Event::Network(count) => (3, count),
        };
        let mut octets = [0; RECORD_SIZE];
        octets[4] = kind;
        octets[6..8].copy_from_slice(&u16::to_le_bytes(count));
        octets[8..16].copy_from_slice(&self.unix_time.to_le_bytes());
        octets[16..].copy_from_slice(&self.key);
        let checksum = crc32c::crc32c(&octets[4..]);
        octets[..4].copy_from_slice(&checksum.to_le_bytes());
        octets
    }

    fn decode(octets: &[u8; RECORD_SIZE]) -> Option<Record> {
        let number = |range: std::ops::Range<usize>| {
            octets[range].iter().rev().fold(0_u64, |number, octet| number << 8 | u64::from(*octet))
        };
        let count = number(6..8) as u16;
        let event = match (octets[4], octets[5], count) {
            (1, 0, 0) => Event::Waiting,
            (2, 0, 0) => Event::Passed,
            (3, 0, count) => Event::Network(count),
            _ => return None,
        };
        let is_intact = number(0..4) == u64::from(crc32c::crc32c(&octets[4..]));
        let key = octets[16..].try_into().expect("it has 16 octets");
        is_intact.then_some(Record { event, unix_time: number(8..16), key })
    }
}

/// Shows `restore` every valid record of `path`. A file that is not there is empty; nothing is changed.
pub fn read(path: &Path, restore: impl FnMut(Record)) -> io::Result<Contents> {
    match File::open(path) {
        Ok(file) => read_from(file, restore),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Contents::default()),
        Err(e) => Err(e),
    }
}

fn read_from(octets: impl Read, mut restore: impl FnMut(Record)) -> io::Result<Contents> {
    let mut octets = BufReader::with_capacity(READ_SIZE, octets);
    let mut contents = Contents::default();
    // What is looked at: a record's octets, moved on by as many as were understood.
    let mut window = [0; RECORD_SIZE];
    let mut size = fill(&mut octets, &mut window, 0)?;
    let mut is_first = true;
    let mut is_after_damage = false;
    while size == RECORD_SIZE {
        let record = Record::decode(&window);
        let is_header = is_first && window == HEADER;
        is_first = false;
        if let Some(record) = record {
            contents.records_count += 1;
            restore(record);
        }
        if record.is_some() || is_header {
            is_after_damage = false;
            size = fill(&mut octets, &mut window, 0)?;
        } else {
            is_after_damage = true;
            contents.damaged_size += 1;
            window.copy_within(1.., 0);
            size = fill(&mut octets, &mut window, RECORD_SIZE - 1)?;
        }
    }
    match is_after_damage {
        true => contents.damaged_size += size as u64,
        false => contents.torn_size = size as u64,
    }
    Ok(contents)
}

/// Fills `window` from `start` on, as far as there is something; how much it holds.
fn fill(octets: &mut impl Read, window: &mut [u8], start: usize) -> io::Result<usize> {
    let mut size = start;
    while size < window.len() {
        match octets.read(&mut window[size..]) {
            Ok(0) => break,
            Ok(count) => size += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(size)
}

/// A file that is being written to.
pub struct Journal {
    file: File,
    /// Records in it.
    pub records_count: u64,
}

impl Journal {
    /// The file that [`read`] has found to hold `found`, without a record cut short at its end. It must be intact otherwise.
    pub fn open(path: &Path, found: Contents) -> io::Result<Journal> {
        make_folder(path)?;
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        match size - found.torn_size.min(size) {
            0 => {
                file.set_len(0)?;
                file.write_all(&HEADER)?;
            }
            intact => file.set_len(intact)?,
        }
        Ok(Journal { file, records_count: found.records_count })
    }

    /// A new file in place of the one that may be there, with the records that `write` gives. It is on the disk before it has the name.
    pub fn replace(path: &Path, write: impl FnOnce(&mut dyn FnMut(Record))) -> io::Result<Journal> {
        make_folder(path)?;
        let aside = with_suffix(path, "new");
        let mut file = BufWriter::with_capacity(READ_SIZE, File::create(&aside)?);
        let mut records_count = 0;
        let mut written = file.write_all(&HEADER);
        write(&mut |record| {
            records_count += 1;
            if written.is_ok() {
                written = file.write_all(&record.encode());
            }
        });
        written?;
        file.into_inner()?.sync_all()?;
        fs::rename(&aside, path)?;
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(Journal { file, records_count })
    }

    /// Appends records that [`Record::encode`] has made. In the page cache when it returns: the end of the process does not lose them.
    pub fn append(&mut self, records: &[u8]) -> io::Result<()> {
        self.file.write_all(records)?;
        self.records_count += (records.len() / RECORD_SIZE) as u64;
        Ok(())
    }

    /// Has it on the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Keeps a file that is damaged for whoever wants to look at it, in place of one that was kept before.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = with_suffix(path, "damaged");
    // A copy: until it is replaced, the file with what is intact is there.
    fs::copy(path, &aside)?;
    Ok(aside)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{suffix}"));
    path.with_file_name(name)
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u8) -> Record {
        let event = match n % 3 {
            0 => Event::Waiting,
            1 => Event::Passed,
            _ => Event::Network(n.into()),
        };
        Record { event, unix_time: 1_800_000_000 + u64::from(n), key: [n; 16] }
    }

    fn file(count: u8) -> Vec<u8> {
        let mut octets = HEADER.to_vec();
        (1..=count).for_each(|n| octets.extend(record(n).encode()));
        octets
    }

    fn read_all(octets: &[u8]) -> (Vec<Record>, Contents) {
        let mut records = Vec::new();
        let contents = read_from(octets, |record| records.push(record)).unwrap();
        assert_eq!(contents.records_count, records.len() as u64);
        (records, contents)
    }

    #[test]
    fn these_are_the_octets_of_a_record() {
        let record = Record { event: Event::Network(5), unix_time: 0x0102_0304, key: *b"0123456789abcdef" };
        let golden = b"\x03\0\x05\0\x04\x03\x02\x01\0\0\0\x000123456789abcdef";
        let octets = record.encode();
        assert_eq!(octets[4..], golden[..]);
        assert_eq!(octets[..4], crc32c::crc32c(golden).to_le_bytes());
        assert_eq!(octets[..4], 0x461e_6494_u32.to_le_bytes());
        assert_eq!(Record::decode(&octets), Some(record));
    }

    #[test]
    fn a_file_cut_anywhere_gives_what_is_before_the_cut() {
        let whole = file(5);
        for size in 0..=whole.len() {
            let (records, contents) = read_all(&whole[..size]);
            let count = (size / RECORD_SIZE).saturating_sub(1);
            assert_eq!(records, (1..=count as u8).map(record).collect::<Vec<_>>(), "cut at {size}");
            let torn_size = (size % RECORD_SIZE) as u64;
            assert_eq!((contents.torn_size, contents.damaged_size), (torn_size, 0), "cut at {size}");
        }
    }

    #[test]
    fn damage_costs_what_it_touches_and_no_more() {
        let whole = file(5);
        for at in 0..whole.len() {
            let touched = (at / RECORD_SIZE) as u8;
            let intact: Vec<_> = (1..=5).filter(|n| *n != touched).map(record).collect();
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            let (records, contents) = read_all(&flipped);
            assert_eq!((records, contents.damaged_size), (intact.clone(), 32), "flipped at {at}");
            // An octet too many, and one too few: what follows is found again. At the edge of a record nothing is lost.
            let mut longer = whole.clone();
            longer.insert(at, 0xAA);
            let (records, contents) = read_all(&longer);
            let expected = if at % RECORD_SIZE == 0 { (1..=5).map(record).collect() } else { intact.clone() };
            assert_eq!(records, expected, "inserted at {at}");
            assert!(contents.damaged_size > 0);
            let mut shorter = whole.clone();
            shorter.remove(at);
            let (records, contents) = read_all(&shorter);
            assert_eq!(records, intact, "removed at {at}");
            assert!(contents.damaged_size + contents.torn_size == 31, "{contents:?}");
        }
    }

    #[test]
    fn garbage_and_zeros_hold_no_record() {
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        let garbage: Vec<u8> = (0..100_000).map(|_| random()).collect();
        for octets in [vec![0; 4096], vec![0xff; 4096], garbage] {
            let (records, contents) = read_all(&octets);
            assert!(records.is_empty());
            assert_eq!(contents.damaged_size, octets.len() as u64);
        }
    }

    #[test]
    fn what_is_appended_is_read_again_behind_what_was_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("folder/name");
        let mut journal = Journal::open(&path, Contents::default()).unwrap();
        journal.append(&record(1).encode()).unwrap();
        journal.append(&record(2).encode()[..20]).unwrap();
        drop(journal);
        let found = read(&path, |_| ()).unwrap();
        assert_eq!(found, Contents { records_count: 1, damaged_size: 0, torn_size: 20 });
        let mut journal = Journal::open(&path, found).unwrap();
        journal.append(&record(3).encode()).unwrap();
        assert_eq!(journal.records_count, 2);
        let (records, _) = read_all(&fs::read(&path).unwrap());
        assert_eq!(records, [record(1), record(3)]);
        // Replaced, and written to behind that.
        let mut journal = Journal::replace(&path, |write| (7..9).for_each(|n| write(record(n)))).unwrap();
        journal.append(&record(9).encode()).unwrap();
        let (records, contents) = read_all(&fs::read(&path).unwrap());
        assert_eq!(records, [record(7), record(8), record(9)]);
        assert_eq!(contents, Contents { records_count: 3, damaged_size: 0, torn_size: 0 });
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }
}
