//! The policies of a configuration, made ready to be asked.

use std::sync::Arc;

use super::Error;
use super::maps::{self, Loaded};
use super::watch::Watched;
use crate::client::{Introduction, Pool, Timeouts};
use crate::config::policies::{Policy as Configured, PolicyKind};
use crate::config::{Config, DomainSettings};
use crate::mail::Domain;
use crate::policy::{
    Callout, DomainRules, Domains, HttpLookup, Inquiry, Lookups, Memory, Networks, Policies, Policy,
    Recipients, Rule, Source,
};

/// Who is asked, and who does what they must wait for.
pub struct Asked {
    pub policies: Policies,
    pub lookups: Arc<Lookups>,
    /// What some of them read from files.
    pub watched: Vec<Box<dyn Watched>>,
}

/// Makes every policy of `config`. Whose mail is taken comes first: nothing that another policy says makes a relay of us.
pub fn load(config: &Config) -> Result<Asked, Error> {
    let lookups = Lookups::start(config.lookups_max)
        .map_err(|e| Error(format!("cannot start the thread that policies wait on: {e}")))?;
    let Loaded { recipients, watched } = maps::load(config)?;
    if let Some(domain) = config.domains.keys().find(|domain| !recipients.has_domain(domain)) {
        let words = format!("domain.\"{domain}\": its mail is not taken: add it to accept.domains or a map");
        return Err(Error(words));
    }
    let context = Context { config, recipients: &recipients };
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
    Ok(Asked {
        policies: Policies::new(rules),
        lookups: Arc::new(lookups),
        watched: watched.into_iter().collect(),
    })
}

/// What policies are made with.
struct Context<'a> {
    config: &'a Config,
    recipients: &'a Arc<Recipients>,
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
                let pool = Pool::new(endpoint, introduction, timeouts, settings.connections_max);
                self.inquiry(configured, Callout::new(pool), &settings.domains, settings.memory())
            }
            PolicyKind::HttpLookup(settings) => {
                let lookup = HttpLookup::new(&settings.service())?;
                self.inquiry(configured, lookup, &settings.domains, settings.memory())
            }
            PolicyKind::Networks(settings) => Arc::new(Networks::new(name, &settings.allow, &settings.deny)),
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
}
