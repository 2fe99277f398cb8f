//! Performs what a spool wants done: one [`Disk`] for each log of the shard, on whatever medium the log is kept.
//!
//! Appends wake the disk's task, which runs after the tasks that are ready already: so the appends of one turn of the shard
//! share a write. A completed write or sync asks the spool for more at once.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use futures_lite::FutureExt;
use glommio::timer::Timer;
use tokio::sync::oneshot;

use super::ages::Ages;
use super::event::{Broadcast, Event, keep_waker};
use super::handoff::{Handoff, JustAccepted, to_read};
use super::medium::{DmaPage, Medium, Opener, Place};
use super::meters::{LaneReading, LogReading, Meters};
use super::queue::Settling;
use super::read_back::{Batch, ReadBack, is_shortage, read_raw, read_records};
use super::{blocking, clock, quarantine};
use crate::delivery::{Report, Routed};
use crate::limits::{SPOOL_PAGE_SIZE, SPOOL_PAGES_MAX};
use crate::mail::MessageId;
use crate::spool::recovery::Recovered;
use crate::spool::{
    AppendError, Completion, Counters, Incoming, Io, IoFailure, LOOK_COUNT_MAX, Lane, Receiving, Slot, Spool,
    SpoolConfig,
};

/// The shortest wait for something that is due.
const TIMER_MIN: Duration = Duration::from_millis(1);

/// Reading back pauses for this long when the process lacks descriptors or memory.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);
/// How often somebody is told how deep the queue is, if that changes.
const DEPTH_INTERVAL: Duration = Duration::from_secs(10);
/// How long a clean end may take to make the last outcomes durable. A disk that does not answer would hold the process for ever; the
/// price of going is a second delivery.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a session learns whether its message was stored.
#[derive(Default)]
struct Ticket {
    outcome: Cell<Option<bool>>,
    waiter: RefCell<Option<Waker>>,
}

/// A message whose record is on its way.
struct Waiting {
    sequence: u64,
    ticket: Rc<Ticket>,
    /// Who gets it.
    routed: Routed,
    /// For its delivery straight from memory.
    message: Option<JustAccepted>,
    /// Since when, or somewhat before.
    since: Instant,
}

/// An I/O, for the log; in the order of [`super::meters::OPERATIONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Performed {
    Prepare,
    Write,
    Sync,
    Remove,
}

impl fmt::Display for Performed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Performed::Prepare => "prepare",
            Performed::Write => "write",
            Performed::Sync => "sync",
            Performed::Remove => "remove",
        })
    }
}

/// One log and the medium it is kept on.
pub struct Disk {
    medium: Medium,
    /// Where damaged octets are kept.
    damaged: PathBuf,
    spool: RefCell<Spool<DmaPage>>,
    handoff: Rc<Handoff>,
    meters: Rc<Meters>,
    ages: RefCell<Ages>,
    /// Its depth, when somebody was told of it, and when that was.
    told: Cell<(usize, Instant)>,
    /// In the order of their appends, which is the order in which the spool tells of them.
    waiting: RefCell<VecDeque<Waiting>>,
    /// What is tried again and has failed the last time.
    failing: RefCell<Vec<Performed>>,
    /// Octets of a segment.
    segment_size: u32,
    was_accepting: Cell<bool>,
    /// When [`Disk::oldest_wait`] was asked last.
    looked_at: Cell<Instant>,
    /// The end has come: nothing is read back any more.
    is_ended: Cell<bool>,
    /// Who waits for orders of the operator to be settled.
    settling: RefCell<Settling>,
    wanted: Event,
    progress: Broadcast,
    /// The backlog may have grown, or the delivery channel has room.
    backlog: Event,
}

