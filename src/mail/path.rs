//! Mailboxes, domains and the two paths of an envelope (RFC 5321 §4.1.2, RFC 6531 §3.3).
//!
//! Parsed from the text between the angle brackets, without a source route; the brackets, the route and the parameters
//! are SMTP's. Texts are kept as given, but for the ASCII letters of a domain, which become lower case.
//!
//! Invariant: two spellings of one domain ([`canonical_domain`]) are equal, as [`Domain`]s and within [`Mailbox`]es.
//!
//! A domain in U-labels has to be one by the rules of IDNA. An `xn--` label is taken as any other label in ASCII, whether a U-label
//! belongs to it or not: names are in use that some version of the rules or of Unicode does not know, and whether a name exists
//! is for others to say.

use std::borrow::{Borrow, Cow};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::idn::{a_labels, canonical_domain};

/// A local part's bound in octets (RFC 5321 §4.5.3.1.1).
const LOCAL_PART_SIZE_MAX: usize = 64;
/// A domain's bound in octets (RFC 5321 §4.5.3.1.2).
const DOMAIN_SIZE_MAX: usize = 255;
/// A path's bound is 256 octets with its brackets (RFC 5321 §4.5.3.1.3), so 254 for what is between them.
const MAILBOX_SIZE_MAX: usize = 254;
/// A label's bound in octets (RFC 1035 §2.3.4).
const LABEL_SIZE_MAX: usize = 63;

/// Why a text is not a path. Each has its own enhanced status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// It does not follow the grammar, or is longer than it may be.
    Syntax,
    /// It has octets over 127 where only ASCII was agreed (RFC 6531 §3.5).
    NeedsSmtpUtf8,
}

/// A domain name, or an address literal with its square brackets. Equal to every other spelling of itself.
#[derive(Clone)]
pub struct Domain {
    text: Box<str>,
    /// What it is compared by, where that is not `text`.
    canonical: Option<Box<str>>,
}

impl Domain {
    /// Parses a domain name or an address literal. U-labels are taken where `utf8` permits them.
    pub fn parse(text: &str, utf8: bool) -> Result<Self, PathError> {
        check_domain(text, utf8)?;
        let text: Box<str> = text.to_ascii_lowercase().into();
        let canonical = match canonical_domain(&text) {
            Cow::Borrowed(_) => None,
            Cow::Owned(canonical) => Some(canonical.into()),
        };
        Ok(Domain { text, canonical })
    }

    /// The domain's text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it is compared by: A-labels in lower case.
    pub fn canonical(&self) -> &str {
        self.canonical.as_deref().unwrap_or(&self.text)
    }
}

impl PartialEq for Domain {
    fn eq(&self, other: &Self) -> bool {
        self.canonical() == other.canonical()
    }
}

impl Eq for Domain {}

impl PartialOrd for Domain {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Domain {
    fn cmp(&self, other: &Self) -> Ordering {
        self.canonical().cmp(other.canonical())
    }
}

impl Hash for Domain {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.canonical().hash(state);
    }
}

