use super::*;
use crate::smtp::Replies;

/// Everything there is to choose.
#[derive(Clone, Copy, Default)]
struct Way {
    is_pipelined: bool,
    is_chunking: bool,
    is_starttls: bool,
    recipient_count: usize,
}

const PLAIN: Way = Way { is_pipelined: false, is_chunking: false, is_starttls: false, recipient_count: 2 };
const GROUPED: Way = Way { is_pipelined: true, ..PLAIN };
const CHUNKED: Way = Way { is_chunking: true, ..PLAIN };
const GROUPED_CHUNKED: Way = Way { is_pipelined: true, ..CHUNKED };
const SECURED: Way = Way { is_starttls: true, ..PLAIN };

const ALL: &str = "250-mx\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-SIZE 9\r\n250 STARTTLS\r\n";

#[derive(Default)]
struct Told {
    outcomes: Vec<Outcome>,
    replies: Vec<(Phase, u16)>,
}

impl Listener for Told {
    fn replied(&mut self, phase: Phase, _: Duration, reply: &Reply<'_>, _: Option<&Message>, _: Instant) {
        self.replies.push((phase, reply.code));
    }

    fn ended(&mut self, _: &Message, outcome: Outcome, _: Instant) {
        self.outcomes.push(outcome);
    }
}

/// What a session came to.
#[derive(Clone, Debug, PartialEq)]
struct Ended {
    /// Commands, and for a content `CONTENT`, `.`, or both.
    sent: String,
    outcomes: Vec<Outcome>,
    fault: Option<(Failure, String)>,
    replies: Vec<(Phase, u16)>,
    next: Next,
}

/// Sends `count` messages to a server that answers each of the client's writes with the next of `script`, each answer cut
/// into two at `cut` if it is long enough.
fn converse(way: Way, count: usize, script: &[&str], cut: usize) -> Ended {
    let rules = Rules {
        host: "h".into(),
        sender: "s".into(),
        recipient: "r{n}".into(),
        recipient_count: way.recipient_count,
        is_pipelined: way.is_pipelined,
        is_chunking: way.is_chunking,
        is_starttls: way.is_starttls,
    };
    let now = Instant::now();
    let mut dialogue = Dialogue::new(Rc::new(rules), false, now);
    let mut replies = Replies::default();
    let (mut told, mut out, mut sent) = (Told::default(), Vec::new(), String::new());
    let mut left = count;
    let mut script = script.iter();
    for _ in 0..1000 {
        match dialogue.next() {
            Next::Replies => {
                sent += &String::from_utf8(std::mem::take(&mut out)).unwrap();
                let Some(answer) = script.next() else {
                    dialogue.handle_end(now, &mut told);
                    break;
                };
                let (one, two) = answer.as_bytes().split_at(cut.min(answer.len()));
                for part in [one, two].into_iter().filter(|part| !part.is_empty()) {
                    replies
                        .take(part, |reply| dialogue.handle_reply(reply, now, &mut told, &mut out))
                        .unwrap();
                }
            }
            Next::Content => {
                sent += &String::from_utf8(std::mem::take(&mut out)).unwrap();
                sent += if dialogue.is_content_void() { "" } else { "CONTENT\r\n" };
                sent += if dialogue.is_chunking() { "" } else { ".\r\n" };
                dialogue.handle_content_sent(now);
            }
            Next::Handshake => {
                sent += "HANDSHAKE\r\n";
                dialogue.handle_secured(now, &mut out);
            }
            Next::Message if left > 0 => {
                left -= 1;
                let id = MessageId { run: 0, number: left as u64 };
                let message = Message { id, content: 0, size: 9, is_8bit: false, intended: now };
                dialogue.begin(message, now, &mut out);
            }
            Next::Message => dialogue.quit(now, &mut out),
            Next::Close => break,
        }
    }
    sent += &String::from_utf8(out).unwrap();
    Ended {
        sent: sent.replace("\r\n", "|"),
        outcomes: told.outcomes,
        fault: dialogue.fault().cloned(),
        replies: told.replies,
        next: dialogue.next(),
    }
}

const HELLO: &str = "EHLO h|";
const MAIL: &str = "MAIL FROM:<s> SIZE=9|RCPT TO:<r1>|RCPT TO:<r2>|";

