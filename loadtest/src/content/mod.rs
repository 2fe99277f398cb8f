//! The octets of every message: the same whenever they are asked for, and unlike those of every other message.
//!
//! A message is named by the run and its number ([`MessageId`]); its content begins with a field that says the name:
//! `X-Loadtest-Id: 1a2b3c4d-000000000042`. In a generated content every eighth line of the body says it as well, so that
//! a server that mixes the middles of two messages up is found out. A message of a corpus follows behind the field as it
//! is.
//!
//! What differs from message to message stands at known places ([`Shape::marks`]) of octets that are written once, before
//! the load begins: making a message is copying. [`Contents`] is what the load has of them, [`Contents::copy`] yields them
//! from any octet on, so that a short write can be gone on with from nothing but a number.

pub mod corpus;
mod generated;
mod sizes;

use std::fmt;
use std::io;
use std::path::PathBuf;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

pub use generated::{Generated, NAMED_SIZE_MIN};
pub use sizes::{SizeError, Sizes};

/// The field that names a message, as far as its value.
pub const ID_FIELD: &[u8] = b"X-Loadtest-Id: ";
/// Octets of a [`MessageId`] as text.
pub const ID_SIZE: usize = 21;

/// Sizes that are drawn from a distribution: so many stand for it.
const SAMPLE_COUNT: usize = 1024;

/// Where contents come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Made up, of these sizes.
    Sizes(Sizes),
    /// Real messages: a file in mbox format, or a folder of messages (a Maildir, or any tree of `.eml` files).
    Corpus(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Sizes(sizes) => write!(f, "sizes {sizes}"),
            Source::Corpus(path) => write!(f, "the corpus {}", path.display()),
        }
    }
}

/// Which run, and which of its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// Drawn by lot for each run.
    pub run: u32,
    /// From 0; below 10^12, which a run does not live to see.
    pub number: u64,
}

impl MessageId {
    /// As it stands in content and envelope.
    pub fn to_octets(self) -> [u8; ID_SIZE] {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut octets = [b'-'; ID_SIZE];
        for (i, octet) in octets[..8].iter_mut().enumerate() {
            *octet = HEX[(self.run >> (28 - 4 * i) & 15) as usize];
        }
        let mut rest = self.number;
        for octet in octets[9..].iter_mut().rev() {
            *octet = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        octets
    }

    /// The id that `text` is, if it is one.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() == ID_SIZE)?;
        let (run, number) = text.split_once('-').filter(|(run, _)| run.len() == 8)?;
        let id = MessageId { run: u32::from_str_radix(run, 16).ok()?, number: number.parse().ok()? };
        // Numbers are also read from texts that were not written here: a sign, capitals.
        (id.to_octets() == text.as_bytes()).then_some(id)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:012}", self.run, self.number)
    }
}

/// How contents travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// With DATA: dots are stuffed (RFC 5321 §4.5.2). The end-of-data is not part of it.
    Data,
    /// With BDAT: as they are.
    Chunk,
}

/// Octets with places for the id of a message.
pub struct Shape<'a> {
    /// All of them, the places filled with anything.
    pub octets: &'a [u8],
    /// Where the id goes, ascending.
    pub marks: &'a [usize],
}

/// Every content of a run, known by its index.
pub enum Contents {
    /// Made up.
    Generated(Generated),
    /// Real ones.
    Corpus(corpus::Corpus),
}

/// What a ledger keeps of the contents, from which all of them can be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Catalogue {
    /// Octets of the generated content of each index.
    Generated(Vec<usize>),
    /// The corpus message of each index.
    Corpus(Vec<corpus::Entry>),
}

impl Catalogue {
    /// How many contents there are.
    pub fn count(&self) -> usize {
        match self {
            Catalogue::Generated(sizes) => sizes.len(),
            Catalogue::Corpus(entries) => entries.len(),
        }
    }
}