/// Its canonical form: a set of domains is asked by that.
impl Borrow<str> for Domain {
    fn borrow(&self) -> &str {
        self.canonical()
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// `local-part@domain`. Equal when the local parts are, octet by octet, and the domains are one.
#[derive(Clone)]
pub struct Mailbox {
    text: Box<str>,
    at: u16,
}

impl Mailbox {
    /// Parses `local-part@domain`; octets over 127 only where `utf8` permits them.
    pub fn parse(text: &str, utf8: bool) -> Result<Self, PathError> {
        Self::parse_with(text, |domain| check_domain(domain, utf8), utf8)
    }

    /// Parses what was parsed before and stored. The rules of IDNA are not asked again: they follow the version of Unicode, and
    /// what was accepted under one must stay readable under the next.
    pub fn parse_stored(text: &str) -> Result<Self, PathError> {
        Self::parse_with(text, check_domain_syntax, true)
    }

    fn parse_with(
        text: &str,
        check_domain: impl FnOnce(&str) -> Result<(), PathError>,
        utf8: bool,
    ) -> Result<Self, PathError> {
        if text.len() > MAILBOX_SIZE_MAX {
            return Err(PathError::Syntax);
        }
        let local_size = local_part_size(text)?;
        let (local, rest) = text.split_at(local_size);
        let domain = rest.strip_prefix('@').ok_or(PathError::Syntax)?;
        if !utf8 && !local.is_ascii() {
            return Err(PathError::NeedsSmtpUtf8);
        }
        check_domain(domain)?;
        let mut lowered = String::with_capacity(text.len());
        lowered.push_str(local);
        lowered.push('@');
        domain.chars().for_each(|c| lowered.push(c.to_ascii_lowercase()));
        Ok(Mailbox { text: lowered.into(), at: local_size as u16 })
    }

    /// The local part as it was given, quotes included.
    pub fn local_part(&self) -> &str {
        &self.text[..self.at as usize]
    }

    /// The domain as it was given, its ASCII letters in lower case.
    pub fn domain(&self) -> &str {
        &self.text[self.at as usize + 1..]
    }

    /// What the domain is compared by: A-labels in lower case. Costs next to nothing where it is in ASCII.
    pub fn canonical_domain(&self) -> Cow<'_, str> {
        canonical_domain(self.domain())
    }

    /// `local-part@domain`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Mailbox {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Mailbox {}

impl PartialOrd for Mailbox {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Mailbox {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.local_part().cmp(other.local_part()))
            .then_with(|| self.canonical_domain().cmp(&other.canonical_domain()))
    }
}

impl Hash for Mailbox {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.local_part().hash(state);
        self.canonical_domain().hash(state);
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// Where notifications about a message go: a mailbox, or nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ReversePath {
    /// `<>`: the message is itself a notification and must never cause one.
    Null,
    /// A mailbox.
    Mailbox(Mailbox),
}

impl ReversePath {
    /// Parses what stood between the angle brackets; empty is the null reverse-path.
    pub fn parse(text: &str, utf8: bool) -> Result<Self, PathError> {
        if text.is_empty() {
            return Ok(ReversePath::Null);
        }
        Mailbox::parse(text, utf8).map(ReversePath::Mailbox)
    }

    /// Parses what was parsed before and stored: see [`Mailbox::parse_stored`].
    pub fn parse_stored(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Ok(ReversePath::Null);
        }
        Mailbox::parse_stored(text).map(ReversePath::Mailbox)
    }

    /// The mailbox's text; empty for the null reverse-path.
    pub fn as_str(&self) -> &str {
        match self {
            ReversePath::Null => "",
            ReversePath::Mailbox(mailbox) => mailbox.as_str(),
        }
    }
}

impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A recipient: a mailbox, or `postmaster` of whoever receives it (RFC 5321 §4.5.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ForwardPath {
    /// `<Postmaster>` without a domain.
    Postmaster,
    /// A mailbox.
    Mailbox(Mailbox),
}

impl ForwardPath {
    /// Parses what stood between the angle brackets.
    pub fn parse(text: &str, utf8: bool) -> Result<Self, PathError> {
        if text.eq_ignore_ascii_case("postmaster") {
            return Ok(ForwardPath::Postmaster);
        }
        Mailbox::parse(text, utf8).map(ForwardPath::Mailbox)
    }

    /// Parses what was parsed before and stored: see [`Mailbox::parse_stored`].
    pub fn parse_stored(text: &str) -> Result<Self, PathError> {
        if text.eq_ignore_ascii_case("postmaster") {
            return Ok(ForwardPath::Postmaster);
        }
        Mailbox::parse_stored(text).map(ForwardPath::Mailbox)
    }

    /// The mailbox's text; `postmaster` for the one without a domain.
    pub fn as_str(&self) -> &str {
        match self {
            ForwardPath::Postmaster => "postmaster",
            ForwardPath::Mailbox(mailbox) => mailbox.as_str(),
        }
    }

    /// The domain, where there is one.
    pub fn domain(&self) -> Option<&str> {
        match self {
            ForwardPath::Postmaster => None,
            ForwardPath::Mailbox(mailbox) => Some(mailbox.domain()),
        }
    }
}

impl fmt::Display for ForwardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// `atext` of RFC 5322 §3.2.3, and with RFC 6531 §3.3 everything above ASCII.
fn is_atext(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c >= 0x80 || b"!#$%&'*+-/=?^_`{|}~".contains(&c)
}

/// The size of the local part at the start of `text`: a dot-string or a quoted string.
fn local_part_size(text: &str) -> Result<usize, PathError> {
    let octets = text.as_bytes();
    let size = if octets.first() == Some(&b'"') {
        quoted_string_size(octets)?
    } else {
        let size = octets.iter().position(|c| *c == b'@').ok_or(PathError::Syntax)?;
        if !octets[..size]
            .split(|c| *c == b'.')
            .all(|atom| !atom.is_empty() && atom.iter().all(|c| is_atext(*c)))
        {
            return Err(PathError::Syntax);
        }
        size
    };
    if size == 0 || size > LOCAL_PART_SIZE_MAX { Err(PathError::Syntax) } else { Ok(size) }
}

/// `Quoted-string` of RFC 5321 §4.1.2: printable ASCII and, with RFC 6531, everything above it; never a control character.
fn quoted_string_size(octets: &[u8]) -> Result<usize, PathError> {
    let mut i = 1;
    while let Some(c) = octets.get(i) {
        match c {
            b'"' => return Ok(i + 1),
            b'\\' if matches!(octets.get(i + 1), Some(0x20..=0x7e)) => i += 2,
            b'\\' | 0..=0x1f | 0x7f => return Err(PathError::Syntax),
            _ => i += 1,
        }
    }
    Err(PathError::Syntax)
}

fn check_domain(text: &str, utf8: bool) -> Result<(), PathError> {
    check_domain_syntax(text)?;
    if text.is_ascii() {
        return Ok(());
    }
    if !utf8 {
        return Err(PathError::NeedsSmtpUtf8);
    }
    // As A-labels it has to be what any other domain is.
    check_domain_syntax(&a_labels(text).ok_or(PathError::Syntax)?)
}

/// Everything but the rules of IDNA.
fn check_domain_syntax(text: &str) -> Result<(), PathError> {
    if text.is_empty() || text.len() > DOMAIN_SIZE_MAX {
        return Err(PathError::Syntax);
    }
    if let Some(literal) = text.strip_prefix('[') {
        let literal = literal.strip_suffix(']').ok_or(PathError::Syntax)?;
        return check_address_literal(literal);
    }
    let is_label = |label: &[u8]| {
        !label.is_empty()
            // A U-label may be longer than its A-label, to which the bound belongs (RFC 5890 §4.2).
            && (label.len() <= LABEL_SIZE_MAX || !label.is_ascii())
            && label.first() != Some(&b'-')
            && label.last() != Some(&b'-')
            && label.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-' || *c >= 0x80)
    };
    if text.as_bytes().split(|c| *c == b'.').all(is_label) { Ok(()) } else { Err(PathError::Syntax) }
}

/// RFC 5321 §4.1.3. `General-address-literal` has no registered tags and is refused.
fn check_address_literal(literal: &str) -> Result<(), PathError> {
    let is_literal = match literal.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => literal[5..].parse::<Ipv6Addr>().is_ok(),
        _ => literal.parse::<Ipv4Addr>().is_ok(),
    };
    if is_literal { Ok(()) } else { Err(PathError::Syntax) }
}

