//! The workers: threads that take jobs, make one attempt each, and report.
//!
//! ```text
//!   shared workers, a tokio runtime each:   for each target a pump: place ─► job ─► its time ─► attempt, beside all others
//!   threads of a target that blocks:        job ─► its time ─► attempt, one after the other
//! ```
//!
//! Invariants:
//! - one job, one attempt, one report;
//! - `Rejected` leaves only after its dead letter is durable; where that cannot be written the recipient is deferred;
//! - a target that hangs holds its own places, and no thread that another target needs;
//! - a panic in a transport defers the job's recipients. With `panic = "abort"`, as the release build has it, the process ends
//!   instead; nothing was reported, so the queue offers the job again after the restart.
//!
//! Workers never pre-empt a shard that has the same core: they are batch threads to the scheduler, and ring for their reports
//! when they have nothing to do, not after each.
//!
//! Signals must be blocked in the thread that starts the workers: they inherit it.

use std::cell::RefCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use futures_lite::FutureExt;
use futures_lite::future::poll_once;
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tracing::{Level, enabled, error, info};

use super::meters::Ongoing;
use super::notification::{Event, Told};
use super::{
    Attempt, BlockingDelivery, DeadLetters, Delivery, Job, Means, Notifier, Outcome, OutcomeSender, Report,
    Routes, Schedule, Target, TargetId, Targets,
};
use crate::breaker::Turn;
use crate::scheduling::yield_to_shards;
use crate::telemetry::{self, Escaped, Observer};

/// Reports that may wait for company before their receiver is woken, and for how long while jobs keep coming. A receiver should
/// look by itself now and then: an attempt that hangs keeps the reports before it waiting.
const UNRUNG_COUNT_MAX: usize = 64;
const UNRUNG_TIME_MAX: Duration = Duration::from_millis(1);

/// Threads that read from the spool and write dead letters for a shared worker, at most: more than one target has places by default, so
/// that what hangs there for one leaves some to the others. They end when they have nothing to do.
const BLOCKING_THREADS_MAX: usize = 256;

/// What becomes of recipients who are not served: when they are given up, and where they go then.
pub struct Settlement {
    /// When to give up.
    pub schedule: Schedule,
    /// Where what is given up is kept.
    pub dead_letters: Arc<DeadLetters>,
    /// Who tells senders, if anybody does.
    pub notifier: Option<Notifier>,
    /// Of what goes by copies nobody is told.
    pub routes: Arc<Routes>,
    /// Told of attempts, on the thread that has made them.
    pub observer: Option<Arc<dyn Observer>>,
}

/// Threads that deliver.
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    /// Dropped to tell the workers to stop: nothing is ever sent.
    running: Sender<()>,
    /// The same, for those who wait in a runtime.
    is_stopping: watch::Sender<bool>,
    /// The same, for those who block.
    blocking: Vec<Arc<dyn BlockingDelivery>>,
}

impl Workers {
    /// Starts `count` threads for all targets that do not block, each on one of `cores` where there are any, and those of the
    /// targets that do. Fails where the system gives no more threads; those that were started then end.
    pub fn start(
        count: usize,
        cores: &[core_affinity::CoreId],
        targets: &Targets,
        settlement: Settlement,
    ) -> io::Result<Workers> {
        assert!(count > 0, "jobs need somebody who does them");
        let (running, stop) = bounded(0);
        let (is_stopping, stopping) = watch::channel(false);
        let mut workers = Workers { threads: Vec::new(), running, is_stopping, blocking: Vec::new() };
        let settlement = Arc::new(settlement);
        for n in 0..count {
            let worker = Worker { targets: targets.clone(), settlement: settlement.clone() };
            let (stopping, core) = (stopping.clone(), cores.get(n % cores.len().max(1)).copied());
            workers.spawn(format!("delivery-{n}"), move || worker.run(stopping, core))?;
        }
        for target in targets.iter() {
            let Means::Blocking(delivery) = target.means() else { continue };
            workers.blocking.push(delivery.clone());
            for n in 0..target.limits().concurrency {
                let worker = Worker { targets: targets.clone(), settlement: settlement.clone() };
                let (id, delivery, stop) = (target.id(), delivery.clone(), stop.clone());
                let name = format!("{}-{n}", target.name());
                workers
                    .spawn(name, move || worker.run_blocking(worker.targets.get(id), &*delivery, &stop))?;
            }
        }
        Ok(workers)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }

    /// Ends every worker after the attempts it is making, and waits for that. Jobs still in the channels are not attempted: their
    /// messages are in the queue that offered them. Where that goes on, [`Targets::give_back`] tells it.
    pub fn stop(self) {
        self.stop_but(None);
    }

    /// The same, where `next` are served by others from here on: a delivery that is theirs too is not told to stop.
    pub fn stop_but(self, next: Option<&Targets>) {
        drop(self.running);
        let _ = self.is_stopping.send(true);
        let is_used = |delivery: &Arc<dyn BlockingDelivery>| {
            next.into_iter().flat_map(Targets::iter).any(|target| match target.means() {
                Means::Blocking(other) => Arc::ptr_eq(other, delivery),
                Means::Async(_) => false,
            })
        };
        self.blocking.iter().filter(|delivery| !is_used(delivery)).for_each(|delivery| delivery.stop());
        for thread in self.threads {
            if thread.join().is_err() {
                error!("a delivery worker ended by a panic outside of an attempt");
            }
        }
    }
}

/// Receivers that have reports they may not know of.
#[derive(Default)]
struct Unrung {
    receivers: Vec<OutcomeSender>,
    report_count: usize,
    since: Option<Instant>,
}

impl Unrung {
    /// A report was sent there. Rings by itself when there are many, or when attempts are slow.
    fn add(&mut self, receiver: OutcomeSender) {
        if !self.receivers.iter().any(|other| other.is_same(&receiver)) {
            self.receivers.push(receiver);
        }
        self.report_count += 1;
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.report_count >= UNRUNG_COUNT_MAX || since.elapsed() >= UNRUNG_TIME_MAX {
            self.ring();
        }
    }

    fn ring(&mut self) {
        self.receivers.drain(..).for_each(|receiver| receiver.ring());
        self.report_count = 0;
        self.since = None;
    }
}

thread_local! {
    /// Of this worker.
    static UNRUNG: RefCell<Unrung> = RefCell::default();
}

fn ring() {
    UNRUNG.with_borrow_mut(Unrung::ring);
}

struct Worker {
    targets: Targets,
    settlement: Arc<Settlement>,
}

impl Worker {
    /// Serves every target that does not block, until it is told to stop.
    fn run(self, stopping: watch::Receiver<bool>, core: Option<core_affinity::CoreId>) {
        yield_to_shards();
        if let Some(core) = core {
            core_affinity::set_for_current(core);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .on_thread_park(ring)
            .build()
            .expect("a runtime needs an epoll and an eventfd");
        let worker = &self;
        let all = async {
            let mut pumps = JoinSet::new();
            for target in worker.targets.iter().filter(|target| matches!(target.means(), Means::Async(_))) {
                let (targets, settlement) = (worker.targets.clone(), worker.settlement.clone());
                pumps.spawn_local(pump(targets, target.id(), settlement, stopping.clone()));
            }
            while pumps.join_next().await.is_some() {}
        };
        LocalSet::new().block_on(&runtime, all);
        // What reads from the spool or writes a dead letter has been waited for.
        runtime.shutdown_background();
        ring();
    }

    /// Serves one target that blocks, until it is told to stop.
    fn run_blocking(&self, target: &Target, delivery: &dyn BlockingDelivery, stop: &Receiver<()>) {
        yield_to_shards();
        while let Some(job) = next_job(target, stop) {
            let wait = target.take_start(Instant::now()).saturating_duration_since(Instant::now());
            // A job that is dropped unreported is still in its queue.
            if !wait.is_zero() {
                ring();
                if stop.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                    break;
                }
            }
            let mut timing = Timing::begin(target);
            let outcomes = match turn(target, &job.attempt) {
                Err(outcomes) => {
                    timing.is_made = false;
                    outcomes
                }
                Ok(turn) => {
                    let made = catch_unwind(AssertUnwindSafe(|| delivery.deliver(&job.attempt)));
                    judge(target, turn, &job.attempt, made.ok())
                }
            };
            let outcomes = match self.settlement.has_work(target, &job.attempt, &outcomes) {
                false => outcomes,
                true => self.settlement.settle(target, &job.attempt, outcomes),
            };
            report(job, target, timing, outcomes, self.settlement.observer.as_deref());
        }
        ring();
    }
}