impl Contents {
    /// Prepares what `source` says.
    ///
    /// # Errors
    /// Those of reading a corpus, and a corpus with nothing in it.
    pub fn prepare(source: &Source, seed: u64) -> io::Result<Self> {
        Ok(match source {
            Source::Sizes(sizes) => {
                let mut random = SmallRng::seed_from_u64(seed);
                Contents::Generated(Generated::new(sizes.sample(SAMPLE_COUNT, &mut random)))
            }
            Source::Corpus(path) => Contents::Corpus(corpus::Corpus::read(path)?),
        })
    }

    /// How many there are; at least one.
    pub fn count(&self) -> usize {
        match self {
            Contents::Generated(generated) => generated.count(),
            Contents::Corpus(corpus) => corpus.count(),
        }
    }

    /// One by lot: corpus messages take turns, in an order that `random` begins.
    pub fn choose(&self, random: &mut SmallRng) -> usize {
        match self.count() {
            1 => 0,
            count => random.random_range(0..count),
        }
    }

    /// Octets of content.
    pub fn size(&self, index: usize) -> usize {
        self.wire_size(index, Form::Chunk)
    }

    /// Octets on the wire, without an end-of-data.
    pub fn wire_size(&self, index: usize, form: Form) -> usize {
        match self {
            Contents::Generated(generated) => generated.size(index),
            Contents::Corpus(corpus) => corpus.shape(index, form).octets.len(),
        }
    }

    /// Whether it has octets above 127.
    pub fn is_8bit(&self, index: usize) -> bool {
        match self {
            Contents::Generated(_) => false,
            Contents::Corpus(corpus) => corpus.is_8bit(index),
        }
    }

    /// Whether every content is named, as a ledger needs it.
    pub fn are_named(&self) -> bool {
        match self {
            Contents::Generated(generated) => generated.are_named(),
            Contents::Corpus(_) => true,
        }
    }

    /// Appends octets of content `index` on the wire, from `offset`, as many as there are but no more than `size_max`.
    pub fn copy(
        &self,
        index: usize,
        id: &[u8; ID_SIZE],
        form: Form,
        offset: usize,
        size_max: usize,
        out: &mut Vec<u8>,
    ) {
        match self {
            Contents::Generated(generated) => generated.copy(index, id, offset, size_max, out),
            Contents::Corpus(corpus) => {
                let Shape { octets, marks } = corpus.shape(index, form);
                let end = octets.len().min(offset + size_max);
                copy_marked(octets, marks, id, offset, end, out);
            }
        }
    }

    /// For the ledger.
    pub fn catalogue(&self) -> Catalogue {
        match self {
            Contents::Generated(generated) => Catalogue::Generated(generated.sizes().to_vec()),
            Contents::Corpus(corpus) => Catalogue::Corpus(corpus.entries()),
        }
    }
}

/// Appends `octets[start..end]` with the id at every mark; a mark that is cut by the range is filled as far as it lies
/// within.
fn copy_marked(
    octets: &[u8],
    marks: &[usize],
    id: &[u8; ID_SIZE],
    start: usize,
    end: usize,
    out: &mut Vec<u8>,
) {
    let base = out.len();
    out.extend_from_slice(&octets[start..end]);
    let first = marks.partition_point(|mark| mark + ID_SIZE <= start);
    for &mark in marks[first..].iter().take_while(|mark| **mark < end) {
        let from = mark.max(start);
        let to = (mark + ID_SIZE).min(end);
        out[base + from - start..base + to - start].copy_from_slice(&id[from - mark..to - mark]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written() {
        for id in [MessageId { run: 0, number: 0 }, MessageId { run: 0xfedc_ba98, number: 999_999_999_999 }] {
            assert_eq!(id.to_octets(), id.to_string().as_bytes());
            assert_eq!(MessageId::parse(&id.to_octets()), Some(id));
        }
        for text in [
            "",
            "00000000-00000000000",
            "0000000-0000000000000",
            "00000000 000000000000",
            "+0000000-000000000000",
            "FEDCBA98-000000000000",
        ] {
            assert_eq!(MessageId::parse(text.as_bytes()), None, "{text}");
        }
    }
}
