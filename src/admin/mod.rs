//! The control plane: what an operator asks of a running gateway, and tells it, over HTTP; and the CLI's other end.
//!
//! One thread with a tokio runtime of its own, beside the shards and never on one. It listens on a unix socket, which only the
//! gateway's user (and a group, if one is named) can open; on a TCP address only with a token; and on another, if wanted, for those who
//! may only look ([`Settings`]).
//!
//! Promises:
//! - whatever its clients do, mail goes on: connections, requests and their time are bounded (`server`), and a shard is only ever asked
//!   for what takes it microseconds;
//! - the path of the socket is never without somebody who listens while two processes change places (`socket`).
//!
//! Knows the gateway by what it can be asked ([`Operations`]), and nothing of how it is built.

pub mod client;
mod dead;
mod health;
mod http;
mod life;
mod log_level;
mod metrics;
pub mod queue;
mod server;
mod sessions;
mod socket;
mod stats;
#[cfg(test)]
pub(crate) mod testing;
mod token;
mod trace;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::delivery::Targets;
use crate::policy::Policies;
use crate::shard::Shards;

pub use health::Health;
pub use life::{Drain, Progress, Upgraded};
pub use log_level::LogLevel;
pub use server::Admin;
pub use sessions::{Session, Sessions};
pub use stats::{Stats, Target as QueueTarget};
pub use token::{Token, TokenError};
pub use trace::Line as TraceLine;

/// What a running gateway can be asked and told, from any thread.
pub trait Operations: Send + Sync + 'static {
    /// All shards.
    fn shards(&self) -> Shards;

    /// The configuration in force.
    fn config(&self) -> Arc<Config>;

    /// Where mail goes, as in force.
    fn targets(&self) -> Targets;

    /// Who decides about sessions, as in force.
    fn policies(&self) -> Policies;

    /// Reads the configuration anew and puts it in force, or says why not. Takes up to seconds.
    fn reload(&self) -> Result<Reloaded, String>;

    /// Begins to drain: no new sessions; what goes on may finish.
    fn drain(&self, order: DrainOrder);

    /// Has a new process take over, and gives its words about it. Returns when that serves, or has failed.
    fn upgrade(&self) -> Result<String, String>;

    /// How far the gateway is in its life.
    fn stage(&self) -> Stage;
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Keys that have another value now.
    pub changed: Vec<String>,
    /// Keys that have another value in the file, which counts from the next start on.
    pub needs_restart: Vec<String>,
}

/// As long as one may wait in a drain.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// How to drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainOrder {
    /// How long to wait for the queue to be delivered, once no session is left; `None`: not at all.
    pub deliveries: Option<Duration>,
    /// How long sessions may finish; `None`: as configured.
    pub timeout: Option<Duration>,
}

/// How far a gateway is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "lowercase")]
pub enum Stage {
    /// Its shards do not all accept yet.
    Starting,
    /// It serves.
    Ready,
    /// It takes no new sessions.
    Draining {
        /// Sessions that are not at their end.
        sessions: usize,
        /// Messages in the queue.
        messages: usize,
    },
    /// Sessions are over; what was begun is brought to its end.
    Stopping {
        /// Messages in the queue.
        messages: usize,
    },
}

/// Where the control plane listens.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The unix socket's path.
    pub socket: Option<std::path::PathBuf>,
    /// A group whose members may open it.
    pub group: Option<String>,
    /// A TCP address, and what is asked for there.
    pub listen: Option<(std::net::SocketAddr, Token)>,
    /// A TCP address where anybody may look how the gateway is, and nothing else.
    pub monitor: Option<std::net::SocketAddr>,
}

impl Settings {
    /// What `config` says; reads the file of the token.
    pub fn of(config: &Config) -> Result<Settings, TokenError> {
        let admin = &config.admin;
        let listen = match (admin.listen, &admin.token_file) {
            (Some(address), Some(file)) => Some((address, Token::read(file)?)),
            _ => None,
        };
        Ok(Settings {
            socket: admin.socket.clone(),
            group: admin.group.clone(),
            listen,
            monitor: config.monitor.listen,
        })
    }
}

/// Starts the control plane on a thread of its own. It listens when this returns; signals are to be blocked in the caller meanwhile, for
/// the thread inherits that.
pub fn start(settings: Settings, operations: Arc<dyn Operations>) -> io::Result<Admin> {
    Admin::start(settings, operations)
}
