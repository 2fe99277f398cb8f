//! Durable messages → delivery, and the outcomes back.
//!
//! A just-accepted small message is handed over from memory while the bounded cache holds it. What finds no room in the
//! cache or the channel waits in the spool's backlog, which is in the log, and is read back when there is room: a slow
//! delivery stops nobody, and costs no more memory than the channel's jobs: each holds one record, of a small message or of the
//! end of a large one.
//!
//! A new message does not wait for a long backlog, which leaves half of the channel to what has just come: a large one, or one
//! that the cache has no room for, is read back before those that have waited.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::medium::DmaPage;
use super::read_back::{Batch, StoredMessage, Wanted};
use crate::delivery::{
    Attempt, Content, Job, JobSender, Outcome, OutcomeSender, Recipient, Report, Schedule, TargetId, Targets,
};
use crate::mail::{Arrival, Envelope, MessageId};
use crate::spool::format::RecipientOutcome;
use crate::spool::{Page, Spool};

/// Messages read back at once: enough to pay for the way to the blocking thread, few enough to hold in memory.
const BATCH_COUNT_MAX: usize = 64;
/// A message whose record cannot be read is tried again after this many seconds: media sometimes recover, and the message is
/// not ours to drop.
const UNREADABLE_RETRY: u64 = 3600;

/// Messages read back may take this much memory at least, in octets, however small the cache is.
const READ_BACK_SIZE_MIN: usize = 4 << 20;
/// What a forward-path usually costs in memory, octets: the enum and its text.
const PATH_COST: usize = 96;

/// A message as its session gave it.
pub struct JustAccepted {
    /// Who gets it.
    pub envelope: Box<Envelope>,
    /// How it came.
    pub arrival: Arrival,
    /// The trace field; known once it is appended.
    pub trace: Vec<u8>,
    /// The content behind what was stored in pieces; all of it for a small message.
    pub tail: Vec<u8>,
}

/// The shard's end of the two delivery channels.
pub struct Handoff {
    targets: Targets,
    target: TargetId,
    outcomes: OutcomeSender,
    schedule: Schedule,
    cache_size: usize,
    cached: Cell<usize>,
    /// What each message in the cache costs, by id.
    costs: RefCell<HashMap<MessageId, usize>>,
    /// Just accepted and to be read back, at most [`BATCH_COUNT_MAX`]: those beyond take their turn in the backlog, where
    /// these are as well.
    fresh: RefCell<VecDeque<MessageId>>,
}

impl Handoff {
    /// `cache_size`: octets of just-accepted messages kept in memory for their first attempt.
    pub fn new(
        targets: Targets,
        target: TargetId,
        outcomes: OutcomeSender,
        schedule: Schedule,
        cache_size: usize,
    ) -> Self {
        let (cached, costs, fresh) = (Cell::new(0), RefCell::default(), RefCell::default());
        Handoff { targets, target, outcomes, schedule, cache_size, cached, costs, fresh }
    }

    /// The longest wait before another attempt, in whole seconds.
    pub fn wait_max(&self) -> u64 {
        self.schedule.backoff_max.as_secs().max(1)
    }

    fn jobs(&self) -> &JobSender {
        self.targets.get(self.target).jobs()
    }

    fn cost(message: &JustAccepted) -> usize {
        let paths = message.envelope.forward_paths.len() * PATH_COST;
        message.tail.capacity() + message.trace.capacity() + size_of::<Envelope>() + paths
    }

    /// Takes room in the cache for the message, if there is some.
    pub fn keep(&self, message: &JustAccepted) -> bool {
        let cached = self.cached.get() + Self::cost(message);
        let has_room = cached <= self.cache_size;
        if has_room {
            self.cached.set(cached);
        }
        has_room
    }

    fn forget(&self, cost: usize) {
        self.cached.set(self.cached.get() - cost);
    }

    /// A message of the cache will not be durable.
    pub fn drop_kept(&self, message: &JustAccepted) {
        self.forget(Self::cost(message));
    }

