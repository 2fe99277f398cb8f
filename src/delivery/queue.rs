//! The two channels between a queue and the workers: jobs there, reports back.
//!
//! Jobs go through one bounded channel for each target, shared by all queues. Offering never waits: a full channel gives the job back,
//! for the queue is what holds the messages and the channel only a window on it.
//!
//! Reports come back through one channel per queue. Sending one wakes nobody: whoever has sent some rings
//! ([`OutcomeSender::ring`]) when it has nothing better to do, and only a receiver that announced that it sleeps is woken then,
//! once. Nobody waits for a report, so many share one wake, and on a shared core one change of threads.
//!
//! Why sending a report never waits for ever: the receiver never waits for a worker ([`JobSender::try_send`] does not block), so
//! it always comes back to take reports; and a sender that finds the channel full rings before it waits.
//!
//! Knows nothing of what waits for a wake: it is a closure.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use tokio::sync::Notify;

use super::{Job, Report};

/// A channel for at most `size` jobs that wait for a worker.
///
/// Of jobs that have waited long it takes `backlog_max` at a time, so that a long queue does not delay new messages by its own length.
pub fn job_channel(size: usize, backlog_max: usize) -> (JobSender, JobReceiver) {
    assert!(size > 0, "a channel of no size would take a job only while a worker waits");
    let (sender, receiver) = bounded(size);
    let arrived = Arc::new(Notify::new());
    (JobSender { sender, backlog_max, arrived: arrived.clone() }, JobReceiver { receiver, arrived })
}

/// Offers jobs to the workers.
#[derive(Clone)]
pub struct JobSender {
    sender: Sender<Job>,
    backlog_max: usize,
    arrived: Arc<Notify>,
}

impl JobSender {
    /// Hands the job over, or gives it back at once when the channel is full or the workers are gone.
    #[allow(clippy::result_large_err, reason = "the job given back is the point")]
    pub fn try_send(&self, job: Job) -> Result<(), Job> {
        self.sender.try_send(job).map_err(|e| match e {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
        })?;
        self.arrived.notify_one();
        Ok(())
    }

    /// How many jobs have room now. Other queues share it: what is offered may come back all the same.
    pub fn room(&self) -> usize {
        self.capacity().saturating_sub(self.sender.len())
    }

    /// How many jobs have room that have waited long. They leave the rest of the channel to what has just come.
    pub fn room_for_backlog(&self) -> usize {
        self.backlog_max.saturating_sub(self.sender.len())
    }

    /// How many jobs there is room for at most.
    pub fn capacity(&self) -> usize {
        self.sender.capacity().expect("the channel is bounded")
    }
}

/// The workers' end of the job channel.
#[derive(Clone)]
pub struct JobReceiver {
    pub(super) receiver: Receiver<Job>,
    arrived: Arc<Notify>,
}

impl JobReceiver {
    /// The next job, if one is there.
    pub fn try_recv(&self) -> Option<Job> {
        self.receiver.try_recv().ok()
    }

