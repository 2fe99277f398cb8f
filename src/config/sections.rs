//! The sections that are read as they are: their fields, defaults and bounds.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::value::{
    certificates, count, duration, list, size, word, write_certificates, write_duration, write_size,
    write_word,
};
use crate::delivery::Schedule;
use crate::limits::*;
use crate::mail::TlsVersion;
use crate::telemetry::log::{Format, Level};
use crate::tls::CertificateFiles;

/// `[smtp]`: what a session may do. Sizes in octets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [smtp]")]
pub struct Smtp {
    /// The largest content, announced with SIZE (RFC 1870).
    #[serde(
        deserialize_with = "size::<MESSAGE_SIZE_MAX_LOW, MESSAGE_SIZE_MAX_HIGH, _, _>",
        serialize_with = "write_size"
    )]
    pub message_size_max: u64,
    /// Recipients in one transaction.
    #[serde(deserialize_with = "count::<RECIPIENTS_MAX_LOW, RECIPIENTS_MAX_HIGH, _, _>")]
    pub recipients_max: usize,
    /// The longest command line with its CRLF. Ours is wider than the 512 octets of RFC 5321 because parameters may add to it.
    #[serde(
        deserialize_with = "size::<COMMAND_SIZE_MAX_LOW, COMMAND_SIZE_MAX_HIGH, _, _>",
        serialize_with = "write_size"
    )]
    pub command_size_max: usize,
    /// From a reply to the whole next command, however slowly its octets come (RFC 5321 §4.5.3.2.7: 5 minutes).
    #[serde(deserialize_with = "duration::<1, 86_400, _>", serialize_with = "write_duration")]
    pub command_timeout: Duration,
    /// Between two octets of content (RFC 5321 §4.5.3.2.5: 3 minutes).
    #[serde(deserialize_with = "duration::<1, 86_400, _>", serialize_with = "write_duration")]
    pub data_timeout: Duration,
    /// From greeting to end. Bounds what a peer holds that keeps within every other bound; the largest message still fits in it
    /// at 19 kB/s.
    #[serde(deserialize_with = "duration::<1, 604_800, _>", serialize_with = "write_duration")]
    pub session_timeout: Duration,
    /// Octets of content per second that a peer must keep up on average, once `data_timeout` has passed; 0: none.
    #[serde(deserialize_with = "size::<0, GIB, _, _>", serialize_with = "write_size")]
    pub content_rate_min: u64,
    /// Replies of class 5 in one session before it is ended with 421.
    #[serde(deserialize_with = "count::<1, 1_000_000, _, _>")]
    pub errors_max: u32,
    /// Commands in a row that bring no message forward (NOOP, RSET, VRFY, EHLO …) before the session is ended with 421.
    #[serde(deserialize_with = "count::<1, 1_000_000, _, _>")]
    pub idle_commands_max: u32,
    /// `Received:` lines in a message; one more is a loop (RFC 5321 §6.3).
    #[serde(deserialize_with = "count::<HOPS_MAX_LOW, 10_000, _, _>")]
    pub hops_max: u32,
    /// The largest header section. Real ones stay below 100 KiB.
    #[serde(deserialize_with = "size::<{ 64 * KIB }, GIB, _, _>", serialize_with = "write_size")]
    pub header_size_max: u64,
    /// How long the greeting is kept back; who speaks before it is answered 554 and sent away. 0: nobody is listened to before it.
    #[serde(deserialize_with = "duration::<0, 60, _>", serialize_with = "write_duration")]
    pub greeting_delay: Duration,
    /// How long an address that has waited for its greeting once need not wait again.
    #[serde(deserialize_with = "duration::<0, 31_536_000, _>", serialize_with = "write_duration")]
    pub greeting_delay_remembered: Duration,
    /// How long the reply to a refused command is kept back, after `error_delay_after` of them. 0: none is.
    #[serde(deserialize_with = "duration::<0, 60, _>", serialize_with = "write_duration")]
    pub error_delay: Duration,
    /// Refused commands since the last accepted message that are answered at once.
    #[serde(deserialize_with = "count::<0, 1_000_000, _, _>")]
    pub error_delay_after: u32,
    /// What becomes of content with a bare CR or LF.
    pub bare_line_ends: BareLineEnds,
    /// Peers in these networks may send bare line ends: they are made CRLF. Only for senders of one's own.
    #[serde(deserialize_with = "list")]
    pub normalise_bare_line_ends_from: Vec<IpNet>,
}

