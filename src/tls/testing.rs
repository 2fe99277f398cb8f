//! Certificates, clients and wires for the tests: everything in memory, but for the files of certificates.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_RSA_SHA256, SanType, SignatureAlgorithm,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, SupportedKxGroup, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, SupportedProtocolVersion,
};

use crate::mail::TlsVersion;

use super::{Acceptor, CertificateFiles, Channel, ClientCertificates, Settings, TlsError};

pub const ECDSA: &SignatureAlgorithm = &PKCS_ECDSA_P256_SHA256;
pub const RSA: &SignatureAlgorithm = &PKCS_RSA_SHA256;
pub const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
pub const ONLY_12: &[&SupportedProtocolVersion] = &[&TLS12];
pub const ONLY_13: &[&SupportedProtocolVersion] = &[&TLS13];

/// A day in January 2026: the time that certificates are loaded at.
pub fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_768_000_000)
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    pub chain: String,
    pub key: String,
}

impl Issued {
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.chain.as_bytes()).unwrap()
    }
}

/// What should be in a certificate; the rest is long-lived and ordinary.
pub struct Wanted {
    pub algorithm: &'static SignatureAlgorithm,
    pub names: Vec<SanType>,
    pub common_name: &'static str,
    /// Year, month and day.
    pub from: (i32, u8, u8),
    pub to: (i32, u8, u8),
}

impl Wanted {
    pub fn names(names: &[&str]) -> Self {
        let names = names.iter().map(|name| SanType::DnsName((*name).try_into().unwrap()));
        Wanted {
            algorithm: ECDSA,
            names: names.collect(),
            common_name: "test",
            from: (2000, 1, 1),
            to: (2100, 1, 1),
        }
    }
}

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let key = KeyPair::generate_for(ECDSA).unwrap();
        Authority(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn issue(&self, wanted: &Wanted) -> Issued {
        let mut params = CertificateParams::default();
        params.subject_alt_names = wanted.names.clone();
        params.distinguished_name.push(DnType::CommonName, wanted.common_name);
        params.not_before = rcgen::date_time_ymd(wanted.from.0, wanted.from.1, wanted.from.2);
        params.not_after = rcgen::date_time_ymd(wanted.to.0, wanted.to.1, wanted.to.2);
        let key = KeyPair::generate_for(wanted.algorithm).unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap();
        Issued { chain: leaf.pem(), key: key.serialize_pem() }
    }

    pub fn issue_for(&self, names: &[&str]) -> Issued {
        self.issue(&Wanted::names(names))
    }
}

/// A folder with the files of an acceptor.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// Writes `<name>.pem` and `<name>.key`.
    pub fn write_pair(&self, name: &str, issued: &Issued) -> CertificateFiles {
        CertificateFiles {
            chain: self.write(&format!("{name}.pem"), &issued.chain),
            key: self.write(&format!("{name}.key"), &issued.key),
        }
    }

    /// Settings of an acceptor with these certificates, in this order.
    pub fn settings(&self, certificates: &[Issued]) -> Settings {
        let pairs = certificates.iter().enumerate();
        Settings {
            certificates: pairs.map(|(i, issued)| self.write_pair(&i.to_string(), issued)).collect(),
            min_version: TlsVersion::Tls12,
            client_certificates: ClientCertificates::Ignore,
        }
    }
}

/// An acceptor with one certificate, for `mx.example`.
pub fn acceptor() -> Acceptor {
    let issued = Authority::new().issue_for(&["mx.example"]);
    Acceptor::load(Folder::new().settings(&[issued]), now()).unwrap()
}

/// What a client offers.
pub struct Offer {
    pub versions: &'static [&'static SupportedProtocolVersion],
    pub groups: Vec<&'static dyn SupportedKxGroup>,
    pub suites: fn(rustls::CipherSuite) -> bool,
    pub schemes: Vec<SignatureScheme>,
    pub alpn: &'static [&'static str],
    pub certificate: Option<Issued>,
}

impl Default for Offer {
    fn default() -> Self {
        let provider = aws_lc_rs::default_provider();
        Offer {
            versions: BOTH,
            schemes: provider.signature_verification_algorithms.supported_schemes(),
            groups: provider.kx_groups,
            suites: |_| true,
            alpn: &[],
            certificate: None,
        }
    }
}

impl Offer {
    pub fn versions(versions: &'static [&'static SupportedProtocolVersion]) -> Self {
        Offer { versions, ..Offer::default() }
    }

    /// A client, which remembers its sessions.
    pub fn client(self) -> Arc<ClientConfig> {
        let mut provider = CryptoProvider { kx_groups: self.groups, ..aws_lc_rs::default_provider() };
        provider.cipher_suites.retain(|suite| (self.suites)(suite.suite()));
        let provider = Arc::new(provider);
        let anyone = Arc::new(Anyone { provider: provider.clone(), schemes: self.schemes });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(anyone);
        let mut config = match self.certificate {
            Some(Issued { chain, key }) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// Any certificate will do, as long as its key signs the handshake.
#[derive(Debug)]
struct Anyone {
    provider: Arc<CryptoProvider>,
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

/// A client and a channel, and what is between them.
pub struct Wire {
    pub client: ClientConnection,
    pub channel: Channel,
    /// What the channel has decrypted.
    pub plaintext: Vec<u8>,
    /// What the client has decrypted.
    pub received: Vec<u8>,
    /// Why the client has given up.
    pub refusal: Option<Error>,
}

impl Wire {
    /// The handshake not begun.
    pub fn new(acceptor: &Acceptor, client: &Arc<ClientConfig>, name: &str) -> Self {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        Wire {
            client: ClientConnection::new(client.clone(), name).unwrap(),
            channel: acceptor.accept(),
            plaintext: Vec::new(),
            received: Vec::new(),
            refusal: None,
        }
    }

    /// The handshake done, or the channel's error.
    pub fn connect(acceptor: &Acceptor, client: &Arc<ClientConfig>, name: &str) -> Result<Self, TlsError> {
        let mut wire = Wire::new(acceptor, client, name);
        wire.exchange().map(|()| wire)
    }

    /// Carries everything to and fro until nothing is left.
    pub fn exchange(&mut self) -> Result<(), TlsError> {
        loop {
            let octets = self.take_from_client();
            if octets.is_empty() {
                return Ok(());
            }
            self.give_channel(&octets)?;
        }
    }

    /// What the client wants sent.
    pub fn take_from_client(&mut self) -> Vec<u8> {
        let mut octets = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut octets).unwrap();
        }
        octets
    }

    /// Gives octets to the channel, and its answer to the client.
    pub fn give_channel(&mut self, octets: &[u8]) -> Result<(), TlsError> {
        let mut out = Vec::new();
        let outcome = self.channel.handle_ciphertext(octets, &mut self.plaintext, &mut out);
        self.give_client(&out);
        outcome
    }

    pub fn give_client(&mut self, mut octets: &[u8]) {
        use std::io::Read;
        while !octets.is_empty() && self.refusal.is_none() {
            self.client.read_tls(&mut octets).unwrap();
            self.refusal = self.client.process_new_packets().err();
            let _ = self.client.reader().read_to_end(&mut self.received);
        }
    }

    /// The records of `plaintext`, from the client.
    pub fn say(&mut self, plaintext: &[u8]) -> Vec<u8> {
        use std::io::Write;
        self.client.set_buffer_limit(None);
        self.client.writer().write_all(plaintext).unwrap();
        self.take_from_client()
    }
}