/// Way, what the server answers after greeting and EHLO, what is sent after EHLO, outcomes, and words of the fault.
type Case = (Way, &'static [&'static str], String, Vec<Outcome>, Option<(Failure, &'static str)>);

fn case(
    way: Way,
    script: &'static [&'static str],
    sent: String,
    outcomes: &[Outcome],
    fault: Option<(Failure, &'static str)>,
) -> Case {
    (way, script, sent, outcomes.to_vec(), fault)
}

fn cases() -> Vec<Case> {
    use Outcome::{Accepted, Lost, Refused};
    let refused = |words| Some((Failure::Refused, words));
    vec![
        // All goes well.
        case(
            PLAIN,
            &["250 m\r\n", "250 r\r\n", "251 r\r\n", "354 d\r\n", "250 e\r\n", "221 q\r\n"],
            format!("{MAIL}DATA|CONTENT|.|QUIT|"),
            &[Accepted(2)],
            None,
        ),
        case(
            GROUPED,
            &["250 m\r\n250 r\r\n250 r\r\n354 d\r\n", "250 e\r\n", "221 q\r\n"],
            format!("{MAIL}DATA|CONTENT|.|QUIT|"),
            &[Accepted(2)],
            None,
        ),
        case(
            CHUNKED,
            &["250 m\r\n", "250 r\r\n", "250 r\r\n", "250 e\r\n", "221 q\r\n"],
            format!("{MAIL}BDAT 9 LAST|CONTENT|QUIT|"),
            &[Accepted(2)],
            None,
        ),
        case(
            GROUPED_CHUNKED,
            &["250 m\r\n250 r\r\n250 r\r\n250 e\r\n", "221 q\r\n"],
            format!("{MAIL}BDAT 9 LAST|CONTENT|QUIT|"),
            &[Accepted(2)],
            None,
        ),
        // MAIL is refused.
        case(
            PLAIN,
            &["451 no\r\n", "250 rset\r\n", "221 q\r\n"],
            "MAIL FROM:<s> SIZE=9|RSET|QUIT|".into(),
            &[Refused],
            None,
        ),
        case(
            GROUPED,
            &["451 no\r\n503 r\r\n503 r\r\n503 d\r\n", "250 rset\r\n", "221 q\r\n"],
            format!("{MAIL}DATA|RSET|QUIT|"),
            &[Refused],
            None,
        ),
        case(
            GROUPED_CHUNKED,
            &["451 no\r\n503 r\r\n503 r\r\n503 b\r\n", "250 rset\r\n", "221 q\r\n"],
            format!("{MAIL}BDAT 9 LAST|CONTENT|RSET|QUIT|"),
            &[Refused],
            None,
        ),
        // One recipient is refused.
        case(
            PLAIN,
            &["250 m\r\n", "550 r\r\n", "250 r\r\n", "354 d\r\n", "250 e\r\n", "221 q\r\n"],
            format!("{MAIL}DATA|CONTENT|.|QUIT|"),
            &[Accepted(1)],
            None,
        ),
        case(
            GROUPED,
            &["250 m\r\n250 r\r\n450 r\r\n354 d\r\n", "250 e\r\n", "221 q\r\n"],
            format!("{MAIL}DATA|CONTENT|.|QUIT|"),
            &[Accepted(1)],
            None,
        ),
        case(
            GROUPED_CHUNKED,
            &["250 m\r\n450 r\r\n250 r\r\n250 e\r\n", "221 q\r\n"],
            format!("{MAIL}BDAT 9 LAST|CONTENT|QUIT|"),
            &[Accepted(1)],
            None,
        ),
        // All recipients are refused.
        case(
            PLAIN,
            &["250 m\r\n", "550 r\r\n", "550 r\r\n", "250 rset\r\n", "221 q\r\n"],
            format!("{MAIL}RSET|QUIT|"),
            &[Refused],
            None,
        ),
        case(
            CHUNKED,
            &["250 m\r\n", "550 r\r\n", "550 r\r\n", "250 rset\r\n", "221 q\r\n"],
            format!("{MAIL}RSET|QUIT|"),
            &[Refused],
            None,
        ),
        case(
            GROUPED,
            &["250 m\r\n550 r\r\n550 r\r\n554 d\r\n", "250 rset\r\n", "221 q\r\n"],
            format!("{MAIL}DATA|RSET|QUIT|"),
            &[Refused],
            None,
        ),
        // A server that says 354 all the same is sent no content (RFC 2920 §3.1), whatever it makes of that.
        case(
            GROUPED,
            &["250 m\r\n550 r\r\n550 r\r\n354 d\r\n", "554 none\r\n", "221 q\r\n"],
            format!("{MAIL}DATA|.|QUIT|"),
            &[Refused],
            None,
        ),
        case(
            GROUPED,
            &["250 m\r\n550 r\r\n550 r\r\n354 d\r\n", "250 strange\r\n", "221 q\r\n"],
            format!("{MAIL}DATA|.|QUIT|"),
            &[Refused],
            None,
        ),
        case(
            GROUPED_CHUNKED,
            &["250 m\r\n550 r\r\n550 r\r\n250 strange\r\n", "250 rset\r\n", "221 q\r\n"],
            format!("{MAIL}BDAT 9 LAST|CONTENT|RSET|QUIT|"),
            &[Refused],
            None,
        ),
        // DATA, and the end-of-data.
        case(
            PLAIN,
            &["250 m\r\n", "250 r\r\n", "250 r\r\n", "451 d\r\n", "250 rset\r\n", "221 q\r\n"],
            format!("{MAIL}DATA|RSET|QUIT|"),
            &[Refused],
            None,
        ),
        case(
            GROUPED,
            &["250 m\r\n250 r\r\n250 r\r\n354 d\r\n", "452 e\r\n", "221 q\r\n"],
            format!("{MAIL}DATA|CONTENT|.|QUIT|"),
            &[Refused],
            None,
        ),
        case(
            CHUNKED,
            &["250 m\r\n", "250 r\r\n", "250 r\r\n", "552 b\r\n", "250 rset\r\n", "221 q\r\n"],
            format!("{MAIL}BDAT 9 LAST|CONTENT|RSET|QUIT|"),
            &[Refused],
            None,
        ),
        // The session ends at each point, and what follows 421 is nobody's.
        case(PLAIN, &["421 m\r\n"], "MAIL FROM:<s> SIZE=9|".into(), &[Refused], refused("421 m")),
        case(
            PLAIN,
            &["250 m\r\n", "421 r\r\n"],
            "MAIL FROM:<s> SIZE=9|RCPT TO:<r1>|".into(),
            &[Refused],
            refused("421 r"),
        ),
        case(
            PLAIN,
            &["250 m\r\n", "250 r\r\n", "250 r\r\n", "421 d\r\n"],
            format!("{MAIL}DATA|"),
            &[Refused],
            refused("421 d"),
        ),
        case(
            PLAIN,
            &["250 m\r\n", "250 r\r\n", "250 r\r\n", "354 d\r\n", "421 e\r\n"],
            format!("{MAIL}DATA|CONTENT|.|"),
            &[Refused],
            refused("421 e"),
        ),
        case(
            GROUPED,
            &["250 m\r\n421 r\r\n421 r\r\n503 d\r\n"],
            format!("{MAIL}DATA|"),
            &[Refused],
            refused("421 r"),
        ),
        case(
            PLAIN,
            &["451 no\r\n", "421 rset\r\n"],
            "MAIL FROM:<s> SIZE=9|RSET|".into(),
            &[Refused],
            refused("421 rset"),
        ),
        // It ends without a word.
        case(PLAIN, &[], "MAIL FROM:<s> SIZE=9|".into(), &[Lost], None),
        case(
            GROUPED,
            &["250 m\r\n250 r\r\n250 r\r\n354 d\r\n"],
            format!("{MAIL}DATA|CONTENT|.|"),
            &[Lost],
            None,
        ),
        // Replies that nobody asked for.
        case(
            PLAIN,
            &["250 m\r\n", "250 r\r\n", "250 r\r\n", "354 d\r\n250 early\r\n"],
            format!("{MAIL}DATA|"),
            &[Lost],
            Some((Failure::Protocol, "250 early")),
        ),
        case(
            GROUPED_CHUNKED,
            &["250 m\r\n250 r\r\n250 r\r\n250 e\r\n250 more\r\n"],
            format!("{MAIL}BDAT 9 LAST|CONTENT|"),
            &[Accepted(2)],
            Some((Failure::Protocol, "250 more")),
        ),
    ]
}

#[test]
fn every_script_is_answered_as_the_rules_have_it_wherever_replies_are_split() {
    for (way, script, sent, outcomes, fault) in cases() {
        let script = [&["220 hi\r\n", ALL], script].concat();
        let whole = converse(way, 1, &script, 0);
        assert_eq!(whole.sent, format!("{HELLO}{sent}"), "{script:?}");
        assert_eq!(whole.outcomes, outcomes, "{script:?}");
        let said = whole.fault.as_ref().map(|(failure, words)| (*failure, words.as_str()));
        assert_eq!(said, fault, "{script:?}");
        assert_eq!(whole.next, Next::Close, "{script:?}");
        for cut in 1..script.iter().map(|answer| answer.len()).max().unwrap() {
            assert_eq!(converse(way, 1, &script, cut), whole, "{script:?} cut at {cut}");
        }
    }
}

#[test]
fn what_is_not_offered_is_not_used() {
    for hello in ["250 mx\r\n", "250-mx\r\n250 HELP\r\n"] {
        let script = [
            "220 hi\r\n",
            hello,
            "250 m\r\n",
            "250 r\r\n",
            "250 r\r\n",
            "354 d\r\n",
            "250 e\r\n",
            "221 q\r\n",
        ];
        let ended = converse(GROUPED_CHUNKED, 1, &script, 0);
        assert_eq!(ended.sent, "EHLO h|MAIL FROM:<s>|RCPT TO:<r1>|RCPT TO:<r2>|DATA|CONTENT|.|QUIT|");
        assert_eq!(ended.outcomes, [Outcome::Accepted(2)]);
    }
}

#[test]
fn a_message_after_one_that_was_refused_is_a_new_one() {
    let script = [
        "220 hi\r\n",
        ALL,
        "250 m\r\n550 r\r\n550 r\r\n354 d\r\n",
        "554 none\r\n",
        "250 m\r\n250 r\r\n250 r\r\n354 d\r\n",
        "250 e\r\n",
        "221 q\r\n",
    ];
    let ended = converse(GROUPED, 2, &script, 0);
    assert_eq!(ended.sent, format!("{HELLO}{MAIL}DATA|.|{MAIL}DATA|CONTENT|.|QUIT|"));
    assert_eq!(ended.outcomes, [Outcome::Refused, Outcome::Accepted(2)]);
    let last = &ended.replies[ended.replies.len() - 5..];
    let phases: Vec<Phase> = last.iter().map(|(phase, _)| *phase).collect();
    assert_eq!(phases, [Phase::Mail, Phase::Recipient, Phase::Recipient, Phase::Data, Phase::EndOfData]);
}

#[test]
fn starttls_comes_first_where_it_is_asked_for_and_nothing_is_sent_without_it() {
    let plain = "250 mx\r\n";
    let refused = |words: &str| Some((Failure::Refused, words.to_owned()));
    for (script, sent, fault) in [
        (
            // What is offered below TLS counts.
            &["220 hi\r\n", ALL, "220 go\r\n", plain, "221 q\r\n"][..],
            "EHLO h|STARTTLS|HANDSHAKE|EHLO h|QUIT|",
            None,
        ),
        (&["220 hi\r\n", plain], "EHLO h|", refused("STARTTLS is not offered")),
        (&["220 hi\r\n", ALL, "454 no\r\n"], "EHLO h|STARTTLS|", refused("454 no")),
        (&["220 hi\r\n", ALL, "421 no\r\n"], "EHLO h|STARTTLS|", refused("421 no")),
        // What follows the 220 in plaintext is not from the server that TLS will vouch for.
        (
            &["220 hi\r\n", ALL, "220 go\r\n250 sneaked in\r\n"],
            "EHLO h|STARTTLS|",
            Some((Failure::Protocol, "250 sneaked in".to_owned())),
        ),
    ] {
        let ended = converse(SECURED, 0, script, 0);
        assert_eq!((ended.sent.as_str(), &ended.fault), (sent, &fault), "{script:?}");
        assert_eq!(ended.next, Next::Close);
    }
}

#[test]
fn a_session_that_is_refused_at_its_beginning_says_why() {
    for (script, sent) in [
        (&["554 not you\r\n"][..], ""),
        (&["421 busy\r\n"], ""),
        (&["220 hi\r\n", "502 what\r\n"], "EHLO h|"),
        (&["220 hi\r\n", "421 busy\r\n"], "EHLO h|"),
    ] {
        let ended = converse(PLAIN, 1, script, 0);
        let last = script.last().unwrap().trim_end().to_owned();
        assert_eq!((ended.sent.as_str(), ended.fault), (sent, Some((Failure::Refused, last))));
        assert_eq!(ended.outcomes, []);
    }
}

#[test]
fn what_a_server_says_while_nothing_is_asked_ends_the_session() {
    for (words, failure) in [("421 idle\r\n", Failure::Refused), ("250 what\r\n", Failure::Protocol)] {
        let hello = format!("{ALL}{words}");
        let ended = converse(PLAIN, 1, &["220 hi\r\n", &hello], 0);
        assert_eq!((ended.sent.as_str(), ended.fault.unwrap().0), (HELLO, failure));
        assert_eq!(ended.outcomes, []);
    }
}

#[test]
fn eight_bit_content_is_declared_where_that_is_offered_and_names_are_filled_in() {
    let rules = Rules {
        host: "h".into(),
        sender: "a-{id}@b".into(),
        recipient: "inbox".into(),
        recipient_count: 1,
        is_pipelined: false,
        is_chunking: false,
        is_starttls: false,
    };
    let now = Instant::now();
    let mut out = Vec::new();
    let mut dialogue = Dialogue::new(Rc::new(rules), false, now);
    for octets in [b"220 hi\r\n".as_slice(), b"250-mx\r\n250 8BITMIME\r\n"] {
        let code = if octets[2] == b'0' && octets[1] == b'2' { 220 } else { 250 };
        dialogue.handle_reply(Reply { code, octets }, now, &mut Told::default(), &mut out);
    }
    out.clear();
    let id = MessageId { run: 1, number: 2 };
    dialogue.begin(Message { id, content: 0, size: 5, is_8bit: true, intended: now }, now, &mut out);
    assert_eq!(out, b"MAIL FROM:<a-00000001-000000000002@b> BODY=8BITMIME\r\n");
}
