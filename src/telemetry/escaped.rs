//! A peer's octets, made fit for a log line.

use std::fmt::{self, Write};

use crate::limits::LOGGED_TEXT_SIZE_MAX;

/// Shows octets that a peer chose: printable ASCII as it is, everything else and the backslash as `\xNN`, after 256 octets `…`.
///
/// So no peer ends a line, moves a cursor or fills a disk, and what is shown can be told from what was escaped.
///
/// ```
/// # use incoming::telemetry::Escaped;
/// assert_eq!(Escaped(b"mx\r\n\x1b[2J").to_string(), r"mx\x0d\x0a\x1b[2J");
/// ```
#[derive(Clone, Copy)]
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(LOGGED_TEXT_SIZE_MAX)];
        for run in shown.chunk_by(|a, b| is_plain(*a) && is_plain(*b)) {
            match run {
                [c] if !is_plain(*c) => write!(f, "\\x{c:02x}")?,
                _ => f.write_str(str::from_utf8(run).expect("plain is ASCII"))?,
            }
        }
        if shown.len() < self.0.len() { f.write_char('…') } else { Ok(()) }
    }
}

impl fmt::Debug for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn is_plain(c: u8) -> bool {
    (b' '..=b'~').contains(&c) && c != b'\\'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_printable_ascii_is_shown_as_it_is() {
        let table: [(&[u8], &str); 9] = [
            (b"", ""),
            (b"mx.example.com [1] \"'<>", "mx.example.com [1] \"'<>"),
            (b"\x1b[31m", r"\x1b[31m"),
            (b"a\r\nFAKE line", r"a\x0d\x0aFAKE line"),
            (b"%s%n", "%s%n"),
            (b"\0\x07\x7f\x80\xff", r"\x00\x07\x7f\x80\xff"),
            ("é\u{202e}".as_bytes(), r"\xc3\xa9\xe2\x80\xae"),
            (br"\x0a", r"\x5cx0a"),
            (b"\x9b2J", r"\x9b2J"),
        ];
        for (octets, shown) in table {
            assert_eq!(Escaped(octets).to_string(), shown);
        }
    }

    #[test]
    fn long_texts_are_cut() {
        let max = LOGGED_TEXT_SIZE_MAX;
        for (size, expected) in [(max, "x".repeat(max)), (max + 1, format!("{}…", "x".repeat(max)))] {
            assert_eq!(Escaped("x".repeat(size).as_bytes()).to_string(), expected);
        }
        assert_eq!(Escaped(&vec![0; 1 << 20]).to_string(), format!("{}…", r"\x00".repeat(max)));
    }
}
