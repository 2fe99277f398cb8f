//! The queue as an operator asks for it: what a shard says of its messages, page by page, and what it is told to do with them.
//!
//! Each call holds the shard for some tens of microseconds ([`LOOK_TIME`]): it goes on where the one before has stopped. What memory
//! knows is said here; envelopes and content are in the log's files, which whoever asked reads on a thread of its own ([`Page::read`]).
//!
//! A place that was named is good as long as the message stays there. It may be done or moved when its place is read: then what is
//! found is not valid, by its life, its number or its checksums, and the shard is to be asked again.
//!
//! Knows nothing of HTTP, JSON or what people call things.

use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::disk::Disk;
use super::handoff::to_read;
use super::medium::Opener;
use super::read_back::{Batch, StoredMessage, Wanted};
use super::{Shard, clock};
use crate::mail::MessageId;
use crate::spool::format::{Order, OrderKind, RECORD_HEADER_SIZE};
use crate::spool::{Entry, Lane, Obeyed, Orders, Outstanding, Page as PageOf, Part, Spool};

/// How long a shard is held to look at its queue, or to change something there.
const LOOK_TIME: Duration = Duration::from_micros(40);
/// Looked at, or changed, between two looks at the clock.
const STEP: usize = 16;
/// Messages told of at once.
const ROWS_MAX: usize = 64;

/// How a message, or what is left of it at one target, stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// The operator holds it.
    Held,
    /// A delivery has it.
    InDelivery,
    /// It waits for nothing but room.
    Backlog,
    /// It waits for its time.
    Deferred,
}

/// Which messages are asked for, as far as memory can tell. Everything that is said must hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sought {
    /// Some of it is left at this target; empty: of which it is not decided yet.
    pub target: Option<Arc<str>>,
    /// It stands so: at that target, if one is said, else at any.
    pub standing: Option<Standing>,
    /// Why an attempt did not deliver has this in it: there, or anywhere.
    pub reason: Option<Arc<str>>,
    /// Its records have more octets than this.
    pub size_over: Option<u64>,
}

/// What is wanted of the messages that are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// How many.
    Count,
    /// Which.
    Ids,
    /// All that memory knows, and where they are.
    Rows,
}

/// A part of a log's queue.
pub(crate) struct Page {
    /// How many were found.
    pub count: usize,
    /// Which; unless only the count was wanted.
    pub ids: Vec<MessageId>,
    /// What is known of them, if that was wanted.
    pub rows: Vec<Row>,
    /// Where to go on: the number to begin with; `None`: that was all.
    pub next: Option<u64>,
    wanted: Vec<Wanted>,
    opener: Option<Opener>,
    /// Of the messages that are read the content is kept too.
    is_whole: bool,
}

/// What memory knows of a message.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Its id.
    pub id: MessageId,
    /// Octets of its records: its content, its envelope, and what the log adds.
    pub size: u64,
    /// The order that holds it, if it is held.
    pub hold: Option<Arc<Order>>,
    /// What is left, target by target. Never empty.
    pub parts: Vec<RowPart>,
}

/// What is left of a message at one target.
#[derive(Clone, Debug)]
pub(crate) struct RowPart {
    /// The target's name; empty: it is not decided who gets it.
    pub target: Arc<str>,
    /// How it stands.
    pub standing: Standing,
    /// When it is tried again, from now; `None`: it waits for no time.
    pub wait: Option<Duration>,
    /// How many recipients are left.
    pub recipient_count: usize,
    /// The most attempts that were made for one of them.
    pub attempts: u32,
    /// Why the last attempt for the first of them did not deliver.
    pub reason: Option<Arc<str>>,
    /// Those who are left, one by one, where one message was asked for; where nobody is in it, everybody is left and no attempt was made.
    pub recipients: Vec<Outstanding>,
}

impl Row {
    /// How the message stands as a whole.
    pub fn standing(&self) -> Standing {
        if self.hold.is_some() {
            return Standing::Held;
        }
        self.parts.iter().map(|part| part.standing).min().unwrap_or(Standing::Backlog)
    }
}

/// A message of the queue as its log has it.
pub(crate) struct Found {
    /// What memory knew.
    pub row: Row,
    /// What was read; an error: it was moved or is done meanwhile, or is damaged, or something is short.
    pub message: io::Result<StoredMessage>,
}