    /// The next job; `None` when no sender is left. `before_waiting` is called when there is none yet.
    ///
    /// A job that is sent between the look and the wait leaves a permit for the wait. Permits are not counted: who has taken a job and
    /// sees another passes the word on, for others may wait.
    pub async fn recv(&self, before_waiting: impl Fn()) -> Option<Job> {
        loop {
            match self.receiver.try_recv() {
                Ok(job) => {
                    if !self.receiver.is_empty() {
                        self.arrived.notify_one();
                    }
                    return Some(job);
                }
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            before_waiting();
            self.arrived.notified().await;
        }
    }
}

/// A channel for at most `capacity` reports. `wake` is called from a worker's thread, when the receiver announced that it sleeps.
pub fn outcome_channel(
    capacity: usize,
    wake: Arc<dyn Fn() + Send + Sync>,
) -> (OutcomeSender, OutcomeReceiver) {
    assert!(capacity > 0, "reports have to be put somewhere");
    let (sender, receiver) = bounded(capacity);
    let asleep = Arc::new(AtomicBool::new(false));
    let given_back = Arc::new(GivenBack::default());
    let bell = Arc::new(Bell { asleep: asleep.clone(), wake, given_back: given_back.clone() });
    (OutcomeSender { sender, bell }, OutcomeReceiver { receiver, asleep, given_back })
}

struct Bell {
    asleep: Arc<AtomicBool>,
    wake: Arc<dyn Fn() + Send + Sync>,
    given_back: Arc<GivenBack>,
}

/// Reports of jobs that nobody has taken. Whoever drops one may be the receiver itself, and waits for no room: there are no more of them
/// than there were jobs.
#[derive(Default)]
struct GivenBack {
    reports: Mutex<Vec<Report>>,
    is_any: AtomicBool,
}

impl GivenBack {
    fn take_one(&self) -> Option<Report> {
        if !self.is_any.load(Ordering::Relaxed) {
            return None;
        }
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let one = reports.pop();
        self.is_any.store(!reports.is_empty(), Ordering::Relaxed);
        one
    }
}

/// Where the report on a job goes.
#[derive(Clone)]
pub struct OutcomeSender {
    sender: Sender<Report>,
    bell: Arc<Bell>,
}

impl OutcomeSender {
    /// Gives the report to the receiver, who may learn of it only after [`OutcomeSender::ring`]. Where the receiver is gone the report
    /// is dropped: the queue that would have noted it has ended, and starts again with what it noted before.
    pub fn send(&self, report: Report) {
        if let Err(TrySendError::Full(report)) = self.sender.try_send(report) {
            self.ring();
            let _ = self.sender.send(report);
        }
    }

    /// Gives a report to the receiver without ever waiting, and rings.
    pub fn give_back(&self, report: Report) {
        let given_back = &self.bell.given_back;
        let mut reports = given_back.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.push(report);
        given_back.is_any.store(true, Ordering::Relaxed);
        drop(reports);
        self.ring();
    }

    /// Wakes the receiver if it sleeps.
    ///
    /// The race: a report sent just as the receiver falls asleep.
    /// 1. the receiver sets `asleep`, then looks into the channel;
    /// 2. the sender has put the report into the channel, then looks at `asleep`.
    ///
    /// With a full fence between both steps of each, one of them sees the other: the receiver the report, and does not sleep; or
    /// the sender the flag, and wakes. Swap the steps of either and both can miss, and the report waits for the next event.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.bell.asleep.load(Ordering::Relaxed) && self.bell.asleep.swap(false, Ordering::AcqRel) {
            (self.bell.wake)();
        }
    }

    /// Do both lead to the same receiver?
    pub fn is_same(&self, other: &OutcomeSender) -> bool {
        Arc::ptr_eq(&self.bell, &other.bell)
    }
}

/// Where reports arrive.
pub struct OutcomeReceiver {
    receiver: Receiver<Report>,
    asleep: Arc<AtomicBool>,
    given_back: Arc<GivenBack>,
}

impl OutcomeReceiver {
    /// The next report, if one is there. Whoever asks is awake: an earlier announcement of sleep is taken back.
    pub fn try_recv(&self) -> Option<Report> {
        if self.asleep.load(Ordering::Relaxed) {
            self.asleep.store(false, Ordering::Relaxed);
        }
        self.receiver.try_recv().ok().or_else(|| self.given_back.take_one())
    }