impl Disk {
    /// A log as recovery left it. Nothing runs until [`Disk::run`].
    pub fn new(
        place: Place,
        damaged: PathBuf,
        mut recovered: Recovered,
        segment_size: u32,
        sync: bool,
        handoff: Rc<Handoff>,
        meters: Rc<Meters>,
    ) -> Rc<Disk> {
        let config =
            SpoolConfig { segment_size, sync, page_size: SPOOL_PAGE_SIZE, pages_max: SPOOL_PAGES_MAX };
        let make_page = Box::new(|| glommio::allocate_dma_buffer(SPOOL_PAGE_SIZE));
        let entropy = Box::new(super::random);
        let times = (clock::now(), clock::unix_now());
        // A clock that was wrong when the time was noted, or is now, delays nothing by more than the longest wait.
        recovered.name_lanes(handoff.lane_names());
        recovered.limit_waits(times.1.saturating_add(handoff.wait_max()));
        let spool = Spool::new(config, recovered, make_page, entropy, times);
        Rc::new(Disk {
            medium: Medium::new(place),
            damaged,
            spool: RefCell::new(spool),
            handoff,
            meters,
            ages: RefCell::new(Ages::new(times.1)),
            told: Cell::new((0, times.0)),
            waiting: RefCell::default(),
            failing: RefCell::default(),
            segment_size,
            was_accepting: Cell::new(true),
            looked_at: Cell::new(times.0),
            is_ended: Cell::new(false),
            settling: RefCell::default(),
            wanted: Event::default(),
            progress: Broadcast::default(),
            backlog: Event::default(),
        })
    }

    /// The log itself.
    pub fn spool(&self) -> &RefCell<Spool<DmaPage>> {
        &self.spool
    }

    /// The log's part of its message ids.
    pub fn log(&self) -> u32 {
        self.spool.borrow().log()
    }

    /// Messages that are not done.
    pub fn depth(&self) -> usize {
        self.spool.borrow().depth()
    }

    /// Is there room for a message of `size` octets?
    pub fn has_room(&self, size: u64) -> bool {
        self.spool.borrow().has_room(size)
    }

    /// How long the message that waits longest to be durable has waited. Too long by up to the time between two calls of this: in between
    /// nobody asks what time it is.
    pub fn oldest_wait(&self, now: Instant) -> Duration {
        self.looked_at.set(now);
        let waiting = self.waiting.borrow();
        waiting.front().map_or(Duration::ZERO, |oldest| now.saturating_duration_since(oldest.since))
    }

    /// Has the medium not failed for good?
    pub fn is_accepting(&self) -> bool {
        self.spool.borrow().is_accepting()
    }

    /// Serves the log for ever: performs its I/O, wakes at its timeouts, feeds its backlog to the deliveries.
    pub fn run(self: &Rc<Self>) {
        glommio::spawn_local(Rc::clone(self).perform_all()).detach();
        glommio::spawn_local(Rc::clone(self).feed_all()).detach();
    }

    /// Waits until the first segment is ready.
    pub async fn ready(&self) {
        while !self.spool.borrow().is_ready() {
            self.progress.wait().await;
        }
    }

    async fn perform_all(self: Rc<Self>) {
        let mut timer: Option<(Instant, Timer)> = None;
        loop {
            self.turn();
            // What is overdue may wait for something else than time, memory or a segment: it is asked for again soon, not at
            // once, or this task would never let another run.
            let soonest = clock::now() + TIMER_MIN;
            let due = self.spool.borrow().poll_timeout().map(|due| due.max(soonest));
            // A timer that fires too early costs one turn; one for each turn would cost more.
            if let Some(due) = due
                && timer.as_ref().is_none_or(|(at, _)| *at > due)
            {
                timer = Some((due, Timer::new(due.saturating_duration_since(clock::now()))));
            }
            poll_fn(|context| {
                if let Some((_, running)) = &mut timer
                    && running.poll(context).is_ready()
                {
                    timer = None;
                    self.backlog.set();
                    return Poll::Ready(());
                }
                self.wanted.poll(context)
            })
            .await;
        }
    }

