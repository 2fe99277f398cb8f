//! The command line of a run, and the [`Plan`] that it means.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ArgPredicate;
use clap::{ArgGroup, Args};

use crate::content::{Sizes, Source};
use crate::hostile::HostileArgument;
use crate::plan::{Arrivals, Envelope, Goal, Plan, Target, Tls, TlsMode};

/// How long a run counts where nothing else is said.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);

/// What is sent, and how; the same for every target.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("secured").args(["starttls", "implicit_tls"]))]
pub struct LoadArguments {
    /// Connections held at once; 0 leaves the server to hostile clients alone.
    #[arg(long, short, default_value_t = 64, value_name = "N", help_heading = "How much")]
    pub connections: usize,
    /// Stop after so many messages (warm-up not counted).
    #[arg(long, short, value_name = "N", conflicts_with = "duration", help_heading = "How much")]
    pub messages: Option<u64>,
    /// Count for so long, as 30s or 5m [default: 10s].
    #[arg(long, short, value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "How much")]
    pub duration: Option<Duration>,
    /// Open loop: so many messages fall due each second, whatever the replies do, and each is measured from when it fell
    /// due. Without it a connection begins its next message when the one before was answered.
    #[arg(long, short, value_name = "PER-SECOND", help_heading = "How much")]
    pub rate: Option<f64>,
    /// How an open loop spreads its messages.
    #[arg(long, value_enum, default_value = "even", requires = "rate", help_heading = "How much")]
    pub arrivals: Arrivals,
    /// Send for so long before counting begins [with --hostile: 3s, for the calm that is compared with].
    #[arg(long, value_name = "TIME", default_value = "1s", default_value_if("hostile", ArgPredicate::IsPresent, "3s"), value_parser = humantime::parse_duration, help_heading = "How much")]
    pub warm_up: Duration,
    /// Begin a new connection after so many messages; 1 is a connection for each.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "How much")]
    pub messages_per_connection: Option<u64>,
    /// Give a reply, a connection or a handshake so long.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration, help_heading = "How much")]
    pub timeout: Duration,

    /// Octets of content: a size (4KiB), a range (1KiB..64KiB), sizes by weight (4KiB*90,1MiB*10), or
    /// lognormal:MEDIAN:SIGMA[:MAX].
    #[arg(
        long,
        short,
        default_value = "4KiB",
        value_name = "SIZES",
        conflicts_with = "corpus",
        help_heading = "What"
    )]
    pub size: Sizes,
    /// Real messages instead: an mbox file, a Maildir, or a folder of .eml files.
    #[arg(long, value_name = "PATH", help_heading = "What")]
    pub corpus: Option<PathBuf>,
    /// Recipients of each message.
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "What")]
    pub recipients: usize,
    /// The recipient; {n} is its number within the message [default: inbox@mx.test; of several, inbox{n}@mx.test].
    #[arg(long, value_name = "ADDRESS", help_heading = "What")]
    pub to: Option<String>,
    /// The sender; {id} is the message's name. Empty: the null reverse-path.
    #[arg(long, default_value = "load-{id}@load.test", value_name = "ADDRESS", help_heading = "What")]
    pub from: String,
    /// For everything drawn by lot: the same seed sends the same sizes at the same times.
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "What")]
    pub seed: u64,

    /// MAIL, RCPT and DATA (or BDAT and its content) in one write, where PIPELINING is offered.
    #[arg(long, help_heading = "How")]
    pub pipeline: bool,
    /// BDAT instead of DATA, where CHUNKING is offered.
    #[arg(long, help_heading = "How")]
    pub chunking: bool,
    /// TLS by STARTTLS.
    #[arg(long, help_heading = "How")]
    pub starttls: bool,
    /// TLS from the beginning of the connection.
    #[arg(long, help_heading = "How")]
    pub implicit_tls: bool,
    /// Resume the TLS session of an earlier connection, or do a full handshake each time.
    #[arg(long, value_name = "ON|OFF", default_value = "on", value_parser = parse_switch, action = clap::ArgAction::Set, requires = "secured", help_heading = "How")]
    pub tls_resumption: bool,
    /// Check certificates against the authorities in this PEM file. Without it any certificate is taken.
    #[arg(long, value_name = "FILE", requires = "secured", help_heading = "How")]
    pub tls_ca: Option<PathBuf>,
    /// The server's name in TLS [default: the host of the target].
    #[arg(long, value_name = "NAME", requires = "secured", help_heading = "How")]
    pub tls_name: Option<String>,
    /// What EHLO says.
    #[arg(long, default_value = "load.test", value_name = "NAME", help_heading = "How")]
    pub helo: String,
    /// Addresses that connections leave from in turn: 127.0.0.2,::1 or a range 127.0.0.1-127.0.0.64.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_sources, help_heading = "How")]
    pub source: Vec<Sources>,
    /// One thread on each of these cores, as 1 or 0-3,8 [default: the last core].
    #[arg(long, value_name = "LIST", value_parser = parse_cores, help_heading = "How")]
    pub cores: Option<Cores>,

    /// Hostile clients from when counting begins, so many connections of each [default: 4]; may be repeated, and what is
    /// said last of a scenario holds. The report says what the load felt of them. NAME is all, or one of slow-commands,
    /// slow-content, hold, early-talk, endless-line, endless-rcpt, reset, garbage, huge-size, tls-flood, reconnect,
    /// half-close, never-read.
    #[arg(long, value_name = "NAME[=CONNECTIONS]", help_heading = "Hostile clients")]
    pub hostile: Vec<HostileArgument>,
    /// Addresses that hostile connections leave from in turn, as --source: limits on an address then hit them alone.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_sources, requires = "hostile", help_heading = "Hostile clients")]
    pub hostile_source: Vec<Sources>,
    /// Hostile clients on cores of their own, as --cores [default: on those of the load].
    #[arg(long, value_name = "LIST", value_parser = parse_cores, requires = "hostile", help_heading = "Hostile clients")]
    pub hostile_cores: Option<Cores>,
}

