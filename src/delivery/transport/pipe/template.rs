//! A command line with placeholders for what strangers wrote: arguments, never words of a shell.
//!
//! `{sender}`, `{recipient}`, `{local}`, `{domain}` and `{id}` stand within an argument; `{recipients}` is an argument by itself, and becomes
//! as many as there are recipients. Other braces are what they are, unless they look like a placeholder that does not exist.
//!
//! Invariant: no address becomes an option. An argument that begins with a `-` of a stranger's is refused, unless `--` stands before it.

use std::ffi::OsString;

use crate::mail::{Domain, Envelope, ForwardPath, MessageId};

/// A program, and its arguments with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandTemplate {
    words: Vec<String>,
    program: String,
    arguments: Vec<Argument>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Argument {
    parts: Vec<Part>,
    /// Behind `--`: whatever it begins with, it is no option.
    is_operand: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Sender,
    Recipient,
    Recipients,
    Local,
    Domain,
    Id,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Place(Place),
}

const PLACES: [(&str, Place); 6] = [
    ("sender", Place::Sender),
    ("recipient", Place::Recipient),
    ("recipients", Place::Recipients),
    ("local", Place::Local),
    ("domain", Place::Domain),
    ("id", Place::Id),
];

/// An address begins with `-` where a program would take it for an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LooksLikeOption {
    /// The reverse-path.
    Sender,
    /// The recipient.
    Recipient,
}

/// A recipient's address, in the parts that placeholders stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    local: String,
    domain: String,
}

impl Address {
    /// `postmaster` without a domain is that of `host`.
    pub fn of(path: &ForwardPath, host: &Domain) -> Self {
        match path {
            ForwardPath::Postmaster => Address { local: "postmaster".into(), domain: host.as_str().into() },
            ForwardPath::Mailbox(mailbox) => {
                Address { local: mailbox.local_part().into(), domain: mailbox.domain().into() }
            }
        }
    }

    /// `local@domain`.
    pub fn text(&self) -> String {
        format!("{}@{}", self.local, self.domain)
    }
}

impl CommandTemplate {
    /// The error says in words what is wrong with it.
    pub fn parse(words: Vec<String>) -> Result<Self, String> {
        let Some((program, rest)) = words.split_first() else {
            return Err("expected a program and its arguments, not an empty list".into());
        };
        if words.iter().any(|word| word.contains('\0')) {
            return Err("a NUL octet cannot be in an argument".into());
        }
        if !program.starts_with('/') {
            return Err(format!(
                "expected the whole path of a program, such as \"/usr/bin/maildrop\", not {program:?}"
            ));
        }
        let mut is_operand = false;
        let mut arguments = Vec::with_capacity(rest.len());
        for word in rest {
            let parts = parse_argument(word)?;
            arguments.push(Argument { parts, is_operand });
            is_operand |= word == "--";
        }
        let template = CommandTemplate { program: program.clone(), arguments, words };
        let has = |place| template.places().any(|other| other == place);
        if template.is_for_many() {
            if template.places().filter(|place| *place == Place::Recipients).count() > 1 {
                return Err("{recipients} can be there once".into());
            }
            let is_alone = |argument: &Argument| argument.parts == [Part::Place(Place::Recipients)];
            if !template.arguments.iter().any(is_alone) {
                return Err("{recipients} must be an argument by itself".into());
            }
            if has(Place::Recipient) || has(Place::Local) || has(Place::Domain) {
                return Err("{recipients} cannot stand beside {recipient}, {local} and {domain}".into());
            }
        }
        Ok(template)
    }

    /// As it was configured.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// The program's path.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Whether one process serves many recipients.
    pub fn is_for_many(&self) -> bool {
        self.places().any(|place| place == Place::Recipients)
    }

    /// The arguments for some recipients, exactly one of them unless it is for many.
    pub fn expand(
        &self,
        envelope: &Envelope,
        id: MessageId,
        recipients: &[Address],
    ) -> Result<Vec<OsString>, LooksLikeOption> {
        let mut expanded = Vec::with_capacity(self.arguments.len() + recipients.len());
        for argument in &self.arguments {
            if argument.parts == [Part::Place(Place::Recipients)] {
                for recipient in recipients {
                    argument.check(recipient.text(), &mut expanded)?;
                }
                continue;
            }
            let mut text = String::new();
            for part in &argument.parts {
                match part {
                    Part::Literal(literal) => text.push_str(literal),
                    Part::Place(Place::Sender) => text.push_str(envelope.reverse_path.as_str()),
                    Part::Place(Place::Id) => text.push_str(&id.to_string()),
                    Part::Place(Place::Recipient) => text.push_str(&recipients[0].text()),
                    Part::Place(Place::Local) => text.push_str(&recipients[0].local),
                    Part::Place(Place::Domain) => text.push_str(&recipients[0].domain),
                    Part::Place(Place::Recipients) => unreachable!("it is alone"),
                }
            }
            argument.check(text, &mut expanded)?;
        }
        Ok(expanded)
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        self.arguments.iter().flat_map(|argument| &argument.parts).filter_map(|part| match part {
            Part::Place(place) => Some(*place),
            Part::Literal(_) => None,
        })
    }
}

