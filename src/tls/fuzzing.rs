//! The body of the fuzz target `tls_channel` (`tests/fuzz`): arbitrary octets in a channel, before, during and after a
//! real handshake with a client in memory.
//!
//! Panics when a promise is broken. Not part of the API.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use crate::mail::TlsVersion;

use super::files::Files;
use super::{Acceptor, CertificateFiles, Channel, ClientCertificates, Settings};

/// A certificate for `mx.example` until 2126, and its key, which is no secret.
const PEM: &str = include_str!("fuzzing.pem");

/// As much as a handshake sends at once, in octets: a certificate, a signature, a ticket.
const FLIGHT_SIZE_MAX: usize = 8 << 10;
/// As much as anything after it is answered with: an alert and a key update.
const ANSWER_SIZE_MAX: usize = 128;

static ACCEPTOR: LazyLock<Acceptor> = LazyLock::new(|| {
    let path = Path::new("fuzzing.pem");
    let mut files = Files::default();
    files.insert(path, PEM.as_bytes());
    let settings = Settings {
        certificates: vec![CertificateFiles { chain: path.to_owned(), key: path.to_owned() }],
        min_version: TlsVersion::Tls12,
        client_certificates: ClientCertificates::Ignore,
    };
    Acceptor::from_files(settings, &files, SystemTime::UNIX_EPOCH).expect("the certificate and its key")
});

static CLIENTS: LazyLock<[Arc<ClientConfig>; 2]> = LazyLock::new(|| [&TLS12, &TLS13].map(client));

/// The data is read as instructions: an octet that chooses what happens, and for some another, or as many as it says.
pub fn tls_channel(data: &[u8]) {
    let Some((choice, mut rest)) = data.split_first() else { return };
    let mut driver = Driver::new(&CLIENTS[usize::from(choice & 1)]);
    if choice & 2 == 0 {
        driver.shake_hands(usize::from(choice >> 2).max(1));
    }
    while let Some((instruction, more)) = rest.split_first() {
        let argument = more.first().copied().unwrap_or(0);
        rest = more;
        match instruction {
            0xff => driver.say(argument, None),
            // Genuine, but for one octet.
            0xfe => driver.say(40, Some(argument)),
            0xfd => {
                driver.client.send_close_notify();
                driver.carry(usize::from(argument).max(1));
            }
            0xfc => driver.answer(),
            0xfb => driver.close(),
            0xfa => {
                let _ = driver.client.refresh_traffic_keys();
                driver.carry(usize::from(argument).max(1));
            }
            0xf9 => driver.carry(usize::from(argument).max(1)),
            size => {
                let (octets, more) = rest.split_at(usize::from(*size).min(rest.len()));
                rest = more;
                driver.give(octets);
            }
        }
    }
}

fn client(version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_slice(PEM.as_bytes()).expect("a certificate");
    roots.add(certificate).expect("a certificate");
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Plays the peer and the driver, and holds the channel to its contract.
struct Driver {
    channel: Channel,
    client: ClientConnection,
    plaintext: Vec<u8>,
    /// What the client has said, to be found in `plaintext` again.
    said: Vec<u8>,
    /// What the channel was given to encrypt, and what the client has read of it.
    answered: Vec<u8>,
    read: Vec<u8>,
    has_failed: bool,
}

impl Driver {
    fn new(client: &Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from("mx.example").expect("a name");
        Driver {
            channel: ACCEPTOR.accept(),
            client: ClientConnection::new(client.clone(), name).expect("a client"),
            plaintext: Vec::new(),
            said: Vec::new(),
            answered: Vec::new(),
            read: Vec::new(),
            has_failed: false,
        }
    }

    fn shake_hands(&mut self, step: usize) {
        while self.client.wants_write() {
            self.carry(step);
        }
        assert!(!self.channel.is_handshaking() && !self.client.is_handshaking());
        assert!(self.channel.facts().is_some());
    }

    /// Gives the channel what the client wants sent, in steps.
    fn carry(&mut self, step: usize) {
        for piece in self.take_from_client().chunks(step) {
            self.give(piece);
        }
    }

    fn say(&mut self, size: u8, altered: Option<u8>) {
        if self.client.is_handshaking() {
            return;
        }
        let text: Vec<u8> = (0..size).collect();
        if self.client.writer().write_all(&text).is_err() {
            return;
        }
        let mut octets = self.take_from_client();
        if let (Some(at), [_, ..]) = (altered, &octets[..]) {
            // In the first three octets this changes nothing: what they should be is known beforehand.
            let at = usize::from(at) % octets.len();
            octets[at] ^= 1;
        }
        self.said.extend(text);
        self.give(&octets);
    }

    fn answer(&mut self) {
        if self.channel.is_handshaking() {
            return;
        }
        let is_over = self.channel.is_ended();
        let mut out = Vec::new();
        self.channel.encrypt(b"250 2.0.0 Ok\r\n", &mut out);
        assert_eq!(out.is_empty(), is_over);
        assert!(out.len() <= ANSWER_SIZE_MAX);
        if !is_over {
            self.answered.extend(b"250 2.0.0 Ok\r\n");
        }
        self.give_client(&out);
    }

    fn close(&mut self) {
        let is_failed = self.has_failed;
        let mut out = Vec::new();
        self.channel.close(&mut out);
        assert!(self.channel.is_ended() && out.len() <= ANSWER_SIZE_MAX && (!is_failed || out.is_empty()));
        self.give_client(&out);
    }

    fn give(&mut self, octets: &[u8]) {
        let (was_handshaking, was_ended) = (self.channel.is_handshaking(), self.channel.is_ended());
        let size = self.plaintext.len();
        let mut out = Vec::new();
        let outcome = self.channel.handle_ciphertext(octets, &mut self.plaintext, &mut out);
        if was_ended {
            assert!(out.is_empty() && self.plaintext.len() == size, "something after the end");
            assert!(octets.is_empty() || outcome.is_err() == self.has_failed);
        }
        if let Err(error) = outcome {
            self.has_failed = true;
            assert!(self.channel.is_ended() && self.channel.facts().is_none());
            assert!(error.to_string().bytes().all(|c| (b' '..=b'~').contains(&c)));
        }
        assert!(out.len() <= if was_handshaking { FLIGHT_SIZE_MAX } else { ANSWER_SIZE_MAX });
        assert!(self.said.starts_with(&self.plaintext), "plaintext that nobody has said");
        assert!(!self.channel.is_handshaking() || self.plaintext.is_empty());
        self.give_client(&out);
    }

    fn take_from_client(&mut self) -> Vec<u8> {
        let mut octets = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut octets).expect("a Vec takes everything");
        }
        octets
    }

    fn give_client(&mut self, mut octets: &[u8]) {
        while !octets.is_empty() {
            if !matches!(self.client.read_tls(&mut octets), Ok(1..)) {
                return;
            }
            let outcome = self.client.process_new_packets();
            let _ = self.client.reader().read_to_end(&mut self.read);
            assert!(self.answered.starts_with(&self.read));
            if outcome.is_err() {
                return;
            }
        }
    }
}
