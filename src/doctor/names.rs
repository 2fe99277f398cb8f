//! The DNS, where something of the configuration asks it: who is asked, whether he answers, and whether lists speak with him.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::task::JoinSet;

use super::finding::Finding;
use super::reading::{self, Seen, Unseen};
use crate::client;
use crate::config::Config;
use crate::config::policies::PolicyKind;
use crate::config::transports::TransportKind;
use crate::policy::Subject;

/// Nobody is waited for longer, whatever the configuration says.
const TIMEOUT_MAX: Duration = Duration::from_secs(3);

/// Resolvers that everybody may ask, and that lists therefore refuse: the best known. Others are found out by what a list says.
const PUBLIC: [(&str, &[&str]); 6] = [
    ("Google", &["8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"]),
    ("Cloudflare", &["1.1.1.1", "1.0.0.1", "2606:4700:4700::1111", "2606:4700:4700::1001"]),
    ("Quad9", &["9.9.9.9", "149.112.112.112", "2620:fe::fe", "2620:fe::9"]),
    ("OpenDNS", &["208.67.222.222", "208.67.220.220", "2620:119:35::35", "2620:119:53::53"]),
    ("AdGuard", &["94.140.14.14", "94.140.15.15", "2a10:50c0::ad1:ff", "2a10:50c0::ad2:ff"]),
    ("Level 3", &["4.2.2.1", "4.2.2.2", "4.2.2.3", "4.2.2.4", "4.2.2.5", "4.2.2.6"]),
];

/// What was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Names {
    /// Who asks: policies and transports, by their names.
    pub askers: Vec<String>,
    /// They are in the configuration; otherwise `/etc/resolv.conf` has them.
    pub is_configured: bool,
    pub servers: Seen<Vec<Server>>,
    /// Each list's zone, and what it says of its test entry.
    pub lists: Vec<(String, Answer)>,
}

/// One resolver.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    pub address: SocketAddr,
    /// How long the answer took, or why there is none.
    pub answer: Result<Duration, String>,
}

/// What a list says of the entry that each has, for tests (RFC 5782 §5).
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It has it.
    Listed,
    /// It has not.
    NotListed,
    /// It says that it does not speak with whoever asks.
    Refused(IpAddr),
    /// Nothing that can be used.
    None(String),
}

impl Names {
    pub fn read(config: &Config) -> Self {
        let askers = askers(config);
        let is_configured = !config.dns.servers.is_empty();
        let none =
            Names { askers: askers.clone(), is_configured, servers: Ok(Vec::new()), lists: Vec::new() };
        if askers.is_empty() {
            return none;
        }
        let addresses = match is_configured {
            true => Ok(config.dns.servers.iter().map(|server| server.0).collect()),
            false => reading::text("/etc/resolv.conf").map(|text| of_resolv_conf(&text)),
        };
        let addresses: Vec<SocketAddr> = match addresses {
            Ok(addresses) => addresses,
            Err(why) => return Names { servers: Err(why), ..none },
        };
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => return Names { servers: Err(Unseen(format!("cannot ask: {e}"))), ..none },
        };
        let timeout = config.dns.timeout.min(TIMEOUT_MAX);
        let (servers, lists) = runtime.block_on(ask(&addresses, &zones(config), timeout));
        Names { servers: Ok(servers), lists, ..none }
    }
}

/// Who of the configuration asks the DNS.
fn askers(config: &Config) -> Vec<String> {
    let of_policies = config.policies.iter().filter(|policy| match &policy.kind {
        PolicyKind::Dnsbl(_) | PolicyKind::ReverseDns(_) => true,
        PolicyKind::Hello(hello) => hello.resolves,
        _ => false,
    });
    let of_transports = config.transports.iter().filter(|(_, transport)| match &transport.kind {
        TransportKind::Smtp(smtp) => !smtp.mx.is_empty() || smtp.mx_domain.is_some(),
        _ => false,
    });
    let policies = of_policies.map(|policy| format!("policy {:?}", policy.name));
    policies.chain(of_transports.map(|(name, _)| format!("transport {name:?}"))).collect()
}