/// The next job of a target that blocks; `None` when there will be none. Waiting on two channels, and ringing, is paid for only when
/// there is nothing to do.
fn next_job(target: &Target, stop: &Receiver<()>) -> Option<Job> {
    if stop.try_recv().is_err_and(|e| e.is_disconnected()) {
        return None;
    }
    target.receiver().try_recv().or_else(|| {
        ring();
        select! {
            recv(target.receiver().receiver) -> job => job.ok(),
            recv(stop) -> _ => None,
        }
    })
}

/// Makes the attempts of one target on this worker's runtime: as many at a time as there are places, which all workers share.
async fn pump(
    targets: Targets,
    id: TargetId,
    settlement: Arc<Settlement>,
    mut stopping: watch::Receiver<bool>,
) {
    let target = targets.get(id);
    let Means::Async(delivery) = target.means() else { unreachable!("it was looked at") };
    let mut attempts = JoinSet::new();
    loop {
        let next = async {
            let place = target.places.clone().acquire_owned().await.expect("it is never closed");
            let job = target.receiver().recv(ring).await?;
            let start = target.take_start(Instant::now());
            if start > Instant::now() {
                tokio::time::sleep_until(start.into()).await;
            }
            Some((place, job))
        };
        let stopped = async {
            let _ = stopping.wait_for(|is_stopping| *is_stopping).await;
            None
        };
        let Some((place, job)) = stopped.or(next).await else { break };
        let (targets, delivery, settlement) = (targets.clone(), delivery.clone(), settlement.clone());
        let mut attempt = Box::pin(async move {
            serve(&targets, id, delivery, settlement, job).await;
            drop(place);
        });
        // What need not wait needs no task.
        if poll_once(&mut attempt).await.is_none() {
            attempts.spawn_local(attempt);
        }
        while attempts.try_join_next().is_some() {}
    }
    while attempts.join_next().await.is_some() {}
}

async fn serve(
    targets: &Targets,
    id: TargetId,
    delivery: Arc<dyn Delivery>,
    settlement: Arc<Settlement>,
    job: Job,
) {
    let target = targets.get(id);
    let mut timing = Timing::begin(target);
    let outcomes = match turn(target, &job.attempt) {
        Err(outcomes) => {
            timing.is_made = false;
            outcomes
        }
        Ok(turn) => {
            let made = AssertUnwindSafe(delivery.deliver(&job.attempt)).catch_unwind().await;
            judge(target, turn, &job.attempt, made.ok())
        }
    };
    if !settlement.has_work(target, &job.attempt, &outcomes) {
        return report(job, target, timing, outcomes, settlement.observer.as_deref());
    }
    let observer = settlement.observer.clone();
    let (targets, id) = (targets.clone(), target.id());
    let settled = tokio::task::spawn_blocking(move || {
        let outcomes = settlement.settle(targets.get(id), &job.attempt, outcomes);
        (job, outcomes)
    });
    match settled.await {
        Ok((job, outcomes)) => report(job, target, timing, outcomes, observer.as_deref()),
        Err(_) => error!(
            target = &**target.name(),
            "what settles outcomes has ended: the next start delivers again"
        ),
    }
}

/// A permission to make the attempt, or what becomes of it without one.
fn turn(target: &Target, attempt: &Attempt) -> Result<Turn, Vec<Outcome>> {
    let all = |outcome| vec![outcome; attempt.recipients.len()];
    if let Some((status, why)) = target.capabilities().objection(&attempt.envelope) {
        return Err(all(Outcome::rejected(format!("{status} {why}"))));
    }
    target.turn(Instant::now()).map_err(|_| all(Outcome::unreachable(target.not_tried())))
}