#[cfg(test)]
mod tests {
    use std::hash::DefaultHasher;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mailboxes_are_taken_apart() {
        let table = [
            ("a@e.org", "a", "e.org"),
            ("A.b+c@E.Org", "A.b+c", "e.org"),
            ("\"a b@c\"@e.org", "\"a b@c\"", "e.org"),
            ("\"a\\\"b\"@e.org", "\"a\\\"b\"", "e.org"),
            ("a@[127.0.0.1]", "a", "[127.0.0.1]"),
            ("a@[IPv6:::1]", "a", "[ipv6:::1]"),
            ("-a@e.org", "-a", "e.org"),
            ("root+${run{x}}@h", "root+${run{x}}", "h"),
            ("x%evil@e.org", "x%evil", "e.org"),
        ];
        for (text, local, domain) in table {
            let mailbox = Mailbox::parse(text, false).unwrap_or_else(|e| panic!("{text}: {e:?}"));
            assert_eq!((mailbox.local_part(), mailbox.domain()), (local, domain), "{text}");
        }
    }

    #[test]
    fn what_is_no_mailbox_is_refused() {
        let table = [
            "",
            "a",
            "@e.org",
            "a@",
            "a@b@e.org",
            ".a@e.org",
            "a.@e.org",
            "a..b@e.org",
            "a b@e.org",
            "a@e..org",
            "a@.e",
            "a@e.org.",
            "a@-e.org",
            "a@e-.org",
            "a@e_f.org",
            "a@[999.0.0.1]",
            "a@[127.0.0.1",
            "a@[IPv6:x]",
            "a@[x:y]",
            "\"a@e.org",
            "\"a\\\"@e.org",
            "\"a\n\"@e.org",
            "\"a\"b@e.org",
            "a\0@e.org",
            "a@e\0.org",
            "a\x1b@e.org",
            "<a@e.org",
            ";sleep 66;",
            "a(c)@e.org",
            "@x,@y:a@e",
        ];
        for text in table {
            assert_eq!(Mailbox::parse(text, true), Err(PathError::Syntax), "{text:?}");
        }
    }

    #[test]
    fn bounds_hold_on_both_sides() {
        let local = |n: usize| format!("{}@e.org", "l".repeat(n));
        let label = |n: usize| format!("a@{}.org", "d".repeat(n));
        let domain = |n: usize| {
            format!("a@{}{}", "d.".repeat(n / 2 - 1), if n.is_multiple_of(2) { "dd" } else { "ddd" })
        };
        for (good, bad) in [(local(64), local(65)), (label(63), label(64)), (domain(252), domain(253))] {
            assert!(Mailbox::parse(&good, false).is_ok(), "{good}");
            assert_eq!(Mailbox::parse(&bad, false), Err(PathError::Syntax), "{bad}");
        }
        assert!(Domain::parse(&domain(255)[2..], false).is_ok());
        assert!(Domain::parse(&domain(256)[2..], false).is_err());
    }

    #[test]
    fn utf8_needs_permission() {
        for text in ["é@e.org", "a@é.org"] {
            assert_eq!(Mailbox::parse(text, false), Err(PathError::NeedsSmtpUtf8));
            assert!(Mailbox::parse(text, true).is_ok());
        }
    }

