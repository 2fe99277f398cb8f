//! A gateway whose threads run: what it is asked, changed and ended by.
//!
//! [`Live`] is what other threads have of it: the configuration in force, its replacement ([`Live::reload`]), the order to drain. A reload
//! makes everything first and takes it into use then: what cannot be made changes nothing. On each shard new connections, and new
//! transactions of sessions in what all share, have the new; sessions keep the service they began with.
//!
//! Deliveries are replaced in this order: new workers; shards offer to them; the old ones end after the attempts they are making; what
//! waited in their channels goes back to the queue.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use glommio::{LocalExecutorBuilder, Placement as Pin, PoolPlacement};
use signal_hook::consts::SIGHUP;
use signal_hook::iterator::Signals;
use tracing::level_filters::LevelFilter;

use super::generation::Generation;
use super::sentinel::guard_thread;
use super::sockets::Sockets;
use super::succession::{Predecessor, Successor};
use super::systemd::Notifier;
use super::transports::Names;
use super::watch::{self, Watched};
use super::{BlockedSignals, Error, Extensions, Reread};
use crate::admin::{self, Admin, DRAIN_TIME_MAX, DrainOrder, Operations, Reloaded, Stage};
use crate::config::{Config, Durability, Placement, Queue};
use crate::delivery::{DeadLetters, Settlement, Targets, Upkeep, Workers, outcome_channel};
use crate::limits::RING_MEMORY_SIZE;
use crate::policy::{Policies, Said};
use crate::shard::{self, Control, DataLock, Ending, Injected, OpenedLog, Plan, Progress, Service, Shards};
use crate::telemetry::{self, Observer, Reload, reloaded};

/// How long sessions have to take their 421 when the time to drain is over.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long attempts that are being made may take to end: a transport that hangs must not hold the process.
const WORKERS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last answers to operators may take.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a start that takes long looks for a signal, and a drain at what is left.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Sets of workers that may still be ending. Each has its threads.
const RETIRING_MAX: usize = 4;
/// How often the service manager is told what is left.
const TELL_INTERVAL: Duration = Duration::from_secs(5);
/// How long a shard may sleep though it has something to do: see [`Control`].
const RING_INTERVAL: Duration = Duration::from_millis(250);

/// How it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Messages that are left in the queue.
    pub left: usize,
    /// Sessions had to be ended, or attempts were left behind, because the time for them was over.
    pub is_forced: bool,
}

/// How far a gateway is in its life, without what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Starting,
    Ready,
    Draining,
    /// The sessions have ended; what is queued is delivered.
    Delivering,
    Stopping,
}

/// Keys and sections that a reload cannot change: the shards and the data, and where operators reach the gateway.
const FIXED: [&str; 9] = [
    "data",
    "shards",
    "cores",
    "spool.queue",
    "spool.durability",
    "spool.segment_size",
    "log.format",
    "admin",
    "monitor",
];

/// A running gateway, for other threads.
pub struct Live {
    me: Weak<Live>,
    lock: DataLock,
    admin: Mutex<Option<Admin>>,
    shards: Shards,
    reread: Reread,
    extensions: Extensions,
    in_force: ArcSwap<Config>,
    targets: ArcSwap<Targets>,
    policies: ArcSwap<Policies>,
    notifier: Notifier,
    age: Mutex<Age>,
    /// It has been told to stop: another signal ends it at once.
    is_ending: AtomicBool,
    /// The process before this one has not ended yet.
    is_succeeding: AtomicBool,
    state: Mutex<State>,
    orders: Sender<Order>,
}

/// What is changed by a reload, by one at a time.
struct State {
    generation: Generation,
    names: Names,
    /// For those who connect.
    services: Vec<Service>,
    sockets: Sockets,
    workers: Option<Workers>,
    /// Threads that wait for workers of before to end.
    retiring: Vec<thread::JoinHandle<()>>,
    upkeep: Option<Upkeep>,
    dead: Arc<DeadLetters>,
    watch: Sender<Vec<Box<dyn Watched>>>,
    /// What sessions may still use of what is not in force any more. Its end may take its time, which no shard has: it comes here.
    retired: Vec<Retired>,
}

