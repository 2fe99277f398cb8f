//! The gateway's life: built, started, drained, ended.
//!
//! One thread for each shard, some for deliveries, and this one, which waits for signals. Signals are blocked in
//! shards and workers: a ring must not be interrupted.
//!
//! The end, in this order:
//! 1. shards stop accepting; sessions finish their transactions, within `drain_timeout`;
//! 2. workers end after the attempt they are making; what they reported goes to the shards; so ends whoever sends dead letters
//!    again, after the one in hand;
//! 3. shards make everything durable, outcomes too, and end.
//!
//! Were 2 and 3 swapped, deliveries made meanwhile would be made again after the next start.
//!
//! SIGHUP has certificates, credentials and maps read anew; see [`watch`].
//!
//! A panic anywhere ends the process at once: a half-alive gateway would keep taking connections for a shard that is gone,
//! and nothing acknowledged is lost by ending. Knows nothing of SMTP and of bytes.

mod maps;
mod policies;
mod rehearsal;
mod secrets;
mod transports;
mod watch;

use std::collections::HashSet;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use glommio::{LocalExecutorBuilder, Placement as Pin, PoolPlacement};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{self, Config, Durability, Listener, Placement, Queue, Smtp};
use crate::delivery::notification::NotificationRate;
use crate::delivery::{
    DeadLetters, Intake, Notifier, Schedule, Settlement, Upkeep, Workers, outcome_channel,
};
use crate::limits::{PIECE_SIZE_MAX, RING_MEMORY_SIZE};
use crate::mail::{Capabilities, Phase, Phases};
use crate::policy::{Admission, Bounds, Greetings, Greylist, Marks, Policies, Said, Terms};
use crate::shard::{
    self, Control, DirectoryError, Ending, OpenedLog, Plan, Pressure, Progress, Service, Shards,
};
use crate::smtp::SessionConfig;
use crate::telemetry;
pub use rehearsal::{Rehearsal, Rehearsed, rehearse};

use policies::Asked;
use secrets::Secrets;

/// Locked memory that glommio asks for, octets.
const LOCKED_MEMORY_MIN: u64 = 512 << 10;
/// How long sessions have to take their 421 when the time to drain is over.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long attempts that are being made may take to end: a transport that hangs must not hold the process.
const WORKERS_TIMEOUT: Duration = Duration::from_secs(10);
/// What the kernel keeps of what a peer does not read, octets (it doubles them for its own needs).
const SEND_BUFFER_SIZE: usize = 64 << 10;
/// How often a start that takes long looks for a signal.
const SIGNALS_INTERVAL: Duration = Duration::from_millis(100);
/// How long a shard may sleep though it has something to do: see [`Control`].
const RING_INTERVAL: Duration = Duration::from_millis(250);

/// Why the gateway could not start or go on: what, where, and what to do about it.
#[derive(Debug)]
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

/// Runs the gateway until it is told to stop (SIGTERM, SIGINT), and says on standard error when it is ready.
pub fn run(mut config: Config) -> Result<(), Error> {
    end_on_panic();
    check_ring()?;
    check_locked_memory()?;
    let _lock = shard::lock(&config.data)?;
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|e| Error(format!("cannot handle signals: {e}")))?;
    let blocked = BlockedSignals::block();
    let secrets = Secrets::load(&config, true)?;
    let count = config.cores.shards_count();
    let sockets = bind_all(&mut config.listeners, count)?;
    let logs = match config.spool.queue {
        Queue::Disk => {
            let is_sync = config.spool.durability == Durability::Sync;
            shard::open(&config.spool_dir(), &config.damaged_dir(), count, is_sync, new_log())?
        }
        Queue::Memory => open_in_memory(&config, count)?,
    };
    let asked = policies::load(&config)?;
    let started = start(&config, sockets, logs, &secrets, &asked)?;
    let reload = watch::start(secrets.watched().into_iter().chain(asked.watched).collect())?;
    drop(blocked);
    if !started.wait_until_ready(&mut signals)? {
        return Ok(());
    }
    eprint!("{}", config.banner());
    eprintln!("ready");
    tracing::info!(shards = count, "ready");
    let left = started.serve(signals, reload, config.drain_timeout)?;
    if config.spool.queue == Queue::Memory && left > 0 {
        tracing::warn!(
            messages = left,
            "dropped what was accepted and not delivered: the queue was in memory"
        );
    }
    tracing::info!("stopped");
    Ok(())
}

