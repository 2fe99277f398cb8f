//! Octets to command lines, within a bound.
//!
//! Only CRLF ends a command. A line with a bare CR or LF inside is one (bad) command: nothing behind the bare
//! octet is read as another command before the true CRLF.
//!
//! A line that arrives in one input is borrowed from it. The rest of a line is kept until its end comes, and
//! nothing is kept between lines.

use std::borrow::Cow;

use memchr::memchr_iter;

/// Octets of an over-long line that are skipped in search of its end. Far above any honest mistake, and cheap
/// to skip.
pub const SKIPPED_SIZE_MAX: usize = 64 << 10;

/// Octets that are kept of an over-long line: a verb, and a little in front of it.
const HEAD_SIZE: usize = 8;

/// The first octet of a TLS record with a handshake in it. No command begins so, and a CRLF may never follow.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a call of [`LineReader::take`] took.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken<'a> {
    /// The beginning of a line.
    Part,
    /// A line, without its CRLF.
    Line(Cow<'a, [u8]>),
    /// The end of a line that is longer than permitted; it was skipped. Its first octets tell which command it was to be.
    TooLong { head: [u8; HEAD_SIZE] },
    /// More than [`SKIPPED_SIZE_MAX`] octets without an end of line.
    Endless,
    /// The peer speaks TLS.
    Tls,
}

/// Cuts the input into lines. The result does not depend on how the input is split.
#[derive(Debug, Default)]
pub struct LineReader {
    /// The line so far; of an over-long line only its last octet.
    partial: Vec<u8>,
    /// Octets of an over-long line already dropped from `partial`.
    dropped: u32,
    /// The first octets of an over-long line.
    head: [u8; HEAD_SIZE],
}

