//! The certificates and rules of a group of listeners: loaded, replaced while running, shared by all threads.
//!
//! Invariants:
//! - what [`Acceptor::accept`] uses was loaded and checked as a whole; a reload that fails changes nothing;
//! - the key that seals session tickets belongs to one acceptor. So a ticket given where no certificate is
//!   asked for is worth nothing where one is required.
//!
//! Tickets are stateless: nothing is kept per session, and a client resumes on any shard. rustls' `Ticketer`
//! makes a new key every 6 hours, when a ticket is next made or opened, and opens with the new one and the one
//! before it; so a ticket lives between 6 and 12 hours, and no key is ever written anywhere. The keys outlive
//! reloads, except one that changes the authorities of client certificates.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, Ticketer, kx_group};
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::version::{TLS12, TLS13};

use crate::mail::TlsVersion;

use super::certificates::{Certificate, CertificateFiles, LoadError, Pair, Validity};
use super::channel::Channel;
use super::clients::Clients;
use super::files::{Digest, Files};
use super::resolver::Resolver;

/// The only protocol to be had here (RFC 7301). Not registered, but what mail servers and ALPACA's authors use.
const ALPN: &[u8] = b"smtp";

/// TLS 1.3 tickets after each handshake. A client uses a ticket once (RFC 8446 §C.4), and each resumption
/// brings the next: one is enough for one connection after the other. Senders with many connections at a time
/// have had a full handshake, and a ticket, for each. The usual two would be another 250 octets and a
/// sealing for every connection, the ones that never come back included.
const TICKETS: usize = 1;

/// What an acceptor is to be made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The certificates; the first is the default. Never empty.
    pub certificates: Vec<CertificateFiles>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// What is asked of clients.
    pub client_certificates: ClientCertificates,
}

/// What is asked of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Nothing.
    Ignore,
    /// A certificate. Without one, or with one that cannot be verified, a client is simply not known.
    Request {
        /// The file with the certificates of those who may vouch for a client, in PEM.
        authorities: PathBuf,
    },
    /// A certificate that can be verified: without it the handshake fails.
    Require {
        /// The file with the certificates of those who may vouch for a client, in PEM.
        authorities: PathBuf,
    },
}

impl ClientCertificates {
    pub(super) fn authorities(&self) -> Option<&Path> {
        match self {
            ClientCertificates::Ignore => None,
            ClientCertificates::Request { authorities } | ClientCertificates::Require { authorities } => {
                Some(authorities)
            }
        }
    }
}

impl Settings {
    fn paths(&self) -> impl Iterator<Item = &Path> {
        let pairs = self.certificates.iter().flat_map(|pair| [&*pair.chain, &*pair.key]);
        pairs.chain(self.client_certificates.authorities())
    }
}

/// Begins TLS on connections, with the certificates that are current.
#[derive(Debug)]
pub struct Acceptor {
    settings: Settings,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<Current>,
    /// What was in the files when they were last read. Held while they are read anew: one reload at a time.
    last_read: Mutex<Digest>,
}

/// What a handshake is made with, replaced as a whole.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) config: Arc<ServerConfig>,
    pub(super) clients: Clients,
    certificates: Vec<Certificate>,
    ticketer: Arc<dyn ProducesTickets>,
    /// What was in the file of authorities.
    authorities: Digest,
}

impl Acceptor {
    /// Reads and checks all files. Certificates whose time is over or has not come are taken all the same: a
    /// gateway that does not start loses more than one whose certificate few senders look at. They are told
    /// by [`Certificate::validity`].
    ///
    /// # Errors
    /// The first file that cannot be used, and why.
    ///
    /// # Panics
    /// Without certificates.
    pub fn load(settings: Settings, now: SystemTime) -> Result<Self, LoadError> {
        let files = Files::read(settings.paths());
        Self::from_files(settings, &files, now)
    }

