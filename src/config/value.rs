//! The values of fields: read from TOML or from the text of a variable or flag by the same rules, and written back.
//!
//! A field takes its own TOML type or a string, so that one parser serves file, environment and flags, and a fault always says
//! what would have been accepted.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::client::{Endpoint, Protocol};
use crate::delivery::transport::PathTemplate;
use crate::limits::{CORE_MAX, GIB, KIB, MIB, SHARDS_MAX};
use crate::mail::{Domain, Tag, TlsVersion};
use crate::policy::UrlTemplate;
use crate::smtp::{AuthMode, Dialect, TlsMode};
use crate::tls::CertificateFiles;

/// A size in octets from `LOW` to `HIGH`: an integer, or a number with a unit.
pub fn size<'de, const LOW: u64, const HIGH: u64, T: TryFrom<u64>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let expected = || {
        let (low, high) = (size_text(LOW), size_text(HIGH));
        format!("a size from {low} to {high}, such as \"64 MiB\", \"10MB\" or 65536")
    };
    scalar(deserializer, expected, |text| {
        let size = text.parse::<ByteSize>().ok()?.as_u64();
        if (LOW..=HIGH).contains(&size) { T::try_from(size).ok() } else { None }
    })
}

/// Writes a size in the largest unit that divides it.
pub fn write_size<T: Copy + TryInto<u64>, S: Serializer>(size: &T, serializer: S) -> Result<S::Ok, S::Error> {
    match (*size).try_into() {
        Ok(size) if size != 0 && size.is_multiple_of(KIB) => serializer.serialize_str(&size_text(size)),
        Ok(size) => serializer.serialize_u64(size),
        Err(_) => unreachable!("sizes are 64-bit"),
    }
}

/// A size in the largest unit that divides it.
pub fn size_text(size: u64) -> String {
    let units = [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    match units.into_iter().find(|(unit, _)| size != 0 && size.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", size / unit),
        None => size.to_string(),
    }
}

/// A whole number from `LOW` to `HIGH`.
pub fn count<'de, const LOW: u64, const HIGH: u64, T: TryFrom<u64>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    scalar(
        deserializer,
        || format!("a whole number from {LOW} to {HIGH}"),
        |text| {
            let count = text.parse().ok()?;
            if (LOW..=HIGH).contains(&count) { T::try_from(count).ok() } else { None }
        },
    )
}

/// A whole number from `LOW` to `HIGH`, which may be below zero.
pub fn integer<'de, const LOW: i32, const HIGH: i32, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<i32, D::Error> {
    scalar(
        deserializer,
        || format!("a whole number from {LOW} to {HIGH}"),
        |text| text.parse().ok().filter(|number| (LOW..=HIGH).contains(number)),
    )
}

/// A duration from `LOW` to `HIGH` seconds, with its unit.
pub fn duration<'de, const LOW: u64, const HIGH: u64, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    let expected = || {
        let bound = |seconds| duration_text(Duration::from_secs(seconds));
        format!("a duration from {} to {}, such as \"5m\", \"300s\" or \"1h 30m\"", bound(LOW), bound(HIGH))
    };
    scalar(deserializer, expected, |text| {
        let duration = humantime::parse_duration(text).ok()?;
        let bounds = Duration::from_secs(LOW)..=Duration::from_secs(HIGH);
        // "0" is the one number that the crate takes without a unit; where it is allowed it means what it says.
        bounds.contains(&duration).then_some(duration)
    })
}

/// Writes a duration with units.
pub fn write_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&duration_text(*duration))
}

fn duration_text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// `true` or `false`.
pub fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    scalar(deserializer, || "true or false".into(), |text| text.parse().ok())
}

/// A choice between words.
pub trait Word: Copy + PartialEq + 'static {
    /// The words and what they mean.
    const WORDS: &'static [(&'static str, Self)];
}

/// One of the words of a choice.
pub fn word<'de, T: Word, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let expected = || {
        let words: Vec<_> = T::WORDS.iter().map(|(word, _)| format!("{word:?}")).collect();
        format!("one of {}", words.join(", "))
    };
    let parse = |text: &str| T::WORDS.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    scalar(deserializer, expected, parse)
}

