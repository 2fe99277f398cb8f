//! The events of a run, one by one: what each does to the gateway, and what the gateway then wants.

use std::net::SocketAddr;

use incoming::spool::Obeyed;
use incoming::spool::format::OrderKind;

use super::{Event, MILLISECOND, SECOND, World, tell, write_line};
use crate::client::{Act, Client};
use crate::disk;
use crate::gateway::{Gateway, Op, Out};

/// How often a shard looks at deadlines.
const DEADLINES_INTERVAL: u64 = 250 * MILLISECOND;
/// Room that has come back is found after the next attempt to prepare a segment, one second later at most.
const ROOM_PATIENCE: u64 = 5 * SECOND;

impl World {
    pub(super) fn take(&mut self, event: Event, gateway: &mut Gateway) {
        match event {
            Event::Connect => self.connect(gateway),
            Event::Client(number) => self.take_turn_of(number, gateway),
            Event::Replies(number) => self.take_replies(number, gateway),
            Event::Turn => {
                self.is_turn_due = false;
                gateway.turn(&self.medium, &self.clock);
                self.arm(gateway);
            }
            Event::Timer => {
                gateway.handle_timer(&self.medium, &self.clock);
                self.arm(gateway);
            }
            Event::Deadlines => {
                self.deadlines_at = None;
                gateway.handle_time(&self.clock);
            }
            Event::Io(number) => {
                let op = self.ops.remove(&number).expect("an I/O ends once");
                self.io_count += 1;
                let (name, failures) =
                    (if self.is_told { name(&op) } else { String::new() }, self.medium.failures_count);
                gateway.end_io(op, &mut self.medium, &self.clock);
                tell!(
                    self,
                    "{name} has {}",
                    if self.medium.failures_count > failures { "failed" } else { "ended" }
                );
            }
            Event::ReadBack(batch) => {
                let read = batch.into_iter().map(|sequence| {
                    let whole = gateway.read(sequence, &self.medium);
                    (sequence, whole)
                });
                let read: Vec<_> = read.collect();
                for (sequence, whole) in &read {
                    tell!(self, "{sequence} is read back{}", if whole.is_none() { ": damaged" } else { "" });
                    assert!(whole.is_some() || self.medium.lies_count > 0, "{sequence} cannot be read back");
                }
                gateway.end_read(read, &self.clock);
            }
            Event::Attempt(number) => self.end_attempt(number, gateway),
            Event::Report(sequence, outcomes) => {
                self.report_count -= 1;
                tell!(self, "{sequence} is reported {outcomes:?}");
                self.ledger.take_report(sequence, &outcomes);
                gateway.handle_report(sequence, &outcomes, &self.clock);
            }
            Event::Space => self.change_space(),
            Event::Rot => self.medium.rot(),
            Event::Order => self.order(gateway),
        }
    }

    /// Does what the gateway wants.
    pub(super) fn follow(&mut self, gateway: &mut Gateway) {
        while let Some(out) = gateway.poll_out() {
            match out {
                Out::Start(op) => {
                    if let Op::Remove { slot } | Op::Prepare { slot, is_new: false, .. } = &op {
                        let restart = disk::recover(&self.medium.durable_without(*slot), self.ledger.log);
                        self.ledger.take_given_up(&restart, &self.medium);
                    }
                    tell!(self, "{} begins", name(&op));
                    let time = self.io_time(&op);
                    let number = self.next_number;
                    self.ops.insert(number, op);
                    self.after(time, Event::Io(number));
                }
                Out::Replies(client, octets) => {
                    self.wires.entry(client).or_default().octets.extend_from_slice(&octets);
                    let time = self.random.below(10) * 100;
                    self.after(time, Event::Replies(client));
                }
                Out::Closed(client) => {
                    self.wires.entry(client).or_default().is_closed = true;
                    self.after(1000, Event::Replies(client));
                }
                Out::Read(batch) => {
                    let time = self.random.between(1, 10) * 100;
                    self.after(time, Event::ReadBack(batch));
                }
                Out::Stored { sequence, is_stored: true, recipient, parts } => {
                    tell!(self, "{sequence} for {recipient} is stored");
                    self.stored_count += 1;
                    self.ledger.take_stored(sequence, &recipient, parts, &self.medium);
                }
                Out::Stored { sequence, .. } => {
                    tell!(self, "{sequence} is not stored");
                    self.ledger.take_failed(sequence);
                }
                Out::Wanted => {
                    if !std::mem::replace(&mut self.is_turn_due, true) {
                        self.after(0, Event::Turn);
                    }
                }
                Out::Offered => self.begin_attempts(gateway),
            }
        }
        self.watch_deadlines(gateway);
    }