    /// Takes what the spool has to tell and starts what it wants done.
    fn turn(self: &Rc<Self>) {
        let mut spool = self.spool.borrow_mut();
        let mut stored_count = 0;
        while let Some((sequence, is_stored)) = spool.poll_stored() {
            stored_count += u64::from(is_stored);
            let waiting = self.waiting.borrow_mut().pop_front().expect("every append waits");
            assert!(waiting.sequence == sequence, "the spool tells in the order of appends");
            match waiting.message {
                message if is_stored => self.handoff.offer(&mut spool, sequence, waiting.routed, message),
                Some(message) => self.handoff.drop_kept(&message),
                None => {}
            }
            waiting.ticket.outcome.set(Some(is_stored));
            if let Some(waiter) = waiting.ticket.waiter.borrow_mut().take() {
                waiter.wake();
            }
        }
        drop(spool);
        self.meters.committed(stored_count);
        let now = clock::now();
        // A task runs at once when it is spawned, up to its first wait: an I/O that fails before that is told to the spool.
        loop {
            let io = self.spool.borrow_mut().poll_io(now);
            let Some(io) = io else { break };
            glommio::spawn_local(Rc::clone(self).perform(io)).detach();
        }
        loop {
            let damaged = self.spool.borrow_mut().poll_damaged();
            let Some(sequence) = damaged else { break };
            glommio::spawn_local(Rc::clone(self).quarantine(sequence)).detach();
        }
        self.settling.borrow_mut().tell(self.spool.borrow().orders());
        self.tell_readiness();
        self.feed();
    }

    async fn perform(self: Rc<Self>, io: Io<DmaPage>) {
        let completion = match io {
            Io::Prepare { slot, is_new, size, header } => {
                let result = self.medium.prepare(slot, is_new, size, header).await;
                // Sealed segments are written no more.
                self.medium.close_all_but(|slot| self.spool.borrow().is_open(slot));
                Completion::Prepared { slot, result: self.judge(Performed::Prepare, slot, result) }
            }
            Io::Read { places } => {
                let opener = self.medium.opener();
                Completion::Read { records: blocking(move || read_records(&opener, &places)).await }
            }
            Io::Write { slot, offset, size, page } => {
                let begun = clock::now();
                let result = self.medium.write(slot, offset, size, page).await;
                self.meters.write.record(begun.elapsed());
                Completion::Written { slot, offset, result: self.judge(Performed::Write, slot, result) }
            }
            Io::Sync { slot } => {
                let begun = clock::now();
                let result = self.medium.sync(slot).await;
                self.meters.sync.record(begun.elapsed());
                Completion::Synced { slot, result: self.judge(Performed::Sync, slot, result) }
            }
            Io::Remove { slot } => {
                let result = self.medium.remove(slot).await;
                Completion::Removed { slot, result: self.judge(Performed::Remove, slot, result) }
            }
        };
        // What has failed is tried again after a while, and a preparation not before a removal has ended: the timer is set for
        // that though nobody asks for anything meanwhile.
        if !matches!(
            &completion,
            Completion::Written { result: Ok(()), .. } | Completion::Synced { result: Ok(()), .. }
        ) {
            self.wanted.set();
        }
        self.spool.borrow_mut().handle_io(completion, clock::now());
        self.turn();
        self.progress.set();
    }

