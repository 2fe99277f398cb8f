//! What the DNS says: one resolver for all policies, and what it remembers.
//!
//! Invariants:
//! - an answer is given out again until its TTL has passed, by every policy, at once and on any thread; that there is no such name or
//!   record is an answer too (RFC 2308);
//! - no answer is a failure: SERVFAIL, REFUSED, silence and a server that cannot be reached are [`Unavailable`], and are not remembered;
//! - a question takes no longer than the resolver's timeout, and while one is on its way nobody sends it again;
//! - what is remembered is bounded, and so is what is kept of one answer.
//!
//! Questions are asked on the thread of [`Lookups`](super::Lookups): a future that asks may be begun anywhere, and gives way before the
//! first octet is sent. [`answer`] uses that: it begins it on the shard, where it ends if everything is known.
//!
//! Names in the DNS are whatever their owner wants. What is no domain by the rules of mail is dropped here.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_lite::future::yield_now;
use hickory_resolver::TokioResolver;
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};

use super::{Answer, Found, Later, Table, Unavailable};
use crate::client;
use crate::mail::Domain;

/// The shortest and the longest time for which an answer is kept, whatever its TTL.
const TTL_LOW: Duration = Duration::from_secs(30);
const TTL_HIGH: Duration = Duration::from_secs(3600);
/// For how long it is kept that there is nothing, where the zone does not say so (RFC 2308 §5).
const TTL_NOTHING: Duration = Duration::from_secs(60);
/// Records of one answer that are kept: nobody who is asked about in earnest has more.
const RECORDS_MAX: usize = 32;
/// Questions on their way over one TCP connection, for answers that do not fit a datagram.
const TCP_QUESTIONS_MAX: usize = 1000;
/// A name in octets, as text without the last dot (RFC 1035 §2.3.4).
const NAME_SIZE_MAX: usize = 253;

/// What is asked about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Its IPv4 addresses.
    A,
    /// Its IPv6 addresses.
    Aaaa,
    /// Who takes its mail.
    Mx,
    /// What an address is called, asked of its reversed name.
    Ptr,
}

/// A question to the DNS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    kind: Kind,
    /// In lower case, without the last dot.
    name: Box<str>,
}

impl Question {
    /// `None` where `name` is longer than a name can be, or empty.
    pub fn new(kind: Kind, name: &str) -> Option<Question> {
        let is_label = |label: &str| (1..=63).contains(&label.len());
        let is_name = name.len() <= NAME_SIZE_MAX && name.is_ascii() && name.split('.').all(is_label);
        is_name.then(|| Question { kind, name: name.to_ascii_lowercase().into() })
    }

    /// What `address` is called (RFC 1035 §3.5, RFC 3596 §2.5).
    pub fn name_of(address: IpAddr) -> Question {
        let zone = if address.to_canonical().is_ipv4() { "in-addr.arpa" } else { "ip6.arpa" };
        Question { kind: Kind::Ptr, name: format!("{}.{zone}", reversed(address)).into() }
    }

    /// The addresses of `name` that are of the same sort as `address`.
    pub fn addresses_like(address: IpAddr, name: &str) -> Option<Question> {
        Question::new(if address.to_canonical().is_ipv4() { Kind::A } else { Kind::Aaaa }, name)
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, RecordType::from(self.kind))
    }
}

impl From<Kind> for RecordType {
    fn from(kind: Kind) -> RecordType {
        match kind {
            Kind::A => RecordType::A,
            Kind::Aaaa => RecordType::AAAA,
            Kind::Mx => RecordType::MX,
            Kind::Ptr => RecordType::PTR,
        }
    }
}

/// An address as it stands in names, the last part first: octets of IPv4, nibbles of IPv6 (RFC 5782 §2.1 and §2.4).
pub fn reversed(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}")
        }
        IpAddr::V6(v6) => {
            let mut name = String::with_capacity(64);
            for octet in v6.octets().into_iter().rev() {
                for nibble in [octet & 15, octet >> 4] {
                    name.push(char::from_digit(nibble.into(), 16).expect("a nibble is a digit"));
                    name.push('.');
                }
            }
            name.pop();
            name
        }
    }
}

/// What the DNS answers. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Records {
    /// There is no such name, or nothing of that kind.
    Nothing,
    /// Of A and AAAA.
    Addresses(Arc<[IpAddr]>),
    /// Of PTR and MX; domains, no address literals. Never empty.
    Names(Arc<[Domain]>),
}

impl Records {
    /// Whether there is anything.
    pub fn is_something(&self) -> bool {
        !matches!(self, Records::Nothing)
    }

    /// The addresses, if it has any.
    pub fn addresses(&self) -> &[IpAddr] {
        match self {
            Records::Addresses(addresses) => addresses,
            _ => &[],
        }
    }

    /// The names, if it has any.
    pub fn names(&self) -> &[Domain] {
        match self {
            Records::Names(names) => names,
            _ => &[],
        }
    }
}