    pub(super) fn arm(&mut self, gateway: &mut Gateway) {
        if let Some(due) = gateway.poll_timer(&self.clock) {
            let at = due.saturating_duration_since(self.clock.base).as_nanos().div_ceil(1000) as u64;
            self.at(at, Event::Timer);
        }
    }

    fn watch_deadlines(&mut self, gateway: &Gateway) {
        let Some(deadline) = gateway.deadline() else { return };
        let micros = deadline.saturating_duration_since(self.clock.base).as_micros() as u64;
        let at = (micros.max(self.clock.micros) / DEADLINES_INTERVAL + 1) * DEADLINES_INTERVAL;
        if self.deadlines_at.is_none_or(|planned| planned > at) {
            self.deadlines_at = Some(at);
            self.at(at, Event::Deadlines);
        }
    }

    fn io_time(&mut self, op: &Op) -> u64 {
        let time = match op {
            Op::Prepare { .. } => self.random.between(5, 60) * 100,
            Op::Write { .. } => self.random.between(1, 5) * 100,
            Op::Sync { .. } => self.random.between(1, 20) * 100,
            Op::Remove { .. } | Op::Read { .. } => self.random.between(1, 20) * 100,
            Op::Failed(_) => 0,
        };
        if self.random.one_in(self.slow_one_in) { time * 100 } else { time }
    }

    pub(super) fn expect_client(&mut self, at: u64) {
        self.expected_clients += 1;
        self.at(at, Event::Connect);
    }

    fn connect(&mut self, gateway: &mut Gateway) {
        self.expected_clients -= 1;
        let number = self.next_client;
        self.next_client += 1;
        let client = Client::new(number, &mut self.random);
        tell!(self, "client {number} connects");
        self.clients.insert(number, client);
        let is_well =
            self.medium.capacity.is_none() && self.clock.micros > self.has_room_since + ROOM_PATIENCE;
        let may_fail = self.medium.faults.fault.is_some() || self.medium.faults.fails_one_in != [0; 4];
        assert!(
            !is_well || may_fail || gateway.spool().has_room(0),
            "there is room again and nobody has noticed"
        );
        let peer = SocketAddr::from(([192, 0, 2, 1], 1024 + number as u16));
        gateway.connect(number, peer, &self.clock);
    }

    fn take_turn_of(&mut self, number: u32, gateway: &mut Gateway) {
        let life = self.ledger.life;
        let Some(client) = self.clients.get_mut(&number) else { return };
        let act = client.act(life, self.plan.message_size_max, &mut self.ledger.offers);
        let pause = client.pause();
        let is_lost = self.random.one_in(2);
        match act {
            Act::Send(octets) => {
                tell!(self, "client {number} sends {:?}", Text(&octets));
                gateway.receive(number, &octets, &self.clock);
                self.after(pause, Event::Client(number));
            }
            Act::End => {
                tell!(self, "client {number} sends no more");
                gateway.receive(number, &[], &self.clock);
            }
            Act::Reset => {
                tell!(self, "client {number} tears its connection down");
                gateway.reset(number, is_lost, &self.clock);
            }
            Act::Wait => {}
        }
    }

