//! The verifier: threads that verify passwords, so that no shard has to.
//!
//! Invariants:
//! - [`Verifier::submit`] never waits: with all threads at work and the queue full it says [`Busy`], and what the peer is told is to
//!   come back later, not that its password is wrong;
//! - one address has at most a quarter of the queue's places, waiting and at work together: however often it asks, others are heard;
//! - every attempt that was taken is answered once, by one of the threads, or dropped with its asker: when the verifier stops, or where
//!   nobody waits for the answer any more, which costs no verification;
//! - passwords are overwritten when they are dropped;
//! - memory is bounded: each thread has at most one verification's in use, and waiting attempts have their names and passwords only.
//!
//! The threads never pre-empt a shard that has the same core: they are batch threads to the scheduler. Signals must be blocked in the
//! thread that starts them: they inherit it.
//!
//! A panic in one of the threads is not caught there. The gateway's panic hook ends the process; without one, whoever stops the verifier gets
//! it.

use std::io;
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded, select};
use zeroize::Zeroizing;

use super::{Credentials, Place, Places};
use crate::scheduling::yield_to_shards;

/// Threads that verify passwords.
pub struct Verifier {
    credentials: Arc<Mutex<Arc<Credentials>>>,
    attempts: Sender<Queued>,
    places: Arc<Places>,
    /// Dropped to tell the threads to stop: nothing is ever sent.
    running: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// Somebody who wants to log in.
pub struct Attempt {
    /// The name that was given.
    pub user: Box<str>,
    /// The password that was given.
    pub password: Zeroizing<Vec<u8>>,
    /// Who asks; nobody if it is not to be counted.
    pub from: Option<IpAddr>,
    /// Who is told.
    pub asker: Box<dyn Asker>,
}

/// Who waits for an answer. Called by a thread of the verifier: nothing here may wait.
pub trait Asker: Send {
    /// Whether it still does.
    fn is_waiting(&self) -> bool {
        true
    }

    /// Tells whether the password is the user's.
    fn tell(self: Box<Self>, is_right: bool);
}

impl<F: FnOnce(bool) + Send> Asker for F {
    fn tell(self: Box<Self>, is_right: bool) {
        self(is_right);
    }
}

/// An attempt, and its place among its address's.
struct Queued {
    attempt: Attempt,
    place: Option<Place>,
}

/// All threads are at work and the queue, or the address's part of it, is full: try again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

impl Verifier {
    /// Starts `threads` threads, for which up to `queue_max` attempts may wait. Fails where the system gives no more threads; those that
    /// were started then end.
    pub fn start(credentials: Credentials, threads: usize, queue_max: usize) -> io::Result<Verifier> {
        assert!(threads > 0, "attempts need somebody who verifies them");
        let (attempts, waiting) = bounded(queue_max);
        let (running, stop) = bounded(0);
        let credentials = Arc::new(Mutex::new(Arc::new(credentials)));
        let places = Places::new(u32::try_from(queue_max / 4).unwrap_or(u32::MAX).max(1), 0);
        let mut verifier = Verifier {
            credentials,
            attempts,
            places,
            running: Some(running),
            threads: Vec::with_capacity(threads),
        };
        for n in 0..threads {
            let thread = Thread {
                attempts: waiting.clone(),
                stop: stop.clone(),
                credentials: verifier.credentials.clone(),
            };
            let builder = thread::Builder::new().name(format!("auth-{n}"));
            verifier.threads.push(builder.spawn(move || thread.run())?);
        }
        Ok(verifier)
    }

    /// Has `attempt` verified, against the credentials of the time when a thread takes it up.
    pub fn submit(&self, attempt: Attempt) -> Result<(), Busy> {
        let place = attempt.from.map(|ip| self.places.take(ip)).transpose().map_err(|_| Busy)?;
        match self.attempts.try_send(Queued { attempt, place }) {
            Ok(()) => Ok(()),
            // Every thread ended by a panic, and there was no hook to end the process: nobody can log in.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Busy),
        }
    }