/// See the module.
pub struct Resolver {
    dns: TokioResolver,
    timeout: Duration,
    known: Table<Question, Records>,
}

impl Resolver {
    /// Asks `servers`, or those of `/etc/resolv.conf` where there are none, and remembers up to `entries_max` answers. Of several servers the
    /// two quickest are asked at the same time. Errors are in words for the operator.
    pub fn new(servers: &[SocketAddr], timeout: Duration, entries_max: usize) -> Result<Resolver, String> {
        let mut builder = client::resolver(servers, timeout)?;
        let options = builder.options_mut();
        // What is remembered is remembered here.
        options.cache_size = 0;
        options.max_active_requests = TCP_QUESTIONS_MAX;
        let dns = builder.build().map_err(|e| format!("cannot use the DNS: {e}"))?;
        Ok(Resolver { dns, timeout, known: Table::new(entries_max) })
    }

    /// The answer to `question`, if it is remembered.
    pub fn known(&self, question: &Question, now: Instant) -> Option<Records> {
        self.known.get(question, now)
    }

    /// The answer to `question`. What is not known is asked, on the thread of the lookups; what is found is remembered where
    /// `is_remembered`.
    pub async fn ask(
        &self,
        question: Question,
        now: Instant,
        is_remembered: bool,
    ) -> Result<Records, Unavailable> {
        if let Some(records) = self.known(&question, now) {
            return Ok(records);
        }
        yield_now().await;
        let failed = |why: &dyn fmt::Display| Unavailable(format!("{question}: {why}"));
        let mut name = Name::from_ascii(&*question.name).map_err(|e| failed(&e))?;
        // Nothing is looked for in the domains that this machine searches.
        name.set_fqdn(true);
        let lookup = self.dns.lookup(name, question.kind.into());
        let found = match tokio::time::timeout(self.timeout, lookup).await {
            Ok(found) => found,
            Err(_) => return Err(failed(&format_args!("no answer within {:?}", self.timeout))),
        };
        let (records, ttl) = match found {
            Ok(lookup) => read(question.kind, &lookup),
            Err(NetError::Dns(DnsError::NoRecordsFound(nothing))) if is_answer(&nothing) => {
                (Records::Nothing, nothing.negative_ttl)
            }
            Err(e) => return Err(failed(&e)),
        };
        if is_remembered {
            let ttl = ttl.map_or(TTL_NOTHING, |seconds| Duration::from_secs(seconds.into()));
            let now = Instant::now();
            self.known.insert(question, records.clone(), now + ttl.clamp(TTL_LOW, TTL_HIGH), now);
        }
        Ok(records)
    }
}

/// Nothing is the answer, not the failure to get one.
fn is_answer(nothing: &NoRecords) -> bool {
    matches!(nothing.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// What `lookup` says of `kind`, and for how many seconds.
fn read(kind: Kind, lookup: &Lookup) -> (Records, Option<u32>) {
    let records = lookup.answers().iter().filter(|record| record.record_type() == kind.into());
    let ttl = records.clone().map(|record| record.ttl).min();
    let records: Vec<_> = records.map(|record| &record.data).collect();
    let records = match kind {
        Kind::A | Kind::Aaaa => addresses(records.into_iter().filter_map(|data| match data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        })),
        Kind::Mx | Kind::Ptr => names(records.into_iter().filter_map(|data| match data {
            RData::MX(mx) => Some(mx.exchange.to_ascii()),
            RData::PTR(ptr) => Some(ptr.0.to_ascii()),
            _ => None,
        })),
    };
    (records, ttl)
}

fn addresses(found: impl Iterator<Item = IpAddr>) -> Records {
    let addresses: Arc<[_]> = found.take(RECORDS_MAX).collect();
    if addresses.is_empty() { Records::Nothing } else { Records::Addresses(addresses) }
}

/// What is no domain is dropped: also the root, which is how one says that one takes no mail (RFC 7505 §3).
fn names(found: impl Iterator<Item = String>) -> Records {
    let domain = |name: String| {
        let name = name.trim_end_matches('.');
        if name.starts_with('[') { None } else { Domain::parse(name, false).ok() }
    };
    let names: Arc<[_]> = found.filter_map(domain).take(RECORDS_MAX).collect();
    if names.is_empty() { Records::Nothing } else { Records::Names(names) }
}

/// The answer of a `future` that waits for nobody but a [`Resolver`]: at once, if all it asks is known.
pub fn answer(future: impl Future<Output = Found> + Send + 'static) -> Answer {
    let mut future = Box::pin(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(found) => Answer::Now(found),
        Poll::Pending => Answer::Later(Later::Wait(future)),
    }
}

/// Waits for all of `futures` at the same time; what they give, in their order.
pub async fn all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.into_iter().map(|future| Some(Box::pin(future))).collect();
    let mut found: Vec<Option<T>> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, found) in waiting.iter_mut().zip(&mut found) {
            let Some(one) = future else { continue };
            if let Poll::Ready(value) = Pin::new(one).poll(context) {
                *found = Some(value);
                *future = None;
            }
        }
        if waiting.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    found.into_iter().flatten().collect()
}