/// The zones of lists, and the name of the test entry of each.
fn zones(config: &Config) -> Vec<(String, String)> {
    let mut zones = Vec::new();
    for policy in &config.policies {
        let PolicyKind::Dnsbl(dnsbl) = &policy.kind else { continue };
        let entry = match dnsbl.query {
            Subject::Address => "2.0.0.127",
            Subject::Sender | Subject::Hello => "test",
        };
        for list in dnsbl.lists() {
            let zone = list.zone.canonical().to_string();
            let name = format!("{entry}.{zone}.");
            if !zones.iter().any(|(_, known)| *known == name) {
                zones.push((zone, name));
            }
        }
    }
    zones
}

/// The servers of a `resolv.conf`.
fn of_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let text = line.strip_prefix("nameserver")?.split_ascii_whitespace().next()?;
        // An address within a link names the interface behind a percent sign.
        let ip = text.split('%').next()?.parse().ok()?;
        Some(SocketAddr::new(ip, 53))
    };
    text.lines().filter_map(|line| address(line.trim())).collect()
}

/// Asks each server for the root's servers, and all of them for the lists' test entries, at the same time.
async fn ask(
    addresses: &[SocketAddr],
    zones: &[(String, String)],
    timeout: Duration,
) -> (Vec<Server>, Vec<(String, Answer)>) {
    let mut servers = JoinSet::new();
    for (n, address) in addresses.iter().copied().enumerate() {
        servers.spawn(async move {
            let begun = Instant::now();
            let answer = lookup(&[address], ".", RecordType::NS, timeout).await.map(|_| begun.elapsed());
            (n, Server { address, answer })
        });
    }
    let mut lists = JoinSet::new();
    for (n, (zone, name)) in zones.iter().cloned().enumerate() {
        let addresses = addresses.to_vec();
        lists.spawn(async move {
            let answer = match lookup(&addresses, &name, RecordType::A, timeout).await {
                Ok(found) => said(&found),
                Err(why) => Answer::None(why),
            };
            (n, (zone, answer))
        });
    }
    (in_order(servers.join_all().await), in_order(lists.join_all().await))
}

fn in_order<T>(mut found: Vec<(usize, T)>) -> Vec<T> {
    found.sort_unstable_by_key(|(n, _)| *n);
    found.into_iter().map(|(_, one)| one).collect()
}

/// The addresses of a name; none where there are none, or something else was asked for.
async fn lookup(
    servers: &[SocketAddr],
    name: &str,
    kind: RecordType,
    timeout: Duration,
) -> Result<Vec<IpAddr>, String> {
    let resolver = client::resolver(servers, timeout)?.build().map_err(|e| e.to_string())?;
    let name = Name::from_ascii(name).map_err(|e| e.to_string())?;
    let found = tokio::time::timeout(timeout, resolver.lookup(name, kind)).await;
    match found.map_err(|_| format!("no answer within {timeout:?}"))? {
        Ok(found) => {
            let address = |data: &RData| match data {
                RData::A(a) => Some(IpAddr::V4(a.0)),
                _ => None,
            };
            Ok(found.answers().iter().filter_map(|record| address(&record.data)).collect())
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(nothing)))
            if matches!(nothing.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
        {
            Ok(Vec::new())
        }
        Err(e) => Err(e.to_string()),
    }
}

/// What a list's answer means. Addresses in 127.255.255.0/24 are errors, as lists have agreed.
fn said(addresses: &[IpAddr]) -> Answer {
    let is_error = |ip: &&IpAddr| matches!(ip, IpAddr::V4(v4) if v4.octets()[..3] == [127, 255, 255]);
    match (addresses.iter().find(is_error), addresses) {
        (Some(error), _) => Answer::Refused(*error),
        (None, []) => Answer::NotListed,
        (None, _) => Answer::Listed,
    }
}

