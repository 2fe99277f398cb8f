//! Runs a plan: one glommio executor a core, and the thread that watches them.
//!
//! 1. A probe connects once, reads the greeting and what EHLO offers: a target that is not there is said to be so at once.
//! 2. Every connection is made; the load begins when all of them are greeted, or when [`Plan::timeout`] is over.
//! 3. Warm-up, then the window that counts; the server's usage is sampled at both its ends. Hostile clients are there for
//!    this window only.
//! 4. Replies that are owed are waited for, connections end with QUIT.
//!
//! The only module that waits, and that names glommio, besides [`crate::hostile`].

mod connection;
mod core;
pub(crate) mod link;
pub mod probe;
mod readiness;
mod siege;
pub(crate) mod tls;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use glommio::{LocalExecutorBuilder, Placement};

use crate::content::Contents;
use crate::hostile::{self, Scenario};
use crate::ledger;
use crate::measure::{Figures, INTERVAL, Interval};
use crate::plan::{Goal, Plan};
use crate::schedule::Window;
use crate::usage::{self, Usage};
use probe::Probe;

/// Locked memory of a ring for registered buffers, which the load does not use.
const RING_MEMORY_SIZE: usize = 64 * 1024;
/// How late glommio may look at its timers while sockets are ready all the time.
const PREEMPT_TIMER: Duration = Duration::from_millis(1);
/// How often the watching thread looks around.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What cannot begin, or came to nothing as a whole.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The target does not answer as an SMTP server.
    #[error("{target}: {error}")]
    Target {
        /// What it is called.
        target: String,
        /// What happened.
        error: io::Error,
    },
    /// Contents, ledger or certificates cannot be used.
    #[error("{what}: {error}")]
    File {
        /// Which.
        what: String,
        /// Why.
        error: io::Error,
    },
    /// No executor on a core.
    #[error("core {core}: {error}")]
    Executor {
        /// The core.
        core: usize,
        /// Why.
        error: String,
    },
    /// The plan contradicts itself.
    #[error("{0}")]
    Plan(&'static str),
}

/// How a run stands, for those who look on.
#[derive(Debug)]
pub enum Stage {
    /// Connections are being made: so many of so many are greeted.
    Connecting(usize, usize),
    /// Messages are sent and do not count.
    WarmUp,
    /// They count.
    Counting,
    /// Replies that are owed are waited for.
    Finishing,
}

/// Looks on while a run goes.
pub trait Watcher {
    /// An interval is over on every core; called in order.
    fn handle_interval(&mut self, interval: &Interval);
    /// Called every [`crate::measure::INTERVAL`] or more often. `elapsed` is time since the load began.
    fn handle_stage(&mut self, stage: Stage, elapsed: Duration);
}

/// Looks away.
pub struct Nobody;

impl Watcher for Nobody {
    fn handle_interval(&mut self, _: &Interval) {}
    fn handle_stage(&mut self, _: Stage, _: Duration) {}
}

/// What came of a run.
pub struct Outcome {
    /// The run's part of every message's name.
    pub run: u32,
    /// When it began, seconds since 1970.
    pub started: u64,
    /// What the probe saw.
    pub probe: Probe,
    /// Everything that counted.
    pub figures: Figures,
    /// The course of the run from its beginning, warm-up included.
    pub intervals: Vec<Interval>,
    /// From the beginning of the load to that of counting.
    pub counting_from: Duration,
    /// How long counting lasted.
    pub elapsed: Duration,
    /// CPU time of the harness while counting, seconds.
    pub load_cpu_seconds: f64,
    /// The server's process tree, if it was named: its CPU seconds while counting, and its peak memory then.
    pub server: Option<Usage>,
    /// Why the server's usage is not known although it was asked for.
    pub server_fault: Option<String>,
    /// It was ended from outside before its goal.
    pub is_interrupted: bool,
    /// It was to send a number of messages, and ended because none was accepted for twice [`Plan::timeout`].
    pub has_given_up: bool,
    /// What came of the hostile clients.
    pub hostile: BTreeMap<Scenario, hostile::Figures>,
}

