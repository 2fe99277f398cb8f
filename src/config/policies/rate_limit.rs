//! `type = "rate_limit"`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::value::{Word, count, duration, size, word, write_duration, write_word};
use crate::limits::GIB;
use crate::policy::{Counted, Limit, Per};

/// A hundred thousand addresses at a time are some 13 MiB, and 65 MiB where each comes again and again.
const ENTRIES_MAX_DEFAULT: usize = 100_000;

/// So much in any window of time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Settings", into = "Settings")]
pub struct RateLimit {
    /// The limit; it is known for whom to count.
    pub limit: Limit,
    /// Keys that are remembered at a time.
    pub entries_max: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(deserialize_with = "word", serialize_with = "write_word")]
    count: Counted,
    #[serde(default = "default_per", deserialize_with = "word", serialize_with = "write_word")]
    per: Per,
    #[serde(deserialize_with = "size::<1, { 1024 * GIB }, _, _>")]
    limit: u64,
    #[serde(deserialize_with = "duration::<1, 604_800, _>", serialize_with = "write_duration")]
    window: Duration,
    #[serde(default = "default_entries", deserialize_with = "count::<1, 10_000_000, _, _>")]
    entries_max: usize,
}

fn default_per() -> Per {
    Per::Address
}

fn default_entries() -> usize {
    ENTRIES_MAX_DEFAULT
}

impl Word for Counted {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("connections", Counted::Connections),
        ("transactions", Counted::Transactions),
        ("recipients", Counted::Recipients),
        ("bytes", Counted::Bytes),
    ];
}

impl Word for Per {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("address", Per::Address),
        ("network", Per::Network),
        ("sender_domain", Per::SenderDomain),
        ("sender", Per::Sender),
        ("recipient", Per::Recipient),
    ];
}

impl TryFrom<Settings> for RateLimit {
    type Error = &'static str;

    fn try_from(settings: Settings) -> Result<Self, Self::Error> {
        let Settings { count: counted, per, limit, window, entries_max } = settings;
        match (Limit::check(counted, per), per) {
            (Ok(()), _) => Ok(RateLimit { limit: Limit { counted, per, limit, window }, entries_max }),
            (Err(_), Per::Recipient) => Err(
                "per = \"recipient\" goes with count = \"recipients\", which counts the messages for each",
            ),
            (Err(_), _) => Err(
                "of count = \"connections\" no sender is known: expected per = \"address\" or \"network\"",
            ),
        }
    }
}

impl From<RateLimit> for Settings {
    fn from(RateLimit { limit, entries_max }: RateLimit) -> Self {
        let Limit { counted, per, limit, window } = limit;
        Settings { count: counted, per, limit, window, entries_max }
    }
}
