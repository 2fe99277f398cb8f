//! `type = "greylist"`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::value::{count, duration, write_duration};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// Who is deferred, and for how long. The bounds of the three durations do not overlap: each is longer than the one before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Greylist {
    /// How long a triple that is seen for the first time is deferred.
    #[serde(deserialize_with = "duration::<1, HOUR, _>", serialize_with = "write_duration")]
    pub delay: Duration,
    /// When it has not come back by then it is forgotten.
    #[serde(
        deserialize_with = "duration::<{ 2 * HOUR }, { 10 * DAY }, _>",
        serialize_with = "write_duration"
    )]
    pub retry_window: Duration,
    /// How long one that came back is remembered since it was last seen.
    #[serde(deserialize_with = "duration::<DAY, { 400 * DAY }, _>", serialize_with = "write_duration")]
    pub pass_lifetime: Duration,
    /// After how many of a network the whole network passes; 0: never.
    #[serde(deserialize_with = "count::<0, 1000, _, _>")]
    pub network_passes_after: u16,
    /// Triples and networks remembered at most.
    #[serde(deserialize_with = "count::<1000, 10_000_000, _, _>")]
    pub entries_max: usize,
}

impl Default for Greylist {
    fn default() -> Self {
        Greylist {
            delay: Duration::from_secs(300),
            retry_window: Duration::from_secs(DAY),
            pass_lifetime: Duration::from_secs(35 * DAY),
            network_passes_after: 5,
            entries_max: 500_000,
        }
    }
}
