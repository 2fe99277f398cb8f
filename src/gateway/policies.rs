//! The policies of a configuration, made ready to be asked.

use std::cell::{OnceCell, RefCell};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::Error;
use super::maps::{self, Loaded};
use super::watch::Watched;
use crate::client::{Introduction, Target, Timeouts};
use crate::config::policies::{Policy as Configured, PolicyKind};
use crate::config::{Config, DomainSettings};
use crate::mail::{Domain, Phases};
use crate::policy::{
    Callout, Dnsbl, DomainRules, Domains, Greylist, GreylistSettings, Hello, HelloRules, HttpLookup, Inquiry,
    Lookups, Maps, Memory, Networks, Policies, Policy, PolicyService, RateLimit, Recipients, RecipientsLimit,
    Resolver, ReverseDns, Rule, ServiceSettings, SizeLimit, Source, TlsRequired,
};
use crate::shard;

/// Who is asked, and who does what they must wait for.
pub struct Asked {
    pub policies: Policies,
    pub lookups: Arc<Lookups>,
    /// What they remember is written down at the end: [`Greylist::finish`].
    pub greylists: Vec<Arc<Greylist>>,
    /// What some of them read from files; until it is taken.
    pub watched: Vec<Box<dyn Watched>>,
    recipients: Arc<Recipients>,
    resolver: Option<Arc<Resolver>>,
    /// Policies that remember something, with what they were made of.
    remembering: Vec<(Configured, Arc<dyn Policy>)>,
    /// What `recipients` of before are to know.
    to_replace: Option<Maps>,
}

impl Asked {
    /// What was read is used from here on.
    pub fn commit(&mut self) {
        if let Some(maps) = self.to_replace.take() {
            self.recipients.replace(maps);
        }
    }
}

/// Makes every policy of `config`, and has `own` ones asked behind them. Whose mail is taken comes first: nothing that another policy says
/// makes a relay of us.
///
/// What is there of `before`, in another configuration, goes on where it is configured as it was: what has been counted and found is not
/// forgotten. Two greylists never write one file: the one before is finished first.
pub fn load(
    config: &Config,
    own: &[Arc<dyn Policy>],
    before: Option<(&Config, &Asked)>,
) -> Result<Asked, Error> {
    let lookups = match before.filter(|(before, _)| before.lookups_max == config.lookups_max) {
        Some((_, asked)) => asked.lookups.clone(),
        None => {
            let started = Lookups::start(config.lookups_max);
            let failed = |e| Error(format!("cannot start the thread that policies wait on: {e}"));
            Arc::new(started.map_err(failed)?)
        }
    };
    let known = before.map(|(config, asked)| (config, &asked.recipients));
    let Loaded { recipients, watched, to_replace } = maps::load(config, known)?;
    if let Some(domain) = config.domains.keys().find(|domain| !recipients.has_domain(domain)) {
        let words = format!("domain.\"{domain}\": its mail is not taken: add it to accept.domains or a map");
        return Err(Error(words));
    }
    let resolver = OnceCell::new();
    if let Some((_, asked)) = before.filter(|(before, _)| before.dns == config.dns)
        && let Some(known) = &asked.resolver
    {
        let _ = resolver.set(known.clone());
    }
    let context = Context {
        config,
        recipients: &recipients,
        resolver,
        greylists: RefCell::default(),
        remembering: RefCell::default(),
        before: before.map(|(_, asked)| asked),
    };
    let mut rules = vec![Rule::new(recipients.clone())];
    let domain_rules = config.domains.iter().map(|(domain, settings)| (domain.clone(), settings.rules));
    let domain_rules: Vec<_> = domain_rules.filter(|(_, rules)| *rules != DomainRules::default()).collect();
    if !domain_rules.is_empty() {
        rules.push(Rule::new(Arc::new(Domains::new(domain_rules))));
    }
    for configured in &config.policies {
        let failed = |words| Error(format!("policy {:?}: {words}", configured.name));
        let policy = context.make(configured).map_err(failed)?;
        let skips = |settings: &DomainSettings| settings.skip.contains(&configured.name);
        let skipped = config.domains.iter().filter(|(_, settings)| skips(settings));
        rules.push(Rule {
            is_dry: configured.dry_run,
            on_error: configured.on_error,
            timeout: configured.timeout,
            skipped_domains: skipped.map(|(domain, _)| domain.clone()).collect(),
            ..Rule::new(policy)
        });
    }
    rules.extend(own.iter().map(|policy| Rule::new(policy.clone())));
    let Context { greylists, remembering, resolver, .. } = context;
    let policies = Policies::new(rules);
    Ok(Asked {
        policies: match before {
            Some((_, before)) => policies.counting_on(&before.policies),
            None => policies,
        },
        lookups,
        greylists: greylists.into_inner(),
        watched: watched.into_iter().collect(),
        resolver: resolver.into_inner(),
        remembering: remembering.into_inner(),
        recipients,
        to_replace,
    })
}

/// What policies are made with.
struct Context<'a> {
    config: &'a Config,
    /// Of all policies that ask the DNS, if there are any.
    resolver: OnceCell<Arc<Resolver>>,
    greylists: RefCell<Vec<Arc<Greylist>>>,
    remembering: RefCell<Vec<(Configured, Arc<dyn Policy>)>>,
    recipients: &'a Arc<Recipients>,
    before: Option<&'a Asked>,
}

