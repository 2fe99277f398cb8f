//! Content as it is sent to content as it is stored: end-of-data, transparency and bare line ends are decided
//! here and nowhere else (RFC 5321 §4.1.1.4, §4.5.2, §2.3.8).
//!
//! The rules, all of them:
//! 1. A line ends with CRLF, and with nothing else. A CR not followed by LF, or an LF not preceded by CR, is
//!    *bare*.
//! 2. Content begins at the start of a line.
//! 3. A line that is `.` alone is end-of-data. It is no part of the content; the CRLF of the line before it
//!    is.
//! 4. Of any other line that begins with `.`, that one octet is dropped.
//! 5. A bare CR or LF is a fault, or becomes CRLF in the content. In either case it does not start a line for
//!    3 and 4.
//! 6. A NUL is a fault.
//!
//! Content that comes in chunks (BDAT, RFC 3030) has its size for an end: rules 1, 5 and 6 hold for it, 2 to 4 do not. Where it is
//! declared to be binary none does: its octets are put out as they are.
//!
//! Invariant: what is put out, where faults are reported and where end-of-data is found depend on the octets
//! only, not on how they are split.

use memchr::memchr3;

use super::config::BareLineEnds;

/// Where decoded content goes.
pub trait Output {
    /// Takes the next octets of the content.
    fn put(&mut self, octets: &[u8]);
}

impl Output for Vec<u8> {
    fn put(&mut self, octets: &[u8]) {
        self.extend_from_slice(octets);
    }
}

/// Where refused content goes.
pub struct Nowhere;

impl Output for Nowhere {
    fn put(&mut self, _: &[u8]) {}
}

/// What stopped the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The octets are used up.
    Nothing,
    /// End-of-data; what follows is a command.
    EndOfData,
    /// A bare CR or LF; it was taken and is not put out.
    BareLineEnd,
    /// A NUL; it was taken and is not put out.
    Nul,
}

/// Where in a line the decoder stands. Octets that may still turn out to be no content are withheld.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Behind a CRLF, or at the start of the content.
    LineStart,
    /// In a line.
    Inside,
    /// In a line, behind a CR; the CR is withheld.
    Cr,
    /// Behind a `.` that began the line; it is withheld.
    Dot,
    /// Behind `.` and CR that began the line; both are withheld.
    DotCr,
}

/// How content is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Behind DATA: with transparency, up to end-of-data.
    Stuffed,
    /// In chunks of lines.
    Chunks,
    /// In chunks of any octets.
    Binary,
}

/// Undoes transparency and finds end-of-data.
#[derive(Clone, Debug)]
pub struct Decoder {
    at: At,
    bare: BareLineEnds,
    form: Form,
}

impl Decoder {
    /// At the start of content.
    pub fn new(bare: BareLineEnds) -> Self {
        Decoder { at: At::LineStart, bare, form: Form::Stuffed }
    }

    /// At the start of content that comes in chunks.
    pub fn of_chunks(bare: BareLineEnds, is_binary: bool) -> Self {
        let form = if is_binary { Form::Binary } else { Form::Chunks };
        Decoder { at: At::Inside, bare, form }
    }

    /// The last chunk has ended: a CR withheld until now was bare.
    pub fn finish(&mut self, out: &mut impl Output) -> Found {
        match std::mem::replace(&mut self.at, At::Inside) {
            At::Cr => self.bare_line_end(out),
            _ => Found::Nothing,
        }
    }

    /// The most that can be put out when `taken` octets are: a withheld CR may go with them, and every one may
    /// be a bare line end.
    pub fn put_max(&self, taken: usize) -> usize {
        match self.bare {
            BareLineEnds::Refuse => taken + 1,
            BareLineEnds::Normalise => 2 * taken + 2,
        }
    }

    /// How many octets may be taken so that no more than `room` are put out; the reverse of
    /// [`Decoder::put_max`].
    pub fn taken_max(&self, room: usize) -> usize {
        match self.bare {
            BareLineEnds::Refuse => room.saturating_sub(1),
            BareLineEnds::Normalise => room.saturating_sub(2) / 2,
        }
    }