/// Source addresses as one word of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources(pub Vec<IpAddr>);

/// Cores as one word of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores(pub Vec<usize>);

/// A server on the command line: `[NAME=]HOST:PORT[,pid=PID]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetArgument {
    /// What it is called.
    pub name: Option<String>,
    /// The host as it was written.
    pub host: String,
    /// Its first address.
    pub address: SocketAddr,
    /// The root of its process tree.
    pub pid: Option<u32>,
}

impl std::str::FromStr for TargetArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let first = words.next().unwrap_or_default();
        let (name, place) = match first.split_once('=') {
            Some((name, place)) => (Some(name.to_owned()), place),
            None => (None, first),
        };
        let mut pid = None;
        for word in words {
            let number = word.strip_prefix("pid=").and_then(|pid| pid.parse().ok());
            pid = Some(number.ok_or_else(|| format!("{word:?}: only pid=PID may follow the address"))?);
        }
        let (host, _) =
            place.rsplit_once(':').ok_or_else(|| format!("{place:?} has no port: ADDR:PORT is wanted"))?;
        let mut addresses = place.to_socket_addrs().map_err(|e| format!("{place}: {e}"))?;
        let address = addresses.next().ok_or_else(|| format!("{place} has no address"))?;
        Ok(TargetArgument { name, host: host.trim_matches(['[', ']']).to_owned(), address, pid })
    }
}

