//! Durable messages → delivery, and the outcomes back.
//!
//! A just-accepted small message is handed over from memory while the bounded cache holds it. What finds no room in the
//! cache or the channel waits in the spool's backlog, which is in the log, and is read back when there is room: a slow
//! delivery stops nobody, and costs no more memory than its jobs: each holds one record, of a small message or of the
//! end of a large one.
//!
//! Each target has a lane of its own, and a message a part in the lane of each of its targets. Lanes wait for their own channels, and share
//! the memory so that one that is stuck leaves some to the others ([`Handoff::has_memory`]).
//!
//! A new message does not wait for a long backlog, which leaves half of the channel to what has just come: a large one, or one
//! that the cache has no room for, is read back before those that have waited.
//!
//! Targets and routes may be replaced ([`Handoff::replace`]): what waits is routed anew when its turn comes; what a delivery has comes back
//! from there. A target keeps its id and its lane by its name, for as long as the process lives.
//!
//! What is for a target that is down is not read back for nothing: its attempts pass ([`Handoff::tend`]), but for one now and then that
//! sees whether it is back.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clock;
use super::medium::DmaPage;
use super::read_back::{Batch, StoredMessage, Wanted as ToRead};
use crate::delivery::{
    Attempt, Content, Job, Outcome, OutcomeSender, Recipient, Report, Routed, Routes, Schedule, Target,
    TargetId, Targets,
};
use crate::mail::{Arrival, Envelope, MessageId};
use crate::spool::format::{Made, RecipientOutcome};
use crate::spool::{Entry, Lane, Page, Part, Spool, Wanted};

/// Messages read back at once: enough to pay for the way to the blocking thread, few enough to hold in memory.
const BATCH_COUNT_MAX: usize = 64;
/// New ones among them at most: what has waited is not to wait for ever.
const NEW_COUNT_MAX: usize = 48;
/// How many a lane may take of a batch, before it is another's turn.
const LANE_TURN: usize = 8;
/// A message whose record cannot be read is tried again after this many seconds: media sometimes recover, and the message is
/// not ours to drop.
const UNREADABLE_RETRY: u64 = 3600;

/// Messages read back may take this much memory at least, in octets, however small the cache is.
const READ_BACK_SIZE_MIN: usize = 4 << 20;
/// A lane may take this many times as much memory as it leaves free. Alone it comes to have four fifths of it; of two that are stuck,
/// each four ninths, which leaves a ninth.
const MEMORY_SHARE: usize = 4;
/// What a forward-path usually costs in memory, octets: the enum and its text.
const PATH_COST: usize = 96;
/// Recipients whose attempts pass at once because their target is down: they hold the shard for a fraction of a millisecond.
const PASS_COUNT_MAX: usize = 256;
/// A message of which somebody still has a part, by routes that are no more, is looked at again after this.
const PUT_OFF_TIME: Duration = Duration::from_secs(1);
/// While a target is down, a message is offered at most so often to see whether it is back: workers know better when.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

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

/// Who gets what, and when.
#[derive(Clone)]
pub struct Outward {
    /// To the workers.
    pub targets: Targets,
    /// Who gets what.
    pub routes: Arc<Routes>,
    /// When to try again.
    pub schedule: Schedule,
    /// Octets of just-accepted messages kept in memory for their first attempt.
    pub cache_size: usize,
    /// Of all targets that there are or have been, by their ids; also of those that only some log knows.
    pub names: Vec<Arc<str>>,
    /// Targets that are other than they were: what was deferred for them is tried at once.
    pub changed: Vec<TargetId>,
}

/// The shard's end of the ways to the workers and back.
pub struct Handoff {
    outward: RefCell<Rc<Outward>>,
    outcomes: OutcomeSender,
    /// What messages in memory cost.
    cached: Cell<usize>,
    /// The same, lane by lane; of the first, those of whom it is not decided yet who gets them.
    used: RefCell<Vec<usize>>,
    /// What each message in memory costs, by id and lane.
    costs: RefCell<HashMap<(MessageId, Lane), usize>>,
    /// By lane: just accepted and to be read back, at most [`BATCH_COUNT_MAX`]: those beyond take their turn in the backlog, where
    /// these are as well.
    fresh: RefCell<Vec<VecDeque<MessageId>>>,
    /// The lane whose turn it is.
    turn: Cell<usize>,
    /// How often each target had come back when each log was told, by the log.
    returns: RefCell<HashMap<u32, Vec<u64>>>,
    /// When each target was last offered a message though it was down.
    probed: RefCell<Vec<Option<Instant>>>,
}

