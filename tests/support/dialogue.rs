//! The format of `tests/dialogues/*.smtp`: a session as a mail operator would write it down.
//!
//! ```text
//! # a comment; the first one of a dialogue is its name
//! @ message_size_max 100      a bound of the session's configuration; before the first exchange
//! @ greeting_delay 5          the same, in seconds
//! @ tls optional              or required, or implicit
//! @ auth optional             or required
//! @ dialect lmtp
//! @ capabilities binary dsn require_tls      what the transports can carry: any of these
//! @ xclient                   the peer may say XCLIENT
//! @ bare normalise            bare line ends become CRLF
//! @ ask recipient             the driver is asked at this phase: connect hello mail recipient data message
//! @ in tls                    EHLO, STARTTLS, and EHLO again; behind it the next may follow
//! @ in transaction            EHLO (LHLO), MAIL from <a@e.org> and RCPT to <b@example.com> have taken place
//! @ in content                and DATA
//! C: NOOP                     the client sends a line and CRLF; lines behind one another are sent at once
//! C: NO\                      without CRLF: so are chunks written that do not end a line
//! C!: DATA                    in this group the octets are never split
//! C*3: NOOP                   the line three times
//! S: 250 2.0.0                a reply begins so; `S: 250` stands for all lines of a 250
//! ! verdict 5.1.1 No          the driver's answer to the next check that has none yet; `disconnect` at the end ends the session
//! ! replace b@e.org c@e.org   the same answer: accepted, and these recipients stand for the one in question
//! ! store no-room             the driver's answer to the next store: no-room, too-busy, failed
//! ! piece failed              the same for the next piece
//! ! tls failed                what becomes of the next handshake: failed, unavailable; otherwise it succeeds
//! ! auth refused              what becomes of the next credentials: refused, unavailable; otherwise they are right
//! > 301 seconds pass          something happens: also `end of input`, `drain`, `abort`
//! = message <a@e.org> <b@example.com> hello\r\n      a message is stored, with this content
//! = envelope body=BINARYMIME requiretls ret=HDRS envid=x notify0=NEVER orcpt0=rfc822;b      its envelope beside the paths: this, and
//!                             nothing else
//! = arrival keyword=ESMTPSA user=bob peer=192.0.2.7 hello=c      how it has arrived: as far as it is named
//! = credentials bob secret    the driver was asked about these, first, then these; those not named must not be
//! = pauses 3                  so often were replies kept back; otherwise never
//! = closed                    the session has ended here; or `= open`
//! ---                         another dialogue in the same file
//! ```
//!
//! In C lines and contents `\r \n \t \0 \\ \xNN` are octets and `\{ab*3}` is `ababab`. Messages are compared
//! at the end: those not named must not be stored. Every reply must be named.

use std::time::Duration;

use incoming::mail::{Arrival, Body, Capabilities, Envelope, ForwardPath, Phase, Phases, Refusal, Status};
use incoming::smtp::{
    AuthMode, Authentication, BareLineEnds, Dialect, NotStored, Peer, SessionConfig, TlsMode,
};

/// One session, written down.
pub struct Dialogue {
    /// Its first comment.
    pub name: String,
    pub config: SessionConfig,
    pub peer: Peer,
    pub steps: Vec<Step>,
    pub messages: Vec<Message>,
    /// User and password of each question.
    pub credentials: Vec<String>,
    pub pauses: usize,
}

/// Something that happens, and the replies to it.
pub struct Step {
    /// The line of the file, from 1.
    pub line: usize,
    pub action: Action,
    pub replies: Vec<String>,
}

pub enum Action {
    Connect,
    Send { octets: Vec<u8>, is_split: bool },
    Verdict(Refusal),
    Replace(Vec<ForwardPath>),
    StoreFails(NotStored),
    PieceFails(NotStored),
    NoTls(NoTls),
    NotAuthenticated(Authentication),
    Pass(u64),
    EndOfInput,
    Drain,
    Abort,
    IsClosed(bool),
}

/// What stands against a handshake.
#[derive(Clone, Copy)]
pub enum NoTls {
    Unavailable,
    Failed,
}

/// A message as it is stored, or as one is expected.
#[derive(Clone, Debug)]
pub struct Message {
    pub reverse_path: String,
    pub forward_paths: Vec<String>,
    pub content: Vec<u8>,
    /// The words of `= envelope`; compared where they are expected.
    pub envelope: Option<Vec<String>>,
    /// The words of `= arrival`; each that is expected must be there.
    pub arrival: Vec<String>,
}