/// Writes the word of a choice.
pub fn write_word<T: Word, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    let (word, _) = T::WORDS.iter().find(|(_, one)| one == value).expect("every value has a word");
    serializer.serialize_str(word)
}

impl Word for TlsMode {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("disabled", TlsMode::Disabled),
        ("optional", TlsMode::Optional),
        ("required", TlsMode::Required),
        ("implicit", TlsMode::Implicit),
    ];
}

impl Word for AuthMode {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("disabled", AuthMode::Disabled),
        ("optional", AuthMode::Optional),
        ("required", AuthMode::Required),
    ];
}

impl Word for Dialect {
    const WORDS: &'static [(&'static str, Self)] = &[("smtp", Dialect::Smtp), ("lmtp", Dialect::Lmtp)];
}

impl Word for Protocol {
    const WORDS: &'static [(&'static str, Self)] = &[("smtp", Protocol::Smtp), ("lmtp", Protocol::Lmtp)];
}

impl Word for TlsVersion {
    const WORDS: &'static [(&'static str, Self)] = &[("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)];
}

impl Word for super::ClientCertificates {
    const WORDS: &'static [(&'static str, Self)] =
        &[("ignore", Self::Ignore), ("request", Self::Request), ("require", Self::Require)];
}

/// A value that is parsed by its own rules and written as text.
#[derive(Clone, Debug, PartialEq)]
pub struct Text<T>(pub T);

/// What can be read as [`Text`].
pub trait Parsed: Sized {
    /// What would be accepted.
    const EXPECTED: &'static str;

    /// The value of `text`.
    fn parsed(text: &str) -> Option<Self>;
}

impl<'de, T: Parsed> serde::Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, || T::EXPECTED.into(), T::parsed).map(Text)
    }
}

impl<T: Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl Parsed for Domain {
    const EXPECTED: &'static str = "a domain such as \"example.com\"";

    fn parsed(text: &str) -> Option<Self> {
        Domain::parse(text, true).ok()
    }
}

/// A host name: a domain in ASCII, since it stands in replies.
#[derive(Clone, Debug, PartialEq)]
pub struct HostName(pub Domain);

impl Parsed for HostName {
    const EXPECTED: &'static str = "a host name such as \"mx.example.com\"";

    fn parsed(text: &str) -> Option<Self> {
        Domain::parse(text, false).ok().map(HostName)
    }
}

impl Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Parsed for Endpoint {
    const EXPECTED: &'static str = Endpoint::EXPECTED;

    fn parsed(text: &str) -> Option<Self> {
        Endpoint::parse(text)
    }
}

impl Parsed for Tag {
    const EXPECTED: &'static str = Tag::EXPECTED;

    fn parsed(text: &str) -> Option<Self> {
        Tag::parse(text)
    }
}

impl Parsed for PathTemplate {
    const EXPECTED: &'static str =
        "a path, in which {domain}, {local} and {recipient} stand for parts of an address";

    fn parsed(text: &str) -> Option<Self> {
        PathTemplate::parse(text).ok()
    }
}

impl Parsed for UrlTemplate {
    const EXPECTED: &'static str = UrlTemplate::EXPECTED;

    fn parsed(text: &str) -> Option<Self> {
        UrlTemplate::parse(text)
    }
}

impl Parsed for SocketAddr {
    const EXPECTED: &'static str = "an address with a port such as \"0.0.0.0:25\" or \"[::]:25\"";

    fn parsed(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Parsed for IpNet {
    const EXPECTED: &'static str = "a network such as \"192.0.2.0/24\" or \"2001:db8::/32\"";

    fn parsed(text: &str) -> Option<Self> {
        text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()
    }
}

/// A list of cores: ascending, each once.
#[derive(Clone, Debug, PartialEq)]
pub struct Cores(pub Vec<usize>);

impl Parsed for Cores {
    const EXPECTED: &'static str = "a list of cores such as \"0-3,8\", each once, at most 1024";

    fn parsed(text: &str) -> Option<Self> {
        let mut cores = Vec::new();
        for range in text.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str| {
                let digits = text.trim();
                let is_number = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
                digits.parse().ok().filter(|core| is_number && *core <= CORE_MAX)
            };
            let (first, last): (usize, usize) = (number(first)?, number(last)?);
            if first > last {
                return None;
            }
            cores.extend(first..=last);
        }
        let named = cores.len();
        cores.sort_unstable();
        cores.dedup();
        (cores.len() == named && named as u64 <= SHARDS_MAX).then_some(Cores(cores))
    }
}

impl Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match range {
                [core] => write!(f, "{comma}{core}")?,
                _ => write!(f, "{comma}{}-{}", range[0], range[range.len() - 1])?,
            }
        }
        Ok(())
    }
}