impl Argument {
    /// Takes `text` for this argument, if it cannot be an option by surprise.
    fn check(&self, text: String, expanded: &mut Vec<OsString>) -> Result<(), LooksLikeOption> {
        if text.starts_with('-') && !self.is_operand {
            match self.parts.first() {
                Some(Part::Place(Place::Sender)) => return Err(LooksLikeOption::Sender),
                Some(Part::Place(_)) => return Err(LooksLikeOption::Recipient),
                _ => {}
            }
        }
        expanded.push(text.into());
        Ok(())
    }
}

fn parse_argument(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('{') {
        literal.push_str(before);
        let name = behind.split_once('}').filter(|(name, _)| {
            !name.is_empty() && name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_')
        });
        let Some((name, behind)) = name else {
            literal.push('{');
            rest = behind;
            continue;
        };
        let place = PLACES.into_iter().find(|(known, _)| *known == name).map(|(_, place)| place);
        let known = || PLACES.map(|(name, _)| format!("{{{name}}}")).join(", ");
        let place = place.ok_or_else(|| format!("expected one of {} at \"{{{name}}}\"", known()))?;
        if !literal.is_empty() {
            parts.push(Part::Literal(std::mem::take(&mut literal)));
        }
        parts.push(Part::Place(place));
        rest = behind;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::ReversePath;

    fn expand(words: &[&str], sender: &str, recipients: &[&str]) -> Result<Vec<String>, LooksLikeOption> {
        let template = CommandTemplate::parse(words.iter().map(ToString::to_string).collect()).unwrap();
        let path = |text: &&str| ForwardPath::parse(text, true).unwrap();
        let envelope =
            Envelope::new(ReversePath::parse(sender, true).unwrap(), recipients.iter().map(path).collect());
        let host = Domain::parse("mx.example.com", false).unwrap();
        let addresses: Vec<_> = envelope.forward_paths.iter().map(|path| Address::of(path, &host)).collect();
        let expanded = template.expand(&envelope, MessageId { log: 1, sequence: 33 }, &addresses)?;
        Ok(expanded.into_iter().map(|argument| argument.into_string().unwrap()).collect())
    }

    /// The command, the sender, the recipients, and the arguments.
    type Row<'a> = (&'a [&'a str], &'a str, &'a [&'a str], &'a [&'a str]);

    #[test]
    fn placeholders_stand_for_what_the_envelope_says() {
        let table: [Row<'_>; 8] = [
            (
                &["/x", "-f", "{sender}", "{recipient}"],
                "s@e.net",
                &["b@E.org"],
                &["-f", "s@e.net", "b@e.org"],
            ),
            (&["/x", "-f{sender}", "{id}"], "", &["b@e.org"], &["-f", "000000111"]),
            (&["/x", "{sender}"], "", &["b@e.org"], &[""]),
            (&["/x", "{local}+{domain}"], "s@e.net", &["\"a b;$(c)\"@e.org"], &["\"a b;$(c)\"+e.org"]),
            (&["/x", "{recipient}"], "s@e.net", &["postmaster"], &["postmaster@mx.example.com"]),
            (
                &["/x", "{recipients}", "end"],
                "s@e.net",
                &["a@e.org", "b@e.org"],
                &["a@e.org", "b@e.org", "end"],
            ),
            (
                &["/x", "f() { :; }; ${HOME} {} {A} {", ""],
                "s@e.net",
                &["b@e.org"],
                &["f() { :; }; ${HOME} {} {A} {", ""],
            ),
            (&["/x", "{{id}}"], "s@e.net", &["b@e.org"], &["{000000111}"]),
        ];
        for (words, sender, recipients, expected) in table {
            assert_eq!(expand(words, sender, recipients).unwrap(), expected, "{words:?}");
        }
    }

    #[test]
    fn no_address_becomes_an_option() {
        let (dash, plain) = ("-rf@e.org", "a@e.org");
        let table: [(&[&str], &str, &str, Option<LooksLikeOption>); 10] = [
            (&["/x", "{recipient}"], plain, dash, Some(LooksLikeOption::Recipient)),
            (&["/x", "{recipients}"], plain, dash, Some(LooksLikeOption::Recipient)),
            (&["/x", "{local}"], plain, dash, Some(LooksLikeOption::Recipient)),
            (&["/x", "{sender}"], dash, plain, Some(LooksLikeOption::Sender)),
            (&["/x", "{sender}{local}"], "", dash, Some(LooksLikeOption::Sender)),
            (&["/x", "--", "{recipient}"], plain, dash, None),
            (&["/x", "--", "y", "{recipients}"], plain, dash, None),
            (&["/x", "-d{recipient}"], plain, dash, None),
            (&["/x", "{domain}"], plain, dash, None),
            (&["/x", "{recipient}"], plain, "\"-rf\"@e.org", None),
        ];
        for (words, sender, recipient, expected) in table {
            assert_eq!(expand(words, sender, &[recipient]).err(), expected, "{words:?} {recipient}");
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        let table: [(&[&str], &str); 9] = [
            (&[], "empty"),
            (&["x"], "whole path"),
            (&[""], "whole path"),
            (&["{sender}"], "whole path"),
            (&["/x", "a\0"], "NUL"),
            (&["/x", "{recipent}"], "expected one of {sender}"),
            (&["/x", "a{recipients}"], "by itself"),
            (&["/x", "{recipients}", "{recipients}"], "once"),
            (&["/x", "{recipients}", "{local}"], "beside"),
        ];
        for (words, part) in table {
            let refused = CommandTemplate::parse(words.iter().map(ToString::to_string).collect());
            assert!(refused.as_ref().is_err_and(|words| words.contains(part)), "{words:?}: {refused:?}");
        }
    }
}
