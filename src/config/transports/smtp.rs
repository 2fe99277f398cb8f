//! `type = "smtp"`.

use std::fmt;

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

use super::next_hop::with_session;
use crate::client::Endpoint;
use crate::config::value::{Parsed, Text, count, list, write_list};
use crate::mail::Domain;

/// The port of a server where none is given.
const SMTP_PORT: u16 = 25;
/// The priority of a host where none is given.
const PRIORITY: u16 = 10;

with_session! {
    /// Servers that take mail by SMTP (RFC 5321).
    pub struct Smtp ("super::next_hop::opportunistic") {
        /// These hosts.
        #[serde(default, deserialize_with = "hosts", skip_serializing_if = "Vec::is_empty")]
        pub hosts: Vec<SmtpHost>,
        /// The exchanges of the recipient's domain, which has to be one of these.
        #[serde(default, deserialize_with = "list", serialize_with = "write_list", skip_serializing_if = "Vec::is_empty")]
        pub mx: Vec<Domain>,
        /// The exchanges of this domain.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub mx_domain: Option<Text<Domain>>,
        /// The port of hosts that are found in the DNS.
        #[serde(default = "smtp_port", deserialize_with = "count::<1, 65535, _, _>")]
        pub port: u16,
    }
}

impl Smtp {
    /// Where mail goes, in a few words.
    pub fn summary(&self) -> String {
        match (&self.hosts[..], &self.mx_domain) {
            ([], Some(domain)) => format!("the exchanges of {}", domain.0),
            ([], None) => "the exchanges of recipients' domains".into(),
            ([first], _) => first.address.0.to_string(),
            ([first, rest @ ..], _) => format!("{} and {} more", first.address.0, rest.len()),
        }
    }
}

fn smtp_port() -> u16 {
    SMTP_PORT
}

/// A host with its priority; lower ones are asked first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SmtpHost {
    /// Where it listens.
    pub address: Text<Host>,
    /// Its priority.
    pub priority: u16,
}

/// Where a host listens: on port 25, where none is given.
#[derive(Clone, Debug, PartialEq)]
pub struct Host(pub Endpoint);

impl Parsed for Host {
    const EXPECTED: &'static str =
        "a host such as \"mx1.example.com\" or \"192.0.2.1:2525\", or \"unix:/run/smtp\"";

    fn parsed(text: &str) -> Option<Self> {
        Endpoint::parse(text).or_else(|| Endpoint::parse(&format!("{text}:{SMTP_PORT}"))).map(Host)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Hosts with or without priorities; or one string with commas between.
fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SmtpHost>, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Full {
        address: Text<Host>,
        #[serde(default = "priority", deserialize_with = "count::<0, 65535, _, _>")]
        priority: u16,
    }

    fn priority() -> u16 {
        PRIORITY
    }

    let expected =
        || format!("expected a list, each {}, or {{ address = \"…\", priority = 10 }}", Host::EXPECTED);
    let one = |text: &str| {
        let address = Text(Host::parsed(text.trim()).ok_or_else(|| D::Error::custom(expected()))?);
        Ok(SmtpHost { address, priority: PRIORITY })
    };
    match toml::Value::deserialize(deserializer)? {
        toml::Value::String(text) => text.split(',').map(one).collect(),
        toml::Value::Array(items) => items
            .into_iter()
            .map(|item| match item {
                toml::Value::String(text) => one(&text),
                other => {
                    let Full { address, priority } = other
                        .try_into()
                        .map_err(|e: toml::de::Error| D::Error::custom(e.message().trim()))?;
                    Ok(SmtpHost { address, priority })
                }
            })
            .collect(),
        _ => Err(D::Error::custom(expected())),
    }
}
