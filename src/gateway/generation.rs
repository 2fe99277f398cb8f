//! Everything that is made of one configuration, and may be replaced by what is made of another while the shards go on.
//!
//! Making it changes nothing that is in force, but for two things that are harmless: a greylist that is configured otherwise than before
//! has finished its file, and threads wait for work. What was read for parts that go on is theirs from [`Generation::commit`] on.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::policies::{self, Asked};
use super::secrets::Secrets;
use super::transports::{self, Names};
use super::{Error, Extensions};
use crate::config::{self, Config, Listener, Smtp};
use crate::delivery::notification::NotificationRate;
use crate::delivery::{Intake, Notifier, Routes, Target, TargetId, Targets};
use crate::limits::PIECE_SIZE_MAX;
use crate::mail::{Capabilities, Phase, Phases};
use crate::policy::{Admission, Bounds, Greetings, Marks, Policies, Terms};
use crate::shard::{Change, Outward, Pressure, Service, Settings};
use crate::smtp::SessionConfig;

/// See the module.
pub struct Generation {
    pub config: Arc<Config>,
    pub secrets: Secrets,
    pub asked: Asked,
    pub targets: Targets,
    pub routes: Arc<Routes>,
    /// Targets that are configured otherwise than before.
    changed: Vec<TargetId>,
    admission: Arc<Admission>,
    greetings: Arc<Greetings>,
    capabilities: Capabilities,
}

impl Generation {
    /// Of `config`. What `before` was is gone on with where it is configured alike.
    pub fn new(
        config: Config,
        names: &mut Names,
        extensions: &Extensions,
        before: Option<&Generation>,
    ) -> Result<Generation, Error> {
        let secrets = Secrets::load(&config, true, before.map(|before| (&*before.config, &before.secrets)))?;
        let (targets, routes) = transports::load(&config, names, &extensions.deliveries)?;
        let targets = match before {
            Some(before) => targets.counting_on(&before.targets),
            None => targets,
        };
        // Who is asked to tell tells: whoever is further on, or we.
        let mut capabilities = transports::capabilities(&targets, &routes);
        capabilities.dsn |= config.notifications.transport.is_some();
        let known = before.filter(|before| before.config.admission == config.admission);
        let admission =
            known.map_or_else(|| Arc::new(admission(&config.admission)), |before| before.admission.clone());
        let Smtp { greeting_delay, greeting_delay_remembered, .. } = config.smtp;
        let known = before.filter(|before| {
            let Smtp { greeting_delay: delay, greeting_delay_remembered: remembered, .. } =
                before.config.smtp;
            (delay, remembered) == (greeting_delay, greeting_delay_remembered)
        });
        let greetings = known.map_or_else(
            || Arc::new(Greetings::new(greeting_delay, greeting_delay_remembered)),
            |before| before.greetings.clone(),
        );
        // The last, for what a greylist has finished it does not begin again.
        let asked_before = before.map(|before| (&*before.config, &before.asked));
        let asked = policies::load(&config, &extensions.policies, asked_before)?;
        Ok(Generation {
            secrets,
            asked,
            changed: match before {
                None => Vec::new(),
                Some(before) => {
                    let was_same = |target: &&Target| {
                        let of = |config: &Config| config.transports.get(&**target.name()).cloned();
                        of(&before.config) == of(&config)
                    };
                    targets.iter().filter(|target| !was_same(target)).map(Target::id).collect()
                }
            },
            targets,
            routes: Arc::new(routes),
            admission,
            greetings,
            capabilities,
            config: Arc::new(config),
        })
    }

    /// Where it listens: ports that were 0 are known once there are sockets.
    pub fn listeners_mut(&mut self) -> &mut [Listener] {
        &mut Arc::make_mut(&mut self.config).listeners
    }

    /// What was read for parts that were there before is theirs from here on.
    pub fn commit(&mut self) {
        self.secrets.commit();
        self.asked.commit();
    }

    /// What is to be watched from here on.
    pub fn take_watched(&mut self) -> Vec<Box<dyn super::watch::Watched>> {
        self.secrets.watched().into_iter().chain(std::mem::take(&mut self.asked.watched)).collect()
    }

