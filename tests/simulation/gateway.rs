//! The driver of both cores without a runtime: the sans-I/O twin of `shard/connection.rs`, `shard/disk.rs` and `shard/handoff.rs`.
//!
//! It treats effects and completions exactly as they do, in the same order; what they await it keeps as a state, and what they ask of
//! the world it puts into [`Gateway::poll_out`]. Where one of them changes, this changes with it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use incoming::mail::{Arrival, Envelope, ForwardPath, MessageId, Phase, Refusal, Status};
use incoming::smtp::{BareLineEnds, Effect, NotStored, Session, SessionConfig, Submission, format_date};
use incoming::spool::{AppendError, Completion, Incoming, Io, IoFailure, Page, Receiving, Slot, Spool, SpoolConfig};

use crate::client::REFUSED_DOMAIN;
use crate::disk::{self, Part, Recovered, Whole};
use crate::handoff::{Content, Handoff, Job};
use crate::medium::{InFlight, Medium};
use crate::random::Random;

/// What one receive takes at most, octets.
const SCRATCH_SIZE: usize = 64 << 10;
/// The smallest piece handed on early, octets.
const PIECE_SIZE_MIN: usize = 1 << 10;
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
    Prepare { slot: Slot, is_new: bool, size: u32, header: Vec<u8> },
    /// Octets from `done` to `size` of the page are still to be written.
    Write { slot: Slot, offset: u32, size: usize, done: usize, page: CountedPage },
    /// `covered`: see [`Medium::begin_sync`].
    Sync { slot: Slot, covered: u64 },
    Remove { slot: Slot },
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
            Op::Sync { .. } | Op::Failed(_) => return None,
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

/// What a connection's task awaits.
enum Doing {
    Receiving,
    /// Memory for a piece.
    Appending(Vec<u8>),
    /// Memory for a message; whether it is kept for its delivery.
    Storing { message: JustAccepted, is_small: bool },
    /// The sync.
    Waiting,
}

struct Served {
    session: Session,
    receiving: Receiving,
    replies: Vec<u8>,
    input: Vec<u8>,
    counted: usize,
    told: Ending,
    doing: Doing,
    /// Of the message that is being stored.
    sequence: u64,
    outcome: Option<bool>,
    /// Sent by the client and not received.
    socket: VecDeque<u8>,
    has_end: bool,
    is_broken: bool,
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
        let spool = Spool::new(plan.spool, recovered, Box::new(make_page), Box::new(move || entropy.next()), times);
        let phases = [Phase::Mail, Phase::Recipient, Phase::Data];
        let config = SessionConfig {
            message_size_max: plan.message_size_max as u64,
            piece_size: 4 << 10,
            phases: phases.into_iter().map(incoming::mail::Phases::of).fold(Default::default(), |all, one| all | one),
            ..SessionConfig::new("mx.example")
        };
        Gateway {
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

    // accept.rs

    /// A client has connected.
    pub fn connect(&mut self, connection: u32, peer: SocketAddr, clock: &Clock) {
        if self.ending != Ending::No || !self.spool.is_accepting() {
            self.out.push_back(Out::Replies(connection, b"421 4.3.2 Try again later\r\n".to_vec()));
            self.out.push_back(Out::Closed(connection));
            return;
        }
        let mut replies = Vec::new();
        let session = Session::new(self.config.clone(), peer, BareLineEnds::Refuse, clock.now(), &mut replies);
        let served = Served {
            session,
            receiving: Receiving::default(),
            replies,
            input: Vec::new(),
            counted: 0,
            told: Ending::No,
            doing: Doing::Receiving,
            sequence: 0,
            outcome: None,
            socket: VecDeque::new(),
            has_end: false,
            is_broken: false,
        };
        self.connections.insert(connection, served);
        self.run(connection, clock);
    }

    /// Octets from a client; none: it sends no more.
    pub fn receive(&mut self, connection: u32, octets: &[u8], clock: &Clock) {
        let Some(served) = self.connections.get_mut(&connection) else { return };
        served.socket.extend(octets);
        served.has_end |= octets.is_empty();
        self.run(connection, clock);
    }

    /// The client has torn its connection down. `is_lost`: with what was not received.
    pub fn reset(&mut self, connection: u32, is_lost: bool, clock: &Clock) {
        let Some(served) = self.connections.get_mut(&connection) else { return };
        served.is_broken = true;
        if is_lost {
            served.socket.clear();
        }
        self.run(connection, clock);
    }

    /// The shard ends, or begins to.
    pub fn end(&mut self, ending: Ending, clock: &Clock) {
        self.ending = ending;
        self.run_all(clock);
    }

    /// When [`Gateway::handle_time`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let receiving = self.connections.values().filter(|served| matches!(served.doing, Doing::Receiving));
        receiving.map(|served| served.session.deadline()).min()
    }