/// Reads the files that `config` names as a start would, and says what is wrong with them.
pub fn check_files(config: &Config) -> Result<(), Error> {
    Secrets::load(config, false)?;
    policies::load(config).map(drop)
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
    shard::check_ring().map_err(|error| {
        let remedy = match error.raw_os_error() {
            Some(libc::ENOSYS) => "this kernel has none: Linux 5.8 or later is needed",
            Some(libc::EPERM | libc::EACCES) => {
                "it is forbidden here: allow it with `sysctl kernel.io_uring_disabled=0`, and in a container with a seccomp \
                 profile that permits io_uring_setup, io_uring_enter and io_uring_register"
            }
            Some(libc::ENOMEM) => "too little memory may be locked: raise it with `ulimit -l` or LimitMEMLOCK= of the unit",
            _ => "see io_uring_setup(2)",
        };
        Error(format!("cannot make an io_uring: {error}; {remedy}"))
    })
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

/// The listening sockets of each shard. Ports that were 0 are known afterwards.
fn bind_all(listeners: &mut [Listener], shards: usize) -> Result<Vec<Vec<TcpListener>>, Error> {
    let mut sockets: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
    for listener in listeners {
        let address = listener.address;
        let failed = |error| Error(explain_bind(address, &error));
        // Shards share the port by SO_REUSEPORT, and so would a second gateway of the same user: it is refused here.
        listener.address = bind(address, None).and_then(|probe| probe.local_addr()).map_err(failed)?;
        for sockets in &mut sockets {
            sockets.push(bind(listener.address, Some(listener.backlog)).map_err(failed)?);
        }
    }
    Ok(sockets)
}

/// Binds; listens with the backlog, sharing the port, if there is one.
fn bind(address: SocketAddr, backlog: Option<u32>) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections inherit it. Replies and handshakes are small; a peer that does not read them must not have the kernel keep megabytes.
    socket.set_send_buffer_size(SEND_BUFFER_SIZE)?;
    socket.set_reuse_address(true)?;
    if backlog.is_some() {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    if let Some(backlog) = backlog {
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    }
    Ok(socket.into())
}

fn explain_bind(address: SocketAddr, error: &std::io::Error) -> String {
    let remedy = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            "another process listens there: stop it, or choose another port with --listen or [[listener]] address"
        }
        Some(libc::EACCES) => {
            "ports below 1024 need a right: run with AmbientCapabilities=CAP_NET_BIND_SERVICE of the unit, or choose another port"
        }
        Some(libc::EADDRNOTAVAIL) => "no interface of this machine has that address",
        _ => "choose another address with --listen or [[listener]] address",
    };
    format!("cannot listen on {address}: {error}; {remedy}")
}

/// What is done for those who connect to `listener`.
fn service(listener: &Listener, session: &SessionConfig, secrets: &Secrets) -> Service {
    let session = SessionConfig {
        dialect: listener.protocol,
        tls: listener.tls,
        auth: listener.auth,
        // Whom a front end names is to be admitted before he is greeted.
        phases: match listener.xclient_from.is_empty() {
            true => session.phases,
            false => session.phases | Phases::of(Phase::Connect),
        },
        ..session.clone()
    };
    Service {
        session: Arc::new(session),
        acceptor: secrets.acceptor(listener),
        proxy_from: listener.proxy_from.clone(),
        xclient_from: listener.xclient_from.clone(),
        address: listener.address,
        is_trusted: listener.trusted,
    }
}