impl Message {
    /// A message that was stored.
    pub fn stored(envelope: &Envelope, arrival: &Arrival, content: Vec<u8>) -> Self {
        Message {
            reverse_path: envelope.reverse_path.to_string(),
            forward_paths: envelope.forward_paths.iter().map(|path| path.to_string()).collect(),
            content,
            envelope: Some(envelope_words(envelope)),
            arrival: arrival_words(arrival, envelope.smtputf8),
        }
    }

    /// Whether this one, which was stored, is as expected.
    pub fn is(&self, expected: &Message) -> bool {
        self.reverse_path == expected.reverse_path
            && self.forward_paths == expected.forward_paths
            && self.content == expected.content
            && (expected.envelope.is_none() || self.envelope == expected.envelope)
            && expected.arrival.iter().all(|word| self.arrival.contains(word))
    }
}

/// Everything in an envelope beside its paths and the defaults, in a fixed order.
fn envelope_words(envelope: &Envelope) -> Vec<String> {
    let mut words = Vec::new();
    match envelope.body {
        Body::SevenBit => {}
        Body::EightBit => words.push("body=8BITMIME".to_string()),
        Body::Binary => words.push("body=BINARYMIME".to_string()),
    }
    words.extend(envelope.smtputf8.then(|| "smtputf8".to_string()));
    words.extend(envelope.require_tls.then(|| "requiretls".to_string()));
    let Some(dsn) = &envelope.dsn else { return words };
    words.extend(dsn.ret.map(|ret| format!("ret={}", ret.as_str())));
    words.extend(dsn.envelope_id.as_ref().map(|id| format!("envid={}", id.as_str())));
    for recipient in &dsn.recipients {
        let index = recipient.index;
        words.extend(recipient.notify.map(|notify| format!("notify{index}={}", notify.text())));
        words.extend(recipient.original.as_ref().map(|text| format!("orcpt{index}={}", text.as_str())));
    }
    words
}

fn arrival_words(arrival: &Arrival, smtputf8: bool) -> Vec<String> {
    vec![
        format!("keyword={}", arrival.keyword(smtputf8)),
        format!("user={}", arrival.authenticated.as_deref().unwrap_or("-")),
        format!("peer={}", arrival.peer.ip()),
        format!("port={}", arrival.peer.port()),
        format!("hello={}", arrival.hello),
        format!("tls={}", if arrival.tls.is_some() { "yes" } else { "no" }),
    ]
}

/// All dialogues of a file. A fault in it is a panic that names its line.
pub fn parse_file(text: &str) -> Vec<Dialogue> {
    let mut dialogues = vec![Dialogue::new(1)];
    let mut is_sending = false;
    for (i, line) in text.lines().enumerate() {
        let number = i + 1;
        let was_sending = std::mem::replace(&mut is_sending, false);
        if line == "---" {
            dialogues.push(Dialogue::new(number));
            continue;
        }
        let dialogue = dialogues.last_mut().expect("there is a first one");
        if line.is_empty() {
            continue;
        }
        let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
        match mark {
            "#" if dialogue.name.is_empty() => dialogue.name = rest.to_string(),
            "#" => is_sending = was_sending,
            "@" => dialogue.configure(rest, number),
            "S:" => dialogue.steps.last_mut().expect("the connection").replies.push(rest.to_string()),
            "!" => dialogue.push(number, answer(rest, number)),
            ">" => dialogue.push(number, event(rest, number)),
            "=" => match rest.split_once(' ') {
                None if rest == "closed" => dialogue.push(number, Action::IsClosed(true)),
                None if rest == "open" => dialogue.push(number, Action::IsClosed(false)),
                Some(("message", message)) => dialogue.messages.push(parse_message(message, number)),
                Some(("envelope", words)) => dialogue.message(number).envelope = Some(words_of(words)),
                Some(("arrival", words)) => dialogue.message(number).arrival = words_of(words),
                Some(("pauses", count)) => dialogue.pauses = count.parse().expect("a number"),
                Some(("credentials", credentials)) => dialogue.credentials.push(credentials.to_string()),
                None if rest == "envelope" => dialogue.message(number).envelope = Some(Vec::new()),
                _ => panic!("line {number}: what is expected? {line}"),
            },
            _ => {
                let mark = mark.strip_prefix('C').and_then(|m| m.strip_suffix(':'));
                let mark = mark.unwrap_or_else(|| panic!("line {number}: neither comment nor step: {line}"));
                let count = mark.strip_prefix('*').map_or(1, |n| n.parse().expect("a number behind C*"));
                if !was_sending {
                    dialogue.push(number, Action::Send { octets: Vec::new(), is_split: true });
                }
                dialogue.send(&line_octets(rest).repeat(count), mark == "!");
                is_sending = true;
            }
        }
    }
    dialogues
}

