//! Who takes the mail of a domain, by the DNS (RFC 5321 §5.1, RFC 7505).
//!
//! What the DNS answers is remembered by the resolver for as long as the zone says. That it does not answer is no answer: it defers.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};

use crate::client;
use crate::delivery::Outcome;
use crate::mail::Domain;

/// For how long an answer is remembered at most, whatever the zone says.
const TTL_MAX: Duration = Duration::from_secs(3600);
/// Names of an answer that are looked up further, and addresses of each.
const EXCHANGES_MAX: usize = 16;
const ADDRESSES_MAX: usize = 8;

/// A host that takes mail, at one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Lower ones are asked first.
    pub preference: u16,
    /// The host's name in A-labels, without the last dot.
    pub name: String,
    /// One of its addresses.
    pub address: IpAddr,
}

/// See the module.
pub struct Exchanges {
    dns: TokioResolver,
    timeout: Duration,
}

/// What the DNS says of a name.
enum Answer {
    /// There are records.
    Records(Vec<RData>),
    /// The name exists, and has none of this sort.
    None,
    /// There is no such name.
    NoName,
}

impl Exchanges {
    /// Asks `servers`, or those of `/etc/resolv.conf` where there are none; a question may take `timeout`. Errors are in words for the operator.
    pub fn new(servers: &[SocketAddr], timeout: Duration) -> Result<Exchanges, String> {
        let mut builder = client::resolver(servers, timeout)?;
        let options = builder.options_mut();
        options.positive_max_ttl = Some(TTL_MAX);
        options.negative_max_ttl = Some(TTL_MAX);
        let dns = builder.build().map_err(|e| format!("cannot use the DNS: {e}"))?;
        Ok(Exchanges { dns, timeout })
    }

    /// The hosts that take mail for `domain`, but neither ourselves, `hostname`, nor those that are no better (RFC 5321 §5.1); never none. Otherwise
    /// what becomes of its recipients. A domain that the DNS does not know is a mistake that will be mended, or a registration that will be renewed: it is the
    /// operator who has named it.
    pub async fn of(&self, domain: &str, hostname: &str) -> Result<Vec<Exchange>, Outcome> {
        if let Some(address) = literal(domain) {
            return Ok(vec![Exchange { preference: 0, name: domain.into(), address }]);
        }
        let records = match self.ask(domain, RecordType::MX).await.map_err(Outcome::unreachable)? {
            Answer::NoName => return Err(Outcome::unreachable(format!("5.1.2 there is no domain {domain}"))),
            Answer::None => Vec::new(),
            Answer::Records(records) => records,
        };
        let mut names = Vec::new();
        for data in records {
            let RData::MX(mx) = data else { continue };
            names.push((mx.preference, mx.exchange.to_ascii().trim_end_matches('.').to_ascii_lowercase()));
        }
        let is_implicit = names.is_empty();
        if is_implicit {
            names.push((0, domain.into()));
        }
        let names = choose(domain, hostname, names)?;
        let (mut found, mut trouble) = (Vec::new(), None);
        for (preference, name) in names {
            match self.addresses(&name).await {
                Ok(addresses) => {
                    let exchange = |address| Exchange { preference, name: name.clone(), address };
                    found.extend(addresses.into_iter().map(exchange));
                }
                Err(words) => trouble = Some(words),
            }
        }
        match (found.is_empty(), trouble) {
            (false, _) => Ok(found),
            (true, Some(words)) => Err(Outcome::unreachable(words)),
            (true, None) if is_implicit => {
                Err(Outcome::unreachable(format!("5.4.4 {domain} has neither MX records nor an address")))
            }
            (true, None) => Err(Outcome::deferred(format!("no exchange of {domain} has an address"))),
        }
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        let mut addresses = Vec::new();
        let mut trouble = None;
        for kind in [RecordType::AAAA, RecordType::A] {
            match self.ask(name, kind).await {
                Ok(Answer::Records(records)) => {
                    addresses.extend(records.iter().filter_map(|data| match data {
                        RData::A(a) => Some(IpAddr::V4(a.0)),
                        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
                        _ => None,
                    }))
                }
                Ok(Answer::None | Answer::NoName) => {}
                Err(words) => trouble = Some(words),
            }
        }
        addresses.truncate(ADDRESSES_MAX);
        match trouble {
            Some(words) if addresses.is_empty() => Err(words),
            _ => Ok(addresses),
        }
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Result<Answer, String> {
        let failed = |why: &dyn fmt::Display| format!("DNS: {name} {kind}: {why}");
        let mut question = Name::from_ascii(name).map_err(|e| failed(&e))?;
        // Nothing is looked for in the domains that this machine searches.
        question.set_fqdn(true);
        let found = match tokio::time::timeout(self.timeout, self.dns.lookup(question, kind)).await {
            Ok(found) => found,
            Err(_) => return Err(failed(&format_args!("no answer within {:?}", self.timeout))),
        };
        match found {
            Ok(lookup) => {
                let records = lookup.answers().iter().filter(|record| record.record_type() == kind);
                let records: Vec<_> = records.map(|record| record.data.clone()).collect();
                Ok(if records.is_empty() { Answer::None } else { Answer::Records(records) })
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(nothing))) => match nothing.response_code {
                ResponseCode::NXDomain => Ok(Answer::NoName),
                ResponseCode::NoError => Ok(Answer::None),
                code => Err(failed(&code)),
            },
            Err(e) => Err(failed(&e)),
        }
    }
}