    /// What each of so many shards is told.
    pub fn change(&self, names: &Names, shards: usize) -> Change {
        let config = &*self.config;
        let session = session_config(config, &self.asked.policies, self.capabilities);
        let settings = Settings {
            handshakes_max: config.tls.handshakes_max.div_ceil(shards),
            handshake_timeout: config.tls.handshake_timeout,
            admission: self.admission.clone(),
            normalised: config.smtp.normalise_bare_line_ends_from.clone().into(),
            sessions_max: config.sessions_max.div_ceil(shards),
            greetings: self.greetings.clone(),
            pressure: pressure(&config.admission),
            depth_max: config.spool.depth_max.div_ceil(shards as u64) as usize,
            content_memory_max: config.spool.memory_max as usize,
        };
        let outward = Outward {
            targets: self.targets.clone(),
            routes: self.routes.clone(),
            schedule: config.delivery.schedule(),
            cache_size: config.spool.cache_size as usize / shards,
            names: names.all().to_vec(),
            changed: self.changed.clone(),
        };
        let services = config.listeners.iter().map(|listener| self.service(listener, &session)).collect();
        Change { settings, services, outward }
    }

    /// What is done for those who connect to `listener`.
    fn service(&self, listener: &Listener, session: &SessionConfig) -> Service {
        let session = SessionConfig {
            dialect: listener.protocol,
            tls: listener.tls,
            auth: listener.auth,
            // Whom a front end names is to be admitted before he is greeted.
            phases: match listener.xclient_from.is_empty() {
                true => session.phases,
                false => session.phases | Phases::of(Phase::Connect),
            },
            ..session.clone()
        };
        Service {
            session: Arc::new(session),
            acceptor: self.secrets.acceptor(listener),
            verifier: self.secrets.verifier(),
            policies: self.asked.policies.clone(),
            lookups: self.asked.lookups.clone(),
            proxy_from: listener.proxy_from.clone(),
            xclient_from: listener.xclient_from.clone(),
            address: listener.address,
            is_trusted: listener.trusted,
        }
    }

    /// Who tells senders, if anybody is to.
    pub fn notifier(&self, intake: Box<dyn Intake>) -> Option<Notifier> {
        let settings = &self.config.notifications;
        let transport = settings.transport.as_ref()?;
        let count = |count| NonZeroU32::new(count).expect("limits bound it");
        let (all, per_domain) = (count(settings.hourly_max), count(settings.hourly_max_per_domain));
        let rate = NotificationRate::new(all, per_domain, Duration::from_secs(3600));
        Some(Notifier::new(self.config.hostname.clone(), transport, rate, intake))
    }
}

/// What is asked of peers when there is much to do.
fn pressure(admission: &config::Admission) -> Pressure {
    Pressure {
        marks: Marks {
            busy_at: f32::from(admission.busy_at) / 100.0,
            strained_at: f32::from(admission.strained_at) / 100.0,
        },
        greeting_delay_millis: u16::try_from(admission.busy_greeting_delay.as_millis()).unwrap_or(u16::MAX),
        patience: admission.strained_patience,
        storage_wait_max: admission.storage_wait_max,
    }
}

/// What is common to the sessions of all listeners.
fn session_config(config: &Config, policies: &Policies, capabilities: Capabilities) -> SessionConfig {
    let smtp = &config.smtp;
    // The shard itself wants to be asked before content comes: is there room?
    let own = Phases::of(Phase::Mail) | Phases::of(Phase::Data);
    SessionConfig {
        message_size_max: smtp.message_size_max,
        recipients_max: smtp.recipients_max,
        command_size_max: smtp.command_size_max,
        hops_max: smtp.hops_max as usize,
        header_size_max: smtp.header_size_max as usize,
        piece_size: PIECE_SIZE_MAX,
        command_timeout: smtp.command_timeout,
        data_timeout: smtp.data_timeout,
        session_timeout: smtp.session_timeout,
        content_rate_min: u32::try_from(smtp.content_rate_min).unwrap_or(u32::MAX),
        errors_max: smtp.errors_max,
        idle_commands_max: smtp.idle_commands_max,
        error_delay: smtp.error_delay,
        error_delay_after: smtp.error_delay_after,
        capabilities,
        phases: policies.phases() | own,
        ..SessionConfig::new(config.hostname.as_str())
    }
}

/// Who may connect.
fn admission(settings: &config::Admission) -> Admission {
    Admission::new(Bounds {
        address_max: settings.max_connections_per_ip,
        network_max: settings.max_connections_per_network,
        bans: Terms { after: settings.ban_after, window: settings.ban_window, time: settings.ban_time },
        exempt: settings.exempt.clone(),
    })
}
