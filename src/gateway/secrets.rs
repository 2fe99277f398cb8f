//! What listeners need of files that change while the gateway runs: certificates with their keys, and the credentials of users.
//!
//! Read and checked before anything listens. Then a thread looks at the files every few seconds, and at once when told (SIGHUP): what
//! is good replaces what there was, for new handshakes and attempts, on all shards; what is not leaves everything as it was, and the
//! log says so.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::Error;
use crate::config::{ClientCertificates, Config, Listener};
use crate::policy::{Credentials, Verifier};
use crate::smtp::{AuthMode, TlsMode};
use crate::tls::{self, Acceptor, Settings, Validity};

/// How often files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How often a certificate that is about to expire is warned of.
const WARN_INTERVAL: Duration = Duration::from_secs(24 * 3600);
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
}

impl Secrets {
    /// Reads everything that some listener needs. Threads that verify passwords are started if `starts`.
    pub fn load(config: &Config, starts: bool) -> Result<Secrets, Error> {
        let mut acceptors: Vec<(ClientCertificates, Arc<Acceptor>)> = Vec::new();
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
            acceptors.push((asked, Arc::new(acceptor)));
        }
        let is_used = config.listeners.iter().any(|listener| listener.auth != AuthMode::Disabled);
        let credentials = config.auth.credentials.clone().filter(|_| is_used);
        // Before it is read: what is written meanwhile is read again.
        let seen = credentials.as_deref().and_then(Stamp::of);
        let verifier = match &credentials {
            None => None,
            Some(path) => {
                let read = read_credentials(path).map_err(|words| Error(format!("AUTH: {words}")))?;
                let start = || Verifier::start(read, config.auth.threads, config.auth.queue_max);
                let failed = |e| Error(format!("cannot start the threads that verify passwords: {e}"));
                starts.then(start).transpose().map_err(failed)?.map(Arc::new)
            }
        };
        Ok(Secrets { acceptors, verifier, credentials, seen })
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

    /// Says which certificates are shown, and what is wrong with their time. All acceptors show the same.
    fn log_certificates(&self, warnings_only: bool) {
        let now = SystemTime::now();
        let certificates = self.acceptors.first().map(|(_, acceptor)| acceptor.certificates());
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

    /// Looks for what has changed, at once.
    fn look(&mut self, is_told: bool) {
        let changed: Vec<_> = self
            .acceptors
            .iter()
            .map(|(_, acceptor)| acceptor)
            .filter(|acceptor| is_told || acceptor.has_changed())
            .collect();
        let mut is_replaced = false;
        for acceptor in changed {
            match acceptor.reload(SystemTime::now()) {
                Ok(()) => is_replaced = true,
                Err(e) => tracing::warn!("certificates were not replaced, the old ones are used on: {e}"),
            }
        }
        if is_replaced {
            tracing::info!("certificates were read anew");
            self.log_certificates(false);
        }
        let (Some(path), Some(verifier)) = (&self.credentials, &self.verifier) else { return };
        let stamp = Stamp::of(path);
        if !is_told && stamp == self.seen {
            return;
        }
        self.seen = stamp;
        match read_credentials(path) {
            Ok(credentials) => {
                tracing::info!(users = credentials.users_count(), "credentials were read anew");
                verifier.replace(credentials);
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

/// What tells one state of a file from another.
#[derive(PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let metadata = path.metadata().ok()?;
        Some(Stamp { inode: metadata.ino(), size: metadata.len(), modified: metadata.modified().ok() })
    }
}

/// Starts looking after what was loaded, to the end of the process. What is sent has it look at once, whatever it knows; more than
/// one order at a time is one.
pub fn watch(secrets: Secrets) -> Result<Sender<()>, Error> {
    let (told, tells) = bounded(1);
    secrets.log_certificates(false);
    thread::Builder::new()
        .name("secrets".into())
        .spawn(move || run(secrets, &tells))
        .map_err(|e| Error(format!("cannot watch certificates and credentials: {e}")))?;
    Ok(told)
}

fn run(mut secrets: Secrets, tells: &Receiver<()>) {
    let mut warned = Instant::now();
    loop {
        match tells.recv_timeout(LOOK_INTERVAL) {
            Ok(()) => secrets.look(true),
            Err(RecvTimeoutError::Timeout) => secrets.look(false),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if warned.elapsed() >= WARN_INTERVAL {
            warned = Instant::now();
            secrets.log_certificates(true);
        }
    }
}