    /// The message has become durable: offers it from memory, or leaves it to be read back.
    pub fn offer<P: Page>(&self, spool: &mut Spool<P>, sequence: u64, message: Option<JustAccepted>) {
        let id = MessageId { log: spool.log(), sequence };
        let Some(message) = message else {
            let mut fresh = self.fresh.borrow_mut();
            if fresh.len() < BATCH_COUNT_MAX {
                fresh.push_back(id);
            }
            return;
        };
        let cost = Self::cost(&message);
        let JustAccepted { envelope, arrival, trace, tail } = message;
        let recipients =
            (0..envelope.forward_paths.len() as u32).map(|index| Recipient { index, attempts: 0 });
        let attempt = Attempt {
            id,
            recipients: recipients.collect(),
            envelope: Arc::from(envelope),
            arrival: Arc::new(arrival),
            content: Arc::new(Content::Memory(vec![trace.into(), tail.into()])),
        };
        let job = Job { attempt, target: self.target, outcomes: self.outcomes.clone() };
        if self.jobs().try_send(job).is_ok() {
            spool.hand_off(sequence);
            self.costs.borrow_mut().insert(id, cost);
        } else {
            self.forget(cost);
        }
    }

    /// Takes messages from the backlog, as many as the channel may have room for: new ones first.
    pub fn take_backlog<P: Page>(&self, spool: &mut Spool<P>) -> Batch {
        let mut batch = Batch::default();
        let now = super::clock::now();
        let memory_max = self.cache_size.max(READ_BACK_SIZE_MIN);
        while batch.messages.len() < BATCH_COUNT_MAX && self.cached.get() < memory_max {
            let taken = batch.messages.len();
            // None is new behind one that has waited: nothing comes meanwhile, and new ones find more room.
            let sequence = match self.next_new(spool, taken) {
                Some(sequence) => {
                    batch.new_count += 1;
                    sequence
                }
                None if taken >= self.jobs().room_for_backlog() => break,
                None => {
                    let Some(sequence) = spool.next_of_backlog(now) else { break };
                    sequence
                }
            };
            spool.hand_off(sequence);
            let wanted = wanted(spool, sequence).expect("what is in the backlog is in the ledger");
            let cost = wanted.location.size as usize;
            self.cached.set(self.cached.get() + cost);
            self.costs.borrow_mut().insert(MessageId { log: spool.log(), sequence }, cost);
            batch.messages.push(wanted);
        }
        batch
    }

    /// The next message of this log that has just come and waits to be read back, if the channel has room for it behind `taken`
    /// others.
    fn next_new<P: Page>(&self, spool: &Spool<P>, taken: usize) -> Option<u64> {
        let mut fresh = self.fresh.borrow_mut();
        while taken < self.jobs().room() && fresh.front().is_some_and(|id| id.log == spool.log()) {
            let id = fresh.pop_front()?;
            // It may have had its turn in the backlog.
            if spool.is_in_backlog(id.sequence) {
                return Some(id.sequence);
            }
        }
        None
    }

    /// Offers a message that was read back, or puts it back into the backlog.
    pub fn offer_again(
        &self,
        spool: &mut Spool<DmaPage>,
        sequence: u64,
        message: StoredMessage,
        is_new: bool,
    ) {
        // Other shards may have filled the channel meanwhile.
        if !is_new && self.jobs().room_for_backlog() == 0 {
            return self.take_back(spool, sequence);
        }
        let id = MessageId { log: spool.log(), sequence };
        let attempt = Attempt {
            id,
            recipients: outstanding(spool, sequence),
            envelope: Arc::new(message.envelope),
            arrival: Arc::new(message.arrival),
            content: Arc::new(Content::Stored(Box::new(message.content))),
        };
        let job = Job { attempt, target: self.target, outcomes: self.outcomes.clone() };
        if self.jobs().try_send(job).is_err() {
            self.take_back(spool, sequence);
        }
    }

    /// The message goes back into the backlog.
    pub fn take_back(&self, spool: &mut Spool<DmaPage>, sequence: u64) {
        self.forget_job(MessageId { log: spool.log(), sequence });
        spool.take_back(sequence);
    }

    /// No job holds the message in memory any more.
    fn forget_job(&self, id: MessageId) {
        if let Some(cost) = self.costs.borrow_mut().remove(&id) {
            self.forget(cost);
        }
    }

    /// What a report means for the spool: attempts counted, the next ones scheduled.
    pub fn judge(&self, spool: &Spool<DmaPage>, report: &Report, unix_now: u64) -> Vec<RecipientOutcome> {
        self.forget_job(report.id);
        judge(&self.schedule, &outstanding(spool, report.id.sequence), report, unix_now)
    }