    fn take_replies(&mut self, number: u32, gateway: &mut Gateway) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        let Some(wire) = self.wires.get_mut(&number) else { return };
        let octets = std::mem::take(&mut wire.octets);
        let was_gone = client.is_gone();
        let told = client.read(&octets, &mut self.ledger.offers);
        let told = told.unwrap_or_else(|wrong| panic!("client {number} is told {wrong}"));
        if wire.is_closed {
            client.leave();
        } else if client.is_gone() && !was_gone {
            tell!(self, "client {number} vanishes before it reads {:?}", Text(&octets));
            gateway.reset(number, false, &self.clock);
            return;
        }
        let pause = client.pause();
        tell!(self, "client {number} reads {:?}", Text(&octets));
        told.into_iter().for_each(|offer| self.ledger.take_told(offer));
        self.after(pause, Event::Client(number));
    }

    fn begin_attempts(&mut self, gateway: &mut Gateway) {
        while self.attempts.len() < self.workers
            && let Some(job) = gateway.handoff.take_job()
        {
            tell!(self, "an attempt begins: {} to {:?}", job.sequence, job.recipients);
            let time = match self.random.below(30) {
                0 if !self.is_last => self.random.below(600 * SECOND),
                1 => self.random.below(10 * SECOND),
                _ => self.random.between(1, 50) * 100,
            };
            let number = self.next_number;
            self.attempts.insert(number, job);
            self.after(time, Event::Attempt(number));
            gateway.feed(&self.clock);
        }
    }

    /// A worker has made its attempt. Content that cannot be read is deferred for everybody.
    fn end_attempt(&mut self, number: u64, gateway: &mut Gateway) {
        let job = self.attempts.remove(&number).expect("an attempt ends once");
        let whole = gateway.read_job(&job, &self.medium);
        self.ledger.take_attempt(job.sequence, &job.recipients, whole.as_ref(), &self.medium);
        let manner = if self.is_last { 0 } else { self.random.below(3) };
        let mut outcomes = Vec::new();
        for index in job.recipients {
            // Delivered, rejected (there is a dead letter then), or deferred.
            let is_done = whole.is_some() && (manner == 0 || !self.random.one_in(3));
            if is_done {
                self.ledger.take_delivered(job.sequence, index);
            }
            outcomes.push((index, is_done));
        }
        self.report_count += 1;
        let time = if self.random.one_in(4) { self.random.below(250 * MILLISECOND) } else { 0 };
        self.after(time, Event::Report(job.sequence, outcomes));
        self.begin_attempts(gateway);
    }

    /// The operator orders something of some message that no delivery has.
    fn order(&mut self, gateway: &mut Gateway) {
        let entries = gateway.spool().entries_from(0).filter(|(_, entry)| !entry.is_handed_off());
        let waiting: Vec<u64> = entries.map(|(sequence, _)| sequence).collect();
        if waiting.is_empty() || gateway.is_finishing {
            return;
        }
        let sequence = waiting[self.random.index(waiting.len())];
        let kind = match self.random.below(8) {
            0 => OrderKind::Drop,
            1 => OrderKind::Retry,
            2 | 3 => OrderKind::Release,
            _ => OrderKind::Hold,
        };
        self.give_order(gateway, sequence, kind);
    }

    pub(super) fn release_all(&mut self, gateway: &mut Gateway) {
        let entries = gateway.spool().entries_from(0).filter(|(_, entry)| entry.is_held());
        let held: Vec<u64> = entries.map(|(sequence, _)| sequence).collect();
        held.into_iter().for_each(|sequence| self.give_order(gateway, sequence, OrderKind::Release));
    }

    fn give_order(&mut self, gateway: &mut Gateway, sequence: u64, kind: OrderKind) {
        let obeyed = gateway.order(sequence, kind, &self.clock);
        tell!(self, "the operator orders: {} {sequence}: {obeyed:?}", kind.as_str());
        if obeyed == Obeyed::Yes && kind != OrderKind::Retry {
            let state = (kind != OrderKind::Drop).then_some(kind == OrderKind::Hold);
            self.ledger.take_order(gateway.spool().orders().given, sequence, state);
        }
    }

    fn change_space(&mut self) {
        let segment = self.plan.spool.segment_size as usize;
        self.medium.capacity = match self.medium.capacity {
            None => Some(segment * self.random.index(4) + 5000),
            Some(_) => {
                self.has_room_since = self.clock.micros;
                // Comes when it must have been noticed.
                self.expect_client(self.clock.micros + ROOM_PATIENCE + SECOND);
                None
            }
        };
        let capacity = self.medium.capacity;
        tell!(self, "there is room for {capacity:?} octets");
        if capacity.is_some() {
            let longest = [SECOND / 10, 3 * SECOND, 20 * SECOND][self.random.index(3)];
            let time = self.random.below(longest);
            self.after(time, Event::Space);
        }
    }
}

fn name(op: &Op) -> String {
    match op {
        Op::Prepare { slot, is_new, .. } => format!("prepare {} (new: {is_new})", slot.0),
        Op::Write { slot, offset, size, done, .. } => {
            format!("write {} at {offset}+{done}, {size} octets", slot.0)
        }
        Op::Sync { slot, .. } => format!("sync {}", slot.0),
        Op::Remove { slot } => format!("remove {}", slot.0),
        Op::Read { places } => format!("read {} records", places.len()),
        Op::Failed(completion) => format!("{completion:?}"),
    }
}

/// Octets, as far as they can be read and not too many of them.
struct Text<'a>(&'a [u8]);

impl std::fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.0[..self.0.len().min(60)];
        write!(f, "{} octets {:?}", self.0.len(), String::from_utf8_lossy(shown))
    }
}
