//! What an open loop tells of a target that stands still, and a closed loop hides.

use std::time::Duration;

use crate::support::harness;
use crate::support::target::{Behaviour, Target};

const STALL: Duration = Duration::from_secs(1);

fn stalling(at: u64) -> Target {
    Target::start(Behaviour { stall: Some((at, STALL)), ..Behaviour::default() })
}

#[test]
fn a_target_that_stands_still_shows_in_the_open_loop_and_hides_in_the_closed() {
    let target = stalling(300);
    let open = harness::load(target.address, &["--rate", "200", "--duration", "4s", "--pipeline"]);
    let closed = stalling(300);
    let closed = harness::load(closed.address, &["--duration", "4s", "--pipeline"]);
    for ran in [&open, &closed] {
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.latency("transaction", "max") >= STALL.as_micros() as f64);
    }
    // A quarter of the open loop's messages fell due while nothing moved, and a handful of the closed loop's.
    let part = |ran: &harness::Ran| ran.latency("transaction", "p99") / ran.latency("transaction", "max");
    assert!(part(&open) > 0.5, "{open:?}");
    assert!(part(&closed) < 0.5, "{closed:?}");
    assert!(part(&open) > 2.0 * part(&closed));
    // Nor is one left out: what fell due was begun, or is told of as never begun.
    assert_eq!(accounted(&open), 800);
}

#[test]
fn what_falls_due_is_begun_or_told_of_as_never_begun() {
    let target = stalling(100);
    let ran = harness::load(
        target.address,
        &["--rate", "200", "--duration", "1s", "--connections", "1", "--pipeline"],
    );
    assert_eq!(accounted(&ran), 200);
    let never = ran.number("/schedule/never_begun");
    assert!(never > 0, "{ran:?}");
    assert!(ran.report["warnings"].to_string().contains(&format!("{never} messages")), "{ran:?}");
    assert_eq!(ran.number("/accepted"), target.seen.messages.load(std::sync::atomic::Ordering::SeqCst));
}

#[test]
fn an_open_loop_by_number_sends_as_many_as_were_asked_for() {
    let target = Target::start(Behaviour::default());
    for arrivals in ["even", "poisson"] {
        let words = ["--rate", "2000", "--messages", "500", "--arrivals", arrivals, "--warm-up", "100ms"];
        let ran = harness::load(target.address, &words);
        assert_eq!((ran.code, ran.number("/accepted")), (Some(0), 500), "{ran:?}");
    }
}

fn accounted(ran: &harness::Ran) -> u64 {
    ran.number("/accepted") + ran.number("/failed") + ran.number("/schedule/never_begun")
}
