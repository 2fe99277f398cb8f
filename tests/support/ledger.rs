//! What was acknowledged, and whether it was kept: the oracle of every test that kills, fills or breaks something.
//!
//! A message is known by its number: its content can be written again from it, so that a delivered message is compared
//! octet for octet without having been kept. A number enters the ledger after its 250 has been read, never before.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::maildir;
use super::wait;

/// The first field of every numbered message.
const NUMBER_FIELD: &[u8] = b"X-Number: ";

/// Content sizes in octets, so that small messages, several records of one message, and many lines all occur.
const SIZES: [usize; 8] = [300, 4096, 300, 9000, 300, 4096, 40_000, 140_000];

/// Numbers messages and remembers which of them were acknowledged.
#[derive(Default)]
pub struct Ledger {
    next: AtomicU64,
    acknowledged: Mutex<BTreeSet<u64>>,
    refused: Mutex<BTreeMap<String, u64>>,
}

/// A ledger held against a Maildir.
#[derive(Debug)]
pub struct Balance {
    /// How many messages were acknowledged.
    pub acknowledged: usize,
    /// Acknowledged, and not there: what must never be.
    pub missing: Vec<u64>,
    /// Files more than there are messages.
    pub duplicates: usize,
    /// Delivered although no 250 was read: permitted, since the 250 may have been lost on its way.
    pub unacknowledged: usize,
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} acknowledged, {} missing, {} duplicates, {} delivered without an acknowledgement",
            self.acknowledged,
            self.missing.len(),
            self.duplicates,
            self.unacknowledged
        )
    }
}

impl Ledger {
    /// A number that was not given out before.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Records that the 250 for this message was read.
    pub fn acknowledge(&self, number: u64) {
        self.acknowledged.lock().expect("the ledger").insert(number);
    }

    /// Records a reply that refused something, by its code and enhanced status code.
    pub fn refuse(&self, line: &str) {
        let key = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        *self.refused.lock().expect("the ledger").entry(key).or_default() += 1;
    }

    /// How many messages were acknowledged.
    pub fn acknowledged_count(&self) -> usize {
        self.acknowledged.lock().expect("the ledger").len()
    }

    /// The refusals so far, as `452 4.3.1` → how often.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        self.refused.lock().expect("the ledger").clone()
    }

    /// How many refusals began with this code and status.
    pub fn refused_count(&self, prefix: &str) -> u64 {
        self.refusals().iter().filter(|(key, _)| key.starts_with(prefix)).map(|(_, n)| n).sum()
    }

    /// Compares with a Maildir as it is now. Panics when a file there is not, octet for octet, a message that was sent.
    #[track_caller]
    pub fn balance(&self, folder: &Path) -> Balance {
        let mut copies: BTreeMap<u64, usize> = BTreeMap::new();
        for stored in maildir::read(folder) {
            let number = number_of(&stored.content)
                .unwrap_or_else(|| panic!("{} is no message that was sent", stored.path.display()));
            assert!(
                stored.content == content(number),
                "{}: message {number} was delivered with other octets: {} instead of {}",
                stored.path.display(),
                stored.content.len(),
                content(number).len()
            );
            *copies.entry(number).or_default() += 1;
        }
        self.weigh(&copies)
    }

    /// Compares with what another server has: whole messages, with whatever was written before the first field that was sent. Panics when one is not,
    /// octet for octet, a message that was sent.
    #[track_caller]
    pub fn balance_of(&self, messages: &[Vec<u8>]) -> Balance {
        let mut copies: BTreeMap<u64, usize> = BTreeMap::new();
        for message in messages {
            let field = [b"\r\n", NUMBER_FIELD].concat();
            let at = message.windows(field.len()).position(|octets| octets == field);
            let sent = &message[at.unwrap_or_else(|| panic!("no message that was sent")) + 2..];
            let number = number_of(sent).expect("a number");
            assert!(sent == content(number), "message {number} was delivered with other octets");
            *copies.entry(number).or_default() += 1;
        }
        self.weigh(&copies)
    }

    fn weigh(&self, copies: &BTreeMap<u64, usize>) -> Balance {
        let acknowledged = self.acknowledged.lock().expect("the ledger").clone();
        Balance {
            acknowledged: acknowledged.len(),
            missing: acknowledged.iter().filter(|n| !copies.contains_key(n)).copied().collect(),
            duplicates: copies.values().map(|n| n - 1).sum(),
            unacknowledged: copies.keys().filter(|n| !acknowledged.contains(n)).count(),
        }
    }

    /// Waits until every acknowledged message is in the Maildir; panics with those that are not when patience is spent.
    #[track_caller]
    pub fn assert_kept(&self, folder: &Path) -> Balance {
        let wanted = self.acknowledged_count();
        let mut seen = 0;
        // Patience begins anew with every thousand: a long backlog takes as long as it takes.
        while seen < wanted {
            let goal = wanted.min(seen + 1000);
            let arrived = wait::poll(wait::PATIENCE, || Some(maildir::count(folder)).filter(|n| *n >= goal));
            let Some(count) = arrived else { break };
            seen = count;
        }
        let kept = wait::poll(wait::PATIENCE, || {
            let balance = self.balance(folder);
            balance.missing.is_empty().then_some(balance)
        });
        kept.unwrap_or_else(|| {
            let balance = self.balance(folder);
            panic!("acknowledged messages were lost: {balance}; the first: {:?}", first(&balance.missing))
        })
    }
}

/// The content of the message with this number.
pub fn content(number: u64) -> Vec<u8> {
    let size = SIZES[number as usize % SIZES.len()];
    let mut content = Vec::with_capacity(size + 80);
    content.extend_from_slice(NUMBER_FIELD);
    content.extend_from_slice(format!("{number}\r\nSubject: a numbered message\r\n\r\n").as_bytes());
    let mut line = 0u64;
    while content.len() < size {
        // Every seventh line begins with a dot, so that transparency is at work on every path.
        let dot = if line % 7 == 3 { "." } else { "" };
        let mixed = (number << 32 | line).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        content
            .extend_from_slice(format!("{dot}{mixed:016x} of message {number}, line {line}\r\n").as_bytes());
        line += 1;
    }
    content
}

fn number_of(content: &[u8]) -> Option<u64> {
    let line = content.strip_prefix(NUMBER_FIELD)?.split(|c| *c == b'\r').next()?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

fn first(numbers: &[u64]) -> &[u64] {
    &numbers[..numbers.len().min(10)]
}
