//! Mailboxes, domains and the two paths of an envelope (RFC 5321 §4.1.2, RFC 6531 §3.3).
//!
//! Parsed from the text between the angle brackets, without a source route; the brackets, the route and the parameters
//! are SMTP's. Local parts are kept as given, domains in lower case, so that domains can be compared octet by octet.

use std::borrow::Borrow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

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

/// A domain name in lower case, or an address literal with its square brackets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(Box<str>);

impl Domain {
    /// Parses a domain name or an address literal. U-labels are taken as they are where `utf8` permits them.
    pub fn parse(text: &str, utf8: bool) -> Result<Self, PathError> {
        check_domain(text, utf8)?;
        Ok(Domain(lower_case(text)))
    }

    /// The domain's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Domain {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// `local-part@domain`. Equal when the local parts are, octet by octet, and the domains, without regard to ASCII case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mailbox {
    text: Box<str>,
    at: u16,
}

impl Mailbox {
    /// Parses `local-part@domain`; octets over 127 only where `utf8` permits them.
    pub fn parse(text: &str, utf8: bool) -> Result<Self, PathError> {
        if text.len() > MAILBOX_SIZE_MAX {
            return Err(PathError::Syntax);
        }
        let local_size = local_part_size(text)?;
        let (local, rest) = text.split_at(local_size);
        let domain = rest.strip_prefix('@').ok_or(PathError::Syntax)?;
        if !utf8 && !local.is_ascii() {
            return Err(PathError::NeedsSmtpUtf8);
        }
        check_domain(domain, utf8)?;
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

    /// The domain, in lower case.
    pub fn domain(&self) -> &str {
        &self.text[self.at as usize + 1..]
    }

    /// `local-part@domain`.
    pub fn as_str(&self) -> &str {
        &self.text
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

fn lower_case(text: &str) -> Box<str> {
    text.to_ascii_lowercase().into()
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
    if text.is_empty() || text.len() > DOMAIN_SIZE_MAX {
        return Err(PathError::Syntax);
    }
    if let Some(literal) = text.strip_prefix('[') {
        let literal = literal.strip_suffix(']').ok_or(PathError::Syntax)?;
        return check_address_literal(literal);
    }
    let is_label = |label: &[u8]| {
        !label.is_empty()
            && label.len() <= LABEL_SIZE_MAX
            && label.first() != Some(&b'-')
            && label.last() != Some(&b'-')
            && label.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-' || *c >= 0x80)
    };
    if !text.as_bytes().split(|c| *c == b'.').all(is_label) {
        return Err(PathError::Syntax);
    }
    if !utf8 && !text.is_ascii() {
        return Err(PathError::NeedsSmtpUtf8);
    }
    Ok(())
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
    fn the_two_paths_without_a_mailbox() {
        assert_eq!(ReversePath::parse("", false), Ok(ReversePath::Null));
        assert_eq!(ForwardPath::parse("PostMaster", false), Ok(ForwardPath::Postmaster));
        assert_eq!(ForwardPath::parse("", false), Err(PathError::Syntax));
        assert_eq!(ForwardPath::parse("Postmaster@e.org", false).unwrap().domain(), Some("e.org"));
    }
}