impl Dialogue {
    fn new(line: usize) -> Self {
        let connect = Step { line, action: Action::Connect, replies: Vec::new() };
        let mut config = SessionConfig::new("mx.example.com");
        config.content_rate_min = 0;
        Dialogue {
            name: String::new(),
            config,
            peer: Peer::stranger("192.0.2.1:1234".parse().expect("an address")),
            steps: vec![connect],
            messages: Vec::new(),
            credentials: Vec::new(),
            pauses: 0,
        }
    }

    fn push(&mut self, line: usize, action: Action) {
        self.steps.push(Step { line, action, replies: Vec::new() });
    }

    /// The message that was named last.
    fn message(&mut self, line: usize) -> &mut Message {
        self.messages.last_mut().unwrap_or_else(|| panic!("line {line}: of which message?"))
    }

    fn send(&mut self, more: &[u8], is_at_once: bool) {
        let Some(Step { action: Action::Send { octets, is_split }, .. }) = self.steps.last_mut() else {
            unreachable!("pushed before");
        };
        octets.extend_from_slice(more);
        *is_split &= !is_at_once;
    }

    fn exchange(&mut self, line: usize, octets: &str, replies: &[&str]) {
        let octets = octets.as_bytes().to_vec();
        self.push(line, Action::Send { octets, is_split: true });
        self.steps.last_mut().expect("just pushed").replies = replies.iter().map(|r| r.to_string()).collect();
    }

    fn configure(&mut self, setting: &str, line: usize) {
        let (key, value) = setting.split_once(' ').unwrap_or((setting, ""));
        let number =
            || value.parse::<usize>().unwrap_or_else(|_| panic!("line {line}: not a number: {value}"));
        let config = &mut self.config;
        match (key, value) {
            ("message_size_max", _) => config.message_size_max = number() as u64,
            ("recipients_max", _) => config.recipients_max = number(),
            ("command_size_max", _) => config.command_size_max = number(),
            ("hops_max", _) => config.hops_max = number(),
            ("header_size_max", _) => config.header_size_max = number(),
            ("piece_size", _) => config.piece_size = number(),
            ("errors_max", _) => config.errors_max = number() as u32,
            ("idle_commands_max", _) => config.idle_commands_max = number() as u32,
            ("content_rate_min", _) => config.content_rate_min = number() as u32,
            ("small_chunks_max", _) => config.small_chunks_max = number() as u32,
            ("wrong_credentials_max", _) => config.wrong_credentials_max = number() as u8,
            ("greeting_delay", _) => self.peer.greeting_delay_millis = number() as u16 * 1000,
            ("error_delay", _) => config.error_delay = Duration::from_secs(number() as u64),
            ("error_delay_after", _) => config.error_delay_after = number() as u32,
            ("tls", "optional") => config.tls = TlsMode::Optional,
            ("tls", "required") => config.tls = TlsMode::Required,
            ("tls", "implicit") => config.tls = TlsMode::Implicit,
            ("auth", "optional") => config.auth = AuthMode::Optional,
            ("auth", "required") => config.auth = AuthMode::Required,
            ("dialect", "lmtp") => config.dialect = Dialect::Lmtp,
            ("capabilities", names) => config.capabilities = parse_capabilities(names, line),
            ("xclient", "") => self.peer.may_xclient = true,
            ("bare", "normalise") => self.peer.bare_line_ends = BareLineEnds::Normalise,
            ("ask", phase) => config.phases = config.phases | Phases::of(parse_phase(phase, line)),
            ("in", place) => self.begin_in(place, line),
            _ => panic!("line {line}: unknown setting: {setting}"),
        }
    }

    /// The exchanges that lead there.
    fn begin_in(&mut self, place: &str, line: usize) {
        if self.steps.len() == 1 {
            self.steps[0].replies.push("220".into());
        }
        let hello = match self.config.dialect {
            Dialect::Smtp => "EHLO c.example\r\n",
            Dialect::Lmtp => "LHLO c.example\r\n",
        };
        if place == "tls" {
            self.exchange(line, &format!("{hello}STARTTLS\r\n"), &["250", "220 2.0.0"]);
            return self.exchange(line, hello, &["250"]);
        }
        let opening = format!("{hello}MAIL FROM:<a@e.org>\r\nRCPT TO:<b@example.com>\r\n");
        self.exchange(line, &opening, &["250", "250", "250"]);
        match place {
            "transaction" => {}
            "content" => self.exchange(line, "DATA\r\n", &["354"]),
            _ => panic!("line {line}: where is that? {place}"),
        }
    }
}

