//! What a sender asks to be told about a message: delivery status notifications (RFC 3461).
//!
//! The texts are kept as they were given, encoded, because the next hop wants them so. Their types promise that what they
//! decode to holds no control character.

/// The longest ENVID, in octets as given (RFC 3461 §4.4).
const ENVELOPE_ID_SIZE_MAX: usize = 100;
/// The longest ORCPT, in octets as given (RFC 3461 §4.2).
const ORIGINAL_RECIPIENT_SIZE_MAX: usize = 500;

/// What MAIL and RCPT said of notifications.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dsn {
    /// RET of MAIL: how much of the message a notification of failure brings back.
    pub ret: Option<Ret>,
    /// ENVID of MAIL: the sender's own name for this message.
    pub envelope_id: Option<EnvelopeId>,
    /// Of those recipients for which something was said; ascending by index.
    pub recipients: Vec<RecipientDsn>,
}

/// What RCPT said of one recipient.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecipientDsn {
    /// Its place in the envelope's forward-paths.
    pub index: u32,
    /// NOTIFY: when to tell.
    pub notify: Option<Notify>,
    /// ORCPT: the address the sender knows.
    pub original: Option<OriginalRecipient>,
}

/// How much of the message comes back (RFC 3461 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    /// `FULL`: all of it.
    Full,
    /// `HDRS`: its header section.
    Headers,
}

impl Ret {
    /// The value of RET.
    pub fn parse(text: &str) -> Option<Self> {
        [Ret::Full, Ret::Headers].into_iter().find(|ret| text.eq_ignore_ascii_case(ret.as_str()))
    }

    /// The keyword.
    pub fn as_str(self) -> &'static str {
        match self {
            Ret::Full => "FULL",
            Ret::Headers => "HDRS",
        }
    }
}

/// When a sender is told about a recipient (RFC 3461 §4.1): never, or in some of three cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notify(u8);

impl Notify {
    const KEYWORDS: [&str; 3] = ["SUCCESS", "FAILURE", "DELAY"];

    /// `NEVER`.
    pub const NEVER: Notify = Notify(0);

    /// The value of NOTIFY. Repeated keywords, and NEVER beside another one, are ill-formed.
    pub fn parse(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("NEVER") {
            return Some(Notify::NEVER);
        }
        text.split(',').try_fold(Notify::NEVER, |notify, word| {
            let bit = Self::KEYWORDS.iter().position(|keyword| word.eq_ignore_ascii_case(keyword))?;
            let with = Notify(notify.0 | 1 << bit);
            (with != notify).then_some(with)
        })
    }

