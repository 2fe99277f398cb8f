//! What a TLS handshake costs the server, beside a connection without one and beside what the primitives in it cost.
//!
//! Starts the release binary pinned to a core, with a listener in clear and one with implicit TLS, and has clients on another
//! core connect, shake hands, read the 220, say QUIT and read to the end, over and over. On two cores it is the clients that
//! are the limit, since their half of the work is as large: so what counts is the server's CPU time for each connection.
//! The primitives are measured in the same run, on the server's core while the server is idle, as rustls calls them;
//! and `openssl speed` beside them. Every figure is the median of the rounds.
//!
//! ```text
//! cargo bench --bench handshakes                        everything
//! cargo bench --bench handshakes -- --seconds 1 --rounds 1 --keys ecdsa
//! ```

#[path = "load/mod.rs"]
mod load;
#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use core_affinity::CoreId;
use incoming::mail::TlsVersion;
use incoming::tls::{Acceptor, CertificateFiles, ClientCertificates, Settings};
use rustix::time::{ClockId, clock_gettime};
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{ActiveKeyExchange, SupportedKxGroup};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, SignatureScheme, StreamOwned, SupportedProtocolVersion,
};
use socket2::{Domain, Protocol, Socket, Type};

use load::target::{self, FileSystem, Keeping, Options, Target};
use load::tls::{self, Key};
use load::usage;
use support::certificates::Issued;
use support::tools;

/// Clients at a time: enough that the server always has something to do.
const CLIENTS: u8 = 32;

/// How long any reply may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// CPU time for which a primitive is repeated.
const PRIMITIVE_TIME: Duration = Duration::from_millis(200);

/// Handshakes without a socket, of which the median counts.
const IN_MEMORY: usize = 400;

#[derive(Parser)]
#[command(name = "handshakes")]
struct Arguments {
    /// Counted time of a row in a round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Time before it.
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// How often each row is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Keys of the server's certificate.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "ecdsa,rsa")]
    keys: Vec<Key>,
    /// The core of the server.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of the clients.
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A kind of handshake.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    version: &'static SupportedProtocolVersion,
    group: &'static dyn SupportedKxGroup,
    is_resumed: bool,
}

const KINDS: [Kind; 6] = [
    Kind {
        name: "full, TLS 1.3, X25519MLKEM768",
        version: &TLS13,
        group: kx_group::X25519MLKEM768,
        is_resumed: false,
    },
    Kind { name: "full, TLS 1.3, X25519", version: &TLS13, group: kx_group::X25519, is_resumed: false },
    Kind { name: "full, TLS 1.2, X25519", version: &TLS12, group: kx_group::X25519, is_resumed: false },
    Kind {
        name: "resumed, TLS 1.3, X25519MLKEM768",
        version: &TLS13,
        group: kx_group::X25519MLKEM768,
        is_resumed: true,
    },
    Kind { name: "resumed, TLS 1.3, X25519", version: &TLS13, group: kx_group::X25519, is_resumed: true },
    Kind { name: "resumed, TLS 1.2", version: &TLS12, group: kx_group::X25519, is_resumed: true },
];

impl Kind {
    fn has_key_exchange(&self) -> bool {
        // Resumed, TLS 1.2 goes on with the secret it had; TLS 1.3 makes another (psk_dhe_ke).
        !self.is_resumed || self.version.version == TLS13.version
    }

    fn client(&self, issued: &Issued) -> Arc<ClientConfig> {
        tls::client(issued, self.version, self.group, self.is_resumed)
    }
}

/// What was measured of a row in a round.
#[derive(Clone, Copy, Default)]
struct Figures {
    per_second: f64,
    /// The server's, of a connection.
    cpu: Duration,
    /// Our TLS without a socket: the server's half of the same connection.
    in_memory: Duration,
}

