//! How octets are put into a part: as they are, or quoted-printable (RFC 2045 §6.7), within the bounds of lines.

use std::fmt::Write;

/// The longest line without its CRLF, in octets (RFC 5322 §2.1.1).
pub(super) const LINE_SIZE_MAX: usize = 998;
/// The longest line as people are to see it (RFC 5322 §2.1.1), in octets.
const LINE_WIDTH: usize = 78;
/// The longest line of quoted-printable (RFC 2045 §6.7, rule 5).
const QUOTED_LINE_SIZE_MAX: usize = 76;

/// A content transfer encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    SevenBit,
    EightBit,
    QuotedPrintable,
}

impl Encoding {
    pub fn as_str(self) -> &'static str {
        match self {
            Encoding::SevenBit => "7bit",
            Encoding::EightBit => "8bit",
            Encoding::QuotedPrintable => "quoted-printable",
        }
    }
}

/// Whether `octets` are lines as mail has them: CRLF, nothing else that ends a line, no NUL, none too long.
pub(super) fn is_in_lines(octets: &[u8]) -> bool {
    let mut lines = octets.split(|c| *c == b'\n').peekable();
    while let Some(line) = lines.next() {
        let line = match lines.peek() {
            Some(_) => match line.strip_suffix(b"\r") {
                Some(line) => line,
                None => return false,
            },
            None => line,
        };
        if line.len() > LINE_SIZE_MAX || memchr::memchr2(b'\r', 0, line).is_some() {
            return false;
        }
    }
    true
}

/// `octets` as they go into a part; above ASCII as they are only if `eight_bit`.
pub(super) fn encode(octets: Vec<u8>, eight_bit: bool) -> (Encoding, Vec<u8>) {
    let encoding = match (is_in_lines(&octets), octets.is_ascii()) {
        (true, true) => Encoding::SevenBit,
        (true, false) if eight_bit => Encoding::EightBit,
        _ => return (Encoding::QuotedPrintable, quote(&octets)),
    };
    (encoding, octets)
}

fn quote(octets: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(octets.len() + octets.len() / 8);
    let mut column = 0;
    let mut rest = octets;
    while let Some((c, behind)) = rest.split_first() {
        if let Some(behind) = rest.strip_prefix(b"\r\n") {
            out.extend_from_slice(b"\r\n");
            (column, rest) = (0, behind);
            continue;
        }
        let is_plain = match c {
            b' ' | b'\t' => !behind.is_empty() && !behind.starts_with(b"\r\n"),
            b'=' => false,
            _ => c.is_ascii_graphic(),
        };
        let size = if is_plain { 1 } else { 3 };
        // The last place of a line is the soft break's.
        if column + size >= QUOTED_LINE_SIZE_MAX {
            out.extend_from_slice(b"=\r\n");
            column = 0;
        }
        match is_plain {
            true => out.push(*c),
            false => {
                const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                out.extend_from_slice(&[b'=', DIGITS[usize::from(c >> 4)], DIGITS[usize::from(c & 15)]]);
            }
        }
        (column, rest) = (column + size, behind);
    }
    out
}

/// Appends the words of `text`, whatever separates them, and breaks the line before one that would make it longer than people like; a
/// continued line begins with `indent`. Octets that are not printable ASCII become `?`: they are no part of a reply (RFC 5321 §4.2).
pub(super) fn push_words(text: &str, indent: &str, out: &mut String) {
    let start = out.rfind('\n').map_or(0, |at| at + 1);
    let mut column = out.len() - start;
    let is_space = |c: char| c.is_whitespace() || c.is_control();
    for word in text.split(is_space).filter(|word| !word.is_empty()) {
        let size = word.chars().count();
        if column > indent.len() && column + 1 + size > LINE_WIDTH {
            out.push_str("\r\n");
            out.push_str(indent);
            column = indent.len();
        } else if !out.ends_with([' ', '\n']) {
            out.push(' ');
            column += 1;
        }
        for c in word.chars() {
            if column >= LINE_SIZE_MAX {
                out.push_str("\r\n");
                out.push_str(indent);
                column = indent.len();
            }
            out.push(if c.is_ascii_graphic() { c } else { '?' });
            column += 1;
        }
    }
}

