//! The client's TLS configuration, and TLS without I/O.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConnection, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::plan::Tls;

/// What every connection of a run uses.
pub struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// Reads the authorities, if any, and prepares the client's side.
///
/// # Errors
/// Those of reading certificates, and a name that is none.
pub fn client_config(plan: &Tls) -> io::Result<Client> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let mut config = match &plan.authorities {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_file_iter(path).map_err(io::Error::other)? {
                roots.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone { provider }))
            .with_no_client_auth(),
    };
    if !plan.is_resuming {
        config.resumption = Resumption::disabled();
    }
    let name = ServerName::try_from(plan.server_name.clone())
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {e}", plan.server_name)))?;
    Ok(Client { config: Arc::new(config), name })
}

/// A load is no place for secrets: without authorities any certificate will do, as long as its key signs the handshake.
#[derive(Debug)]
struct Anyone {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anyone {
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
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// One connection's TLS: plaintext on one side, ciphertext on the other.
pub struct Channel {
    connection: ClientConnection,
}

impl Channel {
    /// A channel whose handshake has not begun.
    pub fn new(client: &Client) -> io::Result<Self> {
        let connection =
            ClientConnection::new(client.config.clone(), client.name.clone()).map_err(io::Error::other)?;
        Ok(Channel { connection })
    }

    /// Whether the handshake is still going on.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether the handshake resumed an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    /// Takes plaintext to be sent; how many octets of it.
    pub fn write(&mut self, plaintext: &[u8]) -> io::Result<usize> {
        self.connection.writer().write(plaintext)
    }

    /// Appends the ciphertext that waits to be sent.
    pub fn take_ciphertext(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(out)?;
        }
        Ok(())
    }

    /// Takes ciphertext that was received; appends the plaintext in it. True: the peer has closed the channel.
    pub fn read(&mut self, mut ciphertext: &[u8], plaintext: &mut Vec<u8>) -> io::Result<bool> {
        let mut is_closed = false;
        while !ciphertext.is_empty() {
            self.connection.read_tls(&mut ciphertext)?;
            let state = self.connection.process_new_packets().map_err(io::Error::other)?;
            is_closed |= state.peer_has_closed();
            let size = state.plaintext_bytes_to_read();
            let start = plaintext.len();
            plaintext.resize(start + size, 0);
            self.connection.reader().read_exact(&mut plaintext[start..])?;
        }
        Ok(is_closed)
    }
}