    /// Says what failed, here and only here, and as what the spool is to take it.
    fn judge(&self, what: Performed, slot: Slot, result: io::Result<()>) -> Result<(), IoFailure> {
        let mut failing = self.failing.borrow_mut();
        let is_known = failing.contains(&what);
        let segment = self.medium.name(slot);
        let Err(error) = result else {
            if is_known {
                failing.retain(|other| *other != what);
                tracing::info!(%segment, "can {what} a segment again");
            }
            return Ok(());
        };
        self.meters.io_failed(what as usize);
        // What is tried every second is told once.
        if matches!(what, Performed::Prepare | Performed::Remove) && !is_known {
            failing.push(what);
        }
        let is_space = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match what {
            _ if is_known => {}
            Performed::Prepare if is_space => {
                tracing::warn!(%segment, %error, "cannot prepare a segment: new mail is deferred until there is room");
            }
            Performed::Prepare => {
                tracing::error!(%segment, %error, "cannot prepare a segment: no new mail is taken without one; it is tried every second");
            }
            Performed::Remove => {
                tracing::error!(%segment, %error, "cannot remove a segment: it is tried every second, and no other is prepared meanwhile");
            }
            Performed::Write | Performed::Sync => {
                tracing::error!(%segment, %error, "cannot {what} a segment: the log goes on in another");
            }
        }
        Err(if is_space { IoFailure::NoSpace } else { IoFailure::Failed })
    }

    /// Says when the log begins and ceases to take mail.
    fn tell_readiness(&self) {
        let is_accepting = self.is_accepting();
        if self.was_accepting.replace(is_accepting) != is_accepting {
            match is_accepting {
                true => tracing::info!(log = %self.medium, "ready again: new mail is taken"),
                false => {
                    tracing::error!(log = %self.medium, "not ready: the medium fails, and new mail is answered 421")
                }
            }
        }
    }

    /// Appends a part of a message's content, waiting for memory as long as it takes.
    pub async fn append_piece(&self, receiving: &mut Receiving, content: &[u8]) -> Result<(), AppendError> {
        loop {
            let appended = self.spool.borrow_mut().append_piece(receiving, content);
            self.wanted.set();
            match appended {
                Err(AppendError::Busy) => self.progress.wait().await,
                other => return other,
            }
        }
    }

