//! Where policies wait: one thread for those that await, and more for those that block.
//!
//! Invariants:
//! - [`Lookups::submit`] never waits: with as many lookups under way as there may be it answers [`Unavailable`] at once;
//! - every lookup is answered once, by its own answer or when its time is over; one that blocks counts among those under way
//!   until it is back, though its answer was given long before;
//! - a lookup that panics ends the process, by the gateway's panic hook; without one it is answered as unavailable.
//!
//! The threads never pre-empt a shard that has the same core. Signals must be blocked in the thread that starts them.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::{Semaphore, oneshot};

use super::{Found, Later, Places, Unavailable};
use crate::scheduling::yield_to_shards;

/// Threads that block at most.
const BLOCKING_THREADS_MAX: usize = 64;
/// One address has one of so many parts of all lookups.
const SHARE: usize = 4;
/// How long the end waits for those that block.
const END_TIMEOUT: Duration = Duration::from_millis(100);

/// Does what policies must wait for.
pub struct Lookups {
    handle: Handle,
    places: Arc<Semaphore>,
    /// Of one address.
    shares: Arc<Places>,
    /// Dropped to end the thread.
    running: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Lookups {
    /// Starts the thread, for up to `concurrency_max` lookups at a time.
    pub fn start(concurrency_max: usize) -> io::Result<Lookups> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("lookup-blocking")
            .on_thread_start(yield_to_shards)
            .build()?;
        let handle = runtime.handle().clone();
        let (running, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name("lookups".into()).spawn(move || {
            yield_to_shards();
            let _ = runtime.block_on(stopped);
            runtime.shutdown_timeout(END_TIMEOUT);
        })?;
        let places = Arc::new(Semaphore::new(concurrency_max));
        let share = u32::try_from(concurrency_max / SHARE).unwrap_or(u32::MAX).max(1);
        Ok(Lookups {
            handle,
            places,
            shares: Places::new(share, 0),
            running: Some(running),
            thread: Some(thread),
        })
    }

    /// What else is to run there, as what a resolver needs.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Has `later` done within `timeout`. `answer` is called by another thread, and must not wait; it is dropped uncalled only
    /// where the lookups end before. `from` is for whose session it is: one address has a quarter of all lookups at most; `None`: it is
    /// not counted.
    pub fn submit(
        &self,
        later: Later,
        from: Option<IpAddr>,
        timeout: Duration,
        answer: impl FnOnce(Found) + Send + 'static,
    ) {
        let share = from.map(|ip| self.shares.take(ip)).transpose();
        let (Ok(share), Ok(place)) = (share, self.places.clone().try_acquire_owned()) else {
            return answer(Err(Unavailable::new("too many lookups are under way")));
        };
        let place = (place, share);
        let overdue = move || Unavailable(format!("no answer within {timeout:?}"));
        self.handle.spawn(async move {
            let found = match later {
                Later::Wait(future) => {
                    let found = tokio::time::timeout(timeout, future).await;
                    drop(place);
                    found.unwrap_or_else(|_| Err(overdue()))
                }
                Later::Block(work) => {
                    let work = tokio::task::spawn_blocking(move || {
                        let found = work();
                        drop(place);
                        found
                    });
                    match tokio::time::timeout(timeout, work).await {
                        Ok(Ok(found)) => found,
                        Ok(Err(e)) => Err(Unavailable(format!("the lookup failed: {e}"))),
                        Err(_) => Err(overdue()),
                    }
                }
            };
            answer(found);
        });
    }
}

impl Drop for Lookups {
    fn drop(&mut self) {
        self.running = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::{Answer, Verdict};
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn later(answer: Answer) -> Later {
        match answer {
            Answer::Later(later) => later,
            Answer::Now(_) => panic!("an answer at once"),
        }
    }

    fn ask(lookups: &Lookups, answer: Answer, timeout: Duration) -> mpsc::Receiver<Found> {
        let (told, answers) = mpsc::channel();
        lookups.submit(later(answer), None, timeout, move |found| told.send(found).unwrap());
        answers
    }

    #[test]
    fn both_kinds_are_answered() {
        let lookups = Lookups::start(2).unwrap();
        let waits = Answer::wait(async { Ok(Verdict::Trust) });
        assert_eq!(ask(&lookups, waits, LONG).recv().unwrap(), Ok(Verdict::Trust));
        let blocks = Answer::block(|| Err(Unavailable::new("no")));
        assert_eq!(ask(&lookups, blocks, LONG).recv().unwrap(), Err(Unavailable::new("no")));
    }

    #[test]
    fn one_address_has_a_quarter_and_others_the_rest() {
        let lookups = Lookups::start(8).unwrap();
        let from = |ip: &str| {
            let (told, answers) = mpsc::channel();
            let hangs = later(Answer::wait(std::future::pending()));
            lookups.submit(hangs, Some(ip.parse().unwrap()), LONG, move |found| told.send(found).unwrap());
            answers
        };
        let held: Vec<_> = ["192.0.2.1", "192.0.2.1", "192.0.2.2"].map(from).into();
        assert!(from("192.0.2.1").recv().unwrap().is_err());
        let other = from("192.0.2.3");
        assert!(other.try_recv().is_err() && held.iter().all(|answers| answers.try_recv().is_err()));
    }

    #[test]
    fn time_and_number_are_bounded() {
        let lookups = Lookups::start(2).unwrap();
        let soon = Duration::from_millis(1);
        let hangs = || Answer::wait(std::future::pending());
        let overdue = ask(&lookups, hangs(), soon).recv().unwrap();
        assert_eq!(overdue, Err(Unavailable::new("no answer within 1ms")));
        let (release, released) = mpsc::channel::<()>();
        let blocks = Answer::block(move || {
            let _ = released.recv();
            Ok(Verdict::Accept)
        });
        // It goes on blocking, and keeps its place.
        assert!(ask(&lookups, blocks, soon).recv().unwrap().is_err());
        let first = ask(&lookups, hangs(), LONG);
        let refused = ask(&lookups, hangs(), LONG).recv().unwrap();
        assert_eq!(refused, Err(Unavailable::new("too many lookups are under way")));
        drop(release);
        // Its place is free once its thread is back.
        loop {
            let waits = Answer::wait(async { Ok(Verdict::Accept) });
            if ask(&lookups, waits, LONG).recv().unwrap().is_ok() {
                break;
            }
        }
        drop(lookups);
        // Whoever still waits when the lookups end is not answered, and knows it.
        assert!(first.recv().is_err());
    }
}
