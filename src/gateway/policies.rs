//! The policies of a configuration, made ready to be asked.

use std::sync::Arc;

use super::watch::Watched;
use super::{Error, maps};
use crate::config::Config;
use crate::config::policies::{Policy as Configured, PolicyKind};
use crate::policy::{Lookups, Networks, Policies, Policy, Rule};

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
    let context = Context { config, lookups: &lookups };
    let (recipients, watched) = maps::load(config)?;
    let mut rules = vec![Rule::new(recipients)];
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
    Ok(Asked { policies: Policies::new(rules), lookups: Arc::new(lookups), watched })
}

/// What policies are made with.
struct Context<'a> {
    #[allow(dead_code)]
    config: &'a Config,
    #[allow(dead_code)]
    lookups: &'a Lookups,
}

impl Context<'_> {
    /// An error is in words that follow the policy's name.
    fn make(&self, configured: &Configured) -> Result<Arc<dyn Policy>, String> {
        let name = configured.name.as_str();
        Ok(match &configured.kind {
            PolicyKind::Networks(settings) => Arc::new(Networks::new(name, &settings.allow, &settings.deny)),
        })
    }
}
