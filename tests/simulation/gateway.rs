//! The driver of both cores without a runtime: the sans-I/O twin of `shard/connection.rs`, `shard/disk.rs` and `shard/handoff.rs`.
//!
//! It treats effects and completions exactly as they do, in the same order; what they await it keeps as a state, and what they ask of
//! the world it puts into [`Gateway::poll_out`]. Where one of them changes, this changes with it.

mod connection;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use incoming::mail::{Arrival, Envelope, Phase};
use incoming::smtp::SessionConfig;
use incoming::spool::format::{Made, Order, OrderKind};
use incoming::spool::{Completion, Io, IoFailure, Lane, Obeyed, Page, RecordPlace, Slot, Spool, SpoolConfig};

use crate::disk::{self, Part, Recovered, Whole};
use crate::handoff::{Content, Handoff, Job};
use crate::medium::{InFlight, Medium};
use crate::random::Random;
use connection::Served;

const BLOCK: usize = 4096;
/// The shortest wait for something that is due.
const TIMER_MIN: Duration = Duration::from_millis(1);

/// The virtual clocks: both advance together.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub base: Instant,
    /// Since `base`.
    pub micros: u64,
}

impl Clock {
    pub fn now(&self) -> Instant {
        self.base + Duration::from_micros(self.micros)
    }

    pub fn unix_now(&self) -> u64 {
        1_800_000_000 + self.micros / 1_000_000
    }
}

/// A page that is counted as long as somebody holds it.
#[derive(Debug)]
pub struct CountedPage {
    octets: Vec<u8>,
    live: Rc<Cell<usize>>,
}

impl Page for CountedPage {
    fn octets(&self) -> &[u8] {
        &self.octets
    }

    fn octets_mut(&mut self) -> &mut [u8] {
        &mut self.octets
    }
}

impl Drop for CountedPage {
    fn drop(&mut self) {
        self.live.set(self.live.get() - 1);
    }
}

/// An I/O being performed.
pub enum Op {
    Prepare {
        slot: Slot,
        is_new: bool,
        size: u32,
        header: Vec<u8>,
    },
    /// Octets from `done` to `size` of the page are still to be written.
    Write {
        slot: Slot,
        offset: u32,
        size: usize,
        done: usize,
        page: CountedPage,
    },
    /// `covered`: see [`Medium::begin_sync`].
    Sync {
        slot: Slot,
        covered: u64,
    },
    Remove {
        slot: Slot,
    },
    /// Records of messages that are to be moved.
    Read {
        places: Vec<RecordPlace>,
    },
    /// Its file is not open: it has failed already.
    Failed(Completion),
}

impl Op {
    /// What of it a crash may find done.
    pub fn in_flight(&self) -> Option<InFlight<'_>> {
        Some(match self {
            Op::Prepare { slot, is_new, size, header } => {
                InFlight::Prepare { slot: *slot, is_new: *is_new, size: *size as usize, header }
            }
            Op::Write { slot, offset, size, done, page } => {
                let octets = &page.octets()[*done..*size];
                InFlight::Write { slot: *slot, offset: *offset as usize + done, octets }
            }
            Op::Remove { slot } => InFlight::Remove { slot: *slot },
            Op::Sync { .. } | Op::Read { .. } | Op::Failed(_) => return None,
        })
    }
}

/// What the world is to do, or to know.
pub enum Out {
    /// To be ended by [`Gateway::end_io`] after a while.
    Start(Op),
    /// To the client.
    Replies(u32, Vec<u8>),
    /// The connection is closed.
    Closed(u32),
    /// Messages of the backlog to be read back, then [`Gateway::end_read`].
    Read(Vec<u64>),
    /// A message is durable, or will never be.
    Stored { sequence: u64, is_stored: bool, recipient: String, parts: Vec<Part> },
    /// [`Gateway::turn`] is to be called when everything has had its turn that is ready.
    Wanted,
    /// A job may be in the channel.
    Offered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    No,
    Drain,
    Abort,
}

