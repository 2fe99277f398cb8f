//! `type = "http_lookup"`.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::value::{Text, count, duration, list, write_duration, write_list};
use crate::mail::Domain;
use crate::policy::{HttpService, Memory, UrlTemplate};

/// A service that is asked who exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpLookup {
    /// What is asked for.
    pub url: Text<UrlTemplate>,
    /// A file with a header field that goes with every question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header_file: Option<PathBuf>,
    /// A file with the certificates of those who may vouch for the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorities: Option<PathBuf>,
    /// Recipients in these domains are asked about; none: in all.
    #[serde(default, deserialize_with = "list", serialize_with = "write_list")]
    pub domains: Vec<Domain>,
    /// Questions at a time.
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

impl HttpLookup {
    /// Whom to ask, and how.
    pub fn service(&self) -> HttpService {
        HttpService {
            url: self.url.0.clone(),
            header_file: self.header_file.clone(),
            authorities: self.authorities.clone(),
            connections_max: self.connections_max,
        }
    }

    /// How answers are remembered.
    pub fn memory(&self) -> Memory {
        let HttpLookup { positive_ttl: positive, negative_ttl: negative, stale, entries_max, .. } = *self;
        Memory { positive, negative, stale, entries_max }
    }
}
