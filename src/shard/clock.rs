//! What time it is on a shard: the only place of it that asks.

use std::cell::RefCell;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::mail::format_date;

/// The monotonic clock, for every timeout.
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock, in seconds since 1970: for trace fields and for times that must survive a restart.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The wall clock, in milliseconds since 1970: for what people are told.
pub fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The wall clock as text for trace fields. Written once a second, not once a message.
#[derive(Default)]
pub struct Dates {
    latest: RefCell<(u64, String)>,
}

impl Dates {
    /// Calls `with` with the date of `unix_time`.
    pub fn with<R>(&self, unix_time: u64, with: impl FnOnce(&str) -> R) -> R {
        let (second, text) = &mut *self.latest.borrow_mut();
        if *second != unix_time || text.is_empty() {
            text.clear();
            format_date(unix_time, text);
            *second = unix_time;
        }
        with(text)
    }
}