/// A list of values: an array of strings, or one string with commas between.
pub fn list<'de, T: Parsed, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct ListVisitor<T>(PhantomData<T>);

    impl<'de, T: Parsed> Visitor<'de> for ListVisitor<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list, each {}", T::EXPECTED)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
            let items = text.split(',').map(str::trim).filter(|_| !text.trim().is_empty());
            items.map(|item| T::parsed(item).ok_or_else(|| unexpected(T::EXPECTED, &quoted(item)))).collect()
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(Text(item)) = items.next_element()? {
                list.push(item);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_any(ListVisitor(PhantomData))
}

/// Writes what [`list`] reads.
pub fn write_list<T: Display, S: Serializer>(items: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(items.iter().map(ToString::to_string))
}

/// Pairs of PEM files: an array of tables, or one string `chain:key` with commas between.
pub fn certificates<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<CertificateFiles>, D::Error> {
    const EXPECTED: &str = "{ chain = \"chain.pem\", key = \"key.pem\" } for each certificate";

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, expecting = "{ chain = \"chain.pem\", key = \"key.pem\" }")]
    struct Pair {
        chain: PathBuf,
        key: PathBuf,
    }

    struct PairsVisitor;

    impl<'de> Visitor<'de> for PairsVisitor {
        type Value = Vec<CertificateFiles>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list, {EXPECTED}")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            let items = text.split(',').map(str::trim).filter(|_| !text.trim().is_empty());
            let pair = |item: &str| match item.split_once(':') {
                Some((chain, key)) if !chain.is_empty() && !key.is_empty() => {
                    Ok(CertificateFiles { chain: chain.into(), key: key.into() })
                }
                _ => Err(unexpected("\"chain.pem:key.pem\", with commas between", &quoted(item))),
            };
            items.map(pair).collect()
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(Pair { chain, key }) = items.next_element()? {
                list.push(CertificateFiles { chain, key });
            }
            Ok(list)
        }
    }

    deserializer.deserialize_any(PairsVisitor)
}

/// Writes what [`certificates`] reads.
pub fn write_certificates<S: Serializer>(
    pairs: &[CertificateFiles],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer
        .collect_seq(pairs.iter().map(|pair| BTreeMap::from([("chain", &pair.chain), ("key", &pair.key)])))
}

fn scalar<'de, T, D: Deserializer<'de>>(
    deserializer: D,
    expected: impl Fn() -> String,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, D::Error> {
    struct ScalarVisitor<E, P>(E, P);

    impl<X: Fn() -> String, T, P: Fn(&str) -> Option<T>> ScalarVisitor<X, P> {
        fn value<E: Error>(&self, text: &str, given: String) -> Result<T, E> {
            (self.1)(text).ok_or_else(|| unexpected(&(self.0)(), &given))
        }
    }

    impl<X: Fn() -> String, T, P: Fn(&str) -> Option<T>> Visitor<'_> for ScalarVisitor<X, P> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&(self.0)())
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            self.value(text, quoted(text))
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
            self.value(&number.to_string(), number.to_string())
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
            self.value(&number.to_string(), number.to_string())
        }

        fn visit_bool<E: Error>(self, flag: bool) -> Result<T, E> {
            self.value(&flag.to_string(), flag.to_string())
        }
    }

    deserializer.deserialize_any(ScalarVisitor(expected, parse))
}

/// A value as a fault shows it.
pub fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn unexpected<E: Error>(expected: &str, given: &str) -> E {
    E::custom(format!("expected {expected}, not {given}"))
}