fn parse_capabilities(names: &str, line: usize) -> Capabilities {
    names.split(' ').fold(Capabilities::default(), |all, name| match name {
        "binary" => Capabilities { binary: true, ..all },
        "dsn" => Capabilities { dsn: true, ..all },
        "require_tls" => Capabilities { require_tls: true, ..all },
        _ => panic!("line {line}: no such capability: {name}"),
    })
}

fn parse_phase(name: &str, line: usize) -> Phase {
    match name {
        "connect" => Phase::Connect,
        "hello" => Phase::Hello,
        "mail" => Phase::Mail,
        "recipient" => Phase::Recipient,
        "data" => Phase::Data,
        "message" => Phase::Message,
        _ => panic!("line {line}: unknown phase: {name}"),
    }
}

fn answer(text: &str, line: usize) -> Action {
    let (what, answer) = text.split_once(' ').unwrap_or((text, ""));
    let not_stored = || match answer {
        "no-room" => NotStored::NoRoom,
        "too-busy" => NotStored::TooBusy,
        "failed" => NotStored::Failed,
        _ => panic!("line {line}: no such failure: {answer}"),
    };
    match what {
        "store" => Action::StoreFails(not_stored()),
        "piece" => Action::PieceFails(not_stored()),
        "tls" => Action::NoTls(match answer {
            "unavailable" => NoTls::Unavailable,
            "failed" => NoTls::Failed,
            _ => panic!("line {line}: no such handshake: {answer}"),
        }),
        "auth" => Action::NotAuthenticated(match answer {
            "refused" => Authentication::Refused,
            "unavailable" => Authentication::Unavailable,
            _ => panic!("line {line}: no such answer: {answer}"),
        }),
        "replace" => Action::Replace(
            answer.split(' ').map(|path| ForwardPath::parse(path, false).expect("a path")).collect(),
        ),
        "verdict" => {
            let (status, words) = answer.split_once(' ').expect("a status and words");
            let digits: Vec<u16> = status.split('.').map(|d| d.parse().expect("a digit")).collect();
            let status = match digits[0] {
                4 => Status::temporary(digits[1], digits[2]),
                _ => Status::permanent(digits[1], digits[2]),
            };
            let disconnect = words.ends_with("disconnect");
            Action::Verdict(Refusal { status, text: words.to_string().into(), disconnect, key: None })
        }
        _ => panic!("line {line}: unknown answer: {text}"),
    }
}

fn event(text: &str, line: usize) -> Action {
    match text {
        "end of input" => Action::EndOfInput,
        "drain" => Action::Drain,
        "abort" => Action::Abort,
        _ => {
            let seconds = text.strip_suffix(" seconds pass").and_then(|n| n.parse().ok());
            Action::Pass(seconds.unwrap_or_else(|| panic!("line {line}: unknown event: {text}")))
        }
    }
}

/// `<reverse-path> <forward-path>… content`
fn parse_message(text: &str, line: usize) -> Message {
    let mut paths = Vec::new();
    let mut rest = text;
    while let Some(path) = rest.strip_prefix('<') {
        let (path, more) = path.split_once('>').unwrap_or_else(|| panic!("line {line}: a path without `>`"));
        paths.push(path.to_string());
        rest = more.strip_prefix(' ').unwrap_or(more);
    }
    let reverse_path = paths.remove(0);
    Message { reverse_path, forward_paths: paths, content: octets(rest), envelope: None, arrival: Vec::new() }
}

fn words_of(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_string).collect()
}

/// What a `C:` line sends: its octets and, unless it ends in a lone backslash, CRLF.
fn line_octets(text: &str) -> Vec<u8> {
    let backslashes = text.len() - text.trim_end_matches('\\').len();
    match backslashes % 2 {
        1 => octets(&text[..text.len() - 1]),
        _ => [octets(text), b"\r\n".to_vec()].concat(),
    }
}

fn octets(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        out.extend_from_slice(plain.as_bytes());
        let mut chars = escaped.chars();
        let escape = chars.next().expect("something behind a backslash");
        rest = chars.as_str();
        match escape {
            'r' => out.push(b'\r'),
            'n' => out.push(b'\n'),
            't' => out.push(b'\t'),
            '0' => out.push(0),
            '\\' => out.push(b'\\'),
            'x' => {
                out.push(u8::from_str_radix(&rest[..2], 16).expect("two hexadecimal digits behind \\x"));
                rest = &rest[2..];
            }
            '{' => {
                let (inner, more) = rest.split_once('}').expect("a } for every \\{");
                let (inner, count) = inner.rsplit_once('*').expect("\\{what*how often}");
                out.extend(octets(inner).repeat(count.parse().expect("a number behind *")));
                rest = more;
            }
            other => panic!("unknown escape: \\{other}"),
        }
    }
    out.extend_from_slice(rest.as_bytes());
    out
}
