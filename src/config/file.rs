//! The shape of the file, and how what is left out gets its value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::admin::{AdminFile, Monitor};
use super::error::Fault;
use super::policies;
use super::routes;
use super::transports::{self, Transport};
use super::value::{
    Cores, HostName, Parsed, Text, Word, count, duration, flag, list, size, size_text, word, write_duration,
    write_size, write_word,
};
use super::{
    Accept, Admission, Auth, ClientCertificates, Config, Delivery, Dns, DomainSettings, Listener, Log,
    Notifications, Placement, Queue, Smtp, Spool, System, Tls,
};
use crate::limits::{
    Deliveries, GIB, KIB, LISTENERS_MAX, LOOKUPS_MAX_DEFAULT, LOOKUPS_MAX_HIGH, MEMORY_MESSAGES_MIN,
    MEMORY_SEGMENTS_MIN, MIB, SEGMENT_SIZE_LOW, SEGMENT_SIZE_STEP, SESSIONS_MAX_HIGH, SHARDS_MAX,
    sessions_max_for,
};
use crate::mail::Domain;
use crate::policy::DomainRules;
use crate::smtp::{AuthMode, Dialect, TlsMode};

const DATA_DEFAULT: &str = "incoming-data";
const ADDRESS_DEFAULT: &str = "127.0.0.1:2525";
const DRAIN_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// What absorbs a tenth of a second of 10,000 new connections a second while a shard is busy.
const BACKLOG_DEFAULT: u32 = 1024;

/// A configuration file: [`Config`] with everything optional.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    hostname: Option<Text<HostName>>,
    data: Option<String>,
    cores: Option<Text<Cores>>,
    #[serde(deserialize_with = "shards")]
    shards: Option<usize>,
    #[serde(deserialize_with = "sessions")]
    sessions_max: Option<usize>,
    #[serde(deserialize_with = "drain_timeout", serialize_with = "write_drain_timeout")]
    drain_timeout: Option<Duration>,
    #[serde(deserialize_with = "lookups")]
    lookups_max: Option<usize>,
    listener: Option<Vec<ListenerFile>>,
    accept: AcceptFile,
    admission: Admission,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    domain: BTreeMap<String, DomainFile>,
    #[serde(deserialize_with = "policies::tables", skip_serializing_if = "Vec::is_empty")]
    policy: Vec<toml::Table>,
    dns: Dns,
    smtp: Smtp,
    tls: Tls,
    auth: Auth,
    spool: Spool,
    delivery: Delivery,
    notifications: Notifications,
    transport: BTreeMap<String, toml::Table>,
    #[serde(deserialize_with = "routes::tables", skip_serializing_if = "Vec::is_empty")]
    route: Vec<toml::Table>,
    admin: AdminFile,
    monitor: Monitor,
    log: Log,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table [[listener]]")]
struct ListenerFile {
    address: Text<SocketAddr>,
    #[serde(default = "default_backlog", deserialize_with = "count::<1, 65_535, _, _>")]
    backlog: u32,
    #[serde(default, deserialize_with = "word", serialize_with = "write_word")]
    protocol: Dialect,
    #[serde(default, deserialize_with = "some_word", serialize_with = "write_some_word")]
    tls: Option<TlsMode>,
    #[serde(default, deserialize_with = "word", serialize_with = "write_word")]
    client_certificates: ClientCertificates,
    #[serde(default, deserialize_with = "word", serialize_with = "write_word")]
    auth: AuthMode,
    #[serde(default, deserialize_with = "networks")]
    proxy_from: Vec<Text<IpNet>>,
    #[serde(default, deserialize_with = "networks")]
    xclient_from: Vec<Text<IpNet>>,
    #[serde(default, deserialize_with = "flag")]
    trusted: bool,
    #[serde(default, deserialize_with = "flag")]
    steering: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [accept]")]
struct AcceptFile {
    #[serde(deserialize_with = "domains")]
    domains: Vec<Text<Domain>>,
    #[serde(deserialize_with = "some_flag")]
    any: Option<bool>,
    #[serde(deserialize_with = "map_files")]
    maps: Vec<Text<MapFile>>,
    detail_separator: Text<Separator>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [domain.\"<name>\"]")]
struct DomainFile {
    #[serde(
        deserialize_with = "some_message_size",
        serialize_with = "write_some_size",
        skip_serializing_if = "Option::is_none"
    )]
    message_size_max: Option<u64>,
    #[serde(deserialize_with = "flag")]
    tls_required: bool,
    #[serde(deserialize_with = "list")]
    skip: Vec<PolicyName>,
}