/// What is asked of peers when there is much to do.
fn pressure(admission: &config::Admission) -> Pressure {
    Pressure {
        marks: Marks {
            busy_at: f32::from(admission.busy_at) / 100.0,
            strained_at: f32::from(admission.strained_at) / 100.0,
        },
        greeting_delay_millis: u16::try_from(admission.busy_greeting_delay.as_millis()).unwrap_or(u16::MAX),
        patience: admission.strained_patience,
        storage_wait_max: admission.storage_wait_max,
    }
}

/// What is common to the sessions of all listeners.
fn session_config(config: &Config, policies: &Policies, capabilities: Capabilities) -> SessionConfig {
    let smtp = &config.smtp;
    // The shard itself wants to be asked before content comes: is there room?
    let own = Phases::of(Phase::Mail) | Phases::of(Phase::Data);
    SessionConfig {
        message_size_max: smtp.message_size_max,
        recipients_max: smtp.recipients_max,
        command_size_max: smtp.command_size_max,
        hops_max: smtp.hops_max as usize,
        header_size_max: smtp.header_size_max as usize,
        piece_size: PIECE_SIZE_MAX,
        command_timeout: smtp.command_timeout,
        data_timeout: smtp.data_timeout,
        session_timeout: smtp.session_timeout,
        content_rate_min: u32::try_from(smtp.content_rate_min).unwrap_or(u32::MAX),
        errors_max: smtp.errors_max,
        idle_commands_max: smtp.idle_commands_max,
        error_delay: smtp.error_delay,
        error_delay_after: smtp.error_delay_after,
        capabilities,
        phases: policies.phases() | own,
        ..SessionConfig::new(config.hostname.as_str())
    }
}

/// Who may connect.
fn admission(settings: &config::Admission) -> Admission {
    Admission::new(Bounds {
        address_max: settings.max_connections_per_ip,
        network_max: settings.max_connections_per_network,
        bans: Terms { after: settings.ban_after, window: settings.ban_window, time: settings.ban_time },
        exempt: settings.exempt.clone(),
    })
}

/// Where each shard's thread runs: on the named cores, or on those this process may use, in order.
fn placements(config: &Config) -> Vec<Pin> {
    let count = config.cores.shards_count();
    match &config.cores {
        Placement::Cores(cores) => cores.iter().map(|core| Pin::Fixed(*core)).collect(),
        Placement::Shards(_) => {
            let cores = core_affinity::get_core_ids().unwrap_or_default();
            match cores.len() >= count {
                true => cores.iter().take(count).map(|core| Pin::Fixed(core.id)).collect(),
                // More shards than cores: the scheduler decides.
                false => (0..count).map(|_| Pin::Unbound).collect(),
            }
        }
    }
}

/// Who tells senders, if anybody is to.
fn notifier(config: &Config, intake: Box<dyn Intake>) -> Option<Notifier> {
    let settings = &config.notifications;
    let transport = settings.transport.as_ref()?;
    let count = |count| NonZeroU32::new(count).expect("limits bound it");
    let (all, per_domain) = (count(settings.hourly_max), count(settings.hourly_max_per_domain));
    let rate = NotificationRate::new(all, per_domain, Duration::from_secs(3600));
    Some(Notifier::new(config.hostname.clone(), transport, rate, intake))
}

/// Cores that this process may use and no shard is pinned to.
fn spare_cores(config: &Config) -> Vec<core_affinity::CoreId> {
    let shards = placements(config);
    let is_taken = |core: &core_affinity::CoreId| {
        shards.iter().any(|pin| matches!(pin, Pin::Fixed(taken) if *taken == core.id))
    };
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    match shards.iter().all(|pin| matches!(pin, Pin::Fixed(_))) {
        true => cores.into_iter().filter(|core| !is_taken(core)).collect(),
        false => Vec::new(),
    }
}

/// A gateway whose threads run.
struct Running {
    shards: Vec<glommio::ExecutorJoinHandle<usize>>,
    controls: Shards,
    progress: Receiver<Progress>,
    workers: Workers,
    upkeep: Upkeep,
    policies: Policies,
    greylists: Vec<Arc<Greylist>>,
    /// Dropped when the shards have ended: nothing is ever sent.
    _ringing: Sender<()>,
}