    /// Deadlines of connections may have passed.
    pub fn handle_time(&mut self, clock: &Clock) {
        self.run_all(clock);
    }

    fn run_all(&mut self, clock: &Clock) {
        let connections: Vec<u32> = self.connections.keys().copied().collect();
        connections.into_iter().for_each(|connection| self.run(connection, clock));
    }

    // connection.rs

    fn run(&mut self, connection: u32, clock: &Clock) {
        let Some(mut served) = self.connections.remove(&connection) else { return };
        if self.serve(connection, &mut served, clock).is_some() {
            self.connections.insert(connection, served);
            return;
        }
        self.spool.abandon(&mut served.receiving);
        self.content_memory -= served.counted;
        self.out.push_back(Out::Closed(connection));
    }

    /// `Some`: it waits; `None`: the connection has ended.
    fn serve(&mut self, connection: u32, served: &mut Served, clock: &Clock) -> Option<()> {
        for _ in 0..100_000 {
            match std::mem::replace(&mut served.doing, Doing::Receiving) {
                Doing::Receiving => {}
                Doing::Appending(piece) => self.append(served, piece, clock),
                Doing::Storing { message, is_small } => self.store(connection, served, message, is_small, clock),
                Doing::Waiting => match served.outcome.take() {
                    None => served.doing = Doing::Waiting,
                    Some(is_stored) => {
                        let sequence = served.sequence;
                        let id = MessageId { log: self.spool.log(), sequence };
                        self.conclude(served, if is_stored { Ok(id) } else { Err(AppendError::Failed) }, clock);
                    }
                },
            }
            if !matches!(served.doing, Doing::Receiving) {
                return Some(());
            }
            if let Some(effect) = served.session.poll_effect() {
                match effect {
                    Effect::Check(phase) => {
                        let verdict = self.check(&served.session, phase);
                        served.session.handle_verdict(verdict, clock.now(), &mut served.replies);
                    }
                    Effect::Abandon => self.spool.abandon(&mut served.receiving),
                    Effect::Piece(piece) => {
                        self.write_replies(connection, served)?;
                        served.doing = Doing::Appending(piece);
                    }
                    Effect::Store(submission) => {
                        self.write_replies(connection, served)?;
                        let Submission { envelope, tail, .. } = submission;
                        let arrival = served.session.arrival(clock.unix_now());
                        let is_small = served.receiving.is_empty();
                        let message = JustAccepted { envelope, arrival, trace: Vec::new(), tail };
                        served.doing = Doing::Storing { message, is_small };
                    }
                    Effect::Close => {
                        self.write_replies(connection, served);
                        return None;
                    }
                }
                continue;
            }
            if !served.input.is_empty() {
                let input = std::mem::take(&mut served.input);
                let taken = served.session.handle_input(&input, clock.now(), &mut served.replies);
                served.input = input[taken..].to_vec();
                if taken > 0 {
                    continue;
                }
            }
            self.write_replies(connection, served)?;
            if self.exceeds_budget(served) && served.session.hand_over_early(PIECE_SIZE_MIN) {
                continue;
            }
            if self.ending != served.told {
                served.told = self.ending;
                match self.ending {
                    Ending::Abort => served.session.handle_abort(&mut served.replies),
                    _ => served.session.handle_drain(&mut served.replies),
                }
            } else if !served.socket.is_empty() {
                let size = served.socket.len().min(SCRATCH_SIZE);
                let octets: Vec<u8> = served.socket.drain(..size).collect();
                let taken = served.session.handle_input(&octets, clock.now(), &mut served.replies);
                served.input.extend_from_slice(&octets[taken..]);
            } else if served.is_broken {
                return None;
            } else if served.has_end {
                served.session.handle_end_of_input(&mut served.replies);
            } else if clock.now() >= served.session.deadline() {
                served.session.handle_timeout(clock.now(), &mut served.replies);
            } else {
                return Some(());
            }
        }
        panic!("connection {connection} spins");
    }

    fn write_replies(&mut self, connection: u32, served: &mut Served) -> Option<()> {
        if served.replies.is_empty() {
            return Some(());
        }
        if served.is_broken {
            return None;
        }
        self.out.push_back(Out::Replies(connection, std::mem::take(&mut served.replies)));
        Some(())
    }

    fn append(&mut self, served: &mut Served, piece: Vec<u8>, clock: &Clock) {
        let appended = self.spool.append_piece(&mut served.receiving, &piece);
        self.out.push_back(Out::Wanted);
        match appended {
            Ok(()) => {
                let buffer = if self.exceeds_budget(served) { Vec::new() } else { piece };
                served.session.handle_piece_taken(buffer, clock.now());
            }
            Err(AppendError::Busy) => served.doing = Doing::Appending(piece),
            Err(error) => served.session.handle_not_stored(not_stored(error), clock.now()),
        }
    }

