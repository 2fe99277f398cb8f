//! TOML, environment and flags → [`Config`]: every field parsed into its type, every fault told with where it stands.
//!
//! Three layers, the later winning: the file, the environment (`INCOMING_<SECTION>_<KEY>`), the flags. What none of them says has
//! a default, which is written here and in `docs/CONFIGURATION.md`. [`Config::to_toml`] gives the whole as a file that yields the
//! same configuration again.
//!
//! Invariants:
//! - an unknown key or variable is a fault: nothing is ignored;
//! - a [`Config`] is consistent: what refers to something finds it, and no listener that strangers reach takes mail for every
//!   domain unless that was asked for.
//!
//! Knows the types of `mail`, `delivery` and `telemetry` that fields are parsed into, and nothing of how anything runs.

mod admin;
mod dns;
mod error;
mod file;
mod layers;
pub mod policies;
mod routes;
mod sections;
mod tables;
pub mod transports;
mod value;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::mail::Domain;
use crate::policy::DomainRules;
use crate::smtp::{AuthMode, Dialect, TlsMode};
use transports::{Transport, TransportKind};

pub use crate::telemetry::log::{Format as LogFormat, Level as LogLevel};
pub use admin::{Admin, Monitor};
pub use dns::{Dns, DnsServer};
pub use error::ConfigError;
pub(crate) use layers::{Brought, Program};
pub use layers::{Flags, Sources, System};
pub use routes::{Route, TransportName};
pub use sections::{
    Admission, Auth, BareLineEnds, ClientCertificates, Delivery, Durability, Log, Notifications, Queue, Smtp,
    Spool, Tls,
};

/// Everything the operator decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The gateway's name: in greeting, replies, `Received:` lines and file names.
    pub hostname: Domain,
    /// The folder of the gateway's own files: `spool/`, `dead/`.
    pub data: PathBuf,
    /// Where shards run.
    pub cores: Placement,
    /// Sessions at most, over all shards. Beyond it connections are answered 421.
    pub sessions_max: usize,
    /// How long sessions may finish after the signal to stop.
    pub drain_timeout: Duration,
    /// Where mail arrives; at least one.
    pub listeners: Vec<Listener>,
    /// For whom.
    pub accept: Accept,
    /// Who may connect, and how often at a time.
    pub admission: Admission,
    /// What holds in some of our domains only.
    pub domains: BTreeMap<Domain, DomainSettings>,
    /// Who else decides about a session, in the order in which they are asked.
    pub policies: Vec<policies::Policy>,
    /// Lookups of policies at a time.
    pub lookups_max: usize,
    /// Whom policies ask about names and addresses.
    pub dns: Dns,
    /// What a session may do.
    pub smtp: Smtp,
    /// What listeners show of themselves.
    pub tls: Tls,
    /// Who may log in.
    pub auth: Auth,
    /// How messages are kept until they are delivered.
    pub spool: Spool,
    /// How they are delivered; `delivery.transport` is a key of `transports`.
    pub delivery: Delivery,
    /// The transports by name.
    pub transports: BTreeMap<String, Transport>,
    /// Which of them gets which messages.
    pub routes: Vec<Route>,
    /// What senders are told.
    pub notifications: Notifications,
    /// Where the gateway can be asked and told.
    pub admin: Admin,
    /// Where it says how it is, to anybody.
    pub monitor: Monitor,
    /// What is logged, and how.
    pub log: Log,
}

/// Where shards run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// One shard on each of these cores, pinned to it; ascending, each once, never empty.
    Cores(Vec<usize>),
    /// So many shards, placed by the gateway.
    Shards(usize),
}

impl Placement {
    /// How many shards there are.
    pub fn shards_count(&self) -> usize {
        match self {
            Placement::Cores(cores) => cores.len(),
            Placement::Shards(count) => *count,
        }
    }
}

/// One address where mail arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Address and port.
    pub address: SocketAddr,
    /// Connections the kernel holds for each shard until they are accepted.
    pub backlog: u32,
    /// What is spoken there.
    pub protocol: Dialect,
    /// TLS; never without [`Tls::certificates`].
    pub tls: TlsMode,
    /// What is asked of clients in TLS; never anything without [`Tls::client_authorities`].
    pub client_certificates: ClientCertificates,
    /// AUTH; never without TLS and [`Auth::credentials`].
    pub auth: AuthMode,
    /// Proxies: connections from there begin with a header of the PROXY protocol.
    pub proxy_from: Vec<IpNet>,
    /// Front ends: peers from there may say whom they speak for (XCLIENT).
    pub xclient_from: Vec<IpNet>,
    /// Whoever connects here is vouched for: policies that guard against strangers are not asked.
    pub trusted: bool,
    /// A connection goes to the shard of the core that its packets arrive on, where shards are pinned.
    pub steering: bool,
}

