//! TLS as a client: whether it is wanted, and who is believed.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio_rustls::TlsConnector;

use super::wire::{Socket, Wire};

/// Whether a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsUse {
    /// Never.
    Off,
    /// With STARTTLS where it is offered and comes about, whoever the server is; otherwise in clear. Against those who only listen.
    Opportunistic,
    /// With STARTTLS and a server that has shown who it is, or not at all (RFC 3207).
    Required,
    /// From the first octet on, with a server that has shown who it is.
    Implicit,
}

/// Who may vouch for a server.
#[derive(Clone, Debug)]
pub enum Trust {
    /// The authorities that this machine trusts.
    System,
    /// These certificates, in PEM.
    These(Vec<u8>),
}

/// How a connection is protected. Cheap to clone.
#[derive(Clone)]
pub struct Protection {
    mode: TlsUse,
    config: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mode.fmt(f)
    }
}

impl Protection {
    /// None.
    pub const OFF: Protection = Protection { mode: TlsUse::Off, config: None };

    /// By `mode`; whom to trust matters only where somebody has to be believed. An error is in words for the operator.
    pub fn new(mode: TlsUse, trust: &Trust) -> Result<Protection, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?;
        let config = match (mode, trust) {
            (TlsUse::Off, _) => return Ok(Protection::OFF),
            (TlsUse::Opportunistic, _) => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            }
            (TlsUse::Required | TlsUse::Implicit, Trust::System) => {
                builder.with_platform_verifier().map_err(|e| format!("the system's authorities: {e}"))?
            }
            (TlsUse::Required | TlsUse::Implicit, Trust::These(pem)) => {
                builder.with_root_certificates(roots(pem)?)
            }
        };
        Ok(Protection { mode, config: Some(Arc::new(config.with_no_client_auth())) })
    }

    /// Whether it is wanted.
    pub fn mode(&self) -> TlsUse {
        self.mode
    }

    /// Shakes hands over `socket` with who should be `name`.
    pub(super) async fn shake_hands(&self, socket: Socket, name: &str) -> io::Result<Wire> {
        let config = self.config.clone().ok_or_else(|| io::Error::other("there is no TLS"))?;
        let name = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(config).connect(name, socket).await?;
        Ok(Wire::Tls(Box::new(stream)))
    }
}

fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| format!("no certificates in PEM: {e}"))?;
        roots.add(certificate).map_err(|e| format!("no certificate of an authority: {e}"))?;
    }
    if roots.is_empty() { Err("no certificates in PEM".into()) } else { Ok(roots) }
}

/// Believes everybody to be who they say; only the handshake itself has to be sound.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