/// The name of a policy, which is looked up later.
#[derive(Clone, Debug, Serialize)]
struct PolicyName(String);

impl Parsed for PolicyName {
    const EXPECTED: &'static str = "the name of a policy";

    fn parsed(text: &str) -> Option<Self> {
        Some(PolicyName(text.into()))
    }
}

/// A path that can be printed again.
#[derive(Clone, Debug)]
struct MapFile(PathBuf);

impl Parsed for MapFile {
    const EXPECTED: &'static str = "the path of a file";

    fn parsed(text: &str) -> Option<Self> {
        (!text.is_empty() && !text.contains('\0')).then(|| MapFile(text.into()))
    }
}

impl fmt::Display for MapFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// One character, or none.
#[derive(Clone, Copy, Debug)]
struct Separator(Option<u8>);

impl Parsed for Separator {
    const EXPECTED: &'static str = "one of + - _ = . # or nothing";

    fn parsed(text: &str) -> Option<Self> {
        match text.as_bytes() {
            [] => Some(Separator(None)),
            [c] if b"+-_=.#".contains(c) => Some(Separator(Some(*c))),
            _ => None,
        }
    }
}

impl fmt::Display for Separator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |c| fmt::Write::write_char(f, char::from(c)))
    }
}

impl Default for AcceptFile {
    fn default() -> Self {
        AcceptFile {
            domains: Vec::new(),
            any: None,
            maps: Vec::new(),
            detail_separator: Text(Separator(Some(b'+'))),
        }
    }
}

impl Default for ListenerFile {
    fn default() -> Self {
        ListenerFile {
            address: Text(ADDRESS_DEFAULT.parse().expect("the default is an address")),
            backlog: BACKLOG_DEFAULT,
            protocol: Dialect::Smtp,
            tls: None,
            client_certificates: ClientCertificates::Ignore,
            auth: AuthMode::Disabled,
            proxy_from: Vec::new(),
            xclient_from: Vec::new(),
            trusted: false,
            steering: false,
        }
    }
}

fn default_backlog() -> u32 {
    BACKLOG_DEFAULT
}

fn shards<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    count::<1, SHARDS_MAX, _, _>(deserializer).map(Some)
}

fn sessions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    count::<1, SESSIONS_MAX_HIGH, _, _>(deserializer).map(Some)
}

fn lookups<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    count::<1, LOOKUPS_MAX_HIGH, _, _>(deserializer).map(Some)
}

fn drain_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration::<0, 3600, _>(deserializer).map(Some)
}

fn write_drain_timeout<S: Serializer>(timeout: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match timeout {
        Some(timeout) => write_duration(timeout, serializer),
        None => serializer.serialize_none(),
    }
}

fn some_flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    flag(deserializer).map(Some)
}

fn some_word<'de, T: Word, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    word(deserializer).map(Some)
}

fn write_some_word<T: Word, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => write_word(value, serializer),
        None => serializer.serialize_none(),
    }
}

fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Text<IpNet>>, D::Error> {
    Ok(list(deserializer)?.into_iter().map(Text).collect())
}

fn domains<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Text<Domain>>, D::Error> {
    Ok(list(deserializer)?.into_iter().map(Text).collect())
}

fn some_message_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    size::<{ 64 * KIB }, GIB, _, _>(deserializer).map(Some)
}

fn write_some_size<S: Serializer>(size: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match size {
        Some(size) => write_size(size, serializer),
        None => serializer.serialize_none(),
    }
}

fn map_files<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Text<MapFile>>, D::Error> {
    Ok(list(deserializer)?.into_iter().map(Text).collect())
}

