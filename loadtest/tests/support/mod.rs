//! What the tests of the program share: a target that does as it is told, the program itself, and real servers.
//!
//! Everything started is stopped when it is dropped, also by a panic; everything that is waited for has a deadline.
#![allow(dead_code)] // every test program compiles this module and uses a part of it

pub mod harness;
pub mod servers;
pub mod target;

use std::time::{Duration, Instant};

/// Longer than anything here takes on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Asks again and again until there is an answer; panics with `what` when [`PATIENCE`] is over.
#[track_caller]
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