impl Handoff {
    /// Of a shard that hears of its messages through `outcomes`.
    pub fn new(outward: Outward, outcomes: OutcomeSender) -> Self {
        let lanes = outward.names.len() + 1;
        Handoff {
            outward: RefCell::new(Rc::new(outward)),
            outcomes,
            cached: Cell::new(0),
            used: RefCell::new(vec![0; lanes]),
            costs: RefCell::default(),
            fresh: RefCell::new(vec![VecDeque::new(); lanes]),
            turn: Cell::new(0),
            returns: RefCell::default(),
            probed: RefCell::new(vec![None; lanes]),
        }
    }

    fn outward(&self) -> Rc<Outward> {
        self.outward.borrow().clone()
    }

    /// From here on it is so, for messages in `spools` as well: all logs of the shard. Nothing is offered any more to who was there before.
    pub fn replace<'a, P: Page + 'a>(
        &self,
        outward: Outward,
        spools: impl IntoIterator<Item = &'a RefCell<Spool<P>>>,
    ) {
        self.outward.replace(Rc::new(outward));
        let outward = self.outward();
        let lanes = outward.names.len() + 1;
        self.used.borrow_mut().resize(lanes, 0);
        self.fresh.borrow_mut().resize_with(lanes, VecDeque::new);
        *self.probed.borrow_mut() = vec![None; lanes];
        self.returns.borrow_mut().clear();
        for spool in spools {
            let mut spool = spool.borrow_mut();
            for (name, id) in outward.names.iter().zip(0..) {
                assert!(spool.lane(name) == lane_of(TargetId(id)), "a target has the same lane in every log");
            }
            spool.begin_routing();
            outward.changed.iter().for_each(|id| spool.hasten(lane_of(*id)));
        }
    }

    /// The longest wait before another attempt, in whole seconds.
    pub fn wait_max(&self) -> u64 {
        self.outward.borrow().schedule.backoff_max.as_secs().max(1)
    }

    /// The names of the lanes of every log of this shard, from 1.
    pub fn lane_names(&self) -> Vec<Arc<str>> {
        self.outward.borrow().names.clone()
    }

    /// Who gets the message.
    pub fn route(&self, envelope: &Envelope, arrival: &Arrival) -> Routed {
        self.outward.borrow().routes.route(envelope, &arrival.tags)
    }

    fn cost(message: &JustAccepted) -> usize {
        let paths = message.envelope.forward_paths.len() * PATH_COST;
        message.tail.capacity() + message.trace.capacity() + size_of::<Envelope>() + paths
    }

    /// Takes room in the cache for the message, if there is some.
    pub fn keep(&self, message: &JustAccepted) -> bool {
        let cached = self.cached.get() + Self::cost(message);
        let has_room = cached <= self.outward.borrow().cache_size;
        if has_room {
            self.cached.set(cached);
        }
        has_room
    }

    /// A message of the cache will not be durable.
    pub fn drop_kept(&self, message: &JustAccepted) {
        self.forget(Self::cost(message));
    }

    fn forget(&self, cost: usize) {
        self.cached.set(self.cached.get() - cost);
    }

    /// Whether a message that costs so much may be in memory for this lane, of `memory_max` in all. One always may: what is too large
    /// for what others leave would wait for ever.
    fn has_memory(&self, lane: Lane, cost: usize, memory_max: usize) -> bool {
        let free = memory_max.saturating_sub(self.cached.get());
        let used = self.used_by(lane);
        used == 0 || cost <= free && used + cost <= free * MEMORY_SHARE
    }

    /// For each of so many lanes of this log: how many of its messages the deliveries have, and the number of the oldest of them. As many
    /// as fit the channels are looked at.
    pub fn handed_off(&self, log: u32, lanes_count: usize) -> Vec<(usize, Option<u64>)> {
        let mut lanes = vec![(0, None); lanes_count];
        for (id, Lane(lane)) in self.costs.borrow().keys().filter(|(id, _)| id.log == log) {
            if let Some((count, oldest)) = lanes.get_mut(usize::from(*lane)) {
                *count += 1;
                *oldest = Some(oldest.map_or(id.sequence, |oldest: u64| oldest.min(id.sequence)));
            }
        }
        lanes
    }

    /// Octets of messages in memory: how many there are, and how many there may be, those read back included.
    pub fn cache_use(&self) -> (usize, usize) {
        (self.cached.get(), self.memory_max())
    }

    fn used_by(&self, Lane(lane): Lane) -> usize {
        self.used.borrow()[usize::from(lane)]
    }

    /// The message is in memory for this lane.
    fn charge(&self, id: MessageId, lane: Lane, cost: usize) {
        self.cached.set(self.cached.get() + cost);
        self.used.borrow_mut()[usize::from(lane.0)] += cost;
        let before = self.costs.borrow_mut().insert((id, lane), cost);
        assert!(before.is_none(), "only one job for each lane of a message exists");
    }

    /// No job holds the message in memory any more for this lane.
    fn discharge(&self, id: MessageId, lane: Lane) {
        if let Some(cost) = self.costs.borrow_mut().remove(&(id, lane)) {
            self.forget(cost);
            self.used.borrow_mut()[usize::from(lane.0)] -= cost;
        }
    }