    /// As [`Acceptor::load`], from files already read.
    pub(super) fn from_files(settings: Settings, files: &Files, now: SystemTime) -> Result<Self, LoadError> {
        let provider = Arc::new(provider());
        let current = Current::load(&settings, files, &provider, now, None)?;
        Ok(Acceptor {
            settings,
            provider,
            current: ArcSwap::from_pointee(current),
            last_read: Mutex::new(files.digest()),
        })
    }

    /// A new channel, its handshake not begun, with the certificates as they are now.
    pub fn accept(&self) -> Channel {
        Channel::new(self.current.load_full())
    }

    /// The certificates in use, the default first.
    pub fn certificates(&self) -> Vec<Certificate> {
        self.current.load().certificates.clone()
    }

    /// Whether the files are others than those that were last read, well or badly. Reads them.
    pub fn has_changed(&self) -> bool {
        let now = Files::read(self.settings.paths()).digest();
        *self.last_read.lock().unwrap_or_else(PoisonError::into_inner) != now
    }

    /// Reads and checks all files anew, and uses what is in them for every handshake from now on. What has
    /// begun goes on as it began.
    ///
    /// # Errors
    /// A file cannot be used, or a certificate is not valid at `now` in the place of one that is. Then
    /// everything stays as it was, and [`Acceptor::has_changed`] tells when it is worth another try.
    pub fn reload(&self, now: SystemTime) -> Result<(), LoadError> {
        let mut last_read = self.last_read.lock().unwrap_or_else(PoisonError::into_inner);
        let files = Files::read(self.settings.paths());
        *last_read = files.digest();
        let old = self.current.load_full();
        let new = Current::load(&self.settings, &files, &self.provider, now, Some(&old))?;
        self.current.store(Arc::new(new));
        Ok(())
    }
}

impl Current {
    fn load(
        settings: &Settings,
        files: &Files,
        provider: &Arc<CryptoProvider>,
        now: SystemTime,
        old: Option<&Current>,
    ) -> Result<Self, LoadError> {
        let load = |paths| Pair::load(files, paths, provider);
        let pairs = settings.certificates.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        let certificates: Vec<_> = pairs.iter().map(|pair| pair.certificate.clone()).collect();
        for (old, new) in old.iter().flat_map(|old| &old.certificates).zip(&certificates) {
            check_time(old, new, now)?;
        }
        let clients = Clients::load(files, &settings.client_certificates, provider)?;
        let authorities = files.digest_of(settings.client_certificates.authorities());
        let ticketer = match old {
            // Whoever was vouched for by others than now has to show a certificate again.
            Some(old) if old.authorities == authorities => old.ticketer.clone(),
            _ => Ticketer::new().map_err(|_| {
                LoadError::new(&settings.certificates[0].key, "the system has no randomness to give")
            })?,
        };
        let versions: &[_] = match settings.min_version {
            TlsVersion::Tls12 => &[&TLS13, &TLS12],
            TlsVersion::Tls13 => &[&TLS13],
        };
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .expect("the provider has suites and groups for both versions")
            .with_client_cert_verifier(clients.verifier())
            .with_cert_resolver(Arc::new(Resolver::new(&pairs)));
        config.ignore_client_order = true;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.ticketer = ticketer.clone();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = TICKETS;
        config.max_early_data_size = 0;
        Ok(Current { config: Arc::new(config), clients, certificates, ticketer, authorities })
    }
}

/// A certificate that is not good must not take the place of one that is.
fn check_time(old: &Certificate, new: &Certificate, now: SystemTime) -> Result<(), LoadError> {
    let words = match (old.validity(now), new.validity(now)) {
        (Validity::Valid, Validity::Expired) => "the new certificate has expired",
        (Validity::Valid, Validity::NotYet) => "the new certificate is not valid yet",
        _ => return Ok(()),
    };
    Err(LoadError::new(&new.chain, format!("{words}, and the one in use is still valid")))
}

/// rustls over aws-lc, with its cipher suites, and the groups for key exchange in the order they are wanted:
/// the hybrid one first, for what is recorded today should not be readable when there are quantum computers.
fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..aws_lc_rs::default_provider()
    }
}
