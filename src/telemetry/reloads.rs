//! How often files were read anew while the process runs. Few, so that all threads count in one place.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// What is read anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// The configuration.
    Configuration,
    /// Certificates with their keys.
    Certificates,
    /// Users and their passwords.
    Credentials,
    /// Maps of recipients.
    Maps,
}

impl Reload {
    const ALL: [Reload; 4] = [Reload::Configuration, Reload::Certificates, Reload::Credentials, Reload::Maps];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Reload::Configuration => "configuration",
            Reload::Certificates => "certificates",
            Reload::Credentials => "credentials",
            Reload::Maps => "maps",
        }
    }
}

/// What is known of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloads {
    /// Of what.
    pub what: Reload,
    /// How often it was good, and is used since.
    pub good: u64,
    /// How often it was not, and what there was is used on.
    pub bad: u64,
    /// When the last good one was, in seconds since 1970; 0: never.
    pub last_good: u64,
    /// Whether the last one was good; so it is before the first.
    pub is_good: bool,
}

#[derive(Default)]
struct Counts {
    good: AtomicU64,
    bad: AtomicU64,
    last_good: AtomicU64,
    failed_last: AtomicU64,
}

static COUNTS: [Counts; 4] = [const {
    Counts {
        good: AtomicU64::new(0),
        bad: AtomicU64::new(0),
        last_good: AtomicU64::new(0),
        failed_last: AtomicU64::new(0),
    }
}; 4];

/// It was read anew, and `is_good`.
pub fn reloaded(what: Reload, is_good: bool) {
    let counts = &COUNTS[what as usize];
    counts.failed_last.store(u64::from(!is_good), Ordering::Relaxed);
    if is_good {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        counts.last_good.store(now, Ordering::Relaxed);
        counts.good.fetch_add(1, Ordering::Relaxed);
    } else {
        counts.bad.fetch_add(1, Ordering::Relaxed);
    }
}

/// What was counted.
pub fn reloads() -> [Reloads; 4] {
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Reload::ALL.map(|what| {
        let counts = &COUNTS[what as usize];
        Reloads {
            what,
            good: read(&counts.good),
            bad: read(&counts.bad),
            last_good: read(&counts.last_good),
            is_good: read(&counts.failed_last) == 0,
        }
    })
}