    /// The message has become durable: offers it from memory, or leaves it to be read back.
    pub fn offer<P: Page>(
        &self,
        spool: &mut Spool<P>,
        sequence: u64,
        routed: Routed,
        message: Option<JustAccepted>,
    ) {
        let id = MessageId { log: spool.log(), sequence };
        let cost = message.as_ref().map_or(0, Self::cost);
        self.forget(cost);
        let outward = self.outward();
        if !routed.targets().all(|target| outward.targets.find(target).is_some()) {
            // It was decided before they were replaced: it is read back, and decided anew.
            return;
        }
        spool.route(sequence, &wanted(&routed), clock::now());
        let Some(message) = message else {
            let entry = spool.entry(sequence).expect("it has just come");
            entry.parts().iter().for_each(|part| self.note_fresh(id, part.lane));
            return;
        };
        let JustAccepted { envelope, arrival, trace, tail } = message;
        let shared = Shared {
            id,
            envelope: Arc::from(envelope),
            arrival: Arc::new(arrival),
            content: Arc::new(Content::Memory(vec![trace.into(), tail.into()])),
        };
        match routed {
            Routed::All(target) => {
                let everybody = 0..shared.envelope.forward_paths.len() as u32;
                let recipients = everybody.map(|index| Recipient { index, attempts: 0 }).collect();
                self.offer_new(spool, shared, outward.targets.get(target), recipients, cost);
            }
            Routed::Each(_) => {
                for (lane, recipients) in waiting_parts(spool, sequence) {
                    let target = outward.target(lane).expect("it has just been routed");
                    self.offer_new(spool, shared.clone(), target, recipients, cost);
                }
            }
        }
    }

    fn offer_new<P: Page>(
        &self,
        spool: &mut Spool<P>,
        message: Shared,
        target: &Target,
        recipients: Vec<Recipient>,
        cost: usize,
    ) {
        let (id, lane) = (message.id, lane_of(target.id()));
        if target.is_down() {
            return;
        }
        let cache_size = self.outward.borrow().cache_size;
        if self.has_memory(lane, cost, cache_size) && self.send(message, target, recipients) {
            spool.hand_off(id.sequence, lane);
            self.charge(id, lane, cost);
        } else {
            self.note_fresh(id, lane);
        }
    }

    /// The message is new, and is to be read back for this lane before those that have waited.
    fn note_fresh(&self, id: MessageId, lane: Lane) {
        let fresh = &mut self.fresh.borrow_mut()[usize::from(lane.0)];
        if fresh.len() < BATCH_COUNT_MAX {
            fresh.push_back(id);
        }
    }

    /// Puts a job into the target's channel, if there is room.
    fn send(&self, message: Shared, target: &Target, recipients: Vec<Recipient>) -> bool {
        let Shared { id, envelope, arrival, content } = message;
        let attempt = Attempt { id, envelope, arrival, recipients, content };
        let job = Job::new(attempt, target.id(), self.outcomes.clone());
        target.jobs().try_send(job).map_err(Job::withdraw).is_ok()
    }

    /// Takes messages from the backlog, as many as the channels may have room for: new ones first, then from one lane after another.
    pub fn take_backlog<P: Page>(&self, spool: &mut Spool<P>) -> Batch {
        let mut batch = Batch::default();
        let now = clock::now();
        let lanes: Vec<Lane> = (0..spool.lanes_count()).map(|lane| Lane(lane as u16)).collect();
        let mut taken = vec![0; lanes.len()];
        let first = self.turn.get();
        let mut is_more = true;
        while std::mem::take(&mut is_more) {
            for n in 0..lanes.len() {
                let lane = lanes[(first + n) % lanes.len()];
                for _ in 0..LANE_TURN {
                    if batch.messages.len() == NEW_COUNT_MAX {
                        break;
                    }
                    let taken = &mut taken[usize::from(lane.0)];
                    let Some(sequence) = self.next_new(spool, lane, *taken) else { break };
                    self.take(spool, sequence, lane, &mut batch);
                    *taken += 1;
                    is_more = true;
                }
            }
        }
        batch.new_count = batch.messages.len();
        let mut is_more = true;
        while std::mem::take(&mut is_more) {
            for _ in 0..lanes.len() {
                let lane = lanes[self.turn.get() % lanes.len()];
                self.turn.set((self.turn.get() + 1) % lanes.len());
                for _ in 0..LANE_TURN {
                    if batch.messages.len() == BATCH_COUNT_MAX {
                        return batch;
                    }
                    let taken = &mut taken[usize::from(lane.0)];
                    let Some(sequence) = self.next_waiting(spool, lane, *taken, now) else { break };
                    self.take(spool, sequence, lane, &mut batch);
                    *taken += 1;
                    is_more = true;
                }
            }
        }
        batch
    }