impl LineReader {
    /// Takes octets up to the end of a line, or all. Returns how many were taken, and what they were.
    ///
    /// `size_max` bounds a line with its CRLF, in octets. `octets` must not be empty.
    pub fn take<'a>(&mut self, octets: &'a [u8], size_max: usize) -> (usize, Taken<'a>) {
        let before = self.partial.len() + self.dropped as usize;
        if before == 0 && octets[0] == TLS_HANDSHAKE {
            return (octets.len(), Taken::Tls);
        }
        let Some(taken) = self.line_size(octets) else {
            return (octets.len(), self.keep(octets, before + octets.len(), size_max));
        };
        let size = before + taken;
        let head = self.head_with(octets);
        let partial = std::mem::take(&mut self.partial);
        self.dropped = 0;
        let line = match size {
            _ if size > SKIPPED_SIZE_MAX => Taken::Endless,
            _ if size > size_max => Taken::TooLong { head },
            _ if before == 0 => Taken::Line(Cow::Borrowed(&octets[..taken - 2])),
            _ => {
                let mut line = partial;
                line.extend_from_slice(&octets[..taken]);
                line.truncate(size - 2);
                Taken::Line(Cow::Owned(line))
            }
        };
        (taken, line)
    }

    /// How many of `octets` belong to the current line, its LF included, if its CRLF is complete in them.
    fn line_size(&self, octets: &[u8]) -> Option<usize> {
        let follows_cr = |i: usize| match i {
            0 => self.partial.last() == Some(&b'\r'),
            _ => octets[i - 1] == b'\r',
        };
        memchr_iter(b'\n', octets).find(|i| follows_cr(*i)).map(|i| i + 1)
    }

    /// The first octets of the line that goes on with `octets`.
    fn head_with(&self, octets: &[u8]) -> [u8; HEAD_SIZE] {
        if self.dropped > 0 {
            return self.head;
        }
        let mut head = [0; HEAD_SIZE];
        head.iter_mut().zip(self.partial.iter().chain(octets)).for_each(|(to, from)| *to = *from);
        head
    }

    fn keep(&mut self, octets: &[u8], size: usize, size_max: usize) -> Taken<'static> {
        if size >= SKIPPED_SIZE_MAX {
            *self = LineReader::default();
            return Taken::Endless;
        }
        if size <= size_max {
            self.partial.extend_from_slice(octets);
        } else {
            self.head = self.head_with(octets);
            self.partial = octets[octets.len() - 1..].to_vec();
            self.dropped = size as u32 - 1;
        }
        Taken::Part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything `input` holds, taken in steps of `step` octets.
    fn lines(input: &[u8], step: usize, size_max: usize) -> Vec<Taken<'static>> {
        let mut reader = LineReader::default();
        let mut found = Vec::new();
        for chunk in input.chunks(step) {
            let mut at = 0;
            while at < chunk.len() {
                let (taken, line) = reader.take(&chunk[at..], size_max);
                at += taken;
                match line {
                    Taken::Part => {}
                    Taken::Line(line) => found.push(Taken::Line(Cow::Owned(line.into_owned()))),
                    Taken::TooLong { head } => found.push(Taken::TooLong { head }),
                    last => {
                        assert!(matches!(last, Taken::Endless | Taken::Tls));
                        found.push(if last == Taken::Tls { Taken::Tls } else { Taken::Endless });
                        return found;
                    }
                }
            }
        }
        found
    }

    fn line(text: &str) -> Taken<'static> {
        Taken::Line(Cow::Owned(text.as_bytes().to_vec()))
    }

    fn too_long(head: &str) -> Taken<'static> {
        Taken::TooLong { head: head.as_bytes().try_into().unwrap() }
    }

    #[test]
    fn lines_end_at_crlf_only_and_at_every_split_alike() {
        let table: [(&str, Vec<Taken>); 8] = [
            ("NOOP\r\nQUIT\r\n", vec![line("NOOP"), line("QUIT")]),
            ("NOOP\nQUIT\r\nA", vec![line("NOOP\nQUIT")]),
            ("NOOP\rQUIT\r\n", vec![line("NOOP\rQUIT")]),
            ("\r\n\r\n", vec![line(""), line("")]),
            ("\n\r\n", vec![line("\n")]),
            ("\r\r\n", vec![line("\r")]),
            ("1234567890\r\nX\r\n", vec![too_long("12345678"), line("X")]),
            ("1234567890123\n56789\r0\r\nX\r\n", vec![too_long("12345678"), line("X")]),
        ];
        for (input, expected) in table {
            for step in 1..=input.len() {
                assert_eq!(lines(input.as_bytes(), step, 11), expected, "{input:?} in steps of {step}");
            }
        }
    }

    #[test]
    fn bounds_hold_on_both_sides() {
        let input = |n: usize| ["a".repeat(n - 2).as_bytes(), b"\r\n"].concat();
        for step in [1, 7, 1000, 100_000] {
            assert_eq!(lines(&input(512), step, 512).len(), 1);
            assert_ne!(lines(&input(512), step, 512), [too_long("aaaaaaaa")]);
            assert_eq!(lines(&input(513), step, 512), [too_long("aaaaaaaa")]);
            assert_eq!(lines(&input(SKIPPED_SIZE_MAX), step, 512), [too_long("aaaaaaaa")]);
            assert_eq!(lines(&input(SKIPPED_SIZE_MAX + 1), step, 512), [Taken::Endless]);
        }
    }

    #[test]
    fn nothing_is_held_between_lines_nor_of_a_skipped_one() {
        let mut reader = LineReader::default();
        reader.take(&[b'a'; 100], 10);
        assert!(reader.partial.capacity() <= 8);
        reader.take(b"\r\n", 10);
        assert_eq!(reader.partial.capacity(), 0);
    }

    #[test]
    fn a_tls_handshake_is_known_by_its_first_octet() {
        assert_eq!(lines(b"\x16\x03\x01", 1, 10), [Taken::Tls]);
        assert_eq!(lines(b"A\x16\r\n", 1, 10), [line("A\x16")]);
    }
}