#[cfg(test)]
impl Resolver {
    /// Knows this for an hour, and finds nobody to ask about more.
    pub fn knowing(known: &[(Kind, &str, &[&str])]) -> Arc<Resolver> {
        let nobody: SocketAddr = "127.0.0.1:1".parse().expect("an address");
        let resolver = Resolver::new(&[nobody], Duration::from_secs(1), 1000).expect("a resolver");
        let now = Instant::now();
        for (kind, name, texts) in known {
            let texts = texts.iter();
            let records = match kind {
                Kind::A | Kind::Aaaa => addresses(texts.map(|text| text.parse().expect("an address"))),
                Kind::Mx | Kind::Ptr => names(texts.map(|text| text.to_string())),
            };
            let question = Question::new(*kind, name).expect("a name");
            resolver.known.insert(question, records, now + TTL_HIGH, now);
        }
        Arc::new(resolver)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Lookups, Verdict};
    use super::*;

    #[test]
    fn addresses_are_reversed_by_octet_and_by_nibble() {
        let six = "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.0.0.0.0.1.2.3.4";
        let table = [
            ("192.0.2.99", "99.2.0.192", "99.2.0.192.in-addr.arpa"),
            ("::ffff:192.0.2.99", "99.2.0.192", "99.2.0.192.in-addr.arpa"),
            // The example of RFC 3596 §2.5.
            ("4321:0:1:2:3:4:567:89ab", six, &format!("{six}.ip6.arpa")),
        ];
        for (address, name, pointer) in table {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(reversed(address), name);
            assert_eq!(Question::name_of(address), Question::new(Kind::Ptr, pointer).unwrap());
        }
    }

    #[test]
    fn only_names_are_asked_about() {
        let label = "l".repeat(63);
        let longest = [&label[..], &label, &label, &label[..61]].join(".");
        for name in ["a", "A.b.", "_x.y", &longest].map(|name| name.trim_end_matches('.')) {
            assert!(Question::new(Kind::A, name).is_some(), "{name}");
        }
        for name in ["", ".", "a..b", "a.", "é.x", &format!("{label}l.x"), &format!("{longest}l")] {
            assert_eq!(Question::new(Kind::A, name), None, "{name}");
        }
        assert_eq!(Question::new(Kind::A, "A.Example"), Question::new(Kind::A, "a.example"));
    }

    #[test]
    fn names_that_are_no_domains_are_dropped() {
        let table: [(&[&str], &[&str]); 5] = [
            (&["mx.example.com."], &["mx.example.com"]),
            (&["a b.example.", "x\\000y.example.", "under_score.example.", "ok.example."], &["ok.example"]),
            (&["[192.0.2.1]."], &[]),
            (&["."], &[]),
            (&[], &[]),
        ];
        for (given, kept) in table {
            let records = names(given.iter().map(|name| name.to_string()));
            let texts: Vec<_> = records.names().iter().map(Domain::as_str).collect();
            assert_eq!(texts, kept);
            assert_eq!(records.is_something(), !kept.is_empty());
        }
        let many = names((0..1000).map(|n| format!("n{n}.example.")));
        assert_eq!(many.names().len(), RECORDS_MAX);
    }

    #[test]
    fn what_is_known_is_answered_at_once_and_the_rest_elsewhere() {
        let resolver = Resolver::knowing(&[(Kind::A, "known.example", &["127.0.0.2"])]);
        let now = Instant::now();
        let ask = |name: &'static str, now: Instant| {
            let resolver = resolver.clone();
            answer(async move {
                let question = Question::new(Kind::A, name).expect("a name");
                let both =
                    all([resolver.ask(question.clone(), now, true), resolver.ask(question, now, true)]);
                match both.await.into_iter().collect::<Result<Vec<_>, _>>()? {
                    records if records.iter().all(Records::is_something) => Ok(Verdict::Trust),
                    _ => Ok(Verdict::Accept),
                }
            })
        };
        assert!(matches!(ask("known.example", now), Answer::Now(Ok(Verdict::Trust))));
        let lookups = Lookups::start(10).unwrap();
        for (name, now) in [("unknown.example", now), ("known.example", now + TTL_HIGH)] {
            let Answer::Later(later) = ask(name, now) else { panic!("{name} is not known") };
            let (told, answers) = std::sync::mpsc::channel();
            lookups.submit(later, None, Duration::from_secs(60), move |found| told.send(found).unwrap());
            // Nobody serves there.
            let Err(Unavailable(why)) = answers.recv().unwrap() else { panic!("nobody can have answered") };
            assert!(why.starts_with(&format!("{name} A: ")), "{why}");
        }
    }
}