    fn take<P: Page>(&self, spool: &mut Spool<P>, sequence: u64, lane: Lane, batch: &mut Batch) {
        spool.hand_off(sequence, lane);
        let wanted = to_read(spool, sequence, lane).expect("what is in the backlog is in the ledger");
        self.charge(MessageId { log: spool.log(), sequence }, lane, wanted.location.size as usize);
        batch.messages.push(wanted);
    }

    /// Messages read back may take so much memory, in octets.
    fn memory_max(&self) -> usize {
        self.outward.borrow().cache_size.max(READ_BACK_SIZE_MIN)
    }

    /// The next message of this lane that has just come and waits to be read back, if the channel has room for it behind `taken`
    /// others.
    fn next_new<P: Page>(&self, spool: &Spool<P>, lane: Lane, taken: usize) -> Option<u64> {
        let outward = self.outward();
        let target = outward.target(lane)?;
        let mut fresh = self.fresh.borrow_mut();
        let fresh = &mut fresh[usize::from(lane.0)];
        while taken < target.jobs().room() && fresh.front().is_some_and(|id| id.log == spool.log()) {
            let sequence = fresh.front()?.sequence;
            // It may have had its turn in the backlog.
            let waiting = spool.entry(sequence).filter(|_| spool.is_in_backlog(sequence, lane));
            let Some(entry) = waiting else {
                fresh.pop_front();
                continue;
            };
            let size = entry.location.size as usize;
            if target.is_down() || !self.has_memory(lane, size, self.memory_max()) {
                return None;
            }
            fresh.pop_front();
            return Some(sequence);
        }
        None
    }

    /// The next message of this lane that has waited, if the channel has room for it behind `taken` others.
    fn next_waiting<P: Page>(
        &self,
        spool: &mut Spool<P>,
        lane: Lane,
        taken: usize,
        now: Instant,
    ) -> Option<u64> {
        let outward = self.outward();
        let (sequence, is_routed) = loop {
            let sequence = spool.next_of_backlog(lane, now)?;
            let is_routed = spool.is_routed(sequence);
            if is_routed || !spool.entry(sequence).is_some_and(Entry::is_handed_off) {
                break (sequence, is_routed);
            }
            // It is decided anew once nobody has a part of it.
            spool.put_off(sequence, lane, now + PUT_OFF_TIME);
        };
        let entry = spool.entry(sequence).expect("what is in the backlog is in the ledger");
        // What is not routed yet may be for others than it was.
        let target = outward.target(lane).filter(|_| is_routed);
        if target.is_some_and(|target| target.jobs().room_for_backlog() <= taken) {
            return None;
        }
        // What has just come finds something left.
        let memory_max = self.memory_max() * 3 / 4;
        if !self.has_memory(lane, entry.location.size as usize, memory_max) {
            return None;
        }
        match target.filter(|target| target.is_down()) {
            Some(target) if self.is_to_probe(target, now) => {
                self.probed.borrow_mut()[usize::from(target.id().0)] = Some(now);
            }
            Some(_) if !self.may_be_given_up(entry, lane) => return None,
            _ => {}
        }
        Some(sequence)
    }

    /// Is it time to offer a message to a target that is down?
    fn is_to_probe(&self, target: &Target, now: Instant) -> bool {
        let last = self.probed.borrow()[usize::from(target.id().0)];
        let is_time = last.is_none_or(|last| now.saturating_duration_since(last) >= PROBE_INTERVAL);
        is_time && target.has_turn(now)
    }

    /// Might another attempt be somebody's last? Only whoever knows when the message came can tell.
    fn may_be_given_up(&self, entry: &Entry, lane: Lane) -> bool {
        let left = entry.part(lane).and_then(Part::outstanding).unwrap_or_default();
        let schedule = self.outward.borrow().schedule;
        left.iter().any(|left| schedule.may_be_exhausted(left.attempts.saturating_add(1)))
    }

    /// Whether there is something that [`Handoff::take_backlog`] or [`Handoff::tend`] could do.
    pub fn has_work<P: Page>(&self, spool: &Spool<P>) -> bool {
        let log = spool.log();
        let outward = self.outward.borrow();
        let mut lanes = (0..spool.lanes_count()).map(|lane| Lane(lane as u16));
        lanes.any(|lane| match outward.target(lane) {
            None => spool.backlog_depth(lane) > 0,
            Some(target) => {
                let jobs = target.jobs();
                let has_new = || !self.fresh.borrow()[usize::from(lane.0)].is_empty();
                let has_room = || jobs.room_for_backlog() > 0 || jobs.room() > 0 && has_new();
                target.is_down()
                    || self.returns_of(log, target.id()) != target.returns_count()
                    || spool.backlog_depth(lane) > 0 && (spool.has_unrouted() || has_room())
            }
        })
    }

