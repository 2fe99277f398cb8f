//! The reply: `action=` with an action of Postfix's access(5), an empty line behind.
//!
//! | action | here |
//! |---|---|
//! | OK, PERMIT, a number alone, DUNNO | go on |
//! | REJECT, 5NN | a refusal of class 5 |
//! | DEFER, DEFER_IF_PERMIT, 4NN | a refusal of class 4 |
//! | 421, 521 | the same, and the session ends |
//! | WARN, INFO | a line in the log |
//! | PREPEND, DEFER_IF_REJECT | go on: nothing is lost but a header, or a milder word |
//! | HOLD, DISCARD, REDIRECT, FILTER, BCC | an error: mail would go where the service does not want it, or not where it does |
//!
//! An action may begin with an enhanced status code; its class is that of the action.

use crate::mail::{Class, Refusal, Status};

/// A reply's bound in octets.
pub const REPLY_SIZE_MAX: usize = 4096;
/// Octets of a text that are kept.
const TEXT_SIZE_MAX: usize = 300;
/// Octets of what cannot be understood that are shown.
const SHOWN_SIZE_MAX: usize = 40;

/// What the service wants.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Go on.
    Accept,
    /// Do not go on.
    Refuse(Refusal),
    /// Go on, and write this into the log.
    Log {
        /// As a warning.
        is_warning: bool,
        /// What.
        text: String,
    },
    /// Go on, though it wanted more.
    Ignored(&'static str),
    /// What must not be taken for acceptance, and cannot be done.
    NotDone(&'static str),
}

/// Whether a whole reply has come; how long it is.
pub fn end(octets: &[u8]) -> Option<usize> {
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', octets) {
        if matches!(&octets[start..end], b"" | b"\r") {
            return Some(end + 1);
        }
        start = end + 1;
    }
    None
}

/// The action of a whole reply; an error is in words for the operator.
pub fn parse(reply: &[u8]) -> Result<Action, String> {
    let mut action = None;
    for line in reply.split(|octet| *octet == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let at = memchr::memchr(b'=', line).ok_or_else(|| not_understood(line))?;
        // Other attributes are for others.
        if &line[..at] == b"action" && action.replace(&line[at + 1..]).is_some() {
            return Err("the policy service answers two actions at once".into());
        }
    }
    let action = action.ok_or("the policy service answers no action")?;
    parse_action(&printable(action)).ok_or_else(|| not_understood(action))
}

fn parse_action(action: &str) -> Option<Action> {
    let (word, text) = action.split_once(' ').unwrap_or((action, ""));
    let text = text.trim();
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|c| c.is_ascii_digit());
    Some(match word.to_ascii_uppercase().as_str() {
        "OK" | "PERMIT" | "DUNNO" => Action::Accept,
        "REJECT" => refuse(Class::Permanent, text, "Access denied"),
        "DEFER" | "DEFER_IF_PERMIT" => {
            refuse(Class::Temporary, text, "Access denied for now, try again later")
        }
        "WARN" => Action::Log { is_warning: true, text: text.into() },
        "INFO" => Action::Log { is_warning: false, text: text.into() },
        "PREPEND" => Action::Ignored("PREPEND"),
        "DEFER_IF_REJECT" => Action::Ignored("DEFER_IF_REJECT"),
        "HOLD" => Action::NotDone("HOLD"),
        "DISCARD" => Action::NotDone("DISCARD"),
        "REDIRECT" => Action::NotDone("REDIRECT"),
        "FILTER" => Action::NotDone("FILTER"),
        "BCC" => Action::NotDone("BCC"),
        code if code.len() == 3 && is_number(code) && matches!(code.as_bytes()[0], b'4' | b'5') => {
            let class = if code.starts_with('4') { Class::Temporary } else { Class::Permanent };
            let words = if class == Class::Temporary { "Try again later" } else { "Access denied" };
            match refuse(class, text, words) {
                Action::Refuse(refusal) => {
                    Action::Refuse(Refusal { disconnect: matches!(code, "421" | "521"), ..refusal })
                }
                action => action,
            }
        }
        // As from tables of those who have just fetched their mail.
        number if is_number(number) && text.is_empty() => Action::Accept,
        _ => return None,
    })
}

/// With the status that `text` begins with, if it does, and `otherwise` where it has no words.
fn refuse(class: Class, text: &str, otherwise: &'static str) -> Action {
    let (status, words) = match enhanced_status(text) {
        Some((subject, detail, words)) => (Status { class, subject, detail }, words),
        None => (Status { class, subject: 7, detail: 1 }, text),
    };
    let mut refusal = Refusal::new(status, otherwise);
    if !words.is_empty() {
        refusal.text = words.to_string().into();
    }
    Action::Refuse(refusal)
}

/// The subject and detail of `4.7.1 words`, and the words.
fn enhanced_status(text: &str) -> Option<(u16, u16, &str)> {
    let (code, words) = text.split_once(' ').unwrap_or((text, ""));
    let mut numbers = code.split('.');
    let (class, subject, detail) = (numbers.next()?, numbers.next()?, numbers.next()?);
    // RFC 3463 §2: up to three digits.
    let number = |text: &str| text.parse().ok().filter(|n: &u16| *n <= 999 && !text.starts_with('+'));
    let is_status = numbers.next().is_none() && matches!(class, "2" | "4" | "5");
    is_status.then_some((number(subject)?, number(detail)?, words.trim()))
}