    /// From now on these.
    pub fn replace(&self, credentials: Credentials) {
        *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(credentials);
    }

    /// Ends every thread after the attempt it is at, and waits for that. Attempts that wait are dropped without an answer.
    ///
    /// # Panics
    /// Where a thread did.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.running = None;
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join()
                && !thread::panicking()
            {
                resume_unwind(panic);
            }
        }
    }
}

struct Thread {
    attempts: Receiver<Queued>,
    stop: Receiver<()>,
    credentials: Arc<Mutex<Arc<Credentials>>>,
}

impl Thread {
    fn run(&self) {
        yield_to_shards();
        while let Some(Queued { attempt, place }) = self.next_attempt() {
            let Attempt { user, password, asker, .. } = attempt;
            if !asker.is_waiting() {
                continue;
            }
            let credentials = self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let is_right = credentials.verify(&user, &password);
            // Whoever is told finds the place free.
            drop((password, place));
            asker.tell(is_right);
        }
    }

    fn next_attempt(&self) -> Option<Queued> {
        // To stop goes before attempts that wait.
        if let Err(TryRecvError::Disconnected) = self.stop.try_recv() {
            return None;
        }
        select! {
            recv(self.attempts) -> attempt => attempt.ok(),
            recv(self.stop) -> _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc;

    use super::super::credentials::tests::line;
    use super::*;

    fn credentials(users: &[(&str, &str)]) -> Credentials {
        let text: String = users.iter().map(|(user, password)| line(user, password.as_bytes())).collect();
        Credentials::parse(&text).unwrap()
    }

    fn attempt(user: &str, password: &str, answer: impl FnOnce(bool) + Send + 'static) -> Attempt {
        Attempt {
            user: user.into(),
            password: Zeroizing::new(password.as_bytes().to_vec()),
            from: None,
            asker: Box::new(answer),
        }
    }

    fn ask(verifier: &Verifier, user: &str, password: &str) -> bool {
        let (told, answer) = mpsc::channel();
        verifier.submit(attempt(user, password, move |is_right| told.send(is_right).unwrap())).unwrap();
        answer.recv().unwrap()
    }

    /// An attempt that keeps its thread at work: says when a thread has it, and ends when the sender is dropped.
    fn hold(verifier: &Verifier) -> mpsc::Sender<()> {
        let ((told, begun), (release, wait)) = (mpsc::channel(), mpsc::channel::<()>());
        let answer = move |_| {
            told.send(()).unwrap();
            let _ = wait.recv();
        };
        verifier.submit(attempt("nobody", "", answer)).unwrap();
        begun.recv().unwrap();
        release
    }

    #[test]
    fn attempts_are_answered_and_credentials_replaced() {
        let verifier = Verifier::start(credentials(&[("alice", "a"), ("bob", "b")]), 2, 4).unwrap();
        assert!(ask(&verifier, "alice", "a") && ask(&verifier, "bob", "b"));
        assert!(!ask(&verifier, "alice", "b") && !ask(&verifier, "carol", "c"));
        verifier.replace(credentials(&[("alice", "new")]));
        assert!(ask(&verifier, "alice", "new"));
        assert!(!ask(&verifier, "alice", "a") && !ask(&verifier, "bob", "b"));
        verifier.stop();
    }

    #[test]
    fn a_full_queue_is_busy_and_recovers() {
        for (threads, queue_max) in [(1, 1), (2, 3)] {
            let verifier = Verifier::start(credentials(&[("alice", "a")]), threads, queue_max).unwrap();
            let held: Vec<_> = (0..threads).map(|_| hold(&verifier)).collect();
            let (told, answers) = mpsc::channel();
            for _ in 0..queue_max {
                let told = told.clone();
                verifier.submit(attempt("alice", "a", move |is_right| told.send(is_right).unwrap())).unwrap();
            }
            let refused = verifier.submit(attempt("alice", "a", |_| panic!("it was not taken")));
            assert_eq!(refused, Err(Busy));
            drop((held, told));
            assert_eq!(answers.iter().collect::<Vec<_>>(), vec![true; queue_max]);
            assert!(ask(&verifier, "alice", "a"));
        }
    }

    #[test]
    fn one_address_has_a_quarter_of_the_queue() {
        for (queue_max, share) in [(1, 1), (4, 1), (7, 1), (8, 2), (64, 16)] {
            let verifier = Verifier::start(credentials(&[("alice", "a")]), 1, queue_max).unwrap();
            let held = hold(&verifier);
            let (told, answers) = mpsc::channel();
            let submit = |from: &str| {
                let told = told.clone();
                let attempt = attempt("alice", "a", move |is_right| told.send(is_right).unwrap());
                verifier.submit(Attempt { from: from.parse().ok(), ..attempt })
            };
            for _ in 0..share {
                assert_eq!(submit("2001:db8::1"), Ok(()));
            }
            assert_eq!(submit("2001:db8::2"), Err(Busy), "of the same /64");
            // The queue itself has room for the others, as far as it goes.
            let others = (1..=9).map(|n| submit(&format!("192.0.2.{n}"))).filter(Result::is_ok).count();
            assert_eq!(others, (queue_max - share).min(9));
            drop(held);
            for _ in 0..share + others {
                assert_eq!(answers.recv(), Ok(true));
            }
            assert_eq!(submit("2001:db8::2"), Ok(()), "its places are free again");
            assert_eq!(answers.recv(), Ok(true));
        }
    }

    #[test]
    fn what_nobody_waits_for_is_not_looked_at() {
        struct Gone(mpsc::Sender<()>);
        impl Asker for Gone {
            fn is_waiting(&self) -> bool {
                false
            }

            fn tell(self: Box<Self>, _: bool) {
                self.0.send(()).unwrap();
            }
        }
        let verifier = Verifier::start(credentials(&[("alice", "a")]), 1, 40).unwrap();
        let (told, answers) = mpsc::channel();
        let attempt = |told| Attempt {
            asker: Box::new(Gone(told)),
            from: "192.0.2.1".parse().ok(),
            ..attempt("alice", "a", |_| ())
        };
        for _ in 0..10 {
            verifier.submit(attempt(told.clone())).unwrap();
        }
        drop(told);
        assert_eq!(answers.recv(), Err(mpsc::RecvError), "every asker is dropped without a word");
        assert!(ask(&verifier, "alice", "a"));
        assert!(verifier.places.is_empty());
    }

    #[test]
    fn stopping_ends_the_threads_and_drops_what_waits() {
        let mut verifier = Verifier::start(credentials(&[]), 1, 2).unwrap();
        let (release, (told, answers)) = (hold(&verifier), mpsc::channel());
        verifier.submit(attempt("alice", "a", move |is_right| told.send(is_right).unwrap())).unwrap();
        // The thread is let go after it was told to stop, which is the first thing that stopping does.
        verifier.running = None;
        drop(release);
        verifier.stop();
        assert_eq!(answers.recv(), Err(mpsc::RecvError));
    }

    #[test]
    fn a_panic_in_a_thread_is_not_swallowed() {
        let verifier = Verifier::start(credentials(&[]), 1, 1).unwrap();
        let (told, begun) = mpsc::channel();
        let answer = move |_| {
            told.send(()).unwrap();
            panic!("a fault of the answer's");
        };
        verifier.submit(attempt("alice", "a", answer)).unwrap();
        begun.recv().unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| verifier.stop()));
        let panic = panic.expect_err("the thread's panic");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"a fault of the answer's"));
    }

    #[test]
    fn the_threads_are_named_and_yield() {
        let verifier = Verifier::start(credentials(&[]), 1, 1).unwrap();
        let (told, answer) = mpsc::channel();
        let look = move |_| {
            // SAFETY: it asks about this thread only.
            let policy = unsafe { libc::sched_getscheduler(0) };
            told.send((thread::current().name().map(String::from), policy)).unwrap();
        };
        verifier.submit(attempt("alice", "a", look)).unwrap();
        assert_eq!(answer.recv().unwrap(), (Some("auth-0".into()), libc::SCHED_BATCH));
    }
}