/// What the primitives cost, in a round.
#[derive(Clone, Default)]
struct Primitives {
    sign: Vec<(Key, Duration)>,
    exchange: Vec<(&'static str, Duration)>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    println!("`{}`: {}\n", target::command_line("handshakes"), target::machine());
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> io::Result<()> {
    let mut base = Vec::new();
    let mut rows = vec![Vec::new(); arguments.keys.len() * KINDS.len()];
    let mut primitives = Vec::new();
    let certificates: Vec<(Key, Issued)> = arguments.keys.iter().map(|&key| (key, key.issue())).collect();
    for _ in 0..arguments.rounds {
        primitives.push(on_core(arguments.server_core, || self::primitives(&certificates)));
        for (n, (_, issued)) in certificates.iter().enumerate() {
            let mut target = start(arguments, issued);
            let [clear, secure] = target.addresses[..] else {
                return Err(io::Error::other("two listeners were asked for"));
            };
            let pid = target.pid.expect("it was started");
            base.push(connections(arguments, pid, clear, None)?);
            for (m, kind) in KINDS.iter().enumerate() {
                let mut figures = connections(arguments, pid, secure, Some((kind, issued)))?;
                figures.in_memory = on_core(arguments.server_core, || in_memory(kind, issued))?;
                rows[n * KINDS.len() + m].push(figures);
            }
            target.stop();
        }
    }
    let primitives = middle_of_all(&primitives);
    let base = middle(&base);
    println!(
        "| certificate | handshake | connections/s | server CPU µs each | without the connection | TLS in memory µs | primitives µs | of TLS | of all |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    println!(
        "| – | none: plaintext | {:.0} | {:.1} | – | – | – | – | – |",
        base.per_second,
        micros(base.cpu)
    );
    for ((key, kind), figures) in
        arguments.keys.iter().flat_map(|key| KINDS.iter().map(move |kind| (key, kind))).zip(&rows)
    {
        let figures = middle(figures);
        let tls = figures.cpu.saturating_sub(base.cpu);
        let bound = primitives.of(*key, kind);
        let percent = |whole: Duration| match bound.is_zero() {
            true => "–".to_owned(),
            false => format!("{:.0} %", 100.0 * bound.as_secs_f64() / whole.as_secs_f64()),
        };
        println!(
            "| {key:?} | {} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {} |",
            kind.name,
            figures.per_second,
            micros(figures.cpu),
            micros(tls),
            micros(figures.in_memory),
            micros(bound),
            percent(tls),
            percent(figures.cpu)
        );
    }
    println!(
        "\n| primitive | of aws-lc, as rustls calls it, per CPU-s | µs | `openssl speed`, per CPU-s | µs |"
    );
    println!("|---|---|---|---|---|");
    let openssl = openssl(arguments)?;
    for (key, cost) in &primitives.sign {
        let (name, theirs) = match key {
            Key::Ecdsa => ("sign, ECDSA P-256", openssl.ecdsa),
            Key::Rsa => ("sign, RSA 2048", openssl.rsa),
        };
        println!(
            "| {name} | {:.0} | {:.1} | {theirs:.0} | {:.1} |",
            rate(*cost),
            micros(*cost),
            1e6 / theirs
        );
    }
    for (name, cost) in &primitives.exchange {
        let theirs = match *name {
            "X25519" => format!("{:.0} (derive alone) | {:.1}", openssl.x25519, 1e6 / openssl.x25519),
            _ => "not in it | –".to_owned(),
        };
        println!("| generate and agree, {name} | {:.0} | {:.1} | {theirs} |", rate(*cost), micros(*cost));
    }
    Ok(())
}

fn start(arguments: &Arguments, issued: &Issued) -> Target {
    let options = Options {
        file_system: FileSystem::Root,
        keeping: Keeping::Memory,
        cores: arguments.server_core.to_string(),
        settings: Vec::new(),
    };
    Target::start_with(&options, |setup| {
        setup.listeners(&["tls = \"disabled\"", "tls = \"implicit\""]).certificates(&[issued]);
    })
}

/// Connections one after the other from [`CLIENTS`] threads.
fn connections(
    arguments: &Arguments,
    pid: u32,
    address: SocketAddr,
    tls: Option<(&Kind, &Issued)>,
) -> io::Result<Figures> {
    let (count, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let (count, is_over) = (&count, &is_over);
    thread::scope(|scope| {
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|n| {
                // Each has its own tickets: one of TLS 1.3 is used once.
                let tls = tls.map(|(kind, issued)| (kind, kind.client(issued)));
                scope.spawn(move || {
                    core_affinity::set_for_current(CoreId { id: arguments.load_core });
                    let mut is_first = true;
                    while !is_over.load(Ordering::Relaxed) {
                        let kind = connection(address, n, tls.as_ref().map(|(_, config)| config))?;
                        let expected = match &tls {
                            Some((kind, _)) if kind.is_resumed && !is_first => Some(HandshakeKind::Resumed),
                            Some(_) => Some(HandshakeKind::Full),
                            None => None,
                        };
                        if kind != expected {
                            is_over.store(true, Ordering::Relaxed);
                            return Err(io::Error::other(format!("the handshake was {kind:?}")));
                        }
                        is_first = false;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        thread::sleep(Duration::from_secs_f64(arguments.warm_up));
        let (began, cpu, counted) = (Instant::now(), usage::cpu_time(pid)?, count.load(Ordering::Relaxed));
        thread::sleep(Duration::from_secs_f64(arguments.seconds));
        let (elapsed, cpu, counted) =
            (began.elapsed(), usage::cpu_time(pid)? - cpu, count.load(Ordering::Relaxed) - counted);
        is_over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no client panics")?;
        }
        Ok(Figures {
            per_second: counted as f64 / elapsed.as_secs_f64(),
            cpu: cpu.div_f64(counted.max(1) as f64),
            in_memory: Duration::ZERO,
        })
    })
}

/// Connects, reads the 220, says QUIT, and reads to the end.
fn connection(
    address: SocketAddr,
    source: u8,
    tls: Option<&Arc<ClientConfig>>,
) -> io::Result<Option<HandshakeKind>> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(REPLY_TIMEOUT))?;
    // Ports of one address alone would not do.
    socket.bind(&SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 1, 0, source)), 0).into())?;
    socket.connect(&address.into())?;
    let mut socket = TcpStream::from(socket);
    let Some(config) = tls else {
        greet_and_quit(&mut socket)?;
        return Ok(None);
    };
    let connection = ClientConnection::new(config.clone(), tls::name()).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    greet_and_quit(&mut stream)?;
    Ok(stream.conn.handshake_kind())
}

fn greet_and_quit(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut octets = [0; 4096];
    let mut size = 0;
    while !octets[..size].ends_with(b"\r\n") {
        match stream.read(&mut octets[size..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => size += more,
        }
    }
    if !octets.starts_with(b"220") {
        return Err(io::Error::other(String::from_utf8_lossy(&octets[..size]).into_owned()));
    }
    stream.write_all(b"QUIT\r\n")?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    match rest.starts_with(b"221") {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&rest).into_owned())),
    }
}