    /// Appends a message and waits until it is durable. This is where a 250 comes from: it is the one way to learn that a
    /// message was stored.
    pub async fn store(
        &self,
        receiving: &mut Receiving,
        mut message: JustAccepted,
        mut write_trace: impl FnMut(MessageId) -> Vec<u8>,
    ) -> Result<MessageId, AppendError> {
        let is_small = receiving.is_empty();
        let id = loop {
            let incoming =
                Incoming { envelope: &message.envelope, arrival: &message.arrival, tail: &message.tail };
            let appended = self.spool.borrow_mut().append_message(receiving, incoming, &mut write_trace);
            self.wanted.set();
            match appended {
                Err(AppendError::Busy) => self.progress.wait().await,
                Err(error) => return Err(error),
                Ok((id, trace)) => {
                    message.trace = trace;
                    break id;
                }
            }
        };
        let ticket = Rc::new(Ticket::default());
        let routed = self.handoff.route(&message.envelope, &message.arrival);
        let message = (is_small && self.handoff.keep(&message)).then_some(message);
        self.waiting.borrow_mut().push_back(Waiting {
            sequence: id.sequence,
            ticket: ticket.clone(),
            routed,
            message,
            since: self.looked_at.get(),
        });
        let is_stored = poll_fn(|context| match ticket.outcome.get() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                keep_waker(&mut ticket.waiter.borrow_mut(), context);
                Poll::Pending
            }
        })
        .await;
        if is_stored { Ok(id) } else { Err(AppendError::Failed) }
    }

    /// The message will not come.
    pub fn abandon(&self, receiving: &mut Receiving) {
        // It may have held segments that can go now.
        if !receiving.is_empty() {
            self.wanted.set();
        }
        self.spool.borrow_mut().abandon(receiving);
    }

    /// What an attempt has brought.
    pub fn handle_report(&self, report: &Report) {
        let mut spool = self.spool.borrow_mut();
        self.handoff.handle_report(&mut spool, report, (clock::now(), clock::unix_now()));
        drop(spool);
        self.wanted.set();
        self.feed();
    }

    /// For another thread: opens the segments there are now.
    pub fn opener(&self) -> Opener {
        self.medium.opener()
    }

    /// Has orders of the operator given. `settled` is told when they are recorded, and how many orders could not be meanwhile.
    pub fn order<R>(&self, settled: oneshot::Sender<u64>, give: impl FnOnce(&mut Spool<DmaPage>) -> R) -> R {
        let mut spool = self.spool.borrow_mut();
        let given = give(&mut spool);
        spool.hurry_orders(clock::now());
        self.settling.borrow_mut().wait(spool.orders(), settled);
        drop(spool);
        self.wanted.set();
        self.feed();
        given
    }

    /// Looks whether the backlog can go on.
    pub fn feed(&self) {
        if self.handoff.has_work(&self.spool.borrow()) {
            self.backlog.set();
        }
    }

    /// Reads messages of the backlog back and offers them to the deliveries.
    async fn feed_all(self: Rc<Self>) {
        while !self.is_ended.get() {
            let is_more = self.handoff.tend(&mut self.spool.borrow_mut(), clock::now(), clock::unix_now());
            let batch = self.handoff.take_backlog(&mut self.spool.borrow_mut());
            if is_more && batch.messages.is_empty() {
                self.wanted.set();
                glommio::executor().yield_now().await;
                continue;
            }
            if batch.messages.is_empty() {
                self.backlog.wait().await;
                continue;
            }
            let (opener, new_count) = (self.medium.opener(), batch.new_count);
            let messages = blocking(move || batch.read(&opener)).await;
            let is_short = self.offer_again(messages, new_count);
            self.wanted.set();
            if is_short {
                Timer::new(SHORTAGE_PAUSE).await;
            }
        }
    }

    /// Offers what was read back, of which the first `new_count` have just come; true if some could not be read for lack of
    /// descriptors or memory.
    fn offer_again(&self, messages: Vec<ReadBack>, new_count: usize) -> bool {
        let mut is_short = false;
        let mut spool = self.spool.borrow_mut();
        for (n, ReadBack { sequence, lane, location, message }) in messages.into_iter().enumerate() {
            // It was moved meanwhile, and its segment used again.
            let has_moved = spool.entry(sequence).is_none_or(|entry| entry.location != location);
            match message {
                Ok(message) => {
                    if spool.was_recovered(sequence) {
                        let came = message.arrival.unix_time;
                        self.ages.borrow_mut().learn(sequence, came, clock::unix_now());
                    }
                    self.handoff.offer_again(&mut spool, (sequence, lane), message, n < new_count);
                }
                Err(error) if is_shortage(&error) => {
                    is_short = true;
                    self.handoff.take_back(&mut spool, sequence, lane);
                }
                Err(_) if has_moved => self.handoff.take_back(&mut spool, sequence, lane),
                Err(error) => {
                    let id = MessageId { log: spool.log(), sequence };
                    tracing::error!(message_id = %id, %error, "cannot read a message back");
                    let times = (clock::now(), clock::unix_now());
                    self.handoff.handle_unreadable(&mut spool, (sequence, lane), times);
                }
            }
        }
        is_short
    }

    /// Keeps the octets of a message that has to leave its segment and whose records are damaged, and gives it up.
    async fn quarantine(self: Rc<Self>, sequence: u64) {
        let id = MessageId { log: self.log(), sequence };
        let Some(places) = self.spool.borrow().places(sequence) else { return };
        let Some(wanted) = to_read(&self.spool.borrow(), sequence, Lane::UNROUTED) else { return };
        let (opener, folder, name) = (self.medium.opener(), self.damaged.clone(), format!("{id}.octets"));
        let file = folder.join(&name);
        let kept = blocking(move || {
            // Read once more: what is only hard to read is not damaged, and is not ours to give up.
            match (Batch { messages: vec![wanted], ..Batch::default() }).verify(&opener) {
                Ok(()) => return Ok(false),
                Err(error) if is_shortage(&error) => return Err(error),
                Err(_) => {}
            }
            // One record in memory at a time.
            let parts = places.iter().map(|place| read_raw(&opener, place));
            quarantine::keep(&folder, &name, parts).map(|()| true)
        });
        match kept.await {
            Ok(true) => {
                if self.spool.borrow_mut().discard(sequence, clock::now()) {
                    tracing::error!(message_id = %id, file = %file.display(), "a message is damaged and is given up; its octets are kept");
                }
                self.wanted.set();
            }
            Ok(false) => {
                tracing::warn!(message_id = %id, "a message could be read at the second attempt only");
            }
            Err(error) => {
                tracing::error!(message_id = %id, file = %file.display(), %error, "cannot keep the octets of a damaged message: it stays where it is");
            }
        }
    }

    /// Makes everything appended so far durable, outcomes too, or finds that it cannot be.
    pub async fn finish(&self) {
        self.is_ended.set(true);
        let until = clock::now() + FINISH_TIMEOUT;
        loop {
            self.spool.borrow_mut().finish(clock::now());
            if self.spool.borrow().is_idle() || !self.is_accepting() {
                return self.log_counters();
            }
            if clock::now() >= until {
                tracing::warn!(log = %self.medium, "the last outcomes could not be made durable: they may be delivered again");
                return;
            }
            self.wanted.set();
            let retry = async {
                Timer::new(Duration::from_millis(20)).await;
            };
            self.progress.wait().or(retry).await;
        }
    }
}