    /// Decodes until something is found or the octets are used up; returns how many were taken.
    ///
    /// After a fault decoding may go on. After [`Found::EndOfData`] the decoder is done with.
    pub fn decode(&mut self, octets: &[u8], out: &mut impl Output) -> (usize, Found) {
        if self.form == Form::Binary {
            out.put(octets);
            return (octets.len(), Found::Nothing);
        }
        let mut taken = 0;
        while let Some(&next) = octets.get(taken) {
            let found = match (self.at, next) {
                (At::LineStart, b'.') => {
                    self.at = At::Dot;
                    taken += 1;
                    Found::Nothing
                }
                (At::Dot, b'\r') => {
                    self.at = At::DotCr;
                    taken += 1;
                    Found::Nothing
                }
                (At::DotCr, b'\n') => return (taken + 1, Found::EndOfData),
                (At::Cr, b'\n') => {
                    out.put(b"\r\n");
                    self.at = if self.form == Form::Stuffed { At::LineStart } else { At::Inside };
                    taken += 1;
                    Found::Nothing
                }
                // The withheld CR was bare. `next` is looked at again, in the middle of a line.
                (At::Cr | At::DotCr, _) => {
                    self.at = At::Inside;
                    self.bare_line_end(out)
                }
                (At::LineStart | At::Dot | At::Inside, _) => {
                    let (size, found) = self.decode_lines(&octets[taken..], out);
                    taken += size;
                    found
                }
            };
            if found != Found::Nothing {
                return (taken, found);
            }
        }
        (taken, Found::Nothing)
    }

    /// Whole lines and parts of them, from a place where nothing is withheld, up to an octet that must be
    /// looked at alone.
    ///
    /// Text without dots at line starts is put out in one run.
    fn decode_lines(&mut self, octets: &[u8], out: &mut impl Output) -> (usize, Found) {
        let mut run = 0;
        let mut from = 0;
        self.at = At::Inside;
        while let Some(distance) = memchr3(b'\r', b'\n', 0, &octets[from..]) {
            let here = from + distance;
            from = here + 1;
            if octets[here] == b'\r' {
                match octets.get(here + 1) {
                    Some(b'\n') => {
                        from = here + 2;
                        if self.form == Form::Stuffed && octets.get(from).is_none_or(|c| *c == b'.') {
                            out.put(&octets[run..from]);
                            self.at = At::LineStart;
                            return (from, Found::Nothing);
                        }
                        continue;
                    }
                    None => {
                        out.put(&octets[run..here]);
                        self.at = At::Cr;
                        return (from, Found::Nothing);
                    }
                    Some(_) => {}
                }
            }
            out.put(&octets[run..here]);
            run = from;
            let found = if octets[here] == 0 { Found::Nul } else { self.bare_line_end(out) };
            if found != Found::Nothing {
                return (from, found);
            }
        }
        out.put(&octets[run..]);
        (octets.len(), Found::Nothing)
    }

