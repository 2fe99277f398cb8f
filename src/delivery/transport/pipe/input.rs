//! What a command reads: a file with the lines in front and the whole content, without a name.
//!
//! A file and not a pipe: a command starts when all of it is there and was found undamaged. From a pipe it would take the end of a gateway
//! that was killed for the end of the message, and deliver the part it has. Small ones are in memory.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::delivery::{Attempt, CopyError};
use crate::limits::COPY_SIZE;

/// The largest input that is kept in memory, in octets.
const MEMORY_SIZE_MAX: u64 = 256 << 10;

/// How lines end in what a command reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineEnds {
    /// As programs of Unix want them: CRLF becomes LF. A CR or LF that stands alone is what it was.
    #[default]
    Lf,
    /// As they came.
    Crlf,
}

/// The input of one command or of several.
pub struct Input(File);

impl Input {
    /// `head`, in lines that end in CRLF, and the content of `attempt`. A large one is a file in `folder`.
    pub fn write(
        attempt: &Attempt,
        head: &str,
        line_ends: LineEnds,
        folder: &Path,
    ) -> Result<Input, CopyError> {
        let size = attempt.content_size() + head.len() as u64;
        let file = match size <= MEMORY_SIZE_MAX {
            true => memfd_create("message", MemfdFlags::CLOEXEC).map(File::from).map_err(io::Error::from),
            false => tempfile::tempfile_in(folder),
        };
        let file = file.map_err(CopyError::Write)?;
        let capacity = size.clamp(1, COPY_SIZE as u64) as usize;
        let mut sink = Sink { sink: BufWriter::with_capacity(capacity, file), line_ends, has_cr: false };
        sink.write_all(head.as_bytes()).map_err(CopyError::Write)?;
        attempt.copy_content(&mut sink)?;
        let file = sink.finish().map_err(CopyError::Write)?;
        // Whoever the command runs as, it may open its standard input again, by /dev/stdin. Nobody else can: it has no name.
        file.set_permissions(Permissions::from_mode(0o444)).map_err(CopyError::Write)?;
        Ok(Input(file))
    }

    /// The input from its first octet, to be read only.
    pub fn open(&self) -> io::Result<File> {
        OpenOptions::new().read(true).open(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// Writes lines with the ends that are wanted.
struct Sink<W: Write> {
    sink: BufWriter<W>,
    line_ends: LineEnds,
    /// A CR was the last octet, and was kept back.
    has_cr: bool,
}

impl<W: Write> Sink<W> {
    fn finish(mut self) -> io::Result<W> {
        if self.has_cr {
            self.sink.write_all(b"\r")?;
        }
        self.sink.into_inner().map_err(|e| e.into_error())
    }
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        if self.line_ends == LineEnds::Crlf {
            self.sink.write_all(octets)?;
            return Ok(octets.len());
        }
        let mut rest = octets;
        while !rest.is_empty() {
            if std::mem::take(&mut self.has_cr) && rest[0] != b'\n' {
                self.sink.write_all(b"\r")?;
            }
            let Some(cr) = memchr::memchr(b'\r', rest) else {
                self.sink.write_all(rest)?;
                break;
            };
            self.sink.write_all(&rest[..cr])?;
            self.has_cr = true;
            rest = &rest[cr + 1..];
        }
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cr_before_an_lf_goes_wherever_the_octets_are_cut() {
        let given = b"\r\na\r\n\r\r\nb\rc\nd\r\r\n\n\r\ne\r";
        let expected = b"\na\n\r\nb\rc\nd\r\n\n\ne\r";
        for first in 0..given.len() {
            for second in first..given.len() {
                let sink = BufWriter::new(Vec::new());
                let mut sink = Sink { sink, line_ends: LineEnds::Lf, has_cr: false };
                for part in [&given[..first], &given[first..second], &given[second..]] {
                    sink.write_all(part).unwrap();
                }
                let written = sink.finish().unwrap();
                assert_eq!(written.escape_ascii().to_string(), expected.escape_ascii().to_string());
            }
        }
    }
}
