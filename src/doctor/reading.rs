//! Files of `/proc` and `/sys`: small, of one value or of lines, and often not there.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// More than any of these files has; of a larger one the beginning is read.
const SIZE_MAX: u64 = 4 << 20;

/// Why something cannot be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unseen(pub String);

impl Unseen {
    pub fn because(why: impl Into<String>) -> Self {
        Unseen(why.into())
    }
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was seen, or why it was not.
pub type Seen<T> = Result<T, Unseen>;

/// The text of a file, without space around it.
pub fn text(path: impl AsRef<Path>) -> Seen<String> {
    let path = path.as_ref();
    let mut octets = Vec::new();
    let read = File::open(path).and_then(|file| file.take(SIZE_MAX).read_to_end(&mut octets));
    read.map_err(|e| Unseen(format!("{}: {e}", path.display())))?;
    Ok(String::from_utf8_lossy(&octets).trim().to_string())
}

/// The number that a file consists of.
pub fn number<T: std::str::FromStr>(path: impl AsRef<Path>) -> Seen<T> {
    let path = path.as_ref();
    let text = text(path)?;
    text.parse().map_err(|_| Unseen(format!("{} says {text:?}", path.display())))
}

/// The names in a folder, sorted; none where it is not there.
pub fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// What follows `name:` on a line of its own.
pub fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

/// A number of octets for people.
pub fn octets(count: u64) -> String {
    bytesize::ByteSize(count).to_string()
}