impl File {
    /// The configuration, with what `system` says where the file says nothing.
    pub fn resolve(self, system: &System) -> Result<Config, Fault> {
        let hostname = match self.hostname {
            Some(Text(HostName(hostname))) => hostname,
            None => Domain::parse(&system.hostname, false).map_err(|_| {
                let words = "the system's host name is not a domain";
                Fault::new(
                    "hostname",
                    format!("{words}: {:?}; expected {}", system.hostname, HostName::EXPECTED),
                )
            })?,
        };
        let data = self.data.unwrap_or_else(|| DATA_DEFAULT.into());
        if data.is_empty() || data.contains('\0') {
            return Err(Fault::new("data", "expected a path"));
        }
        let cores = match (self.cores, self.shards) {
            (Some(_), Some(_)) => {
                return Err(Fault::new(
                    "shards",
                    "cores and shards exclude each other: expected one of them",
                ));
            }
            (Some(Text(Cores(cores))), None) => Placement::Cores(cores),
            (None, Some(count)) => Placement::Shards(count),
            (None, None) => Placement::Shards(system.cores_count.clamp(1, SHARDS_MAX as usize)),
        };
        let listeners = resolve_listeners(self.listener, &self.tls)?;
        check_listeners(&listeners, &self.tls, &self.auth)?;
        let accept = resolve_accept(self.accept, &listeners)?;
        let policies = policies::resolve(self.policy)?;
        let domains = resolve_domains(self.domain, &accept, &policies, self.smtp.message_size_max)?;
        check_spool(&self.spool)?;
        check_memory_queue(&self.spool, self.smtp.message_size_max, cores.shards_count())?;
        let transports = resolve_transports(self.transport, &data)?;
        check_delivery(&self.delivery, &self.notifications, &transports)?;
        let routes = routes::resolve(self.route, transports.keys())?;
        let sessions_max = self.sessions_max.unwrap_or_else(|| {
            let attempts = transports.values().map(|transport| transport.limits.concurrency as u64).sum();
            let deliveries = Deliveries { workers: self.delivery.workers as u64, attempts };
            sessions_max_for(system.descriptors_max, cores.shards_count() as u64, deliveries) as usize
        });
        let data = PathBuf::from(data);
        let admin = self.admin.resolve(&data)?;
        Ok(Config {
            hostname,
            data,
            cores,
            sessions_max,
            drain_timeout: self.drain_timeout.unwrap_or(DRAIN_TIMEOUT_DEFAULT),
            listeners,
            accept,
            admission: self.admission,
            domains,
            policies,
            lookups_max: self.lookups_max.unwrap_or(LOOKUPS_MAX_DEFAULT),
            dns: self.dns,
            smtp: self.smtp,
            tls: self.tls,
            auth: self.auth,
            spool: self.spool,
            delivery: self.delivery,
            notifications: self.notifications,
            transports,
            routes,
            admin,
            monitor: self.monitor,
            log: self.log,
        })
    }
}

