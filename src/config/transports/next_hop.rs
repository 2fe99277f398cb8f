//! What the transports `lmtp` and `smtp` have in common: how servers are spoken to.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::client::{Bounds, Timeouts, TlsUse};
use crate::config::value::{Parsed, Word};
use crate::mail::Capabilities;

impl Word for TlsUse {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("off", TlsUse::Off),
        ("opportunistic", TlsUse::Opportunistic),
        ("required", TlsUse::Required),
        ("implicit", TlsUse::Implicit),
    ];
}

/// An extension that a server is known to offer: it is offered to clients too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// BINARYMIME and CHUNKING.
    Binary,
    /// DSN.
    Dsn,
    /// REQUIRETLS.
    RequireTls,
}

impl Offer {
    const WORDS: [(&'static str, Offer); 3] =
        [("binarymime", Offer::Binary), ("dsn", Offer::Dsn), ("requiretls", Offer::RequireTls)];

    /// What can be carried beyond plain mail where all of these are offered.
    pub fn capabilities(offers: &[Offer]) -> Capabilities {
        Capabilities {
            binary: offers.contains(&Offer::Binary),
            dsn: offers.contains(&Offer::Dsn),
            require_tls: offers.contains(&Offer::RequireTls),
        }
    }
}

impl Parsed for Offer {
    const EXPECTED: &'static str = "one of \"binarymime\", \"dsn\", \"requiretls\"";

    fn parsed(text: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(word, _)| *word == text).map(|(_, offer)| *offer)
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, _) = Self::WORDS.iter().find(|(_, offer)| offer == self).expect("each has a word");
        f.write_str(word)
    }
}

impl Serialize for Offer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How servers are spoken to. The bounds of connections at a time are the transport's.
#[derive(Clone, Debug)]
pub struct Session {
    /// What we call ourselves, if not by our host name.
    pub hello: Option<String>,
    /// Whether and how connections are protected.
    pub tls: TlsUse,
    /// The name that certificates have to be for, if not the host's.
    pub tls_name: Option<String>,
    /// A file with the certificates of those who may vouch for servers.
    pub authorities: Option<PathBuf>,
    /// Who we are to servers that want to know.
    pub user: Option<String>,
    /// A file with the user's password.
    pub password_file: Option<PathBuf>,
    /// Whether the password is said without TLS, too.
    pub auth_in_clear: bool,
    /// What servers are known to offer.
    pub capabilities: Capabilities,
    /// Whether BDAT is said wherever it is offered.
    pub chunking: bool,
    /// Whether servers that offer XFORWARD are told where a message came from.
    pub xforward: bool,
    /// How long steps may take.
    pub timeouts: Timeouts,
    /// What is kept of connections.
    pub bounds: Bounds,
}

pub(super) fn connect_timeout() -> Duration {
    Duration::from_secs(30)
}

/// RFC 5321 §4.5.3.2.1 to .3.
pub(super) fn command_timeout() -> Duration {
    Duration::from_secs(300)
}

/// RFC 5321 §4.5.3.2.5.
pub(super) fn content_timeout() -> Duration {
    Duration::from_secs(180)
}

/// RFC 5321 §4.5.3.2.6.
pub(super) fn end_timeout() -> Duration {
    Duration::from_secs(600)
}

pub(super) fn idle_timeout() -> Duration {
    Duration::from_secs(60)
}

pub(super) fn connections_idle_max() -> usize {
    16
}

pub(super) fn messages_per_connection_max() -> u32 {
    1000
}

pub(super) fn off() -> TlsUse {
    TlsUse::Off
}

pub(super) fn opportunistic() -> TlsUse {
    TlsUse::Opportunistic
}