    fn returns_of(&self, log: u32, TargetId(target): TargetId) -> u64 {
        self.returns.borrow().get(&log).map_or(0, |returns| returns[usize::from(target)])
    }

    /// Sees to the targets that are down or have come back. What is due for one that is down counts as tried, without being read; where
    /// nothing is due, something is made due in time, so that somebody sees whether it is back. When it is, nothing waits any longer.
    /// True: there is more to do.
    pub fn tend(&self, spool: &mut Spool<DmaPage>, now: Instant, unix_now: u64) -> bool {
        let mut is_more = false;
        let outward = self.outward();
        for target in outward.targets.iter() {
            let (id, lane) = (target.id(), lane_of(target.id()));
            let returns_count = target.returns_count();
            if self.returns_of(spool.log(), id) != returns_count {
                let mut returns = self.returns.borrow_mut();
                let returns = returns.entry(spool.log()).or_insert_with(|| vec![0; outward.names.len()]);
                returns[usize::from(id.0)] = returns_count;
                spool.hasten(lane);
            }
            if target.is_down() {
                if self.is_to_probe(target, now) && spool.backlog_depth(lane) == 0 {
                    spool.hasten_one(lane);
                }
                is_more |= self.pass(spool, target, now, unix_now);
            }
        }
        is_more
    }

    /// True: there may be more that passes.
    fn pass(&self, spool: &mut Spool<DmaPage>, target: &Target, now: Instant, unix_now: u64) -> bool {
        let lane = lane_of(target.id());
        let mut outcome = None;
        let mut count = 0;
        while count < PASS_COUNT_MAX {
            if self.is_to_probe(target, now) {
                return false;
            }
            // What was hastened waits for its time again.
            let Some(sequence) = spool.next_due_of_backlog(lane, now) else { return false };
            let entry = spool.entry(sequence).expect("what is in the backlog is in the ledger");
            if !spool.is_routed(sequence) || self.may_be_given_up(entry, lane) {
                return false;
            }
            let outcome = outcome.get_or_insert_with(|| Outcome::unreachable(target.not_tried()));
            let left = outstanding(entry, lane);
            count += left.len();
            let recipients = left.iter().map(|left| (left.index, outcome.clone())).collect();
            let report = Report {
                id: MessageId { log: spool.log(), sequence },
                target: target.id(),
                unix_millis: 0,
                duration: Duration::ZERO,
                recipients,
            };
            let judged = judge(&self.outward.borrow().schedule, &left, &report, unix_now);
            spool.hand_off(sequence, lane);
            spool.handle_outcome(sequence, lane, Made::default(), &judged, (now, unix_now));
        }
        true
    }

    /// Offers a message that was read back to whoever wants it now, or puts it back into the backlog.
    pub fn offer_again(
        &self,
        spool: &mut Spool<DmaPage>,
        (sequence, lane): (u64, Lane),
        message: StoredMessage,
        is_new: bool,
    ) {
        let id = MessageId { log: spool.log(), sequence };
        let StoredMessage { envelope, arrival, content } = message;
        self.take_back(spool, sequence, lane);
        let Some(entry) = spool.entry(sequence) else { return };
        let cost = entry.location.size as usize;
        let outward = self.outward();
        if !spool.is_routed(sequence) {
            // Another lane's part of it is being read, or somebody has it since before the targets were replaced.
            if entry.is_handed_off() {
                return;
            }
            let routed = self.route(&envelope, &arrival);
            spool.route(sequence, &wanted(&routed), clock::now());
        }
        let message = Shared {
            id,
            envelope: Arc::new(envelope),
            arrival: Arc::new(arrival),
            content: Arc::new(Content::Stored(Box::new(content))),
        };
        // Read once, it serves every lane that waits for nothing else.
        for (other, recipients) in waiting_parts(spool, sequence) {
            let Some(target) = outward.target(other) else { continue };
            // Other shards may have filled the channel meanwhile.
            let has_room = is_new || target.jobs().room_for_backlog() > 0;
            let is_asked = other == lane || !target.is_down();
            let is_sent = has_room
                && is_asked
                && self.has_memory(other, cost, self.memory_max())
                && self.send(message.clone(), target, recipients);
            if is_sent {
                spool.hand_off(sequence, other);
                self.charge(id, other, cost);
            } else if is_new && other == lane {
                self.note_fresh(id, other);
            }
        }
    }

    /// The message goes back into the backlog.
    pub fn take_back(&self, spool: &mut Spool<DmaPage>, sequence: u64, lane: Lane) {
        self.discharge(MessageId { log: spool.log(), sequence }, lane);
        if spool.is_handed_off(sequence, lane) {
            spool.take_back(sequence, lane);
        }
    }