    /// Whether to tell that it was delivered.
    pub fn has_success(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether to tell that it could not be.
    pub fn has_failure(self) -> bool {
        self.0 & 2 != 0
    }

    /// As the three bits of SUCCESS, FAILURE and DELAY.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The reverse of [`Notify::bits`].
    pub fn from_bits(bits: u8) -> Option<Self> {
        (bits < 8).then_some(Notify(bits))
    }

    /// The keywords with commas between.
    pub fn text(self) -> String {
        let chosen = (0..3).filter(|bit| self.0 & 1 << bit != 0).map(|bit| Self::KEYWORDS[bit]);
        match self {
            Notify::NEVER => "NEVER".into(),
            _ => chosen.collect::<Vec<_>>().join(","),
        }
    }
}

/// The value of ENVID, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvelopeId(Box<str>);

impl EnvelopeId {
    /// `xtext` of at most 100 octets.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() <= ENVELOPE_ID_SIZE_MAX && is_xtext(text)).then(|| EnvelopeId(text.into()))
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it stands for: printable ASCII, spaces among it.
    pub fn decode(&self) -> String {
        decode_xtext(&self.0)
    }
}

/// The value of ORCPT, encoded: `addr-type ";" xtext`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginalRecipient(Box<str>);

impl OriginalRecipient {
    /// At most 500 octets. With the type `utf-8` (RFC 6533 §3) the address may hold text beyond ASCII, if `utf8` permits it, and
    /// `\x{…}` in place of characters; with every other it is `xtext`.
    pub fn parse(text: &str, utf8: bool) -> Option<Self> {
        let (kind, address) = text.split_once(';')?;
        let is_kind = !kind.is_empty() && kind.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
        let is_address = match kind.eq_ignore_ascii_case("utf-8") {
            true => is_utf8_address(address, utf8),
            false => is_xtext(address),
        };
        let is_original =
            text.len() <= ORIGINAL_RECIPIENT_SIZE_MAX && is_kind && !address.is_empty() && is_address;
        is_original.then(|| OriginalRecipient(text.into()))
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The type of the address, and what the address stands for: printable, beyond ASCII only where the type is `utf-8`.
    pub fn decode(&self) -> (&str, String) {
        let (kind, address) = self.0.split_once(';').expect("parsed");
        match kind.eq_ignore_ascii_case("utf-8") {
            true => (kind, decode_utf8_address(address)),
            false => (kind, decode_xtext(address)),
        }
    }
}

/// RFC 3461 §4: printable ASCII without `+` and `=`, and `+` with two upper-case hexadecimal digits. What these stand for must be
/// printable too: nothing that is decoded later may begin a new line somewhere.
pub fn is_xtext(text: &str) -> bool {
    let mut octets = text.bytes();
    while let Some(c) = octets.next() {
        let is_good = match c {
            b'+' => {
                let digit = |c: Option<u8>| match c? {
                    c @ b'0'..=b'9' => Some(c - b'0'),
                    c @ b'A'..=b'F' => Some(c - b'A' + 10),
                    _ => None,
                };
                let decoded = digit(octets.next()).zip(digit(octets.next())).map(|(a, b)| a << 4 | b);
                matches!(decoded, Some(0x20..=0x7e))
            }
            b'=' => false,
            _ => c.is_ascii_graphic(),
        };
        if !is_good {
            return false;
        }
    }
    true
}

/// `utf-8-addr-xtext` or `utf-8-addr-unitext` (RFC 6533 §3): `\x{HEX}` is a character that must not be a control character.
fn is_utf8_address(text: &str, utf8: bool) -> bool {
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(escaped) = rest.strip_prefix("\\x{") {
            let Some((digits, behind)) = escaped.split_once('}') else { return false };
            let is_hex = (2..=6).contains(&digits.len())
                && digits.bytes().all(|c| c.is_ascii_digit() || (b'A'..=b'F').contains(&c));
            let character = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
            if !is_hex || character.is_none_or(char::is_control) {
                return false;
            }
            rest = behind;
            continue;
        }
        let is_good = match c {
            '\\' | '+' | '=' => false,
            _ if c.is_ascii() => c.is_ascii_graphic(),
            _ => utf8 && !c.is_control(),
        };
        if !is_good {
            return false;
        }
        rest = &rest[c.len_utf8()..];
    }
    true
}

/// What [`is_xtext`] stands for.
fn decode_xtext(text: &str) -> String {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, encoded)) = rest.split_once('+') {
        decoded.push_str(plain);
        let (digits, behind) = encoded.split_at(2);
        decoded.push(u8::from_str_radix(digits, 16).expect("parsed").into());
        rest = behind;
    }
    decoded + rest
}