impl Listener {
    /// Whether only this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        self.address.ip().to_canonical().is_loopback()
    }
}

/// Whose mail is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The domains of accepted recipients, in configured order.
    pub domains: Vec<Domain>,
    /// Every domain is accepted, listed or not.
    pub any: bool,
    /// Files that say which addresses there are, and what stands for some of them.
    pub maps: Vec<PathBuf>,
    /// What follows it in a local part is a detail.
    pub detail_separator: Option<u8>,
}

/// What holds in one domain of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainSettings {
    /// How large a message for it may be, and how it must come.
    pub rules: DomainRules,
    /// The names of policies that are not asked about recipients in it.
    pub skip: Vec<String>,
}

impl Config {
    /// The configuration that `sources` give on `system`.
    pub fn load(sources: &Sources, system: &System) -> Result<Config, ConfigError> {
        layers::load(sources, &Program::default(), system)
    }

    /// The same for a `program` that has something to say itself.
    pub(crate) fn load_for(
        program: &Program,
        sources: &Sources,
        system: &System,
    ) -> Result<Config, ConfigError> {
        layers::load(sources, program, system)
    }

    /// The whole configuration as TOML, every default included. Loading it gives the same configuration.
    pub fn to_toml(&self) -> String {
        toml::to_string(&file::File::from(self)).expect("a configuration has only what TOML can say")
    }

    /// The folder of the spool.
    pub fn spool_dir(&self) -> PathBuf {
        self.data.join("spool")
    }

    /// The folder of octets of the spool that are damaged.
    pub fn damaged_dir(&self) -> PathBuf {
        self.data.join("damaged")
    }

    /// The folder of what greylists remember.
    pub fn greylist_dir(&self) -> PathBuf {
        self.data.join("greylist")
    }

    /// The folder of the dead letters.
    pub fn dead_dir(&self) -> PathBuf {
        self.data.join("dead")
    }

    /// What to tell the operator once the listeners listen: where mail is taken, for whom, where it goes, and how to send some.
    pub fn banner(&self) -> String {
        let addresses: Vec<_> = self.listeners.iter().map(|listener| listener.address.to_string()).collect();
        let maps = self.accept.maps.len();
        let taken = match (self.accept.any, &self.accept.domains[..]) {
            (true, _) => "any recipient".to_string(),
            (false, []) if maps > 0 => "recipients in its maps".to_string(),
            (false, []) => "postmaster only".to_string(),
            (false, domains) => {
                let names: Vec<_> = domains.iter().take(3).map(Domain::as_str).collect();
                let more = if domains.len() > 3 {
                    format!(" and {} more domains", domains.len() - 3)
                } else {
                    String::new()
                };
                format!("recipients in {}{more}", names.join(", "))
            }
        };
        let into = match &self.transports[&self.delivery.transport].kind {
            TransportKind::Maildir(maildir) => format!("the Maildir {}", maildir.path()),
            TransportKind::Pipe(pipe) => format!("the command {}", pipe.command.program()),
            TransportKind::Discard(_) => "nowhere: what is delivered is discarded".to_string(),
            TransportKind::Lmtp(lmtp) => format!("LMTP at {}", lmtp.address.0),
            TransportKind::Smtp(smtp) => format!("SMTP at {}", smtp.summary()),
            TransportKind::Embedded(_) => format!("{} of this program", self.delivery.transport),
            TransportKind::Webhook(webhook) => format!("the endpoint at {}", webhook.url.0.host()),
        };
        let more = match self.routes.len() {
            0 => "",
            _ => ", other mail by routes",
        };
        let warning = match self.spool.queue {
            Queue::Disk => "",
            Queue::Memory => {
                "the queue is in memory: accepted mail does not survive the end of this process\n"
            }
        };
        let first = self.listeners[0].address;
        let host = match first.ip() {
            ip if ip.is_unspecified() && ip.is_ipv4() => "127.0.0.1".to_string(),
            ip if ip.is_unspecified() => "::1".to_string(),
            ip => ip.to_string(),
        };
        let domain = self.accept.domains.first().map_or("example.com", Domain::as_str);
        let count = self.cores.shards_count();
        format!(
            "incoming {version} as {hostname}: listening on {addresses}, {count} shard{s}, taking {taken}\n\
             data in {data}, delivering to {into}{more}\n\
             {warning}\
             a first message: printf 'Subject: hello\\n\\nhello\\n' | curl -s smtp://{url_host}:{port} \
             --mail-from me@example.com --mail-rcpt you@{domain} --crlf -T -\n",
            version = env!("CARGO_PKG_VERSION"),
            hostname = self.hostname,
            addresses = addresses.join(", "),
            s = if count == 1 { "" } else { "s" },
            data = self.data.display(),
            url_host = if host.contains(':') { format!("[{host}]") } else { host },
            port = first.port(),
        )
    }
}
