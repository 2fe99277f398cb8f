//! What sessions cost in memory: thousands that are idle, in clear and in TLS, and a hundred large uploads at once.
//!
//! The server has its core, its folder and its limits to itself; its resident memory is read before and while the
//! sessions stand. Both figures must not depend on how many octets a message has.
//!
//! ```text
//! cargo bench --bench memory                       all, as the goals are written
//! cargo bench --bench memory -- --sessions 1000 --tls-sessions 1000 --uploads 10
//! ```

#[path = "load/mod.rs"]
mod load;
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use clap::Parser;
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::version::TLS13;
use rustls::{ClientConnection, StreamOwned};

use load::target::{self, FileSystem, Keeping, Options, Target};
use load::tls::{self, Key};
use load::usage;
use socket2::{Domain, Protocol, Socket, Type};
use support::tools;

/// Idle sessions share these source addresses, so that a bound per address is not what is measured.
const SOURCES: usize = 64;

/// How long any reply may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// What an upload writes before the next one has its turn.
const PIECE_SIZE: usize = 16 << 10;

/// Between two turns in which no upload could write.
const PAUSE: Duration = Duration::from_millis(1);

/// Descriptors of this process that are not sessions.
const DESCRIPTORS_RESERVED: usize = 64;

const EHLO: &[u8] = b"EHLO load.test\r\n";

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * 1024.0;

