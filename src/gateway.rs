//! The gateway's life: built, started, changed, drained, ended.
//!
//! One thread for each shard, some for deliveries, and this one, which waits for signals and orders. Signals are blocked in
//! shards and workers: a ring must not be interrupted.
//!
//! What is made of the configuration is a `Generation`, which another replaces when the configuration is read
//! anew: see `running`.
//!
//! The end, in this order:
//! 1. shards stop accepting; sessions finish their transactions, within `drain_timeout`; then what is queued is delivered, if that was asked
//!    for;
//! 2. workers end after the attempt they are making; what they reported goes to the shards; so ends whoever sends dead letters
//!    again, after the one in hand;
//! 3. shards make everything durable, outcomes too, and end.
//!
//! Were 2 and 3 swapped, deliveries made meanwhile would be made again after the next start.
//!
//! A panic anywhere ends the process at once: a half-alive gateway would keep taking connections for a shard that is gone,
//! and nothing acknowledged is lost by ending. Knows nothing of SMTP and of bytes.

mod builder;
mod generation;
mod maps;
mod policies;
mod rehearsal;
mod running;
mod secrets;
mod sentinel;
mod sockets;
mod steering;
mod succession;
mod systemd;
mod transports;
mod watch;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::admin::Operations;
use crate::config::{Config, ConfigError, Durability, Queue};
use crate::delivery::Means;
use crate::policy::Policy;
use crate::shard::{self, DirectoryError, OpenedLog};
use crate::telemetry::{self, Observer};
pub use builder::{Builder, Gateway, Handle};
pub use rehearsal::{Rehearsal, Rehearsed, rehearse};
pub use running::Ended;
pub(crate) use steering::pinned_cores;

use generation::Generation;
use running::{Parts, Running};
use secrets::Secrets;
use sockets::Sockets;
use succession::Predecessor;
use transports::Names;

/// Locked memory that glommio asks for, octets.
pub(crate) const LOCKED_MEMORY_MIN: u64 = 512 << 10;

/// Why the gateway could not start or go on: what, where, and what to do about it.
#[derive(Clone, Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<DirectoryError> for Error {
    fn from(error: DirectoryError) -> Self {
        Error(error.to_string())
    }
}

/// What the library's user brings along.
#[derive(Clone, Default)]
pub(crate) struct Extensions {
    /// Transports of the configuration that are made by him, by their names.
    pub deliveries: HashMap<String, Means>,
    /// Policies that are asked behind those of the configuration.
    pub policies: Vec<Arc<dyn Policy>>,
    /// Told of what happens.
    pub observer: Option<Arc<dyn Observer>>,
}

/// Where the configuration is read from again.
type Reread = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Runs the gateway until it is told to stop (SIGTERM, SIGINT, an order), and says on standard error when it is ready.
///
/// A process that another has started to succeed it takes that one's place: see [`succession`].
fn run(config: Config, reread: Reread, extensions: Extensions) -> Result<Ended, Error> {
    end_on_panic();
    succession::remember_program();
    let failed = |error| Error(format!("cannot succeed the process that started this one: {error}"));
    let mut predecessor = Predecessor::of_this_process().map_err(failed)?;
    let notifier = systemd::Notifier::from_environment();
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|e| Error(format!("cannot handle signals: {e}")))?;
    let count = config.cores.shards_count();
    let is_in_memory = config.spool.queue == Queue::Memory;
    // Before anything is started that could inherit them, too.
    let inherited = match predecessor {
        None => systemd::inherited_listeners().map_err(Error)?,
        Some(_) => Vec::new(),
    };
    let (running, own_logs) =
        begin(config, reread, extensions, notifier.clone(), predecessor.as_mut(), inherited)?;
    let is_unwanted = || signals.pending().any(|number| number != SIGHUP);
    if !running.wait_until_ready(is_unwanted)? {
        return Ok(Ended::default());
    }
    eprint!("{}", running.live().config().banner());
    eprintln!("ready");
    tracing::info!(shards = count, "ready");
    notifier.ready(&format!("{count} shards take mail"));
    if let Some(mut predecessor) = predecessor {
        // Nothing is accepted before: were it told in vain, that process would go on, and not know of it. If it has ended meanwhile there
        // is nobody else.
        if let Err(error) = predecessor.tell_serving() {
            tracing::warn!(%error, "the process before this one has ended");
        }
        running.listen()?;
        running.adopt_after(predecessor, own_logs)?;
    }
    let _watchdog = systemd::watchdog(&notifier, running.live().shards())
        .map_err(|e| Error(format!("cannot start what tells the watchdog: {e}")))?;
    let ended = running.serve(signals)?;
    tell_end(ended, is_in_memory);
    Ok(ended)
}