impl Page {
    /// Reads the rows' records, and no pieces unless they were asked for. Blocks. Of one record at a time there is content in memory.
    pub fn read(self) -> Vec<Found> {
        let Some(opener) = self.opener else { return Vec::new() };
        let read = |wanted| Batch { messages: vec![wanted], new_count: 0 }.read(&opener).pop();
        let found = |(row, wanted)| {
            let mut message = read(wanted)?.message;
            if let Ok(message) = message.as_mut()
                && !self.is_whole
            {
                message.content.forget();
            }
            Some(Found { row, message })
        };
        self.rows.into_iter().zip(self.wanted).filter_map(found).collect()
    }
}

/// What has become of an order for some messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// How many of the messages were seen to; the others are to be named again.
    pub taken: usize,
    /// For how many it has changed something.
    pub changed: usize,
    /// For how many there was nothing to change.
    pub unchanged: usize,
    /// How many are not in the queue.
    pub unknown: usize,
    /// How many were left alone, for something of them is left at another target.
    pub elsewhere: usize,
}

/// A log of a shard, as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogFacts {
    /// Its number.
    pub log: u32,
    /// How many messages are in it that are not done.
    pub depth: usize,
    /// How many of them are held.
    pub held: usize,
    /// Messages that come from now on have this number or a higher one.
    pub next: u64,
}

/// For which of the messages that are named an order is.
#[derive(Clone, Debug)]
pub(crate) enum Meant {
    /// For all. Of a retry: what is left of them at this target, if one is said.
    Named(Option<Arc<str>>),
    /// For those that are still as they were sought.
    Sought {
        /// So.
        sought: Sought,
        /// Only where nothing is left at another target than the one that is sought.
        is_only_there: bool,
    },
}

impl Shard {
    /// The logs of this shard.
    pub(crate) fn queue_logs(&self) -> Vec<LogFacts> {
        let of = |disk: &Rc<Disk>| {
            let spool = disk.spool().borrow();
            let (next, _) = spool.numbers();
            LogFacts { log: spool.log(), depth: spool.depth(), held: spool.held_count(), next }
        };
        self.disks.borrow().iter().map(of).collect()
    }

    /// Messages of the log that are sought, with a number in the range, in the order in which they came. `None`: the log is not this
    /// shard's.
    pub(crate) fn queue_page(
        &self,
        log: u32,
        range: Range<u64>,
        sought: &Sought,
        want: Want,
        count_max: usize,
    ) -> Option<Page> {
        let disk = self.disk_of(log)?;
        let until = clock::now() + LOOK_TIME;
        let spool = disk.spool().borrow();
        let mut page = Page {
            count: 0,
            ids: Vec::new(),
            rows: Vec::new(),
            wanted: Vec::new(),
            next: None,
            opener: None,
            is_whole: false,
        };
        let lane = match &sought.target {
            None => None,
            Some(target) => match spool.known_lane(target) {
                None => return Some(page),
                lane => lane,
            },
        };
        let count_max = if want == Want::Count { usize::MAX } else { count_max.min(ROWS_MAX) };
        let now = clock::now();
        let mut reasons = Reasons { sought: sought.reason.as_deref(), known: None };
        let entries = spool.entries_from(range.start).take_while(|(sequence, _)| range.contains(sequence));
        for (n, (sequence, entry)) in entries.enumerate() {
            if page.count >= count_max
                || n > 0 && (want == Want::Rows || n % STEP == 0) && clock::now() >= until
            {
                page.next = Some(sequence);
                break;
            }
            if !is_sought(&spool, (sequence, entry), lane, sought, &mut reasons) {
                continue;
            }
            page.count += 1;
            match want {
                Want::Count => {}
                Want::Ids => page.ids.push(MessageId { log, sequence }),
                Want::Rows => {
                    page.ids.push(MessageId { log, sequence });
                    page.rows.push(row(&spool, (sequence, entry), now, false));
                    page.wanted.extend(record_of(&spool, (sequence, entry)));
                }
            }
        }
        page.opener = (want == Want::Rows).then(|| disk.opener());
        Some(page)
    }