/// Appends a field whose value must not be touched, and has no control characters. Only what no line can hold is cut, with a space at
/// the cut: that is no address, whatever it calls itself.
pub(super) fn push_exactly(name: &str, value: &str, out: &mut String) {
    write!(out, "{name}: ").expect("a String takes every write");
    let mut rest = value;
    let mut room = LINE_SIZE_MAX - name.len() - 2;
    while rest.len() > room {
        let (line, behind) = rest.split_at(rest.floor_char_boundary(room));
        out.push_str(line);
        out.push_str("\r\n ");
        (rest, room) = (behind, LINE_SIZE_MAX - 1);
    }
    out.push_str(rest);
    out.push_str("\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_mail_go_as_they_are() {
        let line = |size: usize| [&vec![b'x'; size][..], b"\r\n"].concat();
        let table: [(&[u8], bool); 12] = [
            (b"", true),
            (b"a\r\nb", true),
            (b"\r\n\r\n", true),
            (&line(998), true),
            (&line(999), false),
            (&vec![b'x'; 998], true),
            (&vec![b'x'; 999], false),
            (b"a\nb", false),
            (b"a\rb\r\n", false),
            (b"a\r\r\n", false),
            (b"a\r", false),
            (b"a\0\r\n", false),
        ];
        for (octets, expected) in table {
            assert_eq!(is_in_lines(octets), expected, "{:?}", octets.escape_ascii().to_string());
        }
    }

    #[test]
    fn quoted_printable_is_as_the_rfc_has_it() {
        let table: [(&[u8], &[u8]); 7] = [
            (b"a=b\r\n", b"a=3Db\r\n"),
            ("é".as_bytes(), b"=C3=A9"),
            (b"end \r\n\t\r\nend ", b"end=20\r\n=09\r\nend=20"),
            (b"a\nb\rc\0", b"a=0Ab=0Dc=00"),
            (&[b'x'; 76], &[&[b'x'; 75][..], b"=\r\nx"].concat()),
            (&[b'x'; 75], &[b'x'; 75]),
            (b"", b""),
        ];
        for (octets, expected) in table {
            let quoted = quote(octets);
            assert_eq!(quoted.escape_ascii().to_string(), expected.escape_ascii().to_string());
            assert!(is_in_lines(&quoted));
        }
    }

    #[test]
    fn words_are_folded_and_nothing_in_them_ends_a_line() {
        let mut out = String::from("Diagnostic-Code: smtp;");
        push_words("550 a\r\nX: y\u{2028}\u{7f}é  ", " ", &mut out);
        assert_eq!(out, "Diagnostic-Code: smtp; 550 a X: y ?");
        let mut out = String::new();
        push_words(&"word ".repeat(100), " ", &mut out);
        assert!(out.split("\r\n").all(|line| line.len() <= 78 && !line.trim().is_empty()), "{out}");
        assert_eq!(out.split_whitespace().count(), 100);
        let mut out = String::from("X:");
        push_words(&"x".repeat(3000), "    ", &mut out);
        assert!(is_in_lines(out.as_bytes()) && out.matches('x').count() == 3000);
    }

    #[test]
    fn a_value_is_cut_only_where_no_line_can_hold_it() {
        for (size, lines) in [(0, 1), (994, 1), (995, 2), (994 + 997, 2), (994 + 997 + 1, 3)] {
            let mut out = String::new();
            push_exactly("Xy", &"x".repeat(size), &mut out);
            assert!(is_in_lines(out.as_bytes()), "{size}");
            assert_eq!(out.matches("\r\n").count(), lines, "{size}");
        }
    }
}
