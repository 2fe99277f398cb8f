//! Which hosts there are, and in which order they are asked.
//!
//! Lower priorities first, equal ones in an order of chance, as exchanges of the DNS are (RFC 5321 §5.1). A host that failed rests: it is not asked while
//! there are others.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::mx::Exchange;
use super::{Exchanges, Manners};
use crate::client::{Endpoint, Pool};
use crate::delivery::{Attempt, Outcome};
use crate::mail::{Domain, canonical_domain};

/// How long a host that failed is not asked where there are others.
const REST: Duration = Duration::from_secs(60);
/// Hosts found in the DNS whose connections are kept.
const KNOWN_MAX: usize = 1000;

/// One host, at one address.
pub struct Host {
    /// What the operator calls it.
    name: String,
    pub(super) pool: Pool,
    rests_until: Mutex<Option<Instant>>,
}

impl Host {
    fn new(name: String, endpoint: Endpoint, tls_name: &str, manners: &Manners) -> Arc<Self> {
        let pool = Pool::new(manners.target(endpoint, tls_name), manners.bounds);
        Arc::new(Host { name, pool, rests_until: Mutex::default() })
    }

    /// It failed.
    pub(super) fn rest(&self) {
        *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + REST);
    }

    /// It did not.
    pub(super) fn wake(&self) {
        *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn is_resting(&self, now: Instant) -> bool {
        let until = *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| now < until)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A host with the priority that it has for some domain.
#[derive(Clone)]
pub struct Choice {
    priority: u16,
    host: Arc<Host>,
}

/// The hosts in the order in which they are asked; those that rest only where all do.
pub(super) fn in_order(choices: &[Choice]) -> Vec<Arc<Host>> {
    let now = Instant::now();
    let mut order: Vec<_> = choices.iter().filter(|choice| !choice.host.is_resting(now)).collect();
    if order.is_empty() {
        order = choices.iter().collect();
    }
    let chance = RandomState::new();
    order.sort_by_cached_key(|Choice { priority, host }| (*priority, chance.hash_one(&host.name)));
    order.into_iter().map(|choice| choice.host.clone()).collect()
}

/// Whose exchanges are asked for.
#[derive(Clone, Debug)]
pub enum MxOf {
    /// The recipient's domain, which has to be one of these.
    Recipients(Vec<Domain>),
    /// This one, whoever the recipient is.
    Domain(Domain),
}

impl MxOf {
    /// What the DNS says of a domain is about a recipient only where it was asked for the recipient's.
    fn nobody(&self, outcome: Outcome) -> Outcome {
        match self {
            MxOf::Recipients(_) => outcome,
            MxOf::Domain(_) => Outcome::unreachable(outcome.text()),
        }
    }
}

/// Who gets the mail.
pub enum Hosts {
    /// These.
    Fixed(Vec<Choice>),
    /// Those that the DNS names.
    Named(Box<Named>),
}

/// Hosts that the DNS names.
pub struct Named {
    exchanges: Exchanges,
    of: MxOf,
    /// The port on all of them.
    port: u16,
    /// Our own name.
    hostname: Domain,
    /// Those that were used before, with their connections.
    known: Mutex<HashMap<String, Arc<Host>>>,
}

impl Hosts {
    /// These, with their priorities.
    pub fn fixed(hosts: impl IntoIterator<Item = (Endpoint, u16)>, manners: &Manners) -> Self {
        let host = |(endpoint, priority): (Endpoint, u16)| {
            let tls_name = match &endpoint {
                Endpoint::Tcp(host, _) => host.clone(),
                Endpoint::Unix(_) => "localhost".into(),
            };
            Choice { priority, host: Host::new(endpoint.to_string(), endpoint, &tls_name, manners) }
        };
        Hosts::Fixed(hosts.into_iter().map(host).collect())
    }

    /// Those that the DNS names, on `port`; never ourselves, who are called `hostname`.
    pub fn exchanges(exchanges: Exchanges, of: MxOf, port: u16, hostname: Domain) -> Self {
        Hosts::Named(Box::new(Named { exchanges, of, port, hostname, known: Mutex::default() }))
    }

    /// The recipients of `attempt` by whom they go to: places in the attempt, and the domain that is looked up, if any.
    pub(super) fn groups(&self, attempt: &Attempt) -> Vec<(Option<String>, Vec<usize>)> {
        let (of, hostname) = match self {
            Hosts::Fixed(_) => return vec![(None, (0..attempt.recipients.len()).collect())],
            Hosts::Named(named) => (&named.of, &named.hostname),
        };
        let mut groups: Vec<(Option<String>, Vec<usize>)> = Vec::new();
        for (place, path) in attempt.paths().enumerate() {
            let domain = match of {
                MxOf::Domain(domain) => domain.canonical().to_string(),
                MxOf::Recipients(_) => {
                    path.domain().map_or(hostname.canonical().into(), |d| canonical_domain(d).into_owned())
                }
            };
            match groups.iter_mut().find(|(known, _)| known.as_ref() == Some(&domain)) {
                Some((_, places)) => places.push(place),
                None => groups.push((Some(domain), vec![place])),
            }
        }
        groups
    }

    /// Whether what one of them lacks all of them lack: hosts of one domain say nothing about those of another.
    pub(super) fn are_one_target(&self) -> bool {
        match self {
            Hosts::Fixed(_) => true,
            Hosts::Named(named) => match &named.of {
                MxOf::Recipients(domains) => domains.len() == 1,
                MxOf::Domain(_) => true,
            },
        }
    }

    /// Who gets mail for `domain`; or what becomes of the recipients if nobody does.
    pub(super) async fn find(&self, domain: Option<&str>, manners: &Manners) -> Result<Vec<Choice>, Outcome> {
        let named = match self {
            Hosts::Fixed(choices) => return Ok(choices.clone()),
            Hosts::Named(named) => &**named,
        };
        let (of, domain) = (&named.of, domain.expect("the groups have domains"));
        // No relay: what is looked up is what the operator has named.
        if let MxOf::Recipients(domains) = of
            && !domains.iter().any(|ours| ours.canonical() == domain)
        {
            return Err(Outcome::unasked(format!("{domain} is none of this transport's domains")));
        }
        let found = named.exchanges.of(domain, named.hostname.canonical()).await;
        found.map(|found| named.hosts(found, manners)).map_err(|outcome| of.nobody(outcome))
    }
}

impl Named {
    /// The hosts at these, those that are known already with their connections.
    fn hosts(&self, found: Vec<Exchange>, manners: &Manners) -> Vec<Choice> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() + found.len() > KNOWN_MAX {
            known.retain(|_, host| Arc::strong_count(host) > 1);
        }
        let hosts = found.into_iter().map(|Exchange { preference, name, address }| {
            let label = format!("{name}[{address}]:{}", self.port);
            let fresh = || {
                let endpoint = Endpoint::Tcp(address.to_string(), self.port);
                Host::new(label.clone(), endpoint, &name, manners)
            };
            let host = known.entry(label.clone()).or_insert_with(fresh).clone();
            Choice { priority: preference, host }
        });
        hosts.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::delivery::Delivery;
    use crate::delivery::Fault;
    use crate::delivery::tests::attempt_for;
    use crate::delivery::transport::NextHop;
    use crate::delivery::transport::next_hop::tests::manners;

    fn names(hosts: &[Arc<Host>]) -> Vec<&str> {
        hosts.iter().map(|host| host.name.as_str()).collect()
    }

    #[test]
    fn hosts_are_asked_by_priority_and_chance_and_rest_when_they_have_failed() {
        let endpoint = |text: &str| Endpoint::parse(text).unwrap();
        let given = [("c:25", 20), ("a:25", 10), ("b:25", 10)].map(|(text, n)| (endpoint(text), n));
        let Hosts::Fixed(hosts) = Hosts::fixed(given, &manners()) else { panic!("they are fixed") };
        let seen: BTreeSet<_> = (0..100)
            .map(|_| names(&in_order(&hosts)).iter().map(|n| n.to_string()).collect::<Vec<_>>())
            .collect();
        let expected = [["a:25", "b:25", "c:25"], ["b:25", "a:25", "c:25"]];
        assert_eq!(seen, expected.map(|order| order.map(String::from).to_vec()).into());
        hosts[1].host.rest();
        assert_eq!(names(&in_order(&hosts)), ["b:25", "c:25"]);
        hosts[2].host.rest();
        assert_eq!(names(&in_order(&hosts)), ["c:25"]);
        hosts[0].host.rest();
        assert_eq!(in_order(&hosts).len(), 3, "somebody has to be asked");
        hosts[2].host.wake();
        assert_eq!(names(&in_order(&hosts)), ["b:25"]);
    }

    fn named(of: MxOf) -> Hosts {
        let exchanges = Exchanges::new(&["127.0.0.1:1".parse().unwrap()], Duration::from_secs(60)).unwrap();
        Hosts::exchanges(exchanges, of, 1, Domain::parse("mx.test", false).unwrap())
    }

    #[test]
    fn what_the_dns_says_of_the_operators_domain_is_not_about_a_recipient() {
        let domain = || Domain::parse("[127.0.0.1]", false).unwrap();
        let null = || Outcome::rejected("5.1.10 no mail");
        assert_eq!(MxOf::Domain(domain()).nobody(null()), Outcome::unreachable("5.1.10 no mail"));
        assert_eq!(MxOf::Recipients(vec![domain()]).nobody(null()), null());
    }

    #[test]
    fn one_domain_that_is_down_is_not_the_target() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let domain = |text: &str| Domain::parse(text, false).unwrap();
        let (down, other) = (domain("[127.0.0.1]"), domain("other.example"));
        let table = [
            (MxOf::Domain(down.clone()), true),
            (MxOf::Recipients(vec![down.clone()]), true),
            (MxOf::Recipients(vec![down, other]), false),
        ];
        for (of, expected) in table {
            let hop = NextHop::new(named(of), manners());
            let outcomes = runtime.block_on(hop.deliver(&attempt_for(&["a@[127.0.0.1]"])));
            assert!(
                matches!(&outcomes[..], [Outcome::Deferred { fault, reason, .. }]
                    if (*fault == Fault::Target) == expected && reason.contains("connecting")),
                "{outcomes:?}"
            );
        }
    }

    #[test]
    fn a_host_of_several_domains_is_one_host() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let hosts = named(MxOf::Domain(Domain::parse("x.example", false).unwrap()));
        let Hosts::Named(named) = &hosts else { panic!("they are named") };
        let found = |preference| {
            let exchange = Exchange { preference, name: "mx".into(), address: [192, 0, 2, 1].into() };
            named.hosts(vec![exchange], &manners()).remove(0)
        };
        let (one, other) = runtime.block_on(async { (found(10), found(20)) });
        assert_eq!((one.priority, other.priority), (10, 20));
        assert!(Arc::ptr_eq(&one.host, &other.host));
    }
}
