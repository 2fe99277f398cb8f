//! A folder for each recipient, from a template and addresses that strangers chose.
//!
//! `{domain}`, `{local}` and `{recipient}` stand for the parts of a forward-path; `postmaster` without a domain is taken as
//! `postmaster` at the gateway's host name.
//!
//! Invariants:
//! - whatever the recipient, the folder is below the template's fixed part: what stands for a placeholder is no separator, no `.`
//!   at the start of a component (so neither `..` nor a hidden name), no control character and not empty;
//! - different recipients give different expansions: what is escaped can be unescaped.

use std::fmt;
use std::path::PathBuf;

use crate::limits::FILE_NAME_SIZE_MAX;
use crate::mail::{Domain, ForwardPath};

/// A path with placeholders, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTemplate {
    text: Box<str>,
    components: Vec<Vec<Part>>,
}

/// One component of the path would be longer than a file's name may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    Domain,
    Local,
    Recipient,
}

impl PathTemplate {
    /// Parses a template; the error says in words what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('\0') {
            return Err("expected a path".into());
        }
        let components = text.split('/').map(parse_component).collect::<Result<Vec<_>, _>>()?;
        Ok(PathTemplate { text: text.into(), components })
    }

    /// A path that has none, whatever is in it.
    pub fn literal(path: &str) -> Self {
        let component =
            |text: &str| (!text.is_empty()).then(|| Part::Literal(text.into())).into_iter().collect();
        PathTemplate { text: path.into(), components: path.split('/').map(component).collect() }
    }

    /// The folder of `recipient`, at a gateway named `host`.
    pub fn expand(&self, recipient: &ForwardPath, host: &Domain) -> Result<PathBuf, TooLong> {
        let (local, domain) = match recipient {
            ForwardPath::Postmaster => ("postmaster", host.canonical().into()),
            // All spellings of one domain are one folder.
            ForwardPath::Mailbox(mailbox) => (mailbox.local_part(), mailbox.canonical_domain()),
        };
        let domain = &*domain;
        let mut path = String::with_capacity(self.text.len() + 64);
        for (i, component) in self.components.iter().enumerate() {
            if i > 0 {
                path.push('/');
            }
            let start = path.len();
            for part in component {
                let is_first = path.len() == start;
                match part {
                    Part::Literal(text) => path.push_str(text),
                    Part::Domain => escape(domain, is_first, &mut path),
                    Part::Local => escape(local, is_first, &mut path),
                    Part::Recipient => {
                        escape(local, is_first, &mut path);
                        path.push('@');
                        escape(domain, false, &mut path);
                    }
                }
            }
            if path.len() - start > FILE_NAME_SIZE_MAX {
                return Err(TooLong);
            }
        }
        Ok(path.into())
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

fn parse_component(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find(['{', '}']) {
        let (literal, braces) = rest.split_at(open);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        let known = [("{domain}", Part::Domain), ("{local}", Part::Local), ("{recipient}", Part::Recipient)];
        let (name, part) = known
            .into_iter()
            .find(|(name, _)| braces.starts_with(name))
            .ok_or_else(|| format!("expected {{domain}}, {{local}} or {{recipient}} at \"{braces}\""))?;
        parts.push(part);
        rest = &braces[name.len()..];
    }
    if !rest.is_empty() {
        parts.push(Part::Literal(rest.into()));
    }
    Ok(parts)
}

/// Appends `text` with every octet that is not safe in a file name as `%XX`.
fn escape(text: &str, is_first: bool, path: &mut String) {
    for (i, c) in text.bytes().enumerate() {
        let is_leading_dot = c == b'.' && i == 0 && is_first;
        if (c.is_ascii_alphanumeric() || b"-_+=@.".contains(&c)) && !is_leading_dot {
            path.push(c.into());
        } else {
            path.push_str(&format!("%{c:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    fn expand(template: &str, recipient: &str) -> Result<PathBuf, TooLong> {
        let recipient = ForwardPath::parse(recipient, true).unwrap_or_else(|e| panic!("{recipient}: {e:?}"));
        PathTemplate::parse(template)
            .unwrap()
            .expand(&recipient, &Domain::parse("mx.example.com", false).unwrap())
    }

    #[test]
    fn placeholders_stand_for_escaped_parts() {
        let table = [
            ("/m", "a@e.org", "/m"),
            ("/m/{domain}/{local}", "a.b+c@E.org", "/m/e.org/a.b+c"),
            ("m/x-{local}-{domain}.d", "Joe@e.org", "m/x-Joe-e.org.d"),
            ("/m/{recipient}", "a@e.org", "/m/a@e.org"),
            ("/m/{recipient}", "postmaster", "/m/postmaster@mx.example.com"),
            ("/m/{local}", "\"../../etc\"@e.org", "/m/%22..%2F..%2Fetc%22"),
            ("/m/{local}", "\"a b@c\"@e.org", "/m/%22a%20b@c%22"),
            ("/m/{local}", "a/b@e.org", "/m/a%2Fb"),
            ("/m/{local}", "a%2Fb@e.org", "/m/a%252Fb"),
            ("/m/{local}", "-rf@e.org", "/m/-rf"),
            ("/m/{local}", "root+${run{x}}@h", "/m/root+%24%7Brun%7Bx%7D%7D"),
            ("/m/{local}", "é@e.org", "/m/%C3%A9"),
            ("/m/{domain}", "a@[IPv6:::1]", "/m/%5Bipv6%3A%3A%3A1%5D"),
        ];
        for (template, recipient, path) in table {
            assert_eq!(expand(template, recipient), Ok(PathBuf::from(path)), "{template} {recipient}");
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for text in ["", "a\0b", "/m/{user}", "/m/{", "/m/}", "/m/{domain", "/m/{do/main}", "/m/{{local}}"] {
            assert!(PathTemplate::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_component_may_have_255_octets() {
        let with_domain_of = |size: usize| {
            format!("{}@{}.{}.{}", "l".repeat(64), "d".repeat(63), "d".repeat(63), "d".repeat(size - 128))
        };
        let prefix = "x".repeat(2);
        let template = format!("/m/{prefix}{{recipient}}");
        assert_eq!(expand(&template, &with_domain_of(188)).map(|_| ()), Ok(()));
        assert_eq!(expand(&template, &with_domain_of(189)), Err(TooLong));
    }

    proptest! {
        #[test]
        fn no_recipient_leaves_the_fixed_part(local in "\"([ -!#-\\[\\]-~é]|\\\\[ -~]){0,20}\"|[a-z0-9!#$%&'*/=?^_`{|}~.+-]{1,12}") {
            if let Ok(recipient) = ForwardPath::parse(&format!("{local}@e.org"), true) {
                let host = Domain::parse("h", false).unwrap();
                for template in ["/m/{local}/x", "/m/{recipient}/x"] {
                    let path = PathTemplate::parse(template).unwrap().expand(&recipient, &host).unwrap();
                    let rest: Vec<_> = path.strip_prefix(Path::new("/m")).unwrap().components().collect();
                    prop_assert_eq!(rest.len(), 2);
                    let name = rest[0].as_os_str().to_str().unwrap();
                    prop_assert!(matches!(rest[0], Component::Normal(_)) && !name.starts_with('.') && !name.is_empty());
                    prop_assert!(name.bytes().all(|c| c.is_ascii_graphic()));
                }
            }
        }
    }
}
