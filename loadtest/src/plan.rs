//! What a run does, every word of it parsed. Where the words come from is the business of [`crate::arguments`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::content::{Sizes, Source};
use crate::hostile::Hostile;

/// One run against one server.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The server.
    pub target: Target,
    /// Connections held at once. None only where there are hostile ones.
    pub connections: usize,
    /// When the run is over.
    pub goal: Goal,
    /// Messages are sent this long before counting begins.
    #[serde(serialize_with = "seconds")]
    pub warm_up: Duration,
    /// Messages a second that fall due whatever the replies do (open loop). Nothing: as fast as replies permit.
    pub rate: Option<f64>,
    /// How the times of an open loop are spread.
    pub arrivals: Arrivals,
    /// What the messages contain.
    pub content: Source,
    /// The envelope.
    pub envelope: Envelope,
    /// After so many messages a connection is ended and begun anew. Nothing: never.
    pub messages_per_connection: Option<u64>,
    /// Commands in one write as far as RFC 2920 permits, where the server offers PIPELINING.
    pub is_pipelined: bool,
    /// BDAT instead of DATA, where the server offers CHUNKING.
    pub is_chunking: bool,
    /// TLS, if any.
    pub tls: Option<Tls>,
    /// Connections leave from these addresses in turn. Empty: from where the system chooses.
    pub sources: Vec<IpAddr>,
    /// One executor on each of these cores.
    pub cores: Vec<usize>,
    /// Hostile clients, each scenario once; they begin when counting begins.
    pub hostile: Vec<Hostile>,
    /// Hostile connections leave from these addresses in turn. Empty: from where the system chooses.
    pub hostile_sources: Vec<IpAddr>,
    /// Hostile clients have executors of their own on these cores. Empty: they share those of the load.
    pub hostile_cores: Vec<usize>,
    /// What EHLO says.
    pub host: String,
    /// How long a reply, a connection or a handshake is waited for.
    #[serde(serialize_with = "seconds")]
    pub timeout: Duration,
    /// For everything drawn by lot.
    pub seed: u64,
    /// Where every acknowledged message is recorded.
    pub ledger: Option<PathBuf>,
    /// The root of the server's process tree.
    pub server_pid: Option<u32>,
}

impl Plan {
    /// What the command line means without a word: ten seconds of 4 KiB messages over 64 connections, each command
    /// waiting for its reply, from `core`.
    pub fn against(address: SocketAddr, core: usize) -> Self {
        Plan {
            target: Target { name: address.to_string(), address },
            connections: 64,
            goal: Goal::Duration(Duration::from_secs(10)),
            warm_up: Duration::from_secs(1),
            rate: None,
            arrivals: Arrivals::Even,
            content: Source::Sizes(Sizes::Fixed(4096)),
            envelope: Envelope {
                sender: "load-{id}@load.test".to_owned(),
                recipient: "inbox@mx.test".to_owned(),
                recipient_count: 1,
            },
            messages_per_connection: None,
            is_pipelined: false,
            is_chunking: false,
            tls: None,
            sources: Vec::new(),
            cores: vec![core],
            host: "load.test".to_owned(),
            timeout: Duration::from_secs(60),
            seed: 1,
            ledger: None,
            server_pid: None,
            hostile: Vec::new(),
            hostile_sources: Vec::new(),
            hostile_cores: Vec::new(),
        }
    }
}

/// A server.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// What it is called in reports: its address unless it was given a name.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
}

/// When a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// When so many messages, warm-up not counted, were answered.
    Messages(u64),
    /// When counting has lasted this long.
    #[serde(serialize_with = "seconds")]
    Duration(Duration),
}

/// How the times at which messages of an open loop fall due are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Evenly.
    #[default]
    Even,
    /// As a Poisson process: independent of each other, as mail is.
    Poisson,
}

/// Sender and recipients.
#[derive(Clone, Debug, Serialize)]
pub struct Envelope {
    /// The reverse-path; `{id}` in it is replaced by the message's id. Empty: the null reverse-path.
    pub sender: String,
    /// The forward-path; `{n}` in it is replaced by the recipient's number within the message, from 1.
    pub recipient: String,
    /// Recipients of each message.
    pub recipient_count: usize,
}

/// How TLS is used.
#[derive(Clone, Debug, Serialize)]
pub struct Tls {
    /// When it begins.
    pub mode: TlsMode,
    /// Whether a connection may resume the session of an earlier one.
    pub is_resuming: bool,
    /// Certificates are checked against these authorities (PEM). Nothing: any certificate is taken.
    pub authorities: Option<PathBuf>,
    /// The name sent (SNI) and, with `authorities`, checked.
    pub server_name: String,
}

/// When TLS begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsMode {
    /// After STARTTLS (RFC 3207).
    StartTls,
    /// With the connection (RFC 8314 §3.3).
    Implicit,
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}
