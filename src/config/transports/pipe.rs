//! `type = "pipe"`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::config::value::{Word, duration, flag, word, write_duration, write_word};
use crate::delivery::transport::{CommandTemplate, LineEnds};

/// A command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipe {
    /// The program and its arguments.
    #[serde(deserialize_with = "command", serialize_with = "write_command")]
    pub command: CommandTemplate,
    /// As whom it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// With which group; otherwise the user's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Where it runs.
    #[serde(default = "default_directory")]
    pub directory: PathBuf,
    /// How long it may take.
    #[serde(
        default = "default_timeout",
        deserialize_with = "duration::<1, 86_400, _>",
        serialize_with = "write_duration"
    )]
    pub timeout: Duration,
    /// Whether `Return-Path:` is written first (RFC 5321 §4.4).
    #[serde(default, deserialize_with = "flag")]
    pub return_path: bool,
    /// Whether `Delivered-To:` is written next.
    #[serde(default, deserialize_with = "flag")]
    pub delivered_to: bool,
    /// How lines end.
    #[serde(default, deserialize_with = "word", serialize_with = "write_word")]
    pub line_ends: LineEnds,
    /// Variables of its environment.
    #[serde(default, deserialize_with = "environment", skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

fn default_directory() -> PathBuf {
    "/".into()
}

fn default_timeout() -> Duration {
    Duration::from_secs(10 * 60)
}

impl Word for LineEnds {
    const WORDS: &'static [(&'static str, Self)] = &[("lf", LineEnds::Lf), ("crlf", LineEnds::Crlf)];
}

fn command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CommandTemplate, D::Error> {
    CommandTemplate::parse(Vec::deserialize(deserializer)?).map_err(de::Error::custom)
}

fn write_command<S: Serializer>(command: &CommandTemplate, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(command.words())
}

fn environment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let variables = BTreeMap::<String, String>::deserialize(deserializer)?;
    let is_good = |(name, value): (&String, &String)| {
        !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
    };
    match variables.iter().all(is_good) {
        true => Ok(variables),
        false => Err(de::Error::custom("expected names without \"=\", and no NUL octets")),
    }
}
