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
#[derive(Debug)]
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
