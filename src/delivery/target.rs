//! A target: a transport with a name, its own bounds and its own channel, isolated from all others.
//!
//! Shards offer jobs ([`Target::jobs`]) and look whether it is worth it ([`Target::is_down`]); workers take them, within the bounds, and
//! say how it went. What one target does or does not do costs no other anything but its share of memory and of a core.
//!
//! Invariants:
//! - no more attempts run at a time than [`Limits::concurrency`], nor begin faster than [`Limits::rate`];
//! - while the circuit breaker is open nobody is asked but one probe per interval.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tracing::{info, warn};

use super::meters::{Meters, TargetReading};
use super::{BlockingDelivery, Delivery, JobReceiver, JobSender, Outcome, job_channel};
use crate::breaker::{Breaker, Change, Turn};
use crate::mail::Capabilities;
use crate::telemetry::Escaped;

/// A target's place in the list that all shards and workers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub u16);

/// How much is asked of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Attempts at a time, over all workers; at least 1.
    pub concurrency: usize,
    /// Attempts that begin in a second, if that is bounded.
    pub rate: Option<NonZeroU32>,
    /// Attempts in a row that fail because of the target, until it is left alone; 0: it never is.
    pub breaker_failures: u32,
    /// For how long, until one attempt is made to see whether it is back.
    pub breaker_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            concurrency: 32,
            rate: None,
            breaker_failures: 10,
            breaker_interval: Duration::from_secs(30),
        }
    }
}

/// How attempts are made.
#[derive(Clone)]
pub enum Means {
    /// On the workers that all targets share, many at a time.
    Async(Arc<dyn Delivery>),
    /// On threads of its own, as many as [`Limits::concurrency`].
    Blocking(Arc<dyn BlockingDelivery>),
}

impl Means {
    pub(super) fn capabilities(&self) -> Capabilities {
        match self {
            Means::Async(delivery) => delivery.capabilities(),
            Means::Blocking(delivery) => delivery.capabilities(),
        }
    }

    fn is_final(&self) -> bool {
        match self {
            Means::Async(delivery) => delivery.is_final(),
            Means::Blocking(delivery) => delivery.is_final(),
        }
    }
}

/// See the module.
pub struct Target {
    id: TargetId,
    name: Arc<str>,
    means: Means,
    limits: Limits,
    sender: JobSender,
    receiver: JobReceiver,
    /// Places for attempts at a time.
    pub(super) places: Arc<Semaphore>,
    /// When the next attempt may begin, where there is a rate.
    next_start: Mutex<Instant>,
    breaker: Breaker,
    is_down: AtomicBool,
    /// How often it has come back.
    returns_count: AtomicU64,
    /// How often it was left alone.
    opened_count: AtomicU64,
    trouble: Mutex<Arc<str>>,
    meters: Meters,
}

impl Target {
    /// A target with a channel for `channel_size` jobs.
    pub fn new(id: TargetId, name: &str, means: Means, limits: Limits, channel_size: usize) -> Self {
        assert!(limits.concurrency > 0, "somebody has to get the mail");
        // As many of those that have waited as it does before the next are read, and no more: new ones stand behind them.
        let backlog_max = limits.rate.map_or(4 * limits.concurrency, |rate| rate.get() as usize).max(64);
        let (sender, receiver) = job_channel(channel_size, backlog_max.min(channel_size.div_ceil(2)));
        Target {
            id,
            name: name.into(),
            means,
            limits,
            sender,
            receiver,
            places: Arc::new(Semaphore::new(limits.concurrency.min(Semaphore::MAX_PERMITS))),
            next_start: Mutex::new(Instant::now()),
            breaker: Breaker::new(limits.breaker_failures, limits.breaker_interval),
            is_down: AtomicBool::new(false),
            returns_count: AtomicU64::new(0),
            opened_count: AtomicU64::new(0),
            meters: Meters::default(),
            trouble: Mutex::new("".into()),
        }
    }

    /// Its place in the list.
    pub fn id(&self) -> TargetId {
        self.id
    }

    /// Its name in the configuration, in logs and in the spool.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What it carries beyond plain mail.
    pub fn capabilities(&self) -> Capabilities {
        self.means.capabilities()
    }

    /// Whether what it delivers has arrived.
    pub(super) fn is_final(&self) -> bool {
        self.means.is_final()
    }

    /// Where jobs for it are offered.
    pub fn jobs(&self) -> &JobSender {
        &self.sender
    }