    /// The outcomes of a message whose record cannot be read.
    pub fn unreadable(&self, spool: &Spool<DmaPage>, sequence: u64, unix_now: u64) -> Vec<RecipientOutcome> {
        self.forget_job(MessageId { log: spool.log(), sequence });
        let outcomes = outstanding(spool, sequence).into_iter().map(|recipient| RecipientOutcome {
            index: recipient.index,
            is_done: false,
            attempts: recipient.attempts,
            next_attempt: unix_now + UNREADABLE_RETRY,
            reason: "its record in the spool cannot be read".into(),
        });
        outcomes.collect()
    }
}

/// Where the message is, if it is not done.
pub fn wanted<P: Page>(spool: &Spool<P>, sequence: u64) -> Option<Wanted> {
    let entry = spool.entry(sequence)?;
    let segment = |epoch| spool.segment(epoch).expect("a segment stays while it is needed");
    let pieces = entry.pieces.iter().map(|piece| (*piece, segment(piece.epoch))).collect();
    Some(Wanted { sequence, location: entry.location, segment: segment(entry.location.epoch), pieces })
}

/// Counts the attempt for each recipient of the report, and says when the next one is due, by the wall clock. `left`: who wanted the
/// message before.
///
/// The message alone seeds the chance in the wait: recipients that made the same attempts come due together, and are tried
/// together.
fn judge(schedule: &Schedule, left: &[Recipient], report: &Report, unix_now: u64) -> Vec<RecipientOutcome> {
    let seed = report.id.sequence ^ u64::from(report.id.log) << 32;
    let judged = report.recipients.iter().map(|(index, outcome)| {
        let before = left.iter().find(|r| r.index == *index).map_or(0, |r| r.attempts);
        let attempts = before.saturating_add(1);
        let is_done = !matches!(outcome, Outcome::Deferred { .. });
        let wait = schedule.next_attempt(attempts, seed).as_secs().max(1);
        RecipientOutcome {
            index: *index,
            is_done,
            attempts,
            next_attempt: if is_done { 0 } else { unix_now.saturating_add(wait) },
            reason: outcome.reason().unwrap_or_default().into(),
        }
    });
    judged.collect()
}

