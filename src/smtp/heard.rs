//! What a session has heard, for somebody who looks on: who watches must not learn anybody's password.
//!
//! Whether something is a secret is known where it is taken for what it is, and decided here:
//! - a response in an AUTH exchange is shown by its size, and so is what follows the mechanism's name in AUTH. A name is shown
//!   only if it is one of a known mechanism: who leaves it out says the response in its place;
//! - once a peer has said AUTH, a line that is no command is shown by its size too: it may be the response to an AUTH that was refused;
//! - of any other line that is no command the first word is shown, if it looks like one, and the size of the rest (`AUHT PLAIN …`);
//! - content is shown by its size.

use super::command::{self, Verb};

/// Of a line so much is kept, octets.
pub const LINE_SIZE_MAX: usize = 512;
/// Lines kept until they are taken: a pipelining peer's of one receive, and no more.
const HEARD_MAX: usize = 1024;
/// Mechanisms whose names are shown. What is none of them may be a response.
const MECHANISMS: [&[u8]; 20] = [
    b"PLAIN",
    b"LOGIN",
    b"CRAM-MD5",
    b"DIGEST-MD5",
    b"NTLM",
    b"GSSAPI",
    b"GS2-KRB5",
    b"EXTERNAL",
    b"ANONYMOUS",
    b"XOAUTH2",
    b"OAUTHBEARER",
    b"SCRAM-SHA-1",
    b"SCRAM-SHA-1-PLUS",
    b"SCRAM-SHA-224",
    b"SCRAM-SHA-256",
    b"SCRAM-SHA-256-PLUS",
    b"SCRAM-SHA-384",
    b"SCRAM-SHA-512",
    b"SCRAM-SHA-512-PLUS",
    b"SCRAM-SHA3-512",
];
/// The longest word that is taken for a misspelt command.
const WORD_SIZE_MAX: usize = 8;

/// Something that the peer has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A line. What is kept of it may be shown; `size` is that of the whole line without its CRLF.
    Line {
        /// As it came, up to 512 octets of it.
        shown: Box<[u8]>,
        /// Octets of the line that are not in `shown`.
        hidden: usize,
    },
    /// So many octets of content.
    Content(usize),
    /// Octets that are neither: before the greeting, or behind what was refused.
    Ignored(usize),
    /// So many lines more than were kept.
    Missed(usize),
}

/// Remembers what is heard until somebody takes it.
#[derive(Debug, Default)]
pub(super) struct Ear {
    heard: Vec<Heard>,
    missed: usize,
    /// The peer has said AUTH.
    knows_auth: bool,
}

impl Ear {
    /// `knows_auth`: the peer may have said AUTH already.
    pub(super) fn new(knows_auth: bool) -> Self {
        Ear { knows_auth, ..Ear::default() }
    }

    pub(super) fn line(&mut self, line: &[u8], is_response: bool) {
        let shown = self.shown_size(line, is_response).min(LINE_SIZE_MAX);
        self.add(Heard::Line { shown: line[..shown].into(), hidden: line.len() - shown });
    }

    /// A line that is too long to have been kept.
    pub(super) fn long_line(&mut self) {
        self.add(Heard::Ignored(0));
    }

    pub(super) fn content(&mut self, size: usize) {
        match self.heard.last_mut() {
            Some(Heard::Content(before)) => *before += size,
            _ => self.add(Heard::Content(size)),
        }
    }

    pub(super) fn ignored(&mut self, size: usize) {
        match self.heard.last_mut() {
            Some(Heard::Ignored(before)) => *before += size,
            _ => self.add(Heard::Ignored(size)),
        }
    }

    pub(super) fn take(&mut self) -> Vec<Heard> {
        if self.missed > 0 {
            self.heard.push(Heard::Missed(std::mem::take(&mut self.missed)));
        }
        std::mem::take(&mut self.heard)
    }

    fn add(&mut self, heard: Heard) {
        match self.heard.len() < HEARD_MAX {
            true => self.heard.push(heard),
            false => self.missed += 1,
        }
    }

    /// How much of a line may be shown.
    fn shown_size(&mut self, line: &[u8], is_response: bool) -> usize {
        if is_response {
            return 0;
        }
        // Spoilt, it is no command, and yet what it looks like.
        self.knows_auth |= line.get(..4).is_some_and(|word| word.eq_ignore_ascii_case(b"AUTH"));
        match command::parse(line) {
            Ok((Verb::Auth, _)) => {
                self.knows_auth = true;
                mechanism_end(line)
            }
            Ok((verb, _)) if verb != Verb::Foreign => line.len(),
            _ if self.knows_auth => 0,
            _ => {
                let word = line.iter().position(|c| !c.is_ascii_alphabetic()).unwrap_or(line.len());
                let ends = line.get(word).is_none_or(|c| *c == b' ');
                if ends && word <= WORD_SIZE_MAX { word } else { 0 }
            }
        }
    }
}