impl Default for Smtp {
    fn default() -> Self {
        Smtp {
            message_size_max: 64 * MIB,
            recipients_max: 1000,
            command_size_max: 4096,
            command_timeout: Duration::from_secs(5 * 60),
            data_timeout: Duration::from_secs(3 * 60),
            session_timeout: Duration::from_secs(60 * 60),
            content_rate_min: 500,
            errors_max: 20,
            idle_commands_max: 100,
            hops_max: 100,
            header_size_max: MIB,
            greeting_delay: Duration::ZERO,
            greeting_delay_remembered: Duration::from_secs(24 * 3600),
            error_delay: Duration::from_secs(1),
            error_delay_after: 10,
            bare_line_ends: BareLineEnds::Refuse,
            normalise_bare_line_ends_from: Vec::new(),
        }
    }
}

/// `smtp.bare_line_ends`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BareLineEnds {
    /// The message is refused (550 5.5.2): what one server takes for the end of a message another does not (SMTP smuggling).
    Refuse,
}

/// `[tls]`: what listeners show, and how. Paths of PEM files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [tls]")]
pub struct Tls {
    /// Chains and their keys; the first is the default.
    #[serde(deserialize_with = "certificates", serialize_with = "write_certificates")]
    pub certificates: Vec<CertificateFiles>,
    /// The oldest version that is spoken.
    #[serde(deserialize_with = "word", serialize_with = "write_word")]
    pub min_version: TlsVersion,
    /// Who may vouch for a client's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_authorities: Option<PathBuf>,
    /// From the first octet of a handshake to its end.
    #[serde(deserialize_with = "duration::<1, 300, _>", serialize_with = "write_duration")]
    pub handshake_timeout: Duration,
    /// Handshakes at a time, over all shards; beyond it STARTTLS is answered 454.
    #[serde(deserialize_with = "count::<1, 1_000_000, _, _>")]
    pub handshakes_max: usize,
}

impl Default for Tls {
    fn default() -> Self {
        Tls {
            certificates: Vec::new(),
            min_version: TlsVersion::Tls12,
            client_authorities: None,
            handshake_timeout: Duration::from_secs(10),
            handshakes_max: 10_000,
        }
    }
}

/// `[auth]`: who may log in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [auth]")]
pub struct Auth {
    /// The file of users and hashes of their passwords.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<PathBuf>,
    /// Threads that verify passwords. Each verification takes some 20 MiB and tens of milliseconds.
    #[serde(deserialize_with = "count::<1, 64, _, _>")]
    pub threads: usize,
    /// Attempts that may wait for a thread; beyond it AUTH is answered 454.
    #[serde(deserialize_with = "count::<1, 10_000, _, _>")]
    pub queue_max: usize,
}

impl Default for Auth {
    fn default() -> Self {
        Auth { credentials: None, threads: 1, queue_max: 64 }
    }
}

