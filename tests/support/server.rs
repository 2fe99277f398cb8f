//! A running gateway: where it listens, what it logs, and how it ends.
//!
//! Relies on two kinds of line in its log: `listening on ADDR:PORT` for each listener, and one with the word `ready`
//! when every shard accepts.

use std::fmt;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use super::tools;
use super::wait;

/// What precedes each bound address in the log.
const LISTENING: &str = "listening on ";

/// How long a gateway may take to its end once it has been told to; then it is killed and the test fails.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the end of a killed gateway is waited for where nothing depends on it: a disk that does not answer holds it until the
/// disk is taken down.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of the log a failure shows.
const SHOWN_LINES: usize = 30;

/// A gateway process. Dropped, it is stopped: with SIGTERM, and with SIGKILL if that does not do.
pub struct Server {
    child: Child,
    addresses: Vec<SocketAddr>,
    log_file: PathBuf,
}

/// A gateway that ended instead of becoming ready.
pub struct Refused {
    /// How it ended; nothing if it neither ended nor became ready, and was killed.
    pub status: Option<ExitStatus>,
    /// All it wrote.
    pub log: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}\n{}", self.log),
            None => write!(f, "neither ready nor ended\n{}", self.log),
        }
    }
}

impl Server {
    /// Starts `command` with its output going to `log_file`, and waits until it is ready or has ended.
    pub fn start(command: Command, log_file: &Path) -> Result<Self, Refused> {
        let mut server = Self::launch(command, log_file);
        let is_up = wait::poll(wait::PATIENCE, || {
            if let Some(status) = server.child.try_wait().expect("its status") {
                return Some(Err(status));
            }
            is_ready(&server.log()).then_some(Ok(()))
        });
        match is_up {
            Some(Ok(())) => {
                server.addresses = bound_addresses(&server.log());
                assert!(!server.addresses.is_empty(), "no `{LISTENING}ADDR:PORT` in\n{}", server.log());
                Ok(server)
            }
            Some(Err(status)) => Err(Refused { status: Some(status), log: server.log() }),
            None => {
                server.kill();
                Err(Refused { status: None, log: server.log() })
            }
        }
    }

    /// Starts `command` with its output going to `log_file`, and waits for nothing: it has no address yet.
    pub fn launch(mut command: Command, log_file: &Path) -> Self {
        let log = File::create(log_file).expect("a log file");
        let both = log.try_clone().expect("a second handle");
        // Escape sequences of colours would stand between the words that are looked for.
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(log).stderr(both);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Server { child, addresses: Vec::new(), log_file: log_file.into() }
    }

    /// The first listener's address.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Every listener's address, in the order of the log.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its memory in use, octets (`VmRSS`).
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kib << 10
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        let octets = fs::read(&self.log_file).unwrap_or_default();
        String::from_utf8_lossy(&octets).into_owned()
    }

    /// Sends a signal by its name without `SIG`.
    pub fn signal(&self, name: &str) {
        tools::signal(self.pid(), name);
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("its status")
    }

    /// Waits for its end; panics with its log if it does not come.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait::poll(STOP_TIMEOUT, || self.child.try_wait().expect("its status"))
            .unwrap_or_else(|| panic!("still running after {STOP_TIMEOUT:?}\n{}", self.log()))
    }

    /// Tells it to drain and waits for its end.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// `kill -9`, and reaps it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
            eprintln!("--- the end of the gateway's log\n{}\n---", shown.join("\n"));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            // A test that is failing has no use for a clean end.
            if !thread::panicking() {
                tools::signal(self.pid(), "TERM");
                wait::poll(STOP_TIMEOUT, || self.child.try_wait().ok().flatten());
            }
            let _ = self.child.kill();
            wait::poll(KILL_TIMEOUT, || self.child.try_wait().ok().flatten());
        }
    }
}

fn is_ready(log: &str) -> bool {
    log.lines().any(|line| line.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == "ready"))
}

/// The addresses behind each [`LISTENING`], one or a list with commas; each once, in order.
fn bound_addresses(log: &str) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for (_, rest) in log.lines().filter_map(|line| line.split_once(LISTENING)) {
        let words = rest.split_whitespace().map(|word| word.trim_end_matches([',', '.', ';']));
        for address in words.map_while(|word| word.parse().ok()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    addresses
}
