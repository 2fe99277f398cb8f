//! Orders from the gateway to a shard, and the bell that wakes it.
//!
//! Why the bell keeps the shard's waker, and is rung four times a second from outside: glommio may go to sleep though tasks are
//! ready to run. It looks whether it should preempt before it runs the first of them; where it should already, because its timer has
//! fired on a busy core or a wake that was no longer needed came late, it runs none, takes that for having none, and sleeps. It sleeps
//! until something happens that it has not seen yet; a wake of a task that is ready already is nothing, if it comes from the shard
//! itself or from a waker that was used up. The timers may all be among what it has seen.
//!
//! A wake from another thread by a waker that is kept is an event each time, whatever state its task is in: it ends that sleep.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::task::Waker;

/// How the shard is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Ending {
    /// It is not.
    No = 0,
    /// No new sessions; those there are finish their transactions.
    Drain = 1,
    /// Sessions end at once.
    Abort = 2,
    /// The deliveries have ended too: what they reported is made durable, then the shard ends.
    Finish = 3,
}

/// Orders from the gateway to a shard, and the bell for both of its mailboxes.
#[derive(Default)]
pub struct Control {
    ending: AtomicU8,
    /// Of the shard's first task, which lasts as long as the shard.
    bell: OnceLock<Waker>,
}

impl Control {
    /// Tells the shard how to end. Endings only ever get stricter.
    pub fn end(&self, ending: Ending) {
        self.ending.fetch_max(ending as u8, Ordering::AcqRel);
        self.ring();
    }

    /// Something is in a mailbox. May be called from any thread.
    pub fn ring(&self) {
        // Whoever rings has put something there before, and the shard looks there after it has hung up the bell: with a full fence
        // between both steps of each, one of them sees the other.
        fence(Ordering::SeqCst);
        if let Some(waker) = self.bell.get() {
            waker.wake_by_ref();
        }
    }

    /// From here on a ring wakes this task. It is the same one each time.
    pub(super) fn listen(&self, waker: &Waker) {
        let bell = self.bell.get_or_init(|| waker.clone());
        assert!(bell.will_wake(waker), "one task of a shard listens");
        fence(Ordering::SeqCst);
    }

    /// How the shard is to end.
    pub(super) fn ending(&self) -> Ending {
        match self.ending.load(Ordering::Acquire) {
            0 => Ending::No,
            1 => Ending::Drain,
            2 => Ending::Abort,
            _ => Ending::Finish,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::channel;
    use std::task::Poll;
    use std::time::{Duration, Instant};

    use glommio::{LocalExecutorBuilder, Placement};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn who_rings_often_enough_is_heard_though_the_executor_sleeps_over_a_ready_task() {
        let control = Arc::new(Control::default());
        let ordered = Arc::new(AtomicBool::new(false));
        let (heard, hears) = channel();
        let (shard_control, order) = (control.clone(), ordered.clone());
        // It preempts before it has begun, most of the time.
        let shard = LocalExecutorBuilder::new(Placement::Unbound)
            .preempt_timer(Duration::from_micros(2))
            .spawn(move || {
                poll_fn(move |context| {
                    shard_control.listen(context.waker());
                    if order.swap(false, Ordering::AcqRel) {
                        heard.send(()).expect("the test waits");
                    }
                    match shard_control.ending() {
                        Ending::No => Poll::Pending,
                        _ => Poll::Ready(()),
                    }
                })
            })
            .expect("an executor");
        let start = Instant::now();
        for round in 0..300 {
            ordered.store(true, Ordering::Release);
            loop {
                control.ring();
                if hears.recv_timeout(Duration::from_millis(1)).is_ok() {
                    break;
                }
                assert!(start.elapsed() < PATIENCE, "round {round} is not heard");
            }
        }
        control.end(Ending::Drain);
        // Ends with the test process where it is not heard.
        let (ended, ends) = channel();
        std::thread::spawn(move || ended.send(shard.join().is_ok()));
        while !matches!(ends.recv_timeout(Duration::from_millis(1)), Ok(true)) {
            assert!(start.elapsed() < PATIENCE, "the end is not heard");
            control.ring();
        }
    }
}