/// What [`is_utf8_address`] stands for.
fn decode_utf8_address(text: &str) -> String {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, encoded)) = rest.split_once("\\x{") {
        decoded.push_str(plain);
        let (digits, behind) = encoded.split_once('}').expect("parsed");
        let character = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
        decoded.push(character.expect("parsed"));
        rest = behind;
    }
    decoded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notify_is_never_or_a_set() {
        let table = [
            ("NEVER", Some("NEVER")),
            ("success", Some("SUCCESS")),
            ("DELAY,Failure", Some("FAILURE,DELAY")),
            ("SUCCESS,FAILURE,DELAY", Some("SUCCESS,FAILURE,DELAY")),
            ("NEVER,SUCCESS", None),
            ("SUCCESS,NEVER", None),
            ("SUCCESS,SUCCESS", None),
            ("SUCCESS,", None),
            ("", None),
            ("ALWAYS", None),
        ];
        for (text, expected) in table {
            let notify = Notify::parse(text);
            assert_eq!(notify.map(Notify::text).as_deref(), expected, "{text}");
            assert_eq!(notify.and_then(|n| Notify::from_bits(n.bits())), notify);
        }
        assert_eq!(Notify::from_bits(8), None);
    }

    #[test]
    fn encoded_texts_hide_no_control_character() {
        let table = [
            ("QQ314159", true),
            ("a+2Bb+3D", true),
            ("", true),
            ("a+0Ab", false),
            ("a+0D", false),
            ("a+00", false),
            ("a+7F", false),
            ("a+80", false),
            ("a+2b", false),
            ("a+2", false),
            ("a+", false),
            ("a=b", false),
            ("a b", false),
            ("a\nb", false),
            ("é", false),
        ];
        for (text, is_good) in table {
            assert_eq!(EnvelopeId::parse(text).is_some(), is_good, "{text:?}");
            let original = OriginalRecipient::parse(&format!("rfc822;{text}"), true);
            assert_eq!(original.is_some(), is_good && !text.is_empty(), "{text:?}");
        }
    }

    #[test]
    fn original_recipients_have_a_type_and_an_address() {
        let table = [
            ("rfc822;b@example.com", true),
            ("X400;/c+3Dus/", true),
            ("utf-8;b@example.com", true),
            ("utf-8;é@example.com", true),
            ("UTF-8;\\x{E9}@example.com", true),
            ("utf-8;\\x{0A}", false),
            ("utf-8;\\x{e9}", false),
            ("utf-8;\\x{E9", false),
            ("utf-8;\\n", false),
            ("utf-8;a+2Bb", false),
            ("utf-8;\u{85}", false),
            ("rfc822;", false),
            (";a", false),
            ("rfc822", false),
            ("rfc 822;a", false),
        ];
        for (text, is_good) in table {
            assert_eq!(OriginalRecipient::parse(text, true).is_some(), is_good, "{text:?}");
        }
        assert_eq!(OriginalRecipient::parse("utf-8;é@e", false), None);
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let table = [
            ("rfc822;b@example.com", ("rfc822", "b@example.com")),
            ("X400;/c+3Dus/+20x+2B", ("X400", "/c=us/ x+")),
            ("utf-8;\\x{E9}+@e", ("", "")),
            ("utf-8;\\x{E9}\\x{20}b\\x{1F600}ü@e", ("utf-8", "é b😀ü@e")),
        ];
        for (text, expected) in table {
            let decoded =
                OriginalRecipient::parse(text, true).map(|o| (o.decode().0.to_owned(), o.decode().1));
            let (kind, address) = decoded.unwrap_or_default();
            assert_eq!((kind.as_str(), address.as_str()), expected, "{text}");
        }
        assert_eq!(EnvelopeId::parse("+41+2B+20b").unwrap().decode(), "A+ b");
        assert_eq!(EnvelopeId::parse("").unwrap().decode(), "");
    }

    #[test]
    fn bounds_hold_on_both_sides() {
        for (size, is_good) in [(100, true), (101, false)] {
            assert_eq!(EnvelopeId::parse(&"x".repeat(size)).is_some(), is_good);
        }
        for (size, is_good) in [(500, true), (501, false)] {
            let text = format!("rfc822;{}", "x".repeat(size - 7));
            assert_eq!(OriginalRecipient::parse(&text, false).is_some(), is_good);
        }
    }
}
