//! Replies of a server, read from octets (RFC 5321 §4.2).
//!
//! ```text
//!   Reply-line = *( Reply-code "-" [ textstring ] CRLF ) Reply-code [ SP textstring ] CRLF
//! ```
//!
//! Taken beyond the grammar: a line end without CR, and octets above ASCII, for servers send them. Not taken: other control octets, codes that the
//! grammar has not, lines of one reply with different codes, and anything over the bounds.

use std::fmt;

use crate::mail::{Class, Status};

/// Twice the bound of a reply line (RFC 5321 §4.5.3.1.5: 512 octets with its CRLF), for some exceed it.
const LINE_SIZE_MAX: usize = 1024;
/// The longest replies list extensions, a line each.
const LINES_MAX: usize = 128;

/// What is shown of a reply in logs, octets of its text.
const SHOWN_SIZE_MAX: usize = 300;

/// Why octets are no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadReply(&'static str);

impl BadReply {
    /// Octets stand behind a reply, and no command does.
    pub(super) const UNASKED: BadReply = BadReply("octets that were not asked for");
    /// It is a reply, but none to what was said.
    pub(super) const UNFIT: BadReply = BadReply("a reply that does not fit");
}

impl fmt::Display for BadReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadReply {}

/// A whole reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// 200 to 559.
    pub code: u16,
    /// The lines without their codes, with `\n` between them: printable ASCII, `?` in the place of everything else.
    pub text: String,
}

impl Reply {
    /// Of class 2: done.
    pub fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// With no more text than is shown: many are kept.
    pub fn shortened(&self) -> Reply {
        Reply { code: self.code, text: self.text[..self.text.len().min(SHOWN_SIZE_MAX)].into() }
    }

    /// Of class 5.
    pub fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// The enhanced status code, if the reply begins with one of its own class (RFC 2034 §4).
    pub fn status(&self) -> Option<Status> {
        let mut parts = self.text.split([' ', '\n']).next()?.split('.');
        let class = match (parts.next()?, self.code / 100) {
            ("2", 2) => Class::Success,
            ("4", 4) => Class::Temporary,
            ("5", 5) => Class::Permanent,
            _ => return None,
        };
        let mut number = || parts.next().filter(|digits| digits.len() <= 3)?.parse().ok();
        let status = Status { class, subject: number()?, detail: number()? };
        parts.next().is_none().then_some(status)
    }
}

/// As it stood on the wire, in one line, and not all of a long one.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.text[..self.text.len().min(SHOWN_SIZE_MAX)];
        write!(f, "{} {}", self.code, shown.replace('\n', " "))
    }
}

/// Makes replies of octets, however they are cut.
#[derive(Debug, Default)]
pub struct ReplyReader {
    line: Vec<u8>,
    lines_count: usize,
    /// What is known of the reply.
    code: Option<u16>,
    text: String,
}

impl ReplyReader {
    /// Takes octets up to the end of a reply, and says how many it has taken. After an error the connection is of no use.
    pub fn handle_input(&mut self, octets: &[u8]) -> Result<(usize, Option<Reply>), BadReply> {
        let mut taken = 0;
        while taken < octets.len() {
            let rest = &octets[taken..];
            let end = memchr::memchr(b'\n', rest);
            let part = &rest[..end.unwrap_or(rest.len())];
            if self.line.len() + part.len() > LINE_SIZE_MAX {
                return Err(BadReply("a line of the reply is too long"));
            }
            self.line.extend_from_slice(part);
            taken += part.len() + usize::from(end.is_some());
            if end.is_none() {
                break;
            }
            let line = std::mem::take(&mut self.line);
            if let Some(reply) = self.handle_line(&line)? {
                return Ok((taken, Some(reply)));
            }
        }
        Ok((taken, None))
    }

    /// Whether a reply has begun.
    pub fn is_within_reply(&self) -> bool {
        self.code.is_some() || !self.line.is_empty()
    }