fn printable(octets: &[u8]) -> String {
    let shown = octets.iter().take(TEXT_SIZE_MAX);
    let shown: String = shown.map(|c| if matches!(c, b' '..=b'~') { *c as char } else { '?' }).collect();
    shown.trim().into()
}

fn not_understood(octets: &[u8]) -> String {
    let shown: String = printable(octets).chars().take(SHOWN_SIZE_MAX).collect();
    format!("the policy service answers {shown:?}, which is no action")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(
        class: Class,
        subject: u16,
        detail: u16,
        text: &'static str,
        disconnect: bool,
    ) -> Option<Action> {
        Some(Action::Refuse(Refusal { disconnect, ..Refusal::new(Status { class, subject, detail }, text) }))
    }

    #[test]
    fn every_action_is_what_the_table_says() {
        use Class::{Permanent, Temporary};
        let log = |is_warning, text: &str| Some(Action::Log { is_warning, text: text.into() });
        let table = [
            ("OK", Some(Action::Accept)),
            ("ok all is well", Some(Action::Accept)),
            ("permit", Some(Action::Accept)),
            ("DUNNO", Some(Action::Accept)),
            ("dunno", Some(Action::Accept)),
            ("1234567", Some(Action::Accept)),
            ("REJECT", refused(Permanent, 7, 1, "Access denied", false)),
            ("reject  Go away ", refused(Permanent, 7, 1, "Go away", false)),
            ("REJECT 5.1.1 No such user", refused(Permanent, 1, 1, "No such user", false)),
            ("REJECT 4.1.8 Whatever the class", refused(Permanent, 1, 8, "Whatever the class", false)),
            ("REJECT 5.7.1", refused(Permanent, 7, 1, "Access denied", false)),
            ("REJECT 5.7 short", refused(Permanent, 7, 1, "5.7 short", false)),
            ("REJECT 5.7.1234 long", refused(Permanent, 7, 1, "5.7.1234 long", false)),
            ("REJECT 192.0.2.1 is listed", refused(Permanent, 7, 1, "192.0.2.1 is listed", false)),
            ("REJECT 5.0.2.1 is listed", refused(Permanent, 7, 1, "5.0.2.1 is listed", false)),
            ("DEFER", refused(Temporary, 7, 1, "Access denied for now, try again later", false)),
            ("DEFER busy", refused(Temporary, 7, 1, "busy", false)),
            ("DEFER_IF_PERMIT 4.2.0 Greylisted", refused(Temporary, 2, 0, "Greylisted", false)),
            ("defer_if_permit Service unavailable", refused(Temporary, 7, 1, "Service unavailable", false)),
            ("DEFER_IF_REJECT later", Some(Action::Ignored("DEFER_IF_REJECT"))),
            ("450 4.7.1 wait", refused(Temporary, 7, 1, "wait", false)),
            ("451", refused(Temporary, 7, 1, "Try again later", false)),
            ("550 5.7.1 no", refused(Permanent, 7, 1, "no", false)),
            ("554", refused(Permanent, 7, 1, "Access denied", false)),
            ("421 4.7.0 Too many", refused(Temporary, 7, 0, "Too many", true)),
            ("521 bot", refused(Permanent, 7, 1, "bot", true)),
            ("5500 x", None),
            ("350 go", None),
            ("PREPEND X-Greylist: delayed 300 seconds", Some(Action::Ignored("PREPEND"))),
            ("WARN look at this", log(true, "look at this")),
            ("INFO fyi", log(false, "fyi")),
            ("HOLD", Some(Action::NotDone("HOLD"))),
            ("discard spam", Some(Action::NotDone("DISCARD"))),
            ("REDIRECT a@b.example", Some(Action::NotDone("REDIRECT"))),
            ("FILTER smtp:[127.0.0.1]:10026", Some(Action::NotDone("FILTER"))),
            ("BCC a@b.example", Some(Action::NotDone("BCC"))),
            ("", None),
            ("   ", None),
            ("reject_unauth_destination", None),
            ("REJECTED", None),
            ("DEFER a\x1b[2Jb\u{e9}", refused(Temporary, 7, 1, "a?[2Jb??", false)),
        ];
        for (action, expected) in table {
            assert_eq!(parse(format!("action={action}\n\n").as_bytes()).ok(), expected, "{action:?}");
        }
        let long = parse(format!("action=REJECT {}\n\n", "x".repeat(3000)).as_bytes());
        assert!(matches!(long, Ok(Action::Refuse(refusal)) if refusal.text.len() < TEXT_SIZE_MAX));
    }

    #[test]
    fn a_reply_is_lines_with_one_action_and_an_empty_line() {
        let table: [(&str, Option<usize>, bool); 10] = [
            ("action=OK\n\n", Some(11), true),
            ("action=OK\r\n\r\n", Some(13), true),
            ("x=1\naction=OK\n\n", Some(15), true),
            ("action=OK\n\naction=REJECT\n\n", Some(11), true),
            ("\n", Some(1), false),
            ("x=1\n\n", Some(5), false),
            ("action=OK\naction=REJECT\n\n", Some(25), false),
            ("220 mx ESMTP\r\n\r\n", Some(16), false),
            ("action=OK\n", None, false),
            ("action=OK", None, false),
        ];
        for (octets, size, is_understood) in table {
            assert_eq!(end(octets.as_bytes()), size, "{octets:?}");
            if let Some(size) = size {
                assert_eq!(parse(&octets.as_bytes()[..size]).is_ok(), is_understood, "{octets:?}");
            }
        }
    }
}
