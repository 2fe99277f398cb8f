//! The header section of a message: its fields, parsed when somebody asks.
//!
//! ```text
//!  Received: from a.example        name "Received"   raw " from a.example\tby mx.test"
//!  ⇥by mx.test                                       value "from a.example\tby mx.test"
//!  Subject: =?utf-8?q?h=C3=A9?=    name "Subject"    decoded "hé"
//!  (empty line)
//! ```
//!
//! A field is unfolded as RFC 5322 §2.2.3 says: the line ends before white space go, and nothing else does; [`HeaderField::raw`] is
//! octet for octet what is left. The section ends at the empty line, or at the first line that is neither a field nor the
//! continuation of one: content without a header section, or the `From ` line of a mailbox file. White space before the colon is
//! tolerated (§4.5.8).
//!
//! Invariants:
//! - fields are in the order of the message, those of one name too;
//! - no part of a field is given for the whole: of a section larger than [`HEADER_FIELDS_SIZE_MAX`] the fields that fit are there, and
//!   [`HeaderFields::is_whole`] says that some are not;
//! - the body is never read, but for what came in the same block;
//! - decoding is cheap whatever a stranger has written, so that it need not leave a thread that must not block: what is longer than
//!   [`DECODED_SIZE_MAX`] or [`ADDRESSES_SIZE_MAX`], or has an encoded word longer than [`WORD_SIZE_MAX`], is left as it is.
//!
//! Knows nothing of where content comes from.

use std::borrow::Cow;
use std::io::{self, ErrorKind, Read};

use mail_parser::parsers::MessageStream;
use memchr::{memchr, memmem};
use serde::Serialize;

use crate::limits::HEADER_FIELDS_SIZE_MAX;

/// What is read at once, octets: most header sections whole.
const BLOCK_SIZE: usize = 8 << 10;
/// A field name is shorter than the longest line (RFC 5322 §2.1.1), octets; what is longer is no field.
const NAME_SIZE_MAX: usize = 998;
/// The longest text that is decoded, octets: some hundred lines of people's.
const DECODED_SIZE_MAX: usize = 8 << 10;
/// The longest list that is taken apart, octets: some thousand mailboxes.
const ADDRESSES_SIZE_MAX: usize = 64 << 10;
/// Mailboxes of a list.
const ADDRESSES_MAX: usize = 1000;
/// The longest encoded word, octets; RFC 2047 §2 has 75, senders have more. What has begun like one is read to its end again from each
/// such beginning: without a bound, as often as it is long.
const WORD_SIZE_MAX: usize = 512;

/// The fields of a header section, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderFields {
    /// Each field's name and, right behind it, its unfolded body.
    text: Vec<u8>,
    places: Vec<Place>,
    is_whole: bool,
}

/// Where in the text a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    start: u32,
    name_end: u32,
    end: u32,
}

/// One field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderField<'a> {
    name: &'a str,
    raw: &'a [u8],
}

/// One mailbox of a field such as `From`. Both texts are decoded (RFC 2047).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Address {
    /// The name before the address, if there is one.
    pub name: Option<String>,
    /// The address as it stands there: it may be no address at all.
    pub address: String,
}

impl<'a> HeaderField<'a> {
    /// Its name as it is written; compare it without case.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Everything behind the colon, unfolded; the octets of the message.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// The same as text, without the white space around it; what is not UTF-8 is replaced by U+FFFD.
    pub fn value(&self) -> Cow<'a, str> {
        let is_space = |c: &u8| matches!(c, b' ' | b'\t');
        let start = self.raw.iter().position(|c| !is_space(c)).unwrap_or(self.raw.len());
        let end = self.raw.iter().rposition(|c| !is_space(c)).map_or(start, |last| last + 1);
        String::from_utf8_lossy(&self.raw[start..end])
    }

    /// The value with its encoded words decoded (RFC 2047); as it is where that costs too much (see the module).
    pub fn decoded(&self) -> String {
        if self.raw.len() > DECODED_SIZE_MAX || !has_short_words(self.raw) {
            return self.value().into_owned();
        }
        let line = self.line();
        let value = MessageStream::new(&line).parse_unstructured();
        value.into_text().map_or_else(String::new, Cow::into_owned)
    }

    /// The mailboxes of the value, those of groups too; none where it has none, or where finding them costs too much (see the module).
    pub fn addresses(&self) -> Vec<Address> {
        if self.raw.len() > ADDRESSES_SIZE_MAX || !has_short_words(self.raw) {
            return Vec::new();
        }
        let line = self.line();
        let value = MessageStream::new(&line).parse_address();
        let Some(addresses) = value.as_address() else { return Vec::new() };
        let owned = |addr: &mail_parser::Addr<'_>| {
            let address = addr.address()?.to_string();
            Some(Address { name: addr.name().map(String::from), address })
        };
        addresses.iter().filter_map(owned).take(ADDRESSES_MAX).collect()
    }

    /// The body as the one line it is after unfolding: parsers look for its end.
    fn line(&self) -> Vec<u8> {
        [self.raw, b"\n"].concat()
    }
}