/// CPU time of the server's half of the connection, with what the gateway has for TLS and no socket: the median.
fn in_memory(kind: &Kind, issued: &Issued) -> io::Result<Duration> {
    let folder = tempfile::tempdir()?;
    let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    std::fs::write(&chain, &issued.chain)?;
    std::fs::write(&key, &issued.key)?;
    let settings = Settings {
        certificates: vec![CertificateFiles { chain, key }],
        min_version: TlsVersion::Tls12,
        client_certificates: ClientCertificates::Ignore,
    };
    let acceptor = Acceptor::load(settings, SystemTime::now()).map_err(io::Error::other)?;
    let config = kind.client(issued);
    let mut costs = Vec::with_capacity(IN_MEMORY);
    for _ in 0..IN_MEMORY {
        let mut client = ClientConnection::new(config.clone(), tls::name()).map_err(io::Error::other)?;
        let mut cost = Duration::ZERO;
        let mut begun = cpu_time();
        let mut channel = acceptor.accept();
        cost += cpu_time() - begun;
        let (mut is_greeted, mut plaintext) = (false, Vec::new());
        while !channel.is_ended() {
            let mut octets = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut octets)?;
            }
            let mut out = Vec::new();
            begun = cpu_time();
            channel.handle_ciphertext(&octets, &mut plaintext, &mut out).map_err(io::Error::other)?;
            if !channel.is_handshaking() && !is_greeted {
                is_greeted = true;
                channel.encrypt(b"220 mx.test ESMTP\r\n", &mut out);
            }
            if plaintext.ends_with(b"\r\n") {
                channel.encrypt(b"221 2.0.0 Bye\r\n", &mut out);
                channel.close(&mut out);
            }
            cost += cpu_time() - begun;
            let mut out = &out[..];
            while !out.is_empty() {
                client.read_tls(&mut out)?;
                client.process_new_packets().map_err(io::Error::other)?;
            }
            if is_greeted && plaintext.is_empty() {
                client.writer().write_all(b"QUIT\r\n")?;
            }
        }
        begun = cpu_time();
        drop(channel);
        costs.push(cost + (cpu_time() - begun));
    }
    Ok(median(costs))
}

