//! The policies of a configuration, made ready to be asked.

use std::cell::OnceCell;
use std::sync::Arc;

use super::Error;
use crate::config::Config;
use crate::config::policies::{Policy as Configured, PolicyKind};
use crate::policy::{
    AcceptedDomains, Dnsbl, Hello, HelloRules, Lookups, Networks, Policies, Policy, RateLimit,
    RecipientsLimit, Resolver, ReverseDns, Rule, SizeLimit, TlsRequired,
};

/// Who is asked, and who does what they must wait for.
pub struct Asked {
    pub policies: Policies,
    pub lookups: Arc<Lookups>,
}

/// Makes every policy of `config`. Whose mail is taken comes first: nothing that another policy says makes a relay of us.
pub fn load(config: &Config) -> Result<Asked, Error> {
    let lookups = Lookups::start(config.lookups_max)
        .map_err(|e| Error(format!("cannot start the thread that policies wait on: {e}")))?;
    let context = Context { config, lookups: &lookups, resolver: OnceCell::new() };
    let mut rules = vec![Rule::new(accepted_domains(config))];
    for configured in &config.policies {
        let failed = |words| Error(format!("policy {:?}: {words}", configured.name));
        let policy = context.make(configured).map_err(failed)?;
        rules.push(Rule {
            is_dry: configured.dry_run,
            on_error: configured.on_error,
            timeout: configured.timeout,
            ..Rule::new(policy)
        });
    }
    Ok(Asked { policies: Policies::new(rules), lookups: Arc::new(lookups) })
}

fn accepted_domains(config: &Config) -> Arc<dyn Policy> {
    let own = config.hostname.clone();
    Arc::new(match config.accept.any {
        true => AcceptedDomains::any(own),
        false => AcceptedDomains::listed(own, config.accept.domains.iter().cloned()),
    })
}

/// What policies are made with.
struct Context<'a> {
    config: &'a Config,
    #[allow(dead_code)]
    lookups: &'a Lookups,
    /// Of all policies that ask the DNS, if there are any.
    resolver: OnceCell<Arc<Resolver>>,
}

impl Context<'_> {
    /// An error is in words that follow the policy's name.
    fn make(&self, configured: &Configured) -> Result<Arc<dyn Policy>, String> {
        let name = configured.name.as_str();
        Ok(match &configured.kind {
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
                Arc::new(RateLimit::new(name, settings.limit, settings.entries_max))
            }
            PolicyKind::ReverseDns(settings) => {
                let resolver = self.resolver()?;
                Arc::new(ReverseDns::new(name, settings.at.0, resolver, settings.require, settings.refuse.0))
            }
        })
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