fn resolve_listeners(listeners: Option<Vec<ListenerFile>>, tls: &Tls) -> Result<Vec<Listener>, Fault> {
    let listeners = listeners.unwrap_or_else(|| vec![ListenerFile::default()]);
    if listeners.is_empty() || listeners.len() > LISTENERS_MAX {
        return Err(Fault::new("listener", format!("expected 1 to {LISTENERS_MAX} listeners")));
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = listeners.iter().find(|l| l.address.0.port() != 0 && !seen.insert(l.address.0)) {
        return Err(Fault::new("listener", format!("the address {} is given twice", twice.address.0)));
    }
    // Who has certificates wants them used.
    let tls = if tls.certificates.is_empty() { TlsMode::Disabled } else { TlsMode::Optional };
    let networks = |list: Vec<Text<IpNet>>| list.into_iter().map(|Text(network)| network).collect();
    let listener = |l: ListenerFile| Listener {
        address: l.address.0,
        backlog: l.backlog,
        protocol: l.protocol,
        tls: l.tls.unwrap_or(tls),
        client_certificates: l.client_certificates,
        auth: l.auth,
        proxy_from: networks(l.proxy_from),
        xclient_from: networks(l.xclient_from),
        trusted: l.trusted,
        steering: l.steering,
    };
    Ok(listeners.into_iter().map(listener).collect())
}

/// What a listener asks for is there.
fn check_listeners(listeners: &[Listener], tls: &Tls, auth: &Auth) -> Result<(), Fault> {
    for (n, listener) in listeners.iter().enumerate() {
        let address = listener.address;
        let fault = |key: &str, words: String| Err(Fault::new(format!("listener[{n}].{key}"), words));
        let has_tls = listener.tls != TlsMode::Disabled;
        if has_tls && tls.certificates.is_empty() {
            return fault(
                "tls",
                format!(
                    "{address} is to have TLS and there is no certificate: add tls.certificates = [{{ chain = \"chain.pem\", key = \"key.pem\" }}]"
                ),
            );
        }
        if listener.client_certificates != ClientCertificates::Ignore {
            if !has_tls {
                return fault(
                    "client_certificates",
                    format!("{address} has no TLS: give it tls = \"required\" or another"),
                );
            }
            if tls.client_authorities.is_none() {
                let words = "nobody is known who may vouch for a client: add tls.client_authorities = \"authorities.pem\"";
                return fault("client_certificates", words.into());
            }
        }
        if listener.auth != AuthMode::Disabled {
            if !has_tls {
                let words = format!(
                    "{address} has no TLS, and a password is never taken in clear: give it tls = \"required\" or \"implicit\""
                );
                return fault("auth", words);
            }
            if auth.credentials.is_none() {
                return fault("auth", "nobody can log in: add auth.credentials = \"credentials\"".into());
            }
        }
        if listener.protocol == Dialect::Lmtp && address.port() == 25 {
            return fault(
                "protocol",
                "LMTP must not be spoken on port 25 (RFC 2033): choose another port".into(),
            );
        }
    }
    Ok(())
}

/// Nobody becomes a catch-all by accident: where strangers reach us, somebody must have said whose mail is taken.
fn resolve_accept(accept: AcceptFile, listeners: &[Listener]) -> Result<Accept, Fault> {
    let domains: Vec<_> = accept.domains.into_iter().map(|Text(domain)| domain).collect();
    // Who speaks for others brings strangers, wherever it is itself.
    let brings_strangers = |l: &&Listener| !(l.proxy_from.is_empty() && l.xclient_from.is_empty());
    let public = listeners.iter().find(|l| !l.is_loopback() || brings_strangers(l));
    let maps: Vec<_> = accept.maps.into_iter().map(|Text(MapFile(path))| path).collect();
    let Text(Separator(detail_separator)) = accept.detail_separator;
    let says_nothing = domains.is_empty() && maps.is_empty();
    match (public, accept.any) {
        (Some(listener), None | Some(false)) if says_nothing => Err(Fault::new(
            "accept.domains",
            format!(
                "missing, and {} can be reached from other machines: add accept.domains = [\"example.com\"] with the \
                 domains whose mail is yours, or accept.any = true to take mail for every domain",
                listener.address
            ),
        )),
        (_, any) => Ok(Accept { any: any.unwrap_or(says_nothing), domains, maps, detail_separator }),
    }
}

/// Each is ours, as far as can be told without the maps, and names policies that there are.
fn resolve_domains(
    domains: BTreeMap<String, DomainFile>,
    accept: &Accept,
    policies: &[policies::Policy],
    message_size_max: u64,
) -> Result<BTreeMap<Domain, DomainSettings>, Fault> {
    let mut resolved = BTreeMap::new();
    for (name, DomainFile { message_size_max: size_max, tls_required, skip }) in domains {
        let place = format!("domain.\"{name}\"");
        let fault = |key: &str, words: String| Err(Fault::new(format!("{place}{key}"), words));
        let Some(domain) = Domain::parsed(&name) else {
            return fault("", format!("expected {}, not {name:?}", Domain::EXPECTED));
        };
        if !accept.any && accept.maps.is_empty() && !accept.domains.contains(&domain) {
            return fault("", format!("its mail is not taken: add {name:?} to accept.domains"));
        }
        if let Some(size) = size_max.filter(|size| *size > message_size_max) {
            let max = size_text(message_size_max);
            let words = format!("expected at most smtp.message_size_max, {max}, not {}", size_text(size));
            return fault(".message_size_max", words);
        }
        let skip: Vec<_> = skip.into_iter().map(|PolicyName(name)| name).collect();
        if let Some(unknown) = skip.iter().find(|name| !policies.iter().any(|policy| policy.name == **name)) {
            return fault(".skip", format!("there is no policy of the name {unknown:?}"));
        }
        let rules = DomainRules { message_size_max: size_max, tls_required };
        if resolved.insert(domain, DomainSettings { rules, skip }).is_some() {
            return fault("", "the domain has two sections, in two spellings".into());
        }
    }
    Ok(resolved)
}

fn check_spool(spool: &Spool) -> Result<(), Fault> {
    if !spool.segment_size.is_multiple_of(SEGMENT_SIZE_STEP) {
        let words = format!("expected a multiple of 4 KiB, not {}", spool.segment_size);
        return Err(Fault::new("spool.segment_size", words));
    }
    Ok(())
}

/// A queue in memory can be used: each shard has room for its segments and for the largest message.
fn check_memory_queue(spool: &Spool, message_size_max: u64, shards: usize) -> Result<(), Fault> {
    let for_segments = MEMORY_SEGMENTS_MIN * SEGMENT_SIZE_LOW;
    let for_messages = MEMORY_MESSAGES_MIN * message_size_max;
    let share_min = for_segments.max(for_messages).next_multiple_of(MIB);
    if spool.queue != Queue::Memory || spool.memory_share(shards) >= share_min {
        return Ok(());
    }
    let (why, or) = match for_segments >= for_messages {
        true => (format!("{MEMORY_SEGMENTS_MIN} segments of {} MiB", SEGMENT_SIZE_LOW / MIB), ""),
        false => ("twice smtp.message_size_max".to_string(), ", lower smtp.message_size_max"),
    };
    let least = share_min * shards as u64 / MIB;
    let (whose, fewer) = match shards {
        1 => ("the shard".to_string(), ""),
        _ => (format!("each of {shards} shards"), ", run fewer shards"),
    };
    let words = format!(
        "expected at least {least} MiB, not {}: {whose} needs {why}. Raise it{or}{fewer}, or use spool.queue = \"disk\"",
        size_text(spool.memory_queue_size),
    );
    Err(Fault::new("spool.memory_queue_size", words))
}

fn check_delivery(
    delivery: &Delivery,
    notifications: &Notifications,
    transports: &BTreeMap<String, Transport>,
) -> Result<(), Fault> {
    if delivery.backoff_max < delivery.backoff_base {
        let text = |duration| humantime::format_duration(duration);
        let (base, max) = (text(delivery.backoff_base), text(delivery.backoff_max));
        let words = format!("expected at least delivery.backoff_base, {base}, not {max}");
        return Err(Fault::new("delivery.backoff_max", words));
    }
    let named = [
        ("delivery.transport", Some(&delivery.transport)),
        ("notifications.transport", notifications.transport.as_ref()),
    ];
    for (key, name) in named {
        if let Some(name) = name.filter(|name| !transports.contains_key(*name)) {
            let names: Vec<_> = transports.keys().map(|name| format!("{name:?}")).collect();
            let words = format!("expected the name of a transport, {}, not {name:?}", names.join(" or "));
            return Err(Fault::new(key, words));
        }
    }
    Ok(())
}

fn resolve_transports(
    tables: BTreeMap<String, toml::Table>,
    data: &str,
) -> Result<BTreeMap<String, Transport>, Fault> {
    let tables = match tables.is_empty() {
        true => BTreeMap::from([("store".to_string(), toml::Table::new())]),
        false => tables,
    };
    let resolve = |(name, table): (String, toml::Table)| {
        let transport = transports::resolve(&name, table, data)?;
        Ok((name, transport))
    };
    tables.into_iter().map(resolve).collect()
}

impl From<&Config> for File {
    fn from(config: &Config) -> Self {
        let (cores, shards) = match &config.cores {
            Placement::Cores(cores) => (Some(Text(Cores(cores.clone()))), None),
            Placement::Shards(count) => (None, Some(*count)),
        };
        let networks = |list: &[IpNet]| list.iter().copied().map(Text).collect();
        let listener = |l: &Listener| ListenerFile {
            address: Text(l.address),
            backlog: l.backlog,
            protocol: l.protocol,
            tls: Some(l.tls),
            client_certificates: l.client_certificates,
            auth: l.auth,
            proxy_from: networks(&l.proxy_from),
            xclient_from: networks(&l.xclient_from),
            trusted: l.trusted,
            steering: l.steering,
        };
        File {
            hostname: Some(Text(HostName(config.hostname.clone()))),
            data: Some(config.data.to_str().expect("it was read from text").into()),
            cores,
            shards,
            sessions_max: Some(config.sessions_max),
            drain_timeout: Some(config.drain_timeout),
            lookups_max: Some(config.lookups_max),
            listener: Some(config.listeners.iter().map(listener).collect()),
            accept: AcceptFile {
                domains: config.accept.domains.iter().cloned().map(Text).collect(),
                any: Some(config.accept.any),
                maps: config.accept.maps.iter().cloned().map(|path| Text(MapFile(path))).collect(),
                detail_separator: Text(Separator(config.accept.detail_separator)),
            },
            admission: config.admission.clone(),
            domain: config.domains.iter().map(|(domain, d)| (domain.to_string(), d.into())).collect(),
            policy: config.policies.iter().map(policies::write).collect(),
            dns: config.dns.clone(),
            smtp: config.smtp.clone(),
            tls: config.tls.clone(),
            auth: config.auth.clone(),
            spool: config.spool.clone(),
            delivery: config.delivery.clone(),
            notifications: config.notifications.clone(),
            transport: config
                .transports
                .iter()
                .map(|(name, t)| (name.clone(), transports::write(t)))
                .collect(),
            route: config.routes.iter().map(routes::write).collect(),
            admin: (&config.admin).into(),
            monitor: config.monitor.clone(),
            log: config.log.clone(),
        }
    }
}

impl From<&DomainSettings> for DomainFile {
    fn from(settings: &DomainSettings) -> Self {
        let DomainRules { message_size_max, tls_required } = settings.rules;
        DomainFile {
            message_size_max,
            tls_required,
            skip: settings.skip.iter().cloned().map(PolicyName).collect(),
        }
    }
}