/// What was done for those who connected: it has all that their sessions may still use.
struct Retired(Vec<Service>);

impl Retired {
    fn is_used(&self) -> bool {
        self.0.iter().any(|service| Arc::strong_count(&service.session) > 1)
    }
}

/// What the gateway's own thread is told.
enum Order {
    Signal(i32),
    Drain(DrainOrder),
    /// Another process takes mail: this one ends as if it were to drain.
    Succeeded,
}

impl Live {
    fn age(&self) -> Age {
        *self.age.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_age(&self, age: Age) {
        *self.age.lock().unwrap_or_else(PoisonError::into_inner) = age;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_reload(&self) -> Result<Reloaded, String> {
        // Threads that are started inherit that.
        let _blocked = BlockedSignals::block();
        let mut state = self.state();
        if self.age() != Age::Ready {
            return Err("the gateway is starting or ending".into());
        }
        state.retiring.retain(|thread| !thread.is_finished());
        if state.retiring.len() >= RETIRING_MAX {
            return Err(format!(
                "deliveries of {RETIRING_MAX} configurations before this one have not ended yet: something hangs in them; try again later"
            ));
        }
        let mut config = (self.reread)().map_err(|e| e.to_string())?;
        let before = self.config();
        let (changed, needs_restart) = settle(&mut config, &before);
        let words = |error: Error| error.to_string();
        let new_sockets = state.sockets.bind_missing(&mut config.listeners).map_err(words)?;
        let State { generation, names, dead, .. } = &mut *state;
        let mut next = Generation::new(config, names, &self.extensions, Some(generation)).map_err(words)?;
        let (workers, teller) =
            start_workers(&next, dead.clone(), self.extensions.observer.clone()).map_err(words)?;
        let duplicates =
            new_sockets.duplicates().map_err(|e| format!("cannot duplicate a listening socket: {e}"))?;
        // From here on nothing fails.
        next.commit();
        let change = next.change(&state.names, self.shards.len());
        let services = change.services.clone();
        let mut teller = Some(teller);
        let each = duplicates
            .into_iter()
            .map(|sockets| (change.clone(), with_services(sockets, &services), teller.take()));
        let each: Vec<_> = each.collect();
        let answers = self.shards.tell_each(each, |shard, (change, sockets, teller)| {
            shard.apply(change);
            shard.listen(sockets);
            if let Some(teller) = teller {
                shard.take_in(teller);
            }
        });
        let is_everywhere = answers.iter().all(Option::is_some);
        state.sockets.add(new_sockets);
        state.sockets.keep(&next.config.listeners);
        super::steering::steer(&next.config, &state.sockets);
        self.in_force.store(next.config.clone());
        self.targets.store(Arc::new(next.targets.clone()));
        self.policies.store(Arc::new(next.asked.policies.clone()));
        if before.log.level != next.config.log.level {
            // There is no log to be changed in a process that has started none.
            let _ =
                telemetry::log::set_permanent_filter(&LevelFilter::from(next.config.log.level).to_string());
        }
        let _ = state.watch.send(next.take_watched());
        let retention = next.config.delivery.dead_retention;
        let old = std::mem::replace(&mut state.generation, next);
        let old_workers = state.workers.replace(workers);
        if let Some(old_workers) = old_workers {
            let (targets, next_targets) = (old.targets.clone(), state.generation.targets.clone());
            let retire = move || {
                old_workers.stop_but(Some(&next_targets));
                if is_everywhere {
                    targets.give_back();
                }
            };
            match thread::Builder::new().name("retire".into()).spawn(retire) {
                Ok(thread) => state.retiring.push(thread),
                Err(e) => tracing::error!(
                    "cannot wait for the deliveries of before: {e}; what they have is delivered after the next start"
                ),
            }
        }
        if old.config.delivery.dead_retention != retention {
            self.replace_upkeep(&mut state, retention);
        }
        let old_services = std::mem::replace(&mut state.services, services);
        state.retired.retain(Retired::is_used);
        state.retired.push(Retired(old_services));
        match is_everywhere {
            true => Ok(Reloaded { changed, needs_restart }),
            false => Err("a shard has not answered: the new configuration is in force where it has, and will be there as soon as it does".into()),
        }
    }

    /// Starts what operators speak to.
    pub fn start_admin(&self) -> Result<(), Error> {
        let settings = admin::Settings::of(&self.config()).map_err(|e| Error(e.to_string()))?;
        let operations = self.me.upgrade().expect("whoever asks has it");
        let admin = admin::start(settings, operations).map_err(|e| failed("the admin API", &e))?;
        *self.admin.lock().unwrap_or_else(PoisonError::into_inner) = Some(admin);
        Ok(())
    }

    fn stop_admin(&self, patience: Duration) {
        let admin = self.admin.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(admin) = admin {
            admin.stop(patience);
        }
    }

    fn try_upgrade(&self) -> Result<String, String> {
        let _blocked = BlockedSignals::block();
        let mut state = self.state();
        if self.age() != Age::Ready {
            return Err("the gateway is starting or ending".into());
        }
        if self.is_succeeding.load(Ordering::SeqCst) {
            return Err(
                "the process before this one still finishes its sessions: try again when it has ended".into(),
            );
        }
        self.notifier.status("a new process is started, which is to take over");
        let mut successor =
            Successor::start().map_err(|e| format!("the new process cannot be started: {e}"))?;
        if let Err(words) = successor.wait_until_checked() {
            successor.end();
            return Err(words);
        }
        // From here on the other process may do all that this one did.
        if let Some(upkeep) = state.upkeep.take() {
            upkeep.stop();
        }
        let let_go = self.shards.tell_each(0..self.shards.len(), |shard, _| shard.let_go());
        if let_go.iter().any(Option::is_none) {
            successor.end();
            self.resume(&mut state);
            return Err("a shard does not answer".into());
        }
        state.generation.asked.greylists.iter().for_each(|greylist| greylist.finish());
        self.stop_admin(Duration::ZERO);
        let is_in_memory = self.config().spool.queue == Queue::Memory;
        match successor.hand_over(self.lock.file(), is_in_memory, state.sockets.all()) {
            Ok(()) => {
                let pid = successor.pid();
                self.notifier.succeeded_by(pid);
                successor.release();
                state.sockets.keep(&[]);
                // Whoever waits for the lock to reload or to upgrade comes too late.
                self.set_age(Age::Draining);
                drop(state);
                let _ = self.orders.try_send(Order::Succeeded);
                Ok(format!("process {pid} takes mail; this one ends when its sessions have"))
            }
            Err(words) => {
                successor.end();
                self.resume(&mut state);
                Err(words)
            }
        }
    }

    /// Goes on after nobody has taken over.
    fn resume(&self, state: &mut State) {
        let services = state.services.clone();
        match state.sockets.duplicates() {
            Ok(duplicates) => {
                let each = duplicates.into_iter().map(|sockets| with_services(sockets, &services));
                self.shards.tell_each(each.collect::<Vec<_>>(), |shard, sockets| shard.listen_again(sockets));
            }
            Err(e) => tracing::error!("cannot listen again: {e}; restart the gateway"),
        }
        let retention = state.generation.config.delivery.dead_retention;
        self.replace_upkeep(state, retention);
        if !state.generation.asked.greylists.is_empty() {
            tracing::warn!("what greylists learn is not written down until the configuration is read anew");
        }
        if let Err(e) = self.start_admin() {
            tracing::error!("{e}");
        }
    }

    /// Has the shards deliver what is in all logs but those with these numbers, which are theirs.
    fn adopt_others(&self, own: &[usize]) -> Result<(), Error> {
        let mut state = self.state();
        let config = self.config();
        let others = shard::open_others(&config.spool_dir(), &config.damaged_dir(), own, super::new_log())?;
        if others.is_empty() {
            return Ok(());
        }
        let messages: usize = others.iter().map(|log| log.recovered.messages.len()).sum();
        let State { generation, names, .. } = &mut *state;
        register(names, &others)?;
        let change = generation.change(names, self.shards.len());
        let mut each: Vec<_> = (0..self.shards.len()).map(|_| (change.clone(), Vec::new())).collect();
        for (n, log) in others.into_iter().enumerate() {
            each[n % self.shards.len()].1.push(log);
        }
        let services = change.services;
        let answers = self.shards.tell_each(each, |shard, (change, logs)| {
            shard.apply(change);
            shard.adopt(logs);
        });
        let old_services = std::mem::replace(&mut state.services, services);
        state.retired.push(Retired(old_services));
        match answers.iter().all(Option::is_some) {
            true => tracing::info!(messages, "what the process before this one has left is delivered"),
            false => tracing::error!(
                messages,
                "a shard has not answered: what the process before this one has left may wait for the next start"
            ),
        }
        Ok(())
    }

    fn replace_upkeep(&self, state: &mut State, retention: Duration) {
        if let Some(upkeep) = state.upkeep.take() {
            upkeep.stop();
        }
        let (injector, resent) = shard::injection();
        self.shards.tell_each([resent], |shard, resent| shard.take_in(resent));
        match Upkeep::start(state.dead.clone(), Box::new(injector), retention) {
            Ok(upkeep) => state.upkeep = Some(upkeep),
            Err(e) => tracing::error!("cannot start the upkeep of dead letters: {e}; reload again"),
        }
    }
}

fn is_fixed(key: &str) -> bool {
    FIXED
        .iter()
        .any(|fixed| key.strip_prefix(fixed).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// What cannot change is in `config` as it was `before`; the keys that do change, and those that would.
fn settle(config: &mut Config, before: &Config) -> (Vec<String>, Vec<String>) {
    // Where the system was to choose a port it has chosen.
    let mut taken = BTreeSet::new();
    for listener in &mut config.listeners {
        let is_same = |known: &&crate::config::Listener| {
            known.address.ip() == listener.address.ip() && !taken.contains(&known.address)
        };
        if listener.address.port() == 0
            && let Some(known) = before.listeners.iter().find(is_same)
        {
            taken.insert(known.address);
            listener.address = known.address;
        }
    }
    let (changed, needs_restart) = differences(config, before).into_iter().partition(|key| !is_fixed(key));
    config.data = before.data.clone();
    config.cores = before.cores.clone();
    config.spool.queue = before.spool.queue;
    config.spool.durability = before.spool.durability;
    config.spool.segment_size = before.spool.segment_size;
    config.log.format = before.log.format;
    config.admin = before.admin.clone();
    config.monitor = before.monitor.clone();
    (changed, needs_restart)
}

/// The keys in which they differ: of sections the keys in them, of lists the lists.
fn differences(a: &Config, b: &Config) -> Vec<String> {
    fn compare(prefix: &str, a: &toml::Table, b: &toml::Table, found: &mut BTreeSet<String>) {
        for key in a.keys().chain(b.keys()) {
            let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match (a.get(key), b.get(key)) {
                (Some(a), Some(b)) if a == b => {}
                (Some(toml::Value::Table(a)), Some(toml::Value::Table(b))) => compare(&name, a, b, found),
                _ => drop(found.insert(name)),
            }
        }
    }
    let table = |config: &Config| config.to_toml().parse::<toml::Table>().unwrap_or_default();
    let mut found = BTreeSet::new();
    compare("", &table(a), &table(b), &mut found);
    found.into_iter().collect()
}

fn with_services(
    sockets: Vec<(std::net::SocketAddr, std::net::TcpListener)>,
    services: &[Service],
) -> Vec<(std::net::TcpListener, Service)> {
    let with_service = |(address, socket)| {
        let service = services.iter().find(|service| service.address == address)?;
        Some((socket, service.clone()))
    };
    sockets.into_iter().filter_map(with_service).collect()
}

/// Threads that deliver, and the other end of what they tell senders by.
fn start_workers(
    generation: &Generation,
    dead: Arc<DeadLetters>,
    observer: Option<Arc<dyn Observer>>,
) -> Result<(Workers, Injected), Error> {
    let (teller, notifications) = shard::injection();
    let config = &generation.config;
    let settlement = Settlement {
        schedule: config.delivery.schedule(),
        dead_letters: dead,
        notifier: generation.notifier(Box::new(teller)),
        routes: generation.routes.clone(),
        observer,
    };
    let workers =
        Workers::start(config.delivery.workers, &spare_cores(config), &generation.targets, settlement)
            .map_err(|e| failed("the delivery workers", &e))?;
    Ok((workers, notifications))
}

/// The lanes of these logs have their ids.
fn register(names: &mut Names, logs: &[OpenedLog]) -> Result<(), Error> {
    let lanes = logs.iter().flat_map(|log| &log.recovered.lanes);
    lanes.filter(|name| !name.is_empty()).try_for_each(|name| names.id(name).map(drop))
}

fn failed(what: &str, error: &dyn fmt::Display) -> Error {
    Error(format!("cannot start {what}: {error}"))
}

/// Where each shard's thread runs: on the named cores, or on those this process may use, in order.
pub(super) fn placements(config: &Config) -> Vec<Pin> {
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

/// What a gateway is started with.
pub struct Parts {
    pub generation: Generation,
    pub names: Names,
    pub sockets: Sockets,
    /// Of the data.
    pub lock: DataLock,
    pub extensions: Extensions,
    pub reread: Reread,
    pub notifier: Notifier,
    /// Another process still runs, and this one listens when that has been told: see [`Running::listen`].
    pub is_successor: bool,
}

/// See the module.
pub struct Running {
    live: Arc<Live>,
    orders: Receiver<Order>,
    shards: Vec<glommio::ExecutorJoinHandle<usize>>,
    progress: Receiver<Progress>,
    /// Dropped when the shards have ended: nothing is ever sent.
    _ringing: Sender<()>,
}

impl Running {
    /// Starts the shards with these sockets and logs, and everything that stands around them. Signals must be blocked: threads inherit that.
    pub fn start(parts: Parts, logs: Vec<Vec<OpenedLog>>) -> Result<Running, Error> {
        let Parts { mut generation, mut names, sockets, lock, extensions, reread, notifier, is_successor } =
            parts;
        let config = generation.config.clone();
        let count = config.cores.shards_count();
        // What a log knows a shard knows: all of them number their lanes alike.
        logs.iter().try_for_each(|logs| register(&mut names, logs))?;
        let dead_dir = config.dead_dir();
        let dead =
            if is_successor { DeadLetters::beside_another(&dead_dir) } else { DeadLetters::new(&dead_dir) };
        let dead = dead.map_err(|e| Error(format!("cannot make the folder {}: {e}", dead_dir.display())))?;
        let dead = Arc::new(dead);
        let (injector, resent) = shard::injection();
        let (workers, notifications) = start_workers(&generation, dead.clone(), extensions.observer.clone())?;
        let mut injected = vec![resent, notifications];
        let upkeep = Upkeep::start(dead.clone(), Box::new(injector), config.delivery.dead_retention)
            .map_err(|e| failed("the upkeep of dead letters", &e))?;
        let change = generation.change(&names, count);
        let duplicates =
            sockets.duplicates().map_err(|e| Error(format!("cannot duplicate a listening socket: {e}")))?;
        let (progress, progress_end) = unbounded();
        let (ringing, stop_ringing) = bounded::<()>(0);
        let controls: Vec<Arc<Control>> = (0..count).map(|_| Arc::default()).collect();
        let mut shards = Vec::new();
        for (n, ((listeners, logs), placement)) in
            duplicates.into_iter().zip(logs).zip(placements(&config)).enumerate()
        {
            let control = controls[n].clone();
            let bell = control.clone();
            // Every job in a channel and with a worker has room for its report.
            let capacity = generation.targets.reports_max();
            let (outcomes, reports) = outcome_channel(capacity, Arc::new(move || bell.ring()));
            let plan = Plan {
                listeners: if is_successor { Vec::new() } else { with_services(listeners, &change.services) },
                settings: change.settings.clone(),
                logs,
                damaged: config.damaged_dir(),
                segment_size: u32::try_from(config.spool.segment_size_on(count)).expect("limits bound it"),
                // Of memory a sync proves nothing.
                sync: config.spool.durability == Durability::Sync && config.spool.queue == Queue::Disk,
                outward: change.outward.clone(),
                outcomes,
                reports,
                // One shard takes them all: they are few.
                injected: std::mem::take(&mut injected),
                control,
                observer: extensions.observer.clone(),
                progress: progress.clone(),
            };
            let shard = LocalExecutorBuilder::new(placement)
                .name(&format!("shard-{n}"))
                .io_memory(RING_MEMORY_SIZE)
                .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
                .spawn(move || guard_thread(shard::run(plan)))
                .map_err(|e| failed("a shard", &e))?;
            shards.push(shard);
        }
        let controls = Shards::new(controls);
        let rung = controls.clone();
        thread::Builder::new()
            .name("bell".into())
            .spawn(move || {
                while stop_ringing.recv_timeout(RING_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    rung.ring();
                }
            })
            .map_err(|e| failed("what keeps the shards awake", &e))?;
        let watch = watch::start(generation.take_watched())?;
        let (orders, ordered) = bounded(4);
        let live = Arc::new_cyclic(|me| Live {
            me: me.clone(),
            lock,
            admin: Mutex::default(),
            shards: controls,
            reread,
            extensions,
            in_force: ArcSwap::new(config),
            targets: ArcSwap::from_pointee(generation.targets.clone()),
            policies: ArcSwap::from_pointee(generation.asked.policies.clone()),
            notifier,
            age: Mutex::new(Age::Starting),
            is_ending: AtomicBool::new(false),
            is_succeeding: AtomicBool::new(is_successor),
            state: Mutex::new(State {
                generation,
                names,
                services: change.services,
                sockets,
                workers: Some(workers),
                retiring: Vec::new(),
                upkeep: Some(upkeep),
                dead,
                watch,
                retired: Vec::new(),
            }),
            orders,
        });
        Ok(Running { live, orders: ordered, shards, progress: progress_end, _ringing: ringing })
    }

    /// Accepts from here on, where another process did before.
    pub fn listen(&self) -> Result<(), Error> {
        let state = self.live.state();
        let duplicates = state
            .sockets
            .duplicates()
            .map_err(|e| Error(format!("cannot duplicate a listening socket: {e}")))?;
        let each = duplicates.into_iter().map(|sockets| with_services(sockets, &state.services));
        let each: Vec<_> = each.collect();
        self.live.shards.tell_each(each, |shard, sockets| shard.listen(sockets));
        Ok(())
    }

    /// Adopts the logs of the process before this one, once it has ended, but for those with the numbers of `own_logs`.
    pub fn adopt_after(&self, predecessor: Predecessor, own_logs: Option<Vec<usize>>) -> Result<(), Error> {
        let live = self.live.clone();
        let adopt = move || {
            predecessor.wait_for_end();
            if let Some(own) = own_logs
                && let Err(e) = live.adopt_others(&own)
            {
                tracing::error!(
                    "cannot adopt the logs of the process before this one: {e}; what is in them is delivered after the next start"
                );
            }
            live.is_succeeding.store(false, Ordering::SeqCst);
        };
        let thread = thread::Builder::new().name("adopt".into()).spawn(adopt);
        thread.map(drop).map_err(|e| failed("what adopts the logs of the process before this one", &e))
    }

    /// What other threads may have of it.
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// False if it is not wanted any more before: nothing has been accepted yet, so there is nothing to finish.
    pub fn wait_until_ready(&self, mut is_unwanted: impl FnMut() -> bool) -> Result<bool, Error> {
        let mut left = self.shards.len();
        while left > 0 {
            match self.progress.recv_timeout(LOOK_INTERVAL) {
                Ok(_) => left -= 1,
                Err(RecvTimeoutError::Timeout) if is_unwanted() => return Ok(false),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error("a shard ended while it started".into()));
                }
            }
        }
        self.live.set_age(Age::Ready);
        Ok(true)
    }

    /// Waits for an order to end, and ends everything in order.
    pub fn serve_orders(self) -> Result<Ended, Error> {
        let Ok(order) = self.orders.recv() else { return Err(Error("no orders can be had".into())) };
        self.end(order)
    }

    /// Ends at once what was started, and will not be served.
    pub fn abandon(self) {
        let at_once = DrainOrder { deliveries: None, timeout: Some(Duration::ZERO) };
        if let Err(e) = self.end(Order::Drain(at_once)) {
            tracing::error!("{e}");
        }
    }

    /// Waits for a signal or an order to end, and ends everything in order.
    pub fn serve(self, mut signals: Signals) -> Result<Ended, Error> {
        let orders = self.live.orders.clone();
        let (reload, to_reload) = bounded::<()>(1);
        let live = self.live.clone();
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                signals.forever().for_each(|number| {
                    // Told already is told.
                    if number == SIGHUP {
                        let _ = reload.try_send(());
                    } else if live.is_ending.swap(true, Ordering::SeqCst) {
                        tracing::warn!("a signal while it stops: ending at once");
                        telemetry::log::write_out();
                        std::process::exit(1);
                    } else {
                        let _ = orders.try_send(Order::Signal(number));
                    }
                })
            })
            .map_err(|e| Error(format!("cannot wait for signals: {e}")))?;
        let reloaded = self.live.clone();
        thread::Builder::new()
            .name("reload".into())
            .spawn(move || {
                while to_reload.recv().is_ok() {
                    // It is said in the log.
                    let _ = reloaded.reload();
                }
            })
            .map_err(|e| Error(format!("cannot reload: {e}")))?;
        self.serve_orders()
    }

    fn end(self, order: Order) -> Result<Ended, Error> {
        let is_succeeded = matches!(order, Order::Succeeded);
        let order = match order {
            Order::Signal(signal) => {
                tracing::info!(signal, "stopping: sessions may finish, a second signal ends at once");
                DrainOrder::default()
            }
            Order::Succeeded => {
                tracing::info!("succeeded by another process: sessions may finish");
                DrainOrder {
                    // What is in memory cannot be adopted.
                    deliveries: (self.live.config().spool.queue == Queue::Memory)
                        .then(|| self.live.config().drain_timeout),
                    timeout: None,
                }
            }
            Order::Drain(order) => {
                tracing::info!("stopping as ordered: sessions may finish, a signal ends at once");
                order
            }
        };
        let live = self.live.clone();
        let mut is_forced = false;
        // Of a process that was succeeded the first signal is not the second.
        if !is_succeeded {
            live.is_ending.store(true, Ordering::SeqCst);
        }
        live.set_age(Age::Draining);
        live.notifier.stopping("draining");
        // Whoever reloads has finished that before.
        live.state().sockets.keep(&[]);
        live.shards.end(Ending::Drain);
        if !self.wait_until_drained(order.timeout.unwrap_or(live.config().drain_timeout)) {
            tracing::warn!("sessions did not finish in time: they are ended");
            is_forced = true;
            live.shards.end(Ending::Abort);
            self.wait_until_drained(ABORT_TIMEOUT);
        }
        if let Some(timeout) = order.deliveries {
            live.set_age(Age::Delivering);
            is_forced |= !live.wait_until_delivered(timeout);
        }
        live.set_age(Age::Stopping);
        let (stopped, workers_stopped) = bounded::<()>(1);
        let stopping = live.clone();
        thread::Builder::new()
            .name("stop-workers".into())
            .spawn(move || {
                let mut state = stopping.state();
                let (workers, upkeep) = (state.workers.take(), state.upkeep.take());
                let retiring = std::mem::take(&mut state.retiring);
                drop(state);
                workers.into_iter().for_each(Workers::stop);
                upkeep.into_iter().for_each(Upkeep::stop);
                for thread in retiring {
                    let _ = thread.join();
                }
                // Who waits for the end may want the data folder then.
                drop(stopping);
                drop(stopped);
            })
            .map_err(|e| Error(format!("cannot wait for the delivery workers: {e}")))?;
        if workers_stopped.recv_timeout(WORKERS_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("deliveries did not end in time: they are made again after the next start");
            is_forced = true;
        }
        live.stop_admin(ADMIN_TIMEOUT);
        live.shards.end(Ending::Finish);
        let mut left = 0;
        for shard in self.shards {
            left += shard.join().map_err(|e| Error(format!("a shard failed: {e}")))?;
        }
        let state = live.state();
        state.generation.asked.greylists.iter().for_each(|greylist| greylist.finish());
        for (policy, said) in
            state.generation.asked.policies.said().filter(|(_, said)| *said != Said::default())
        {
            let Said { rejected, deferred, tagged, unavailable } = said;
            tracing::info!(policy, rejected, deferred, tagged, unavailable, "what a policy had to say");
        }
        Ok(Ended { left, is_forced })
    }

    /// True if every shard has told that it has no session left.
    fn wait_until_drained(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout.min(DRAIN_TIME_MAX);
        let mut left = self.shards.len();
        while left > 0 {
            let time_left = until.saturating_duration_since(Instant::now());
            self.live.notifier.draining(&format!("{left} shards have sessions that finish"), time_left);
            match self.progress.recv_timeout(time_left.min(TELL_INTERVAL)) {
                Ok(Progress::Drained) => left -= 1,
                Ok(Progress::Ready) => {}
                Err(RecvTimeoutError::Timeout) if !time_left.is_zero() => {}
                Err(_) => return false,
            }
        }
        true
    }
}

impl Operations for Live {
    fn shards(&self) -> Shards {
        self.shards.clone()
    }

