//! What the world outside knows, and what must follow from it: the promises, as checks.
//!
//! A message counts from the moment the gateway takes it for durable; from there on it is in the queue of every restart until all its
//! recipients' outcomes are recorded, or the operator drops it. Everything else that is found or delivered is a failure of the run.

use std::collections::{BTreeMap, BTreeSet};

use incoming::mail::MessageId;
use incoming::spool::Slot;

use crate::client::{Offer, Told};
use crate::disk::{self, Part, Report, Restart, Whole};
use crate::medium::Medium;

/// A durable message.
struct Message {
    offer: usize,
    parts: Vec<Part>,
    /// Recipients without a recorded outcome at the last restart.
    left_then: BTreeSet<u32>,
    /// Recipients whose outcome the spool was not told.
    left_now: BTreeSet<u32>,
}

/// How the last life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Crash,
    /// Everything appended was durable, outcomes too.
    Settled,
}

pub struct Ledger {
    pub log: u32,
    pub offers: Vec<Offer>,
    /// By the sequence of the message id: durable, and not known to be done.
    messages: BTreeMap<u64, Message>,
    /// What an offer became.
    stored_as: BTreeMap<usize, u64>,
    /// Offers that a restart did not find: they never come back.
    gone: BTreeSet<usize>,
    /// Reported not stored in this life.
    failed: BTreeSet<u64>,
    /// Who has got what.
    delivered: BTreeMap<usize, BTreeSet<u32>>,
    /// Held at the last restart.
    held_then: BTreeSet<u64>,
    /// Orders since: the number, the message, and whether it is held then; `None`: it is dropped.
    orders: Vec<(u64, u64, Option<bool>)>,
    /// Orders up to this number were settled.
    pub settled: u64,
    /// What the operator has dropped.
    dropped: BTreeSet<usize>,
    /// Lost to a lying medium, and reported.
    pub excused: BTreeSet<usize>,
    /// The life of the gateway.
    pub life: u32,
    /// Outcomes may go unrecorded: the disk was full.
    pub may_drop_outcomes: bool,
    /// Nothing fails, and there is room.
    pub is_well: bool,
    /// The medium lies in this run.
    pub may_lie: bool,
    pub acknowledged_count: usize,
    pub recovered_count: usize,
}

impl Ledger {
    pub fn new(log: u32, may_lie: bool) -> Self {
        Ledger {
            log,
            offers: Vec::new(),
            messages: BTreeMap::new(),
            stored_as: BTreeMap::new(),
            gone: BTreeSet::new(),
            failed: BTreeSet::new(),
            delivered: BTreeMap::new(),
            held_then: BTreeSet::new(),
            orders: Vec::new(),
            settled: 0,
            dropped: BTreeSet::new(),
            excused: BTreeSet::new(),
            life: 0,
            may_drop_outcomes: false,
            is_well: false,
            may_lie,
            acknowledged_count: 0,
            recovered_count: 0,
        }
    }

