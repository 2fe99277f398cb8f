//! The workers: threads that take jobs, make one attempt each, and report.
//!
//! Invariants:
//! - one job, one attempt, one report;
//! - `Rejected` leaves only after its dead letter is durable; where that cannot be written the recipient is deferred;
//! - a panic in a [`Delivery`] defers the job's recipients. With `panic = "abort"`, as the release build has it, the process ends
//!   instead; nothing was reported, so the queue offers the job again after the restart.
//!
//! Workers never pre-empt a shard that has the same core: they are batch threads to the scheduler, and ring for their reports
//! when they run out of jobs, not after each.
//!
//! Signals must be blocked in the thread that starts the workers: they inherit it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, select};
use tracing::{Level, enabled, error, info};

use super::{Attempt, DeadLetters, Delivery, Job, JobReceiver, Outcome, OutcomeSender, Report, Schedule};
use crate::scheduling::yield_to_shards;
use crate::telemetry::Escaped;

/// Reports that may wait for company before their receiver is woken, and for how long while jobs keep coming. A receiver should
/// look by itself now and then: an attempt that hangs keeps the reports before it waiting.
const UNRUNG_COUNT_MAX: usize = 64;
const UNRUNG_TIME_MAX: Duration = Duration::from_millis(1);

/// Threads that deliver.
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    /// Dropped to tell the workers to stop: nothing is ever sent.
    running: Sender<()>,
}

impl Workers {
    /// Starts `count` threads that serve `jobs` with `delivery`. Fails where the system gives no more threads; those that were
    /// started then end.
    pub fn start(
        count: usize,
        jobs: JobReceiver,
        delivery: Arc<dyn Delivery>,
        dead_letters: Arc<DeadLetters>,
        schedule: Schedule,
    ) -> io::Result<Workers> {
        assert!(count > 0, "jobs need somebody who does them");
        let (running, stop) = bounded(0);
        let mut threads = Vec::with_capacity(count);
        for n in 0..count {
            let worker = Worker {
                jobs: jobs.0.clone(),
                stop: stop.clone(),
                delivery: delivery.clone(),
                dead_letters: dead_letters.clone(),
                schedule,
            };
            threads.push(thread::Builder::new().name(format!("delivery-{n}")).spawn(move || worker.run())?);
        }
        Ok(Workers { threads, running })
    }

    /// Ends every worker after the attempt it is making, and waits for that. Jobs still in the channel are not attempted: their
    /// messages are in the queue that offered them.
    pub fn stop(self) {
        drop(self.running);
        join(self.threads);
    }