    fn config(&self) -> Arc<Config> {
        self.in_force.load_full()
    }

    fn targets(&self) -> Targets {
        (**self.targets.load()).clone()
    }

    fn policies(&self) -> Policies {
        (**self.policies.load()).clone()
    }

    fn reload(&self) -> Result<Reloaded, String> {
        self.notifier.reloading();
        let read = self.try_reload();
        self.notifier.ready(match &read {
            Ok(_) => "the configuration was read anew",
            Err(_) => "the configuration was not replaced: see the log",
        });
        reloaded(Reload::Configuration, read.is_ok());
        match &read {
            Ok(Reloaded { changed, needs_restart }) => {
                tracing::info!(changed = changed.join(" "), "the configuration was read anew");
                if !needs_restart.is_empty() {
                    let keys = needs_restart.join(" ");
                    tracing::warn!(keys, "changed, and as they were until the next start");
                }
            }
            Err(words) => {
                tracing::error!("the configuration was not replaced, the old one is in force: {words}")
            }
        }
        read
    }

    fn drain(&self, order: DrainOrder) {
        // It is told once; what comes later is not heard.
        let _ = self.orders.try_send(Order::Drain(order));
    }

    fn upgrade(&self) -> Result<String, String> {
        let succeeded = self.try_upgrade();
        match &succeeded {
            Ok(words) => tracing::info!("{words}"),
            Err(words) => {
                self.notifier.status("no other process has taken over: see the log");
                tracing::error!("no other process has taken over, this one goes on: {words}");
            }
        }
        succeeded
    }

