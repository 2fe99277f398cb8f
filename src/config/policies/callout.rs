//! `type = "callout"`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::client::{Endpoint, Protocol};
use crate::config::value::{Text, count, duration, list, word, write_duration, write_list, write_word};
use crate::mail::Domain;
use crate::policy::Memory;

/// A mail store that is asked who exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Callout {
    /// Where it listens.
    pub address: Text<Endpoint>,
    /// What it speaks.
    #[serde(default = "lmtp", deserialize_with = "word", serialize_with = "write_word")]
    pub protocol: Protocol,
    /// Recipients in these domains are asked about; none: in all.
    #[serde(default, deserialize_with = "list", serialize_with = "write_list")]
    pub domains: Vec<Domain>,
    /// Connections at a time.
    #[serde(default = "super::lookup_connections", deserialize_with = "count::<1, 1000, _, _>")]
    pub connections_max: usize,
    /// How long it is remembered that somebody exists.
    #[serde(
        default = "super::positive_ttl",
        deserialize_with = "duration::<1, 2_592_000, _>",
        serialize_with = "write_duration"
    )]
    pub positive_ttl: Duration,
    /// How long it is remembered that somebody does not.
    #[serde(
        default = "super::negative_ttl",
        deserialize_with = "duration::<1, 2_592_000, _>",
        serialize_with = "write_duration"
    )]
    pub negative_ttl: Duration,
    /// For how long after that it serves while nobody can be asked.
    #[serde(
        default = "super::stale",
        deserialize_with = "duration::<0, 2_592_000, _>",
        serialize_with = "write_duration"
    )]
    pub stale: Duration,
    /// Answers that are remembered.
    #[serde(default = "super::lookup_entries", deserialize_with = "count::<1, 10_000_000, _, _>")]
    pub entries_max: usize,
}

fn lmtp() -> Protocol {
    Protocol::Lmtp
}

impl Callout {
    /// How answers are remembered.
    pub fn memory(&self) -> Memory {
        let Callout { positive_ttl: positive, negative_ttl: negative, stale, entries_max, .. } = *self;
        Memory { positive, negative, stale, entries_max }
    }
}