/// What the server's half of a handshake is made of, as rustls calls it.
fn primitives(certificates: &[(Key, Issued)]) -> Primitives {
    const SCHEMES: [SignatureScheme; 2] =
        [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA512];
    let provider = aws_lc_rs::default_provider();
    let sign = certificates.iter().map(|(kind, issued)| {
        let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("a key");
        let key = provider.key_provider.load_private_key(key).expect("a key of a known kind");
        let cost = cost(|| {
            let signer = key.choose_scheme(&SCHEMES).expect("a scheme");
            black_box(signer.sign(&[7; 130]).expect("a signature"));
        });
        (*kind, cost)
    });
    let exchange = [("X25519", kx_group::X25519), ("X25519MLKEM768", kx_group::X25519MLKEM768)];
    let exchange = exchange.map(|(name, group)| {
        let client: Box<dyn ActiveKeyExchange> = group.start().expect("a key");
        let cost = cost(|| {
            black_box(group.start_and_complete(client.pub_key()).expect("a secret"));
        });
        (name, cost)
    });
    Primitives { sign: sign.collect(), exchange: exchange.to_vec() }
}

impl Primitives {
    /// What a handshake of this kind cannot do without.
    fn of(&self, key: Key, kind: &Kind) -> Duration {
        let sign = self.sign.iter().find(|(k, _)| *k == key).map_or(Duration::ZERO, |(_, cost)| *cost);
        let is_hybrid = kind.group.name() == kx_group::X25519MLKEM768.name();
        let exchange = self.exchange[usize::from(is_hybrid)].1;
        let sign = if kind.is_resumed { Duration::ZERO } else { sign };
        sign + if kind.has_key_exchange() { exchange } else { Duration::ZERO }
    }
}

/// Operations per second, as `openssl speed` has them.
struct Openssl {
    rsa: f64,
    ecdsa: f64,
    x25519: f64,
}

fn openssl(arguments: &Arguments) -> io::Result<Openssl> {
    let core = arguments.server_core.to_string();
    let words =
        ["-c", &core, "openssl", "speed", "-seconds", "1", "-mr", "rsa2048", "ecdsap256", "ecdhx25519"];
    let text = String::from_utf8_lossy(&tools::run("taskset", words).stdout).into_owned();
    // Lines as `+F2:2:2048:1717.0:60000.0`: operations per second, those of signing first.
    let field = |prefix: &str, number: usize| {
        let line = text.lines().find(|line| line.starts_with(prefix));
        let found = line.and_then(|line| line.split(':').nth(number)?.parse().ok());
        found.ok_or_else(|| io::Error::other(format!("no {prefix} in what openssl says:\n{text}")))
    };
    Ok(Openssl { rsa: field("+F2:", 3)?, ecdsa: field("+F4:", 3)?, x25519: field("+F5:", 3)? })
}

/// CPU time of one call.
fn cost(mut call: impl FnMut()) -> Duration {
    let begun = cpu_time();
    let mut count = 0;
    loop {
        for _ in 0..16 {
            call();
        }
        count += 16;
        let spent = cpu_time() - begun;
        if spent >= PRIMITIVE_TIME {
            return spent / count;
        }
    }
}

/// Of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// On a thread of its own, pinned to a core.
fn on_core<T: Send>(core: usize, call: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            core_affinity::set_for_current(CoreId { id: core });
            call()
        });
        thread.join().expect("no panic")
    })
}

fn median(mut of: Vec<Duration>) -> Duration {
    of.sort_unstable();
    of[of.len() / 2]
}

/// The round with the median CPU time.
fn middle(rounds: &[Figures]) -> Figures {
    let mut rounds = rounds.to_vec();
    rounds.sort_unstable_by_key(|figures| figures.cpu);
    let in_memory = median(rounds.iter().map(|figures| figures.in_memory).collect());
    Figures { in_memory, ..rounds[rounds.len() / 2] }
}

fn middle_of_all(rounds: &[Primitives]) -> Primitives {
    let mut all = rounds[0].clone();
    for (n, (_, cost)) in all.sign.iter_mut().enumerate() {
        *cost = median(rounds.iter().map(|round| round.sign[n].1).collect());
    }
    for (n, (_, cost)) in all.exchange.iter_mut().enumerate() {
        *cost = median(rounds.iter().map(|round| round.exchange[n].1).collect());
    }
    all
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn rate(cost: Duration) -> f64 {
    1.0 / cost.as_secs_f64()
}