impl Context<'_> {
    /// An error is in words that follow the policy's name.
    fn make(&self, configured: &Configured) -> Result<Arc<dyn Policy>, String> {
        let name = configured.name.as_str();
        Ok(match &configured.kind {
            PolicyKind::Callout(settings) => {
                let name = self.config.hostname.as_str().into();
                let introduction = Introduction { protocol: settings.protocol, name };
                let endpoint = settings.address.0.clone();
                let timeouts = Timeouts::all(configured.timeout);
                let target = Target::in_clear(endpoint, introduction, timeouts);
                let callout = Callout::new(target, settings.connections_max);
                self.inquiry(configured, callout, &settings.domains, settings.memory())
            }
            PolicyKind::HttpLookup(settings) => {
                let lookup = HttpLookup::new(&settings.service())?;
                self.inquiry(configured, lookup, &settings.domains, settings.memory())
            }
            PolicyKind::Dnsbl(settings) => {
                let (lists, thresholds) = (settings.lists(), settings.thresholds());
                Arc::new(Dnsbl::new(name, settings.at.0, settings.query, lists, thresholds, self.resolver()?))
            }
            PolicyKind::Hello(settings) => {
                let ours = [&self.config.hostname].into_iter().chain(&self.config.accept.domains);
                let rules = HelloRules {
                    is_qualified: settings.fqdn,
                    not_ours: ours.filter(|_| settings.not_ours).cloned().collect(),
                    is_own_address: settings.literal_is_peer,
                    in_dns: settings.resolves.then(|| self.resolver()).transpose()?,
                };
                Arc::new(Hello::new(name, settings.at.0, rules))
            }
            PolicyKind::Networks(settings) => Arc::new(Networks::new(name, &settings.allow, &settings.deny)),
            PolicyKind::RecipientsLimit(settings) => Arc::new(RecipientsLimit::new(name, settings.max)),
            PolicyKind::SizeLimit(settings) => Arc::new(SizeLimit::new(name, settings.max)),
            PolicyKind::TlsRequired(settings) => Arc::new(TlsRequired::new(name, settings.min_version)),
            PolicyKind::RateLimit(settings) => {
                let known = self.before.and_then(|before| {
                    let mut known = before.remembering.iter();
                    known.find(|(made_of, _)| made_of.name == name && made_of.kind == configured.kind)
                });
                let policy = known.map_or_else(
                    || {
                        Arc::new(RateLimit::new(name, settings.limit, settings.entries_max))
                            as Arc<dyn Policy>
                    },
                    |(_, policy)| policy.clone(),
                );
                self.remembering.borrow_mut().push((configured.clone(), policy.clone()));
                policy
            }
            PolicyKind::ReverseDns(settings) => {
                let resolver = self.resolver()?;
                Arc::new(ReverseDns::new(name, settings.at.0, resolver, settings.require, settings.refuse.0))
            }
            PolicyKind::Greylist(settings) => {
                let settings = GreylistSettings {
                    delay: settings.delay,
                    retry_window: settings.retry_window,
                    pass_lifetime: settings.pass_lifetime,
                    network_passes_after: settings.network_passes_after,
                    entries_max: settings.entries_max,
                };
                let known = |greylist: &&Arc<Greylist>| greylist.name() == name;
                if let Some(before) = self.before.and_then(|before| before.greylists.iter().find(known)) {
                    if *before.settings() == settings && !before.is_finished() {
                        self.greylists.borrow_mut().push(before.clone());
                        return Ok(before.clone());
                    }
                    before.finish();
                }
                let file = self.config.greylist_dir().join(name);
                let unix_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let unix_time = unix_time.map_or(0, |since| since.as_secs());
                let greylist = Greylist::open(name, settings, &file, Instant::now(), unix_time)
                    .map_err(|e| format!("cannot start the thread that keeps its file: {e}"))?;
                let greylist = Arc::new(greylist);
                self.greylists.borrow_mut().push(greylist.clone());
                greylist
            }
            PolicyKind::PolicyService(settings) => {
                let at = settings.at.iter().map(|at| Phases::of(at.0));
                let settings = ServiceSettings {
                    address: settings.address.0.clone(),
                    phases: at.fold(Phases::NONE, |all, one| all | one),
                    is_guard: settings.strangers_only,
                    context: settings.context.0.0.clone(),
                    connections_max: settings.connections_max,
                    failures_max: settings.failures_max,
                    retry_interval: settings.retry_interval,
                };
                Arc::new(PolicyService::new(name, settings, shard::random()))
            }
        })
    }

    fn inquiry<S: Source>(
        &self,
        configured: &Configured,
        source: S,
        domains: &[Domain],
        memory: Memory,
    ) -> Arc<dyn Policy> {
        let (name, recipients) = (configured.name.as_str(), self.recipients.clone());
        Arc::new(Inquiry::new(name, source, domains, recipients, memory, configured.timeout))
    }

    fn resolver(&self) -> Result<Arc<Resolver>, String> {
        if let Some(resolver) = self.resolver.get() {
            return Ok(resolver.clone());
        }
        let dns = &self.config.dns;
        let servers: Vec<_> = dns.servers.iter().map(|server| server.0).collect();
        let resolver = Arc::new(Resolver::new(&servers, dns.timeout, dns.cache_entries_max)?);
        Ok(self.resolver.get_or_init(|| resolver).clone())
    }
}