    /// The offer that a recipient's path names.
    pub fn offer_of(path: &str) -> usize {
        let number = path.strip_prefix('o').and_then(|rest| rest.split(['.', '@']).next());
        number
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("{path} is nobody's recipient"))
    }

    /// The gateway takes the message for durable. `recipient`: its first.
    pub fn take_stored(&mut self, sequence: u64, recipient: &str, parts: Vec<Part>, medium: &Medium) {
        let offer = Self::offer_of(recipient);
        match disk::read(&parts, sequence, |slot| medium.durable(slot)) {
            Some(whole) => assert_eq!(self.check_whole(sequence, &whole), offer),
            None => assert!(is_damaged(&parts, medium), "message {sequence} is called durable and is not"),
        }
        let known = self.stored_as.insert(offer, sequence);
        assert_eq!(known, None, "offer {offer} is stored twice");
        let left: BTreeSet<u32> = (0..self.offers[offer].recipients.len() as u32).collect();
        let message = Message { offer, parts, left_then: left.clone(), left_now: left };
        assert!(self.messages.insert(sequence, message).is_none(), "{sequence} is used twice");
    }

    /// The gateway takes the message for lost.
    pub fn take_failed(&mut self, sequence: u64) {
        self.failed.insert(sequence);
    }

    /// A client has read the reply to its content.
    pub fn take_told(&mut self, offer: usize) {
        match self.offers[offer].told {
            Told::Stored(MessageId { log, sequence }) => {
                self.acknowledged_count += 1;
                assert_eq!(log, self.log, "offer {offer} has an id of another log");
                assert_eq!(
                    self.stored_as.get(&offer),
                    Some(&sequence),
                    "offer {offer} was acknowledged as {sequence}"
                );
            }
            Told::Deferred(451 | 452) if self.is_well => {
                panic!("offer {offer} was deferred, and nothing is wrong")
            }
            told => {
                assert!(!self.stored_as.contains_key(&offer), "offer {offer} is stored and was told {told:?}")
            }
        }
    }

    /// What was read back is an offer, whole, octet for octet, for those who were in its envelope: says which.
    fn check_whole(&self, sequence: u64, whole: &Whole) -> usize {
        let paths: Vec<&str> = whole.envelope.forward_paths.iter().map(|path| path.as_str()).collect();
        let number = Self::offer_of(paths.first().expect("an envelope has recipients"));
        let offer = &self.offers[number];
        assert!(offer.is_whole, "offer {number} was not sent to its end");
        assert!(!offer.is_bad && offer.told != Told::Refused, "offer {number} was refused for good");
        assert_eq!(paths, offer.recipients, "the recipients of offer {number}");
        let id = MessageId { log: self.log, sequence };
        let ends = memchr::memmem::find_iter(&whole.octets, b"\r\n").map(|at| at + 2);
        let end = ends
            .into_iter()
            .find(|at| whole.octets.get(*at) != Some(&b'\t'))
            .expect("there is a trace field");
        let (trace, content) = whole.octets.split_at(end);
        let trace = String::from_utf8_lossy(trace);
        let is_ours = trace.starts_with("Received: from c") && trace.contains(&format!(" id {id}"));
        assert!(is_ours, "the trace of {id} is {trace:?}");
        assert!(trace.contains(&*whole.arrival.hello), "{id} arrived from {}", whole.arrival.hello);
        assert!(content == offer.content, "the content of {id} is not that of offer {number}");
        number
    }

    /// An attempt reads the message. `None`: it cannot be read.
    pub fn take_attempt(
        &mut self,
        sequence: u64,
        recipients: &[u32],
        whole: Option<&Whole>,
        medium: &Medium,
    ) {
        let message =
            self.messages.get(&sequence).unwrap_or_else(|| panic!("{sequence} is delivered and not stored"));
        assert!(!self.failed.contains(&sequence), "{sequence} was reported not stored and is delivered");
        let is_left = recipients.iter().all(|index| message.left_now.contains(index));
        assert!(
            is_left && !recipients.is_empty(),
            "{sequence} is delivered to {recipients:?} of {:?}",
            message.left_now
        );
        let offer = &self.offers[message.offer];
        assert!(
            !matches!(offer.told, Told::Deferred(_)) || offer.life < self.life,
            "{sequence} was deferred and is delivered"
        );
        match whole {
            Some(whole) => assert_eq!(self.check_whole(sequence, whole), message.offer),
            None => assert!(is_damaged(&message.parts, medium), "message {sequence} cannot be read back"),
        }
    }

    /// Somebody has the message for good.
    pub fn take_delivered(&mut self, sequence: u64, index: u32) {
        let offer = self.messages[&sequence].offer;
        self.delivered.entry(offer).or_default().insert(index);
    }

    /// The spool is told what an attempt has brought.
    pub fn take_report(&mut self, sequence: u64, outcomes: &[(u32, bool)]) {
        let message = self.messages.get_mut(&sequence).expect("only stored messages are attempted");
        outcomes.iter().filter(|(_, is_done)| *is_done).for_each(|(index, _)| {
            message.left_now.remove(index);
        });
    }

    /// The operator's order of this number is in force.
    pub fn take_order(&mut self, number: u64, sequence: u64, state: Option<bool>) {
        // Whose a damaged one is may not be known.
        let Some(message) = self.messages.get_mut(&sequence) else { return };
        if state.is_none() {
            message.left_now.clear();
            self.dropped.insert(message.offer);
        }
        self.orders.push((number, sequence, state));
    }

    /// A message that was found is held or not as it was when the last order for it was settled, or later.
    fn check_hold(&self, sequence: u64, is_held: bool, end: End) {
        let first = (0, Some(self.held_then.contains(&sequence)));
        let ordered = self.orders.iter().filter(|(_, of, _)| *of == sequence);
        let states: Vec<_> =
            std::iter::once(first).chain(ordered.map(|(number, _, state)| (*number, *state))).collect();
        let settled = if end == End::Settled { u64::MAX } else { self.settled };
        let floor = states.iter().rposition(|(number, _)| *number <= settled).expect("the first is settled");
        // Where there was no room they went unrecorded.
        let floor = if self.may_drop_outcomes { 0 } else { floor };
        let may_be = &states[floor..];
        assert!(
            may_be.iter().any(|(_, state)| *state == Some(is_held)),
            "{sequence} is found, held: {is_held}, and was {may_be:?}"
        );
    }

    /// A file is about to be used again or removed: whatever happens to it, a power cut now loses nothing. `restart`: what would be
    /// found then.
    pub fn take_given_up(&self, restart: &Restart, medium: &Medium) {
        if medium.lies_count > 0 || self.may_drop_outcomes {
            return;
        }
        let damage = restart.reports.iter().find(|report| report.is_of_damage());
        assert_eq!(damage, None, "a file was given up too early");
        let found: BTreeSet<u64> = restart.queue().map(|queued| queued.sequence).collect();
        let owed = self.messages.iter().filter(|(_, message)| !message.left_now.is_empty());
        for (sequence, _) in owed {
            assert!(found.contains(sequence), "{sequence} was in a file that is given up");
        }
    }

    /// A restart has found this queue.
    pub fn take_restart(&mut self, restart: &Restart, end: End, medium: &Medium) {
        let lies = medium.lies_count > 0;
        let is_done =
            |sequence: u64| self.messages.get(&sequence).is_none_or(|message| message.left_now.is_empty());
        // A done message whose outcome was not recorded, and whose pieces were overwritten: reported, though nothing is lost.
        let is_known = |report: &&Report| {
            self.may_drop_outcomes
                && matches!(report, Report::Lost(sequences) if sequences.clone().all(is_done))
        };
        let damage = restart.reports.iter().find(|report| report.is_of_damage() && !is_known(report));
        assert!(lies || damage.is_none(), "a good medium has no damage: {damage:?}");
        let (mut found, mut held) = (BTreeMap::new(), BTreeSet::new());
        for queued in restart.queue() {
            self.recovered_count += 1;
            let (sequence, parts) = (queued.sequence, queued.parts);
            let known = self.messages.get(&sequence);
            let whole = disk::read(&parts, sequence, |slot| medium.seen(slot));
            let offer = match &whole {
                Some(whole) => self.check_whole(sequence, whole),
                None => {
                    assert!(
                        is_damaged(&parts, medium),
                        "message {sequence} is in the queue and cannot be read"
                    );
                    // Whose it is cannot be known from outside, if nobody was told of it.
                    let Some(known) = known else { continue };
                    known.offer
                }
            };
            assert!(
                lies || !self.gone.contains(&offer),
                "offer {offer} was gone and has come back as {sequence}"
            );
            let stored_as = *self.stored_as.entry(offer).or_insert(sequence);
            assert_eq!(stored_as, sequence, "offer {offer} is in the queue under another number");
            let left: BTreeSet<u32> = queued.left.into_iter().collect();
            if !lies {
                self.check_hold(sequence, queued.is_held, end);
            }
            held.extend(queued.is_held.then_some(sequence));
            if let Some(known) = known.filter(|_| !lies) {
                assert!(
                    left.is_superset(&known.left_now),
                    "{sequence} is for {left:?}, {:?} still want it",
                    known.left_now
                );
                assert!(
                    left.is_subset(&known.left_then),
                    "{sequence} is for {left:?} again, of {:?}",
                    known.left_then
                );
                assert!(
                    end == End::Crash || left == known.left_now,
                    "{sequence}: recorded outcomes are lost"
                );
            }
            let message = Message { offer, parts, left_then: left.clone(), left_now: left };
            assert!(found.insert(sequence, message).is_none());
        }
        for (sequence, message) in &self.messages {
            if found.contains_key(sequence) || message.left_now.is_empty() {
                continue;
            }
            let is_touched = is_damaged(&message.parts, medium);
            assert!(
                lies && restart.accounts_for(*sequence, &message.parts),
                "message {sequence} of offer {} was acknowledged and is lost (damaged: {is_touched}): {:?}",
                message.offer,
                restart.reports
            );
            assert!(
                is_touched,
                "message {sequence} of offer {} is intact and lost: {:?}",
                message.offer, restart.reports
            );
            self.excused.insert(message.offer);
        }
        let is_there = |offer: &usize| found.values().any(|message| message.offer == *offer);
        self.gone = (0..self.offers.len()).filter(|offer| !is_there(offer)).collect();
        self.messages = found;
        self.held_then = held;
        self.orders.clear();
        self.settled = 0;
        self.failed.clear();
    }

    /// All deliveries were made: who was promised a message has it, and nobody waits for one that can be read.
    pub fn take_end(&self, medium: &Medium) {
        for (sequence, message) in &self.messages {
            let is_unreadable = is_damaged(&message.parts, medium);
            assert!(message.left_now.is_empty() || is_unreadable, "message {sequence} was never delivered");
        }
        let unreadable: BTreeSet<usize> = self
            .messages
            .values()
            .filter(|message| !message.left_now.is_empty())
            .map(|message| message.offer)
            .collect();
        for (number, offer) in self.offers.iter().enumerate() {
            let Told::Stored(id) = offer.told else { continue };
            let delivered = self.delivered.get(&number).map_or(0, |delivered| delivered.len());
            let is_excused = self.excused.contains(&number)
                || unreadable.contains(&number)
                || self.dropped.contains(&number);
            assert!(
                delivered == offer.recipients.len() || is_excused,
                "{id} was acknowledged and has reached {delivered} of {} recipients",
                offer.recipients.len()
            );
        }
    }
}

/// Has the medium other octets than were written, where the message is or where its segments say who they are?
fn is_damaged(parts: &[Part], medium: &Medium) -> bool {
    let is_nameless =
        |slot: Slot| disk::NAMES.into_iter().filter(|name| medium.is_damaged(slot, name.clone())).count() > 1;
    parts.iter().any(|part| medium.is_damaged(part.slot, part.octets()) || is_nameless(part.slot))
}
