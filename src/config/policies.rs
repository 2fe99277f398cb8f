//! `[[policy]]`: the policies, in the order in which they are asked.
//!
//! Each has a type, the settings of that type, and what is said of every policy. A type is one line of `kinds!` and a file with its
//! settings.

mod at;
mod callout;
mod dnsbl;
mod greylist;
mod hello;
mod http_lookup;
mod networks;
mod policy_service;
mod rate_limit;
mod recipients_limit;
mod reverse_dns;
mod size_limit;
mod tls_required;

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use toml::Table;

use super::error::Fault;
use super::tables;
use super::value::{Word, duration, flag, word, write_duration, write_word};
use crate::policy::OnError;

pub use callout::Callout;
pub use dnsbl::Dnsbl;
pub use greylist::Greylist;
pub use hello::Hello;
pub use http_lookup::HttpLookup;
pub use networks::Networks;
pub use policy_service::PolicyService;
pub use rate_limit::RateLimit;
pub use recipients_limit::RecipientsLimit;
pub use reverse_dns::ReverseDns;
pub use size_limit::SizeLimit;
pub use tls_required::TlsRequired;

/// Policies at most: each is asked by every session.
const POLICIES_MAX: usize = 100;
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// One policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name in logs; none is given twice.
    pub name: String,
    /// Its verdicts are logged and counted only.
    pub dry_run: bool,
    /// What becomes of a session where it cannot decide.
    pub on_error: OnError,
    /// How long it may take where it must wait.
    pub timeout: Duration,
    /// What it does.
    pub kind: PolicyKind,
}

/// What is said of every policy.
#[derive(Serialize, Deserialize)]
struct Common {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    dry_run: bool,
    #[serde(default, deserialize_with = "word", serialize_with = "write_word")]
    on_error: OnError,
    #[serde(
        default = "default_timeout",
        deserialize_with = "duration::<1, 60, _>",
        serialize_with = "write_duration"
    )]
    timeout: Duration,
}

const COMMON_KEYS: [&str; 5] = ["type", "name", "dry_run", "on_error", "timeout"];

fn default_timeout() -> Duration {
    TIMEOUT_DEFAULT
}

impl Word for OnError {
    const WORDS: &'static [(&'static str, Self)] = &[("defer", OnError::Defer), ("ignore", OnError::Ignore)];
}

// What those have in common who ask somebody about recipients.

fn lookup_connections() -> usize {
    16
}

fn lookup_entries() -> usize {
    100_000
}

fn positive_ttl() -> Duration {
    Duration::from_secs(10 * 60)
}

fn negative_ttl() -> Duration {
    Duration::from_secs(60)
}

fn stale() -> Duration {
    Duration::from_secs(24 * 3600)
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $word:literal,)*) => {
        /// What a policy does.
        #[derive(Clone, Debug, PartialEq)]
        pub enum PolicyKind {
            $($(#[$doc])* $kind($kind),)*
        }

        impl PolicyKind {
            /// The words of all kinds.
            pub const WORDS: &[&str] = &[$($word),*];

            /// The word for it, as `type`.
            pub fn word(&self) -> &'static str {
                match self {
                    $(PolicyKind::$kind(_) => $word,)*
                }
            }

            /// `place` is the key of the table.
            fn read(word: &str, settings: Table, place: &str) -> Result<PolicyKind, Fault> {
                match word {
                    $($word => tables::read(settings, place).map(PolicyKind::$kind),)*
                    _ => {
                        let words: Vec<_> = Self::WORDS.iter().map(|word| format!("{word:?}")).collect();
                        let words = format!("expected one of {}, not {word:?}", words.join(", "));
                        Err(Fault::new(format!("{place}.type"), words))
                    }
                }
            }

            fn write(&self) -> Table {
                match self {
                    $(PolicyKind::$kind(settings) => tables::write(settings),)*
                }
            }
        }
    };
}

kinds! {
    /// Asks the mail store whether a recipient exists.
    Callout "callout",
    /// Asks lists in the DNS about peers.
    Dnsbl "dnsbl",
    /// Defers once who is not known yet.
    Greylist "greylist",
    /// Refuses peers by the name in HELO.
    Hello "hello",
    /// Asks a service over HTTP whether a recipient exists.
    HttpLookup "http_lookup",
    /// Sends peers away by their address, and vouches for others.
    Networks "networks",
    /// Asks another daemon.
    PolicyService "policy_service",
    /// Lets so much in, in any window of time.
    RateLimit "rate_limit",
    /// Bounds the recipients of strangers' transactions.
    RecipientsLimit "recipients_limit",
    /// Finds the name of a peer's address.
    ReverseDns "reverse_dns",
    /// Bounds the size of strangers' messages.
    SizeLimit "size_limit",
    /// Takes no mail of strangers without TLS.
    TlsRequired "tls_required",
}

/// The tables of `[[policy]]`, not looked into yet: what is wrong in them is told with their number.
pub fn tables<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Table>, D::Error> {
    tables::array(deserializer, "expected tables [[policy]]")
}

/// The policies that `tables` describe.
pub fn resolve(tables: Vec<Table>) -> Result<Vec<Policy>, Fault> {
    if tables.len() > POLICIES_MAX {
        return Err(Fault::new("policy", format!("expected at most {POLICIES_MAX} policies")));
    }
    let mut policies: Vec<Policy> = Vec::with_capacity(tables.len());
    for (n, table) in tables.into_iter().enumerate() {
        let place = format!("policy[{n}]");
        let policy = resolve_one(table, &place)?;
        if policies.iter().any(|other| other.name == policy.name) {
            let words = format!("two policies are named {:?}: give each a name of its own", policy.name);
            return Err(Fault::new(format!("{place}.name"), words));
        }
        policies.push(policy);
    }
    Ok(policies)
}

fn resolve_one(mut table: Table, place: &str) -> Result<Policy, Fault> {
    let common = tables::take(&mut table, &COMMON_KEYS);
    let Common { kind, name, dry_run, on_error, timeout } = tables::read(common, place)?;
    let kind = PolicyKind::read(&kind, table, place)?;
    let name = name.unwrap_or_else(|| kind.word().to_string());
    if !tables::is_name(&name) {
        let words = format!("expected {}, not {name:?}", tables::NAME_EXPECTED);
        return Err(Fault::new(format!("{place}.name"), words));
    }
    Ok(Policy { name, dry_run, on_error, timeout, kind })
}

/// The table that gives `policy` again.
pub fn write(policy: &Policy) -> Table {
    let common = Common {
        kind: policy.kind.word().into(),
        name: Some(policy.name.clone()),
        dry_run: policy.dry_run,
        on_error: policy.on_error,
        timeout: policy.timeout,
    };
    let mut table = policy.kind.write();
    table.extend(tables::write(&common));
    table
}
