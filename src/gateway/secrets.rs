//! What listeners need of files: certificates with their keys, and the credentials of users.
//!
//! Read and checked before anything listens, and watched from then on: see [`watch`](super::watch).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::Error;
use super::watch::{Stamp, Watched};
use crate::config::{ClientCertificates, Config, Listener};
use crate::policy::{Credentials, Verifier};
use crate::smtp::{AuthMode, TlsMode};
use crate::telemetry::{Reload, reloaded};
use crate::tls::{self, Acceptor, Settings, Validity};

/// Days before its end from which a certificate is warned of: those of 90 days are renewed 30 days before.
const WARN_DAYS: i64 = 14;

/// What was read.
pub struct Secrets {
    /// One for each way in which clients are asked for certificates: a session ticket of one listener is good at another only
    /// where as much is asked.
    acceptors: Vec<(ClientCertificates, Arc<Acceptor>)>,
    verifier: Option<Arc<Verifier>>,
    credentials: Option<PathBuf>,
    /// Of the file of credentials, when it was last read.
    seen: Option<Stamp>,
    /// Acceptors of before that are to read their files again, so that what they know of clients is not lost.
    to_renew: Vec<Arc<Acceptor>>,
    /// What the verifier of before is to know.
    to_replace: Option<Credentials>,
}

impl Secrets {
    /// Reads everything that some listener needs. Threads that verify passwords are started if `starts`. What is there of `before`, in
    /// another configuration, goes on where it can, with what was read now from [`Secrets::commit`] on.
    pub fn load(
        config: &Config,
        starts: bool,
        before: Option<(&Config, &Secrets)>,
    ) -> Result<Secrets, Error> {
        let mut acceptors: Vec<(ClientCertificates, Arc<Acceptor>)> = Vec::new();
        let mut to_renew = Vec::new();
        let is_same_tls = before.is_some_and(|(before, _)| {
            let tls = |config: &Config| {
                let tls = &config.tls;
                (tls.certificates.clone(), tls.min_version, tls.client_authorities.clone())
            };
            tls(before) == tls(config)
        });
        let secured = config.listeners.iter().filter(|listener| listener.tls != TlsMode::Disabled);
        for asked in secured.map(|listener| listener.client_certificates) {
            if acceptors.iter().any(|(other, _)| *other == asked) {
                continue;
            }
            let authorities = || config.tls.client_authorities.clone().expect("`config` sees to it");
            let settings = Settings {
                certificates: config.tls.certificates.clone(),
                min_version: config.tls.min_version,
                client_certificates: match asked {
                    ClientCertificates::Ignore => tls::ClientCertificates::Ignore,
                    ClientCertificates::Request => {
                        tls::ClientCertificates::Request { authorities: authorities() }
                    }
                    ClientCertificates::Require => {
                        tls::ClientCertificates::Require { authorities: authorities() }
                    }
                },
            };
            let acceptor =
                Acceptor::load(settings, SystemTime::now()).map_err(|e| Error(format!("TLS: {e}")))?;
            let before = before.filter(|_| is_same_tls).and_then(|(_, secrets)| {
                secrets.acceptors.iter().find(|(other, _)| *other == asked).map(|(_, acceptor)| acceptor)
            });
            to_renew.extend(before.cloned());
            acceptors.push((asked, before.cloned().unwrap_or_else(|| Arc::new(acceptor))));
        }
        let is_used = config.listeners.iter().any(|listener| listener.auth != AuthMode::Disabled);
        let credentials = config.auth.credentials.clone().filter(|_| is_used);
        // Before it is read: what is written meanwhile is read again.
        let seen = credentials.as_deref().and_then(Stamp::of);
        let mut to_replace = None;
        let known = before
            .filter(|(before, secrets)| before.auth == config.auth && secrets.credentials == credentials);
        let known = known.and_then(|(_, secrets)| secrets.verifier.clone());
        let verifier = match &credentials {
            None => None,
            Some(path) => {
                let read = read_credentials(path).map_err(|words| Error(format!("AUTH: {words}")))?;
                if let Some(known) = known {
                    to_replace = Some(read);
                    let verifier = Some(known);
                    return Ok(Secrets { acceptors, verifier, credentials, seen, to_renew, to_replace });
                }
                let start = || Verifier::start(read, config.auth.threads, config.auth.queue_max);
                let failed = |e| Error(format!("cannot start the threads that verify passwords: {e}"));
                starts.then(start).transpose().map_err(failed)?.map(Arc::new)
            }
        };
        Ok(Secrets { acceptors, verifier, credentials, seen, to_renew, to_replace })
    }

