//! The files that an acceptor is made of: all read at once, parsed later.
//!
//! What is compared to know whether they have changed is what is in them, not their times: a symlink that now
//! points elsewhere, a file written over within one tick of the clock and one that became readable are seen
//! alike, and one that was merely touched is not. They are small, and read every few seconds at most.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};

/// The largest file that is read, in octets. A chain is a few KiB, all authorities of a system about 250 KiB.
const FILE_SIZE_MAX: u64 = 4 << 20;

/// A digest of what is in a set of files, or why it cannot be read.
pub(super) type Digest = [u8; 32];

/// What is in a set of files, as it was at one time.
#[derive(Debug, Default)]
pub(super) struct Files {
    contents: BTreeMap<PathBuf, io::Result<Vec<u8>>>,
}

impl Files {
    /// Reads all of them. That one cannot be read is told by [`Files::content`], when it is wanted.
    pub(super) fn read<'a>(paths: impl Iterator<Item = &'a Path>) -> Self {
        let mut contents = BTreeMap::new();
        for path in paths {
            contents.entry(path.to_owned()).or_insert_with(|| read(path));
        }
        Files { contents }
    }

    /// What is in one of them.
    ///
    /// # Errors
    /// Why it could not be read.
    pub(super) fn content(&self, path: &Path) -> Result<&[u8], &io::Error> {
        match self.contents.get(path) {
            Some(content) => content.as_deref(),
            None => Ok(&[]),
        }
    }

    /// A digest of all of it.
    pub(super) fn digest(&self) -> Digest {
        digest(self.contents.values())
    }

    /// A digest of what is in some of them.
    pub(super) fn digest_of<'a>(&self, paths: impl IntoIterator<Item = &'a Path>) -> Digest {
        digest(paths.into_iter().filter_map(|path| self.contents.get(path)))
    }

    /// As if `content` had been read from `path`.
    pub(super) fn insert(&mut self, path: &Path, content: &[u8]) {
        self.contents.insert(path.to_owned(), Ok(content.to_vec()));
    }
}

fn digest<'a>(contents: impl Iterator<Item = &'a io::Result<Vec<u8>>>) -> Digest {
    let mut context = Context::new(&SHA256);
    for content in contents {
        // Lengths keep the end of one file from counting as the beginning of the next.
        match content {
            Ok(octets) => {
                context.update(&(octets.len() as u64).to_be_bytes());
                context.update(octets);
            }
            Err(error) => {
                let words = error.to_string();
                context.update(&(!(words.len() as u64)).to_be_bytes());
                context.update(words.as_bytes());
            }
        }
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Asked before it is opened: opening a FIFO waits for who writes to it.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(FILE_SIZE_MAX + 1).read_to_end(&mut content)?;
    match content.len() as u64 > FILE_SIZE_MAX {
        true => Err(io::Error::other("it is larger than 4 MiB, too large for certificates")),
        false => Ok(content),
    }
}