    /// These messages, as far as they are in the queue, recipient by recipient. More than [`ROWS_MAX`] are not told of.
    pub(crate) fn queue_rows(&self, log: u32, sequences: &[u64]) -> Option<Page> {
        let disk = self.disk_of(log)?;
        let (spool, now) = (disk.spool().borrow(), clock::now());
        let known = sequences.iter().take(ROWS_MAX).filter_map(|n| Some((*n, spool.entry(*n)?)));
        let known: Vec<_> = known.filter(|(_, entry)| entry.is_durable()).collect();
        Some(Page {
            count: known.len(),
            ids: known.iter().map(|(sequence, _)| MessageId { log, sequence: *sequence }).collect(),
            rows: known.iter().map(|known| row(&spool, *known, now, true)).collect(),
            wanted: known.iter().filter_map(|known| record_of(&spool, *known)).collect(),
            next: None,
            opener: Some(disk.opener()),
            is_whole: false,
        })
    }

    /// The same of one message, with the places of all of its content.
    pub(crate) fn queue_content(&self, log: u32, sequence: u64) -> Option<Page> {
        let disk = self.disk_of(log)?;
        let mut page = self.queue_rows(log, &[sequence])?;
        page.wanted.clear();
        page.is_whole = true;
        if !page.rows.is_empty() {
            page.wanted.extend(to_read(&disk.spool().borrow(), sequence, Lane::UNROUTED));
        }
        Some(page)
    }

    /// Orders this of messages of the log, as many as the time allows: see [`Done::taken`]. Those that were sought and are not so any
    /// more are left out. `settled` is told when no restart forgets it, and then how many orders could not be recorded meanwhile.
    pub(crate) fn queue_order(
        &self,
        (log, sequences): (u32, &[u64]),
        meant: &Meant,
        order: &Arc<Order>,
        settled: oneshot::Sender<u64>,
    ) -> Option<Done> {
        let disk = self.disk_of(log)?;
        Some(disk.order(settled, |spool| {
            let (now, mut done) = (clock::now(), Done::default());
            let until = now + LOOK_TIME;
            let (target, sought) = match meant {
                Meant::Named(target) => (target, None),
                Meant::Sought { sought, .. } => (&sought.target, Some(sought)),
            };
            let lane = target.as_deref().map(|target| spool.known_lane(target));
            if lane == Some(None) {
                // No message waits there.
                let unchanged = if sought.is_none() { sequences.len() } else { 0 };
                return Done { taken: sequences.len(), unchanged, ..done };
            }
            let lane = lane.flatten();
            let is_only_there = matches!(meant, Meant::Sought { is_only_there: true, .. });
            let mut reasons =
                Reasons { sought: sought.and_then(|sought| sought.reason.as_deref()), known: None };
            for sequence in sequences {
                if done.taken > 0 && done.taken.is_multiple_of(STEP) && clock::now() >= until {
                    break;
                }
                done.taken += 1;
                if let Some((sought, entry)) = sought.zip(spool.entry(*sequence)) {
                    if !is_sought(spool, (*sequence, entry), lane, sought, &mut reasons) {
                        continue;
                    }
                    if is_only_there && is_left_elsewhere(entry, lane) {
                        done.elsewhere += 1;
                        continue;
                    }
                }
                match spool.order(*sequence, lane.filter(|_| order.kind == OrderKind::Retry), order, now) {
                    Obeyed::Yes => done.changed += 1,
                    Obeyed::Nothing => done.unchanged += 1,
                    Obeyed::Unknown => done.unknown += 1,
                }
            }
            done
        }))
    }

    fn disk_of(&self, log: u32) -> Option<Rc<Disk>> {
        self.disks.borrow().iter().find(|disk| disk.log() == log).cloned()
    }
}

/// Whether reasons have what is sought: most messages have the same.
struct Reasons<'a> {
    sought: Option<&'a str>,
    /// The last that was looked at, and whether it has.
    known: Option<(Arc<str>, bool)>,
}

impl Reasons<'_> {
    fn has(&mut self, reason: &Arc<str>) -> bool {
        let Some(sought) = self.sought else { return true };
        match &self.known {
            Some((known, has)) if Arc::ptr_eq(known, reason) => *has,
            _ => {
                let has = reason.contains(sought);
                self.known = Some((reason.clone(), has));
                has
            }
        }
    }
}

