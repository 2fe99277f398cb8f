//! Client certificates: which are asked for, and whom they name.
//!
//! Where one is only requested, no certificate is a reason to fail: mail servers on the internet present
//! whatever they have, and lose nothing by it. So the chain is not judged during the handshake, but after it,
//! by the same function for every handshake: [`Clients::identify`]. It is sound because
//! - the handshake's signature is checked for every key that can be, and whether it can be is read from the
//!   certificate alone, so the answer is the same later;
//! - rustls keeps the chain in a session ticket, encrypted under our own key, and gives it back when the
//!   session is resumed; judged anew, with the authorities and at the time of the resumption, an identity
//!   ends with its certificate and not with the ticket.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::public_key::PublicKey;

use crate::mail::ClientCertificate;

use super::acceptor::ClientCertificates;
use super::certificates::{LoadError, alternative_names, certificates, dns_names, parse};
use super::files::Files;

/// The longest name that is taken from a certificate, in octets: the longest domain name.
const NAME_SIZE_MAX: usize = 255;

/// What an acceptor does about client certificates.
#[derive(Clone, Debug)]
pub(super) enum Clients {
    Ignore,
    Request(Arc<dyn ClientCertVerifier>),
    Require(Arc<dyn ClientCertVerifier>),
}

impl Clients {
    /// # Errors
    /// The authorities cannot be used.
    pub(super) fn load(
        files: &Files,
        settings: &ClientCertificates,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, LoadError> {
        let Some(path) = settings.authorities() else { return Ok(Clients::Ignore) };
        let mut roots = RootCertStore::empty();
        for (i, authority) in certificates(files, path)?.into_iter().enumerate() {
            roots.add(authority).map_err(|_| {
                LoadError::new(path, format!("certificate {}: it cannot be used as an authority", i + 1))
            })?;
        }
        // The names of the authorities are not sent: of a system's they are 15 KiB in every handshake, and a
        // mail server has one certificate, which it presents if nothing speaks against it (RFC 8446 §4.2.4).
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .clear_root_hint_subjects()
            .build()
            .map_err(|error| LoadError::new(path, error.to_string()))?;
        Ok(match settings {
            ClientCertificates::Require { .. } => Clients::Require(verifier),
            _ => Clients::Request(verifier),
        })
    }

    /// What rustls asks during a handshake.
    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        match self {
            Clients::Ignore => WebPkiClientVerifier::no_client_auth(),
            Clients::Request(inner) => Arc::new(Requesting { inner: inner.clone() }),
            Clients::Require(inner) => inner.clone(),
        }
    }

    /// Whether a handshake without a verified certificate is a failed one.
    pub(super) fn is_required(&self) -> bool {
        matches!(self, Clients::Require(_))
    }

    /// Whom the certificates of a completed handshake name, if they are good at `now`.
    pub(super) fn identify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Option<ClientCertificate> {
        let (leaf, authorities) = chain.split_first()?;
        let verifier = match self {
            Clients::Ignore => return None,
            Clients::Request(verifier) | Clients::Require(verifier) => verifier,
        };
        if !is_key_checkable(leaf) || verifier.verify_client_cert(leaf, authorities, now).is_err() {
            return None;
        }
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest(&SHA256, leaf).as_ref());
        let name = parse(leaf).ok().and_then(|leaf| name(&leaf));
        Some(ClientCertificate { name: name.unwrap_or_else(|| hex(&fingerprint)), fingerprint })
    }
}