/// Starts a gateway that knows of no signals and no other processes, and serves when this returns.
fn start(config: Config, reread: Reread, extensions: Extensions) -> Result<Running, Error> {
    let count = config.cores.shards_count();
    let nobody = systemd::Notifier::of_nobody();
    let (running, _) = begin(config, reread, extensions, nobody, None, Vec::new())?;
    match running.wait_until_ready(|| false) {
        Ok(_) => {
            tracing::info!(shards = count, "ready");
            Ok(running)
        }
        Err(e) => {
            running.abandon();
            Err(e)
        }
    }
}

/// Starts everything, with what a `predecessor` or the service manager has left; and says which logs are this process's own, where there
/// are others.
fn begin(
    config: Config,
    reread: Reread,
    extensions: Extensions,
    notifier: systemd::Notifier,
    predecessor: Option<&mut Predecessor>,
    mut inherited: Vec<systemd::Inherited>,
) -> Result<(Running, Option<Vec<usize>>), Error> {
    check_ring()?;
    check_locked_memory()?;
    check_processors()?;
    let count = config.cores.shards_count();
    let failed = |error| Error(format!("cannot succeed the process that started this one: {error}"));
    let blocked = BlockedSignals::block();
    let mut names = Names::default();
    let is_successor = predecessor.is_some();
    let (lock, generation, sockets, logs, own_logs) = match predecessor {
        None => {
            let lock = shard::lock(&config.data)?;
            // Before anything is bound: of a fault here nobody outside shall see anything.
            let mut generation = Generation::new(config, &mut names, &extensions, None)?;
            let mut sockets = Sockets::new(count);
            sockets.inherit(generation.listeners_mut(), &mut inherited)?;
            systemd::check_all_taken(&inherited).map_err(Error)?;
            let new = sockets.bind_missing(generation.listeners_mut())?;
            sockets.add(new);
            let logs = open_logs(&generation.config)?;
            (lock, generation, sockets, logs, None)
        }
        Some(predecessor) => {
            check_files(&config)?;
            let (lock, inherited) = predecessor.take_over().map_err(failed)?;
            let lock = shard::DataLock::inherited(lock);
            if !lock.is_of(&config.data)
                || (config.spool.queue == Queue::Memory) != predecessor.is_in_memory()
            {
                let words = "data or spool.queue are other than they were: restart the gateway instead";
                return Err(Error(words.into()));
            }
            let mut generation = Generation::new(config, &mut names, &extensions, None)?;
            let mut sockets = Sockets::of_others(inherited, count).map_err(failed)?;
            sockets.name_ports(generation.listeners_mut());
            sockets.keep(&generation.config.listeners);
            sockets.bind_more(&generation.config.listeners)?;
            let new = sockets.bind_missing(generation.listeners_mut())?;
            sockets.add(new);
            let (logs, numbers) = open_logs_beside(&generation.config)?;
            (lock, generation, sockets, logs, numbers)
        }
    };
    steering::steer(&generation.config.clone(), &sockets);
    let parts = Parts { generation, names, sockets, lock, extensions, reread, notifier, is_successor };
    let running = Running::start(parts, logs)?;
    if let Err(e) = running.live().start_admin() {
        running.abandon();
        return Err(e);
    }
    drop(blocked);
    Ok((running, own_logs))
}

/// Says how it ended.
fn tell_end(ended: Ended, is_in_memory: bool) {
    if is_in_memory && ended.left > 0 {
        tracing::warn!(
            messages = ended.left,
            "dropped what was accepted and not delivered: the queue was in memory"
        );
    }
    tracing::info!("stopped");
}

/// For each shard its own log, then those it adopts.
type LogsOfShards = Vec<Vec<OpenedLog>>;

/// The logs of a process that is alone.
fn open_logs(config: &Config) -> Result<LogsOfShards, Error> {
    let count = config.cores.shards_count();
    match config.spool.queue {
        Queue::Disk => {
            let is_sync = config.spool.durability == Durability::Sync;
            Ok(shard::open(&config.spool_dir(), &config.damaged_dir(), count, is_sync, new_log())?)
        }
        Queue::Memory => open_in_memory(config, count),
    }
}

