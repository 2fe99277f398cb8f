//! `type = "dnsbl"`.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize, Serializer};

use super::at::FromConnect;
use crate::config::value::{HostName, Parsed, Text, Word, integer, list, word, write_word};
use crate::mail::{Domain, Phase};
use crate::policy::{List, Subject, Thresholds};

/// Lists at most: all are asked about every new peer.
const LISTS_MAX: usize = 32;

/// Lists in the DNS, and from which sum of their weights on what is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Dnsbl {
    /// At least one.
    pub lists: Vec<ListFile>,
    /// Whom they are asked about.
    #[serde(serialize_with = "write_word")]
    pub query: Subject,
    /// When.
    #[serde(serialize_with = "write_word")]
    pub at: FromConnect,
    /// The sum from which on the peer is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reject_at: Option<i32>,
    /// The sum from which on it is tagged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag_at: Option<i32>,
    /// The sum down from which it is vouched for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_at: Option<i32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    lists: Vec<ListFile>,
    #[serde(default, deserialize_with = "word")]
    query: Subject,
    #[serde(default, deserialize_with = "word")]
    at: FromConnect,
    #[serde(default, deserialize_with = "above_zero")]
    reject_at: Option<i32>,
    #[serde(default, deserialize_with = "above_zero")]
    tag_at: Option<i32>,
    #[serde(default, deserialize_with = "below_zero")]
    trust_at: Option<i32>,
}

/// One list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "{ zone = \"list.example\", weight = 1 }")]
pub struct ListFile {
    /// Below which it is asked.
    zone: Text<HostName>,
    /// What it is called to peers.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Text<HostName>>,
    #[serde(default = "default_weight", deserialize_with = "integer::<-1000, 1000, _>")]
    weight: i32,
    /// The answers that count; none: all that are no errors.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    answers: Vec<Answers>,
}

fn default_weight() -> i32 {
    1
}

fn above_zero<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    integer::<1, 100_000, _>(deserializer).map(Some)
}

fn below_zero<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    integer::<-100_000, -1, _>(deserializer).map(Some)
}

impl TryFrom<Unchecked> for Dnsbl {
    type Error = String;

    fn try_from(unchecked: Unchecked) -> Result<Self, String> {
        let Unchecked { lists, query, at, reject_at, tag_at, trust_at } = unchecked;
        if lists.is_empty() || lists.len() > LISTS_MAX {
            return Err(format!("expected 1 to {LISTS_MAX} lists"));
        }
        if [reject_at, tag_at, trust_at].iter().all(Option::is_none) {
            return Err("nothing follows from the lists: give it reject_at, tag_at or trust_at".into());
        }
        let first = match query {
            Subject::Address => Phase::Connect,
            Subject::Hello => Phase::Hello,
            Subject::Sender => Phase::Mail,
        };
        if at.0 < first {
            return Err("what is to be queried is not known yet at that time: give it a later `at`".into());
        }
        Ok(Dnsbl { lists, query, at, reject_at, tag_at, trust_at })
    }
}

impl Dnsbl {
    /// The lists.
    pub fn lists(&self) -> Vec<List> {
        let domain = |Text(HostName(domain)): &Text<HostName>| -> Domain { domain.clone() };
        let list = |list: &ListFile| List {
            zone: domain(&list.zone),
            name: domain(list.name.as_ref().unwrap_or(&list.zone)),
            weight: list.weight,
            answers: list.answers.iter().map(|Answers(first, last)| *first..=*last).collect(),
        };
        self.lists.iter().map(list).collect()
    }

    /// From which sum on what is done.
    pub fn thresholds(&self) -> Thresholds {
        Thresholds { reject_at: self.reject_at, tag_at: self.tag_at, trust_at: self.trust_at }
    }
}

impl Word for Subject {
    const WORDS: &'static [(&'static str, Self)] =
        &[("address", Subject::Address), ("sender", Subject::Sender), ("hello", Subject::Hello)];
}

/// One answer, or all from one to another.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Answers(Ipv4Addr, Ipv4Addr);

impl Parsed for Answers {
    const EXPECTED: &'static str =
        "an answer in 127.0.0.0/8 such as \"127.0.0.2\", or several such as \"127.0.0.2-127.0.0.11\"";

    fn parsed(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (Ipv4Addr, Ipv4Addr) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first.is_loopback() && last.is_loopback() && first <= last).then_some(Answers(first, last))
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Answers(first, last) = self;
        if first == last { first.fmt(f) } else { write!(f, "{first}-{last}") }
    }
}

impl Serialize for Answers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