fn is_sought<P: PageOf>(
    spool: &Spool<P>,
    (sequence, entry): (u64, &Entry),
    lane: Option<Lane>,
    sought: &Sought,
    reasons: &mut Reasons<'_>,
) -> bool {
    if sought.size_over.is_some_and(|size| size_of(entry) <= size) {
        return false;
    }
    let is_asked = |part: &&Part| !part.is_done() && lane.is_none_or(|lane| part.lane == lane);
    let mut parts = entry.parts().iter().filter(is_asked);
    if sought.standing.is_none() && sought.reason.is_none() {
        return parts.next().is_some();
    }
    let stands_so = |part: &Part| match sought.standing {
        None => true,
        Some(Standing::Held) => entry.is_held(),
        Some(standing) => standing_of(spool, (sequence, entry), part) == standing,
    };
    let mut has_reason = |part: &Part| {
        let left = part.outstanding().unwrap_or_default();
        sought.reason.is_none()
            || left.iter().any(|left| left.reason.as_ref().is_some_and(|r| reasons.has(r)))
    };
    parts.any(|part| stands_so(part) && has_reason(part))
}

/// Whether something is left of a message at another target than this one.
fn is_left_elsewhere(entry: &Entry, lane: Option<Lane>) -> bool {
    lane.is_some_and(|lane| entry.parts().iter().any(|part| !part.is_done() && part.lane != lane))
}

/// Where a message's record is; its pieces, of which there may be very many, are not named.
fn record_of<P: PageOf>(spool: &Spool<P>, (sequence, entry): (u64, &Entry)) -> Option<Wanted> {
    let (location, segment) = (entry.location, spool.segment(entry.location.epoch)?);
    Some(Wanted { sequence, lane: Lane::UNROUTED, location, segment, pieces: Vec::new() })
}

/// Octets of a message's records.
fn size_of(entry: &Entry) -> u64 {
    let pieces = entry.pieces.iter().map(|piece| u64::from(piece.size) + RECORD_HEADER_SIZE as u64);
    pieces.sum::<u64>() + u64::from(entry.location.size)
}

fn standing_of<P: PageOf>(spool: &Spool<P>, (sequence, entry): (u64, &Entry), part: &Part) -> Standing {
    match part.is_handed_off() {
        true => Standing::InDelivery,
        false if entry.is_held() => Standing::Held,
        false if part.due().is_some() && !spool.is_hastened(sequence, part) => Standing::Deferred,
        false => Standing::Backlog,
    }
}

fn row<P: PageOf>(spool: &Spool<P>, (sequence, entry): (u64, &Entry), now: Instant, is_whole: bool) -> Row {
    let part = |part: &Part| {
        let standing = standing_of(spool, (sequence, entry), part);
        let left = part.outstanding();
        RowPart {
            target: spool.lane_name(part.lane).clone(),
            standing,
            wait: spool
                .wait_of(part, now)
                .filter(|_| matches!(standing, Standing::Deferred | Standing::Held)),
            recipient_count: left.map_or(entry.recipient_count as usize, <[_]>::len),
            attempts: left.unwrap_or_default().iter().map(|left| left.attempts).max().unwrap_or(0),
            reason: left.and_then(|left| left.first()?.reason.clone()),
            recipients: if is_whole { left.unwrap_or_default().to_vec() } else { Vec::new() },
        }
    };
    Row {
        id: MessageId { log: spool.log(), sequence },
        size: size_of(entry),
        hold: entry.hold().cloned(),
        parts: entry.parts().iter().filter(|part| !part.is_done()).map(part).collect(),
    }
}

/// Whoever is to be told that orders are settled.
#[derive(Default)]
pub(super) struct Settling {
    /// The number of the last order, how many were unrecorded when it was given, and who waits; in the order of the numbers.
    waiting: std::collections::VecDeque<(u64, u64, oneshot::Sender<u64>)>,
}

impl Settling {
    /// Somebody waits for the orders given so far.
    pub fn wait(&mut self, orders: Orders, settled: oneshot::Sender<u64>) {
        // Nobody waits for ever for what is never settled, as on a medium that has failed: those are forgotten here.
        self.waiting.retain(|(.., waiting)| !waiting.is_closed());
        self.waiting.push_back((orders.given, orders.unrecorded, settled));
        self.tell(orders);
    }

    /// Orders may have been settled.
    pub fn tell(&mut self, orders: Orders) {
        while let Some((_, before, settled)) =
            self.waiting.pop_front_if(|(given, ..)| *given <= orders.settled)
        {
            let _ = settled.send(orders.unrecorded - before);
        }
    }
}
