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
use std::io::{self, BufRead, Read, Write};
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
        // rustls reads into a buffer that grows with a record, to 20 KiB, and shrinks to 4 KiB when it reads
        // again after it. So it is made to begin to read: who sends a large record and falls silent would
        // keep it otherwise.
        let _ = self.connection.read_tls(&mut NothingYet);
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

    /// What was agreed on. None until it is, and once the channel has failed.
    pub fn facts(&self) -> Option<Tls> {
        let is_agreed = matches!(self.state, State::Open | State::Ended);
        if !is_agreed || self.connection.is_handshaking() {
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
        self.connection.read_tls(octets).map_err(|_| self.broken("a message that is too long".into()))?;
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
            _ => self.broken(text),
        }
    }

    fn broken(&self, text: Box<str>) -> TlsError {
        match self.state {
            State::Handshaking(_) => TlsError::Handshake(text),
            _ => TlsError::Broken(text),
        }
    }
}

/// A peer that has sent nothing more.
struct NothingYet;

impl Read for NothingYet {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// rustls' words, fit for a line of a log.
fn text(error: &Error) -> Box<str> {
    let clean = |c: char| if matches!(c, ' '..='~') { c } else { '?' };
    error.to_string().chars().take(TEXT_SIZE_MAX).map(clean).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use ::aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    use rustls::crypto::aws_lc_rs::{self, kx_group};
    use rustls::{AlertDescription, ConnectionTrafficSecrets, NamedGroup};

    use super::super::testing::*;
    use super::*;
    use crate::mail::TlsVersion;

    const TEXT: &[u8] = b"EHLO client.example\r\n";

    #[test]
    fn a_dialogue_is_the_same_at_every_split_of_the_ciphertext() {
        let acceptor = acceptor();
        for versions in [ONLY_12, ONLY_13] {
            let client = Offer::versions(versions).client();
            // The steps are as long as what there is, so that every octet is once the first of one.
            let mut step = 1;
            let mut is_longest = false;
            while !is_longest {
                is_longest = true;
                let mut wire = Wire::new(&acceptor, &client, "mx.example");
                let mut sent = wire.take_from_client();
                let mut is_said = false;
                while !sent.is_empty() {
                    is_longest &= sent.len() <= step;
                    for piece in sent.chunks(step) {
                        wire.give_channel(piece).unwrap();
                    }
                    sent = wire.take_from_client();
                    if sent.is_empty() && !is_said {
                        is_said = true;
                        sent = wire.say(TEXT);
                    }
                }
                assert_eq!(wire.plaintext, TEXT, "step {step}");
                step += 1 + step / 16;
            }
        }
    }

    #[test]
    fn what_is_encrypted_arrives() {
        let acceptor = acceptor();
        for versions in [ONLY_12, ONLY_13] {
            let mut wire =
                Wire::connect(&acceptor, &Offer::versions(versions).client(), "mx.example").unwrap();
            let text: Vec<u8> = (0..200_000_u32).map(|i| (i / 7) as u8).collect();
            let mut out = Vec::new();
            wire.channel.encrypt(&text, &mut out);
            wire.channel.close(&mut out);
            wire.channel.encrypt(b"not any more", &mut out);
            wire.give_client(&out);
            assert!(wire.received == text);
            assert!(wire.channel.is_ended());
        }
    }

    #[test]
    fn the_facts_are_those_of_the_handshake() {
        let acceptor = acceptor();
        let cases = [
            (ONLY_12, TlsVersion::Tls12, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
            (ONLY_13, TlsVersion::Tls13, "TLS_AES_128_GCM_SHA256"),
        ];
        for (versions, version, cipher) in cases {
            let client = Offer::versions(versions).client();
            let mut wire = Wire::new(&acceptor, &client, "MX.Example");
            assert_eq!(wire.channel.facts(), None);
            assert!(wire.channel.is_handshaking());
            wire.exchange().unwrap();
            let server_name = Some("mx.example".into());
            let facts = Tls { version, cipher: cipher.into(), server_name, client: None };
            assert_eq!(wire.channel.facts(), Some(facts));
            assert!(!wire.channel.is_handshaking() && !wire.channel.is_resumed());
        }
    }

    #[test]
    fn the_server_s_order_decides_the_suite() {
        let acceptor = acceptor();
        // The clients' own order begins with AES-256.
        type Offered = fn(rustls::CipherSuite) -> bool;
        let cases: [(Offered, &str); 2] = [
            (|_| true, "TLS_AES_128_GCM_SHA256"),
            (|suite| suite != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256, "TLS_AES_256_GCM_SHA384"),
        ];
        for (suites, chosen) in cases {
            let offer = Offer { suites, ..Offer::versions(ONLY_13) };
            let wire = Wire::connect(&acceptor, &offer.client(), "mx.example").unwrap();
            assert_eq!(&*wire.channel.facts().unwrap().cipher, chosen);
        }
    }

    #[test]
    fn the_post_quantum_group_is_spoken_and_the_older_ones_too() {
        let acceptor = acceptor();
        // Which group it is the client's order decides: rustls asks for no other than the first that both
        // have, and clients that know the hybrid one put it first.
        let cases: [(&[&'static dyn rustls::crypto::SupportedKxGroup], NamedGroup); 5] = [
            (&aws_lc_rs::default_provider().kx_groups, NamedGroup::X25519MLKEM768),
            (&[kx_group::X25519MLKEM768], NamedGroup::X25519MLKEM768),
            (&[kx_group::X25519, kx_group::SECP256R1], NamedGroup::X25519),
            (&[kx_group::MLKEM1024, kx_group::SECP256R1], NamedGroup::secp256r1),
            (&[kx_group::SECP384R1], NamedGroup::secp384r1),
        ];
        for (groups, group) in cases {
            let client = Offer { groups: groups.to_vec(), ..Offer::default() }.client();
            let wire = Wire::connect(&acceptor, &client, "mx.example").unwrap();
            assert!(!wire.channel.is_handshaking(), "{group:?}");
            let agreed = wire.channel.connection.negotiated_key_exchange_group().unwrap();
            assert_eq!(agreed.name(), group);
        }
    }

    #[test]
    fn a_client_of_other_protocols_is_refused() {
        let acceptor = acceptor();
        for versions in [ONLY_12, ONLY_13] {
            for (alpn, is_refused) in [
                (&["h2", "http/1.1"][..], true),
                (&["http/1.1"], true),
                (&["SMTP"], true),
                (&["h2", "smtp"], false),
                (&["smtp"], false),
                (&[], false),
            ] {
                let client = Offer { alpn, ..Offer::versions(versions) }.client();
                let mut wire = Wire::new(&acceptor, &client, "mx.example");
                let outcome = wire.exchange();
                match is_refused {
                    true => {
                        assert_eq!(outcome, Err(TlsError::NoAlpn), "{alpn:?}");
                        let alert = AlertDescription::NoApplicationProtocol;
                        assert_eq!(wire.refusal, Some(Error::AlertReceived(alert)));
                    }
                    false => {
                        assert_eq!(outcome, Ok(()), "{alpn:?}");
                        assert!(!wire.channel.is_handshaking());
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_tls_is_told_from_what_fails_in_it() {
        let acceptor = acceptor();
        for text in
            [&b"EHLO client.example\r\n"[..], b"GET / HTTP/1.1\r\nHost: mx\r\n\r\n", b"\x80\x2e\x01\x03\x01"]
        {
            let mut channel = acceptor.accept();
            let (mut plaintext, mut out) = (Vec::new(), Vec::new());
            let outcome = channel.handle_ciphertext(text, &mut plaintext, &mut out);
            assert_eq!(outcome, Err(TlsError::NotTls));
            assert_eq!((plaintext.len(), out.len(), out[0]), (0, 7, 21), "no more than an alert");
            out.clear();
            let outcome = channel.handle_ciphertext(b"QUIT\r\n", &mut plaintext, &mut out);
            assert_eq!(outcome, Err(TlsError::Ended));
            channel.encrypt(b"220\r\n", &mut out);
            channel.close(&mut out);
            assert_eq!((plaintext.len(), out.len()), (0, 0));
            assert_eq!(channel.facts(), None);
        }
        let mut channel = acceptor.accept();
        let hello = [22, 3, 1, 0, 5, 1, 0, 0, 1, 0xff];
        let outcome = channel.handle_ciphertext(&hello, &mut Vec::new(), &mut Vec::new());
        assert!(matches!(outcome, Err(TlsError::Handshake(_))), "{outcome:?}");
    }

    #[test]
    fn after_close_notify_nothing_is_read() {
        let acceptor = acceptor();
        for versions in [ONLY_12, ONLY_13] {
            let client = Offer::versions(versions).client();
            for step in [1, 7, 100, 10_000] {
                let mut wire = Wire::connect(&acceptor, &client, "mx.example").unwrap();
                let mut octets = wire.say(b"BDAT 1000\r\n0123456789");
                wire.client.send_close_notify();
                octets.extend(wire.take_from_client());
                // Cleartext, and a record that the client encrypts in spite of its end.
                octets.extend(b"NOOP\r\n");
                octets.extend(wire.say(b"QUIT\r\n"));
                octets.extend(b"\r\nMAIL FROM:<a@b>\r\n");
                for piece in octets.chunks(step) {
                    wire.give_channel(piece).unwrap();
                }
                assert_eq!(wire.plaintext, b"BDAT 1000\r\n0123456789");
                assert!(wire.channel.is_ended());
                wire.give_channel(b"NOOP\r\n").unwrap();
                assert_eq!(wire.plaintext.len(), 21);
            }
        }
    }

    #[test]
    fn cleartext_inside_tls_is_an_error_and_nothing_else() {
        let acceptor = acceptor();
        let mut wire = Wire::connect(&acceptor, &Offer::default().client(), "mx.example").unwrap();
        let outcome = wire.give_channel(b"MAIL FROM:<a@b>\r\n");
        assert!(matches!(outcome, Err(TlsError::Broken(_))), "{outcome:?}");
        assert_eq!(wire.plaintext, b"");
        assert!(matches!(wire.refusal, Some(Error::AlertReceived(_))));
        assert_eq!(wire.give_channel(b"NOOP\r\n"), Err(TlsError::Ended));
        assert_eq!(wire.plaintext, b"");
    }

    #[test]
    fn an_altered_record_is_an_error_and_what_came_before_is_kept() {
        let acceptor = acceptor();
        for versions in [ONLY_12, ONLY_13] {
            let client = Offer::versions(versions).client();
            let mut wire = Wire::connect(&acceptor, &client, "mx.example").unwrap();
            let mut octets = wire.say(b"NOOP\r\n");
            let at = octets.len() + 20;
            octets.extend(wire.say(b"RCPT TO:<a@b>\r\n"));
            octets[at] ^= 1;
            let outcome = wire.give_channel(&octets);
            assert!(matches!(outcome, Err(TlsError::Broken(_))), "{outcome:?}");
            assert_eq!(wire.plaintext, b"NOOP\r\n");
        }
    }

    #[test]
    fn texts_of_errors_are_short_and_printable() {
        let error = Error::General(format!("a\r\nb\u{7}\u{e4}{}", "x".repeat(1000)));
        let text = text(&error);
        assert!(text.len() <= TEXT_SIZE_MAX && text.bytes().all(|c| (b' '..=b'~').contains(&c)), "{text}");
    }

    /// Makes records as a client could that is not bound to any rule, under the keys of a real handshake.
    struct Forger {
        key: LessSafeKey,
        iv: [u8; 12],
        sequence: u64,
    }

    impl Forger {
        /// A channel after its handshake (TLS 1.3), and the client's keys.
        fn new() -> (Channel, Self) {
            let offer = Offer {
                suites: |suite| suite == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256,
                ..Offer::versions(ONLY_13)
            };
            let mut client = Arc::unwrap_or_clone(offer.client());
            client.enable_secret_extraction = true;
            let wire = Wire::connect(&acceptor(), &Arc::new(client), "mx.example").unwrap();
            let (sequence, secrets) = wire.client.dangerous_extract_secrets().unwrap().tx;
            let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else { panic!("another suite") };
            let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key.as_ref()).unwrap());
            (wire.channel, Forger { key, iv: iv.as_ref().try_into().unwrap(), sequence })
        }

        /// A record (RFC 8446 §5.2): `inner` is the content, its type, and padding.
        fn record(&mut self, inner: &[u8]) -> Vec<u8> {
            let mut nonce = self.iv;
            for (octet, counter) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
                *octet ^= counter;
            }
            self.sequence += 1;
            let size = (inner.len() + 16) as u16;
            let header = [23, 3, 3, (size >> 8) as u8, size as u8];
            let mut sealed = inner.to_vec();
            let nonce = Nonce::assume_unique_for_key(nonce);
            self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed).unwrap();
            [&header[..], &sealed].concat()
        }
    }

    #[test]
    fn floods_of_records_end_the_channel_or_are_taken_without_a_word() {
        const ALERT: u8 = 21;
        const HANDSHAKE: u8 = 22;
        const DATA: u8 = 23;
        let padded = [&[DATA][..], &[0; 16_000]].concat();
        let unending = [&[4, 0xff, 0xff, 0xff][..], &[7; 10_000], &[HANDSHAKE]].concat();
        let large = [&[4, 0, 0xff, 0xff][..], &[7; 16_000], &[HANDSHAKE]].concat();
        // What is sent again and again, and how many are borne at most. None: for ever.
        let cases: [(&str, &[u8], Option<usize>); 11] = [
            ("one octet of data", &[b'x', DATA], None),
            ("empty records", &[DATA], Some(32)),
            ("empty records, padded", &padded, Some(32)),
            ("nothing but padding", &[0; 100], Some(0)),
            ("user_canceled", &[1, 90, ALERT], Some(4)),
            ("another warning", &[1, 100, ALERT], Some(0)),
            ("a new ClientHello", &[1, 0, 0, 1, 0, HANDSHAKE], Some(0)),
            ("a key update, and it is not the last message", &[24, 0, 0, 1, 0, 24, 0, HANDSHAKE], Some(0)),
            ("the beginning of a message that is too long", &unending, Some(0)),
            ("a long message in pieces", &large, Some(4)),
            ("one octet of a message", &[4, HANDSHAKE], Some(70_000)),
        ];
        for (what, inner, borne_max) in cases {
            let (mut channel, mut forger) = Forger::new();
            let (mut plaintext, mut out) = (Vec::new(), Vec::new());
            let outcome = (0..100_000).try_for_each(|i| {
                let record = forger.record(inner);
                channel.handle_ciphertext(&record, &mut plaintext, &mut out).map_err(|error| (i, error))
            });
            assert!(out.len() <= 64, "{what}: {} octets", out.len());
            match borne_max {
                None => assert_eq!((outcome, plaintext.len()), (Ok(()), 100_000), "{what}"),
                Some(max) => {
                    let (borne, error) = outcome.expect_err(what);
                    assert!(borne <= max && matches!(error, TlsError::Broken(_)), "{what}: {borne}, {error}");
                    assert_eq!(plaintext, b"", "{what}");
                }
            }
        }
    }

    #[test]
    fn a_flood_of_key_updates_is_answered_once_a_step_at_most() {
        let acceptor = acceptor();
        let client = Offer::versions(ONLY_13).client();
        let mut wire = Wire::connect(&acceptor, &client, "mx.example").unwrap();
        let mut octets = Vec::new();
        for _ in 0..10_000 {
            wire.client.refresh_traffic_keys().unwrap();
            octets.extend(wire.say(b"x"));
        }
        let mut replies = 0;
        for piece in octets.chunks(64 << 10) {
            let mut out = Vec::new();
            wire.channel.handle_ciphertext(piece, &mut wire.plaintext, &mut out).unwrap();
            assert!(out.len() <= 64, "{} octets", out.len());
            // One answer is owed, and goes with what is sent next.
            wire.channel.encrypt(b"250\r\n", &mut out);
            assert!(out.len() <= 128, "{} octets", out.len());
            wire.give_client(&out);
            replies += 1;
        }
        assert_eq!(wire.plaintext.len(), 10_000);
        assert_eq!((wire.received.len(), wire.refusal), (5 * replies, None));

        let mut wire = Wire::connect(&acceptor, &client, "mx.example").unwrap();
        for _ in 0..100 {
            wire.client.refresh_traffic_keys().unwrap();
        }
        let octets = wire.take_from_client();
        assert!(matches!(wire.give_channel(&octets), Err(TlsError::Broken(_))), "updates without data");
    }

    #[test]
    fn a_hello_may_come_in_many_records_and_be_large_within_bounds() {
        let acceptor = acceptor();
        let client = Offer::default().client();
        for size in [1, 2, 100, 16_000] {
            let mut wire = Wire::new(&acceptor, &client, "mx.example");
            let hello = wire.take_from_client();
            let records: Vec<u8> = hello[5..]
                .chunks(size)
                .flat_map(|piece| {
                    [&[22, 3, 1, (piece.len() >> 8) as u8, piece.len() as u8][..], piece].concat()
                })
                .collect();
            for piece in records.chunks(7) {
                wire.give_channel(piece).unwrap();
            }
            wire.exchange().unwrap();
            assert!(!wire.channel.is_handshaking(), "records of {size}");
        }
        // A hello of almost 64 KiB is read, and is none; of more it is not waited for.
        for (claimed, is_read_whole) in [(0xf800_u32, true), (0x1_0000, false), (0xff_ffff, false)] {
            let mut channel = acceptor.accept();
            let message = [&[1][..], &claimed.to_be_bytes()[1..], &vec![0; 0x1_0000]].concat();
            let (mut taken, mut out) = (0, Vec::new());
            let outcome = message.chunks(500).try_for_each(|piece| {
                let record = [&[22, 3, 1, (piece.len() >> 8) as u8, piece.len() as u8][..], piece].concat();
                taken += piece.len();
                channel.handle_ciphertext(&record, &mut Vec::new(), &mut out)
            });
            assert!(matches!(outcome, Err(TlsError::Handshake(_))), "{outcome:?}");
            assert_eq!(taken > 0xf000, is_read_whole, "{claimed:x}: {taken}");
            assert!(out.len() <= 7);
        }
    }

    #[test]
    fn warnings_before_the_handshake_have_an_end() {
        let acceptor = acceptor();
        let mut channel = acceptor.accept();
        let mut out = Vec::new();
        let alert = [21, 3, 3, 0, 2, 1, 90];
        let borne = (0..100)
            .take_while(|_| channel.handle_ciphertext(&alert, &mut Vec::new(), &mut out).is_ok())
            .count();
        assert!(borne <= 4 && out.len() <= 7, "{borne}, {}", out.len());
    }

    #[test]
    fn closing_before_the_handshake_ends_it() {
        let acceptor = acceptor();
        let mut wire = Wire::new(&acceptor, &Offer::default().client(), "mx.example");
        let hello = wire.take_from_client();
        let mut out = Vec::new();
        wire.channel.close(&mut out);
        wire.channel.close(&mut out);
        assert_eq!(out, [21, 3, 3, 0, 2, 1, 0]);
        wire.channel.handle_ciphertext(&hello, &mut wire.plaintext, &mut out).unwrap();
        assert_eq!(out.len(), 7);
        assert!(wire.channel.is_ended() && wire.channel.facts().is_none());
    }
}