impl HeaderFields {
    /// Reads the header section with which `content` begins.
    pub fn read(content: &mut dyn Read) -> io::Result<Self> {
        let mut reader = HeaderReader::default();
        let mut block = [0; BLOCK_SIZE];
        loop {
            match content.read(&mut block) {
                Ok(0) => break,
                Ok(size) if reader.push(&block[..size]) => break,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(reader.finish())
    }

    /// The fields.
    pub fn iter(&self) -> impl Iterator<Item = HeaderField<'_>> {
        self.places.iter().map(|place| {
            let (name, raw) = self.text[place.start as usize..place.end as usize].split_at(place.name_size());
            HeaderField { name: std::str::from_utf8(name).expect("names are ASCII"), raw }
        })
    }

    /// The fields of this name, without case.
    pub fn all(&self, name: &str) -> impl Iterator<Item = HeaderField<'_>> {
        self.iter().filter(move |field| field.name.eq_ignore_ascii_case(name))
    }

    /// The first field of this name.
    pub fn get(&self, name: &str) -> Option<HeaderField<'_>> {
        self.all(name).next()
    }

    /// The values of all fields of this name as one list, with ", " between; `None` where there is none.
    pub fn joined(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self.all(name).map(|field| field.value()).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    /// The mailboxes of all fields of this name, `ADDRESSES_MAX` at most; of fields that are together longer than
    /// `ADDRESSES_SIZE_MAX` the first only.
    pub fn addresses(&self, name: &str) -> Vec<Address> {
        let mut room = ADDRESSES_SIZE_MAX;
        let fields = self.all(name).map_while(|field| {
            room = room.checked_sub(field.raw.len().max(1))?;
            Some(field)
        });
        fields.flat_map(|field| field.addresses()).take(ADDRESSES_MAX).collect()
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether these are all fields of the message: its section was not larger than what is read.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }
}

impl Place {
    fn name_size(&self) -> usize {
        (self.name_end - self.start) as usize
    }
}

/// Takes content piece by piece until its header section has ended.
#[derive(Debug, Default)]
pub struct HeaderReader {
    text: Vec<u8>,
    places: Vec<Place>,
    /// The beginning of a line whose end did not come yet.
    line: Vec<u8>,
    /// Octets of the lines before it.
    size: usize,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The line that ends it has come.
    Reached,
    /// What is behind the bound is not looked at.
    Cut,
}

/// What a line, or the beginning of one, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A field: the size of its name, and where its body begins.
    Field {
        name_size: usize,
        body: usize,
    },
    Continuation,
    /// The line must go on to be a field.
    Open,
    /// It ends the section.
    Other,
}

impl HeaderReader {
    /// Takes the next octets of the content. True: the section has ended, more need not come.
    pub fn push(&mut self, mut octets: &[u8]) -> bool {
        while self.end.is_none() && !octets.is_empty() {
            let line_size = memchr(b'\n', octets).map(|at| at + 1);
            let (part, rest) = octets.split_at(line_size.unwrap_or(octets.len()));
            if self.size + self.line.len() + part.len() > HEADER_FIELDS_SIZE_MAX {
                self.cut();
                break;
            }
            self.line.extend_from_slice(part);
            if line_size.is_some() {
                let mut line = std::mem::take(&mut self.line);
                self.size += line.len();
                self.take_line(&line);
                line.clear();
                self.line = line;
            } else if kind(&self.line) == Kind::Other {
                self.end = Some(End::Reached);
            }
            octets = rest;
        }
        self.end.is_some()
    }

