//! The header section of content as it passes: its size and its `Received:` fields.
//!
//! It ends at the first empty line and nowhere earlier: a line that is no field does not end it, or a `From `
//! line in front would hide a mail loop.

use memchr::memchr;

use super::reply::ContentRefusal;

const RECEIVED: &[u8] = b"received";

/// Where in a line the last octet left us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    LineStart,
    /// Behind a CR that began the line: the empty line, as CR in content is always followed by LF.
    EmptyLine,
    /// The line so far is that many octets of `received`, or all of them and white space.
    Name(u8),
    Elsewhere,
    /// Behind the header section.
    Ended,
}

/// Watches a header section.
#[derive(Clone, Debug)]
pub struct HeaderSection {
    at: At,
    size: usize,
    hops: usize,
    size_max: usize,
    hops_max: usize,
}

impl HeaderSection {
    /// At the start of content; the bounds are of octets and of `Received:` fields.
    pub fn new(size_max: usize, hops_max: usize) -> Self {
        HeaderSection { at: At::LineStart, size: 0, hops: 0, size_max, hops_max }
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
            i += 1;
            self.at = match self.at {
                At::LineStart if c == b'\r' => At::EmptyLine,
                At::EmptyLine => At::Ended,
                At::LineStart if c.eq_ignore_ascii_case(&RECEIVED[0]) => At::Name(1),
                At::Name(n) if RECEIVED.get(n as usize).is_some_and(|r| c.eq_ignore_ascii_case(r)) => {
                    At::Name(n + 1)
                }
                // RFC 5322 §4.5.8 lets white space stand before the colon.
                At::Name(n) if n as usize == RECEIVED.len() && matches!(c, b' ' | b'\t') => self.at,
                At::Name(n) if n as usize == RECEIVED.len() && c == b':' => {
                    self.hops += 1;
                    if self.hops > self.hops_max {
                        return Err(ContentRefusal::TooManyHops);
                    }
                    At::Elsewhere
                }
                _ if c == b'\n' => At::LineStart,
                _ => match memchr(b'\n', &content[i..within]) {
                    Some(distance) => {
                        i += distance + 1;
                        At::LineStart
                    }
                    None => {
                        i = within;
                        At::Elsewhere
                    }
                },
            };
        }
        self.size += i;
        if self.at != At::Ended && within < content.len() {
            return Err(ContentRefusal::HeaderTooLarge);
        }
        Ok(())
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
            ("Received\r\nReceived:\r\n\r\n", 1),
            ("From x\r\nno field\r\nReceived: b\r\n\r\n", 1),
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
    fn the_size_is_bounded_up_to_and_with_the_empty_line() {
        let content = "a: b\r\n\r\nbody";
        assert_eq!(watch(content, 8, 0), Ok(()));
        assert_eq!(watch(content, 7, 0), Err(ContentRefusal::HeaderTooLarge));
        assert_eq!(watch("a: b\r\n c", 8, 0), Ok(()));
        assert_eq!(watch("a: b\r\n cd", 8, 0), Err(ContentRefusal::HeaderTooLarge));
    }

    #[test]
    fn the_bound_that_is_passed_first_is_reported() {
        assert_eq!(watch("a: b\r\nReceived: c\r\n", 15, 0), Err(ContentRefusal::TooManyHops));
        assert_eq!(watch("a: b\r\nReceived: c\r\n", 14, 0), Err(ContentRefusal::HeaderTooLarge));
    }
}