    /// Waits until every [`super::JobSender`] was dropped and every job in the channel had its attempt.
    pub fn join(self) {
        join(self.threads);
        drop(self.running);
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            error!("a delivery worker ended by a panic outside of an attempt");
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

struct Worker {
    jobs: Receiver<Job>,
    stop: Receiver<()>,
    delivery: Arc<dyn Delivery>,
    dead_letters: Arc<DeadLetters>,
    schedule: Schedule,
}

impl Worker {
    fn run(&self) {
        yield_to_shards();
        let mut unrung = Unrung::default();
        while let Some(job) = self.next_job(&mut unrung) {
            let report = self.attempt(&job);
            let outcomes = job.outcomes.clone();
            // The content goes first: the report may make its room free.
            drop(job);
            outcomes.send(report);
            unrung.add(outcomes);
        }
        unrung.ring();
    }

    /// The next job; `None` when there will be none. Waiting on two channels, and ringing, is paid for only when there is nothing
    /// to do.
    fn next_job(&self, unrung: &mut Unrung) -> Option<Job> {
        if let Err(TryRecvError::Disconnected) = self.stop.try_recv() {
            return None;
        }
        match self.jobs.try_recv() {
            Ok(job) => Some(job),
            Err(TryRecvError::Disconnected) => None,
            Err(TryRecvError::Empty) => {
                unrung.ring();
                select! {
                    recv(self.jobs) -> job => job.ok(),
                    recv(self.stop) -> _ => None,
                }
            }
        }
    }

    fn attempt(&self, job: &Job) -> Report {
        let is_logged = enabled!(Level::INFO);
        let started = is_logged.then(Instant::now);
        let outcomes = self.settle(job, self.deliver(job));
        if let Some(started) = started {
            self.log(job, &outcomes, started.elapsed());
        }
        let recipients = job.recipients.iter().map(|r| r.index).zip(outcomes).collect();
        Report { id: job.id, recipients }
    }

    /// One outcome for each recipient, whatever the transport does.
    fn deliver(&self, job: &Job) -> Vec<Outcome> {
        let expected = job.recipients.len();
        if let Some((status, why)) = self.delivery.capabilities().objection(&job.envelope) {
            return vec![Outcome::rejected(format!("{status} {why}")); expected];
        }
        let defer_all = |reason: &str| vec![Outcome::deferred(reason); expected];
        match catch_unwind(AssertUnwindSafe(|| self.delivery.deliver(&Attempt::of(job)))) {
            Ok(outcomes) if outcomes.len() == expected => outcomes,
            Ok(outcomes) => {
                let (transport, given) = (self.delivery.name(), outcomes.len());
                error!(message_id = %job.id, transport, given, expected, "the transport gave a wrong number of outcomes");
                defer_all("the transport gave a wrong number of outcomes")
            }
            Err(_) => {
                error!(message_id = %job.id, transport = self.delivery.name(), "the transport panicked");
                defer_all("the transport panicked")
            }
        }
    }

    /// Gives up what is exhausted, and makes what is given up durable before anybody hears of it.
    fn settle(&self, job: &Job, mut outcomes: Vec<Outcome>) -> Vec<Outcome> {
        if outcomes.iter().all(|outcome| *outcome == Outcome::Delivered) {
            return outcomes;
        }
        let arrived = SystemTime::UNIX_EPOCH + Duration::from_secs(job.arrival.unix_time);
        let age = SystemTime::now().duration_since(arrived).unwrap_or_default();
        for (recipient, outcome) in job.recipients.iter().zip(&mut outcomes) {
            if let Outcome::Deferred { reason } = outcome
                && self.schedule.is_exhausted(recipient.attempts.saturating_add(1), age)
            {
                *outcome = Outcome::Rejected { reason: std::mem::take(reason) };
            }
        }
        let given_up: Vec<_> = (job.recipients.iter().zip(&outcomes))
            .filter_map(|(recipient, outcome)| match outcome {
                Outcome::Rejected { reason } => Some((*recipient, &**reason)),
                _ => None,
            })
            .collect();
        if given_up.is_empty() {
            return outcomes;
        }
        if let Err(e) = self.dead_letters.write(job, &given_up) {
            error!(message_id = %job.id, folder = %self.dead_letters.dir().display(), "cannot write a dead letter: {e}");
            for outcome in &mut outcomes {
                if let Outcome::Rejected { reason } = outcome {
                    *outcome = Outcome::deferred(format!(
                        "{reason}; then the dead letter could not be written: {e}"
                    ));
                }
            }
        }
        outcomes
    }

    fn log(&self, job: &Job, outcomes: &[Outcome], duration: Duration) {
        // It may hold what a next hop said.
        let reason = outcomes.iter().find_map(Outcome::reason).map(|reason| Escaped(reason.as_bytes()));
        let count = |is: fn(&Outcome) -> bool| outcomes.iter().filter(|o| is(o)).count();
        info!(
            message_id = %job.id,
            transport = self.delivery.name(),
            recipients = outcomes.len(),
            delivered = count(|o| matches!(o, Outcome::Delivered)),
            deferred = count(|o| matches!(o, Outcome::Deferred { .. })),
            rejected = count(|o| matches!(o, Outcome::Rejected { .. })),
            reason = reason.map(display),
            duration_us = duration.as_micros() as u64,
            "attempt"
        );
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::delivery::{Content, OutcomeReceiver, Recipient, job_channel, outcome_channel};
    use crate::mail::{Arrival, Body, Envelope, ForwardPath, MessageId, Protocol, ReversePath};

    /// A job for three recipients, the second of which has one attempt behind it.
    pub fn job(sequence: u64, outcomes: &OutcomeSender) -> Job {
        let paths = ["a@e.org", "b@e.org", "postmaster"];
        Job {
            id: MessageId { log: 1, sequence },
            envelope: Arc::new(Envelope {
                reverse_path: ReversePath::parse("s@e.net", false).unwrap(),
                forward_paths: paths.iter().map(|path| ForwardPath::parse(path, false).unwrap()).collect(),
                body: Body::EightBit,
                smtputf8: false,
                require_tls: false,
                dsn: None,
            }),
            arrival: Arc::new(Arrival {
                peer: "192.0.2.1:1234".parse().unwrap(),
                hello: "e.net".into(),
                protocol: Protocol::Esmtp,
                tls: None,
                authenticated: None,
                client_name: None,
                tags: Vec::new(),
                unix_time: 1_700_000_000,
            }),
            recipients: (0..3).map(|index| Recipient { index, attempts: u32::from(index == 1) }).collect(),
            content: Content::Memory(vec![b"Received: x\r\n".to_vec(), b"\r\nhello\r\n".to_vec()]),
            outcomes: outcomes.clone(),
        }
    }

    /// A transport that does as it is told.
    struct Told(Mutex<Box<Orders>>);

    type Orders = dyn FnMut(&Attempt<'_>) -> Vec<Outcome> + Send;

    impl Delivery for Told {
        fn name(&self) -> &str {
            "told"
        }

        fn deliver(&self, attempt: &Attempt<'_>) -> Vec<Outcome> {
            self.0.lock().unwrap_or_else(|e| e.into_inner())(attempt)
        }
    }

    struct Rig {
        dead: tempfile::TempDir,
        schedule: Schedule,
    }

    impl Rig {
        fn new(schedule: Schedule) -> Self {
            Rig { dead: tempfile::tempdir().unwrap(), schedule }
        }

        /// Delivers one job after the other and returns the reports.
        fn reports(
            &self,
            jobs: u64,
            deliver: impl FnMut(&Attempt<'_>) -> Vec<Outcome> + Send + 'static,
        ) -> Vec<Report> {
            self.reports_on(jobs, |_| {}, deliver)
        }

        /// The same for jobs that `alter` has altered.
        fn reports_on(
            &self,
            jobs: u64,
            alter: impl Fn(&mut Job),
            deliver: impl FnMut(&Attempt<'_>) -> Vec<Outcome> + Send + 'static,
        ) -> Vec<Report> {
            let (outcomes, reports): (OutcomeSender, OutcomeReceiver) = outcome_channel(64, Arc::new(|| ()));
            let (sender, receiver) = job_channel(64);
            for n in 0..jobs {
                let mut job = job(n, &outcomes);
                alter(&mut job);
                assert!(sender.try_send(job).is_ok());
            }
            drop(sender);
            let dead = Arc::new(DeadLetters::new(self.dead.path()).unwrap());
            let told = Arc::new(Told(Mutex::new(Box::new(deliver))));
            Workers::start(1, receiver, told, dead, self.schedule).unwrap().join();
            std::iter::from_fn(|| reports.try_recv()).collect()
        }

        fn dead_letters(&self) -> usize {
            DeadLetters::open(self.dead.path()).ids().unwrap().len()
        }
    }

    #[test]
    fn what_the_transport_cannot_carry_is_rejected_without_an_attempt() {
        let rig = Rig::new(patient());
        let binary = |job: &mut Job| Arc::make_mut(&mut job.envelope).body = Body::Binary;
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
            assert_eq!(attempt.recipients.iter().map(|r| r.path.as_str()).collect::<Vec<_>>().len(), 3);
            vec![Outcome::Delivered, Outcome::deferred("later"), Outcome::Delivered]
        });
        assert_eq!(reports.iter().map(|r| r.id.sequence).collect::<Vec<_>>(), [0, 1, 2]);
        let expected = [(0, Outcome::Delivered), (1, Outcome::deferred("later")), (2, Outcome::Delivered)];
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
                2 => vec![Outcome::Delivered; 2],
                3 => vec![],
                _ => vec![Outcome::Delivered; 3],
            }
        });
        let reasons = ["the transport panicked", "the transport gave a wrong number of outcomes"];
        for (report, reason) in reports.iter().zip([reasons[0], reasons[1], reasons[1]]) {
            assert!(report.recipients.iter().all(|(_, o)| *o == Outcome::deferred(reason)), "{report:?}");
        }
        assert!(reports[3].recipients.iter().all(|(_, o)| *o == Outcome::Delivered));
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
            vec![Outcome::rejected("unknown"), Outcome::Delivered, Outcome::rejected("unknown")]
        });
        let outcomes: Vec<_> = reports[0].recipients.iter().map(|(_, outcome)| outcome).collect();
        assert!(matches!(outcomes[0], Outcome::Deferred { reason } if reason.starts_with("unknown; then")));
        assert_eq!(*outcomes[1], Outcome::Delivered);
        assert!(matches!(outcomes[2], Outcome::Deferred { .. }));
    }

    #[test]
    fn stopped_workers_leave_the_channel_alone() {
        let (outcomes, reports) = outcome_channel(64, Arc::new(|| ()));
        let (jobs, receiver) = job_channel(64);
        let dead = tempfile::tempdir().unwrap();
        let dead = Arc::new(DeadLetters::new(dead.path()).unwrap());
        let (entered, is_entered) = bounded(1);
        let (leave, may_leave) = bounded::<()>(0);
        let told = Told(Mutex::new(Box::new(move |attempt| {
            entered.send(()).unwrap();
            may_leave.recv().unwrap();
            vec![Outcome::Delivered; attempt.recipients.len()]
        })));
        let workers = Workers::start(1, receiver, Arc::new(told), dead, patient()).unwrap();
        (0..3).for_each(|n| assert!(jobs.try_send(job(n, &outcomes)).is_ok()));
        is_entered.recv().unwrap();
        let stopper = thread::spawn(move || workers.stop());
        thread::sleep(Duration::from_millis(50));
        leave.send(()).unwrap();
        stopper.join().unwrap();
        assert_eq!(std::iter::from_fn(|| reports.try_recv()).count(), 1);
    }
}
