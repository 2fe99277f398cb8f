//! Policies: what to refuse, and when.
//!
//! A [`Policy`] says at which phases of a session it wants to be asked, and answers each time: at once, or with work that leads to a
//! [`Verdict`], which `Lookups` do elsewhere. `Policies` asks an ordered list of them; the first refusal wins.
//!
//! ```text
//!   shard ── Round ──► Policies ──► Policy: check(phase, facts) ──► Answer::Now ────────────► Verdict
//!                                                               └─► Answer::Later ─ Lookups ──┘
//! ```
//!
//! Invariants:
//! - a policy is asked only at the phases it named;
//! - a verdict depends on the facts given, never on the wire: a policy sees no octet that was not parsed;
//! - no shard waits for anybody; what policies remember for all shards is in bounded [`Table`]s.
//!
//! Beside them, who may log in: [`Credentials`] and the `Verifier`, which takes them off the shards.
//!
//! Knows nothing of a session's socket, of the replies it is given, or of the spool. Who asks others does it by `crate::client` or HTTP.

mod admission;
mod bans;
mod credentials;
mod dnsbl;
mod domains;
mod facts;
mod greetings;
mod greylist;
mod hello;
mod list;
mod lookups;
mod networks;
mod overload;
mod places;
mod policy_service;
mod prefix;
mod rate_limit;
mod recipients;
mod recipients_limit;
mod resolver;
mod reverse_dns;
mod size_limit;
mod table;
mod tls_required;
mod verdict;
mod verifier;

pub use crate::mail::{Phase, Phases};

pub use facts::Facts;
// What a policy remembers for all shards.
pub use table::{Kept, Table};
pub use verdict::{Answer, Found, Later, Unavailable, Verdict};
// What a configuration is made of.
pub use domains::DomainRules;

// For the commands and tests.
#[doc(hidden)]
pub use credentials::{Credentials, CredentialsError, check_user};
#[doc(hidden)]
pub use greylist::{Greylist, GreylistSettings};

pub(crate) use admission::{Admission, Bounds};
pub(crate) use bans::{Ban, Terms};
pub(crate) use dnsbl::{Dnsbl, List, Subject, Thresholds};
pub(crate) use domains::Domains;
pub(crate) use greetings::Greetings;
pub(crate) use hello::{Hello, HelloRules};
pub(crate) use list::{Notes, OnError, Policies, Report, Round, Rule, Said, Step};
pub(crate) use lookups::Lookups;
pub(crate) use networks::Networks;
pub(crate) use overload::{Level, Marks, Overload, Resource};
pub(crate) use places::{Place, Places};
pub(crate) use policy_service::{Address as ServiceAddress, PolicyService, ServiceSettings};
pub(crate) use prefix::Prefix;
pub(crate) use rate_limit::{Counted, Limit, Per, RateLimit};
pub(crate) use recipients::{
    Callout, HttpLookup, HttpService, Inquiry, MapFault, Maps, Memory, Recipients, Source, UrlTemplate,
};
pub(crate) use recipients_limit::RecipientsLimit;
pub(crate) use resolver::Resolver;
pub(crate) use reverse_dns::{Required, ReverseDns};
pub(crate) use size_limit::SizeLimit;
pub(crate) use tls_required::TlsRequired;
pub(crate) use verifier::{Asker, Attempt, Verifier};

/// A rule of the operator's, or of whoever embeds the gateway.
///
/// ```
/// use incoming::mail::{Refusal, Status};
/// use incoming::policy::{Answer, Facts, Phase, Phases, Policy, Verdict};
///
/// /// Takes no mail from a sender whom a slow database knows to be unwelcome.
/// struct Unwelcome;
///
/// impl Policy for Unwelcome {
///     fn name(&self) -> &str {
///         "unwelcome"
///     }
///
///     fn phases(&self) -> Phases {
///         Phases::of(Phase::Mail)
///     }
///
///     fn check(&self, _: Phase, facts: &Facts<'_>) -> Answer {
///         let sender = facts.reverse_path.map_or("", |path| path.as_str()).to_string();
///         Answer::block(move || match ask_the_database(&sender) {
///             true => Ok(Verdict::Refuse(Refusal::new(Status::permanent(7, 1), "You are not welcome here"))),
///             false => Ok(Verdict::Accept),
///         })
///     }
/// }
/// # fn ask_the_database(sender: &str) -> bool { sender.is_empty() }
/// ```
pub trait Policy: Send + Sync {
    /// Its name, for logs.
    fn name(&self) -> &str;

    /// The phases at which it wants to be asked.
    fn phases(&self) -> Phases;

    /// Whether it guards against strangers only: then it is not asked about a peer that somebody vouches for ([`Verdict::Trust`], a
    /// trusted listener, a password).
    fn is_guard(&self) -> bool {
        false
    }

    /// The verdict on `facts` at `phase`, or what leads to it. Called on shards: it must be quick and must not wait. Of a rehearsal
    /// ([`Facts::is_rehearsal`]) nothing is counted or remembered.
    fn check(&self, phase: Phase, facts: &Facts<'_>) -> Answer;
}