/// Where the name of the mechanism ends in a line with AUTH; of what is no known name nothing is shown.
fn mechanism_end(line: &[u8]) -> usize {
    let verb = line.iter().position(|c| *c == b' ').unwrap_or(line.len());
    let begins = verb + line[verb..].iter().take_while(|c| **c == b' ').count();
    let name = line[begins..].split(|c| *c == b' ').next().unwrap_or_default();
    let is_known = MECHANISMS.iter().any(|known| known.eq_ignore_ascii_case(name));
    if is_known { begins + name.len() } else { begins }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ear: &mut Ear, line: &str, is_response: bool) -> (String, usize) {
        ear.line(line.as_bytes(), is_response);
        match ear.take().pop() {
            Some(Heard::Line { shown, hidden }) => (String::from_utf8(shown.into()).unwrap(), hidden),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn commands_are_shown_and_what_may_be_a_password_is_not() {
        let table = [
            // (line, is it a response, shown, octets hidden)
            ("EHLO client.test", false, "EHLO client.test", 0),
            ("MAIL FROM:<a@b.test> SIZE=10", false, "MAIL FROM:<a@b.test> SIZE=10", 0),
            ("AUHT PLAIN AHVzZXIAc2VjcmV0", false, "AUHT", 23),
            ("GET / HTTP/1.1", false, "GET", 11),
            ("POST /login?password=x HTTP/1.1", false, "POST", 27),
            ("AHVzZXIAc2VjcmV0", false, "", 16),
            ("c2VjcmV0", false, "", 8),
            ("NOOP", false, "NOOP", 0),
            ("auth  plain AHVzZXIAc2VjcmV0", false, "auth  plain", 17),
            ("AUTH PLAIN ", false, "AUTH PLAIN", 1),
            ("AUTH PLAIN AHVzZXIAc2VjcmV0   ", false, "AUTH PLAIN", 20),
            ("AUTH", false, "AUTH", 0),
            ("AUTH AHVzZXIAc2VjcmV0AHVzZXI=", false, "AUTH ", 24),
            ("AUTH AHVzZXIAc2VjcmV0", false, "AUTH ", 16),
            ("AUTH secret", false, "AUTH ", 6),
            ("AUTH PLAIN=AHVzZXIA", false, "AUTH ", 14),
            ("AUTH scram-sha-256 biwsbj11c2Vy", false, "AUTH scram-sha-256", 13),
            ("AUTH\tPLAIN\tAHVzZXIAc2VjcmV0", false, "", 27),
            ("dXNlcg==", true, "", 8),
            ("*", true, "", 1),
            ("QUIT", true, "", 4),
            // Nobody has asked for it, but it was sent behind an AUTH.
            ("secret", false, "", 6),
            ("RSET", false, "RSET", 0),
        ];
        let mut ear = Ear::default();
        for (line, is_response, expected, hidden) in table {
            // A word of letters only that is no command is one that somebody misspelt, until there was an AUTH.
            if line == "c2VjcmV0" {
                assert_eq!(shown(&mut ear, "secret", false), ("secret".into(), 0));
            }
            assert_eq!(shown(&mut ear, line, is_response), (expected.into(), hidden), "{line}");
        }
    }

    #[test]
    fn a_spoilt_auth_is_one_as_far_as_what_follows_it_goes() {
        for spoilt in ["AUTH\tPLAIN", "AUTH PLAIN\tAHVzZXIA", "AUTHPLAIN", "auth=x"] {
            let mut ear = Ear::default();
            shown(&mut ear, spoilt, false);
            assert_eq!(shown(&mut ear, "secret", false), ("".into(), 6), "{spoilt}");
        }
    }

    #[test]
    fn what_nobody_takes_is_bounded() {
        let mut ear = Ear::default();
        (0..HEARD_MAX + 5).for_each(|_| ear.line(&[b'x'; 5000], false));
        let heard = ear.take();
        assert_eq!((heard.len(), heard.last()), (HEARD_MAX + 1, Some(&Heard::Missed(5))));
        ear.line(format!("NOOP {}", "x".repeat(2000)).as_bytes(), false);
        let Some(Heard::Line { shown, hidden }) = ear.take().pop() else { panic!("a line") };
        assert_eq!((shown.len(), hidden), (LINE_SIZE_MAX, 2005 - LINE_SIZE_MAX));
        (0..10).for_each(|_| ear.content(100));
        assert_eq!(ear.take(), [Heard::Content(1000)]);
        assert_eq!(ear.take(), []);
    }
}