/// Whose public resolver this is.
fn public_operator(ip: IpAddr) -> Option<&'static str> {
    let ip = ip.to_canonical();
    let has = |addresses: &[&str]| addresses.iter().any(|one| one.parse() == Ok(ip));
    PUBLIC.iter().find(|(_, addresses)| has(addresses)).map(|(operator, _)| *operator)
}

/// What it means.
pub fn judge(names: &Names) -> Vec<Finding> {
    const CHECK: &str = "DNS";
    if names.askers.is_empty() {
        return vec![Finding::ok(CHECK, "nothing in the configuration asks it: not looked at")];
    }
    let whose = if names.is_configured { "[dns] servers" } else { "/etc/resolv.conf" };
    let askers = names.askers.join(", ");
    let servers = match &names.servers {
        Ok(servers) => servers,
        Err(why) => return vec![Finding::unseen(CHECK, why)],
    };
    if servers.is_empty() {
        let found = format!("{whose} names no resolver, and there are who ask: {askers}");
        return vec![
            Finding::fault(CHECK, found)
                .costs("what they would find out is not found out: see on_error of each policy")
                .mend("[dns] servers, or a nameserver in /etc/resolv.conf"),
        ];
    }
    let mut findings: Vec<_> =
        servers.iter().map(|one| server(one, servers, whose, !names.lists.is_empty())).collect();
    findings.extend(names.lists.iter().map(|(zone, answer)| list(zone, answer)));
    findings
}

fn server(server: &Server, all: &[Server], whose: &str, is_for_lists: bool) -> Finding {
    /// As long as this each new peer waits for each question.
    const SLOW: Duration = Duration::from_millis(100);
    const CHECK: &str = "DNS";
    let Server { address, answer } = server;
    let operator = public_operator(address.ip());
    let is = operator.map(|operator| format!(", a public resolver of {operator}")).unwrap_or_default();
    match answer {
        Err(why) => {
            let found = format!("{address} ({whose}){is} does not answer: {why}");
            match all.iter().any(|other| other.answer.is_ok()) {
                true => Finding::warning(CHECK, found)
                    .costs("questions wait for it before others are asked")
                    .mend("mend it, or take it from the list"),
                false => Finding::fault(CHECK, found)
                    .costs(
                        "policies that ask cannot decide, and mail is deferred where their on_error says so",
                    )
                    .mend("a resolver on this machine, as unbound: [dns] servers = [\"127.0.0.1\"]"),
            }
        }
        Ok(_) if operator.is_some() && is_for_lists => Finding::warning(
            CHECK,
            format!("{address} ({whose}){is}"),
        )
        .costs("lists refuse those who ask through it, or answer that nobody is listed")
        .mend("a resolver on this machine that asks for itself, as unbound: [dns] servers = [\"127.0.0.1\"]"),
        Ok(time) if *time > SLOW => {
            Finding::note(CHECK, format!("{address} ({whose}){is} answers in {} ms", time.as_millis()))
                .costs("sessions wait as long for each question that was not asked lately")
                .mend("a resolver on this machine, as unbound: [dns] servers = [\"127.0.0.1\"]")
        }
        Ok(time) => Finding::ok(
            CHECK,
            format!("{address} ({whose}){is} answers in {:.1} ms", time.as_secs_f64() * 1000.0),
        ),
    }
}

