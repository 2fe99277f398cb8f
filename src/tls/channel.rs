//! One connection's TLS, server side: ciphertext on one side, plaintext on the other, no I/O.
//!
//! ```text
//!   Handshaking ──► Open ──► Ended      close_notify, from either side: what arrives is never looked at
//!        │            │
//!        └────────────┴────► Failed     the alert is in the output; every further call is refused
//! ```
//!
//! Invariants:
//! - in `Ended` and `Failed` no plaintext is produced and nothing is encrypted;
//! - ciphertext is taken whole, and nothing that could be sent or handed on is kept back: what stays in a
//!   channel between two calls is an incomplete record, or an incomplete message of a handshake, of which
//!   rustls allows 64 KiB;
//! - output is bounded by input: rustls answers one key update at a time, one renegotiation ever, and counts
//!   warnings, empty records and key updates without data until it has had enough.

use std::fmt;
use std::io::{BufRead, Write};
use std::sync::Arc;

use rustls::{Error, HandshakeKind, InvalidMessage, ProtocolVersion, ServerConnection};

use crate::mail::{ClientCertificate, Tls, TlsVersion};

use super::acceptor::Current;

/// As much plaintext as is encrypted before the records are moved on: what goes into one record.
const RECORD_PLAINTEXT_MAX: usize = 16 << 10;

/// The longest text of an error, in octets.
const TEXT_SIZE_MAX: usize = 160;

/// TLS on one connection.
#[derive(Debug)]
pub struct Channel {
    connection: Box<ServerConnection>,
    client: Option<Box<ClientCertificate>>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// With what is needed until the client is known.
    Handshaking(Arc<Current>),
    Open,
    Ended,
    Failed,
}

/// Why TLS has failed on a connection. The texts are short, printable, and hold nothing the peer chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsError {
    /// What arrived first is not TLS: a plaintext command, HTTP, a port scanner.
    NotTls,
    /// The client speaks another protocol than SMTP, and said so (ALPN).
    NoAlpn,
    /// No certificate, or none that could be verified, where one is required.
    ClientCertificate(Box<str>),
    /// The handshake has failed: nothing in common, the peer's alert, a malformed message.
    Handshake(Box<str>),
    /// The connection was broken after the handshake: altered, malformed, or too much of something.
    Broken(Box<str>),
    /// It had failed before.
    Ended,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::NotTls => f.write_str("what the peer sent is not TLS"),
            TlsError::NoAlpn => f.write_str("the peer offers protocols, and smtp is not among them"),
            TlsError::ClientCertificate(text) => write!(f, "client certificate: {text}"),
            TlsError::Handshake(text) => write!(f, "handshake: {text}"),
            TlsError::Broken(text) => f.write_str(text),
            TlsError::Ended => f.write_str("TLS had failed before"),
        }
    }
}

impl std::error::Error for TlsError {}

impl Channel {
    pub(super) fn new(current: Arc<Current>) -> Self {
        let connection =
            ServerConnection::new(current.config.clone()).expect("the size of records is the default");
        Channel { connection: Box::new(connection), client: None, state: State::Handshaking(current) }
    }

