//! The twin of `shard/accept.rs` and `shard/connection.rs`: one connection, from effects to the spool and back.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use incoming::mail::{ForwardPath, MessageId, Phase, Refusal, Status, format_date};
use incoming::smtp::{Effect, NotStored, Peer, Session, Submission};
use incoming::spool::{AppendError, Incoming, Receiving};

use super::{Clock, Ending, Gateway, JustAccepted, Out, Waiting};
use crate::client::REFUSED_DOMAIN;

/// What one receive takes at most, octets.
const SCRATCH_SIZE: usize = 64 << 10;
/// The smallest piece handed on early, octets.
const PIECE_SIZE_MIN: usize = 1 << 10;

/// What a connection's task awaits.
enum Doing {
    Receiving,
    /// Memory for a piece.
    Appending(Vec<u8>),
    /// Memory for a message; whether it is kept for its delivery.
    Storing {
        message: JustAccepted,
        is_small: bool,
    },
    /// The sync.
    Waiting,
}

pub struct Served {
    session: Session,
    receiving: Receiving,
    replies: Vec<u8>,
    input: Vec<u8>,
    counted: usize,
    told: Ending,
    doing: Doing,
    /// Of the message that is being stored.
    sequence: u64,
    /// Whether it was.
    pub(super) outcome: Option<bool>,
    /// Sent by the client and not received.
    socket: VecDeque<u8>,
    has_end: bool,
    is_broken: bool,
}

impl Served {
    /// Does it wait for memory in the spool?
    pub(super) fn waits_for_memory(&self) -> bool {
        matches!(self.doing, Doing::Appending(_) | Doing::Storing { .. })
    }
}

impl Gateway {
    /// A client has connected.
    pub fn connect(&mut self, connection: u32, peer: SocketAddr, clock: &Clock) {
        if self.ending != Ending::No || !self.spool.is_accepting() {
            self.out.push_back(Out::Replies(connection, b"421 4.3.2 Try again later\r\n".to_vec()));
            self.out.push_back(Out::Closed(connection));
            return;
        }
        let mut replies = Vec::new();
        let session = Session::new(self.config.clone(), Peer::stranger(peer), clock.now(), &mut replies);
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

    pub(super) fn run_all(&mut self, clock: &Clock) {
        let connections: Vec<u32> = self.connections.keys().copied().collect();
        connections.into_iter().for_each(|connection| self.run(connection, clock));
    }

    // What follows is connection.rs, but for its awaits.

    pub(super) fn run(&mut self, connection: u32, clock: &Clock) {
        let Some(mut served) = self.connections.remove(&connection) else { return };
        if self.serve(connection, &mut served, clock).is_some() {
            self.connections.insert(connection, served);
            return;
        }
        self.abandon(&mut served);
        self.content_memory -= served.counted;
        self.out.push_back(Out::Closed(connection));
    }

    /// `Some`: it waits; `None`: the connection has ended.
    fn serve(&mut self, connection: u32, served: &mut Served, clock: &Clock) -> Option<()> {
        for _ in 0..100_000 {
            match std::mem::replace(&mut served.doing, Doing::Receiving) {
                Doing::Receiving => {}
                Doing::Appending(piece) => self.append(served, piece, clock),
                Doing::Storing { message, is_small } => {
                    self.store(connection, served, message, is_small, clock)
                }
                Doing::Waiting => match served.outcome.take() {
                    None => served.doing = Doing::Waiting,
                    Some(is_stored) => {
                        let sequence = served.sequence;
                        let id = MessageId { log: self.spool.log(), sequence };
                        self.conclude(
                            served,
                            if is_stored { Ok(id) } else { Err(AppendError::Failed) },
                            clock,
                        );
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
                    Effect::Abandon => self.abandon(served),
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
                    Effect::StartTls | Effect::Authenticate(_) | Effect::Pause(_) => {
                        unreachable!("neither is configured")
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

    fn store(
        &mut self,
        connection: u32,
        served: &mut Served,
        message: JustAccepted,
        is_small: bool,
        clock: &Clock,
    ) {
        let JustAccepted { envelope, arrival, tail, .. } = &message;
        let incoming = Incoming { envelope, arrival, tail };
        let session = &served.session;
        let write_trace = |id| {
            let (mut trace, mut date) = (Vec::new(), String::new());
            format_date(clock.unix_now(), &mut date);
            session.write_received(id, None, &date, &mut trace);
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
            self.abandon(served);
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

    fn abandon(&mut self, served: &mut Served) {
        if !served.receiving.is_empty() {
            self.out.push_back(Out::Wanted);
        }
        self.spool.abandon(&mut served.receiving);
    }

    fn exceeds_budget(&mut self, served: &mut Served) -> bool {
        let held = served.session.content_buffer_size() + served.input.capacity();
        self.content_memory = self.content_memory + held - served.counted;
        served.counted = held;
        self.content_memory > self.plan.content_memory_max
    }
}

fn not_stored(error: AppendError) -> NotStored {
    match error {
        AppendError::NoRoom => NotStored::NoRoom,
        AppendError::Busy => NotStored::TooBusy,
        AppendError::Failed => NotStored::Failed,
    }
}