/// A struct of settings with those of [`Session`] behind its own; `tls` is the function that gives their default.
macro_rules! with_session {
    (
        $(#[$doc:meta])*
        pub struct $name:ident ($tls:literal) {
            $($(#[$meta:meta])* pub $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$meta])* pub $field: $type,)*
            /// What we call ourselves; without it, our host name.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub hello: Option<crate::config::value::Text<crate::config::value::HostName>>,
            /// Whether and how connections are protected.
            #[serde(
                default = $tls,
                deserialize_with = "crate::config::value::word",
                serialize_with = "crate::config::value::write_word"
            )]
            pub tls: crate::client::TlsUse,
            /// The name that certificates have to be for; without it, the name of the host.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub tls_name: Option<String>,
            /// A file with the certificates of those who may vouch for servers; without it, the system's.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub authorities: Option<std::path::PathBuf>,
            /// Who we are to servers that want to know.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub user: Option<String>,
            /// A file with the user's password.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub password_file: Option<std::path::PathBuf>,
            /// Whether the password is said without TLS, too.
            #[serde(default, deserialize_with = "crate::config::value::flag")]
            pub auth_in_clear: bool,
            /// What servers are known to offer, so that it is offered to clients.
            #[serde(
                default,
                deserialize_with = "crate::config::value::list",
                serialize_with = "crate::config::value::write_list"
            )]
            pub offers: Vec<crate::config::transports::Offer>,
            /// Whether BDAT is said wherever it is offered, and not for binary content only.
            #[serde(default, deserialize_with = "crate::config::value::flag")]
            pub chunking: bool,
            /// Whether servers that offer XFORWARD are told where a message came from.
            #[serde(default, deserialize_with = "crate::config::value::flag")]
            pub xforward: bool,
            /// Connecting, and shaking hands.
            #[serde(
                default = "super::next_hop::connect_timeout",
                deserialize_with = "crate::config::value::duration::<1, 600, _>",
                serialize_with = "crate::config::value::write_duration"
            )]
            pub connect_timeout: std::time::Duration,
            /// The greeting, and each command until its reply is whole.
            #[serde(
                default = "super::next_hop::command_timeout",
                deserialize_with = "crate::config::value::duration::<1, 3600, _>",
                serialize_with = "crate::config::value::write_duration"
            )]
            pub command_timeout: std::time::Duration,
            /// Each 64 KiB of content, until they are sent.
            #[serde(
                default = "super::next_hop::content_timeout",
                deserialize_with = "crate::config::value::duration::<1, 3600, _>",
                serialize_with = "crate::config::value::write_duration"
            )]
            pub content_timeout: std::time::Duration,
            /// From the end of the content to its reply.
            #[serde(
                default = "super::next_hop::end_timeout",
                deserialize_with = "crate::config::value::duration::<1, 3600, _>",
                serialize_with = "crate::config::value::write_duration"
            )]
            pub end_timeout: std::time::Duration,
            /// Connections to one host that are kept open while nothing is sent.
            #[serde(
                default = "super::next_hop::connections_idle_max",
                deserialize_with = "crate::config::value::count::<0, 4096, _, _>"
            )]
            pub connections_idle_max: usize,
            /// And for how long.
            #[serde(
                default = "super::next_hop::idle_timeout",
                deserialize_with = "crate::config::value::duration::<1, 3600, _>",
                serialize_with = "crate::config::value::write_duration"
            )]
            pub idle_timeout: std::time::Duration,
            /// Attempts over one connection.
            #[serde(
                default = "super::next_hop::messages_per_connection_max",
                deserialize_with = "crate::config::value::count::<1, 1_000_000, _, _>"
            )]
            pub messages_per_connection_max: u32,
        }

        impl $name {
            /// How servers are spoken to.
            pub fn session(&self) -> crate::config::transports::Session {
                crate::config::transports::Session {
                    hello: self.hello.as_ref().map(|hello| hello.0.0.to_string()),
                    tls: self.tls,
                    tls_name: self.tls_name.clone(),
                    authorities: self.authorities.clone(),
                    user: self.user.clone(),
                    password_file: self.password_file.clone(),
                    auth_in_clear: self.auth_in_clear,
                    capabilities: crate::config::transports::Offer::capabilities(&self.offers),
                    chunking: self.chunking,
                    xforward: self.xforward,
                    timeouts: crate::client::Timeouts {
                        connect: self.connect_timeout,
                        greeting: self.command_timeout,
                        command: self.command_timeout,
                        content: self.content_timeout,
                        end: self.end_timeout,
                    },
                    bounds: crate::client::Bounds {
                        connections_max: usize::MAX,
                        idle_max: self.connections_idle_max,
                        idle_timeout: self.idle_timeout,
                        uses_max: self.messages_per_connection_max,
                    },
                }
            }
        }
    };
}

pub(super) use with_session;
