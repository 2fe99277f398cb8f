//! What a notification brings back of the message: its header section, or all of it (RFC 3461 §4.3, RFC 6522 §3, RFC 6533 §4).

use std::io::Read;

use super::encoding::{Encoding, encode, is_in_lines};
use crate::limits::RETURNED_SIZE_MAX;

/// A part of a notification: its type, and its octets as they are sent.
pub(super) struct Part {
    pub kind: &'static str,
    pub encoding: Encoding,
    pub octets: Vec<u8>,
    /// It is all of the message.
    pub is_whole: bool,
}

/// What is asked, and what can be done.
#[derive(Clone, Copy)]
pub(super) struct Wish {
    /// All of it.
    pub whole: bool,
    /// The message was sent with SMTPUTF8.
    pub is_utf8: bool,
    /// The notification is.
    pub to_utf8: bool,
}

/// The part that brings back what it can of the content, of `size` octets in all; `None` if that cannot be read.
pub(super) fn returned(content: impl Read, size: u64, wish: Wish) -> Option<Part> {
    let mut octets = Vec::new();
    content.take(RETURNED_SIZE_MAX as u64).read_to_end(&mut octets).ok()?;
    if octets.len() as u64 != size.min(RETURNED_SIZE_MAX as u64) {
        return None;
    }
    let is_all = octets.len() as u64 == size;
    let header_size = header_size(&octets, is_all);
    let is_utf8 = |octets: &[u8]| wish.is_utf8 && !octets.is_ascii() && std::str::from_utf8(octets).is_ok();
    let is_global = is_utf8(&octets[..header_size]);
    if wish.whole && is_all {
        // RFC 2046 §5.2.1: a message/rfc822 is never encoded. What is not in lines, its header section alone can be.
        if is_global || is_in_lines(&octets) {
            let kind = if is_global { "message/global" } else { "message/rfc822" };
            let (encoding, octets) = encode(octets, !is_global || wish.to_utf8);
            return Some(Part { kind, encoding, octets, is_whole: true });
        }
    }
    octets.truncate(header_size);
    let kind = if is_global { "message/global-headers" } else { "text/rfc822-headers" };
    let (encoding, octets) = encode(octets, is_global && wish.to_utf8);
    Some(Part { kind, encoding, octets, is_whole: false })
}

/// The size of the header section, or of what there is of it: whole fields then, if there are any.
fn header_size(octets: &[u8], is_all: bool) -> usize {
    let mut field = 0;
    let mut line = 0;
    while let Some(end) = memchr::memchr(b'\n', &octets[line..]) {
        let text = &octets[line..line + end];
        if text.is_empty() || text == b"\r" {
            return line;
        }
        if !text.starts_with(b" ") && !text.starts_with(b"\t") {
            field = line;
        }
        line += end + 1;
    }
    match is_all {
        true => octets.len(),
        // What comes next may continue the last of the fields.
        false if field > 0 => field,
        false => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_section_ends_at_the_empty_line() {
        let table: [(&[u8], bool, usize); 10] = [
            (b"a: b\r\nc: d\r\n\r\nbody", true, 12),
            (b"\r\nbody", true, 0),
            (b"a: b\n\nbody", true, 5),
            (b"a: b\r\n", true, 6),
            (b"a: b", true, 4),
            (b"", true, 0),
            (b"a: b\r\nc: d\r\n e\r\n", false, 6),
            (b"a: b\r\nc: d\r\n", false, 6),
            (b"a: b\r\n c", false, 6),
            (b"a: b", false, 0),
        ];
        for (octets, is_all, size) in table {
            assert_eq!(header_size(octets, is_all), size, "{}", octets.escape_ascii());
        }
    }

    #[test]
    fn what_comes_back_is_what_its_part_can_hold() {
        let wish = |text: &str| Wish {
            whole: text.contains('w'),
            is_utf8: text.contains('u'),
            to_utf8: text.contains('t'),
        };
        let large = [b"a: b\r\n\r\n", &vec![b'x'; RETURNED_SIZE_MAX][..]].concat();
        let long = [b"a: ", &vec![b'x'; 2000][..], b"\r\n\r\nbody"].concat();
        let table: [(&[u8], &str, &str, &str, bool); 16] = [
            (b"a: b\r\n\r\nbody\r\n", "", "text/rfc822-headers", "7bit", false),
            (b"a: b\r\n\r\nbody\r\n", "w", "message/rfc822", "7bit", true),
            (b"a: b\r\n\r\nb\xe9\r\n", "w", "message/rfc822", "8bit", true),
            (b"a: \xe9\r\n\r\nb\r\n", "w", "message/rfc822", "8bit", true),
            (b"a: \xe9\r\n\r\nb\r\n", "", "text/rfc822-headers", "quoted-printable", false),
            (b"a: b\r\n\r\nb\0\r\n", "w", "text/rfc822-headers", "7bit", false),
            (b"a: b\r\n\r\nb\n", "wu", "text/rfc822-headers", "7bit", false),
            (&large, "w", "text/rfc822-headers", "7bit", false),
            (&long, "w", "text/rfc822-headers", "quoted-printable", false),
            ("a: é\r\n\r\nb\r\n".as_bytes(), "u", "message/global-headers", "quoted-printable", false),
            ("a: é\r\n\r\nb\r\n".as_bytes(), "ut", "message/global-headers", "8bit", false),
            ("a: é\r\n\r\nb\r\n".as_bytes(), "uw", "message/global", "quoted-printable", true),
            ("a: é\r\n\r\nb\r\n".as_bytes(), "utw", "message/global", "8bit", true),
            ("a: é\r\n\r\nb\n".as_bytes(), "utw", "message/global", "quoted-printable", true),
            (b"a: \xe9\r\n\r\nb\r\n", "ut", "text/rfc822-headers", "quoted-printable", false),
            ("a: b\r\n\r\né\r\n".as_bytes(), "utw", "message/rfc822", "8bit", true),
        ];
        for (octets, asked, kind, encoding, is_whole) in table {
            let part = returned(octets, octets.len() as u64, wish(asked)).unwrap();
            let seen = (part.kind, part.encoding.as_str(), part.is_whole);
            assert_eq!(seen, (kind, encoding, is_whole), "{asked} {}", octets[..10].escape_ascii());
            assert!(is_in_lines(&part.octets));
        }
    }

    #[test]
    fn content_that_cannot_be_read_is_not_brought_back() {
        let wish = Wish { whole: true, is_utf8: false, to_utf8: false };
        assert!(returned(&b"a: b\r\n"[..], 7, wish).is_none(), "it ends early");
        assert!(returned(&b"a: b\r\n"[..], 5, wish).is_none(), "it goes on");
    }
}
