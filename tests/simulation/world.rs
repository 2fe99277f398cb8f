//! One run: clients, deliveries, a gateway and its disk under one virtual clock, for several lives.
//!
//! Everything that happens is an event with a time; the seed decides the rest. At the end of each life the power is cut, the process is
//! killed or ends as it should; then the log is recovered and the [`Ledger`] looks at what was found. In the last life nothing fails
//! any more, and everything is delivered.

mod events;

use std::collections::BTreeMap;
use std::time::Instant;

use incoming::spool::{IoFailure, SpoolConfig};

use crate::client::Client;
use crate::disk;
use crate::gateway::{Clock, Ending, Gateway, Op, Plan};
use crate::handoff::Job;
use crate::ledger::{End, Ledger};
use crate::medium::{Faults, Medium};
use crate::random::Random;

/// Writes a line of the history.
macro_rules! tell {
    ($world:expr, $($text:tt)*) => {
        if $world.is_told {
            let micros = $world.clock.micros;
            let line = format!( "{:6}.{:06} {}", micros / SECOND, micros % SECOND, format_args!($($text)*));
            write_line(&line);
        }
    };
}
use tell;

const MILLISECOND: u64 = 1000;
const SECOND: u64 = 1000 * MILLISECOND;
/// Files kept for reuse.
const FREE_SEGMENTS_MAX: usize = 4;
/// Longer than any wait that is not a hanging delivery.
const PATIENCE: u64 = 60 * SECOND;

/// What goes wrong in a run.
#[derive(Clone, Debug, Default)]
pub struct Troubles {
    pub faults: Faults,
    /// Space ends now and then.
    pub fills: bool,
    /// Sectors that were written go bad.
    pub rots: bool,
}

enum Event {
    Connect,
    /// The client's turn.
    Client(u32),
    /// Replies have reached the client.
    Replies(u32),
    Turn,
    Timer,
    Deadlines,
    Io(u64),
    ReadBack(Vec<u64>),
    Attempt(u64),
    Report(u64, Vec<(u32, bool)>),
    Space,
    Rot,
    /// The operator orders something.
    Order,
}

/// What a run did, to see that it did something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    pub acknowledged: usize,
    pub recovered: usize,
    pub lies: u32,
    pub excused: usize,
    /// I/O by kind.
    pub io: [u64; 4],
}

impl Sum {
    pub fn add(&mut self, other: Sum) {
        self.acknowledged += other.acknowledged;
        self.recovered += other.recovered;
        self.lies += other.lies;
        self.excused += other.excused;
        (0..4).for_each(|i| self.io[i] += other.io[i]);
    }
}

/// What is on its way to a client.
#[derive(Default)]
struct Wire {
    octets: Vec<u8>,
    is_closed: bool,
}

struct World {
    random: Random,
    clock: Clock,
    events: BTreeMap<(u64, u64), Event>,
    next_number: u64,
    medium: Medium,
    ledger: Ledger,
    plan: Plan,
    troubles: Troubles,
    is_last: bool,
    clients: BTreeMap<u32, Client>,
    wires: BTreeMap<u32, Wire>,
    next_client: u32,
    /// That have not connected yet.
    expected_clients: u32,
    ops: BTreeMap<u64, Op>,
    attempts: BTreeMap<u64, Job>,
    workers: usize,
    /// Reports on their way.
    report_count: usize,
    is_turn_due: bool,
    deadlines_at: Option<u64>,
    /// There is room since then, and nothing fails.
    has_room_since: u64,
    io_count: u64,
    stored_count: u64,
    /// One I/O in so many takes a hundred times as long.
    slow_one_in: u64,
    is_told: bool,
}