    /// What was read is used from here on.
    pub fn commit(&mut self) {
        for acceptor in self.to_renew.drain(..) {
            if let Err(e) = acceptor.reload(SystemTime::now()) {
                tracing::warn!("certificates were not replaced, the old ones are used on: {e}");
            }
        }
        if let (Some(credentials), Some(verifier)) = (self.to_replace.take(), &self.verifier) {
            tracing::info!(users = credentials.users_count(), "credentials were read anew");
            verifier.replace(credentials);
        }
    }

    /// What begins TLS on `listener`, if it has any.
    pub fn acceptor(&self, listener: &Listener) -> Option<Arc<Acceptor>> {
        if listener.tls == TlsMode::Disabled {
            return None;
        }
        let of_listener = |(asked, _): &&(ClientCertificates, _)| *asked == listener.client_certificates;
        self.acceptors.iter().find(of_listener).map(|(_, acceptor)| acceptor.clone())
    }

    /// What verifies passwords, if anybody may log in.
    pub fn verifier(&self) -> Option<Arc<Verifier>> {
        self.verifier.clone()
    }

    /// Says which certificates are shown, and gives what is to be watched.
    pub fn watched(&self) -> Vec<Box<dyn Watched>> {
        let acceptors = self.acceptors.iter().map(|(_, acceptor)| acceptor.clone());
        let certificates = ShownCertificates(acceptors.collect());
        certificates.log(false);
        let mut watched: Vec<Box<dyn Watched>> = vec![Box::new(certificates)];
        if let (Some(path), Some(verifier)) = (self.credentials.clone(), self.verifier.clone()) {
            watched.push(Box::new(KnownUsers { path, verifier, seen: self.seen.clone() }));
        }
        watched
    }
}

/// The certificates of all acceptors.
struct ShownCertificates(Vec<Arc<Acceptor>>);

impl ShownCertificates {
    /// Says which certificates are shown, and what is wrong with their time. All acceptors show the same.
    fn log(&self, warnings_only: bool) {
        let now = SystemTime::now();
        let certificates = self.0.first().map(|acceptor| acceptor.certificates());
        for certificate in certificates.unwrap_or_default() {
            let (names, days_left) = (certificate.names.join(" "), certificate.days_left(now));
            let chain = certificate.chain.display();
            match certificate.validity(now) {
                Validity::Expired => {
                    tracing::warn!(%chain, names, days_left, "the certificate has expired: renew it")
                }
                Validity::NotYet => {
                    tracing::warn!(%chain, names, days_left, "the certificate is not valid yet: is the clock right?")
                }
                Validity::Valid if days_left < WARN_DAYS => {
                    tracing::warn!(%chain, names, days_left, "the certificate is about to expire: renew it")
                }
                Validity::Valid if warnings_only => {}
                Validity::Valid => tracing::info!(%chain, names, days_left, "certificate"),
            }
        }
    }
}

impl Watched for ShownCertificates {
    fn look(&mut self) {
        let changed: Vec<_> = self.0.iter().filter(|acceptor| acceptor.has_changed()).collect();
        let (mut is_replaced, mut is_bad) = (false, false);
        for acceptor in changed {
            match acceptor.reload(SystemTime::now()) {
                Ok(()) => is_replaced = true,
                Err(e) => {
                    is_bad = true;
                    tracing::warn!("certificates were not replaced, the old ones are used on: {e}");
                }
            }
        }
        if is_bad || is_replaced {
            reloaded(Reload::Certificates, !is_bad);
        }
        if is_replaced {
            tracing::info!("certificates were read anew");
            self.log(false);
        }
    }

    fn remind(&mut self) {
        self.log(true);
    }
}

/// The credentials of users.
struct KnownUsers {
    path: PathBuf,
    verifier: Arc<Verifier>,
    /// When it was last read.
    seen: Option<Stamp>,
}

impl Watched for KnownUsers {
    fn look(&mut self) {
        let stamp = Stamp::of(&self.path);
        if stamp == self.seen {
            return;
        }
        let read = read_credentials(&self.path);
        // What was written meanwhile is read the next time: somebody else may have read it already.
        if Stamp::of(&self.path) != stamp {
            return;
        }
        self.seen = stamp;
        reloaded(Reload::Credentials, read.is_ok());
        match read {
            Ok(credentials) => {
                tracing::info!(users = credentials.users_count(), "credentials were read anew");
                self.verifier.replace(credentials);
            }
            Err(words) => tracing::warn!("credentials were not replaced, the old ones are used on: {words}"),
        }
    }
}

/// The credentials, with what is to be said about their file in the log.
fn read_credentials(path: &Path) -> Result<Credentials, String> {
    let credentials = Credentials::load(path).map_err(|e| e.to_string())?;
    credentials.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(credentials)
}
