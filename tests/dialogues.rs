//! Every dialogue of `tests/dialogues/*.smtp`, with its input split in every way that matters: whole, octet
//! by octet, at every place in two, and at random in many. The replies and the messages stored are the same
//! each time.
//!
//! STARTTLS is the one place where a split matters, and only for a peer that sends more behind it. What came with it the session takes
//! and forgets; what it does not take, and what comes later, is read as a handshake, which it is none. So at every split the session either goes on as if nothing had been sent behind
//! STARTTLS, or it is closed after the same replies, with nothing stored that was not before.
//!
//! A failure prints the command that replays it.

#[path = "support/dialogue.rs"]
mod dialogue;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dialogue::{Action, Dialogue, Message, NoTls, Step, parse_file};
use incoming::mail::{ForwardPath, MessageId, Refusal, Tls, TlsVersion};
use incoming::smtp::{Authentication, Effect, NotStored, Session};

/// Random many-way splits of each dialogue.
const RANDOM_SPLITS: u64 = 40;

/// Groups longer than this are split in two near their ends and at random between, not everywhere: each split
/// is a whole run.
const SPLIT_EVERYWHERE_MAX: usize = 1500;

#[test]
fn every_dialogue_holds_at_every_split() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dialogues");
    let wanted = std::env::var("DIALOGUE").unwrap_or_default();
    let split = std::env::var("DIALOGUE_SPLIT").ok().map(|text| Split::parse(&text));
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder of dialogues")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|e| e == "smtp"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let mut failures = Vec::new();
    for path in files {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if !wanted.is_empty() && wanted != name {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a readable file");
        for dialogue in parse_file(&text) {
            assert!(!dialogue.name.is_empty(), "{name}: a dialogue says what it is about");
            let splits = split.map_or_else(|| splits_of(&dialogue), |split| vec![split]);
            for split in splits {
                if let Err(failure) = play(&dialogue, split) {
                    failures.push(format!(
                        "{name}.smtp ({}): {failure}\n  replay: DIALOGUE={name} DIALOGUE_SPLIT={split} cargo test --test dialogues",
                        dialogue.name
                    ));
                    break;
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// How the input is split.
#[derive(Clone, Copy)]
enum Split {
    Whole,
    Octets,
    /// The group of one step, in two.
    At {
        step: usize,
        position: usize,
    },
    /// Every group, at random.
    Random(u64),
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Split::Whole => write!(f, "whole"),
            Split::Octets => write!(f, "octets"),
            Split::At { step, position } => write!(f, "{step}@{position}"),
            Split::Random(seed) => write!(f, "random:{seed}"),
        }
    }
}

impl Split {
    fn parse(text: &str) -> Self {
        let number = |text: &str| text.parse().expect("a number in DIALOGUE_SPLIT");
        match text {
            "whole" => Split::Whole,
            "octets" => Split::Octets,
            _ => match (text.split_once('@'), text.strip_prefix("random:")) {
                (Some((step, position)), _) => {
                    Split::At { step: number(step) as usize, position: number(position) as usize }
                }
                (_, Some(seed)) => Split::Random(number(seed)),
                _ => panic!("DIALOGUE_SPLIT is whole, octets, STEP@POSITION or random:SEED"),
            },
        }
    }

    /// Where a group of `size` octets is cut, in order.
    fn cuts(self, step: usize, size: usize) -> Vec<usize> {
        match self {
            Split::Whole => Vec::new(),
            Split::Octets => (1..size).collect(),
            Split::At { step: wanted, position } if wanted == step => vec![position],
            Split::At { .. } => Vec::new(),
            Split::Random(seed) => {
                let mut random = Random(seed ^ (step as u64) << 32);
                let parts = 1 + random.below(8);
                let mut cuts: Vec<_> = (0..parts).map(|_| random.below(size + 1)).collect();
                cuts.sort_unstable();
                cuts
            }
        }
    }
}

fn splits_of(dialogue: &Dialogue) -> Vec<Split> {
    let mut splits = vec![Split::Whole, Split::Octets];
    let mut random = Random(1);
    for (step, Step { action, .. }) in dialogue.steps.iter().enumerate() {
        let Action::Send { octets, is_split: true } = action else { continue };
        let size = octets.len();
        let at = |position| Split::At { step, position };
        if size <= SPLIT_EVERYWHERE_MAX {
            splits.extend((1..size).map(at));
        } else {
            splits.extend((1..100).map(at));
            splits.extend((size - 100..size).map(at));
            splits.extend((0..20).map(|_| at(random.below(size))));
        }
    }
    splits.extend((1..=RANDOM_SPLITS).map(Split::Random));
    splits
}

/// SplitMix64: a seed is all there is to write down.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % bound as u64) as usize
    }
}

/// Plays the client and the driver.
fn play(dialogue: &Dialogue, split: Split) -> Result<(), String> {
    let mut now = Instant::now();
    let mut driver = Driver::new(dialogue, now);
    for (number, step) in dialogue.steps.iter().enumerate() {
        let failed = |what: String| Err(format!("line {}: {what}", step.line));
        match &step.action {
            Action::Verdict(refusal) => driver.verdicts.push_back(Err(refusal.clone())),
            Action::Replace(paths) => driver.verdicts.push_back(Ok(paths.clone())),
            Action::StoreFails(why) => driver.stores.push_back(*why),
            Action::PieceFails(why) => driver.pieces.push_back(*why),
            Action::NoTls(why) => driver.no_tls.push_back(*why),
            Action::NotAuthenticated(why) => driver.not_authenticated.push_back(*why),
            Action::IsClosed(expected) => {
                if driver.is_closed != *expected {
                    return failed(format!("the session is {}", if *expected { "open" } else { "closed" }));
                }
            }
            Action::Connect => driver.perform_effects(now),
            Action::Send { octets, is_split } => {
                let cuts = if *is_split { split.cuts(number, octets.len()) } else { Vec::new() };
                let mut from = 0;
                for to in cuts.into_iter().chain([octets.len()]) {
                    driver.input(&octets[from..to], now);
                    from = to;
                }
            }
            Action::Pass(seconds) => {
                now += Duration::from_secs(*seconds);
                driver.session.handle_timeout(now, &mut driver.replies);
            }
            Action::EndOfInput => driver.session.handle_end_of_input(&mut driver.replies),
            Action::Drain => driver.session.handle_drain(&mut driver.replies),
            Action::Abort => driver.session.handle_abort(&mut driver.replies),
        }
        driver.perform_effects(now);
        // The client has seen the 220, and shakes hands before it says anything else.
        driver.shake_hands(now);
        compare_replies(&std::mem::take(&mut driver.replies), &step.replies).or_else(failed)?;
        if driver.has_read_cleartext {
            let is_right = driver.is_closed && !matches!(split, Split::Whole);
            let stored = driver.compare_messages(&dialogue.messages[..driver.messages.len()]);
            return if is_right { stored } else { failed("cleartext where a handshake was due".into()) };
        }
    }
    if driver.credentials != dialogue.credentials {
        return Err(format!("asked about {:?}\n  expected {:?}", driver.credentials, dialogue.credentials));
    }
    if driver.pauses != dialogue.pauses {
        return Err(format!("{} pauses, expected {}", driver.pauses, dialogue.pauses));
    }
    driver.compare_messages(&dialogue.messages)
}

fn compare_replies(replies: &[u8], expected: &[String]) -> Result<(), String> {
    let text = String::from_utf8(replies.to_vec()).map_err(|_| "a reply that is no text".to_string())?;
    let mut lines = text.split_terminator("\r\n").peekable();
    for expected in expected {
        let line = lines.next().unwrap_or("");
        if !line.starts_with(expected.as_str()) {
            return Err(format!("expected `{expected}`, got `{line}`\n  all replies: {text:?}"));
        }
        // A bare code stands for the whole of a reply.
        let is_whole = expected.len() == 3;
        let mut latest = line;
        while is_whole && latest.as_bytes().get(3) == Some(&b'-') {
            latest = lines.next().unwrap_or("");
        }
    }
    match lines.next() {
        Some(line) => Err(format!("an unexpected reply: `{line}`\n  all replies: {text:?}")),
        None => Ok(()),
    }
}

/// Answers the session as the dialogue has it, and well where it has nothing.
struct Driver {
    session: Session,
    replies: Vec<u8>,
    /// A refusal, or the recipients that stand for the one in question.
    verdicts: VecDeque<Result<Vec<ForwardPath>, Refusal>>,
    stores: VecDeque<NotStored>,
    pieces: VecDeque<NotStored>,
    no_tls: VecDeque<NoTls>,
    not_authenticated: VecDeque<Authentication>,
    /// The pieces of the content that is on its way.
    content: Vec<u8>,
    messages: Vec<Message>,
    credentials: Vec<String>,
    pauses: usize,
    is_closed: bool,
    /// Octets that come are a handshake's.
    is_shaking_hands: bool,
    /// And some came that were none.
    has_read_cleartext: bool,
}

impl Driver {
    fn new(dialogue: &Dialogue, now: Instant) -> Self {
        let mut replies = Vec::new();
        let session = Session::new(Arc::new(dialogue.config.clone()), dialogue.peer, now, &mut replies);
        Driver {
            session,
            replies,
            verdicts: VecDeque::new(),
            stores: VecDeque::new(),
            pieces: VecDeque::new(),
            no_tls: VecDeque::new(),
            not_authenticated: VecDeque::new(),
            content: Vec::new(),
            messages: Vec::new(),
            credentials: Vec::new(),
            pauses: 0,
            is_closed: false,
            is_shaking_hands: false,
            has_read_cleartext: false,
        }
    }

    fn input(&mut self, octets: &[u8], now: Instant) {
        let mut at = 0;
        while at < octets.len() && !self.session.is_closed() {
            if self.is_shaking_hands {
                self.is_shaking_hands = false;
                self.has_read_cleartext = true;
                self.session.handle_tls_failed();
            } else {
                at += self.session.handle_input(&octets[at..], now, &mut self.replies);
            }
            self.perform_effects(now);
        }
    }

    fn shake_hands(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_shaking_hands) {
            let tls = Tls {
                version: TlsVersion::Tls13,
                cipher: "TLS13_AES_256_GCM_SHA384".into(),
                server_name: None,
                client: None,
            };
            self.session.handle_secured(tls, now, &mut self.replies);
            self.perform_effects(now);
        }
    }

    fn start_tls(&mut self, now: Instant) {
        match self.no_tls.pop_front() {
            Some(NoTls::Unavailable) => self.session.handle_tls_unavailable(now, &mut self.replies),
            why => {
                self.session.handle_tls_ready(&mut self.replies);
                self.is_shaking_hands = why.is_none();
                if why.is_some() {
                    self.session.handle_tls_failed();
                }
            }
        }
    }

    fn perform_effects(&mut self, now: Instant) {
        while let Some(effect) = self.session.poll_effect() {
            match effect {
                Effect::Check(_) => {
                    let verdict = match self.verdicts.pop_front() {
                        Some(Ok(paths)) => {
                            self.session.handle_replacement(paths);
                            Ok(())
                        }
                        Some(Err(refusal)) => Err(refusal),
                        None => Ok(()),
                    };
                    self.session.handle_verdict(verdict, now, &mut self.replies);
                }
                Effect::Piece(piece) => match self.pieces.pop_front() {
                    Some(why) => self.session.handle_not_stored(why, now),
                    None => {
                        self.content.extend_from_slice(&piece);
                        self.session.handle_piece_taken(piece, now);
                    }
                },
                Effect::Store(submission) => {
                    let mut content = std::mem::take(&mut self.content);
                    content.extend_from_slice(&submission.tail);
                    assert_eq!(content.len() as u64, submission.content_size);
                    if let Some(why) = self.stores.pop_front() {
                        self.session.handle_stored(Err(why), now, &mut self.replies);
                        continue;
                    }
                    let arrival = self.session.arrival(0);
                    self.messages.push(Message::stored(&submission.envelope, &arrival, content));
                    let id = MessageId { log: 1, sequence: self.messages.len() as u64 };
                    self.session.handle_stored(Ok(id), now, &mut self.replies);
                }
                Effect::StartTls => self.start_tls(now),
                Effect::Authenticate(credentials) => {
                    let password = credentials.password.escape_ascii();
                    self.credentials.push(format!("{} {password}", credentials.user));
                    let outcome = self.not_authenticated.pop_front().unwrap_or(Authentication::Accepted);
                    self.session.handle_authenticated(outcome, now, &mut self.replies);
                }
                Effect::Abandon => self.content.clear(),
                Effect::Pause(_) => {
                    self.pauses += 1;
                    self.session.handle_pause_over(now, &mut self.replies);
                }
                Effect::Close => self.is_closed = true,
            }
        }
    }

    fn compare_messages(&self, expected: &[Message]) -> Result<(), String> {
        let is_alike = self.messages.len() == expected.len()
            && self.messages.iter().zip(expected).all(|(stored, expected)| stored.is(expected));
        let differ = || format!("stored {:?}\n  expected {expected:?}", self.messages);
        if is_alike { Ok(()) } else { Err(differ()) }
    }
}
