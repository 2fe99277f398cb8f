//! A well-behaved client beside hostile ones: it exchanges one message after another and notes how long each has taken.
//!
//! With one shard it is on the same shard as everybody else. What it feels is compared with what it felt before, within one run:
//! machines differ, and so do the other things they are doing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::Client;
use super::wait;

/// Between two messages: a client that hammers would measure itself.
const PAUSE: Duration = Duration::from_millis(2);

/// Messages of a phase at least: so that one of a hundred is more than one.
const PHASE_COUNT: usize = 200;

/// The client, on a thread of its own.
pub struct Neighbour {
    stop: Arc<AtomicBool>,
    taken: Arc<Mutex<Vec<Duration>>>,
    thread: Option<JoinHandle<()>>,
    quiet: Duration,
}

impl Neighbour {
    /// Starts it, and waits until it has seen a quiet phase.
    #[track_caller]
    pub fn start(address: SocketAddr) -> Self {
        let (stop, taken) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Duration>>>::default());
        let thread = {
            let (stop, taken) = (stop.clone(), taken.clone());
            thread::spawn(move || {
                let mut client = Client::greet(address);
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    client.deliver(
                        "neighbour@client.test",
                        &["inbox@mx.test"],
                        b"Subject: neighbour\r\n\r\n.\r\n",
                    );
                    taken.lock().expect("its figures").push(begun.elapsed());
                    thread::sleep(PAUSE);
                }
            })
        };
        let mut neighbour = Neighbour { stop, taken, thread: Some(thread), quiet: Duration::ZERO };
        neighbour.quiet = neighbour.phase(0);
        neighbour
    }

    /// Does `deed`, and says how many times longer than in the quiet phase the slowest hundredth of its exchanges has taken meanwhile,
    /// or just after it where the deed was short.
    #[track_caller]
    pub fn feels<T>(&self, deed: impl FnOnce() -> T) -> (T, f64) {
        let from = self.figures().len();
        let done = deed();
        let p99 = self.phase(from);
        (done, p99.as_secs_f64() / self.quiet.as_secs_f64())
    }

    /// How many messages it has exchanged.
    pub fn count(&self) -> usize {
        self.figures().len()
    }

    /// The 99th percentile of the exchanges from this number on, of which there must be enough.
    #[track_caller]
    fn phase(&self, from: usize) -> Duration {
        wait::until("the neighbour has exchanged its messages", || {
            let is_over = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!is_over, "the neighbour's session has ended");
            self.figures().len() >= from + PHASE_COUNT
        });
        let mut taken = self.figures()[from..].to_vec();
        taken.sort_unstable();
        taken[taken.len() * 99 / 100]
    }

    fn figures(&self) -> MutexGuard<'_, Vec<Duration>> {
        self.taken.lock().expect("its figures")
    }

    /// Ends it; how many messages it has exchanged, each of which is acknowledged.
    #[track_caller]
    pub fn stop(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it runs").join().expect("the neighbour was served to its end");
        self.count()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