    /// Announces sleep: the next report calls `wake`. `true` if something arrived meanwhile: then do not sleep.
    pub fn prepare_to_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let arrived = !self.receiver.is_empty() || self.given_back.is_any.load(Ordering::Relaxed);
        if arrived {
            self.asleep.store(false, Ordering::Relaxed);
        }
        arrived
    }

    /// Reports that wait to be taken.
    pub fn len(&self) -> usize {
        self.receiver.len()
    }

    /// Whether no report waits.
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::delivery::Outcome;
    use crate::delivery::TargetId;
    use crate::delivery::tests::job;
    use crate::mail::MessageId;

    fn report(sequence: u64) -> Report {
        Report {
            id: MessageId { log: 1, sequence },
            target: TargetId(0),
            unix_millis: 0,
            duration: Duration::ZERO,
            recipients: vec![(0, Outcome::delivered())],
        }
    }

    #[test]
    fn a_full_channel_gives_the_job_back() {
        let (outcomes, _receiver) = outcome_channel(4, Arc::new(|| ()));
        let (jobs, workers) = job_channel(2, 1);
        for sequence in 0..2 {
            assert!(jobs.try_send(job(sequence, &outcomes)).is_ok());
        }
        assert_eq!(jobs.try_send(job(2, &outcomes)).map_err(|job| job.attempt.id.sequence), Err(2));
        drop(workers);
        assert_eq!(jobs.try_send(job(3, &outcomes)).map_err(|job| job.attempt.id.sequence), Err(3));
    }

    #[test]
    fn a_backlog_leaves_half_of_the_channel_to_new_messages() {
        let (outcomes, _receiver) = outcome_channel(4, Arc::new(|| ()));
        for (size, room) in [(1, 1), (2, 1), (4, 2), (5, 3)] {
            let (jobs, _workers) = job_channel(size, size.div_ceil(2));
            assert_eq!(jobs.room_for_backlog(), room, "of {size}");
            let fits =
                |sequence| jobs.room_for_backlog() > 0 && jobs.try_send(job(sequence, &outcomes)).is_ok();
            assert_eq!((0..size as u64).filter(|sequence| fits(*sequence)).count(), room, "of {size}");
            assert_eq!(jobs.room(), size - room, "of {size}");
            for sequence in room..size {
                assert!(jobs.try_send(job(sequence as u64, &outcomes)).is_ok());
            }
        }
    }

    #[test]
    fn only_a_sleeper_is_woken_and_only_once() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counter = wakes.clone();
        let (sender, receiver) = outcome_channel(
            8,
            Arc::new(move || {
                counter.fetch_add(1, Ordering::SeqCst);
            }),
        );
        let wakes = || wakes.load(Ordering::SeqCst);

        let send = |sequence| {
            sender.send(report(sequence));
            sender.ring();
        };
        send(0);
        assert_eq!(wakes(), 0, "awake");
        assert!(receiver.prepare_to_sleep(), "something is there");
        send(1);
        assert_eq!(wakes(), 0, "the announcement was taken back");
        assert_eq!((receiver.try_recv(), receiver.try_recv()), (Some(report(0)), Some(report(1))));
        assert!(!receiver.prepare_to_sleep());
        send(2);
        send(3);
        assert_eq!(wakes(), 1, "once for one sleep");
        assert_eq!(receiver.try_recv(), Some(report(2)));
        assert_eq!(receiver.try_recv(), Some(report(3)));
        assert!(!receiver.prepare_to_sleep());
        assert_eq!(receiver.try_recv(), None);
        send(4);
        assert_eq!(wakes(), 1, "awake for another reason");
    }

    #[test]
    fn a_report_without_a_receiver_is_dropped() {
        let (sender, receiver) = outcome_channel(1, Arc::new(|| panic!("nobody sleeps")));
        sender.send(report(0));
        drop(receiver);
        sender.send(report(1));
    }

    /// A receiver that sleeps whenever it may, and would sleep for ever on a lost wake.
    #[test]
    fn no_wake_is_lost() {
        const PER_SENDER: u64 = 20_000;
        let (wake, woken) = bounded::<()>(1);
        let (sender, receiver) = outcome_channel(
            3,
            Arc::new(move || {
                let _ = wake.try_send(());
            }),
        );
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let sender = sender.clone();
                thread::spawn(move || {
                    for i in 0..PER_SENDER {
                        sender.send(report(i));
                        if i % 3 == 2 || i == PER_SENDER - 1 {
                            sender.ring();
                        }
                    }
                })
            })
            .collect();
        let mut taken = 0;
        while taken < 2 * PER_SENDER {
            while receiver.try_recv().is_some() {
                taken += 1;
            }
            if taken < 2 * PER_SENDER && !receiver.prepare_to_sleep() {
                woken.recv_timeout(Duration::from_secs(30)).expect("a wake was lost");
            }
        }
        senders.into_iter().for_each(|s| s.join().unwrap());
    }
}
