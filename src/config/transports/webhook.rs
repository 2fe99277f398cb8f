//! `type = "webhook"`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::value::{
    Parsed, Text, Word, count, duration, list, word, write_duration, write_list, write_word,
};
use crate::delivery::transport::webhook::{Format, Settings, WebhookUrl, may_reject};
use crate::limits::RECIPIENTS_MAX_HIGH;

/// Where messages are posted, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// The endpoint.
    pub url: Text<WebhookUrl>,
    /// What is posted.
    #[serde(default, deserialize_with = "word", serialize_with = "write_word")]
    pub format: Format,
    /// A file with the secrets that sign requests, one a line; none: they are not signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// A file with header fields that go with every request, one a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header_file: Option<PathBuf>,
    /// A file with the certificates of those who may vouch for the endpoint; none: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorities: Option<PathBuf>,
    /// From the lookup of the name to the end of the handshake.
    #[serde(
        default = "default_connect_timeout",
        deserialize_with = "duration::<1, 300, _>",
        serialize_with = "write_duration"
    )]
    pub connect_timeout: Duration,
    /// For each piece of a message and for the answer; for the whole once, and once more for each MiB.
    #[serde(
        default = "default_timeout",
        deserialize_with = "duration::<1, 3600, _>",
        serialize_with = "write_duration"
    )]
    pub timeout: Duration,
    /// Recipients of one request.
    #[serde(
        default = "default_recipients_per_request_max",
        deserialize_with = "count::<1, RECIPIENTS_MAX_HIGH, _, _>"
    )]
    pub recipients_per_request_max: usize,
    /// Statuses that reject beside those that always do.
    #[serde(default, deserialize_with = "list", serialize_with = "write_list")]
    pub reject_statuses: Vec<RejectStatus>,
}

impl Webhook {
    /// What the transport is made with.
    pub fn settings(&self) -> Settings {
        Settings {
            url: self.url.0.clone(),
            format: self.format,
            secret_file: self.secret_file.clone(),
            header_file: self.header_file.clone(),
            authorities: self.authorities.clone(),
            connect_timeout: self.connect_timeout,
            timeout: self.timeout,
            recipients_per_request_max: self.recipients_per_request_max,
            reject_statuses: self.reject_statuses.iter().map(|status| status.0).collect(),
        }
    }
}

fn default_connect_timeout() -> Duration {
    Duration::from_secs(10)
}

fn default_timeout() -> Duration {
    Duration::from_secs(60)
}

fn default_recipients_per_request_max() -> usize {
    1000
}

impl Word for Format {
    const WORDS: &'static [(&'static str, Self)] = &[("rfc822", Format::Rfc822), ("json", Format::Json)];
}

impl Parsed for WebhookUrl {
    const EXPECTED: &'static str = WebhookUrl::EXPECTED;

    fn parsed(text: &str) -> Option<Self> {
        WebhookUrl::parse(text)
    }
}

/// A status by which an endpoint says that it does not want a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RejectStatus(pub u16);

impl Parsed for RejectStatus {
    const EXPECTED: &'static str = "a status from 400 to 499, as text, that is not 408, 425 or 429";

    fn parsed(text: &str) -> Option<Self> {
        text.parse().ok().filter(|status| may_reject(*status)).map(RejectStatus)
    }
}

impl fmt::Display for RejectStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