/// One outcome for each recipient, whatever the transport has `made`; nothing if it panicked.
fn judge(target: &Target, turn: Turn, attempt: &Attempt, made: Option<Vec<Outcome>>) -> Vec<Outcome> {
    let expected = attempt.recipients.len();
    let (message_id, transport) = (attempt.id, &**target.name());
    let outcomes = match made {
        Some(outcomes) if outcomes.len() == expected => outcomes,
        Some(outcomes) => {
            let given = outcomes.len();
            error!(%message_id, transport, given, expected, "the transport gave a wrong number of outcomes");
            vec![Outcome::unasked("the transport gave a wrong number of outcomes"); expected]
        }
        None => {
            error!(%message_id, transport, "the transport panicked");
            vec![Outcome::unasked("the transport panicked"); expected]
        }
    };
    target.handle_outcomes(turn, &outcomes, Instant::now());
    outcomes
}

/// When an attempt began.
struct Timing {
    started: Instant,
    unix_millis: u64,
    /// The transport was asked.
    is_made: bool,
    /// Counted among those in flight until this is dropped.
    _ongoing: Ongoing,
}

impl Timing {
    fn begin(target: &Target) -> Self {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timing {
            started: Instant::now(),
            unix_millis: unix.as_millis() as u64,
            is_made: true,
            _ongoing: target.meters().begin(),
        }
    }
}

/// Says how it went: to the log, to who observes, and to where the job came from.
fn report(
    job: Job,
    target: &Target,
    timing: Timing,
    outcomes: Vec<Outcome>,
    observer: Option<&dyn Observer>,
) {
    let duration = timing.started.elapsed();
    target.meters().count(&outcomes, timing.is_made.then_some(duration));
    if let Some(observer) = observer.filter(|_| timing.is_made) {
        observer.observe(&result(&job.attempt, target, &outcomes, duration));
    }
    // What waits for a target that is left alone is much, and says nothing new.
    if timing.is_made && enabled!(Level::INFO) || enabled!(Level::DEBUG) {
        log(&job.attempt, target, &outcomes, duration);
    }
    let Job { attempt, reply, .. } = job;
    let recipients = attempt.recipients.iter().map(|recipient| recipient.index).zip(outcomes).collect();
    let unix_millis = if timing.is_made { timing.unix_millis } else { 0 };
    let report = Report { id: attempt.id, target: target.id(), unix_millis, duration, recipients };
    // The content goes first: the report may make its room free.
    drop(attempt);
    let sender = reply.send(report);
    UNRUNG.with_borrow_mut(|unrung| unrung.add(sender));
}

/// How many were delivered, deferred, rejected.
fn count(outcomes: &[Outcome]) -> [usize; 3] {
    let count = |is: fn(&Outcome) -> bool| outcomes.iter().filter(|o| is(o)).count();
    [
        count(|o| matches!(o, Outcome::Delivered { .. })),
        count(|o| matches!(o, Outcome::Deferred { .. })),
        count(|o| matches!(o, Outcome::Rejected { .. })),
    ]
}

fn result<'a>(
    attempt: &Attempt,
    target: &'a Target,
    outcomes: &'a [Outcome],
    duration: Duration,
) -> telemetry::Event<'a> {
    let [delivered, deferred, rejected] = count(outcomes);
    let reason = outcomes.iter().find_map(Outcome::reason);
    let (id, target) = (attempt.id, &**target.name());
    telemetry::Event::DeliveryResult { id, target, delivered, deferred, rejected, reason, duration }
}

fn log(attempt: &Attempt, target: &Target, outcomes: &[Outcome], duration: Duration) {
    // It may hold what a next hop said.
    let reason = outcomes.iter().find_map(Outcome::reason);
    let reply = outcomes.iter().map(Outcome::text).find(|text| reason.is_none() && !text.is_empty());
    let shown =
        |text: Option<&str>| text.map(|text| tracing::field::display(Escaped(text.as_bytes()).to_string()));
    let [delivered, deferred, rejected] = count(outcomes);
    info!(
        name: "delivery.result",
        message_id = %attempt.id,
        transport = &**target.name(),
        recipients = outcomes.len(),
        delivered,
        deferred,
        rejected,
        reason = shown(reason),
        reply = shown(reply),
        duration_us = duration.as_micros() as u64,
        "attempt"
    );
}