/// What the cores share.
struct Control {
    /// Cores on which the load's own connections have not all ended.
    loaded_cores: AtomicUsize,
    /// Connections that were greeted, or failed for the first time.
    arrived: AtomicUsize,
    /// When the load begins, once that is known.
    begin: OnceLock<Instant>,
    /// End now.
    is_stopped: AtomicBool,
    /// One task of each core, woken from outside every [`LOOK_INTERVAL`]: glommio may go to sleep over tasks that are
    /// ready, where it should preempt before it has run the first of them, and only an event from outside ends that.
    bells: Vec<Mutex<Option<Waker>>>,
    tickets: Arc<AtomicU64>,
}

impl Control {
    fn ring(&self) {
        for bell in &self.bells {
            bell.lock().expect("a bell").iter().for_each(Waker::wake_by_ref);
        }
    }

    /// From here on core `index` is woken by this; by nothing once it has ended.
    fn hang_bell(&self, index: usize, waker: Option<Waker>) {
        *self.bells[index].lock().expect("a bell") = waker;
    }
}

/// What a core sends to the watching thread.
enum News {
    Interval(Box<Interval>),
    /// The core's part of the goal is reached at this time; replies that do not count may still be owed.
    Reached(Instant),
    Ended(Box<Figures>),
    Hostile(BTreeMap<Scenario, hostile::Figures>),
}