    /// The fields that were found; what was taken last is taken for the end of the content.
    pub fn finish(mut self) -> HeaderFields {
        if self.end.is_none() && !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.take_line(&line);
        }
        let is_whole = self.end != Some(End::Cut);
        HeaderFields { text: self.text, places: self.places, is_whole }
    }

    fn take_line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let position = |text: &Vec<u8>| u32::try_from(text.len()).expect("the section is bounded");
        match (kind(line), self.places.last_mut()) {
            (Kind::Field { name_size, body }, _) => {
                let start = position(&self.text);
                self.text.extend_from_slice(&line[..name_size]);
                let name_end = position(&self.text);
                self.text.extend_from_slice(&line[body..]);
                self.places.push(Place { start, name_end, end: position(&self.text) });
            }
            (Kind::Continuation, Some(field)) => {
                self.text.extend_from_slice(line);
                field.end = position(&self.text);
            }
            (Kind::Continuation | Kind::Open | Kind::Other, _) => self.end = Some(End::Reached),
        }
    }

    /// The last field may have had more lines: it goes.
    fn cut(&mut self) {
        self.end = Some(End::Cut);
        if let Some(place) = self.places.pop() {
            self.text.truncate(place.start as usize);
        }
    }
}

/// Whether everything that begins like an encoded word has an end that is near.
fn has_short_words(text: &[u8]) -> bool {
    memmem::find_iter(text, b"=?").all(|at| {
        let rest = &text[at + 2..];
        rest.len() <= WORD_SIZE_MAX || memmem::find(&rest[..WORD_SIZE_MAX], b"?=").is_some()
    })
}

