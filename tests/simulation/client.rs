//! A simulated client: what it says, how it says it, and what it was told.
//!
//! It sends a script of commands and contents in splits of its own, stalls, vanishes, pipelines or not, and takes the replies in
//! order: one for each command, with a code that fits it. Whatever else comes is a failure of the run.

use std::collections::VecDeque;
use std::fmt::Write as _;

use incoming::mail::MessageId;

use crate::random::Random;

/// A recipient here is refused by the gateway's policy.
pub const REFUSED_DOMAIN: &str = "refused.example";

/// What a client was told of a content it offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Nothing,
    Stored(MessageId),
    /// A 4xx, with its code: it may send it again.
    Deferred(u32),
    /// A 5xx.
    Refused,
}

/// A transaction, as its client sees it.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The life of the gateway in which it was made.
    pub life: u32,
    /// Content after transparency is undone.
    pub content: Vec<u8>,
    /// It must not be accepted.
    pub is_bad: bool,
    /// Forward-paths that were answered 250, in order.
    pub recipients: Vec<String>,
    /// The last octet of end-of-data was sent.
    pub is_whole: bool,
    pub told: Told,
}

/// What the client waits for.
#[derive(Clone, Debug)]
enum Expected {
    Greeting,
    Hello,
    Mail,
    /// Of a transaction, and whether its path is well-formed.
    Recipient {
        offer: usize,
        path: String,
        is_good: bool,
    },
    Data,
    /// A chunk that is not the last.
    Chunk {
        offer: usize,
    },
    /// The end of data, or the last chunk.
    Content {
        offer: usize,
    },
    /// NOOP, RSET, VRFY.
    Other,
    Bad,
    Quit,
}

enum Next {
    Hello,
    Command,
    Recipients { offer: usize, left: Vec<(String, bool)> },
    Data { offer: usize },
    Chunks { offer: usize },
    Content { offer: usize },
    End,
}

/// What a client does when it is its turn.
#[derive(Debug)]
pub enum Act {
    Send(Vec<u8>),
    /// No more is sent (FIN).
    End,
    /// The connection is torn down (RST).
    Reset,
    /// It waits for replies.
    Wait,
}

pub struct Client {
    pub number: u32,
    random: Random,
    next: Next,
    transactions_left: u64,
    outbox: VecDeque<u8>,
    expected: VecDeque<Expected>,
    inbox: Vec<u8>,
    is_pipelining: bool,
    is_extended: bool,
    split_max: u64,
    stalls_one_in: u64,
    /// It vanishes when it has sent this much.
    vanishes_after: u64,
    /// It vanishes instead of reading the reply to this content, counted from 0.
    vanishes_before_reply: u64,
    sent: u64,
    contents_sent: u64,
    /// What was said to a chunk of the content that is on its way, if it was refused.
    refused_chunk: Option<Told>,
    /// Contents whose end-of-data is in the outbox: how much is in front of its end.
    ends: VecDeque<(u64, usize)>,
    is_gone: bool,
    /// Told 421, or it ended the session itself.
    is_ending: bool,
}

impl Client {
    /// A client with a manner of its own.
    pub fn new(number: u32, random: &mut Random) -> Self {
        let mut random = random.fork();
        let never = u64::MAX;
        let (split_max, stalls_one_in) = match random.below(6) {
            0 => (3, 0),
            1 => (100, 50),
            2 | 3 => (2000, 60),
            _ => (1 << 20, 100),
        };
        let vanishes = random.below(8);
        Client {
            number,
            next: Next::Hello,
            transactions_left: random.between(1, 4),
            outbox: VecDeque::new(),
            expected: [Expected::Greeting].into(),
            inbox: Vec::new(),
            is_pipelining: random.one_in(2),
            is_extended: !random.one_in(5),
            split_max,
            stalls_one_in,
            vanishes_after: if vanishes == 0 { random.below(4000) } else { never },
            vanishes_before_reply: if vanishes == 1 { random.below(2) } else { never },
            sent: 0,
            contents_sent: 0,
            refused_chunk: None,
            ends: VecDeque::new(),
            is_gone: false,
            is_ending: false,
            random,
        }
    }

    pub fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// Nothing more is sent or read.
    pub fn leave(&mut self) {
        self.is_gone = true;
    }

    /// How long before its next turn, microseconds.
    pub fn pause(&mut self) -> u64 {
        match self.random.one_in(self.stalls_one_in) {
            true => [50_000, 2_000_000, 200_000_000, 500_000_000][self.random.index(4)],
            false => self.random.below(6) * 100,
        }
    }