    pub(super) fn means(&self) -> &Means {
        &self.means
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn receiver(&self) -> &JobReceiver {
        &self.receiver
    }

    /// Whether it is left alone at present.
    pub fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Relaxed)
    }

    /// How often it has come back after it had been left alone: what waits for it need not wait any longer when this has changed.
    pub fn returns_count(&self) -> u64 {
        self.returns_count.load(Ordering::Relaxed)
    }

    /// How often it was left alone.
    pub fn opened_count(&self) -> u64 {
        self.opened_count.load(Ordering::Relaxed)
    }

    /// What was counted of its attempts, by all threads.
    pub fn read_meters(&self) -> TargetReading {
        self.meters.read()
    }

    pub(super) fn meters(&self) -> &Meters {
        &self.meters
    }

    /// Attempts at a time.
    pub fn concurrency_max(&self) -> usize {
        self.limits.concurrency
    }

    /// Whether an attempt would be made now.
    pub fn has_turn(&self, now: Instant) -> bool {
        self.breaker.has_turn(now)
    }

    /// Why nobody asks it at present.
    pub fn not_tried(&self) -> String {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        format!("not tried, for {} is left alone: {trouble}", self.name)
    }

    /// A permission to make an attempt, or how long there will be none.
    pub(super) fn turn(&self, now: Instant) -> Result<Turn, Duration> {
        self.breaker.turn(now)
    }

    /// An attempt was made, or nobody was asked after all.
    pub(super) fn handle_outcomes(&self, turn: Turn, outcomes: &[Outcome], now: Instant) {
        // Held, so that the flag says what the breaker does, whoever comes first.
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if outcomes.iter().all(Outcome::is_unasked) {
            return self.breaker.handle_unused(turn, now);
        }
        if !outcomes.iter().all(Outcome::is_of_target) {
            if self.breaker.handle_success(turn) == Change::Closed {
                self.is_down.store(false, Ordering::Relaxed);
                self.returns_count.fetch_add(1, Ordering::Relaxed);
                info!(target = &*self.name, "the target is back");
            }
            return;
        }
        let reason = outcomes[0].text();
        *trouble = reason.into();
        if self.breaker.handle_failure(turn, now) == Change::Opened {
            self.is_down.store(true, Ordering::Relaxed);
            self.opened_count.fetch_add(1, Ordering::Relaxed);
            let reason = tracing::field::display(Escaped(reason.as_bytes()));
            warn!(
                target = &*self.name,
                reason, "the target fails: it is left alone, but for a probe now and then"
            );
        }
    }

    /// When the next attempt may begin; the place in the row is taken.
    pub(super) fn take_start(&self, now: Instant) -> Instant {
        let Some(rate) = self.limits.rate else { return now };
        let mut next = self.next_start.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*next).max(now);
        *next = start + Duration::from_secs(1) / rate.get();
        start
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "target {}", self.name)
    }
}

/// All targets there are at present, by their ids.
///
/// An id is a name's: it lasts as long as the process, whatever becomes of the target. So there may be ids without a target.
#[derive(Clone, Debug)]
pub struct Targets(Arc<[Option<Target>]>);

impl Targets {
    /// These; no two have the same id.
    pub fn new(targets: Vec<Target>) -> Self {
        let slots_count = targets.iter().map(|target| usize::from(target.id.0) + 1).max();
        let mut slots: Vec<Option<Target>> = Vec::new();
        slots.resize_with(slots_count.expect("mail has to go somewhere"), || None);
        for target in targets {
            let slot = &mut slots[usize::from(target.id.0)];
            assert!(slot.is_none(), "an id is one target's");
            *slot = Some(target);
        }
        Targets(slots.into())
    }

    /// What is counted of these goes on from where those of the same names in `before` are: counters only ever grow, whatever is reloaded.
    pub fn counting_on(mut self, before: &Targets) -> Self {
        let targets = Arc::get_mut(&mut self.0).expect("nobody has them yet");
        for target in targets.iter_mut().flatten() {
            let Some(known) = before.iter().find(|known| known.name == target.name) else { continue };
            target.meters = known.meters.clone();
            target.opened_count = AtomicU64::new(known.opened_count());
        }
        self
    }

    /// The target with this id, if there is one at present.
    pub fn find(&self, TargetId(id): TargetId) -> Option<&Target> {
        self.0.get(usize::from(id))?.as_ref()
    }

    /// The same of one that is known to be there.
    pub fn get(&self, id: TargetId) -> &Target {
        self.find(id).expect("whoever names a target has got the name from these")
    }

    /// All of them, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Target> + Clone {
        self.0.iter().flatten()
    }

    /// Gives the jobs that wait in the channels back to their queues. For targets that nobody serves any more, nor offers anything.
    pub fn give_back(&self) {
        self.iter().for_each(|target| while target.receiver.try_recv().is_some() {});
    }

    /// How many reports may be under way at a time.
    pub fn reports_max(&self) -> usize {
        self.iter().map(|target| target.sender.capacity() + target.limits.concurrency + 1).sum()
    }
}