/// The logs of a process that succeeds another; and their numbers, if they are on disk.
fn open_logs_beside(config: &Config) -> Result<(LogsOfShards, Option<Vec<usize>>), Error> {
    let count = config.cores.shards_count();
    match config.spool.queue {
        Queue::Disk => {
            let (logs, numbers) =
                shard::open_beside(&config.spool_dir(), &config.damaged_dir(), count, new_log())?;
            Ok((logs, Some(numbers)))
        }
        Queue::Memory => Ok((open_in_memory(config, count)?, None)),
    }
}

/// Reads the files that `config` names as a start would, and says what is wrong with them.
fn check_files(config: &Config) -> Result<(), Error> {
    Secrets::load(config, false, None)?;
    crate::admin::Settings::of(config).map_err(|e| Error(e.to_string()))?;
    policies::load(config, &[], None).map(drop)
}

/// Says what a queue in memory means, and leaves one on disk alone.
fn open_in_memory(config: &Config, shards: usize) -> Result<Vec<Vec<OpenedLog>>, Error> {
    tracing::warn!("spool.queue is \"memory\": accepted mail does not survive the end of this process");
    let spool = config.spool_dir();
    let count = shard::count_segments(&spool)?;
    if count > 0 {
        tracing::warn!(
            folder = %spool.display(),
            files = count,
            "an earlier run left a spool on disk, which is neither read nor touched: to deliver what is in it, start with spool.queue = \"disk\""
        );
    }
    Ok(shard::open_in_memory(shards, config.spool.memory_share(shards), new_log()))
}

/// Random and different numbers: two logs never share their part of message ids.
fn new_log() -> impl FnMut() -> u32 {
    let mut given = HashSet::from([0]);
    move || loop {
        let log = shard::random() as u32;
        if given.insert(log) {
            return log;
        }
    }
}

/// A panic of any thread ends the process, whatever the profile says of unwinding.
fn end_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        telemetry::log::write_out();
        std::process::abort();
    }));
}

fn check_ring() -> Result<(), Error> {
    shard::check_ring()
        .map_err(|error| Error(format!("cannot make an io_uring: {error}; {}", ring_remedy(&error))))
}

/// What to do where no io_uring can be made.
pub(crate) fn ring_remedy(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has none: Linux 5.8 or later is needed",
        Some(libc::EPERM | libc::EACCES) => {
            "it is forbidden here: allow it with `sysctl kernel.io_uring_disabled=0`, and in a container with a seccomp \
             profile that permits io_uring_setup, io_uring_enter and io_uring_register"
        }
        Some(libc::ENOMEM) => {
            "too little memory may be locked: raise it with `ulimit -l` or LimitMEMLOCK= of the unit"
        }
        _ => "see io_uring_setup(2)",
    }
}

fn check_locked_memory() -> Result<(), Error> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    match limit {
        Some(limit) if limit < LOCKED_MEMORY_MIN => Err(Error(format!(
            "only {limit} octets of memory may be locked, and io_uring needs {LOCKED_MEMORY_MIN}: raise RLIMIT_MEMLOCK with \
             `ulimit -l 8192` or LimitMEMLOCK=8M of the unit"
        ))),
        _ => Ok(()),
    }
}

/// Where shards run is looked up there, by a library that would end the process in the midst of the start.
fn check_processors() -> Result<(), Error> {
    const FOLDER: &str = "/sys/devices/system/cpu";
    match std::fs::read_to_string(format!("{FOLDER}/online")) {
        Ok(_) => Ok(()),
        Err(e) => Err(Error(format!(
            "{FOLDER}: cannot be read: {e}; shards are placed by what it says: mount /sys (`mount -t sysfs sysfs /sys`), read-only is enough"
        ))),
    }
}

/// Signals wait while threads are started, which inherit that; this thread takes them again when this is dropped.
struct BlockedSignals {
    before: libc::sigset_t,
}

impl BlockedSignals {
    fn block() -> Self {
        // SAFETY: both sets are owned by this frame and filled by the calls before they are read.
        unsafe {
            let mut all = std::mem::zeroed();
            let mut before = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            BlockedSignals { before }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: `before` was filled by the same call that blocked.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut());
        }
    }
}