    /// What a report means for the spool: attempts counted, the next ones scheduled.
    pub fn handle_report(
        &self,
        spool: &mut Spool<DmaPage>,
        report: &Report,
        (now, unix_now): (Instant, u64),
    ) {
        let lane = lane_of(report.target);
        if report.recipients.is_empty() {
            return self.take_back(spool, report.id.sequence, lane);
        }
        self.discharge(report.id, lane);
        let Some(entry) = spool.entry(report.id.sequence) else { return };
        let judged = judge(&self.outward.borrow().schedule, &outstanding(entry, lane), report, unix_now);
        let duration_millis = u32::try_from(report.duration.as_millis()).unwrap_or(u32::MAX);
        let made = Made { unix_millis: report.unix_millis, duration_millis };
        spool.handle_outcome(report.id.sequence, lane, made, &judged, (now, unix_now));
    }

    /// The record of a message that is wanted in this lane cannot be read.
    pub fn handle_unreadable(
        &self,
        spool: &mut Spool<DmaPage>,
        (sequence, lane): (u64, Lane),
        (now, unix_now): (Instant, u64),
    ) {
        self.discharge(MessageId { log: spool.log(), sequence }, lane);
        let Some(entry) = spool.entry(sequence) else { return };
        let outcomes = outstanding(entry, lane).into_iter().map(|recipient| RecipientOutcome {
            index: recipient.index,
            is_done: false,
            is_given_up: false,
            attempts: recipient.attempts,
            next_attempt: unix_now + UNREADABLE_RETRY,
            reason: "its record in the spool cannot be read".into(),
        });
        let outcomes: Vec<_> = outcomes.collect();
        spool.handle_outcome(sequence, lane, Made::default(), &outcomes, (now, unix_now));
    }
}

impl Outward {
    /// The target of a lane; none, where it is not decided, or not any more.
    fn target(&self, Lane(lane): Lane) -> Option<&Target> {
        self.targets.find(TargetId(lane.checked_sub(1)?))
    }
}

/// What the jobs of a message share.
#[derive(Clone)]
struct Shared {
    id: MessageId,
    envelope: Arc<Envelope>,
    arrival: Arc<Arrival>,
    content: Arc<Content>,
}

/// The first lane is that of the undecided.
fn lane_of(TargetId(target): TargetId) -> Lane {
    Lane(target + 1)
}

fn wanted(routed: &Routed) -> Wanted {
    match routed {
        Routed::All(target) => Wanted::All(lane_of(*target)),
        Routed::Each(each) => {
            Wanted::Each(each.iter().map(|(index, target)| (*index, lane_of(*target))).collect())
        }
    }
}

/// The lanes in which the message waits for nothing but room, and its recipients there.
fn waiting_parts<P: Page>(spool: &Spool<P>, sequence: u64) -> Vec<(Lane, Vec<Recipient>)> {
    let Some(entry) = spool.entry(sequence) else { return Vec::new() };
    let lanes = entry.parts().iter().map(|part| part.lane);
    let waiting = lanes.filter(|lane| spool.is_in_backlog(sequence, *lane));
    waiting.map(|lane| (lane, outstanding(entry, lane))).collect()
}

/// Where the message is, if it is not done.
pub fn to_read<P: Page>(spool: &Spool<P>, sequence: u64, lane: Lane) -> Option<ToRead> {
    let entry = spool.entry(sequence)?;
    let segment = |epoch| spool.segment(epoch).expect("a segment stays while it is needed");
    let pieces = entry.pieces.iter().map(|piece| (*piece, segment(piece.epoch))).collect();
    Some(ToRead { sequence, lane, location: entry.location, segment: segment(entry.location.epoch), pieces })
}