impl LoadArguments {
    /// The plan of these arguments for one target.
    ///
    /// # Errors
    /// What makes no sense, in words.
    pub fn plan(&self, target: &TargetArgument) -> Result<Plan, String> {
        if self.recipients == 0 || (self.connections == 0 && self.hostile.is_empty()) {
            return Err("at least one connection and one recipient are needed".to_owned());
        }
        if self.connections == 0 && (self.messages.is_some() || self.rate.is_some()) {
            return Err("messages need connections".to_owned());
        }
        if self.rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
            return Err("a rate is a number above 0".to_owned());
        }
        let cores = match &self.cores {
            Some(Cores(cores)) => cores.clone(),
            None => core_affinity::get_core_ids()
                .and_then(|cores| cores.last().map(|core| vec![core.id]))
                .unwrap_or_default(),
        };
        if cores.is_empty() {
            return Err("no core to run on: name one with --cores".to_owned());
        }
        let mode = match (self.starttls, self.implicit_tls) {
            (true, _) => Some(TlsMode::StartTls),
            (_, true) => Some(TlsMode::Implicit),
            _ => None,
        };
        Ok(Plan {
            target: Target {
                name: target.name.clone().unwrap_or_else(|| target.address.to_string()),
                address: target.address,
            },
            connections: self.connections,
            goal: match self.messages {
                Some(count) => Goal::Messages(count),
                None => Goal::Duration(self.duration.unwrap_or(DEFAULT_DURATION)),
            },
            warm_up: self.warm_up,
            rate: self.rate,
            arrivals: self.arrivals,
            content: match &self.corpus {
                Some(path) => Source::Corpus(path.clone()),
                None => Source::Sizes(self.size.clone()),
            },
            envelope: Envelope {
                sender: self.from.clone(),
                recipient: match (&self.to, self.recipients) {
                    (Some(address), _) => address.clone(),
                    (None, 1) => "inbox@mx.test".to_owned(),
                    (None, _) => "inbox{n}@mx.test".to_owned(),
                },
                recipient_count: self.recipients,
            },
            messages_per_connection: self.messages_per_connection,
            is_pipelined: self.pipeline,
            is_chunking: self.chunking,
            tls: mode.map(|mode| Tls {
                mode,
                is_resuming: self.tls_resumption,
                authorities: self.tls_ca.clone(),
                server_name: self.tls_name.clone().unwrap_or_else(|| target.host.clone()),
            }),
            sources: self.source.iter().flat_map(|sources| sources.0.iter().copied()).collect(),
            // More cores than connections would only watch.
            cores: cores.into_iter().take(self.connections.max(1)).collect(),
            hostile: HostileArgument::merge(&self.hostile),
            hostile_sources: self
                .hostile_source
                .iter()
                .flat_map(|sources| sources.0.iter().copied())
                .collect(),
            hostile_cores: self.hostile_cores.clone().map(|cores| cores.0).unwrap_or_default(),
            host: self.helo.clone(),
            timeout: self.timeout,
            seed: self.seed,
            ledger: None,
            server_pid: target.pid,
        })
    }
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off is wanted".to_owned()),
    }
}

fn parse_sources(text: &str) -> Result<Sources, String> {
    let address = |text: &str| text.parse::<IpAddr>().map_err(|e| format!("{text}: {e}"));
    let Some((from, to)) = text.split_once('-') else {
        return Ok(Sources(vec![address(text)?]));
    };
    match (address(from)?, address(to)?) {
        (IpAddr::V4(from), IpAddr::V4(to)) if from <= to => {
            Ok(Sources((u32::from(from)..=u32::from(to)).map(|n| Ipv4Addr::from(n).into()).collect()))
        }
        _ => Err(format!("{text}: a range goes from a smaller to a larger IPv4 address")),
    }
}

fn parse_cores(text: &str) -> Result<Cores, String> {
    let number = |text: &str| text.trim().parse::<usize>().map_err(|e| format!("{text:?}: {e}"));
    let mut cores = Vec::new();
    for word in text.split(',') {
        match word.split_once('-') {
            Some((from, to)) => cores.extend(number(from)?..=number(to)?),
            None => cores.push(number(word)?),
        }
    }
    let there: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    match cores.iter().find(|core| !there.contains(core)) {
        Some(core) => Err(format!("there is no core {core} here; there are {there:?}")),
        None => Ok(Cores(cores)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let parsed = |text: &str| text.parse::<TargetArgument>();
        let target = parsed("postfix=127.0.0.1:2525,pid=7").unwrap();
        assert_eq!(target.name.as_deref(), Some("postfix"));
        assert_eq!(target.address, "127.0.0.1:2525".parse().unwrap());
        assert_eq!(target.pid, Some(7));
        let target = parsed("[::1]:25").unwrap();
        assert_eq!((target.name, target.host.as_str(), target.pid), (None, "::1", None));
        for fault in ["127.0.0.1", "a=127.0.0.1:1,pid=x", "127.0.0.1:2525,core=1"] {
            assert!(parsed(fault).is_err(), "{fault}");
        }
    }

    #[test]
    fn sources_are_addresses_and_ranges() {
        assert_eq!(parse_sources("127.0.0.1-127.0.0.3").unwrap().0.len(), 3);
        assert_eq!(parse_sources("::1").unwrap().0, ["::1".parse::<IpAddr>().unwrap()]);
        assert!(parse_sources("127.0.0.3-127.0.0.1").is_err());
    }
}