/// A message as its session gave it.
pub struct JustAccepted {
    pub envelope: Box<Envelope>,
    pub arrival: Arrival,
    pub trace: Vec<u8>,
    pub tail: Vec<u8>,
}

struct Waiting {
    sequence: u64,
    connection: u32,
    message: Option<JustAccepted>,
    /// Its first.
    recipient: String,
}

/// How a gateway is made.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub spool: SpoolConfig,
    pub message_size_max: usize,
    pub content_memory_max: usize,
    pub cache_size: usize,
    pub channel_size: usize,
    pub depth_max: usize,
}

/// One shard with one log. See the module.
pub struct Gateway {
    plan: Plan,
    /// The end has begun: a shard hears no orders any more.
    pub is_finishing: bool,
    config: Arc<SessionConfig>,
    spool: Spool<CountedPage>,
    pages: Rc<Cell<usize>>,
    files: BTreeSet<Slot>,
    connections: BTreeMap<u32, Served>,
    waiting: VecDeque<Waiting>,
    pub handoff: Handoff,
    is_reading: bool,
    content_memory: usize,
    ending: Ending,
    timer: Option<Instant>,
    out: VecDeque<Out>,
}

impl Gateway {
    pub fn new(plan: Plan, recovered: Recovered, mut entropy: Random, clock: &Clock) -> Self {
        let pages = Rc::new(Cell::new(0));
        let (live, page_size, pages_max) = (pages.clone(), plan.spool.page_size, plan.spool.pages_max);
        let make_page = move || {
            live.set(live.get() + 1);
            assert!(live.get() <= pages_max, "{} pages of {pages_max} are in memory", live.get());
            // What an allocator gives is not zeros.
            CountedPage { octets: vec![0xEE; page_size], live: live.clone() }
        };
        let times = (clock.now(), clock.unix_now());
        let spool =
            Spool::new(plan.spool, recovered, Box::new(make_page), Box::new(move || entropy.next()), times);
        let phases = [Phase::Mail, Phase::Recipient, Phase::Data];
        let config = SessionConfig {
            message_size_max: plan.message_size_max as u64,
            piece_size: 4 << 10,
            phases: phases
                .into_iter()
                .map(incoming::mail::Phases::of)
                .fold(Default::default(), |all, one| all | one),
            ..SessionConfig::new("mx.example")
        };
        Gateway {
            is_finishing: false,
            plan,
            config: Arc::new(config),
            spool,
            pages,
            files: BTreeSet::new(),
            connections: BTreeMap::new(),
            waiting: VecDeque::new(),
            handoff: Handoff::new(plan.cache_size, plan.channel_size),
            is_reading: false,
            content_memory: 0,
            ending: Ending::No,
            timer: None,
            out: VecDeque::new(),
        }
    }

    pub fn spool(&self) -> &Spool<CountedPage> {
        &self.spool
    }

    /// Pages that somebody holds.
    pub fn pages(&self) -> usize {
        self.pages.get()
    }

    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    pub fn poll_out(&mut self) -> Option<Out> {
        self.out.pop_front()
    }

    /// Takes what the spool has to tell and starts what it wants done.
    pub fn turn(&mut self, medium: &Medium, clock: &Clock) {
        let mut told = Vec::new();
        while let Some((sequence, is_stored)) = self.spool.poll_stored() {
            let waiting = self.waiting.pop_front().expect("every append waits");
            assert!(waiting.sequence == sequence, "the spool tells in the order of appends");
            let parts = disk::parts_of(&self.spool, sequence).unwrap_or_default();
            self.out.push_back(Out::Stored { sequence, is_stored, recipient: waiting.recipient, parts });
            match waiting.message {
                message if is_stored => self.handoff.offer(&mut self.spool, sequence, message),
                Some(message) => self.handoff.drop_kept(&message),
                None => {}
            }
            if let Some(served) = self.connections.get_mut(&waiting.connection) {
                served.outcome = Some(is_stored);
            }
            told.push(waiting.connection);
        }
        while let Some(io) = self.spool.poll_io(clock.now()) {
            let op = self.start(io, medium);
            self.out.push_back(Out::Start(op));
        }
        self.feed(clock);
        told.into_iter().for_each(|connection| self.run(connection, clock));
        self.out.push_back(Out::Offered);
    }

