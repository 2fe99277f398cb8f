//! A target that does as it is told: an SMTP server of threads, on a loopback port of the kernel's choice.
//!
//! What it accepts it counts, and gives to [`Behaviour::store`]. It knows nothing of the harness's own code.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What becomes of the `n`th accepted message (from 1). It is acknowledged whatever this does.
pub type Store = Box<dyn Fn(u64, &[u8]) + Send + Sync>;

/// How it answers.
pub struct Behaviour {
    /// Behind EHLO.
    pub offers: &'static [&'static str],
    /// Octets sent on connecting.
    pub greeting: &'static str,
    /// The connection is closed after the greeting.
    pub closes: bool,
    /// Replies by the beginning of a command, or `.` for the end-of-data; they take the place of the ordinary ones.
    pub replies: &'static [(&'static str, &'static str)],
    /// TLS, and whether it begins with the connection.
    pub tls: Option<(Certificate, bool)>,
    /// See [`Store`].
    pub store: Store,
    /// After so many messages every session stands still once, for so long.
    pub stall: Option<(u64, Duration)>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Behaviour {
            offers: &["PIPELINING", "CHUNKING", "8BITMIME", "SIZE 0"],
            greeting: "220 target.test ready\r\n",
            closes: false,
            replies: &[],
            tls: None,
            store: Box::new(|_, _| ()),
            stall: None,
        }
    }
}

/// A key, its certificate, and the authority's certificate in a file.
pub struct Certificate {
    pub config: Arc<ServerConfig>,
    pub authority: tempfile::NamedTempFile,
}

impl Certificate {
    /// For 127.0.0.1, signed by itself.
    pub fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let authority = tempfile::NamedTempFile::new().unwrap();
        fs::write(authority.path(), made.cert.pem()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        Certificate { config: Arc::new(config), authority }
    }
}

/// What it saw.
#[derive(Default)]
pub struct Seen {
    /// Connections, those without a message included.
    pub sessions: AtomicU64,
    /// Messages acknowledged.
    pub messages: AtomicU64,
    /// Recipients accepted of these.
    pub recipients: AtomicU64,
    /// Messages that came with BDAT.
    pub chunked: AtomicU64,
    /// MAIL with another command right behind it.
    pub grouped: AtomicU64,
    /// TLS handshakes.
    pub handshakes: AtomicU64,
    /// Of these, resumptions.
    pub resumed: AtomicU64,
    /// Sessions with a message, by where they came from.
    pub sources: Mutex<BTreeMap<IpAddr, u64>>,
    /// Messages of each session that had one.
    pub session_messages: Mutex<Vec<u64>>,
}

/// A target at work; stopped when it is dropped.
pub struct Target {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    behaviour: Behaviour,
    seen: Arc<Seen>,
    is_stopped: AtomicBool,
    /// Every connection, so that none keeps its thread.
    streams: Mutex<BTreeMap<u64, TcpStream>>,
    /// Held while everything stands still.
    stall: RwLock<()>,
}

impl Target {
    pub fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let shared = Arc::new(Shared {
            behaviour,
            seen: seen.clone(),
            is_stopped: AtomicBool::new(false),
            streams: Mutex::default(),
            stall: RwLock::default(),
        });
        let acceptor = thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        });
        Target { address, seen, shared, acceptor: Some(acceptor) }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::SeqCst);
        // Wakes it from its accept.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut sessions = Vec::new();
    while let Ok((stream, peer)) = listener.accept() {
        if shared.is_stopped.load(Ordering::SeqCst) {
            break;
        }
        stream.set_nodelay(true).unwrap();
        let number = shared.seen.sessions.fetch_add(1, Ordering::SeqCst);
        shared.streams.lock().unwrap().insert(number, stream.try_clone().unwrap());
        let shared = shared.clone();
        sessions.push(thread::spawn(move || {
            let mut session = Session { shared: &shared, peer: peer.ip(), message_count: 0 };
            // A client that goes away is no fault of the target.
            let _ = session.run(stream.try_clone().unwrap());
            let _ = stream.shutdown(Shutdown::Both);
            shared.streams.lock().unwrap().remove(&number);
            if session.message_count > 0 {
                shared.seen.session_messages.lock().unwrap().push(session.message_count);
            }
        }));
    }
    for stream in shared.streams.lock().unwrap().values() {
        let _ = stream.shutdown(Shutdown::Both);
    }
    for session in sessions {
        let _ = session.join();
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

struct Session<'a> {
    shared: &'a Shared,
    peer: IpAddr,
    message_count: u64,
}