/// Those of `names` that are asked, in the order of their preferences.
fn choose(
    domain: &str,
    hostname: &str,
    mut names: Vec<(u16, String)>,
) -> Result<Vec<(u16, String)>, Outcome> {
    // RFC 7505 §3: one record that names the root.
    if names.iter().all(|(_, name)| name.is_empty()) {
        return Err(Outcome::rejected(format!("5.1.10 {domain} takes no mail (null MX)")));
    }
    let ours = names.iter().filter(|(_, name)| name == hostname).map(|(preference, _)| *preference).min();
    if let Some(ours) = ours {
        names.retain(|(preference, _)| *preference < ours);
        if names.is_empty() {
            let words = format!("5.4.6 the mail of {domain} loops back: its best exchange is ourselves");
            return Err(Outcome::deferred(words));
        }
    }
    names.retain(|(_, name)| Domain::parse(name, false).is_ok() && !name.starts_with('['));
    if names.is_empty() {
        return Err(Outcome::deferred(format!("no exchange of {domain} has a name of a host")));
    }
    names.sort();
    names.truncate(EXCHANGES_MAX);
    Ok(names)
}

/// The address of a literal (RFC 5321 §4.1.3).
fn literal(domain: &str) -> Option<IpAddr> {
    let inner = domain.strip_prefix('[')?.strip_suffix(']')?;
    let six = inner.get(..5).filter(|tag| tag.eq_ignore_ascii_case("IPv6:"));
    inner[six.map_or(0, str::len)..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchanges_are_chosen_by_preference_and_never_lead_back() {
        type Case<'a> = (&'a [(u16, &'a str)], Result<&'a [&'a str], &'a str>);
        let table: [Case; 9] = [
            (&[(20, "b.example"), (10, "a.example")], Ok(&["a.example", "b.example"])),
            (&[(0, "")], Err("5.1.10 x.example takes no mail (null MX)")),
            (&[(0, ""), (10, "a.example")], Ok(&["a.example"])),
            (&[(10, "a.example"), (20, "mx.test"), (30, "c.example")], Ok(&["a.example"])),
            (
                &[(10, "mx.test"), (20, "b.example")],
                Err("5.4.6 the mail of x.example loops back: its best exchange is ourselves"),
            ),
            (
                &[(10, "a.example"), (10, "mx.test")],
                Err("5.4.6 the mail of x.example loops back: its best exchange is ourselves"),
            ),
            (
                &[(10, "mx.test")],
                Err("5.4.6 the mail of x.example loops back: its best exchange is ourselves"),
            ),
            (&[(10, "under_score.example"), (20, "b.example")], Ok(&["b.example"])),
            (&[(10, "a b")], Err("no exchange of x.example has a name of a host")),
        ];
        for (names, expected) in table {
            let names = names.iter().map(|(preference, name)| (*preference, name.to_string())).collect();
            let chosen = choose("x.example", "mx.test", names);
            let chosen = chosen.map(|names| names.into_iter().map(|(_, name)| name).collect::<Vec<_>>());
            match (chosen, expected) {
                (Ok(chosen), Ok(expected)) => assert_eq!(chosen, expected),
                (Err(outcome), Err(expected)) => assert_eq!(outcome.reason(), Some(expected)),
                (chosen, expected) => panic!("{chosen:?}, {expected:?}"),
            }
        }
    }

    #[test]
    fn literals_are_addresses() {
        let table = [
            ("[192.0.2.1]", Some("192.0.2.1")),
            ("[ipv6:2001:db8::1]", Some("2001:db8::1")),
            ("192.0.2.1", None),
            ("[x]", None),
            ("a.example", None),
        ];
        for (domain, expected) in table {
            assert_eq!(literal(domain), expected.map(|text| text.parse().unwrap()), "{domain}");
        }
    }
}