/// `[admission]`: who may connect, and how often at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [admission]")]
pub struct Admission {
    /// Connections of one address (IPv6: /64) at a time, over all shards; 0: as many as come.
    #[serde(deserialize_with = "count::<0, SESSIONS_MAX_HIGH, _, _>")]
    pub max_connections_per_ip: u32,
    /// Connections of one network (IPv4 /24, IPv6 /48) at a time, over all shards; 0: as many as come.
    #[serde(deserialize_with = "count::<0, SESSIONS_MAX_HIGH, _, _>")]
    pub max_connections_per_network: u32,
    /// Sessions of an address ended for what it did before it is banned; 0: nobody is banned.
    #[serde(deserialize_with = "count::<0, 1_000_000, _, _>")]
    pub ban_after: u32,
    /// Within this.
    #[serde(deserialize_with = "duration::<1, 86_400, _>", serialize_with = "write_duration")]
    pub ban_window: Duration,
    /// For so long, the first time.
    #[serde(deserialize_with = "duration::<1, 86_400, _>", serialize_with = "write_duration")]
    pub ban_time: Duration,
    /// Whom none of this concerns.
    #[serde(deserialize_with = "list")]
    pub exempt: Vec<IpNet>,
    /// Percent of sessions, memory, queue or `storage_wait_max` from which strangers wait for their greeting.
    #[serde(deserialize_with = "count::<1, 100, _, _>")]
    pub busy_at: u8,
    /// Percent of the same from which an address has a quarter of its connections, and sessions that say nothing end.
    #[serde(deserialize_with = "count::<1, 100, _, _>")]
    pub strained_at: u8,
    /// How long strangers wait for their greeting then.
    #[serde(deserialize_with = "duration::<0, 60, _>", serialize_with = "write_duration")]
    pub busy_greeting_delay: Duration,
    /// How long sessions may say nothing then.
    #[serde(deserialize_with = "duration::<1, 86_400, _>", serialize_with = "write_duration")]
    pub strained_patience: Duration,
    /// A message that waits so long to be durable is as bad as no room at all.
    #[serde(deserialize_with = "duration::<1, 3600, _>", serialize_with = "write_duration")]
    pub storage_wait_max: Duration,
}

impl Default for Admission {
    fn default() -> Self {
        let network = |text: &str| text.parse().expect("a network");
        Admission {
            // What Postfix has too: the largest senders keep fewer open to one host.
            max_connections_per_ip: 50,
            // Of a /48 one customer may have 65,536 /64s. A hundred such networks fill the sessions there are by default.
            max_connections_per_network: 1000,
            ban_after: 0,
            ban_window: Duration::from_secs(10 * 60),
            ban_time: Duration::from_secs(10 * 60),
            exempt: vec![network("127.0.0.0/8"), network("::1/128")],
            busy_at: 80,
            strained_at: 95,
            busy_greeting_delay: Duration::from_secs(2),
            strained_patience: Duration::from_secs(10),
            storage_wait_max: Duration::from_secs(5),
        }
    }
}

/// `listener.client_certificates`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Clients are not asked.
    #[default]
    Ignore,
    /// They are asked, and are not known without a certificate that can be verified.
    Request,
    /// Without one the handshake fails.
    Require,
}

/// `[spool]`: how messages are kept until they are delivered. Sizes in octets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [spool]")]
pub struct Spool {
    /// Where the queue is.
    pub queue: Queue,
    /// The memory queue's segments, over all shards; then 452.
    #[serde(
        deserialize_with = "size::<SEGMENT_SIZE_LOW, { 1024 * GIB }, _, _>",
        serialize_with = "write_size"
    )]
    pub memory_queue_size: u64,
    /// What 250 promises; nothing where the queue is in memory.
    pub durability: Durability,
    /// The size of one segment of the log: whole pages of 4 KiB. In memory possibly less, see [`Spool::segment_size_on`].
    #[serde(
        deserialize_with = "size::<SEGMENT_SIZE_LOW, SEGMENT_SIZE_HIGH, _, _>",
        serialize_with = "write_size"
    )]
    pub segment_size: u64,
    /// Content in memory on its way to the disk, per shard; then sessions wait.
    #[serde(
        deserialize_with = "size::<MEMORY_MAX_LOW, { 1024 * GIB }, _, _>",
        serialize_with = "write_size"
    )]
    pub memory_max: u64,
    /// Messages in the queue, over all shards; then 452. A restart is promised to be quick up to the default.
    #[serde(deserialize_with = "count::<1, 1_000_000_000, _, _>")]
    pub depth_max: u64,
    /// Just-accepted messages kept in memory until their first attempt, over all shards; 0: all are read back.
    #[serde(deserialize_with = "size::<0, { 1024 * GIB }, _, _>", serialize_with = "write_size")]
    pub cache_size: u64,
}

impl Default for Spool {
    fn default() -> Self {
        Spool {
            queue: Queue::Disk,
            memory_queue_size: 256 * MIB,
            durability: Durability::Sync,
            segment_size: 64 * MIB,
            memory_max: 64 * MIB,
            depth_max: 1_000_000,
            cache_size: 64 * MIB,
        }
    }
}