/// Counts the attempt for each recipient of the report, and says when the next one is due, by the wall clock. `left`: who wanted the
/// message before, ascending.
///
/// The message alone seeds the chance in the wait: recipients that made the same attempts come due together, and are tried
/// together.
fn judge(schedule: &Schedule, left: &[Recipient], report: &Report, unix_now: u64) -> Vec<RecipientOutcome> {
    let seed = report.id.sequence ^ u64::from(report.id.log) << 32;
    let judged = report.recipients.iter().map(|(index, outcome)| {
        let known = left.binary_search_by_key(index, |r| r.index).ok();
        let before = known.map_or(0, |at| left[at].attempts);
        let attempts = before.saturating_add(1);
        let asked = match outcome {
            Outcome::Deferred { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let wait = schedule.next_attempt(attempts, seed).max(asked.min(schedule.backoff_max));
        let is_done = !matches!(outcome, Outcome::Deferred { .. });
        RecipientOutcome {
            index: *index,
            is_done,
            is_given_up: matches!(outcome, Outcome::Rejected { .. }),
            attempts,
            next_attempt: if is_done { 0 } else { unix_now.saturating_add(wait.as_secs().max(1)) },
            reason: outcome.text().into(),
        }
    });
    judged.collect()
}

/// Who still wants the message in this lane.
fn outstanding(entry: &Entry, lane: Lane) -> Vec<Recipient> {
    let Some(part) = entry.part(lane) else { return Vec::new() };
    match part.outstanding() {
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
    use crate::mail::{Body, Domain, ForwardPath, Protocol, ReversePath};
    use crate::spool::memory_disk::{MemoryDisk, mail};
    use crate::spool::recovery::Depth;
    use crate::spool::{Incoming, Receiving, SpoolConfig};

    fn id(sequence: u64) -> MessageId {
        MessageId { log: 7, sequence }
    }

    fn report(id: MessageId, recipients: Vec<(u32, Outcome)>) -> Report {
        Report { id, target: TargetId(0), unix_millis: 0, duration: Duration::ZERO, recipients }
    }

    /// What a recovered message is in before it is decided who gets it.
    const LANE: Lane = Lane::UNROUTED;

    /// All of it goes to one target.
    fn routes() -> Arc<Routes> {
        Arc::new(Routes::new(
            Vec::new(),
            TargetId(0),
            HashMap::new(),
            Domain::parse("mx.example", false).unwrap(),
        ))
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
                let expected = RecipientOutcome {
                    index,
                    is_done: false,
                    is_given_up: false,
                    attempts: 5,
                    next_attempt: due,
                    reason,
                };
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

    fn outward(targets: Targets, cache_size: usize) -> Outward {
        let names = targets.iter().map(|target| target.name().clone()).collect();
        Outward {
            targets,
            routes: routes(),
            schedule: Schedule::default(),
            cache_size,
            names,
            changed: Vec::new(),
        }
    }

    /// What is taken when `waited` messages were there at the start and `new` ones have come since, none of them kept in memory: their
    /// sequences, and how many of them are taken as new.
    fn taken(channel_size: usize, waited: usize, new: usize) -> (Vec<u64>, usize) {
        const PAGE_SIZE: usize = 64 << 10;
        let config = SpoolConfig { segment_size: 1 << 20, sync: true, page_size: PAGE_SIZE, pages_max: 4 };
        let (mut disk, now) = (MemoryDisk::default(), Instant::now());
        let (outcomes, _reports) = outcome_channel(1, Arc::new(|| ()));
        let handoff = Handoff::new(outward(targets(channel_size), 0), outcomes);
        let mut batch = Batch::default();
        for (life, count) in [(1, waited), (2, new)] {
            let make_page = Box::new(|| vec![0; PAGE_SIZE]);
            let mut recovered = disk.recover(Depth::Quick);
            recovered.name_lanes(handoff.lane_names());
            let mut spool = Spool::new(config, recovered, make_page, Box::new(move || life), (now, 0));
            // Who gets what has waited was decided when it was read before.
            while let Some(sequence) = spool.next_of_backlog(Lane::UNROUTED, now) {
                spool.route(sequence, &Wanted::All(Lane(1)), now);
            }
            disk.settle(&mut spool, now);
            for _ in 0..count {
                let (envelope, arrival) = mail(1);
                let message = Incoming { envelope: &envelope, arrival: &arrival, tail: b"x" };
                spool.append_message(&mut Receiving::default(), message, |_| Vec::new()).unwrap();
                disk.settle(&mut spool, now);
                let (sequence, is_stored) = spool.poll_stored().expect("it is stored");
                assert!(is_stored);
                if life == 2 {
                    handoff.offer(&mut spool, sequence, Routed::All(TargetId(0)), None);
                }
            }
            if life == 2 {
                batch = handoff.take_backlog(&mut spool);
            }
        }
        (batch.messages.iter().map(|wanted| wanted.sequence).collect(), batch.new_count)
    }

    #[test]
    fn what_somebody_has_a_part_of_is_put_off_whether_it_was_due_or_hastened() {
        const PAGE_SIZE: usize = 64 << 10;
        let config = SpoolConfig { segment_size: 1 << 20, sync: true, page_size: PAGE_SIZE, pages_max: 4 };
        for is_due in [true, false] {
            let (mut disk, now) = (MemoryDisk::default(), Instant::now());
            let (outcomes, _reports) = outcome_channel(1, Arc::new(|| ()));
            let target = |n: u16| {
                let means = Means::Async(Arc::new(Discard));
                Target::new(TargetId(n), &format!("t{n}"), means, Limits::default(), 4)
            };
            let both = outward(Targets::new(vec![target(0), target(1)]), 0);
            let handoff = Handoff::new(both.clone(), outcomes);
            let mut recovered = disk.recover(Depth::Quick);
            recovered.name_lanes(handoff.lane_names());
            let make_page = Box::new(|| vec![0; PAGE_SIZE]);
            let mut spool = Spool::new(config, recovered, make_page, Box::new(|| 1), (now, 0));
            disk.settle(&mut spool, now);
            let (envelope, arrival) = mail(2);
            let message = Incoming { envelope: &envelope, arrival: &arrival, tail: b"x" };
            spool.append_message(&mut Receiving::default(), message, |_| Vec::new()).unwrap();
            disk.settle(&mut spool, now);
            let (sequence, _) = spool.poll_stored().expect("it is stored");
            spool.route(sequence, &Wanted::Each(vec![(0, Lane(1)), (1, Lane(2))]), now);
            // One target has its part; the other has failed, or not been tried.
            spool.hand_off(sequence, Lane(1));
            if !is_due {
                spool.hand_off(sequence, Lane(2));
                let left = outstanding(spool.entry(sequence).unwrap(), Lane(2));
                let report = Report {
                    target: TargetId(1),
                    ..report(id(sequence), vec![(1, Outcome::deferred("busy"))])
                };
                let judged = judge(&Schedule::default(), &left, &report, 0);
                spool.handle_outcome(sequence, Lane(2), Made::default(), &judged, (now, 0));
            }
            let spool = RefCell::new(spool);
            handoff.replace(Outward { changed: vec![TargetId(1)], ..both }, [&spool]);
            let mut spool = spool.into_inner();
            assert!(handoff.take_backlog(&mut spool).messages.is_empty(), "due: {is_due}");
            // The part comes back: both are decided anew.
            spool.take_back(sequence, Lane(1));
            let batch = handoff.take_backlog(&mut spool);
            assert_eq!(batch.messages.len(), 1, "due: {is_due}");
        }
    }

    #[test]
    fn lanes_that_are_stuck_leave_memory_to_the_others() {
        const MEMORY: usize = 1 << 20;
        for (stuck, left_at_least) in [(1, MEMORY / 6), (2, MEMORY / 10), (9, MEMORY / 50)] {
            let (outcomes, _reports) = outcome_channel(1, Arc::new(|| ()));
            let target = |n: u16| {
                let means = Means::Async(Arc::new(Discard));
                Target::new(TargetId(n), &format!("t{n}"), means, Limits::default(), 4)
            };
            let targets = Targets::new((0..=stuck).map(target).collect());
            let handoff = Handoff::new(outward(targets, MEMORY), outcomes);
            let mut sequence = 0;
            // Each takes what it may have, in turns, until none may have more.
            let mut takes_any = true;
            while std::mem::take(&mut takes_any) {
                for lane in (1..=stuck).map(Lane).filter(|lane| handoff.has_memory(*lane, 4096, MEMORY)) {
                    sequence += 1;
                    handoff.charge(id(sequence), lane, 4096);
                    takes_any = true;
                }
            }
            let left = MEMORY - handoff.cached.get();
            assert!(left >= left_at_least && left < MEMORY / 2, "{stuck} lanes leave {left}");
            let other = Lane(stuck + 1);
            assert!(handoff.has_memory(other, 4096, MEMORY));
            assert!(handoff.has_memory(other, 2 * MEMORY, MEMORY), "the first of a lane may be of any size");
            (1..=sequence).for_each(|n| (1..=stuck).for_each(|lane| handoff.discharge(id(n), Lane(lane))));
            assert_eq!((handoff.cached.get(), handoff.used_by(Lane(1))), (0, 0));
        }
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
            (4096, 100, 100, NEW_COUNT_MAX, BATCH_COUNT_MAX - NEW_COUNT_MAX),
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
                    via: None,
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
                    provenance: Default::default(),
                };
                let message = Incoming { envelope: &envelope, arrival: &arrival, tail: b"x" };
                let mut receiving = Receiving::default();
                sequence = spool.append_message(&mut receiving, message, |_| Vec::new()).unwrap().0.sequence;
                disk.settle(&mut spool, times.0);
                assert_eq!(spool.poll_stored(), Some((sequence, true)));
            }
            let left = outstanding(spool.entry(sequence).unwrap(), LANE);
            let outcome = |r: &Recipient| match (r.index, life) {
                (1, 3) => (r.index, Outcome::delivered()),
                _ => (r.index, Outcome::deferred(format!("450 4.2.{life} {} is busy", r.index))),
            };
            let report = report(id(sequence), left.iter().map(outcome).collect());
            left.iter().for_each(|r| attempts[r.index as usize] += 1);
            let judged = judge(&Schedule::default(), &left, &report, times.1);
            assert_eq!(spool.next_of_backlog(LANE, times.0), Some(sequence), "due after a day");
            spool.hand_off(sequence, LANE);
            spool.handle_outcome(sequence, LANE, Made::default(), &judged, times);
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
            let kept = message.outstanding();
            let kept: Vec<_> = kept
                .iter()
                .map(|(_, o)| (o.index, o.attempts, o.reason.as_deref().map(String::from)))
                .collect();
            assert_eq!(kept, expected, "life {life}");
        }
        assert_eq!(attempts, [5, 3, 5]);
    }
}
