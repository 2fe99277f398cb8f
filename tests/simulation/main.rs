//! The two cores under a seed: sessions and a spool, driven as a shard drives them, over a simulated disk, with simulated clients and
//! deliveries and a virtual clock.
//!
//! Claims, checked after every life of the gateway and at the end of each run (`ledger.rs`):
//! - what a client read a 250 for is in the queue of every restart, once, whole and octet for octet behind our trace field, until its
//!   outcomes are recorded; and in the end everybody in its envelope has it, and nobody else, unless the operator has dropped it;
//! - what the operator holds, releases or drops is so after every restart, once the order was settled;
//! - a 250 is sent only for what would survive the loss of everything unsynced at that moment, whatever has failed before;
//! - nothing is delivered or recovered that was not offered whole, or that was refused for good; what was gone does not come back;
//! - one reply for each command, in order, with a code that fits; failures of ours are 4xx;
//! - on media that keep their promises recovery finds nothing corrupt; on media that break them, what is lost is reported, and what
//!   they left alone is there;
//! - sessions, outcomes and pages do not wait for ever; pages are bounded; room that comes back is noticed.
//!
//! A run is decided by its seed. A failure prints it; `SEED=n cargo test --test simulation` replays it and prints its history.
//! `SEEDS=n` runs more, INCOMING_TEST_LONG=1 enough for a night.

mod client;
mod disk;
mod gateway;
mod handoff;
mod ledger;
mod medium;
mod random;
mod world;

use std::panic::catch_unwind;

use incoming::spool::IoFailure;
use medium::{Fault, Faults, Kind};
use random::Random;
use world::{Sum, Troubles};

/// Runs of each kind, unless told otherwise.
const SEEDS: u64 = 1000;
const SEEDS_LONG: u64 = 50_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// Runs the seeds that are `kind` of [`KINDS`].
fn run_all(kind: u64, troubles: impl Fn(&mut Random) -> Troubles + std::panic::RefUnwindSafe) {
    let is_long = std::env::var_os("INCOMING_TEST_LONG").is_some();
    let count = number("SEEDS").unwrap_or(if is_long { SEEDS_LONG } else { SEEDS });
    let only = number("SEED");
    let seeds = match only {
        Some(seed) => seed..seed + 1,
        None => 0..count * KINDS,
    };
    let mut sum = Sum::default();
    for seed in seeds.filter(|seed| seed % KINDS == kind) {
        let troubles = troubles(&mut Random::new(!seed));
        match catch_unwind(|| world::run(seed, troubles.clone(), only.is_some())) {
            Ok(one) => sum.add(one),
            Err(panic) => {
                eprintln!("replay with: SEED={seed} cargo test --test simulation");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{sum:?}");
    assert!(
        only.is_some() || sum.acknowledged > 0 && sum.recovered > 0,
        "the runs must exercise the promise"
    );
    assert!(only.is_some() || kind != LYING || sum.excused > 0, "lies must be found out");
}

/// Where to look for what a single failing I/O does: runs with every kind of I/O in them.
const SCENARIOS: [u64; 3] = [1001, 1002, 1003];

/// `SEED=n FAULT="Sync 12 false Failed"` replays one of them.
#[test]
fn any_single_failing_io_costs_no_acknowledged_message() {
    let only = std::env::var("FAULT").ok();
    let seeds = match (number("SEED"), &only) {
        (Some(seed), Some(_)) => vec![seed],
        (Some(_), None) => return,
        (None, _) => SCENARIOS.to_vec(),
    };
    let mut sum = Sum::default();
    for seed in seeds {
        let undisturbed = world::run(seed, Troubles::default(), false);
        for fault in Kind::ALL.into_iter().flat_map(|kind| faults(kind, undisturbed.io[kind as usize])) {
            let name = format!("{:?} {} {} {:?}", fault.kind, fault.nth, fault.is_for_ever, fault.why);
            if only.as_ref().is_some_and(|only| *only != name) {
                continue;
            }
            let troubles = Troubles {
                faults: Faults { fault: Some(fault), ..Faults::default() },
                ..Troubles::default()
            };
            match catch_unwind(|| world::run(seed, troubles.clone(), only.is_some())) {
                Ok(one) => sum.add(one),
                Err(panic) => {
                    eprintln!(
                        "replay with: SEED={seed} FAULT='{name}' cargo test --test simulation any_single"
                    );
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
    println!("{sum:?}");
    assert!(only.is_some() || sum.io.iter().all(|count| *count > 0), "every kind of I/O must have failed");
}

/// Every I/O of a kind, failing once and for ever; a preparation also for want of space.
fn faults(kind: Kind, count: u64) -> impl Iterator<Item = Fault> {
    let whys = if kind == Kind::Prepare {
        vec![IoFailure::Failed, IoFailure::NoSpace]
    } else {
        vec![IoFailure::Failed]
    };
    (0..count).flat_map(move |nth| {
        let whys = whys.clone().into_iter();
        whys.flat_map(move |why| [false, true].map(|is_for_ever| Fault { kind, nth, why, is_for_ever }))
    })
}

const KINDS: u64 = 4;
const HONEST: u64 = 0;
const FAILING: u64 = 1;
const FULL: u64 = 2;
const LYING: u64 = 3;

#[test]
fn acknowledged_messages_survive_any_cut() {
    run_all(HONEST, |_| Troubles::default());
}

#[test]
fn acknowledged_messages_survive_failing_writes_and_syncs() {
    run_all(FAILING, |random| {
        let mut faults = Faults::default();
        let kind = Kind::ALL[random.index(4)];
        match random.below(4) {
            0 => faults.fails_one_in = [20, 60, 60, 10],
            1 => faults.fails_one_in[kind as usize] = 8,
            2 => {}
            _ => {
                let (nth, is_for_ever) = (random.below(40), random.one_in(2));
                faults.fault = Some(Fault { kind, nth, why: IoFailure::Failed, is_for_ever });
            }
        }
        faults.is_short_one_in = [0, 4, 30][random.index(3)];
        Troubles { faults, ..Troubles::default() }
    });
}

#[test]
fn acknowledged_messages_survive_a_full_disk_and_room_is_noticed() {
    run_all(FULL, |_| Troubles { fills: true, ..Troubles::default() });
}

#[test]
fn damage_by_a_lying_medium_is_reported_and_costs_nothing_else() {
    run_all(LYING, |random| {
        let lies_left = 1 + random.below(2) as u32;
        let faults = Faults { lies_one_in: [3, 20, 0][random.index(3)], lies_left, ..Faults::default() };
        Troubles { faults, rots: true, ..Troubles::default() }
    });
}