fn start(
    config: &Config,
    sockets: Vec<Vec<TcpListener>>,
    logs: Vec<Vec<OpenedLog>>,
    secrets: &Secrets,
    asked: &Asked,
) -> Result<Running, Error> {
    let count = config.cores.shards_count();
    let failed = |what: &str, error: &dyn fmt::Display| Error(format!("cannot start {what}: {error}"));
    let dead_dir = config.dead_dir();
    let dead = DeadLetters::new(&dead_dir)
        .map_err(|e| Error(format!("cannot make the folder {}: {e}", dead_dir.display())))?;
    let dead = Arc::new(dead);
    let schedule: Schedule = config.delivery.schedule();
    let (targets, routes) = transports::load(config)?;
    // Who is asked to tell tells: whoever is further on, or we.
    let mut capabilities = transports::capabilities(&targets, &routes);
    capabilities.dsn |= config.notifications.transport.is_some();
    let routes = Arc::new(routes);
    let (injector, resent) = shard::injection();
    let (teller, notifications) = shard::injection();
    let mut injected = vec![resent, notifications];
    let notifier = notifier(config, Box::new(teller));
    let settlement =
        Settlement { schedule, dead_letters: dead.clone(), notifier, routes: routes.clone(), observer: None };
    let workers = Workers::start(config.delivery.workers, &spare_cores(config), &targets, settlement)
        .map_err(|e| failed("the delivery workers", &e))?;
    let upkeep = Upkeep::start(dead, Box::new(injector), config.delivery.dead_retention)
        .map_err(|e| failed("the upkeep of dead letters", &e))?;
    let Asked { policies, lookups, greylists, .. } = asked;
    let session = session_config(config, policies, capabilities);
    let services: Vec<_> =
        config.listeners.iter().map(|listener| service(listener, &session, secrets)).collect();
    let admission = Arc::new(admission(&config.admission));
    let normalised: Arc<[_]> = config.smtp.normalise_bare_line_ends_from.clone().into();
    let Smtp { greeting_delay, greeting_delay_remembered, .. } = config.smtp;
    let greetings = Arc::new(Greetings::new(greeting_delay, greeting_delay_remembered));
    let (progress, progress_end) = unbounded();
    let (ringing, stop_ringing) = bounded::<()>(0);
    let controls: Vec<Arc<Control>> = (0..count).map(|_| Arc::default()).collect();
    let mut running = Running {
        shards: Vec::new(),
        controls: Shards::new(controls.clone()),
        progress: progress_end,
        workers,
        upkeep,
        policies: policies.clone(),
        greylists: greylists.clone(),
        _ringing: ringing,
    };
    for (n, ((listeners, logs), placement)) in
        sockets.into_iter().zip(logs).zip(placements(config)).enumerate()
    {
        let control = controls[n].clone();
        let bell = control.clone();
        // Every job in a channel and with a worker has room for its report.
        let (outcomes, reports) = outcome_channel(targets.reports_max(), Arc::new(move || bell.ring()));
        let plan = Plan {
            listeners: listeners.into_iter().zip(services.iter().cloned()).collect(),
            verifier: secrets.verifier(),
            handshakes_max: config.tls.handshakes_max.div_ceil(count),
            handshake_timeout: config.tls.handshake_timeout,
            admission: admission.clone(),
            policies: policies.clone(),
            lookups: lookups.clone(),
            normalised: normalised.clone(),
            sessions_max: config.sessions_max.div_ceil(count),
            greetings: greetings.clone(),
            pressure: pressure(&config.admission),
            logs,
            damaged: config.damaged_dir(),
            segment_size: u32::try_from(config.spool.segment_size_on(count)).expect("limits bound it"),
            // Of memory a sync proves nothing.
            sync: config.spool.durability == Durability::Sync && config.spool.queue == Queue::Disk,
            depth_max: config.spool.depth_max.div_ceil(count as u64) as usize,
            content_memory_max: config.spool.memory_max as usize,
            cache_size: config.spool.cache_size as usize / count,
            targets: targets.clone(),
            routes: routes.clone(),
            outcomes,
            reports,
            schedule,
            // One shard takes them all: they are few.
            injected: std::mem::take(&mut injected),
            observer: None,
            control: control.clone(),
            progress: progress.clone(),
        };
        let shard = LocalExecutorBuilder::new(placement)
            .name(&format!("shard-{n}"))
            .io_memory(RING_MEMORY_SIZE)
            .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
            .spawn(move || shard::run(plan))
            .map_err(|e| failed("a shard", &e))?;
        running.shards.push(shard);
    }
    let controls = running.controls.clone();
    std::thread::Builder::new()
        .name("bell".into())
        .spawn(move || {
            while stop_ringing.recv_timeout(RING_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                controls.ring();
            }
        })
        .map_err(|e| failed("what keeps the shards awake", &e))?;
    Ok(running)
}