    fn handle_line(&mut self, line: &[u8]) -> Result<Option<Reply>, BadReply> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.iter().any(|c| (*c < b' ' && *c != b'\t') || *c == 0x7f) {
            return Err(BadReply("a control octet in the reply"));
        }
        let [x @ b'2'..=b'5', y @ b'0'..=b'5', z @ b'0'..=b'9', rest @ ..] = line else {
            return Err(BadReply("a line without a reply code"));
        };
        let code = [x, y, z].iter().fold(0, |code, digit| code * 10 + u16::from(**digit - b'0'));
        if *self.code.get_or_insert(code) != code {
            return Err(BadReply("lines with different codes in one reply"));
        }
        let (is_last, text) = match rest {
            [] => (true, rest),
            [b' ', text @ ..] => (true, text),
            [b'-', text @ ..] => (false, text),
            _ => return Err(BadReply("a line without a reply code")),
        };
        self.lines_count += 1;
        if self.lines_count > LINES_MAX {
            return Err(BadReply("too many lines in one reply"));
        }
        if self.lines_count > 1 {
            self.text.push('\n');
        }
        self.text.extend(text.iter().map(|c| if matches!(c, b' '..=b'~') { char::from(*c) } else { '?' }));
        if !is_last {
            return Ok(None);
        }
        let text = std::mem::take(&mut self.text);
        *self = ReplyReader::default();
        Ok(Some(Reply { code, text }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All replies in `octets`, given in pieces that end at `cuts`.
    fn read(octets: &[u8], cuts: &[usize]) -> Result<Vec<Reply>, BadReply> {
        let (mut reader, mut replies, mut from) = (ReplyReader::default(), Vec::new(), 0);
        for cut in cuts.iter().copied().chain([octets.len()]) {
            while from < cut {
                let (taken, reply) = reader.handle_input(&octets[from..cut])?;
                assert!(taken > 0);
                from += taken;
                replies.extend(reply);
            }
        }
        Ok(replies)
    }

    fn reply(code: u16, text: &str) -> Reply {
        Reply { code, text: text.into() }
    }

    #[test]
    fn replies_are_the_same_at_every_split() {
        let octets = "220 mx ready\r\n250-mx\r\n250-SIZE 1000\r\n250\r\n250 2.1.5 Ok\n550-\r\n550 5.1.1 n\u{e9}\t!\r\n";
        let expected = [
            reply(220, "mx ready"),
            reply(250, "mx\nSIZE 1000\n"),
            reply(250, "2.1.5 Ok"),
            reply(550, "\n5.1.1 n???!"),
        ];
        let octets = octets.as_bytes();
        for first in 0..octets.len() {
            for second in first..octets.len() {
                assert_eq!(read(octets, &[first, second]).unwrap(), expected, "{first} {second}");
            }
        }
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        let long = format!("250 {}\r\n", "x".repeat(1024));
        let many = "250-x\r\n".repeat(200);
        let table: [(&[u8], &str); 12] = [
            (b"hello\r\n", "a line without a reply code"),
            (b"\r\n", "a line without a reply code"),
            (b"25\r\n", "a line without a reply code"),
            (b"2500 x\r\n", "a line without a reply code"),
            (b"250_x\r\n", "a line without a reply code"),
            (b"150 x\r\n", "a line without a reply code"),
            (b"650 x\r\n", "a line without a reply code"),
            (b"260 x\r\n", "a line without a reply code"),
            (b"250-x\r\n550 y\r\n", "lines with different codes in one reply"),
            (b"250 x\0y\r\n", "a control octet in the reply"),
            (long.as_bytes(), "a line of the reply is too long"),
            (many.as_bytes(), "too many lines in one reply"),
        ];
        for (octets, expected) in table {
            assert_eq!(read(octets, &[]).unwrap_err().to_string(), expected, "{octets:?}");
        }
    }

    #[test]
    fn a_server_that_never_ends_takes_little_memory() {
        for piece in ["x".repeat(4096), "250-x\r\n".repeat(600), "250-\r\n".repeat(600), "\0".repeat(4096)] {
            let mut reader = ReplyReader::default();
            let mut taken = 0;
            while reader.handle_input(piece.as_bytes()).is_ok_and(|(n, _)| n > 0) {
                taken += piece.len();
                assert!(taken < 1 << 20);
                assert!(reader.line.capacity() + reader.text.capacity() < 256 << 10);
            }
        }
    }

    #[test]
    fn little_of_a_long_reply_is_shown() {
        assert_eq!(reply(550, "a\nb").to_string(), "550 a b");
        assert_eq!(reply(550, &"x".repeat(100_000)).to_string().len(), 304);
    }

    #[test]
    fn the_enhanced_status_is_of_the_replys_class() {
        let table = [
            (reply(550, "5.1.1 no such user"), Some(Status::permanent(1, 1))),
            (reply(550, "5.7.1"), Some(Status::permanent(7, 1))),
            (reply(450, "4.2.0\nx"), Some(Status::temporary(2, 0))),
            (reply(550, "4.1.1 no"), None),
            (reply(550, "5.1 no"), None),
            (reply(550, "5.1.1.1 no"), None),
            (reply(550, "5.1111.1 no"), None),
            (reply(550, ""), None),
        ];
        for (reply, expected) in table {
            assert_eq!(reply.status(), expected, "{reply}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(
            octets in prop::collection::vec(prop_oneof![
                Just(b'2'), Just(b'5'), Just(b'0'), Just(b'-'), Just(b' '), Just(b'\r'), Just(b'\n'), any::<u8>(),
            ], 0..300),
            cut in 0..300_usize,
        ) {
            let cut = cut.min(octets.len());
            let whole = read(&octets, &[]);
            prop_assert_eq!(&read(&octets, &[cut]), &whole);
            for reply in whole.into_iter().flatten() {
                prop_assert!((200..560).contains(&reply.code));
                prop_assert!(reply.text.bytes().all(|c| matches!(c, b' '..=b'~' | b'\n')));
            }
        }
    }
}