fn list(zone: &str, answer: &Answer) -> Finding {
    const CHECK: &str = "list";
    const RESOLVER: &str = "a resolver on this machine that asks for itself and passes nothing on; or the list's own terms for those who ask much";
    match answer {
        Answer::Listed => Finding::ok(CHECK, format!("{zone} answers, and has its test entry")),
        Answer::Refused(code) => Finding::warning(CHECK, format!("{zone} refuses to answer: it says {code}"))
            .costs("the policy finds nobody on it")
            .mend(RESOLVER),
        Answer::NotListed => Finding::warning(CHECK, format!("{zone} does not have the test entry that every list has (RFC 5782)"))
            .costs("it is no list any more, is spelled otherwise, or refuses to answer: the policy finds nobody on it")
            .mend(format!("see the list's own pages; {RESOLVER}")),
        Answer::None(why) => Finding::warning(CHECK, format!("{zone} does not answer: {why}"))
            .costs("the policy waits for it, then leaves it alone for a while")
            .mend("see the resolver above; or the list's own pages"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn the_servers_of_resolv_conf_are_read() {
        let text = "# nameserver 192.0.2.9\nsearch example\n nameserver 192.0.2.1\nnameserver\t2001:db8::1 # ours\nnameserver fe80::1%eth0\nnameserver\nnameserver x";
        let found: Vec<_> = of_resolv_conf(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1]:53"]);
    }

    #[test]
    fn public_resolvers_are_known() {
        let table = [
            ("8.8.8.8", Some("Google")),
            ("::ffff:1.1.1.1", Some("Cloudflare")),
            ("2620:fe::fe", Some("Quad9")),
            ("192.0.2.1", None),
            ("127.0.0.1", None),
        ];
        for (ip, operator) in table {
            assert_eq!(public_operator(ip.parse().unwrap()), operator, "{ip}");
        }
        for ip in PUBLIC.iter().flat_map(|(_, addresses)| *addresses) {
            assert!(ip.parse::<IpAddr>().is_ok(), "{ip}");
        }
    }

    #[test]
    fn an_answer_of_a_list_is_understood() {
        let table: [(&[&str], Answer); 5] = [
            (&["127.0.0.2"], Answer::Listed),
            (&["127.0.0.2", "127.0.0.4"], Answer::Listed),
            (&[], Answer::NotListed),
            (&["127.255.255.254"], Answer::Refused("127.255.255.254".parse().unwrap())),
            (&["127.0.0.2", "127.255.255.252"], Answer::Refused("127.255.255.252".parse().unwrap())),
        ];
        for (addresses, expected) in table {
            let addresses: Vec<_> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(said(&addresses), expected, "{addresses:?}");
        }
    }

    #[test]
    fn resolvers_and_lists_are_judged() {
        let one = |address: &str, answer: Result<u64, &str>| Server {
            address: address.parse().unwrap(),
            answer: answer.map(Duration::from_millis).map_err(str::to_string),
        };
        let names = |servers: &[Server], lists: &[Answer]| Names {
            askers: vec!["policy \"lists\"".into()],
            is_configured: false,
            servers: Ok(servers.to_vec()),
            lists: lists.iter().map(|answer| ("list.example".into(), answer.clone())).collect(),
        };
        let near = one("127.0.0.1:53", Ok(1));
        let far = one("192.0.2.1:53", Ok(250));
        let silent = one("192.0.2.2:53", Err("no answer"));
        let public = one("8.8.8.8:53", Ok(5));
        let refused = Answer::Refused("127.255.255.254".parse().unwrap());
        let table: [(Names, &[Level]); 10] = [
            (Names { askers: Vec::new(), ..names(&[], &[]) }, &[Level::Ok]),
            (names(&[], &[]), &[Level::Fault]),
            (Names { servers: Err(Unseen::because("hidden")), ..names(&[], &[]) }, &[Level::Note]),
            (names(&[near.clone(), far.clone()], &[]), &[Level::Ok, Level::Note]),
            (names(&[near.clone(), silent.clone()], &[]), &[Level::Ok, Level::Warning]),
            (names(&[silent], &[]), &[Level::Fault]),
            // Public ones are good enough for everything but lists.
            (names(std::slice::from_ref(&public), &[]), &[Level::Ok]),
            (names(&[public], &[refused]), &[Level::Warning, Level::Warning]),
            (
                names(std::slice::from_ref(&near), &[Answer::Listed, Answer::NotListed]),
                &[Level::Ok, Level::Ok, Level::Warning],
            ),
            (names(&[near], &[Answer::None("no answer".into())]), &[Level::Ok, Level::Warning]),
        ];
        for (names, levels) in table {
            let found: Vec<_> = judge(&names).iter().map(|finding| finding.level).collect();
            assert_eq!(found, levels, "{names:?}");
        }
    }
}