/// Who still wants the message.
fn outstanding<P: Page>(spool: &Spool<P>, sequence: u64) -> Vec<Recipient> {
    let Some(entry) = spool.entry(sequence) else { return Vec::new() };
    match entry.outstanding() {
        Some(left) => left.iter().map(|o| Recipient { index: o.index, attempts: o.attempts }).collect(),
        None => (0..entry.recipient_count).map(|index| Recipient { index, attempts: 0 }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::delivery::transport::Discard;
    use crate::delivery::{Limits, Means, Target, outcome_channel};
    use crate::mail::{Body, ForwardPath, Protocol, ReversePath};
    use crate::spool::memory_disk::{MemoryDisk, mail};
    use crate::spool::recovery::Depth;
    use crate::spool::{Incoming, Receiving, SpoolConfig};

    fn id(sequence: u64) -> MessageId {
        MessageId { log: 7, sequence }
    }

    fn report(id: MessageId, recipients: Vec<(u32, Outcome)>) -> Report {
        Report { id, target: TargetId(0), unix_millis: 0, duration: Duration::ZERO, recipients }
    }

    /// One target that nobody serves.
    fn targets(channel_size: usize) -> Targets {
        let means = Means::Async(Arc::new(Discard));
        Targets::new(vec![Target::new(TargetId(0), "store", means, Limits::default(), channel_size)])
    }

    #[test]
    fn an_attempt_is_counted_for_each_and_the_next_is_due_for_all_at_once() {
        let schedule = Schedule::default();
        let left: Vec<_> = (0..40).map(|index| Recipient { index, attempts: 4 }).collect();
        for sequence in 0..200 {
            let recipients = left.iter().map(|r| (r.index, Outcome::deferred(format!("busy {}", r.index))));
            let report = report(id(sequence), recipients.collect());
            let judged = judge(&schedule, &left, &report, 1000);
            let due = judged[0].next_attempt;
            assert!((1000 + 16 * 45..=1000 + 16 * 60).contains(&due), "{due}");
            for (n, outcome) in judged.iter().enumerate() {
                let (index, reason) = (n as u32, format!("busy {n}").into());
                let expected =
                    RecipientOutcome { index, is_done: false, attempts: 5, next_attempt: due, reason };
                assert_eq!(*outcome, expected);
            }
        }
    }

    #[test]
    fn each_recipient_has_its_own_count_and_end() {
        let schedule = Schedule { backoff_base: Duration::from_secs(100), ..Schedule::default() };
        let left =
            [(1, 0), (4, 2), (5, 0), (6, u32::MAX)].map(|(index, attempts)| Recipient { index, attempts });
        let (busy, no) = (Outcome::deferred("busy"), Outcome::rejected("no"));
        let table = [
            // (index, outcome, is done, attempts, the least and the most to wait)
            (1, busy.clone(), false, 1, 75..=100),
            (4, busy.clone(), false, 3, 300..=400),
            (5, Outcome::delivered(), true, 1, 0..=0),
            (4, no, true, 3, 0..=0),
            (6, busy.clone(), false, u32::MAX, 3 * 3600..=4 * 3600),
            // one the queue does not know to be left
            (9, busy, false, 1, 75..=100),
        ];
        for (index, outcome, is_done, attempts, wait) in table {
            let report = report(id(1), vec![(index, outcome.clone())]);
            let [judged] = &judge(&schedule, &left, &report, 50)[..] else { panic!("one outcome") };
            assert_eq!((judged.is_done, judged.attempts), (is_done, attempts), "{index} {outcome:?}");
            assert_eq!(&*judged.reason, outcome.reason().unwrap_or_default());
            assert!(wait.contains(&judged.next_attempt.saturating_sub(50)), "{index}: {judged:?}");
        }
    }

    #[test]
    fn messages_deferred_together_do_not_come_back_together() {
        let left = [Recipient { index: 0, attempts: 9 }];
        let due = |sequence| {
            let report = report(id(sequence), vec![(0, Outcome::deferred("busy"))]);
            judge(&Schedule::default(), &left, &report, 0)[0].next_attempt
        };
        let times: std::collections::BTreeSet<u64> = (0..1000).map(due).collect();
        assert!(times.len() > 500, "{} times for 1000 messages", times.len());
        assert_eq!(due(3), due(3), "a restart computes the same");
    }

    /// What is taken when `waited` messages were there at the start and `new` ones have come since, none of them kept in memory: their
    /// sequences, and how many of them are taken as new.
    fn taken(channel_size: usize, waited: usize, new: usize) -> (Vec<u64>, usize) {
        const PAGE_SIZE: usize = 64 << 10;
        let config = SpoolConfig { segment_size: 1 << 20, sync: true, page_size: PAGE_SIZE, pages_max: 4 };
        let (mut disk, now) = (MemoryDisk::default(), Instant::now());
        let (outcomes, _reports) = outcome_channel(1, Arc::new(|| ()));
        let handoff = Handoff::new(targets(channel_size), TargetId(0), outcomes, Schedule::default(), 0);
        let mut batch = Batch::default();
        for (life, count) in [(1, waited), (2, new)] {
            let make_page = Box::new(|| vec![0; PAGE_SIZE]);
            let recovered = disk.recover(Depth::Quick);
            let mut spool = Spool::new(config, recovered, make_page, Box::new(move || life), (now, 0));
            disk.settle(&mut spool, now);
            for _ in 0..count {
                let (envelope, arrival) = mail(1);
                let message = Incoming { envelope: &envelope, arrival: &arrival, tail: b"x" };
                spool.append_message(&mut Receiving::default(), message, |_| Vec::new()).unwrap();
                disk.settle(&mut spool, now);
                let (sequence, is_stored) = spool.poll_stored().expect("it is stored");
                assert!(is_stored);
                if life == 2 {
                    handoff.offer(&mut spool, sequence, None);
                }
            }
            if life == 2 {
                batch = handoff.take_backlog(&mut spool);
            }
        }
        (batch.messages.iter().map(|wanted| wanted.sequence).collect(), batch.new_count)
    }

    #[test]
    fn a_backlog_that_is_read_back_lets_new_messages_pass_and_leaves_them_half_of_the_channel() {
        let table = [
            // (channel, waited, new; of which are taken: new, waited)
            (16, 40, 0, 0, 8),
            (16, 40, 1, 1, 7),
            (16, 40, 12, 12, 0),
            (16, 40, 30, 16, 0),
            (16, 3, 2, 2, 3),
            (1, 40, 1, 1, 0),
            (4096, 100, 100, BATCH_COUNT_MAX, 0),
            (4096, 100, 10, 10, BATCH_COUNT_MAX - 10),
        ];
        for (channel_size, waited, new, new_taken, waited_taken) in table {
            let case = format!("{new} new behind {waited}, channel of {channel_size}");
            let (sequences, new_count) = taken(channel_size, waited, new);
            assert_eq!((new_count, sequences.len()), (new_taken, new_taken + waited_taken), "{case}");
            let (new, waited) = sequences.split_at(new_count);
            assert!(new.is_sorted() && waited.is_sorted(), "{case}: {sequences:?}");
            assert!(waited.last() < new.first() || new.is_empty(), "{case}: {sequences:?}");
        }
    }

    #[test]
    fn attempts_time_and_reason_of_each_recipient_survive_a_restart() {
        const PAGE_SIZE: usize = 64 << 10;
        let config = SpoolConfig { segment_size: 1 << 20, sync: true, page_size: PAGE_SIZE, pages_max: 4 };
        let (mut disk, start, unix_start) = (MemoryDisk::default(), Instant::now(), 1_000_000);
        let mut sequence = 0;
        let (mut attempts, mut expected) = ([0; 3], Vec::new());
        let paths = ["a@e.org", "b@e.org", "c@e.org"];
        // In each life one attempt for all who are left; the second of them is delivered in the third.
        for life in 1..=5 {
            let times = (start + Duration::from_secs(life * 86_400), unix_start + life * 86_400);
            let recovered = disk.recover(Depth::Quick);
            let make_page = Box::new(|| vec![0; PAGE_SIZE]);
            let mut spool = Spool::new(config, recovered, make_page, Box::new(move || life + 7), times);
            disk.settle(&mut spool, times.0);
            if life == 1 {
                let path = |text: &&str| ForwardPath::parse(text, false).unwrap();
                let envelope = Envelope {
                    reverse_path: ReversePath::Null,
                    forward_paths: paths.iter().map(path).collect(),
                    body: Body::SevenBit,
                    smtputf8: false,
                    require_tls: false,
                    dsn: None,
                };
                let (peer, protocol) = ("192.0.2.1:25".parse().unwrap(), Protocol::Esmtp);
                let arrival = Arrival {
                    peer,
                    hello: "e.net".into(),
                    protocol,
                    tls: None,
                    authenticated: None,
                    client_name: None,
                    tags: Vec::new(),
                    unix_time: unix_start,
                };
                let message = Incoming { envelope: &envelope, arrival: &arrival, tail: b"x" };
                let mut receiving = Receiving::default();
                sequence = spool.append_message(&mut receiving, message, |_| Vec::new()).unwrap().0.sequence;
                disk.settle(&mut spool, times.0);
                assert_eq!(spool.poll_stored(), Some((sequence, true)));
            }
            let left = outstanding(&spool, sequence);
            let outcome = |r: &Recipient| match (r.index, life) {
                (1, 3) => (r.index, Outcome::delivered()),
                _ => (r.index, Outcome::deferred(format!("450 4.2.{life} {} is busy", r.index))),
            };
            let report = report(id(sequence), left.iter().map(outcome).collect());
            left.iter().for_each(|r| attempts[r.index as usize] += 1);
            let judged = judge(&Schedule::default(), &left, &report, times.1);
            assert_eq!(spool.next_of_backlog(times.0), Some(sequence), "due after a day");
            spool.hand_off(sequence);
            spool.handle_outcome(sequence, &judged, times.0, times.1);
            disk.settle(&mut spool, times.0 + Duration::from_secs(1));

            let recovered = disk.recover(Depth::Quick);
            let message = &recovered.messages[&sequence];
            let due = judged.iter().filter(|o| !o.is_done).map(|o| o.next_attempt).min();
            assert_eq!(message.due().map(|due| due / 1000), due, "life {life}");
            expected.clear();
            for recipient in [0, 1, 2].into_iter().filter(|index| *index != 1 || life < 3) {
                let reason = format!("450 4.2.{life} {recipient} is busy");
                expected.push((recipient, attempts[recipient as usize], Some(reason)));
            }
            let kept = message.outstanding().into_iter().flatten();
            let kept: Vec<_> =
                kept.map(|o| (o.index, o.attempts, o.reason.as_deref().map(String::from))).collect();
            assert_eq!(kept, expected, "life {life}");
        }
        assert_eq!(attempts, [5, 3, 5]);
    }
}
