//! Content as it goes over the wire behind DATA: transparency and end-of-data (RFC 5321 §4.1.1.4, §4.5.2).
//!
//! Content is given in pieces, cut anywhere. Its line ends are CRLF.
//!
//! Invariants:
//! - a server that undoes transparency by the rules has the content again, with a CRLF at its end where it had none;
//! - nothing goes out from the first CR or LF on that is no part of a CRLF: what it makes of that is every server's own, and some read commands behind it.

use bytes::{Bytes, BytesMut};
use memchr::{memchr_iter, memchr2_iter};

/// Where in a line the content given so far has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Behind a CRLF, or at the start.
    LineStart,
    /// Behind a CR.
    Cr,
    /// Behind any other octet.
    Inside,
}

/// The content has a CR or an LF that is no part of a CRLF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareLineEnd;

/// Doubles the dots that begin lines.
#[derive(Debug)]
pub struct Stuffing {
    at: At,
}

impl Stuffing {
    /// At the start of content.
    pub fn new() -> Self {
        Stuffing { at: At::LineStart }
    }

    /// The next piece as it goes over the wire: the same where no line in it begins with a dot.
    pub fn stuff(&mut self, piece: Bytes) -> Result<Bytes, BareLineEnd> {
        let Some(last) = piece.last() else { return Ok(piece) };
        if self.has_bare_line_end(&piece) {
            return Err(BareLineEnd);
        }
        let begins_line = |at: usize| match at {
            0 => self.at == At::LineStart,
            1 => piece[0] == b'\n' && self.at == At::Cr,
            _ => piece[at - 2..at] == *b"\r\n",
        };
        let is_stuffed = |at: &usize| begins_line(*at);
        let mut stuffed: Option<(BytesMut, usize)> = None;
        for dot in memchr_iter(b'.', &piece).filter(is_stuffed) {
            let (out, done) = stuffed
                .get_or_insert_with(|| (BytesMut::with_capacity(piece.len() + piece.len() / 32 + 1), 0));
            out.extend_from_slice(&piece[*done..=dot]);
            *done = dot;
        }
        let is_behind_cr = if piece.len() > 1 { piece[piece.len() - 2] == b'\r' } else { self.at == At::Cr };
        self.at = match last {
            b'\n' if is_behind_cr => At::LineStart,
            b'\r' => At::Cr,
            _ => At::Inside,
        };
        Ok(match stuffed {
            None => piece,
            Some((mut out, done)) => {
                out.extend_from_slice(&piece[done..]);
                out.freeze()
            }
        })
    }

    fn has_bare_line_end(&self, piece: &[u8]) -> bool {
        let is_open = self.at == At::Cr;
        let is_bare = |at: usize| match piece[at] {
            b'\r' => piece.get(at + 1).is_some_and(|next| *next != b'\n'),
            _ => !at.checked_sub(1).map_or(is_open, |before| piece[before] == b'\r'),
        };
        (is_open && piece[0] != b'\n') || memchr2_iter(b'\r', b'\n', piece).any(is_bare)
    }

    /// What ends the content, and the data: end-of-data is a line.
    pub fn end(&self) -> Result<&'static [u8], BareLineEnd> {
        match self.at {
            At::LineStart => Ok(b".\r\n"),
            At::Inside => Ok(b"\r\n.\r\n"),
            At::Cr => Err(BareLineEnd),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    fn on_the_wire(content: &[u8], cuts: &[usize]) -> Result<Vec<u8>, BareLineEnd> {
        let (mut stuffing, mut wire, mut from) = (Stuffing::new(), Vec::new(), 0);
        for cut in cuts.iter().copied().chain([content.len()]) {
            wire.extend_from_slice(&stuffing.stuff(Bytes::copy_from_slice(&content[from..cut]))?);
            from = cut;
        }
        wire.extend_from_slice(stuffing.end()?);
        Ok(wire)
    }

    /// What a server by the rules has of it: the lines up to the one that is a dot, and what stands behind.
    fn undone(wire: &[u8]) -> (Vec<u8>, &[u8]) {
        let (mut content, mut rest) = (Vec::new(), wire);
        loop {
            let size = 2 + rest.windows(2).position(|two| two == b"\r\n").expect("a line's end");
            let (line, behind) = rest.split_at(size);
            rest = behind;
            if line == b".\r\n" {
                return (content, rest);
            }
            content.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
        }
    }

    #[test]
    fn lines_that_begin_with_dots_have_one_more() {
        let table: [(&[u8], Option<&[u8]>); 13] = [
            (b"", Some(b".\r\n")),
            (b".", Some(b"..\r\n.\r\n")),
            (b".\r\n", Some(b"..\r\n.\r\n")),
            (b"a\r\n.b\r\n..\r\nc.\r\n", Some(b"a\r\n..b\r\n...\r\nc.\r\n.\r\n")),
            (b"a", Some(b"a\r\n.\r\n")),
            (b"\r\n\r\n.\r\n.\r\n", Some(b"\r\n\r\n..\r\n..\r\n.\r\n")),
            // What one server takes for the end of a line another does not.
            (b"a\n.b\r\n", None),
            (b"a\r.b\r\n", None),
            (b"a\r", None),
            (b"\n", None),
            (b"\r\r\n", None),
            (b"\r\n\n", None),
            (b"a\n.\nMAIL FROM:<>\n", None),
        ];
        for (content, expected) in table {
            for first in 0..=content.len() {
                for second in first..=content.len() {
                    let wire = on_the_wire(content, &[first, second]);
                    assert_eq!(
                        wire.as_deref().ok(),
                        expected,
                        "{:?} at {first} {second}",
                        content.escape_ascii().to_string()
                    );
                }
            }
        }
    }

    #[test]
    fn a_piece_without_such_lines_is_not_copied() {
        let piece = Bytes::from_static(b"Subject: x.y\r\n\r\nno line. begins so\r\n");
        assert_eq!(Stuffing::new().stuff(piece.clone()).unwrap().as_ptr(), piece.as_ptr());
    }

    proptest! {
        #[test]
        fn a_server_by_the_rules_has_the_content_again_or_nothing_of_its_end(
            words in prop::collection::vec(
                prop_oneof![20 => select(vec!["\r\n", ".", "a"]), 1 => select(vec!["\r", "\n"])],
                0..60,
            ),
            cuts in prop::collection::vec(0..100_usize, 0..6),
        ) {
            let text = words.concat();
            let content = text.as_bytes();
            let is_bare = text.replace("\r\n", "").contains(['\r', '\n']);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(content.len())).collect();
            cuts.sort_unstable();
            let wire = on_the_wire(content, &cuts);
            prop_assert_eq!(wire.is_err(), is_bare);
            let Ok(wire) = wire else { return Ok(()) };
            let (mut again, behind) = undone(&wire);
            prop_assert!(behind.is_empty(), "octets of content would be read as commands");
            if !content.is_empty() && !content.ends_with(b"\r\n") {
                prop_assert!(again.ends_with(b"\r\n"));
                again.truncate(again.len() - 2);
            }
            prop_assert_eq!(again, content);
        }
    }
}
