//! The header section of content as it passes: its size and its `Received:` fields.
//!
//! It ends at the first line that is neither a field nor the continuation of one: the empty line, or the first line of
//! content that has no header section at all. No mail loop hides behind that, for every hop puts its field in front. The
//! `From ` line of a mailbox file does not end it where it is the first.

use memchr::memchr;

use super::reply::ContentRefusal;

const RECEIVED: &[u8] = b"received";

/// How a mailbox file begins; some senders leave its first line in front of the header section.
const MBOX: &[u8] = b"From ";
/// A field name is shorter than the longest line (RFC 5322 §2.1.1), in octets; what is longer is no field.
const NAME_SIZE_MAX: u16 = 998;

/// Where in a line the last octet left us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    LineStart,
    /// In a field name; so far it is a beginning of `received`, or not.
    Name {
        size: u16,
        is_received: bool,
    },
    /// In the white space that RFC 5322 §4.5.8 lets stand before the colon.
    Space {
        is_received: bool,
    },
    Elsewhere,
    /// Behind the header section.
    Ended,
}

/// Watches a header section.
#[derive(Clone, Debug)]
pub struct HeaderSection {
    at: At,
    size: usize,
    /// So far the content begins as a mailbox file does.
    is_mbox: bool,
    hops: usize,
    size_max: usize,
    hops_max: usize,
}

impl HeaderSection {
    /// At the start of content; the bounds are of octets and of `Received:` fields.
    pub fn new(size_max: usize, hops_max: usize) -> Self {
        HeaderSection { at: At::LineStart, size: 0, is_mbox: true, hops: 0, size_max, hops_max }
    }

    /// Looks at the next octets of the content, whose line ends are all CRLF. Reports the first bound that is
    /// passed.
    pub fn watch(&mut self, content: &[u8]) -> Result<(), ContentRefusal> {
        if self.at == At::Ended {
            return Ok(());
        }
        let within = content.len().min(self.size_max - self.size);
        let mut i = 0;
        while i < within && self.at != At::Ended {
            let c = content[i];
            if let Some(expected) = MBOX.get(self.size + i) {
                self.is_mbox &= c == *expected;
            }
            i += 1;
            self.at = match self.at {
                At::LineStart if matches!(c, b' ' | b'\t') => At::Elsewhere,
                At::LineStart => Self::name(c, 0, true),
                At::Name { size, is_received } if c == b':' => {
                    self.count_hop(is_received && usize::from(size) == RECEIVED.len())?
                }
                At::Name { size, is_received } if matches!(c, b' ' | b'\t') => {
                    At::Space { is_received: is_received && usize::from(size) == RECEIVED.len() }
                }
                At::Name { size, is_received } => Self::name(c, size, is_received),
                At::Space { .. } if matches!(c, b' ' | b'\t') => self.at,
                At::Space { is_received } if c == b':' => self.count_hop(is_received)?,
                // A mailbox file's first line, if that is what it is.
                At::Space { .. } if self.is_mbox && self.size + i == MBOX.len() + 1 => At::Elsewhere,
                At::Space { .. } => At::Ended,
                At::Elsewhere if c == b'\n' => At::LineStart,
                At::Elsewhere => match memchr(b'\n', &content[i..within]) {
                    Some(distance) => {
                        i += distance + 1;
                        At::LineStart
                    }
                    None => {
                        i = within;
                        At::Elsewhere
                    }
                },
                At::Ended => unreachable!("the loop ends with it"),
            };
        }
        self.size += i;
        if self.at != At::Ended && within < content.len() {
            return Err(ContentRefusal::HeaderTooLarge);
        }
        Ok(())
    }

    /// After `c` in a field name of which `size` octets came before.
    fn name(c: u8, size: u16, is_received: bool) -> At {
        if !matches!(c, 33..=126) || c == b':' || size == NAME_SIZE_MAX {
            return At::Ended;
        }
        let is_next = RECEIVED.get(usize::from(size)).is_some_and(|r| c.eq_ignore_ascii_case(r));
        At::Name { size: size + 1, is_received: is_received && is_next }
    }

    /// After the colon of a field.
    fn count_hop(&mut self, is_received: bool) -> Result<At, ContentRefusal> {
        self.hops += usize::from(is_received);
        if self.hops > self.hops_max { Err(ContentRefusal::TooManyHops) } else { Ok(At::Elsewhere) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(content: &str, size_max: usize, hops_max: usize) -> Result<(), ContentRefusal> {
        let whole = HeaderSection::new(size_max, hops_max).watch(content.as_bytes());
        for step in 1..content.len().min(40) {
            let mut header = HeaderSection::new(size_max, hops_max);
            let result = content.as_bytes().chunks(step).try_for_each(|chunk| header.watch(chunk));
            assert_eq!(result, whole, "{content:?} in steps of {step}");
        }
        whole
    }

    #[test]
    fn only_received_fields_of_the_header_section_are_counted() {
        let table = [
            ("Received: a\r\nReceived: b\r\n\r\nReceived: c\r\n", 2),
            ("RECEIVED:a\r\nreceived :b\r\nReceived \t : c\r\n\r\n", 3),
            ("Received-SPF: a\r\nX-Received: b\r\nReceive: c\r\nReceivedd: d\r\n Received: e\r\n\r\n", 0),
            ("From x y\r\nReceived: a\r\n\r\n", 1),
            ("Received: a\r\nReceived\r\nReceived: b\r\n\r\n", 1),
            ("Received: a\r\nFrom x\r\nReceived: b\r\n\r\n", 1),
            ("Received: a\r\n: b\r\nReceived: b\r\n\r\n", 1),
            ("\r\nReceived: b\r\n", 0),
            ("R\r\nRReceived: x\r\n\r\n", 0),
        ];
        for (content, hops) in table {
            assert_eq!(watch(content, 1000, hops), Ok(()), "{content:?}");
            if hops > 0 {
                assert_eq!(watch(content, 1000, hops - 1), Err(ContentRefusal::TooManyHops), "{content:?}");
            }
        }
    }

    #[test]
    fn the_size_is_bounded_up_to_the_empty_line() {
        let content = "a: b\r\n\r\nbody";
        assert_eq!(watch(content, 7, 0), Ok(()));
        assert_eq!(watch(content, 6, 0), Err(ContentRefusal::HeaderTooLarge));
        assert_eq!(watch("no field\r\n and more than is permitted", 8, 0), Ok(()));
        assert_eq!(watch(&"x".repeat(998), 2000, 0), Ok(()));
        assert_eq!(watch(&"x".repeat(1500), 1000, 0), Ok(()), "no name is so long");
        assert_eq!(watch("a: b\r\n c", 8, 0), Ok(()));
        assert_eq!(watch("a: b\r\n cd", 8, 0), Err(ContentRefusal::HeaderTooLarge));
    }

    #[test]
    fn the_bound_that_is_passed_first_is_reported() {
        assert_eq!(watch("a: b\r\nReceived: c\r\n", 15, 0), Err(ContentRefusal::TooManyHops));
        assert_eq!(watch("a: b\r\nReceived: c\r\n", 14, 0), Err(ContentRefusal::HeaderTooLarge));
    }
}