    fn start(&mut self, io: Io<CountedPage>, medium: &Medium) -> Op {
        match io {
            Io::Prepare { slot, is_new, size, header } => Op::Prepare { slot, is_new, size, header },
            Io::Write { slot, offset, size, page } if self.files.contains(&slot) => {
                assert!((offset as usize).is_multiple_of(BLOCK) && (size as usize).is_multiple_of(BLOCK));
                Op::Write { slot, offset, size: size as usize, done: 0, page }
            }
            Io::Write { slot, offset, .. } => {
                Op::Failed(Completion::Written { slot, offset, result: Err(IoFailure::Failed) })
            }
            Io::Sync { slot } if self.files.contains(&slot) => {
                Op::Sync { slot, covered: medium.begin_sync() }
            }
            Io::Sync { slot } => Op::Failed(Completion::Synced { slot, result: Err(IoFailure::Failed) }),
            Io::Remove { slot } => {
                self.files.remove(&slot);
                Op::Remove { slot }
            }
            Io::Read { places } => Op::Read { places },
        }
    }

    /// An I/O has ended, or is gone on with after a short write.
    pub fn end_io(&mut self, op: Op, medium: &mut Medium, clock: &Clock) {
        let completion = match op {
            Op::Prepare { slot, is_new, size, header } => {
                let result = medium.prepare(slot, is_new, size as usize, &header);
                if result.is_ok() {
                    self.files.insert(slot);
                    let spool = &self.spool;
                    self.files.retain(|other| *other == slot || spool.is_open(*other));
                }
                Completion::Prepared { slot, result }
            }
            Op::Write { slot, offset, size, done, page } => {
                let octets = &page.octets()[done..size];
                let written = medium.write(slot, offset as usize + done, octets);
                let result = match written {
                    Ok(written) if written == octets.len() => Ok(()),
                    // Direct I/O goes on at block boundaries only.
                    Ok(written) if written >= BLOCK => {
                        let done = done + written / BLOCK * BLOCK;
                        return self.out.push_back(Out::Start(Op::Write { slot, offset, size, done, page }));
                    }
                    Ok(_) => Err(IoFailure::Failed),
                    Err(why) => Err(why),
                };
                drop(page);
                Completion::Written { slot, offset, result }
            }
            Op::Sync { slot, covered } => Completion::Synced { slot, result: medium.sync(slot, covered) },
            Op::Remove { slot } => Completion::Removed { slot, result: medium.remove(slot) },
            Op::Read { places } => {
                let read = |place: &RecordPlace| {
                    let octets = medium.seen(place.slot)?.get(place.offset as usize..)?;
                    octets.get(..place.size as usize).map(<[u8]>::to_vec)
                };
                Completion::Read { records: places.iter().map(read).collect() }
            }
            Op::Failed(completion) => completion,
        };
        // What has failed is tried again after a while, and a preparation not before a removal has ended: the timer is set for that.
        if !matches!(
            &completion,
            Completion::Written { result: Ok(()), .. } | Completion::Synced { result: Ok(()), .. }
        ) {
            self.out.push_back(Out::Wanted);
        }
        self.spool.handle_io(completion, clock.now());
        self.turn(medium, clock);
        // Whoever waits for memory tries again.
        let waiting: Vec<u32> = self
            .connections
            .iter()
            .filter(|(_, served)| served.waits_for_memory())
            .map(|(key, _)| *key)
            .collect();
        waiting.into_iter().for_each(|connection| self.run(connection, clock));
    }