    fn bare_line_end(&self, out: &mut impl Output) -> Found {
        match self.bare {
            BareLineEnds::Refuse => Found::BareLineEnd,
            BareLineEnds::Normalise => {
                out.put(b"\r\n");
                Found::Nothing
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stream decodes to: the content, the faults, and the octets behind end-of-data if it was found.
    #[derive(Debug, PartialEq, Eq)]
    struct Decoded {
        content: Vec<u8>,
        faults: Vec<Found>,
        rest: Option<Vec<u8>>,
    }

    fn decode(input: &[u8], bare: BareLineEnds, splits: &[usize]) -> Decoded {
        let mut decoder = Decoder::new(bare);
        let mut decoded = Decoded { content: Vec::new(), faults: Vec::new(), rest: None };
        let mut from = 0;
        for to in splits.iter().copied().chain([input.len()]) {
            while from < to {
                let (taken, found) = decoder.decode(&input[from..to], &mut decoded.content);
                from += taken;
                match found {
                    Found::Nothing => assert_eq!(from, to),
                    Found::EndOfData => {
                        decoded.rest = Some(input[from..].to_vec());
                        return decoded;
                    }
                    fault => decoded.faults.push(fault),
                }
            }
        }
        decoded
    }

    fn at_every_split(input: &[u8], bare: BareLineEnds) -> Decoded {
        let whole = decode(input, bare, &[]);
        let each: Vec<_> = (1..input.len()).collect();
        assert_eq!(
            decode(input, bare, &each),
            whole,
            "{:?} octet by octet",
            input.escape_ascii().to_string()
        );
        for a in 0..=input.len() {
            for b in a..=input.len() {
                let text = input.escape_ascii().to_string();
                assert_eq!(decode(input, bare, &[a, b]), whole, "{text:?} split at {a} and {b}");
            }
        }
        whole
    }

    const BARE: Found = Found::BareLineEnd;

    #[test]
    fn only_crlf_dot_crlf_ends_the_data() {
        // The rows S1 to S16 of smuggling: what is before the true end, what is stored of it, and its faults.
        let table: [(&str, &str, &[Found]); 22] = [
            ("", "", &[]),
            ("x\r\n", "x\r\n", &[]),
            ("\r\n", "\r\n", &[]),
            ("..\r\n", ".\r\n", &[]),
            (".x\r\n", "x\r\n", &[]),
            ("...\r\n", "..\r\n", &[]),
            (". \r\n", " \r\n", &[]),
            ("a.\r\n.b.\r\n", "a.\r\nb.\r\n", &[]),
            ("x\n.\n\r\n", "x.\r\n", &[BARE, BARE]),
            ("x\n.\r\n", "x.\r\n", &[BARE]),
            ("\r\n.\n\r\n", "\r\n\r\n", &[BARE]),
            ("x\r.\r\r\n", "x.\r\n", &[BARE, BARE]),
            ("\r\n.\r\r\n", "\r\n\r\n", &[BARE]),
            ("x\r.\r\n", "x.\r\n", &[BARE]),
            ("x\r.\r\n\n\r\n", "x.\r\n\r\n", &[BARE, BARE]),
            ("x\r.\n\r\n", "x.\r\n", &[BARE, BARE]),
            ("\r\n.\rx\r\n", "\r\nx\r\n", &[BARE]),
            ("\r\n\0.\r\n", "\r\n.\r\n", &[Found::Nul]),
            ("\r\n.\0\r\n", "\r\n\r\n", &[Found::Nul]),
            ("\r\n.\r\0\n\r\n", "\r\n\r\n", &[BARE, Found::Nul, BARE]),
            ("\n\n\r\r\n", "\r\n", &[BARE, BARE, BARE]),
            ("MAIL FROM:<>\r\n", "MAIL FROM:<>\r\n", &[]),
        ];
        for (before, content, faults) in table {
            let decoded = at_every_split(format!("{before}.\r\nQUIT\r\n").as_bytes(), BareLineEnds::Refuse);
            assert_eq!(decoded.rest.as_deref(), Some(&b"QUIT\r\n"[..]), "{before:?}");
            assert_eq!(String::from_utf8(decoded.content).unwrap(), content, "{before:?}");
            assert_eq!(decoded.faults, faults, "{before:?}");
        }
    }

    #[test]
    fn normalised_line_ends_still_do_not_end_the_data() {
        let table = [
            ("x\n.\n\r\n", "x\r\n.\r\n\r\n"),
            ("x\r.\r\r\n", "x\r\n.\r\n\r\n"),
            ("x\n.\r\n", "x\r\n.\r\n"),
            ("\r\n.\n..\r\n", "\r\n\r\n..\r\n"),
            ("\r\n.\r\r\n", "\r\n\r\n\r\n"),
            ("\r\n.\r.\r\n", "\r\n\r\n.\r\n"),
            ("\n\r\n", "\r\n\r\n"),
        ];
        for (before, content) in table {
            let decoded = at_every_split(format!("{before}.\r\nQUIT").as_bytes(), BareLineEnds::Normalise);
            assert_eq!(decoded.rest.as_deref(), Some(&b"QUIT"[..]), "{before:?}");
            assert_eq!(String::from_utf8(decoded.content).unwrap(), content, "{before:?}");
            assert_eq!(decoded.faults, [], "{before:?}");
        }
        assert_eq!(decode(b"\0.\r\n", BareLineEnds::Normalise, &[]).faults, [Found::Nul]);
    }

    /// Content in chunks cut at `cuts`: what is put out, and the faults.
    fn decode_chunks(
        input: &[u8],
        bare: BareLineEnds,
        is_binary: bool,
        cuts: &[usize],
    ) -> (Vec<u8>, Vec<Found>) {
        let mut decoder = Decoder::of_chunks(bare, is_binary);
        let (mut content, mut faults) = (Vec::new(), Vec::new());
        let mut from = 0;
        for to in cuts.iter().copied().chain([input.len()]) {
            while from < to {
                let (taken, found) = decoder.decode(&input[from..to], &mut content);
                from += taken;
                faults.extend(Some(found).filter(|found| *found != Found::Nothing));
            }
        }
        faults.extend(Some(decoder.finish(&mut content)).filter(|found| *found != Found::Nothing));
        (content, faults)
    }

    #[test]
    fn chunks_have_no_transparency_and_no_end_of_data() {
        let table: [(&str, &str, &[Found]); 12] = [
            ("", "", &[]),
            (".\r\n", ".\r\n", &[]),
            ("..\r\n.", "..\r\n.", &[]),
            ("x\r\n.\r\nQUIT\r\n", "x\r\n.\r\nQUIT\r\n", &[]),
            ("no end of line", "no end of line", &[]),
            ("x\r", "x", &[BARE]),
            ("x\n", "x", &[BARE]),
            ("\r\r\n", "\r\n", &[BARE]),
            ("x\n.\n", "x.", &[BARE, BARE]),
            ("\r\n.\r", "\r\n.", &[BARE]),
            ("a\0b", "ab", &[Found::Nul]),
            ("\r\0\n", "", &[BARE, Found::Nul, BARE]),
        ];
        for (input, content, faults) in table {
            let input = input.as_bytes();
            for a in 0..=input.len() {
                for b in a..=input.len() {
                    let decoded = decode_chunks(input, BareLineEnds::Refuse, false, &[a, b]);
                    assert_eq!(
                        decoded,
                        (content.as_bytes().to_vec(), faults.to_vec()),
                        "{input:?} at {a}, {b}"
                    );
                    let (binary, none) = decode_chunks(input, BareLineEnds::Refuse, true, &[a, b]);
                    assert_eq!((&binary[..], &none[..]), (input, &[][..]));
                }
            }
        }
        let normalised = decode_chunks(b"a\nb\r\n.\r", BareLineEnds::Normalise, false, &[3]);
        assert_eq!(normalised, (b"a\r\nb\r\n.\r\n".to_vec(), vec![]));
    }

    /// The rules of the module's header written the slow way: one octet after the other, with the whole past
    /// at hand.
    fn by_the_rules(input: &[u8], bare: BareLineEnds) -> Decoded {
        let mut decoded = Decoded { content: Vec::new(), faults: Vec::new(), rest: None };
        let mut line_start = true;
        let mut i = 0;
        while i < input.len() {
            let rest = &input[i..];
            if line_start && rest.starts_with(b".\r\n") {
                decoded.rest = Some(rest[3..].to_vec());
                return decoded;
            }
            let was_start = std::mem::replace(&mut line_start, false);
            if was_start && rest[0] == b'.' {
                i += 1;
            } else if rest.starts_with(b"\r\n") {
                decoded.content.extend_from_slice(b"\r\n");
                line_start = true;
                i += 2;
            } else {
                match (rest[0], bare) {
                    (0, _) => decoded.faults.push(Found::Nul),
                    (b'\r' | b'\n', BareLineEnds::Refuse) => decoded.faults.push(Found::BareLineEnd),
                    (b'\r' | b'\n', BareLineEnds::Normalise) => decoded.content.extend_from_slice(b"\r\n"),
                    (c, _) => decoded.content.push(c),
                }
                i += 1;
            }
        }
        decoded
    }

    #[test]
    fn all_short_streams_decode_by_the_rules_at_every_split() {
        const OCTETS: &[u8] = b"\r\n.\0x";
        const SIZE: u32 = 6;
        for number in 0..OCTETS.len().pow(SIZE) {
            let mut rest = number;
            let mut input = Vec::new();
            for _ in 0..SIZE {
                input.push(OCTETS[rest % OCTETS.len()]);
                rest /= OCTETS.len();
            }
            // A tail that ends every stream, so that nothing is withheld at its end.
            input.extend_from_slice(b"y\r\n.\r\nQ");
            for bare in [BareLineEnds::Refuse, BareLineEnds::Normalise] {
                let expected = by_the_rules(&input, bare);
                let each: Vec<_> = (1..input.len()).collect();
                assert_eq!(decode(&input, bare, &[]), expected, "{:?}", input.escape_ascii().to_string());
                assert_eq!(decode(&input, bare, &each), expected, "{:?}", input.escape_ascii().to_string());
            }
        }
    }
}