/// Runs `plan` to its end. `interrupted` set from outside ends it early, in order.
///
/// # Errors
/// [`RunError`]; refusals and failures of single connections are figures, not errors.
pub fn run(
    plan: &Plan,
    interrupted: &Arc<AtomicBool>,
    watcher: &mut dyn Watcher,
) -> Result<Outcome, RunError> {
    let contents = Contents::prepare(&plan.content, plan.seed)
        .map_err(|error| RunError::File { what: plan.content.to_string(), error })?;
    if plan.ledger.is_some() && !contents.are_named() {
        return Err(RunError::Plan(
            "with a ledger every content must name its message, which takes 38 octets and more",
        ));
    }
    let probe =
        probe::probe(plan).map_err(|error| RunError::Target { target: plan.target.name.clone(), error })?;
    let tls = plan.tls.as_ref().map(tls::client_config).transpose();
    let tls = tls.map_err(|error| RunError::File { what: "the authorities".to_owned(), error })?;
    let hostile_tls = (!plan.hostile.is_empty()).then(|| siege::client(plan)).transpose();
    let hostile_tls =
        hostile_tls.map_err(|error| RunError::File { what: "TLS of hostile clients".to_owned(), error })?;
    let run: u32 = rand::random();
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if let Some(path) = &plan.ledger {
        let header = ledger::Header::new(run, started, plan.target.name.clone(), contents.catalogue());
        ledger::Writer::create(path, &header).map_err(|error| ledger_fault(plan, error))?;
    }
    let tickets = match plan.goal {
        Goal::Messages(count) => count,
        Goal::Duration(_) => 0,
    };
    let control = Arc::new(Control {
        loaded_cores: AtomicUsize::new(plan.cores.len()),
        arrived: AtomicUsize::new(0),
        begin: OnceLock::new(),
        is_stopped: AtomicBool::new(false),
        bells: plan.cores.iter().map(|_| Mutex::default()).collect(),
        tickets: Arc::new(AtomicU64::new(tickets)),
    });
    let (sender, receiver) = crossbeam_channel::unbounded();
    let task = core::Task {
        plan: Arc::new(plan.clone()),
        contents: Arc::new(contents),
        tls: tls.map(Arc::new),
        hostile_tls: hostile_tls.map(Arc::new),
        run,
        control: control.clone(),
    };
    let mut executors = Vec::new();
    for (index, &core) in plan.cores.iter().enumerate() {
        let (task, sender) = (task.clone(), sender.clone());
        let executor = executor(&format!("load-{index}"), core)
            .spawn(move || async move { readiness::provide(core::run(task, index, sender)).await? })
            .map_err(|error| RunError::Executor { core, error: error.to_string() });
        match executor {
            Ok(executor) => executors.push(executor),
            Err(error) => {
                control.is_stopped.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
    }
    for (index, &core) in plan.hostile_cores.iter().enumerate() {
        let (task, sender) = (task.clone(), sender.clone());
        let executor = executor(&format!("hostile-{index}"), core)
            .spawn(move || async move { readiness::provide(siege::run(task, index, sender)).await })
            .map_err(|error| RunError::Executor { core, error: error.to_string() });
        match executor {
            Ok(executor) => executors.push(executor),
            Err(error) => {
                control.is_stopped.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
    }
    drop(sender);
    let mut watch = Watch::new(plan, &control, interrupted, watcher);
    watch.wait_for_connections();
    watch.follow(&receiver);
    let outcome = watch.outcome(run, started, probe);
    for executor in executors {
        let ended = executor.join();
        let fault = match ended {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => return Err(ledger_fault(plan, error)),
            Err(error) => error.to_string(),
        };
        return Err(RunError::Executor { core: plan.cores[0], error: fault });
    }
    Ok(outcome)
}

fn executor(name: &str, core: usize) -> LocalExecutorBuilder {
    LocalExecutorBuilder::new(Placement::Fixed(core))
        .name(name)
        .io_memory(RING_MEMORY_SIZE)
        .preempt_timer(PREEMPT_TIMER)
}

fn ledger_fault(plan: &Plan, error: io::Error) -> RunError {
    let path = plan.ledger.as_deref().map(|path| path.display().to_string());
    RunError::File { what: format!("the ledger {}", path.unwrap_or_default()), error }
}

/// The watching thread's view.
struct Watch<'a> {
    plan: &'a Plan,
    control: &'a Control,
    interrupted: &'a AtomicBool,
    watcher: &'a mut dyn Watcher,
    window: Option<Window>,
    /// Intervals that not every core has told of yet, with how many have.
    open: BTreeMap<usize, (usize, Interval)>,
    intervals: Vec<Interval>,
    figures: Figures,
    hostile: BTreeMap<Scenario, hostile::Figures>,
    reached: Vec<Instant>,
    before: Option<Sample>,
    after: Option<Sample>,
    memory_peak: u64,
    server_fault: Option<String>,
    /// How long nothing has been accepted.
    quiet: Duration,
    has_given_up: bool,
}

/// What was used up to a moment.
struct Sample {
    at: Instant,
    load_cpu: f64,
    server: Option<Usage>,
}

impl<'a> Watch<'a> {
    fn new(
        plan: &'a Plan,
        control: &'a Control,
        interrupted: &'a AtomicBool,
        watcher: &'a mut dyn Watcher,
    ) -> Self {
        Watch {
            plan,
            control,
            interrupted,
            watcher,
            window: None,
            open: Default::default(),
            intervals: Vec::new(),
            figures: Figures::default(),
            hostile: BTreeMap::new(),
            reached: Vec::new(),
            before: None,
            after: None,
            memory_peak: 0,
            server_fault: None,
            quiet: Duration::ZERO,
            has_given_up: false,
        }
    }

    /// Sets the beginning of the load once every connection has arrived, or has had time enough.
    fn wait_for_connections(&mut self) {
        let deadline = Instant::now() + self.plan.timeout;
        loop {
            let arrived = self.control.arrived.load(Ordering::Relaxed);
            if arrived >= self.plan.connections || Instant::now() >= deadline || self.is_interrupted() {
                break;
            }
            self.watcher.handle_stage(Stage::Connecting(arrived, self.plan.connections), Duration::ZERO);
            self.control.ring();
            std::thread::sleep(Duration::from_millis(5));
        }
        // A moment ahead, so that no core comes late.
        let begin = *self.control.begin.get_or_init(|| Instant::now() + Duration::from_millis(20));
        self.window = Some(Window::new(self.plan, begin));
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Takes what the cores tell until the last of them has ended.
    fn follow(&mut self, news: &Receiver<News>) {
        let window = self.window.expect("the load has begun");
        loop {
            let now = Instant::now();
            if self.before.is_none() && now >= window.from {
                self.before = Some(self.sample());
            }
            let is_over =
                window.until.is_some_and(|until| now >= until) || self.reached.len() == self.plan.cores.len();
            if self.after.is_none() && is_over {
                self.after = Some(self.sample());
            }
            self.control.ring();
            if self.is_interrupted() {
                self.control.is_stopped.store(true, Ordering::Relaxed);
            }
            let stage = match (&self.before, &self.after) {
                (None, _) => Stage::WarmUp,
                (_, None) => Stage::Counting,
                _ => Stage::Finishing,
            };
            self.watcher.handle_stage(stage, now.saturating_duration_since(window.begin));
            let mut wake = now + LOOK_INTERVAL;
            for edge in [self.before.is_none().then_some(window.from), window.until] {
                wake = edge.filter(|edge| *edge > now).map_or(wake, |edge| wake.min(edge));
            }
            loop {
                match news.recv_deadline(wake) {
                    Ok(News::Interval(interval)) => self.take_interval(*interval),
                    Ok(News::Reached(at)) => self.reached.push(at),
                    Ok(News::Ended(figures)) => self.figures.add(&figures),
                    Ok(News::Hostile(scenarios)) => {
                        for (scenario, figures) in scenarios {
                            self.hostile.entry(scenario).or_default().add(&figures);
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return self.finish(),
                }
            }
        }
    }

    fn finish(&mut self) {
        for (_, interval) in std::mem::take(&mut self.open).into_values() {
            self.watcher.handle_interval(&interval);
            self.intervals.push(interval);
        }
    }

    fn take_interval(&mut self, interval: Interval) {
        let (count, sum) =
            self.open.entry(interval.index).or_insert_with(|| (0, Interval::new(interval.index)));
        *count += 1;
        sum.add(&interval);
        while let Some(first) = self.open.first_entry().filter(|first| first.get().0 == self.plan.cores.len())
        {
            let (_, interval) = first.remove();
            self.watcher.handle_interval(&interval);
            self.quiet = if interval.accepted > 0 { Duration::ZERO } else { self.quiet + INTERVAL };
            self.intervals.push(interval);
            self.watch_memory();
        }
        let is_hopeless = matches!(self.plan.goal, Goal::Messages(_)) && self.quiet >= 2 * self.plan.timeout;
        if is_hopeless && !self.has_given_up {
            self.has_given_up = true;
            self.control.is_stopped.store(true, Ordering::Relaxed);
        }
    }

    fn sample(&mut self) -> Sample {
        let server = self.plan.server_pid.and_then(|pid| match Usage::of_tree(pid) {
            Ok(usage) => Some(usage),
            Err(error) => {
                self.server_fault = Some(error.to_string());
                None
            }
        });
        let load_cpu = usage::own_cpu_seconds().unwrap_or_default();
        Sample { at: Instant::now(), load_cpu, server }
    }

    /// Looks at the server's memory while counting.
    fn watch_memory(&mut self) {
        if self.before.is_some()
            && self.after.is_none()
            && let Some(usage) = self.plan.server_pid.and_then(|pid| Usage::of_tree(pid).ok())
        {
            self.memory_peak = self.memory_peak.max(usage.memory_octets);
        }
    }

    fn outcome(mut self, run: u32, started: u64, probe: Probe) -> Outcome {
        let window = self.window.expect("the load has begun");
        let last = self.reached.iter().max().copied();
        let after = match self.after.take() {
            Some(after) => after,
            None => self.sample(),
        };
        let is_interrupted = self.is_interrupted();
        let is_early = is_interrupted || self.has_given_up;
        let until = match (window.until, last) {
            (Some(until), _) if !is_early => until,
            (_, Some(last)) if !is_early => last,
            _ => after.at.min(window.until.unwrap_or(after.at)),
        };
        let server = match (self.before.as_ref().and_then(|before| before.server), after.server) {
            (Some(before), Some(after)) => Some(Usage {
                cpu_seconds: after.cpu_seconds - before.cpu_seconds,
                memory_octets: self.memory_peak.max(after.memory_octets),
                processes: after.processes,
            }),
            _ => None,
        };
        let load_before = self.before.as_ref().map_or(after.load_cpu, |before| before.load_cpu);
        Outcome {
            run,
            started,
            probe,
            figures: self.figures,
            intervals: self.intervals,
            counting_from: window.from - window.begin,
            elapsed: until.saturating_duration_since(window.from),
            load_cpu_seconds: after.load_cpu - load_before,
            server,
            server_fault: self.server_fault,
            has_given_up: self.has_given_up,
            is_interrupted,
            hostile: self.hostile,
        }
    }
}

type NewsSender = Sender<News>;
