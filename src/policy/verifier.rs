//! The verifier: threads that verify passwords, so that no shard has to.
//!
//! Invariants:
//! - [`Verifier::submit`] never waits: with all threads at work and the queue full it says [`Busy`], and what the peer is told is to
//!   come back later, not that its password is wrong;
//! - every attempt that was taken is answered once, by one of the threads, or dropped with its answer when the verifier stops;
//! - passwords are overwritten when they are dropped;
//! - memory is bounded: each thread has at most one verification's in use, and waiting attempts have their names and passwords only.
//!
//! The threads never pre-empt a shard that has the same core: they are batch threads to the scheduler. Signals must be blocked in the
//! thread that starts them: they inherit it.
//!
//! A panic in one of the threads is not caught there. The gateway's panic hook ends the process; without one, whoever stops the verifier gets
//! it.

use std::io;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded, select};
use zeroize::Zeroizing;

use super::Credentials;
use crate::scheduling::yield_to_shards;

/// Threads that verify passwords.
pub struct Verifier {
    credentials: Arc<Mutex<Arc<Credentials>>>,
    attempts: Sender<Attempt>,
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
    /// Told whether it is the user's. Called by a thread of the verifier: it must not wait.
    pub answer: Box<dyn FnOnce(bool) + Send>,
}

/// All threads are at work and the queue is full: try again later.
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
        let mut verifier =
            Verifier { credentials, attempts, running: Some(running), threads: Vec::with_capacity(threads) };
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
        match self.attempts.try_send(attempt) {
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
    attempts: Receiver<Attempt>,
    stop: Receiver<()>,
    credentials: Arc<Mutex<Arc<Credentials>>>,
}

impl Thread {
    fn run(&self) {
        yield_to_shards();
        while let Some(Attempt { user, password, answer }) = self.next_attempt() {
            let credentials = self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let is_right = credentials.verify(&user, &password);
            drop(password);
            answer(is_right);
        }
    }

    fn next_attempt(&self) -> Option<Attempt> {
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
            answer: Box::new(answer),
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