    #[test]
    fn spellings_of_a_domain_are_equal_and_kept() {
        let hash_of = |value: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = DefaultHasher::new();
            value(&mut hasher);
            hasher.finish()
        };
        let table = [
            ("Bücher.Example", "bücher.example", "xn--bcher-kva.example", true),
            ("BÜCHER.example", "bÜcher.example", "XN--BCHER-KVA.EXAMPLE", true),
            ("Example.ORG", "example.org", "example.org", true),
            ("xn--a.example", "xn--a.example", "XN--A.example", true),
            ("bücher.example", "bücher.example", "bucher.example", false),
            ("xn--a.example", "xn--a.example", "xn--b.example", false),
        ];
        for (given, kept, other, are_one) in table {
            let domain = |text| Domain::parse(text, true).unwrap_or_else(|e| panic!("{text}: {e:?}"));
            let (a, b) = (domain(given), domain(other));
            assert_eq!(a.as_str(), kept);
            assert_eq!(a == b, are_one, "{given} {other}");
            assert_eq!(a.cmp(&b).is_eq(), are_one);
            assert_eq!(hash_of(&|h| a.hash(h)) == hash_of(&|h| b.hash(h)), are_one);
            assert_eq!(hash_of(&|h| a.hash(h)), hash_of(&|h| Borrow::<str>::borrow(&a).hash(h)));
            let mailbox = |local: &str, text: &str| Mailbox::parse(&format!("{local}@{text}"), true).unwrap();
            let (a, b) = (mailbox("Ü", given), mailbox("Ü", other));
            assert_eq!(a.as_str(), format!("Ü@{kept}"));
            assert_eq!(a == b, are_one, "{given} {other}");
            assert_eq!(hash_of(&|h| a.hash(h)) == hash_of(&|h| b.hash(h)), are_one);
            assert_ne!(a, mailbox("ü", given), "a local part is never mapped");
        }
    }

    #[test]
    fn u_labels_follow_idna_and_stored_ones_did_once() {
        let long = |n: usize| format!("{}.example", "ü".repeat(n));
        let table = [
            ("bücher.example", true),
            // 57 of them are an A-label of 63 octets.
            (&long(57), true),
            (&long(58), false),
            ("a\u{200b}b.example", false),
            ("bücher。example", false),
            ("אa.example", false),
            ("ü..example", false),
            ("ü.xn--a", false),
        ];
        for (domain, is_taken) in table {
            assert_eq!(Domain::parse(domain, true).is_ok(), is_taken, "{domain}");
            let text = format!("a@{domain}");
            let expected = if is_taken { Ok(()) } else { Err(PathError::Syntax) };
            assert_eq!(Mailbox::parse(&text, true).map(drop), expected, "{text}");
            let stored = Mailbox::parse_stored(&text).map(|mailbox| mailbox.as_str() == text);
            assert_eq!(stored, if domain.contains("..") { Err(PathError::Syntax) } else { Ok(true) });
        }
        let wide = format!("{0}.{0}.{0}", "ü".repeat(40));
        assert!(wide.len() < DOMAIN_SIZE_MAX && Domain::parse(&wide, true).is_ok());
        let wide = vec!["ü"; 84].join(".");
        assert!(wide.len() < DOMAIN_SIZE_MAX && a_labels(&wide).unwrap().len() > DOMAIN_SIZE_MAX);
        assert!(Domain::parse(&wide, true).is_err());
    }

    proptest! {
        /// A domain in A-labels is a domain, the same one, and its own canonical form.
        #[test]
        fn a_domain_equals_its_canonical_form(text in r"(\PC|[a-zA-Z0-9é中אß]|xn--|-|\.){1,24}") {
            if let Ok(domain) = Domain::parse(&text, true) {
                let canonical = Domain::parse(domain.canonical(), false).expect("ASCII, and a domain");
                prop_assert_eq!(&canonical, &domain);
                prop_assert_eq!(canonical.as_str(), domain.canonical());
                let mailbox = ["a@", &text].concat();
                prop_assert!(Mailbox::parse_stored(&mailbox).is_ok());
            }
        }
    }

    #[test]
    fn the_two_paths_without_a_mailbox() {
        assert_eq!(ReversePath::parse("", false), Ok(ReversePath::Null));
        assert_eq!(ForwardPath::parse("PostMaster", false), Ok(ForwardPath::Postmaster));
        assert_eq!(ForwardPath::parse("", false), Err(PathError::Syntax));
        assert_eq!(ForwardPath::parse("Postmaster@e.org", false).unwrap().domain(), Some("e.org"));
    }
}
