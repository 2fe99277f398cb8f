//! What a TLS channel holds, with everything: rustls' memory and that of the C library under it.
//!
//! A test of its own, in its own process: it asks malloc how much is in use, and others would be counted too.

use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;

use incoming::mail::TlsVersion;
use incoming::tls::{Acceptor, CertificateFiles, Channel, ClientCertificates, Settings};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

const COUNT: usize = 500;
/// The whole session may have 16 KiB; the rest of it is far below half.
const IDLE_SIZE_MAX: usize = 9 << 10;
/// An incomplete message of a handshake, of which rustls allows 64 KiB, and what it grows by.
const HELD_SIZE_MAX: usize = 160 << 10;

/// Octets in use, as malloc counts them.
fn in_use() -> usize {
    // SAFETY: it has no preconditions.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

struct Peer {
    acceptor: Acceptor,
    certificate: CertificateDer<'static>,
}

impl Peer {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let issued = rcgen::generate_simple_self_signed(["mx.example".to_owned()]).expect("a certificate");
        let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
        std::fs::write(&chain, issued.cert.pem()).expect("written");
        std::fs::write(&key, issued.signing_key.serialize_pem()).expect("written");
        let settings = Settings {
            certificates: vec![CertificateFiles { chain, key }],
            min_version: TlsVersion::Tls12,
            client_certificates: ClientCertificates::Ignore,
        };
        let acceptor = Acceptor::load(settings, SystemTime::now()).expect("a certificate and its key");
        Peer { acceptor, certificate: issued.cert.der().clone() }
    }

    fn client(&self, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a certificate");
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    }

    /// A channel after its handshake and a few commands; the client is gone.
    fn idle(&self, client: &Arc<ClientConfig>) -> Channel {
        let name = ServerName::try_from("mx.example").expect("a name");
        let mut client = ClientConnection::new(client.clone(), name).expect("a client");
        let mut channel = self.acceptor.accept();
        let (mut plaintext, mut out) = (Vec::new(), Vec::new());
        for round in 0..8 {
            if round >= 4 {
                client.writer().write_all(&[b'x'; 5000]).expect("taken");
            }
            let mut octets = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut octets).expect("a Vec takes everything");
            }
            channel.handle_ciphertext(&octets, &mut plaintext, &mut out).expect("an honest client");
            if round >= 4 {
                channel.encrypt(&[b'2'; 40_000], &mut out);
            }
            let mut rest = &out[..];
            while !rest.is_empty() {
                client.read_tls(&mut rest).expect("read");
                client.process_new_packets().expect("an honest server");
                let _ = std::io::copy(&mut client.reader(), &mut std::io::sink());
            }
            out.clear();
        }
        assert_eq!((channel.is_handshaking(), plaintext.len()), (false, 4 * 5000));
        channel
    }
}

/// What each of many channels holds.
fn held(mut make: impl FnMut() -> Channel) -> usize {
    // The first ones bring what is made once.
    drop((0..20).map(|_| make()).collect::<Vec<_>>());
    let mut kept = Vec::with_capacity(COUNT);
    let before = in_use();
    kept.extend((0..COUNT).map(|_| make()));
    (in_use() - before) / COUNT
}

#[test]
fn what_a_channel_holds_is_small_when_idle_and_bounded_when_flooded() {
    let peer = Peer::new();
    for version in [&TLS12, &TLS13] {
        let client = peer.client(version);
        let size = held(|| peer.idle(&client));
        println!("idle, {:?}: {size} octets", version.version);
        assert!(size <= IDLE_SIZE_MAX, "{size} octets");
    }
    let size = held(|| peer.acceptor.accept());
    println!("before the handshake: {size} octets");
    assert!(size <= IDLE_SIZE_MAX, "{size} octets");
    // A hello that claims 64 KiB, less a few: in one octet to a record, in many, in one piece.
    let hello = [&[1, 0, 0xff, 0xf0][..], &[0; 0xffe0]].concat();
    for record_size in [1, 50, 1000, 16_000] {
        let records: Vec<u8> = hello
            .chunks(record_size)
            .flat_map(|piece| [&[22, 3, 1, (piece.len() >> 8) as u8, piece.len() as u8][..], piece].concat())
            .collect();
        let size = held(|| {
            let mut channel = peer.acceptor.accept();
            let mut out = Vec::new();
            for piece in records.chunks(64 << 10) {
                let _ = channel.handle_ciphertext(piece, &mut Vec::new(), &mut out);
            }
            assert!(out.len() <= 64);
            channel
        });
        println!("a long hello in records of {record_size}: {size} octets");
        assert!(size <= HELD_SIZE_MAX, "{size} octets");
    }
}
