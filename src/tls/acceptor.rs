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
use rustls::crypto::aws_lc_rs::{self, Ticketer, cipher_suite, kx_group};
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::version::{TLS12, TLS13};

use crate::mail::TlsVersion;

use super::certificates::{Certificate, CertificateFiles, LoadError, Pair, Validity};
use super::channel::Channel;
use super::clients::Clients;
use super::files::{Digest, Files};
use super::resolver::Resolver;

/// The only protocol to be had here (RFC 7301).
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
#[derive(Clone, Debug)]
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

    /// Lets handshakes be at another time than now.
    #[cfg(test)]
    pub(super) fn set_clock(&self, clock: Arc<dyn rustls::time_provider::TimeProvider>) {
        let current = self.current.load_full();
        let mut config = ServerConfig::clone(&current.config);
        config.time_provider = clock;
        self.current.store(Arc::new(Current { config: Arc::new(config), ..Current::clone(&current) }));
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

/// rustls over aws-lc, with its cipher suites, and the groups for key exchange: the hybrid one with them, for
/// what is recorded today should not be readable when there are quantum computers. Among groups rustls goes by
/// the client's order, whatever ours is; clients that know the hybrid one put it first, and to insist on it
/// against a client's order would cost a round trip (HelloRetryRequest).
///
/// Among suites AES-128 comes first: what it protects has been agreed on with X25519 or P-256, of the same
/// strength, and AES-256 would bring SHA-384 with it, for which processors have no instructions. With it a
/// handshake spends more on hashing than on X25519.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..aws_lc_rs::default_provider()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustls::pki_types::CertificateDer;

    use super::super::TlsError;
    use super::super::testing::*;
    use super::*;

    /// What a new client is shown.
    fn shown(acceptor: &Acceptor) -> CertificateDer<'static> {
        let wire = Wire::connect(acceptor, &Offer::default().client(), "mx.example").unwrap();
        wire.client.peer_certificates().unwrap()[0].clone()
    }

    #[test]
    fn a_reload_is_seen_by_new_handshakes_and_not_by_those_begun() {
        let authority = Authority::new();
        let folder = Folder::new();
        let (old, new) = (authority.issue_for(&["mx.example"]), authority.issue_for(&["mx.example"]));
        let acceptor = Acceptor::load(folder.settings(std::slice::from_ref(&old)), now()).unwrap();
        let client = Offer::default().client();
        let mut done = Wire::connect(&acceptor, &client, "mx.example").unwrap();
        let mut begun = Wire::new(&acceptor, &client, "mx.example");
        assert!(!acceptor.has_changed());
        folder.write_pair("0", &new);
        assert!(acceptor.has_changed());
        assert_eq!(shown(&acceptor), old.der());
        acceptor.reload(now()).unwrap();
        assert!(!acceptor.has_changed());
        assert_eq!(shown(&acceptor), new.der());
        begun.exchange().unwrap();
        assert_eq!(begun.client.peer_certificates().unwrap()[0], old.der());
        let octets = done.say(b"NOOP\r\n");
        done.give_channel(&octets).unwrap();
        assert_eq!(done.plaintext, b"NOOP\r\n");
    }

    #[test]
    fn a_half_written_pair_changes_nothing_until_the_other_half_is_there() {
        let authority = Authority::new();
        let folder = Folder::new();
        let (old, new) = (authority.issue_for(&["mx.example"]), authority.issue_for(&["mx.example"]));
        let acceptor = Acceptor::load(folder.settings(std::slice::from_ref(&old)), now()).unwrap();
        for half in ["", &new.chain[..100], &new.chain] {
            folder.write("0.pem", half);
            assert!(acceptor.has_changed());
            acceptor.reload(now()).unwrap_err();
            assert!(!acceptor.has_changed(), "a failed pair is not tried again as it is");
            assert_eq!(shown(&acceptor), old.der());
        }
        std::fs::remove_file(folder.path("0.key")).unwrap();
        assert!(acceptor.has_changed());
        acceptor.reload(now()).unwrap_err();
        assert!(!acceptor.has_changed());
        folder.write("0.key", &new.key);
        assert!(acceptor.has_changed());
        acceptor.reload(now()).unwrap();
        assert_eq!(shown(&acceptor), new.der());
    }

    #[test]
    fn links_that_point_elsewhere_are_a_change_and_a_touch_is_not() {
        let authority = Authority::new();
        let folder = Folder::new();
        let (old, new) = (authority.issue_for(&["mx.example"]), authority.issue_for(&["mx.example"]));
        // Kubernetes: the files are links into `..data`, which is a link to a folder, and is replaced.
        for (name, issued) in [("1", &old), ("2", &new)] {
            std::fs::create_dir(folder.path(name)).unwrap();
            folder.write(&format!("{name}/tls.crt"), &issued.chain);
            folder.write(&format!("{name}/tls.key"), &issued.key);
        }
        symlink("1", folder.path("..data")).unwrap();
        symlink("..data/tls.crt", folder.path("tls.crt")).unwrap();
        symlink("..data/tls.key", folder.path("tls.key")).unwrap();
        let mut settings = folder.settings(std::slice::from_ref(&old));
        settings.certificates[0] =
            CertificateFiles { chain: folder.path("tls.crt"), key: folder.path("tls.key") };
        let acceptor = Acceptor::load(settings, now()).unwrap();
        folder.write("1/tls.crt", &old.chain);
        assert!(!acceptor.has_changed());
        symlink("2", folder.path("..data_tmp")).unwrap();
        std::fs::rename(folder.path("..data_tmp"), folder.path("..data")).unwrap();
        assert!(acceptor.has_changed());
        acceptor.reload(now()).unwrap();
        assert_eq!(shown(&acceptor), new.der());
    }

    #[test]
    fn a_certificate_that_is_not_valid_does_not_replace_one_that_is() {
        let authority = Authority::new();
        let at = |from, to| authority.issue(&Wanted { from, to, ..Wanted::names(&["mx.example"]) });
        let valid = at((2000, 1, 1), (2100, 1, 1));
        let expired = at((2000, 1, 1), (2001, 1, 1));
        let other_expired = at((2000, 1, 1), (2002, 1, 1));
        let not_yet = at((2090, 1, 1), (2100, 1, 1));
        for (old, new, words) in [
            (&valid, &expired, Some("expired")),
            (&valid, &not_yet, Some("not valid yet")),
            (&expired, &other_expired, None),
            (&not_yet, &expired, None),
            (&expired, &valid, None),
        ] {
            let folder = Folder::new();
            // The second of two, so that each is compared with its own.
            let settings = folder.settings(&[authority.issue_for(&["other.example"]), old.clone()]);
            let acceptor = Acceptor::load(settings, now()).unwrap();
            folder.write_pair("1", new);
            let outcome = acceptor.reload(now());
            assert_eq!(shown(&acceptor), if words.is_some() { old.der() } else { new.der() });
            assert_eq!(outcome.is_err(), words.is_some(), "{outcome:?}");
            if let (Err(error), Some(words)) = (outcome, words) {
                assert!(error.path() == folder.path("1.pem") && error.to_string().contains(words), "{error}");
            }
        }
    }

    #[test]
    fn sessions_resume_on_every_channel_of_an_acceptor_and_after_a_reload() {
        let authority = Authority::new();
        for versions in [ONLY_12, ONLY_13] {
            let folder = Folder::new();
            let acceptor =
                Acceptor::load(folder.settings(&[authority.issue_for(&["mx.example"])]), now()).unwrap();
            let client = Offer::versions(versions).client();
            let mut first = Wire::connect(&acceptor, &client, "mx.example").unwrap();
            assert!(!first.channel.is_resumed());
            for i in 0..3 {
                let mut wire = Wire::connect(&acceptor, &client, "mx.example").unwrap();
                assert!(wire.channel.is_resumed(), "{versions:?}");
                assert_eq!(wire.channel.facts(), first.channel.facts());
                let octets = wire.say(b"NOOP\r\n");
                wire.give_channel(&octets).unwrap();
                assert_eq!(wire.plaintext, b"NOOP\r\n");
                folder.write_pair("0", &authority.issue_for(&["mx.example", &format!("{i}.example")]));
                acceptor.reload(now()).unwrap();
            }
            first.exchange().unwrap();
            // RFC 6066 §3: a session is for one name.
            let other = Wire::connect(&acceptor, &client, "other.example").unwrap();
            assert!(!other.channel.is_resumed());
        }
    }

    #[test]
    fn a_ticket_of_another_acceptor_is_worth_nothing() {
        let folder = Folder::new();
        let settings = folder.settings(&[Authority::new().issue_for(&["mx.example"])]);
        let (one, another) =
            (Acceptor::load(settings.clone(), now()).unwrap(), Acceptor::load(settings, now()).unwrap());
        for versions in [ONLY_12, ONLY_13] {
            let client = Offer::versions(versions).client();
            Wire::connect(&one, &client, "mx.example").unwrap();
            let wire = Wire::connect(&another, &client, "mx.example").unwrap();
            assert!(!wire.channel.is_handshaking() && !wire.channel.is_resumed());
        }
    }

    #[test]
    fn one_ticket_is_sent_after_a_handshake() {
        let acceptor = acceptor();
        let client = Offer::versions(ONLY_13).client();
        for _ in 0..2 {
            let wire = Wire::connect(&acceptor, &client, "mx.example").unwrap();
            assert_eq!(wire.client.tls13_tickets_received(), 1);
        }
    }

    #[test]
    fn a_version_below_the_least_is_refused() {
        let folder = Folder::new();
        let mut settings = folder.settings(&[Authority::new().issue_for(&["mx.example"])]);
        settings.min_version = TlsVersion::Tls13;
        let acceptor = Acceptor::load(settings, now()).unwrap();
        let outcome = Wire::connect(&acceptor, &Offer::versions(ONLY_12).client(), "mx.example").map(|_| ());
        assert!(matches!(outcome, Err(TlsError::Handshake(_))), "{outcome:?}");
        Wire::connect(&acceptor, &Offer::default().client(), "mx.example").unwrap();
    }

    #[test]
    fn an_acceptor_may_be_shared_and_a_channel_sent() {
        fn is_shared<T: Send + Sync>() {}
        fn is_sent<T: Send>() {}
        is_shared::<Acceptor>();
        is_sent::<Channel>();
    }
}