    /// Its turn: it sends something, leaves, or waits.
    pub fn act(&mut self, life: u32, size_max: usize, offers: &mut Vec<Offer>) -> Act {
        if self.is_gone {
            return Act::Wait;
        }
        if self.outbox.is_empty() && self.expected.is_empty() && !self.is_ending {
            self.speak(life, size_max, offers);
        }
        if self.outbox.is_empty() {
            if self.expected.is_empty() {
                self.is_gone = true;
                return if self.random.one_in(4) { Act::Reset } else { Act::End };
            }
            return Act::Wait;
        }
        let split = 1 + self.random.below(self.split_max) as usize;
        let size = split.min(self.outbox.len()).min((self.vanishes_after - self.sent) as usize);
        if size == 0 {
            self.is_gone = true;
            return if self.random.one_in(2) { Act::Reset } else { Act::End };
        }
        self.sent += size as u64;
        while self.ends.front().is_some_and(|(end, _)| *end <= self.sent) {
            let (_, offer) = self.ends.pop_front().expect("it was just looked at");
            offers[offer].is_whole = true;
        }
        Act::Send(self.outbox.drain(..size).collect())
    }

    fn say(&mut self, line: &str, expected: Expected) {
        self.outbox.extend(line.as_bytes());
        self.outbox.extend(b"\r\n");
        self.expected.push_back(expected);
    }

    /// The next group of commands, or a content.
    fn speak(&mut self, life: u32, size_max: usize, offers: &mut Vec<Offer>) {
        match std::mem::replace(&mut self.next, Next::Command) {
            Next::Hello => {
                let verb = if self.is_extended { "EHLO" } else { "HELO" };
                self.say(&format!("{verb} c{}.example", self.number), Expected::Hello);
            }
            Next::Command => self.speak_between(life, size_max, offers),
            Next::Recipients { offer, mut left } => match left.pop() {
                Some((path, is_good)) => {
                    self.say(&format!("RCPT TO:<{path}>"), Expected::Recipient { offer, path, is_good });
                    self.next = Next::Recipients { offer, left };
                }
                None => {
                    self.speak_content(offer);
                    if let Next::Chunks { .. } = self.next {
                        self.speak(life, size_max, offers);
                    }
                }
            },
            // The reply was not 354: the transaction is over.
            Next::Data { .. } => self.say("RSET", Expected::Other),
            Next::Chunks { offer } => self.speak_chunks(offer, &offers[offer].content),
            Next::Content { offer } => {
                let stuffed = stuff(&offers[offer].content);
                self.outbox.extend(stuffed);
                self.outbox.extend(b".\r\n");
                self.ends.push_back((self.sent + self.outbox.len() as u64, offer));
                self.expected.push_back(Expected::Content { offer });
                // What may follow in the same group (RFC 2920 §3.1).
                if self.is_pipelining && self.random.one_in(2) {
                    self.speak_between(life, size_max, offers);
                }
            }
            Next::End => {}
        }
    }

    fn speak_between(&mut self, life: u32, size_max: usize, offers: &mut Vec<Offer>) {
        while self.random.one_in(8) {
            match self.random.below(6) {
                0 => self.say("NOOP", Expected::Other),
                1 => self.say("RSET", Expected::Other),
                2 => self.say("VRFY somebody", Expected::Other),
                3 => self.say("RCPT TO:<nobody@example.com>", Expected::Bad),
                4 => self.say("FOO bar", Expected::Bad),
                _ => self.say("MAIL FROM:<a b>", Expected::Bad),
            }
        }
        if self.transactions_left == 0 {
            self.next = Next::End;
            if !self.random.one_in(4) {
                self.say("QUIT", Expected::Quit);
                self.is_ending = true;
            }
            return;
        }
        self.transactions_left -= 1;
        self.speak_transaction(life, size_max, offers);
    }