/// Accepts every chain, and every signature that cannot be checked; [`Clients::identify`] judges later.
#[derive(Debug)]
struct Requesting {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for Requesting {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match is_key_checkable(certificate) {
            true => self.inner.verify_tls12_signature(message, certificate, signed),
            false => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match is_key_checkable(certificate) {
            true => self.inner.verify_tls13_signature(message, certificate, signed),
            false => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Whether a signature by a certificate's key can be checked. Reads nothing but the certificate, so that it
/// says the same of it during the handshake and after.
fn is_key_checkable(certificate: &CertificateDer<'_>) -> bool {
    const ED25519: &str = "1.3.101.112";
    const CURVES: [&str; 3] = ["1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35"];
    // webpki is the stricter reader of the two: of version 1, for one, it reads nothing.
    if ParsedCertificate::try_from(certificate).is_err() {
        return false;
    }
    let Ok(certificate) = parse(certificate) else { return false };
    let spki = certificate.public_key();
    match spki.parsed() {
        Ok(PublicKey::RSA(key)) => (2048..=8192).contains(&key.key_size()),
        Ok(PublicKey::EC(_)) => {
            let curve = spki.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
            curve.is_some_and(|curve| CURVES.contains(&curve.to_id_string().as_str()))
        }
        _ => spki.algorithm.algorithm.to_id_string() == ED25519,
    }
}

/// The first of: DNS name, mail address, common name; if it can stand in a log and in a header.
fn name(certificate: &X509Certificate<'_>) -> Option<Box<str>> {
    let mail = alternative_names(certificate).find_map(|name| match name {
        GeneralName::RFC822Name(address) => Some(*address),
        _ => None,
    });
    let dns = dns_names(certificate).next();
    let common = || certificate.subject().iter_common_name().find_map(|name| name.as_str().ok());
    let name = dns.or(mail).or_else(common)?;
    let is_clean =
        (1..=NAME_SIZE_MAX).contains(&name.len()) && name.bytes().all(|c| (b' '..=b'~').contains(&c));
    is_clean.then(|| name.into())
}

fn hex(octets: &[u8]) -> Box<str> {
    octets.iter().map(|octet| format!("{octet:02x}")).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, UNIX_EPOCH};

    use rcgen::{PKCS_ED25519, SanType};
    use rustls::AlertDescription;
    use rustls::pki_types::pem::PemObject;
    use rustls::time_provider::TimeProvider;

    use super::super::testing::*;
    use super::super::{Acceptor, Settings, TlsError};
    use super::*;

    const MODES: [fn(std::path::PathBuf) -> ClientCertificates; 2] = [
        |authorities| ClientCertificates::Request { authorities },
        |authorities| ClientCertificates::Require { authorities },
    ];

    struct Scene {
        folder: Folder,
        authority: Authority,
        settings: Settings,
    }

    impl Scene {
        fn new(mode: fn(std::path::PathBuf) -> ClientCertificates) -> Self {
            let (folder, authority) = (Folder::new(), Authority::new());
            let mut settings = folder.settings(&[Authority::new().issue_for(&["mx.example"])]);
            settings.client_certificates = mode(folder.write("authorities.pem", authority.pem()));
            Scene { folder, authority, settings }
        }

        fn acceptor(&self) -> Acceptor {
            Acceptor::load(self.settings.clone(), now()).unwrap()
        }
    }

    fn connect(acceptor: &Acceptor, offer: Offer) -> Result<Option<ClientCertificate>, TlsError> {
        let wire = Wire::connect(acceptor, &offer.client(), "mx.example")?;
        Ok(wire.channel.facts().expect("facts after the handshake").client)
    }

    #[test]
    fn a_verified_client_is_named() {
        for mode in MODES {
            let scene = Scene::new(mode);
            let acceptor = scene.acceptor();
            for versions in [ONLY_12, ONLY_13] {
                for algorithm in [ECDSA, RSA, &PKCS_ED25519] {
                    let wanted = Wanted { algorithm, ..Wanted::names(&["client.example", "b.example"]) };
                    let issued = scene.authority.issue(&wanted);
                    let leaf = issued.der();
                    let offer = Offer { certificate: Some(issued), ..Offer::versions(versions) };
                    let client = connect(&acceptor, offer).unwrap().expect("an identity");
                    assert_eq!(&*client.name, "client.example");
                    assert_eq!(client.fingerprint, digest(&SHA256, &leaf).as_ref());
                }
            }
        }
    }

    #[test]
    fn a_client_that_is_not_verified_is_refused_where_required_and_unknown_where_requested() {
        for (mode, is_required) in MODES.into_iter().zip([false, true]) {
            let scene = Scene::new(mode);
            let acceptor = scene.acceptor();
            let stranger = Authority::new().issue_for(&["client.example"]);
            let expired =
                scene.authority.issue(&Wanted { to: (2001, 1, 1), ..Wanted::names(&["client.example"]) });
            for certificate in [None, Some(stranger), Some(expired)] {
                for versions in [ONLY_12, ONLY_13] {
                    let offer = Offer { certificate: certificate.clone(), ..Offer::versions(versions) };
                    match connect(&acceptor, offer) {
                        Ok(client) => assert!(!is_required && client.is_none(), "{certificate:?}"),
                        Err(TlsError::ClientCertificate(_)) => assert!(is_required, "{certificate:?}"),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
    }

    #[test]
    fn a_refused_client_is_told_by_an_alert() {
        let scene = Scene::new(MODES[1]);
        let acceptor = scene.acceptor();
        let mut wire = Wire::new(&acceptor, &Offer::default().client(), "mx.example");
        wire.exchange().unwrap_err();
        let alert = Error::AlertReceived(AlertDescription::CertificateRequired);
        assert_eq!(wire.refusal, Some(alert));
    }

    #[test]
    fn nothing_is_asked_where_certificates_are_ignored() {
        let acceptor = acceptor();
        let issued = Authority::new().issue_for(&["client.example"]);
        let mut wire = Wire::new(
            &acceptor,
            &Offer { certificate: Some(issued), ..Offer::default() }.client(),
            "mx.example",
        );
        wire.exchange().unwrap();
        assert_eq!(wire.channel.facts().unwrap().client, None);
    }

    /// A key whose signatures rustls cannot check, in the hands of a client that signs all the same.
    #[test]
    fn a_key_that_cannot_be_checked_is_unknown_and_no_reason_to_fail() {
        let scene = Scene::new(MODES[0]);
        let acceptor = scene.acceptor();
        // secp256k1: made with `openssl ecparam -name secp256k1 -genkey` and `openssl req -x509`.
        let certificate = CertificateDer::from_pem_slice(SECP256K1.as_bytes()).unwrap();
        assert!(!is_key_checkable(&certificate));
        assert!(!is_key_checkable(&CertificateDer::from(&b"no certificate"[..])));
        for algorithm in [ECDSA, RSA, &PKCS_ED25519] {
            let issued = scene.authority.issue(&Wanted { algorithm, ..Wanted::names(&["a.example"]) });
            assert!(is_key_checkable(&issued.der()));
        }
        for versions in [ONLY_12, ONLY_13] {
            let mut offer = Offer::versions(versions);
            let key = Authority::new().issue_for(&[]).key;
            offer.certificate = Some(Issued { chain: SECP256K1.into(), key });
            assert_eq!(connect_unmatched(&acceptor, offer), Ok(None));
        }
    }

    #[test]
    fn a_handshake_not_signed_by_the_certificate_s_key_fails() {
        for mode in MODES {
            let scene = Scene::new(mode);
            let acceptor = scene.acceptor();
            for versions in [ONLY_12, ONLY_13] {
                // The victim's certificate is public; the key is the attacker's.
                let victim = scene.authority.issue_for(&["victim.example"]);
                let attacker = Authority::new().issue_for(&["attacker.example"]);
                let mut offer = Offer::versions(versions);
                offer.certificate = Some(Issued { chain: victim.chain, key: attacker.key });
                let outcome = connect_unmatched(&acceptor, offer);
                assert!(matches!(outcome, Err(TlsError::ClientCertificate(_))), "{outcome:?}");
            }
        }
    }

    /// As [`connect`], with a certificate and a key that need not belong together.
    fn connect_unmatched(
        acceptor: &Acceptor,
        mut offer: Offer,
    ) -> Result<Option<ClientCertificate>, TlsError> {
        let Issued { chain, key } = offer.certificate.take().expect("a certificate");
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
        let mut client = Arc::unwrap_or_clone(offer.client());
        let certified = rustls::sign::CertifiedKey::new(chain, key);
        client.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
        let wire = Wire::connect(acceptor, &Arc::new(client), "mx.example")?;
        Ok(wire.channel.facts().expect("facts after the handshake").client)
    }

    #[test]
    fn names_are_taken_in_order_and_only_if_they_are_clean() {
        let scene = Scene::new(MODES[1]);
        let acceptor = scene.acceptor();
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        let mail = |name: &str| SanType::Rfc822Name(name.try_into().unwrap());
        let long: &str = Box::leak(format!("{}.example", "x".repeat(300)).into_boxed_str());
        let cases: Vec<(Vec<SanType>, &'static str, Option<&str>)> = vec![
            (vec![mail("a@mail.example"), dns("dns.example")], "common", Some("dns.example")),
            (vec![mail("a@mail.example")], "common", Some("a@mail.example")),
            (vec![], "common name", Some("common name")),
            (vec![], "a\r\nb", None),
            (vec![], "gr\u{fc}n", None),
            (vec![], long, None),
            (vec![], "", None),
            (vec![dns("bad\tname")], "common", None),
        ];
        for (names, common_name, expected) in cases {
            let issued = scene.authority.issue(&Wanted { names, common_name, ..Wanted::names(&[]) });
            let offer = Offer { certificate: Some(issued), ..Offer::default() };
            let client = connect(&acceptor, offer).unwrap().expect("an identity");
            match expected {
                Some(expected) => assert_eq!(&*client.name, expected),
                None => assert_eq!(client.name, hex(&client.fingerprint)),
            }
        }
        assert_eq!(&*hex(&[0x00, 0xaf]), "00af");
    }

    #[test]
    fn a_resumed_session_has_the_same_identity() {
        for mode in MODES {
            let scene = Scene::new(mode);
            let acceptor = scene.acceptor();
            for versions in [ONLY_12, ONLY_13] {
                let certificate = Some(scene.authority.issue_for(&["client.example"]));
                let client = Offer { certificate, ..Offer::versions(versions) }.client();
                let first = Wire::connect(&acceptor, &client, "mx.example").unwrap();
                for _ in 0..2 {
                    let wire = Wire::connect(&acceptor, &client, "mx.example").unwrap();
                    assert!(wire.channel.is_resumed());
                    assert_eq!(wire.channel.facts(), first.channel.facts());
                    assert!(wire.channel.facts().unwrap().client.is_some());
                }
            }
        }
    }

    #[derive(Debug)]
    struct Clock(AtomicU64);

    impl TimeProvider for Clock {
        fn current_time(&self) -> Option<UnixTime> {
            Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Ordering::Relaxed))))
        }
    }

    #[test]
    fn an_identity_ends_with_its_certificate_and_not_with_the_ticket() {
        for (mode, is_required) in MODES.into_iter().zip([false, true]) {
            let scene = Scene::new(mode);
            let acceptor = scene.acceptor();
            let begin = now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            let clock = Arc::new(Clock(AtomicU64::new(begin)));
            acceptor.set_clock(clock.clone());
            for versions in [ONLY_12, ONLY_13] {
                clock.0.store(begin, Ordering::Relaxed);
                let wanted = Wanted { to: (2026, 1, 11), ..Wanted::names(&["client.example"]) };
                let certificate = Some(scene.authority.issue(&wanted));
                let client = Offer { certificate, ..Offer::versions(versions) }.client();
                let first = Wire::connect(&acceptor, &client, "mx.example").unwrap();
                assert!(first.channel.facts().unwrap().client.is_some());
                clock.0.store(begin + 7 * 24 * 3600, Ordering::Relaxed);
                let mut wire = Wire::new(&acceptor, &client, "mx.example");
                let outcome = wire.exchange();
                assert!(wire.channel.is_resumed());
                match is_required {
                    true => {
                        assert!(matches!(outcome, Err(TlsError::ClientCertificate(_))), "{outcome:?}");
                        assert_eq!(wire.channel.facts(), None);
                        assert_eq!(wire.give_channel(b"x"), Err(TlsError::Ended));
                    }
                    false => assert_eq!(wire.channel.facts().unwrap().client, None),
                }
            }
        }
    }

    #[test]
    fn other_authorities_end_the_tickets_given_under_the_old_ones() {
        for (mode, is_required) in MODES.into_iter().zip([false, true]) {
            let scene = Scene::new(mode);
            let acceptor = scene.acceptor();
            let certificate = Some(scene.authority.issue_for(&["client.example"]));
            let client = Offer { certificate, ..Offer::default() }.client();
            Wire::connect(&acceptor, &client, "mx.example").unwrap();
            scene.folder.write("authorities.pem", Authority::new().pem());
            acceptor.reload(now()).unwrap();
            match Wire::connect(&acceptor, &client, "mx.example") {
                Ok(wire) => {
                    assert!(!is_required && !wire.channel.is_resumed());
                    assert_eq!(wire.channel.facts().unwrap().client, None);
                }
                Err(error) => assert!(is_required, "{error}"),
            }
        }
    }

    #[test]
    fn a_ticket_given_where_nothing_is_asked_is_worth_nothing_where_something_is() {
        let scene = Scene::new(MODES[1]);
        let strict = scene.acceptor();
        let mut settings = scene.settings.clone();
        settings.client_certificates = ClientCertificates::Ignore;
        let open = Acceptor::load(settings, now()).unwrap();
        for versions in [ONLY_12, ONLY_13] {
            let client = Offer::versions(versions).client();
            Wire::connect(&open, &client, "mx.example").unwrap();
            let outcome = Wire::connect(&strict, &client, "mx.example").map(|_| ());
            assert!(matches!(outcome, Err(TlsError::ClientCertificate(_))), "{outcome:?}");
        }
    }

    const SECP256K1: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBbjCCARSgAwIBAgIUInqJ7vuDxZfhHncK0NUgcwKzHg8wCgYIKoZIzj0EAwIw\n\
DTELMAkGA1UEAwwCazEwIBcNMjYxMTIxMTIzNDA5WhgPMjEyNjEwMjgxMjM0MDla\n\
MA0xCzAJBgNVBAMMAmsxMFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEPejZW1hbXwSA\n\
YmN+zRZtPe0GxPYIeUrZU4GWAOZ9rJjiwBZnjLQ/Mj9tjyBIWuQS3kddUki2GbvA\n\
eGUU4qknI6NTMFEwHQYDVR0OBBYEFC+yLCBoCCYH6Pm8OHtra6ZV/pamMB8GA1Ud\n\
IwQYMBaAFC+yLCBoCCYH6Pm8OHtra6ZV/pamMA8GA1UdEwEB/wQFMAMBAf8wCgYI\n\
KoZIzj0EAwIDSAAwRQIhAJrOI4qeV9sYEbQv2cHCRhT6okTVrQ5oL8CmP+Czr5iV\n\
AiBXc4NxkqirRCtrVLutHusmQHKSVxwJNB7+gyfS7x2wOg==\n\
-----END CERTIFICATE-----\n\
";
}