    /// When [`Gateway::handle_timer`] is due. To be asked after every [`Gateway::turn`].
    pub fn poll_timer(&mut self, clock: &Clock) -> Option<Instant> {
        let soonest = clock.now() + TIMER_MIN;
        let due = self.spool.poll_timeout().map(|due| due.max(soonest))?;
        if self.timer.is_some_and(|timer| timer <= due) {
            return None;
        }
        self.timer = Some(due);
        Some(due)
    }

    /// The timer that was asked for has fired.
    pub fn handle_timer(&mut self, medium: &Medium, clock: &Clock) {
        if self.timer.is_some_and(|timer| timer <= clock.now()) {
            self.timer = None;
        }
        self.turn(medium, clock);
    }

    /// Reads messages of the backlog back, one batch at a time.
    pub fn feed(&mut self, clock: &Clock) {
        if self.is_reading {
            return;
        }
        let batch = self.handoff.take_backlog(&mut self.spool, clock.now());
        if !batch.is_empty() {
            self.is_reading = true;
            self.out.push_back(Out::Read(batch));
        }
    }

    /// A batch was read: offers what could be.
    pub fn end_read(&mut self, batch: Vec<(u64, Option<Whole>)>, clock: &Clock) {
        self.is_reading = false;
        for (sequence, whole) in batch {
            match whole {
                Some(whole) => self.handoff.offer_again(&mut self.spool, sequence, whole),
                None => {
                    let outcomes = self.handoff.unreadable(&self.spool, sequence, clock.unix_now());
                    self.spool.handle_outcome(
                        sequence,
                        Lane::UNROUTED,
                        Made::default(),
                        &outcomes,
                        (clock.now(), clock.unix_now()),
                    );
                }
            }
        }
        self.out.push_back(Out::Wanted);
        self.out.push_back(Out::Offered);
        self.feed(clock);
    }

    /// What a delivery reads of a job's message; `None` where it is damaged.
    pub fn read_job(&self, job: &Job, medium: &Medium) -> Option<Whole> {
        match &job.content {
            Content::Memory(whole) => Some(Whole::clone(whole)),
            Content::Stored => self.read(job.sequence, medium),
        }
    }

    /// A message as it is on the medium.
    pub fn read(&self, sequence: u64, medium: &Medium) -> Option<Whole> {
        let parts = disk::parts_of(&self.spool, sequence).expect("what was handed off is in the ledger");
        disk::read(&parts, sequence, |slot| medium.seen(slot))
    }

    /// What an attempt has brought.
    pub fn handle_report(&mut self, sequence: u64, outcomes: &[(u32, bool)], clock: &Clock) {
        let outcomes = self.handoff.judge(&self.spool, sequence, outcomes, clock.unix_now());
        self.spool.handle_outcome(
            sequence,
            Lane::UNROUTED,
            Made::default(),
            &outcomes,
            (clock.now(), clock.unix_now()),
        );
        self.out.push_back(Out::Wanted);
        self.feed(clock);
    }

    /// The operator orders something of a message.
    pub fn order(&mut self, sequence: u64, kind: OrderKind, clock: &Clock) -> Obeyed {
        let order = Order { kind, unix_millis: clock.micros / 1000, by: "operator".into(), note: "".into() };
        let obeyed = self.spool.order(sequence, None, &Arc::new(order), clock.now());
        self.spool.hurry_orders(clock.now());
        self.out.push_back(Out::Wanted);
        self.feed(clock);
        obeyed
    }

    /// One round of a clean end. True when it is over.
    pub fn finish(&mut self, medium: &Medium, clock: &Clock) -> bool {
        self.is_finishing = true;
        self.spool.finish(clock.now());
        if self.spool.is_idle() || !self.spool.is_accepting() {
            return true;
        }
        self.turn(medium, clock);
        false
    }
}