    /// Takes ciphertext, all of it. Appends what it decrypts to, and what is to be sent because of it: the
    /// handshake, alerts, key updates.
    ///
    /// # Errors
    /// Why the channel has failed. What is in `plaintext` came before, the alert is in `ciphertext_out`.
    pub fn handle_ciphertext(
        &mut self,
        mut octets: &[u8],
        plaintext: &mut Vec<u8>,
        ciphertext_out: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        while !octets.is_empty() {
            match self.state {
                State::Handshaking(_) | State::Open => {}
                State::Ended => return Ok(()),
                State::Failed => return Err(TlsError::Ended),
            }
            if let Err(error) = self.take_some(&mut octets, plaintext, ciphertext_out) {
                self.state = State::Failed;
                self.move_output(ciphertext_out);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Appends the records of `plaintext`. Does nothing while handshaking and after the end.
    pub fn encrypt(&mut self, plaintext: &[u8], ciphertext_out: &mut Vec<u8>) {
        if !matches!(self.state, State::Open) {
            debug_assert!(!matches!(self.state, State::Handshaking(_)), "plaintext during the handshake");
            return;
        }
        for piece in plaintext.chunks(RECORD_PLAINTEXT_MAX) {
            // All of it, or an error that a later call will meet again: the buffer has room for a record.
            let _ = self.connection.writer().write_all(piece);
            self.move_output(ciphertext_out);
        }
    }

    /// Appends close_notify, and ends the channel. Does nothing after the end.
    pub fn close(&mut self, ciphertext_out: &mut Vec<u8>) {
        if matches!(self.state, State::Failed) {
            return;
        }
        self.connection.send_close_notify();
        self.state = State::Ended;
        self.move_output(ciphertext_out);
    }

    /// Whether the handshake is still going on.
    pub fn is_handshaking(&self) -> bool {
        matches!(self.state, State::Handshaking(_))
    }

    /// Whether close_notify was sent or received, or the channel has failed: no plaintext will come any more,
    /// and what follows on the wire is never looked at.
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended | State::Failed)
    }

    /// Whether the handshake resumed an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// What was agreed on. None while handshaking, and if that was never over.
    pub fn facts(&self) -> Option<Tls> {
        if self.is_handshaking() || self.connection.is_handshaking() {
            return None;
        }
        let version = match self.connection.protocol_version()? {
            ProtocolVersion::TLSv1_3 => TlsVersion::Tls13,
            _ => TlsVersion::Tls12,
        };
        let cipher = self.connection.negotiated_cipher_suite()?.suite().as_str()?;
        Some(Tls {
            version,
            // rustls tells the two versions' suites apart in the name; IANA does not.
            cipher: cipher.replacen("TLS13_", "TLS_", 1).into(),
            server_name: self.connection.server_name().map(|name| name.to_ascii_lowercase().into()),
            client: self.client.as_deref().cloned(),
        })
    }

    /// Takes as much as rustls reads at a time.
    fn take_some(
        &mut self,
        octets: &mut &[u8],
        plaintext: &mut Vec<u8>,
        ciphertext_out: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        self.connection
            .read_tls(octets)
            .map_err(|_| TlsError::Broken("more than a record can be without its end".into()))?;
        let outcome = self.connection.process_new_packets();
        if let State::Handshaking(current) = &self.state
            && !self.connection.is_handshaking()
        {
            let chain = self.connection.peer_certificates().unwrap_or_default();
            let now = current.config.time_provider.current_time();
            self.client = now.and_then(|now| current.clients.identify(chain, now)).map(Box::new);
            // Met only when a session is resumed: at its beginning rustls has seen to it.
            if current.clients.is_required() && self.client.is_none() {
                self.connection.send_close_notify();
                return Err(TlsError::ClientCertificate("it cannot be verified any more".into()));
            }
            self.state = State::Open;
        }
        if matches!(self.state, State::Open) {
            let mut reader = self.connection.reader();
            while let Ok(piece @ [_, ..]) = reader.fill_buf() {
                plaintext.extend_from_slice(piece);
                let size = piece.len();
                reader.consume(size);
            }
        }
        let has_ended = outcome.map_err(|error| self.error(error))?.peer_has_closed();
        self.move_output(ciphertext_out);
        if has_ended {
            self.state = State::Ended;
        }
        Ok(())
    }

    fn move_output(&mut self, ciphertext_out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            self.connection.write_tls(ciphertext_out).expect("a Vec takes everything");
        }
    }

    fn error(&self, error: Error) -> TlsError {
        let text = text(&error);
        match error {
            Error::InvalidMessage(InvalidMessage::InvalidContentType)
                if self.connection.protocol_version().is_none() =>
            {
                TlsError::NotTls
            }
            Error::NoApplicationProtocol => TlsError::NoAlpn,
            Error::InvalidCertificate(_) | Error::NoCertificatesPresented => {
                TlsError::ClientCertificate(text)
            }
            _ if self.is_handshaking() => TlsError::Handshake(text),
            _ => TlsError::Broken(text),
        }
    }
}

/// rustls' words, fit for a line of a log.
fn text(error: &Error) -> Box<str> {
    let clean = |c: char| if matches!(c, ' '..='~') { c } else { '?' };
    error.to_string().chars().take(TEXT_SIZE_MAX).map(clean).collect::<String>().into()
}