impl Settlement {
    /// Whether there is something to settle: nearly always not.
    fn has_work(&self, target: &Target, attempt: &Attempt, outcomes: &[Outcome]) -> bool {
        !outcomes.iter().all(Outcome::is_delivered) || self.tells_success(target, attempt)
    }

    /// Whether the sender is to be told by us that the message was delivered: somebody further on does not.
    fn tells_success(&self, target: &Target, attempt: &Attempt) -> bool {
        self.notifier.is_some() && Notifier::is_success_wanted(attempt) && !target.capabilities().dsn
    }

    /// Gives up what is exhausted, and makes what is given up durable, and what the sender is told, before anybody hears of it. This may
    /// block.
    fn settle(&self, target: &Target, attempt: &Attempt, mut outcomes: Vec<Outcome>) -> Vec<Outcome> {
        let arrived = SystemTime::UNIX_EPOCH + Duration::from_secs(attempt.arrival.unix_time);
        let age = SystemTime::now().duration_since(arrived).unwrap_or_default();
        let mut is_expired = vec![false; outcomes.len()];
        for (n, (recipient, outcome)) in attempt.recipients.iter().zip(&mut outcomes).enumerate() {
            if let Outcome::Deferred { reason, .. } = outcome
                && self.schedule.is_exhausted(recipient.attempts.saturating_add(1), age)
            {
                *outcome = Outcome::Rejected { reason: std::mem::take(reason) };
                is_expired[n] = true;
            }
        }
        let given_up: Vec<_> = (attempt.recipients.iter().zip(&outcomes))
            .filter_map(|(recipient, outcome)| match outcome {
                Outcome::Rejected { reason } => Some((*recipient, &**reason)),
                _ => None,
            })
            .collect();
        if given_up.is_empty() {
            self.tell(target, attempt, &outcomes, &is_expired);
            return outcomes;
        }
        if let Err(e) = self.dead_letters.write(attempt, target.name(), &given_up) {
            error!(message_id = %attempt.id, folder = %self.dead_letters.dir().display(), "cannot write a dead letter: {e}");
            for outcome in &mut outcomes {
                if let Outcome::Rejected { reason } = outcome {
                    *outcome = Outcome::deferred(format!(
                        "{reason}; then the dead letter could not be written: {e}"
                    ));
                }
            }
        }
        self.tell(target, attempt, &outcomes, &is_expired);
        outcomes
    }