impl Session<'_> {
    fn run(&mut self, tcp: TcpStream) -> io::Result<()> {
        let behaviour = &self.shared.behaviour;
        let plain = tcp.try_clone()?;
        let is_implicit = behaviour.tls.as_ref().is_some_and(|(_, is_implicit)| *is_implicit);
        let stream: Box<dyn Stream> = if is_implicit { Box::new(self.secure(tcp)?) } else { Box::new(tcp) };
        let mut reader = BufReader::new(stream);
        reader.get_mut().write_all(behaviour.greeting.as_bytes())?;
        if behaviour.closes {
            return Ok(());
        }
        if self.converse(&mut reader, !is_implicit)? {
            let mut reader = BufReader::new(Box::new(self.secure(plain)?) as Box<dyn Stream>);
            self.converse(&mut reader, false)?;
        }
        Ok(())
    }

    fn secure(&self, mut tcp: TcpStream) -> io::Result<StreamOwned<ServerConnection, TcpStream>> {
        let (certificate, _) = self.shared.behaviour.tls.as_ref().unwrap();
        let mut connection = ServerConnection::new(certificate.config.clone()).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        self.shared.seen.handshakes.fetch_add(1, Ordering::SeqCst);
        if connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
            self.shared.seen.resumed.fetch_add(1, Ordering::SeqCst);
        }
        Ok(StreamOwned::new(connection, tcp))
    }

    /// To the end of the session, or to STARTTLS: true.
    fn converse(&mut self, reader: &mut BufReader<Box<dyn Stream>>, can_secure: bool) -> io::Result<bool> {
        let behaviour = &self.shared.behaviour;
        let seen = &self.shared.seen;
        let (mut has_sender, mut recipients) = (false, 0);
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                return Ok(false);
            }
            let command = String::from_utf8_lossy(&line).trim_end().to_owned();
            let scripted = |command: &str| {
                behaviour
                    .replies
                    .iter()
                    .find(|(start, _)| command.starts_with(start))
                    .map(|(_, reply)| *reply)
            };
            let is_data = command == "DATA";
            let chunk = command.strip_prefix("BDAT ").map(|words| words.trim_end_matches(" LAST"));
            let mut content = Vec::new();
            if let Some(size) = chunk {
                content.resize(size.parse().map_err(io::Error::other)?, 0);
                reader.read_exact(&mut content)?;
            }
            if let Some(reply) = scripted(&command) {
                reader.get_mut().write_all(reply.as_bytes())?;
                continue;
            }
            if (is_data || chunk.is_some()) && recipients == 0 {
                reader.get_mut().write_all(b"554 5.5.1 no valid recipients\r\n")?;
                continue;
            }
            if is_data {
                reader.get_mut().write_all(b"354 go on\r\n")?;
                content = read_content(reader)?;
            }
            let reply = if is_data || chunk.is_some() {
                let reply = scripted(".").unwrap_or("250 2.0.0 taken\r\n");
                if reply.starts_with("250") {
                    self.take(&content, chunk.is_some(), recipients);
                }
                (has_sender, recipients) = (false, 0);
                reply.to_owned()
            } else if command.starts_with("EHLO") {
                let mut lines = vec!["target.test"];
                lines.extend(behaviour.offers);
                if can_secure && behaviour.tls.is_some() {
                    lines.push("STARTTLS");
                }
                let last = lines.len() - 1;
                let dash = |at: usize| if at < last { '-' } else { ' ' };
                lines.iter().enumerate().map(|(at, line)| format!("250{}{line}\r\n", dash(at))).collect()
            } else if command.starts_with("MAIL") {
                seen.grouped.fetch_add(u64::from(!reader.buffer().is_empty()), Ordering::SeqCst);
                (has_sender, recipients) = (true, 0);
                "250 2.1.0 ok\r\n".to_owned()
            } else if command.starts_with("RCPT") && !has_sender {
                "503 5.5.1 MAIL first\r\n".to_owned()
            } else if command.starts_with("RCPT") {
                recipients += 1;
                "250 2.1.5 ok\r\n".to_owned()
            } else if command == "STARTTLS" && can_secure && behaviour.tls.is_some() {
                reader.get_mut().write_all(b"220 go on\r\n")?;
                return Ok(true);
            } else if command == "QUIT" {
                reader.get_mut().write_all(b"221 bye\r\n")?;
                return Ok(false);
            } else if command == "RSET" {
                (has_sender, recipients) = (false, 0);
                "250 2.0.0 ok\r\n".to_owned()
            } else {
                "500 5.5.1 what\r\n".to_owned()
            };
            reader.get_mut().write_all(reply.as_bytes())?;
        }
    }

    /// Takes a message that is to be acknowledged.
    fn take(&mut self, content: &[u8], is_chunked: bool, recipients: u64) {
        let seen = &self.shared.seen;
        let n = seen.messages.fetch_add(1, Ordering::SeqCst) + 1;
        seen.recipients.fetch_add(recipients, Ordering::SeqCst);
        seen.chunked.fetch_add(u64::from(is_chunked), Ordering::SeqCst);
        if self.message_count == 0 {
            *seen.sources.lock().unwrap().entry(self.peer).or_default() += 1;
        }
        self.message_count += 1;
        (self.shared.behaviour.store)(n, content);
        match self.shared.behaviour.stall {
            Some((at, length)) if n == at => {
                let _still = self.shared.stall.write().unwrap();
                thread::sleep(length);
            }
            _ => drop(self.shared.stall.read().unwrap()),
        }
    }
}

/// To the end-of-data, with dots unstuffed.
fn read_content(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let start = content.len();
        if reader.read_until(b'\n', &mut content)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // A line ends with CRLF alone: a LF without CR does not begin another.
        let is_line_start = start == 0 || content[..start].ends_with(b"\r\n");
        if is_line_start && content[start..] == *b".\r\n" {
            content.truncate(start);
            return Ok(content);
        }
        if is_line_start && content[start] == b'.' {
            content.remove(start);
        }
    }
}

/// A Maildir in a temporary folder.
pub struct Maildir {
    folder: tempfile::TempDir,
    count: AtomicU64,
}

impl Maildir {
    pub fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        for name in ["new", "cur", "tmp"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Arc::new(Maildir { folder, count: AtomicU64::new(0) })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Delivers a message, below a field of trace as servers write it.
    pub fn deliver(&self, content: &[u8]) -> PathBuf {
        let name = self.count.fetch_add(1, Ordering::SeqCst).to_string();
        let path = self.path().join("new").join(name);
        fs::write(&path, [b"Return-Path: <>\r\n", content].concat()).unwrap();
        path
    }

    /// A store that delivers everything.
    pub fn store(self: &Arc<Self>) -> Store {
        let maildir = self.clone();
        Box::new(move |_, content| drop(maildir.deliver(content)))
    }
}
