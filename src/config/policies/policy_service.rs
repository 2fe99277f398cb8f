//! `type = "policy_service"`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::config::value::{Parsed, Text, count, duration, flag, list, write_duration};
use crate::mail::Phase;
use crate::policy::ServiceAddress;

/// Where a policy service is, and when it is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyService {
    /// Where it listens.
    pub address: Text<ServiceAddress>,
    /// When it is asked.
    #[serde(default = "default_at", deserialize_with = "phases")]
    pub at: Vec<At>,
    /// It is asked about strangers only.
    #[serde(default = "default_strangers_only", deserialize_with = "flag")]
    pub strangers_only: bool,
    /// What it is told as `policy_context`.
    #[serde(default)]
    pub context: Text<Context>,
    /// Connections to it at most.
    #[serde(default = "default_connections_max", deserialize_with = "count::<1, 1000, _, _>")]
    pub connections_max: usize,
    /// After so many failures in a row it is left alone; 0: never.
    #[serde(default = "default_failures_max", deserialize_with = "count::<0, 1000, _, _>")]
    pub failures_max: u32,
    /// For how long.
    #[serde(
        default = "default_retry_interval",
        deserialize_with = "duration::<1, 3600, _>",
        serialize_with = "write_duration"
    )]
    pub retry_interval: Duration,
}

fn default_at() -> Vec<At> {
    vec![At(Phase::Recipient)]
}

/// At least one: without any it would never be asked.
fn phases<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<At>, D::Error> {
    let at = list(deserializer)?;
    match at.is_empty() {
        true => Err(de::Error::custom(format!("expected a list, each {}, not an empty one", At::EXPECTED))),
        false => Ok(at),
    }
}

fn default_strangers_only() -> bool {
    true
}

fn default_connections_max() -> usize {
    20
}

fn default_failures_max() -> u32 {
    5
}

fn default_retry_interval() -> Duration {
    Duration::from_secs(30)
}

impl Parsed for ServiceAddress {
    const EXPECTED: &'static str =
        "an address with a port such as \"127.0.0.1:10023\", or the path of a socket such as \"/run/policy\"";

    fn parsed(text: &str) -> Option<Self> {
        match text.starts_with('/') {
            true => Some(ServiceAddress::Unix(PathBuf::from(text))),
            false => {
                text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0).map(ServiceAddress::Tcp)
            }
        }
    }
}

/// A phase, by its word.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct At(pub Phase);

const WORDS: [(&str, Phase); 6] = [
    ("connect", Phase::Connect),
    ("hello", Phase::Hello),
    ("mail", Phase::Mail),
    ("recipient", Phase::Recipient),
    ("data", Phase::Data),
    ("message", Phase::Message),
];

impl Parsed for At {
    const EXPECTED: &'static str =
        "one of \"connect\", \"hello\", \"mail\", \"recipient\", \"data\", \"message\"";

    fn parsed(text: &str) -> Option<Self> {
        WORDS.iter().find(|(word, _)| *word == text).map(|(_, phase)| At(*phase))
    }
}

impl Serialize for At {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (word, _) = WORDS.iter().find(|(_, phase)| *phase == self.0).expect("every phase has a word");
        serializer.serialize_str(word)
    }
}

/// A word or a few, in printable ASCII.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Context(pub String);

impl Parsed for Context {
    const EXPECTED: &'static str = "at most 100 characters of printable ASCII";

    fn parsed(text: &str) -> Option<Self> {
        let is_fit = text.len() <= 100 && text.bytes().all(|c| matches!(c, b' '..=b'~'));
        is_fit.then(|| Context(text.into()))
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Default for Text<Context> {
    fn default() -> Self {
        Text(Context::default())
    }
}