    fn store(&mut self, connection: u32, served: &mut Served, message: JustAccepted, is_small: bool, clock: &Clock) {
        let JustAccepted { envelope, arrival, tail, .. } = &message;
        let incoming = Incoming { envelope, arrival, tail };
        let session = &served.session;
        let write_trace = |id| {
            let (mut trace, mut date) = (Vec::new(), String::new());
            format_date(clock.unix_now(), &mut date);
            session.write_received(id, &date, &mut trace);
            trace
        };
        let appended = self.spool.append_message(&mut served.receiving, incoming, write_trace);
        self.out.push_back(Out::Wanted);
        match appended {
            Err(AppendError::Busy) => served.doing = Doing::Storing { message, is_small },
            Err(error) => self.conclude(served, Err(error), clock),
            Ok((id, trace)) => {
                let message = JustAccepted { trace, ..message };
                let recipient = message.envelope.forward_paths[0].as_str().to_owned();
                let message = (is_small && self.handoff.keep(&message)).then_some(message);
                self.waiting.push_back(Waiting { sequence: id.sequence, connection, message, recipient });
                served.sequence = id.sequence;
                served.doing = Doing::Waiting;
            }
        }
    }

    fn conclude(&mut self, served: &mut Served, outcome: Result<MessageId, AppendError>, clock: &Clock) {
        if outcome.is_err() {
            self.spool.abandon(&mut served.receiving);
        }
        served.session.handle_stored(outcome.map_err(not_stored), clock.now(), &mut served.replies);
    }

    fn check(&self, session: &Session, phase: Phase) -> Result<(), Refusal> {
        if matches!(phase, Phase::Mail | Phase::Data) {
            self.admit_message(session.declared_size().unwrap_or(0))?;
        }
        let is_refused = |path: &ForwardPath| path.as_str().ends_with(REFUSED_DOMAIN);
        match session.recipient().is_some_and(is_refused) {
            true => Err(Refusal::new(Status::permanent(7, 1), "No")),
            false => Ok(()),
        }
    }

    fn admit_message(&self, size: u64) -> Result<(), Refusal> {
        if !self.spool.is_accepting() {
            return Err(Refusal::final_one(Status::temporary(3, 0), "Try again later"));
        }
        if self.spool.depth() >= self.plan.depth_max {
            return Err(Refusal::final_one(Status::temporary(3, 2), "Try again later"));
        }
        match self.spool.has_room(size) {
            true => Ok(()),
            false => Err(Refusal::new(Status::temporary(3, 1), "Insufficient system storage")),
        }
    }

    fn exceeds_budget(&mut self, served: &mut Served) -> bool {
        let held = served.session.content_buffer_size() + served.input.capacity();
        self.content_memory = self.content_memory + held - served.counted;
        served.counted = held;
        self.content_memory > self.plan.content_memory_max
    }

    // disk.rs

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
            Io::Sync { slot } if self.files.contains(&slot) => Op::Sync { slot, covered: medium.begin_sync() },
            Io::Sync { slot } => Op::Failed(Completion::Synced { slot, result: Err(IoFailure::Failed) }),
            Io::Remove { slot } => {
                self.files.remove(&slot);
                Op::Remove { slot }
            }
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
            Op::Failed(completion) => completion,
        };
        // What has failed is tried again after a while, and a preparation not before a removal has ended: the timer is set for that.
        if !matches!(&completion, Completion::Written { result: Ok(()), .. } | Completion::Synced { result: Ok(()), .. }) {
            self.out.push_back(Out::Wanted);
        }
        self.spool.handle_io(completion, clock.now());
        self.turn(medium, clock);
        // Whoever waits for memory tries again.
        let waits = |served: &Served| matches!(served.doing, Doing::Appending(_) | Doing::Storing { .. });
        let waiting: Vec<u32> = self.connections.iter().filter(|(_, s)| waits(s)).map(|(key, _)| *key).collect();
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
                    self.spool.handle_outcome(sequence, &outcomes, clock.now(), clock.unix_now());
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
            Content::Memory(whole) => Some(whole.clone()),
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
        self.spool.handle_outcome(sequence, &outcomes, clock.now(), clock.unix_now());
        self.out.push_back(Out::Wanted);
        self.feed(clock);
    }

    /// One round of a clean end. True when it is over.
    pub fn finish(&mut self, medium: &Medium, clock: &Clock) -> bool {
        self.spool.finish(clock.now());
        if self.spool.is_idle() || !self.spool.is_accepting() {
            return true;
        }
        self.turn(medium, clock);
        false
    }
}

fn not_stored(error: AppendError) -> NotStored {
    match error {
        AppendError::NoRoom => NotStored::NoRoom,
        AppendError::Busy => NotStored::TooBusy,
        AppendError::Failed => NotStored::Failed,
    }
}