    fn speak_transaction(&mut self, life: u32, size_max: usize, offers: &mut Vec<Offer>) {
        let offer = offers.len();
        let (content, is_bad) = content(offer, size_max, &mut self.random);
        offers.push(Offer {
            life,
            content,
            is_bad,
            recipients: Vec::new(),
            is_whole: false,
            told: Told::Nothing,
        });
        let mut mail = match self.random.one_in(5) {
            true => "MAIL FROM:<>".to_owned(),
            false => format!("MAIL FROM:<s{offer}@sender.example>"),
        };
        if self.is_extended && self.random.one_in(2) {
            let _ = write!(mail, " SIZE={}", offers[offer].content.len().min(size_max));
        }
        self.say(&mail, Expected::Mail);
        let count = self.random.between(1, 5);
        let mut left: Vec<_> = (0..count).map(|i| (format!("o{offer}.r{i}@example.com"), true)).collect();
        if self.random.one_in(6) {
            left.push((format!("o{offer}@{REFUSED_DOMAIN}"), false));
        }
        if self.random.one_in(6) {
            left.insert(0, ("no path".to_owned(), false));
        }
        if !self.is_pipelining {
            self.next = Next::Recipients { offer, left };
            return;
        }
        for (path, is_good) in left {
            self.say(&format!("RCPT TO:<{path}>"), Expected::Recipient { offer, path, is_good });
        }
        self.speak_content(offer);
    }

    /// Behind the recipients: DATA, the content in chunks, or nothing of it.
    fn speak_content(&mut self, offer: usize) {
        if self.random.one_in(20) {
            self.say("RSET", Expected::Other);
        } else if self.is_extended && self.random.one_in(3) {
            // RFC 3030 §2: once the replies to RCPT are there.
            self.next = Next::Chunks { offer };
        } else {
            self.say("DATA", Expected::Data);
            self.next = Next::Data { offer };
        }
    }

    fn speak_chunks(&mut self, offer: usize, content: &[u8]) {
        self.refused_chunk = None;
        let mut rest = content;
        while self.random.one_in(2) {
            let most = [100, 20_000][self.random.index(2)];
            let (chunk, more) = rest.split_at(self.random.index(most).min(rest.len()));
            rest = more;
            self.say(&format!("BDAT {}", chunk.len()), Expected::Chunk { offer });
            self.outbox.extend(chunk);
        }
        self.say(&format!("BDAT {} LAST", rest.len()), Expected::Content { offer });
        self.outbox.extend(rest);
        self.ends.push_back((self.sent + self.outbox.len() as u64, offer));
    }

    /// Octets from the gateway. Returns the transactions whose fate they tell; `Err` says what is wrong with them.
    pub fn read(&mut self, octets: &[u8], offers: &mut [Offer]) -> Result<Vec<usize>, String> {
        self.inbox.extend_from_slice(octets);
        let mut told = Vec::new();
        while let Some(end) = memchr::memmem::find(&self.inbox, b"\r\n") {
            let line: Vec<u8> = self.inbox.drain(..end + 2).collect();
            let line = String::from_utf8_lossy(&line[..end]).into_owned();
            if self.is_gone || line.as_bytes().get(3) == Some(&b'-') {
                continue;
            }
            if matches!(self.expected.front(), Some(Expected::Content { .. })) {
                self.contents_sent += 1;
                if self.contents_sent > self.vanishes_before_reply {
                    self.is_gone = true;
                    continue;
                }
            }
            told.extend(self.take_reply(&line, offers)?);
        }
        Ok(told)
    }

