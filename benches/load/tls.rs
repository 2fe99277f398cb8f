//! Certificates made on the spot, and clients that trust them.

use std::sync::Arc;

use clap::ValueEnum;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use crate::support::certificates::Issued;

/// Whom the certificates name.
pub const NAME: &str = "mx.test";

/// The key of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Key {
    /// ECDSA on P-256.
    Ecdsa,
    /// RSA of 2048 bits.
    Rsa,
}

impl Key {
    /// A fresh key of this kind and a certificate signed with it.
    pub fn issue(self) -> Issued {
        let algorithm = match self {
            Key::Ecdsa => &PKCS_ECDSA_P256_SHA256,
            Key::Rsa => &PKCS_RSA_SHA256,
        };
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let params = CertificateParams::new([NAME.to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate");
        Issued { chain: certificate.pem(), key: key.serialize_pem() }
    }
}

/// A client that trusts nothing but `issued`, and speaks one version with one group. It resumes sessions, or never does.
pub fn client(
    issued: &Issued,
    version: &'static SupportedProtocolVersion,
    group: &'static dyn SupportedKxGroup,
    resumes: bool,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let own = CertificateDer::from_pem_slice(issued.chain.as_bytes()).expect("a certificate");
    roots.add(own).expect("a root");
    let provider = CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    if !resumes {
        config.resumption = Resumption::disabled();
    }
    Arc::new(config)
}

/// [`NAME`], as a client says it.
pub fn name() -> ServerName<'static> {
    ServerName::try_from(NAME).expect("a name")
}
