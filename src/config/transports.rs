//! `[transport.<name>]`: how messages leave.
//!
//! Each has a type, the settings of that type, and what is said of every transport. A type is one line of `kinds!` and a file with its
//! settings.

mod discard;
mod embedded;
mod lmtp;
mod maildir;
mod next_hop;
mod pipe;
mod smtp;
mod webhook;

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::Table;

use super::error::Fault;
use super::tables;
use super::value::{count, duration, write_duration};
use crate::delivery::Limits;

pub use discard::Discard;
pub use embedded::Embedded;
pub use lmtp::Lmtp;
pub use maildir::Maildir;
pub use next_hop::{Offer, Session};
pub use pipe::Pipe;
pub use smtp::Smtp;
pub use webhook::Webhook;

/// Attempts at a time of a transport, at most: some have a thread each, the others a connection.
pub const CONCURRENCY_MAX: u64 = 4096;

/// One transport.
#[derive(Clone, Debug, PartialEq)]
pub struct Transport {
    /// How much is asked of it.
    pub limits: Limits,
    /// What it does.
    pub kind: TransportKind,
}

/// What is said of every transport.
#[derive(Serialize, Deserialize)]
struct Common {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default, deserialize_with = "some_concurrency")]
    concurrency: Option<usize>,
    #[serde(default, deserialize_with = "count::<0, 1_000_000, _, _>")]
    rate: u32,
    #[serde(default = "breaker_failures", deserialize_with = "count::<0, 1_000_000, _, _>")]
    breaker_failures: u32,
    #[serde(
        default = "breaker_interval",
        deserialize_with = "duration::<1, 3600, _>",
        serialize_with = "write_duration"
    )]
    breaker_interval: Duration,
}

const COMMON_KEYS: [&str; 5] = ["type", "concurrency", "rate", "breaker_failures", "breaker_interval"];

fn some_concurrency<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    count::<1, CONCURRENCY_MAX, _, _>(deserializer).map(Some)
}

fn breaker_failures() -> u32 {
    Limits::default().breaker_failures
}

fn breaker_interval() -> Duration {
    Limits::default().breaker_interval
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $word:literal $concurrency:literal,)*) => {
        /// What a transport does.
        #[derive(Clone, Debug, PartialEq)]
        pub enum TransportKind {
            $($(#[$doc])* $kind($kind),)*
        }

        impl TransportKind {
            /// The words of all kinds.
            pub const WORDS: &[&str] = &[$($word),*];

            /// The word for it, as `type`.
            pub fn word(&self) -> &'static str {
                match self {
                    $(TransportKind::$kind(_) => $word,)*
                }
            }

            /// Attempts at a time, where nothing is said.
            fn concurrency(&self) -> usize {
                match self {
                    $(TransportKind::$kind(_) => $concurrency,)*
                }
            }

            /// `place` is the key of the table.
            fn read(word: &str, settings: Table, place: &str) -> Result<TransportKind, Fault> {
                match word {
                    $($word => tables::read(settings, place).map(TransportKind::$kind),)*
                    _ => {
                        let words: Vec<_> = Self::WORDS.iter().map(|word| format!("{word:?}")).collect();
                        let words = format!("expected one of {}, not {word:?}", words.join(", "));
                        Err(Fault::new(format!("{place}.type"), words))
                    }
                }
            }

            fn write(&self) -> Table {
                match self {
                    $(TransportKind::$kind(settings) => tables::write(settings),)*
                }
            }
        }
    };
}

kinds! {
    /// Delivers to nowhere, for measuring.
    Discard "discard" 32,
    /// Delivers into Maildirs.
    Maildir "maildir" 8,
    /// Gives to an LMTP server.
    Lmtp "lmtp" 32,
    /// Gives to SMTP servers.
    Smtp "smtp" 32,
    /// Delivers to a command.
    Pipe "pipe" 8,
    /// Posts messages to an application.
    Webhook "webhook" 32,
    /// Is brought along by the program that has the gateway in it.
    Embedded "embedded" 32,
}

/// The transport that `table` describes; `data` is the data directory.
pub fn resolve(name: &str, mut table: Table, data: &str) -> Result<Transport, Fault> {
    let place = format!("transport.{name}");
    if !tables::is_name(name) {
        return Err(Fault::new(place, format!("expected {}", tables::NAME_EXPECTED)));
    }
    let common = tables::take(&mut table, &COMMON_KEYS);
    let Common { kind, concurrency, rate, breaker_failures, breaker_interval } =
        tables::read(common, &place)?;
    let mut kind = TransportKind::read(kind.as_deref().unwrap_or("maildir"), table, &place)?;
    if let TransportKind::Maildir(maildir) = &mut kind {
        maildir.settle(data);
    }
    let limits = Limits {
        concurrency: concurrency.unwrap_or(kind.concurrency()),
        rate: NonZeroU32::new(rate),
        breaker_failures,
        breaker_interval,
    };
    Ok(Transport { limits, kind })
}

/// The table that gives `transport` again.
pub fn write(transport: &Transport) -> Table {
    let Limits { concurrency, rate, breaker_failures, breaker_interval } = transport.limits;
    let common = Common {
        kind: Some(transport.kind.word().into()),
        concurrency: Some(concurrency),
        rate: rate.map_or(0, NonZeroU32::get),
        breaker_failures,
        breaker_interval,
    };
    let mut table = transport.kind.write();
    table.extend(tables::write(&common));
    table
}