    fn tell(&self, target: &Target, attempt: &Attempt, outcomes: &[Outcome], is_expired: &[bool]) {
        let Some(notifier) = &self.notifier else { return };
        let tells_success = self.tells_success(target, attempt);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let of_delivery = if target.is_final() { Event::Delivered } else { Event::Relayed };
        let of_delivery = tells_success.then_some(of_delivery);
        let told = attempt.recipients.iter().zip(outcomes).zip(is_expired);
        let told = told.filter_map(|((recipient, outcome), is_expired)| {
            let path = &attempt.envelope.forward_paths[recipient.index as usize];
            if !self.routes.is_own(path, &attempt.arrival.tags, target.id()) {
                return None;
            }
            let event = match outcome {
                Outcome::Rejected { reason } if *is_expired => Event::Expired(reason),
                Outcome::Rejected { reason } => Event::Failed(reason),
                Outcome::Delivered { .. } => of_delivery?,
                Outcome::Deferred { .. } => return None,
            };
            let (index, attempts) = (recipient.index, recipient.attempts.saturating_add(1));
            Some(Told { index, event, attempts, unix_time: now.as_secs() })
        });
        let told: Vec<_> = told.collect();
        if !told.is_empty() {
            notifier.tell(attempt, &told);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::delivery::tests::job;
    use crate::delivery::{Delivering, Limits, OutcomeReceiver, outcome_channel};
    use crate::mail::{Body, Domain, MessageId};

    /// A transport that does as it is told, in the one way or the other.
    struct Told(Mutex<Box<Orders>>);

    type Orders = dyn FnMut(&Attempt) -> Vec<Outcome> + Send;

    impl BlockingDelivery for Told {
        fn deliver(&self, attempt: &Attempt) -> Vec<Outcome> {
            self.0.lock().unwrap_or_else(|e| e.into_inner())(attempt)
        }
    }

    /// The same, after having waited once.
    struct ToldLater(Told);

    impl Delivery for ToldLater {
        fn deliver<'a>(&'a self, attempt: &'a Attempt) -> Delivering<'a> {
            Box::pin(async {
                tokio::task::yield_now().await;
                self.0.deliver(attempt)
            })
        }
    }

    const NO_LIMITS: Limits =
        Limits { concurrency: 1, rate: None, breaker_failures: 0, breaker_interval: Duration::from_secs(1) };

    struct Rig {
        dead: tempfile::TempDir,
        schedule: Schedule,
        limits: Limits,
        is_async: bool,
    }

    impl Rig {
        fn new(schedule: Schedule) -> Self {
            Rig { dead: tempfile::tempdir().unwrap(), schedule, limits: NO_LIMITS, is_async: false }
        }

        fn targets(&self, deliver: impl FnMut(&Attempt) -> Vec<Outcome> + Send + 'static) -> Targets {
            let told = Told(Mutex::new(Box::new(deliver)));
            let means = match self.is_async {
                true => Means::Async(Arc::new(ToldLater(told))),
                false => Means::Blocking(Arc::new(told)),
            };
            Targets::new(vec![Target::new(TargetId(0), "told", means, self.limits, 64)])
        }

        fn start(&self, targets: &Targets) -> Workers {
            let dead_letters = Arc::new(DeadLetters::new(self.dead.path()).unwrap());
            let routes = Routes::new(
                Vec::new(),
                TargetId(0),
                Default::default(),
                Domain::parse("mx.example", false).unwrap(),
            );
            let settlement = Settlement {
                schedule: self.schedule,
                dead_letters,
                notifier: None,
                routes: Arc::new(routes),
                observer: None,
            };
            Workers::start(1, &[], targets, settlement).unwrap()
        }

        /// Delivers one job after the other and returns the reports.
        fn reports(
            &self,
            jobs: u64,
            deliver: impl FnMut(&Attempt) -> Vec<Outcome> + Send + 'static,
        ) -> Vec<Report> {
            self.reports_on(jobs, |_| {}, deliver)
        }

        /// The same for jobs that `alter` has altered.
        fn reports_on(
            &self,
            jobs: u64,
            alter: impl Fn(&mut Job),
            deliver: impl FnMut(&Attempt) -> Vec<Outcome> + Send + 'static,
        ) -> Vec<Report> {
            let (rung, ringing) = bounded(64);
            let wake = Arc::new(move || {
                let _ = rung.try_send(());
            });
            let (outcomes, receiver): (OutcomeSender, OutcomeReceiver) = outcome_channel(64, wake);
            let targets = self.targets(deliver);
            for n in 0..jobs {
                let mut job = job(n, &outcomes);
                alter(&mut job);
                assert!(targets.get(TargetId(0)).jobs().try_send(job).is_ok());
            }
            let workers = self.start(&targets);
            let mut reports = Vec::new();
            while reports.len() < jobs as usize {
                match receiver.try_recv() {
                    Some(report) => reports.push(report),
                    None if receiver.prepare_to_sleep() => {}
                    None => ringing.recv_timeout(Duration::from_secs(60)).expect("a report comes"),
                }
            }
            workers.stop();
            assert!(receiver.is_empty());
            reports
        }

        fn dead_letters(&self) -> usize {
            DeadLetters::open(self.dead.path()).ids().unwrap().len()
        }
    }

    /// What all that follows is claimed of.
    fn both_ways(schedule: Schedule) -> [Rig; 2] {
        [false, true].map(|is_async| Rig { is_async, ..Rig::new(schedule) })
    }

    #[test]
    fn what_the_transport_cannot_carry_is_rejected_without_an_attempt() {
        let rig = Rig::new(patient());
        let binary = |job: &mut Job| Arc::make_mut(&mut job.attempt.envelope).body = Body::Binary;
        let reports = rig.reports_on(1, binary, |_| unreachable!("no attempt is made"));
        let reasons: Vec<_> = reports[0].recipients.iter().map(|(_, o)| o.reason().unwrap()).collect();
        assert!(reasons.iter().all(|reason| reason.starts_with("5.6.3 ")), "{reasons:?}");
        assert!(reports[0].recipients.iter().all(|(_, o)| matches!(o, Outcome::Rejected { .. })));
        assert_eq!(rig.dead_letters(), 1);
    }

    fn patient() -> Schedule {
        Schedule { queue_lifetime: Duration::from_secs(u32::MAX.into()), ..Schedule::default() }
    }

    #[test]
    fn every_job_is_reported_once_in_the_order_of_its_recipients() {
        let rig = Rig::new(patient());
        let reports = rig.reports(3, |attempt| {
            assert_eq!(attempt.paths().map(|path| path.as_str()).collect::<Vec<_>>().len(), 3);
            vec![Outcome::delivered(), Outcome::deferred("later"), Outcome::delivered()]
        });
        assert_eq!(reports.iter().map(|r| r.id.sequence).collect::<Vec<_>>(), [0, 1, 2]);
        let expected =
            [(0, Outcome::delivered()), (1, Outcome::deferred("later")), (2, Outcome::delivered())];
        assert!(reports.iter().all(|r| r.recipients == expected));
        assert_eq!(rig.dead_letters(), 0);
    }

    #[test]
    fn a_panic_or_a_wrong_count_defers_everybody_and_the_worker_goes_on() {
        let rig = Rig::new(patient());
        let mut turn = 0;
        let reports = rig.reports(4, move |_| {
            turn += 1;
            match turn {
                1 => panic!("a bug in a transport"),
                2 => vec![Outcome::delivered(); 2],
                3 => vec![],
                _ => vec![Outcome::delivered(); 3],
            }
        });
        let reasons = ["the transport panicked", "the transport gave a wrong number of outcomes"];
        for (report, reason) in reports.iter().zip([reasons[0], reasons[1], reasons[1]]) {
            assert!(report.recipients.iter().all(|(_, o)| *o == Outcome::unasked(reason)), "{report:?}");
        }
        assert!(reports[3].recipients.iter().all(|(_, o)| o.is_delivered()));
    }

    #[test]
    fn the_rejected_and_the_exhausted_become_a_dead_letter_before_they_are_reported() {
        let rig = Rig::new(Schedule { attempts_max: 2, ..patient() });
        let path = rig.dead.path().join(MessageId { log: 1, sequence: 0 }.to_string());
        let reports = rig.reports(1, |_| {
            vec![Outcome::rejected("unknown"), Outcome::deferred("busy"), Outcome::deferred("busy")]
        });
        let expected = [
            (0, Outcome::rejected("unknown")),
            (1, Outcome::rejected("busy")),
            (2, Outcome::deferred("busy")),
        ];
        assert_eq!(reports[0].recipients, expected);
        assert!(path.join("dead.json").exists() && path.join("message.eml").exists());
    }

    #[test]
    fn without_a_dead_letter_nothing_is_rejected() {
        let rig = Rig::new(patient());
        let blocked = rig.dead.path().join(MessageId { log: 1, sequence: 0 }.to_string());
        std::fs::write(&blocked, "not a folder").unwrap();
        let reports = rig.reports(1, |_| {
            vec![Outcome::rejected("unknown"), Outcome::delivered(), Outcome::rejected("unknown")]
        });
        let outcomes: Vec<_> = reports[0].recipients.iter().map(|(_, outcome)| outcome).collect();
        assert!(
            matches!(outcomes[0], Outcome::Deferred { reason, .. } if reason.starts_with("unknown; then"))
        );
        assert_eq!(*outcomes[1], Outcome::delivered());
        assert!(matches!(outcomes[2], Outcome::Deferred { .. }));
    }

    #[test]
    fn stopped_workers_leave_the_channel_alone() {
        for rig in both_ways(patient()) {
            let (outcomes, reports) = outcome_channel(64, Arc::new(|| ()));
            let (entered, is_entered) = bounded(1);
            let (leave, may_leave) = bounded::<()>(0);
            let targets = rig.targets(move |attempt| {
                entered.send(()).unwrap();
                may_leave.recv().unwrap();
                vec![Outcome::delivered(); attempt.recipients.len()]
            });
            let workers = rig.start(&targets);
            (0..3).for_each(|n| assert!(targets.get(TargetId(0)).jobs().try_send(job(n, &outcomes)).is_ok()));
            is_entered.recv().unwrap();
            let stopper = thread::spawn(move || workers.stop());
            thread::sleep(Duration::from_millis(50));
            leave.send(()).unwrap();
            stopper.join().unwrap();
            assert_eq!(std::iter::from_fn(|| reports.try_recv()).count(), 1);
        }
    }

    #[test]
    fn a_target_that_fails_is_left_alone_and_probed() {
        for rig in both_ways(patient()) {
            let limits =
                Limits { breaker_failures: 2, breaker_interval: Duration::from_secs(3600), ..NO_LIMITS };
            let rig = Rig { limits, ..rig };
            let asked = Arc::new(Mutex::new(0));
            let counted = asked.clone();
            let reports = rig.reports(5, move |attempt| {
                *counted.lock().unwrap() += 1;
                vec![Outcome::unreachable("connection refused"); attempt.recipients.len()]
            });
            assert_eq!(*asked.lock().unwrap(), 2);
            let reason = |n: usize| reports[n].recipients[0].1.reason().unwrap();
            assert_eq!(reason(1), "connection refused");
            assert_eq!(reason(2), "not tried, for told is left alone: connection refused");
            assert!(reports.iter().all(|report| report.recipients.iter().all(|(_, o)| o.is_of_target())));
        }
    }

    #[test]
    fn no_more_attempts_than_permitted_run_at_a_time_and_one_that_hangs_holds_nobody_else() {
        struct Slow(Arc<Mutex<(usize, usize)>>);
        impl Delivery for Slow {
            fn deliver<'a>(&'a self, attempt: &'a Attempt) -> Delivering<'a> {
                Box::pin(async {
                    if self.0.lock().unwrap().1 == 0 {
                        return std::future::pending().await;
                    }
                    {
                        let mut counts = self.0.lock().unwrap();
                        counts.0 += 1;
                        counts.1 = counts.1.max(counts.0);
                    }
                    (0..10).for_each(|_| ());
                    for _ in 0..10 {
                        tokio::task::yield_now().await;
                    }
                    self.0.lock().unwrap().0 -= 1;
                    vec![Outcome::delivered(); attempt.recipients.len()]
                })
            }
        }
        let rig = Rig::new(patient());
        let counts = Arc::new(Mutex::new((0, 1)));
        let hangs = Means::Async(Arc::new(Slow(Arc::default())));
        let slow = Means::Async(Arc::new(Slow(counts.clone())));
        let limits = Limits { concurrency: 3, ..NO_LIMITS };
        let targets = vec![
            Target::new(TargetId(0), "hangs", hangs, limits, 64),
            Target::new(TargetId(1), "slow", slow, limits, 64),
        ];
        let targets = Targets::new(targets);
        let (outcomes, reports) = outcome_channel(256, Arc::new(|| ()));
        let workers = rig.start(&targets);
        for n in 0..50 {
            for target in [TargetId(0), TargetId(1)] {
                let mut job = job(n, &outcomes);
                job.target = target;
                assert!(targets.get(target).jobs().try_send(job).is_ok());
            }
        }
        let until = Instant::now() + Duration::from_secs(60);
        let mut count = 0;
        while count < 50 {
            assert!(Instant::now() < until, "{count} of 50");
            match reports.try_recv() {
                Some(report) => {
                    assert_eq!(report.target, TargetId(1));
                    count += 1;
                }
                None => thread::yield_now(),
            }
        }
        assert_eq!(*counts.lock().unwrap(), (0, 3));
        assert_eq!(targets.get(TargetId(0)).jobs().room(), 64 - 47, "three hang, the others wait");
        drop((workers, targets));
    }
}
