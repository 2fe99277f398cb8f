//! A server of LMTP and SMTP that does as the test says: serves, refuses some, or says nothing at all.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// It runs until the test's process ends.
pub struct MoodyStore {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    is_silent: AtomicBool,
    /// Connections that were made.
    connections: AtomicUsize,
    /// Recipients that were served.
    count: AtomicUsize,
    /// And only that is kept of them.
    is_counting: bool,
    /// Recipients, each with what came for it.
    taken: Mutex<Vec<(String, Vec<u8>)>>,
    /// Those that are kept waiting.
    waiting: Mutex<Vec<TcpStream>>,
}

impl MoodyStore {
    /// On a loopback port of the kernel's choice. Recipients whose names begin with `no-` are refused.
    pub fn start(is_silent: bool) -> Self {
        Self::with(State { is_silent: AtomicBool::new(is_silent), ..State::default() })
    }

    /// One that keeps nothing of what it takes.
    pub fn counting() -> Self {
        Self::with(State { is_counting: true, ..State::default() })
    }

    fn with(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its number");
        let state = Arc::new(state);
        let shared = state.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let state = shared.clone();
                thread::spawn(move || {
                    if state.is_silent.load(Ordering::Relaxed) {
                        return state.waiting.lock().unwrap().push(connection);
                    }
                    // Whoever goes, goes.
                    let _ = serve(&connection, &state);
                });
            }
        });
        MoodyStore { address, state }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on it serves, and whoever was kept waiting is told to go.
    pub fn wake(&self) {
        self.state.is_silent.store(false, Ordering::Relaxed);
        for connection in self.state.waiting.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Connections that were made so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// How many recipients have their mail.
    pub fn count(&self) -> usize {
        self.state.count.load(Ordering::Acquire)
    }

    /// Recipients, each with what came for it.
    pub fn taken(&self) -> Vec<(String, Vec<u8>)> {
        self.state.taken.lock().unwrap().clone()
    }
}

fn serve(connection: &TcpStream, state: &State) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut out = connection;
    out.write_all(b"220 moody.test at your service\r\n")?;
    let mut is_lmtp = true;
    let mut recipients: Vec<String> = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line).to_string();
        let verb = text.split([' ', '\r']).next().unwrap_or_default().to_ascii_uppercase();
        match &*verb {
            "LHLO" | "EHLO" => {
                is_lmtp = verb == "LHLO";
                out.write_all(b"250-moody.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n")?;
            }
            "MAIL" | "RSET" => {
                recipients.clear();
                out.write_all(b"250 2.1.0 Ok\r\n")?;
            }
            "RCPT" => {
                let path = text.split(['<', '>']).nth(1).unwrap_or_default().to_string();
                if path.starts_with("no-") {
                    out.write_all(b"550 5.1.1 nobody of that name\r\n")?;
                } else {
                    recipients.push(path);
                    out.write_all(b"250 2.1.5 Ok\r\n")?;
                }
            }
            "DATA" if recipients.is_empty() => out.write_all(b"503 5.5.1 for whom?\r\n")?,
            "DATA" => {
                out.write_all(b"354 go on\r\n")?;
                let mut content = Vec::new();
                loop {
                    line.clear();
                    if reader.read_until(b'\n', &mut line)? == 0 {
                        return Ok(());
                    }
                    if line == b".\r\n" {
                        break;
                    }
                    content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
                }
                let replies = if is_lmtp { recipients.len() } else { 1 };
                for recipient in recipients.drain(..) {
                    if !state.is_counting {
                        state.taken.lock().unwrap().push((recipient, content.clone()));
                    }
                    state.count.fetch_add(1, Ordering::Release);
                }
                out.write_all(&b"250 2.0.0 kept\r\n".repeat(replies))?;
            }
            "QUIT" => return out.write_all(b"221 2.0.0 bye\r\n"),
            _ => out.write_all(b"500 5.5.2 what?\r\n")?,
        }
    }
}