#[derive(Parser)]
#[command(name = "memory")]
struct Arguments {
    /// Idle sessions after EHLO; 0 leaves them out.
    #[arg(long, default_value_t = 19_000)]
    sessions: usize,
    /// Idle sessions after EHLO within TLS 1.3; 0 leaves them out.
    #[arg(long, default_value_t = 5_000)]
    tls_sessions: usize,
    /// Concurrent uploads; 0 leaves them out.
    #[arg(long, default_value_t = 100)]
    uploads: usize,
    /// Octets of content of an upload.
    #[arg(long, default_value_t = 10 << 20)]
    upload_size: usize,
    /// Where the spool is.
    #[arg(long, value_enum, default_value = "root")]
    file_system: FileSystem,
    /// The core of the server.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// A further setting of the server, as `spool.memory_max=8388608`.
    #[arg(long = "set", value_parser = target::setting)]
    settings: Vec<(String, String)>,
    /// Measures the server that listens here instead of starting one.
    #[arg(long, requires = "target_pid")]
    target: Option<SocketAddr>,
    /// Its process id.
    #[arg(long)]
    target_pid: Option<u32>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    println!("`{}`: {}\n", target::command_line("memory"), target::machine());
    println!("| what | idle MiB | with it MiB | difference MiB | each KiB |");
    println!("|---|---|---|---|---|");
    let rows = [
        ("idle sessions", arguments.sessions),
        ("idle TLS sessions", if arguments.target.is_some() { 0 } else { arguments.tls_sessions }),
        ("uploads", arguments.uploads),
    ];
    for (what, count) in rows.into_iter().filter(|(_, count)| *count > 0) {
        let measured = match what {
            "uploads" => uploads(&arguments),
            "idle TLS sessions" => idle_tls_sessions(&arguments),
            _ => idle_sessions(&arguments),
        };
        match measured {
            Ok((before, with)) => {
                let more = with as f64 - before as f64;
                println!(
                    "| {count} {what} | {:.1} | {:.1} | {:.1} | {:.2} |",
                    before as f64 / MIB,
                    with as f64 / MIB,
                    more / MIB,
                    more / KIB / count as f64
                );
            }
            Err(e) => {
                eprintln!("{count} {what}: {e}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Resident memory without sessions, and with all of them standing idle after EHLO.
fn idle_sessions(arguments: &Arguments) -> io::Result<(u64, u64)> {
    allow_descriptors(arguments.sessions + DESCRIPTORS_RESERVED);
    let (mut target, pid) = start(arguments)?;
    // The first sessions make what is shared by all.
    drop(greet_all(target.address, SOURCES)?);
    let before = usage::size(pid, "VmRSS")?;
    let sessions = greet_all(target.address, arguments.sessions)?;
    let with = usage::size(pid, "VmRSS")?;
    drop(sessions);
    target.stop();
    Ok((before, with))
}

/// As [`idle_sessions`], each within implicit TLS 1.3.
fn idle_tls_sessions(arguments: &Arguments) -> io::Result<(u64, u64)> {
    allow_descriptors(arguments.tls_sessions + DESCRIPTORS_RESERVED);
    let issued = Key::Ecdsa.issue();
    let mut target = Target::start_with(&options(arguments), |setup| {
        setup.listeners(&["tls = \"implicit\""]).certificates(&[&issued]);
    });
    let pid = target.pid.expect("it was started");
    let config = tls::client(&issued, &TLS13, kx_group::X25519MLKEM768, false);
    let greet_all = |count: usize| {
        (0..count)
            .map(|i| {
                let socket = connect(target.address, i)?;
                let connection =
                    ClientConnection::new(config.clone(), tls::name()).map_err(io::Error::other)?;
                let mut session = StreamOwned::new(connection, socket);
                greet(&mut session)?;
                Ok(session)
            })
            .collect::<io::Result<Vec<_>>>()
    };
    drop(greet_all(SOURCES)?);
    let before = usage::size(pid, "VmRSS")?;
    let sessions = greet_all(arguments.tls_sessions)?;
    let with = usage::size(pid, "VmRSS")?;
    drop(sessions);
    target.stop();
    Ok((before, with))
}

/// Resident memory without sessions, and its peak while all uploads are in flight.
fn uploads(arguments: &Arguments) -> io::Result<(u64, u64)> {
    let (mut target, pid) = start(arguments)?;
    drop(greet_all(target.address, arguments.uploads)?);
    let before = usage::size(pid, "VmRSS")?;
    usage::reset_peak(pid)?;
    let mut octets = content(arguments.upload_size);
    octets.extend_from_slice(b".\r\n");
    let mut sessions = greet_all(target.address, arguments.uploads)?;
    for session in &mut sessions {
        session.write_all(b"MAIL FROM:<load@load.test>\r\nRCPT TO:<inbox@mx.test>\r\nDATA\r\n")?;
        read_replies(session, 3, b"354")?;
        session.set_nonblocking(true)?;
    }
    // A piece each in turn, so that all are in flight at any time; one that may not write now is passed over.
    let mut sent = vec![0; sessions.len()];
    while sent.iter().any(|sent| *sent < octets.len()) {
        let mut is_stuck = true;
        for (session, sent) in sessions.iter_mut().zip(&mut sent) {
            let piece = &octets[*sent..octets.len().min(*sent + PIECE_SIZE)];
            match session.write(piece) {
                Ok(size) => {
                    is_stuck &= size == 0;
                    *sent += size;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        if is_stuck {
            thread::sleep(PAUSE);
        }
    }
    for session in &mut sessions {
        session.set_nonblocking(false)?;
        read_replies(session, 1, b"250")?;
    }
    let peak = usage::size(pid, "VmHWM")?;
    drop(sessions);
    target.stop();
    Ok((before, peak))
}

fn start(arguments: &Arguments) -> io::Result<(Target, u32)> {
    let target = match arguments.target {
        Some(address) => Target::running(address, arguments.target_pid),
        None => Target::start(&options(arguments)),
    };
    let pid = target.pid.ok_or_else(|| io::Error::other("--target needs --target-pid"))?;
    Ok((target, pid))
}

/// Sessions that say nothing are what is measured: they are not to be sent away though they are nearly all there may be.
fn settings(arguments: &Arguments) -> Vec<(String, String)> {
    let levels = ["busy_at", "strained_at"].map(|key| (format!("admission.{key}"), "100".to_string()));
    levels.into_iter().chain(arguments.settings.clone()).collect()
}

fn options(arguments: &Arguments) -> Options {
    Options {
        file_system: arguments.file_system,
        keeping: Keeping::Sync,
        cores: arguments.server_core.to_string(),
        settings: settings(arguments),
    }
}

fn greet_all(address: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
    (0..count)
        .map(|i| {
            let mut session = connect(address, i)?;
            greet(&mut session)?;
            Ok(session)
        })
        .collect()
}

/// The connection with this number, that waits for what it reads.
fn connect(address: SocketAddr, number: usize) -> io::Result<TcpStream> {
    let session = connect_from(address, (number % SOURCES) as u32)?;
    session.set_nonblocking(false)?;
    session.set_read_timeout(Some(REPLY_TIMEOUT))?;
    session.set_write_timeout(Some(REPLY_TIMEOUT))?;
    Ok(session)
}

fn greet(session: &mut (impl Read + Write)) -> io::Result<()> {
    read_replies(session, 1, b"220")?;
    session.write_all(EHLO)?;
    read_replies(session, 1, b"250")
}

/// Reads this many replies; an error unless the last has this code.
fn read_replies(session: &mut impl Read, count: usize, code: &[u8; 3]) -> io::Result<()> {
    let mut text = Vec::new();
    let mut octets = [0; 4096];
    let is_last = |line: &[u8]| line.ends_with(b"\r\n") && line.get(3) != Some(&b'-');
    while text.split_inclusive(|c| *c == b'\n').filter(|line| is_last(line)).count() < count {
        let size = session.read(&mut octets)?;
        if size == 0 {
            return Err(io::Error::other("the server closed a connection"));
        }
        text.extend_from_slice(&octets[..size]);
    }
    let last = text.split_inclusive(|c| *c == b'\n').next_back().unwrap_or_default();
    if last.starts_with(code) {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&text).into_owned()))
}

/// Raises this process's own limit, where the hard limit permits it.
fn allow_descriptors(count: usize) {
    tools::run("prlimit", [format!("--pid={}", process::id()), format!("--nofile={count}:")]);
}

/// A non-blocking connection from the loopback address of this index.
fn connect_from(address: SocketAddr, source: u32) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if address.ip().is_loopback() && address.is_ipv4() {
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + source);
        socket.bind(&SocketAddr::new(IpAddr::V4(ip), 0).into())?;
    }
    match socket.connect(&address.into()) {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
        _ => Ok(socket.into()),
    }
}

/// Content of exactly `size` octets in lines of 78.
fn content(size: usize) -> Vec<u8> {
    let mut content = b"From: load@load.test\r\nSubject: load\r\n\r\n".to_vec();
    while content.len() < size {
        let left = size - content.len();
        // No line may be shorter than its CRLF.
        let line = if left < 80 { left } else { 78 };
        content.extend(std::iter::repeat_n(b'x', line - 2));
        content.extend_from_slice(b"\r\n");
    }
    content
}