impl Spool {
    /// What a shard of `shards` may take of `memory_queue_size`, octets.
    pub fn memory_share(&self, shards: usize) -> u64 {
        self.memory_queue_size / shards as u64
    }

    /// The size of a segment on `shards` shards, octets: in memory small enough for `MEMORY_SEGMENTS_MIN` in a shard's share.
    pub fn segment_size_on(&self, shards: usize) -> u64 {
        match self.queue {
            Queue::Disk => self.segment_size,
            Queue::Memory => {
                let part = self.memory_share(shards) / MEMORY_SEGMENTS_MIN;
                self.segment_size.min(part / SEGMENT_SIZE_STEP * SEGMENT_SIZE_STEP)
            }
        }
    }
}

/// `spool.queue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Queue {
    /// In the log, under the data folder.
    Disk,
    /// In memory: accepted mail does not survive the end of the process. For tests and transient use.
    Memory,
}

/// `spool.durability`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// 250 after a completed sync: the message survives power loss.
    Sync,
    /// 250 after the write: a power loss may lose accepted mail. For measuring.
    None,
}

/// `[delivery]`: who delivers, how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [delivery]")]
pub struct Delivery {
    /// The transport of all recipients.
    pub transport: String,
    /// Threads that deliver.
    #[serde(deserialize_with = "count::<1, WORKERS_MAX, _, _>")]
    pub workers: usize,
    /// Messages handed to the workers that wait for one, over all shards.
    #[serde(deserialize_with = "count::<1, CHANNEL_SIZE_MAX, _, _>")]
    pub channel_size: usize,
    /// Attempts at most before a recipient is given up; 0: as many as `queue_lifetime` has room for.
    #[serde(deserialize_with = "count::<0, { u32::MAX as u64 }, _, _>")]
    pub attempts_max: u32,
    /// The wait after the first attempt; it doubles.
    #[serde(deserialize_with = "duration::<1, 604_800, _>", serialize_with = "write_duration")]
    pub backoff_base: Duration,
    /// The longest wait between attempts.
    #[serde(deserialize_with = "duration::<1, 604_800, _>", serialize_with = "write_duration")]
    pub backoff_max: Duration,
    /// How long a message may wait in the queue (RFC 5321 §4.5.4.1).
    #[serde(deserialize_with = "duration::<60, 31_536_000, _>", serialize_with = "write_duration")]
    pub queue_lifetime: Duration,
    /// How long dead letters are kept; 0: for ever.
    #[serde(deserialize_with = "duration::<0, 315_576_000, _>", serialize_with = "write_duration")]
    pub dead_retention: Duration,
}

impl Default for Delivery {
    fn default() -> Self {
        let Schedule { backoff_base, backoff_max, attempts_max, queue_lifetime } = Schedule::default();
        Delivery {
            transport: "store".into(),
            workers: std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2)),
            channel_size: 4096,
            attempts_max,
            backoff_base,
            backoff_max,
            queue_lifetime,
            dead_retention: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

impl Delivery {
    /// When to try again, and when to give up.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            backoff_base: self.backoff_base,
            backoff_max: self.backoff_max,
            attempts_max: self.attempts_max,
            queue_lifetime: self.queue_lifetime,
        }
    }
}

/// `[notifications]`: what senders are told of messages that could not be delivered (RFC 3464).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [notifications]")]
pub struct Notifications {
    /// The transport that takes them to senders; none: nobody is told anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// Notifications in an hour.
    #[serde(deserialize_with = "count::<1, 1_000_000, _, _>")]
    pub hourly_max: u32,
    /// Notifications in an hour to the senders of one domain.
    #[serde(deserialize_with = "count::<1, 1_000_000, _, _>")]
    pub hourly_max_per_domain: u32,
}

impl Default for Notifications {
    fn default() -> Self {
        Notifications { transport: None, hourly_max: 1000, hourly_max_per_domain: 100 }
    }
}

/// `[log]`: what is logged, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [log]")]
pub struct Log {
    /// For people or for programs.
    pub format: Format,
    /// The least important level that is logged.
    pub level: Level,
}

impl Default for Log {
    fn default() -> Self {
        Log { format: Format::Human, level: Level::Info }
    }
}