/// To standard output, though the test passes.
fn write_line(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Runs one seed. `is_told`: every event is written to standard output.
pub fn run(seed: u64, troubles: Troubles, is_told: bool) -> Sum {
    let mut random = Random::new(seed);
    let medium = Medium::new(random.fork(), troubles.faults.clone());
    let mut world = World {
        clock: Clock { base: Instant::now(), micros: 0 },
        events: BTreeMap::new(),
        next_number: 0,
        medium,
        ledger: Ledger::new(random.next() as u32 | 1, troubles.faults.lies_left > 0),
        plan: plan(&mut random),
        troubles,
        is_last: false,
        clients: BTreeMap::new(),
        wires: BTreeMap::new(),
        next_client: 0,
        expected_clients: 0,
        ops: BTreeMap::new(),
        attempts: BTreeMap::new(),
        workers: 1 + random.index(4),
        report_count: 0,
        is_turn_due: false,
        deadlines_at: None,
        has_room_since: 0,
        io_count: 0,
        stored_count: 0,
        slow_one_in: [0, 40, 6][random.index(3)],
        is_told,
        random,
    };
    world.ledger.may_drop_outcomes = world.troubles.fills
        || world.medium.faults.fault.is_some_and(|fault| fault.why == IoFailure::NoSpace);
    let lives = world.random.between(2, 4);
    let mut recovered = world.recover();
    for _ in 0..lives {
        recovered = world.live(recovered);
        world.ledger.life += 1;
    }
    world.is_last = true;
    world.heal();
    world.live(recovered);
    world.ledger.take_end(&world.medium);
    Sum {
        acknowledged: world.ledger.acknowledged_count,
        recovered: world.ledger.recovered_count,
        lies: world.medium.lies_count,
        excused: world.ledger.excused.len(),
        io: world.medium.counts,
    }
}

fn plan(random: &mut Random) -> Plan {
    let (page_size, pages_max) = [(8 << 10, 10), (16 << 10, 7), (8 << 10, 16)][random.index(3)];
    let segment_size = [128 << 10, 128 << 10, 160 << 10, 256 << 10][random.index(4)];
    Plan {
        spool: SpoolConfig { segment_size, sync: true, page_size, pages_max },
        message_size_max: [20_000, 40_000, 150_000][random.index(3)],
        content_memory_max: [1 << 10, 64 << 10, 1 << 20][random.index(3)],
        cache_size: [0, 8 << 10, 256 << 10][random.index(3)],
        channel_size: 1 + random.index(8),
        depth_max: if random.one_in(8) { 4 } else { 1000 },
    }
}

impl World {
    /// Everything is well from here on.
    fn heal(&mut self) {
        self.medium.faults = Faults::default();
        self.medium.capacity = None;
        self.troubles = Troubles::default();
        self.has_room_since = self.clock.micros;
        self.ledger.is_well = true;
    }

    /// Reads the log as a start does. The power may go while it does.
    fn recover(&mut self) -> disk::Restart {
        if self.random.one_in(8) {
            tell!(self, "the power goes during the start");
            self.medium.sync_some();
        }
        self.medium.sync_all();
        let files = self.medium.files().map(|(slot, octets)| (slot, octets.to_vec())).collect();
        let restart = disk::recover(&files, self.ledger.log);
        for report in &restart.reports {
            tell!(self, "start: {report:?}");
        }
        restart
    }

    /// One life of the gateway, from its start to the next.
    fn live(&mut self, restart: disk::Restart) -> disk::Restart {
        if self.random.one_in(10) {
            self.plan.spool.segment_size = plan(&mut self.random).spool.segment_size;
        }
        tell!(
            self,
            "life {} begins with {} messages, {:?}",
            self.ledger.life,
            restart.recovered.messages.len(),
            self.plan
        );
        let entropy = self.random.fork();
        let mut gateway = Gateway::new(self.plan, restart.recovered, entropy, &self.clock);
        self.begin(&mut gateway);
        let end = match self.random.below(4) {
            _ if self.is_last => self.end_cleanly(&mut gateway),
            0 => self.end_cleanly(&mut gateway),
            1 => self.crash(&mut gateway, false),
            _ => self.crash(&mut gateway, true),
        };
        let settled = gateway.spool().orders().settled;
        self.events.clear();
        self.clients.clear();
        self.wires.clear();
        self.attempts.clear();
        (self.report_count, self.is_turn_due, self.deadlines_at, self.expected_clients) = (0, false, None, 0);
        let restart = self.recover();
        self.ledger.settled = settled;
        self.ledger.take_restart(&restart, end, &self.medium);
        restart
    }

    fn begin(&mut self, gateway: &mut Gateway) {
        let now = self.clock.micros;
        let spread = [1, 20, 500, 5000][self.random.index(4)] * MILLISECOND;
        let count = if self.is_last { 1 } else { self.random.between(1, 7) };
        for _ in 0..count {
            let at = now + self.random.below(spread) / 100 * 100;
            self.expect_client(at);
        }
        for _ in 0..if self.troubles.fills { self.random.between(1, 3) } else { 0 } {
            let at = now + self.random.below(100 * MILLISECOND);
            self.at(at, Event::Space);
        }
        if self.is_last {
            // Nobody waits for ever for an operator.
            self.release_all(gateway);
        } else {
            for _ in 0..self.random.below(8) {
                let at = now + self.random.below(2 * spread);
                self.at(at, Event::Order);
            }
        }
        if self.troubles.rots && self.random.one_in(2) {
            let at = now + self.random.below(100 * MILLISECOND);
            self.at(at, Event::Rot);
        }
        gateway.turn(&self.medium, &self.clock);
        self.arm(gateway);
        self.follow(gateway);
    }

    /// The power goes, or the process is killed, at any moment: by time, by I/O, or just when something was stored.
    fn crash(&mut self, gateway: &mut Gateway, is_cut: bool) -> End {
        let (io_count, stored_count) = (self.io_count, self.stored_count);
        let (mut io_max, mut stored_max, mut time_max) = (u64::MAX, u64::MAX, 700 * SECOND);
        match self.random.below(3) {
            0 => {
                let longest = [10, 100, 5000][self.random.index(3)] * MILLISECOND;
                time_max = self.random.below(longest);
            }
            1 => io_max = self.random.below(60),
            _ => stored_max = self.random.between(1, 6),
        }
        let until = self.clock.micros + time_max;
        self.run_until(gateway, until, |world, gateway| {
            world.io_count - io_count >= io_max
                || world.stored_count - stored_count >= stored_max
                || world.are_clients_done() && gateway.spool().depth() == 0
        });
        tell!(self, "{}", if is_cut { "the power goes" } else { "the process is killed" });
        let ops = std::mem::take(&mut self.ops);
        let in_flight = ops.values().filter_map(Op::in_flight);
        match is_cut {
            true => self.medium.cut(in_flight),
            false => self.medium.kill(in_flight),
        }
        End::Crash
    }

    /// Sessions end, then deliveries, then everything is made durable.
    fn end_cleanly(&mut self, gateway: &mut Gateway) -> End {
        let time = if self.is_last { 100_000 * SECOND } else { self.random.below(20 * SECOND) };
        let until = self.clock.micros + time;
        let is_last = self.is_last;
        self.run_until(gateway, until, |world, gateway| {
            let is_done = gateway.spool().depth() == 0 || world.is_stuck(gateway);
            is_last
                && is_done
                && world.are_clients_done()
                && world.attempts.is_empty()
                && world.report_count == 0
        });
        tell!(self, "the process is told to end");
        gateway.end(Ending::Drain, &self.clock);
        self.follow(gateway);
        let until = self.clock.micros + 10 * SECOND;
        self.run_until(gateway, until, |_, gateway| gateway.connection_count() == 0);
        gateway.end(Ending::Abort, &self.clock);
        self.follow(gateway);
        let until = self.clock.micros + PATIENCE;
        self.run_until(gateway, until, |_, gateway| gateway.connection_count() == 0);
        assert_eq!(gateway.connection_count(), 0, "sessions do not end");
        self.workers = 0;
        let until = self.clock.micros + 100_000 * SECOND;
        self.run_until(gateway, until, |world, _| world.attempts.is_empty() && world.report_count == 0);
        assert!(self.attempts.is_empty() && self.report_count == 0);
        // Nobody is left who would begin an attempt: what is reported now had no place to be recorded.
        let give_up = self.clock.micros + 10 * SECOND;
        while !gateway.finish(&self.medium, &self.clock) && self.clock.micros < give_up {
            self.follow(gateway);
            let until = self.clock.micros + 20 * MILLISECOND;
            self.run_until(gateway, until, |_, _| false);
            self.clock.micros = until;
        }
        self.workers = 1 + self.random.index(4);
        let is_settled = gateway.spool().is_idle();
        let may_fail = self.medium.faults.fault.is_some()
            || self.medium.faults.fails_one_in != [0; 4]
            || self.medium.faults.is_short_one_in > 0
            || self.medium.capacity.is_some();
        assert!(is_settled || may_fail, "a good medium lets nothing wait");
        assert!(!is_settled || gateway.pages() == 0, "{} pages are kept for nothing", gateway.pages());
        // Free ones for reuse, the active one, the next.
        if is_settled {
            let until = self.clock.micros + PATIENCE;
            self.run_until(gateway, until, |world, _| world.ops.is_empty() && !world.is_turn_due);
        }
        let is_empty = is_settled && gateway.spool().depth() == 0;
        let file_count = self.medium.files().count();
        let is_bounded = file_count <= FREE_SEGMENTS_MAX + 2;
        assert!(
            !is_empty || may_fail || self.medium.lies_count > 0 || is_bounded,
            "{file_count} files are kept for nothing"
        );
        tell!(self, "the process ends");
        let ops = std::mem::take(&mut self.ops);
        self.medium.kill(ops.values().filter_map(Op::in_flight));
        if is_settled && !self.ledger.may_drop_outcomes { End::Settled } else { End::Crash }
    }

    /// What is left cannot be delivered: it is damaged.
    fn is_stuck(&self, _: &Gateway) -> bool {
        self.ledger.may_lie && self.clock.micros > self.has_room_since + 20_000 * SECOND
    }

    fn are_clients_done(&self) -> bool {
        self.expected_clients == 0 && self.clients.values().all(Client::is_gone)
    }

    fn at(&mut self, micros: u64, event: Event) {
        self.events.insert((micros.max(self.clock.micros), self.next_number), event);
        self.next_number += 1;
    }

    fn after(&mut self, micros: u64, event: Event) {
        self.at(self.clock.micros + micros, event);
    }

    fn run_until(&mut self, gateway: &mut Gateway, until: u64, is_over: impl Fn(&World, &Gateway) -> bool) {
        while !is_over(self, gateway) {
            let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= until) else {
                return;
            };
            let ((micros, _), event) = entry.remove_entry();
            self.clock.micros = micros;
            self.take(event, gateway);
            self.follow(gateway);
        }
    }
}
