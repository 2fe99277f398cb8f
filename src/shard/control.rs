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
    use std::task::{Context, Poll};
    use std::time::Duration;

    use glommio::{LocalExecutorBuilder, Placement};

    use super::*;

    const ORDERS: usize = 2000;
    /// Rings, a millisecond apart.
    const PATIENCE: usize = 2000;

    /// Gives orders to an executor that preempts after so long, and rings every millisecond until each is heard. None: it does not even
    /// begin; else how many were heard, of [`ORDERS`].
    fn heard(
        preempts_after: Duration,
        ring: impl Fn(),
        listen: impl Fn(&Context<'_>) -> bool + Send + 'static,
    ) -> Option<usize> {
        let ordered = Arc::new(AtomicBool::new(false));
        let (heard, hears) = channel();
        let order = ordered.clone();
        // Detached: it ends with the order to end, or with the test's process.
        let _shard = LocalExecutorBuilder::new(Placement::Unbound)
            .preempt_timer(preempts_after)
            .spawn(move || {
                poll_fn(move |context| {
                    let is_over = listen(context);
                    if order.swap(false, Ordering::AcqRel) && heard.send(()).is_err() || is_over {
                        return Poll::Ready(());
                    }
                    Poll::Pending
                })
            })
            .expect("an executor");
        for n in 0..ORDERS {
            ordered.store(true, Ordering::Release);
            let is_heard = (0..PATIENCE).any(|_| {
                ring();
                hears.recv_timeout(Duration::from_millis(1)).is_ok()
            });
            match is_heard {
                true => {}
                false if n == 0 => return None,
                false => return Some(n),
            }
        }
        Some(ORDERS)
    }

    /// Where it always preempts before it has begun it does nothing at all; a little above that, it sometimes does.
    #[test]
    fn who_rings_again_is_heard_though_the_executor_sleeps_over_a_ready_task() {
        let mut begun_count = 0;
        for micros in (30..100).step_by(3) {
            let control = Arc::new(Control::default());
            let listening = control.clone();
            let heard = heard(
                Duration::from_micros(micros),
                || control.ring(),
                move |context| {
                    listening.listen(context.waker());
                    listening.ending() != Ending::No
                },
            );
            control.end(Ending::Drain);
            begun_count += usize::from(heard.is_some());
            assert!(heard.is_none_or(|count| count == ORDERS), "{micros} us: {heard:?} of {ORDERS}");
        }
        assert!(begun_count > 0, "the executor has never begun");
    }
}