    fn stage(&self) -> Stage {
        let left = || {
            let each = std::iter::repeat_n((), self.shards.len());
            let counts = self.shards.tell_each(each, |shard, ()| (shard.sessions(), shard.depth()));
            counts.into_iter().flatten().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
        };
        match self.age() {
            Age::Starting => Stage::Starting,
            Age::Ready => Stage::Ready,
            Age::Draining => {
                let (sessions, messages) = left();
                Stage::Draining { sessions, messages }
            }
            Age::Delivering | Age::Stopping => Stage::Stopping { messages: left().1 },
        }
    }
}

impl Live {
    /// True if nothing is queued any more but what the operator holds.
    fn wait_until_delivered(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout.min(DRAIN_TIME_MAX);
        let mut told = None;
        loop {
            let each = std::iter::repeat_n((), self.shards.len());
            let counts = self.shards.tell_each(each, |shard, ()| (shard.depth(), shard.held()));
            let held: usize = counts.iter().flatten().map(|(_, held)| held).sum();
            let left =
                counts.iter().flatten().map(|(depth, held)| depth.saturating_sub(*held)).sum::<usize>();
            if left == 0 && counts.iter().all(Option::is_some) {
                if held > 0 {
                    tracing::warn!(messages = held, "the operator holds these: they were not waited for");
                }
                return true;
            }
            let time_left = until.saturating_duration_since(Instant::now());
            if told.is_none_or(|told: Instant| told.elapsed() >= TELL_INTERVAL) {
                told = Some(Instant::now());
                self.notifier.draining(&format!("{left} messages are delivered, {held} are held"), time_left);
            }
            if time_left.is_zero() {
                tracing::warn!(
                    messages = left,
                    held,
                    "not everything was delivered in time: it is after the next start"
                );
                return false;
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }
}