fn kind(line: &[u8]) -> Kind {
    let is_space = |c: &u8| matches!(c, b' ' | b'\t');
    if line.first().is_some_and(is_space) {
        return Kind::Continuation;
    }
    let name_size = line.iter().position(|c| !matches!(c, 33..=126) || *c == b':').unwrap_or(line.len());
    if name_size == 0 && !line.is_empty() || name_size > NAME_SIZE_MAX {
        return Kind::Other;
    }
    let behind = &line[name_size..];
    match behind.iter().position(|c| !is_space(c)) {
        None => Kind::Open,
        Some(at) if behind[at] == b':' => Kind::Field { name_size, body: name_size + at + 1 },
        Some(_) => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn parse(content: &[u8]) -> HeaderFields {
        HeaderFields::read(&mut &content[..]).unwrap()
    }

    fn raw(fields: &HeaderFields) -> Vec<(String, Vec<u8>)> {
        fields.iter().map(|field| (field.name().into(), field.raw().into())).collect()
    }

    #[test]
    fn fields_are_unfolded_and_nothing_else_is_changed() {
        type Fields<'a> = &'a [(&'a str, &'a [u8])];
        let table: [(&[u8], Fields); 17] = [
            (b"", &[]),
            (b"\r\nA: b\r\n", &[]),
            (b"A: b\r\n\r\nC: d\r\n", &[("A", b" b")]),
            (b"A:b\r\nC:\r\n", &[("A", b"b"), ("C", b"")]),
            (b"A: b\r\n c\r\n\t d \r\nE: f\r\n\r\n", &[("A", b" b c\t d "), ("E", b" f")]),
            (b"A:\r\n \r\n b\r\n", &[("A", b"  b")]),
            (b"A: b\xff\x00\r c\r\r\n", &[("A", b" b\xff\x00\r c\r")]),
            (b"A: b", &[("A", b" b")]),
            (b"A: b\r\n c", &[("A", b" b c")]),
            (b"A: b\nC: d\n e\n\nF: g\n", &[("A", b" b"), ("C", b" d e")]),
            (b"A \t : b\r\n", &[("A", b" b")]),
            (b"A: b\r\nFrom alice Mon\r\nC: d\r\n", &[("A", b" b")]),
            (b"From alice Mon\r\nC: d\r\n", &[]),
            (b"A: b\r\nno field\r\nC: d\r\n", &[("A", b" b")]),
            (b"A: b\r\nC", &[("A", b" b")]),
            (b" a\r\nA: b\r\n", &[]),
            (b"A: b\r\n: c\r\nD: e\r\n", &[("A", b" b")]),
        ];
        for (content, expected) in table {
            let expected: Vec<_> =
                expected.iter().map(|(name, raw)| (name.to_string(), raw.to_vec())).collect();
            let fields = parse(content);
            assert_eq!(raw(&fields), expected, "{}", content.escape_ascii());
            assert!(fields.is_whole());
        }
    }

    #[test]
    fn repeated_fields_are_found_in_order_and_without_case() {
        let fields =
            parse(b"To: a\r\nReceived: 1\r\ntO:  b,\r\n c \r\nReceived: 2\r\nTo:\r\n\r\nTo: body\r\n");
        let values = |name: &str| fields.all(name).map(|f| f.value().into_owned()).collect::<Vec<_>>();
        assert_eq!(values("to"), ["a", "b, c", ""]);
        assert_eq!(values("RECEIVED"), ["1", "2"]);
        assert_eq!(fields.get("TO").unwrap().value(), "a");
        assert_eq!(fields.joined("to").unwrap(), "a, b, c, ");
        assert_eq!((fields.get("Subject"), fields.joined("Subject")), (None, None));
        assert_eq!(fields.len(), 5);
    }

    #[test]
    fn words_and_addresses_are_decoded() {
        let table = [
            ("=?utf-8?q?h=C3=A9?= there", "hé there"),
            ("=?UTF-8?B?aMOp?=\r\n =?utf-8?q?llo?=", "héllo"),
            ("=?iso-8859-1?q?h=E9?=", "hé"),
            ("=?iso-2022-jp?B?GyRCJCIbKEI=?=", "あ"),
            ("plain", "plain"),
            ("raw é", "raw é"),
            ("", ""),
        ];
        for (value, expected) in table {
            let fields = parse(format!("Subject: {value}\r\n").as_bytes());
            assert_eq!(fields.get("subject").unwrap().decoded(), expected, "{value:?}");
        }
        let fields = parse(
            b"To: =?utf-8?q?J=C3=BCrgen?= <j@a.example>, b@b.example,\r\n Team: c@c.example;\r\nCc: undisclosed-recipients:;\r\n",
        );
        let address = |name: Option<&str>, address: &str| Address {
            name: name.map(String::from),
            address: address.into(),
        };
        assert_eq!(
            fields.get("to").unwrap().addresses(),
            [
                address(Some("Jürgen"), "j@a.example"),
                address(None, "b@b.example"),
                address(None, "c@c.example")
            ]
        );
        assert_eq!(fields.get("cc").unwrap().addresses(), []);
    }

    #[test]
    fn what_costs_too_much_is_not_decoded() {
        let subject =
            |text: &str| parse(format!("Subject: {text}\r\n").as_bytes()).get("subject").unwrap().decoded();
        let word = |size: usize| format!("=?utf-8?q?{}?=", "x".repeat(size));
        assert_eq!(subject(&word(WORD_SIZE_MAX - 10)), "x".repeat(WORD_SIZE_MAX - 10));
        assert_eq!(subject(&(word(1) + &" plain".repeat(1000))), "x".to_string() + &" plain".repeat(1000));
        let octets = |count: usize, text: &str| text.repeat(count / text.len());
        let mebi = HEADER_FIELDS_SIZE_MAX / 2;
        let hostile = [
            octets(mebi, "=?ab?Q?x"),
            octets(mebi, "=?ab?B?AAAA"),
            octets(DECODED_SIZE_MAX / 2, "=?ab?Q?x"),
            octets(mebi, "a =?ab?Q?x?="),
            word(WORD_SIZE_MAX) + &" ".repeat(WORD_SIZE_MAX) + "x",
        ];
        for text in &hostile {
            assert!(subject(text) == *text, "{}", &text[..50]);
            let fields = parse(format!("To: {text} <a@e.org>\r\n").as_bytes());
            assert_eq!(fields.get("to").unwrap().addresses(), [], "{}", &text[..50]);
        }
        let list = |size: usize, separator: &str| {
            let text = octets(size, &format!("@,{separator}"));
            parse(format!("To: {text}\r\n").as_bytes()).addresses("to").len()
        };
        assert_eq!(list(ADDRESSES_SIZE_MAX / 2, ""), ADDRESSES_MAX);
        assert_eq!(list(ADDRESSES_SIZE_MAX / 2, "\r\nTo:"), ADDRESSES_MAX);
        assert_eq!(list(mebi, ""), 0);
        let long = format!("To: a@e.org\r\nTo:{}b@e.org\r\nTo: c@e.org\r\n", " ".repeat(ADDRESSES_SIZE_MAX));
        let found = parse(long.as_bytes()).addresses("to");
        assert_eq!(found.iter().map(|found| &found.address[..]).collect::<Vec<_>>(), ["a@e.org"]);
    }

    #[test]
    fn a_section_beyond_the_bound_is_cut_between_fields() {
        let field = |n: usize| format!("X-{n:07}: {}\r\n", "x".repeat(987));
        let kept = HEADER_FIELDS_SIZE_MAX / field(0).len();
        let section: String = (0..kept + 1).map(field).collect();
        let fields = parse(section.as_bytes());
        assert!(!fields.is_whole());
        // The last that fits might have gone on behind the bound.
        assert_eq!(fields.len(), kept - 1);
        let exact = format!("A: b\r\nX: {}\r\n", "x".repeat(HEADER_FIELDS_SIZE_MAX - 11));
        let (whole, cut) = (parse(exact.as_bytes()), parse(format!("{exact}\r\n").as_bytes()));
        assert!(whole.is_whole() && whole.len() == 2);
        assert!(!cut.is_whole() && cut.len() == 1, "the line that ends it is a part of it");
        let one = format!("X: {}", "x".repeat(HEADER_FIELDS_SIZE_MAX));
        assert!(parse(one.as_bytes()).is_empty() && !parse(one.as_bytes()).is_whole());
        let body = "x".repeat(2 * HEADER_FIELDS_SIZE_MAX);
        assert!(parse(body.as_bytes()).is_whole(), "no header section at all");
        let fields = parse(format!("A: b\r\nx {body}").as_bytes());
        assert!(fields.is_whole() && fields.len() == 1, "a body that is one line");
    }

    #[test]
    fn the_body_is_not_read() {
        struct Endless(u64);
        impl Read for Endless {
            fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
                self.0 += block.len() as u64;
                block.fill(b'x');
                Ok(block.len())
            }
        }
        let mut body = Endless(0);
        let fields = HeaderFields::read(&mut b"A: b\r\n\r\n".chain(&mut body)).unwrap();
        assert_eq!((fields.len(), body.0), (1, 0));
        let fields = HeaderFields::read(&mut b"A: b\r\n".chain(&mut body)).unwrap();
        assert_eq!(fields.len(), 1);
        assert!(body.0 <= BLOCK_SIZE as u64);
    }

    /// Octets of which header sections are made, and others.
    fn octets() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(b"A".to_vec()),
            Just(b"Subject".to_vec()),
            Just(b":".to_vec()),
            Just(b" ".to_vec()),
            Just(b"\t".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"\n".to_vec()),
            Just(b"\r".to_vec()),
            Just(b"From ".to_vec()),
            Just(b"=?utf-8?q?".to_vec()),
            Just(b"?=".to_vec()),
            Just(b"\"<(@,;".to_vec()),
            Just(b")>\\".to_vec()),
            vec(any::<u8>(), 0..4),
        ];
        vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 2000 } else { 20_000 }))]

        #[test]
        fn any_octets_in_any_pieces_give_the_same_fields(content in octets(), step in 1usize..20) {
            let whole = parse(&content);
            let mut reader = HeaderReader::default();
            let _ = content.chunks(step).any(|chunk| reader.push(chunk));
            prop_assert_eq!(&reader.finish(), &whole);
            for field in whole.iter() {
                prop_assert!(!field.name().is_empty() && !field.raw().contains(&b'\n'));
                let _ = (field.value(), field.decoded(), field.addresses());
            }
        }

        #[test]
        fn what_was_folded_is_found_again(
            fields in vec(("[!-9;-~]{1,20}", vec("[ \t][ -~é]{0,30}", 1..4)), 0..8)
        ) {
            let mut section = Vec::new();
            let mut expected = Vec::new();
            for (name, lines) in &fields {
                section.extend_from_slice(format!("{name}:{}\r\n", lines.join("\r\n")).as_bytes());
                expected.push((name.clone(), lines.concat().into_bytes()));
            }
            section.extend_from_slice(b"\r\nBody: x\r\n");
            prop_assert_eq!(raw(&parse(&section)), expected);
        }
    }
}