impl Running {
    /// False if a signal came first: nothing has been accepted yet, so there is nothing to finish.
    fn wait_until_ready(&self, signals: &mut Signals) -> Result<bool, Error> {
        let mut left = self.shards.len();
        while left > 0 {
            match self.progress.recv_timeout(SIGNALS_INTERVAL) {
                Ok(_) => left -= 1,
                Err(RecvTimeoutError::Timeout) if signals.pending().any(|number| number != SIGHUP) => {
                    return Ok(false);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error("a shard ended while it started".into()));
                }
            }
        }
        Ok(true)
    }

    fn end(&self, ending: Ending) {
        self.controls.end(ending);
    }

    /// Waits for a signal, then ends everything in order. Returns how many messages are left in the queue.
    fn serve(
        self,
        mut signals: Signals,
        reload: Sender<()>,
        drain_timeout: Duration,
    ) -> Result<usize, Error> {
        let (signalled, signal) = bounded(2);
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                signals.forever().for_each(|number| {
                    let _ = match number {
                        // Told already is told.
                        SIGHUP => reload.try_send(()).is_ok(),
                        _ => signalled.send(number).is_ok(),
                    };
                })
            })
            .map_err(|e| Error(format!("cannot wait for signals: {e}")))?;
        let Ok(number) = signal.recv() else { return Err(Error("no signals can be had".into())) };
        tracing::info!(signal = number, "stopping: sessions may finish, a second signal ends at once");
        std::thread::Builder::new()
            .name("second-signal".into())
            .spawn(move || {
                if signal.recv().is_ok() {
                    tracing::warn!("second signal: ending at once");
                    telemetry::log::write_out();
                    std::process::exit(1);
                }
            })
            .map_err(|e| Error(format!("cannot wait for signals: {e}")))?;
        self.end(Ending::Drain);
        if !self.wait_until_drained(drain_timeout) {
            tracing::warn!("sessions did not finish in time: they are ended");
            self.end(Ending::Abort);
            self.wait_until_drained(ABORT_TIMEOUT);
        }
        let (stopped, workers_stopped) = bounded::<()>(1);
        std::thread::Builder::new()
            .name("stop-workers".into())
            .spawn(move || {
                self.workers.stop();
                self.upkeep.stop();
                drop(stopped);
            })
            .map_err(|e| Error(format!("cannot wait for the delivery workers: {e}")))?;
        if workers_stopped.recv_timeout(WORKERS_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("deliveries did not end in time: they are made again after the next start");
        }
        self.controls.end(Ending::Finish);
        let mut left = 0;
        for shard in self.shards {
            left += shard.join().map_err(|e| Error(format!("a shard failed: {e}")))?;
        }
        self.greylists.iter().for_each(|greylist| greylist.finish());
        for (policy, said) in self.policies.said().filter(|(_, said)| *said != Said::default()) {
            let Said { rejected, deferred, tagged, unavailable } = said;
            tracing::info!(policy, rejected, deferred, tagged, unavailable, "what a policy had to say");
        }
        Ok(left)
    }

    /// True if every shard has told that it has no session left.
    fn wait_until_drained(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut left = self.shards.len();
        while left > 0 {
            match self.progress.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Progress::Drained) => left -= 1,
                Ok(Progress::Ready) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }
}