impl Disk {
    /// Looks what time it is, several times a second: of ages, and for who is told of the queue's depth.
    pub fn note_time(&self, now: Instant) {
        let spool = self.spool.borrow();
        let (next, oldest) = spool.numbers();
        self.ages.borrow_mut().note(next, oldest, clock::unix_now());
        let (depth, (told, told_at)) = (spool.depth(), self.told.get());
        if depth != told && now.saturating_duration_since(told_at) >= DEPTH_INTERVAL {
            self.told.set((depth, now));
            self.meters.queue_depth(spool.log(), depth);
        }
    }

    /// What there is to say of the log.
    pub fn read(&self) -> LogReading {
        let mut spool = self.spool.borrow_mut();
        let ages = self.ages.borrow();
        let (segments, live_size) = spool.disk_use();
        let handed_off = self.handoff.handed_off(spool.log(), spool.lanes_count());
        // Bounded for all lanes together. What one leaves of its part is the next ones'.
        let (mut looks, count) = (LOOK_COUNT_MAX, handed_off.len());
        let lanes = handed_off.into_iter().enumerate().map(|(n, (handed_off, oldest_of_them))| {
            let lane = Lane(n as u16);
            let part = looks / (count - n);
            let mut left = part;
            let oldest = spool.oldest_in(lane, &mut left).into_iter().chain(oldest_of_them).min();
            looks -= part - left;
            LaneReading {
                target: spool.lane_name(lane).clone(),
                waiting: spool.waiting_in(lane),
                handed_off,
                oldest: oldest.and_then(|sequence| ages.time_of(sequence)),
            }
        });
        LogReading {
            lanes: lanes.collect(),
            depth: spool.depth(),
            held: spool.held_count(),
            counters: spool.counters(),
            live_size,
            segments,
            free_segments: spool.free_segments_count(),
            segment_size: self.segment_size,
        }
    }

    /// The budget of what was just accepted and read back, octets: its name, how much is used, and how much may be.
    pub fn cache_use(&self) -> (&'static str, usize, usize) {
        let (used, max) = self.handoff.cache_use();
        ("cache", used, max)
    }

    /// What the log has done, for who reads the log.
    fn log_counters(&self) {
        let spool = self.spool.borrow();
        let Counters { stored, stored_size, writes, written_size, syncs, carried } = spool.counters();
        let depth = spool.depth();
        tracing::info!(log = %self.medium, depth, stored, stored_size, writes, written_size, syncs, carried, "log closed");
    }
}