    /// Takes one reply; returns the transaction whose fate it tells.
    fn take_reply(&mut self, line: &str, offers: &mut [Offer]) -> Result<Option<usize>, String> {
        let code: u32 =
            line.get(..3).and_then(|code| code.parse().ok()).ok_or_else(|| format!("no reply: {line:?}"))?;
        let expected = self.expected.pop_front();
        if code == 421 {
            self.is_ending = true;
            self.outbox.clear();
            self.expected.clear();
            let Some(Expected::Content { offer }) = expected else { return Ok(None) };
            offers[offer].told = Told::Deferred(code);
            return Ok(Some(offer));
        }
        let wrong = |expected: &Expected| Err(format!("{line:?} in reply to {expected:?}"));
        let Some(expected) = expected else { return Err(format!("{line:?} in reply to nothing")) };
        match &expected {
            Expected::Greeting if code == 220 => {}
            Expected::Hello | Expected::Other if code / 10 == 25 => {}
            Expected::Quit if code == 221 => {}
            Expected::Bad if code / 100 == 5 => {}
            Expected::Mail if code == 250 || code / 100 == 4 => {}
            Expected::Recipient { offer, path, is_good } => match code {
                250 if *is_good => offers[*offer].recipients.push(path.clone()),
                503 => {}
                _ if !*is_good && code / 100 == 5 => {}
                _ => return wrong(&expected),
            },
            Expected::Data => {
                let Next::Data { offer } = self.next else { return wrong(&expected) };
                match code {
                    354 if !offers[offer].recipients.is_empty() => self.next = Next::Content { offer },
                    451 | 452 | 503 | 554 => {}
                    _ => return wrong(&expected),
                }
            }
            Expected::Chunk { offer } => match code {
                250 if self.refused_chunk.is_none() => {}
                503 if offers[*offer].recipients.is_empty() => {}
                451 | 503 if self.refused_chunk.is_some() => {}
                // A chunk that is larger than any message ends the session, whatever became of those before.
                552 if offers[*offer].is_bad && self.refused_chunk.is_some() => {}
                554 if offers[*offer].recipients.is_empty() => {}
                // The reply to DATA, or to what was sent.
                451 | 452 if self.refused_chunk.is_none() => {
                    self.refused_chunk = Some(Told::Deferred(code));
                }
                550..=554 if offers[*offer].is_bad && self.refused_chunk.is_none() => {
                    self.refused_chunk = Some(Told::Refused);
                }
                _ => return wrong(&expected),
            },
            Expected::Content { offer } => {
                let offer = *offer;
                let told = match code {
                    503 | 554 if offers[offer].recipients.is_empty() => return Ok(None),
                    451 | 503 if self.refused_chunk.is_some() => {
                        let told = self.refused_chunk.take().expect("it was just looked at");
                        if (code == 451) != matches!(told, Told::Deferred(_)) {
                            return wrong(&expected);
                        }
                        told
                    }
                    552 if offers[offer].is_bad && self.refused_chunk.is_some() => {
                        self.refused_chunk.take().expect("it was just looked at")
                    }
                    _ if self.refused_chunk.is_some() => return wrong(&expected),
                    250 if !offers[offer].is_bad => {
                        let id = line.rsplit(' ').next().and_then(|id| id.parse().ok());
                        Told::Stored(id.ok_or_else(|| format!("no message id: {line:?}"))?)
                    }
                    550..=554 if offers[offer].is_bad => Told::Refused,
                    451 | 452 => Told::Deferred(code),
                    _ => return wrong(&expected),
                };
                offers[offer].told = told;
                return Ok(Some(offer));
            }
            expected => return wrong(expected),
        }
        Ok(None)
    }
}

/// A content whose first line names the offer, unless it is too short to. Lines with dots in front, lines without, any size. True if
/// it breaks a rule.
fn content(offer: usize, size_max: usize, random: &mut Random) -> (Vec<u8>, bool) {
    let size = match random.below(12) {
        0 => 0,
        1 => random.index(20),
        2..=7 => random.index(3000),
        8 | 9 => random.index(20_000),
        10 => random.index(size_max),
        _ => size_max - random.index(16),
    };
    let mut content = format!("Subject: offer {offer}\r\n\r\n").into_bytes();
    while content.len() < size {
        if random.one_in(6) {
            content.extend_from_slice([&b"."[..], b"..", b".\r\n", b".."][random.index(4)]);
        }
        let size = 1 + random.index(200);
        let line = random.octets(size);
        content.extend(
            line.iter().map(|octet| if octet.is_ascii_graphic() || *octet >= 0x80 { *octet } else { b' ' }),
        );
        content.extend_from_slice(b"\r\n");
    }
    content.truncate(size);
    // A content ends with its last line's CRLF, or is empty.
    while content.last().is_some_and(|octet| matches!(octet, b'\r' | b'\n')) {
        content.pop();
    }
    if !content.is_empty() {
        content.truncate(size.saturating_sub(2).max(1));
        while content.last() == Some(&b'\r') || content.last() == Some(&b'\n') {
            content.pop();
        }
        content.extend_from_slice(b"\r\n");
    }
    match random.below(40) {
        0 => content.extend_from_slice(b"a bare\nline end\r\n"),
        1 => content.extend_from_slice(b"a \0\r\n"),
        2 => content.resize(content.len() + size_max, b'x'),
        _ => return (content, false),
    }
    if !content.ends_with(b"\r\n") {
        content.extend_from_slice(b"\r\n");
    }
    (content, true)
}

/// Content as it is sent.
fn stuff(content: &[u8]) -> Vec<u8> {
    let mut stuffed = Vec::with_capacity(content.len() + 64);
    for line in content.split_inclusive(|octet| *octet == b'\n') {
        if line.starts_with(b".") {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    stuffed
}
