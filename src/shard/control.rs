//! Orders from the gateway to a shard, and the bell that wakes it.
//!
//! Why the bell keeps the shard's waker, and is rung four times a second from outside: glommio may go to sleep though tasks are
//! ready to run. It looks whether it should preempt before it runs the first of them; where it should already, because its timer has
//! fired on a busy core or a wake that was no longer needed came late, it runs none, takes that for having none, and sleeps. It sleeps
//! until something happens that it has not seen yet; a wake of a task that is ready already is nothing, if it comes from the shard
//! itself or from a waker that was used up. The timers may all be among what it has seen.
//!
//! A wake from another thread by a waker that is kept is an event each time, whatever state its task is in: it ends that sleep.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

use crossbeam_channel::bounded;
use tokio::sync::oneshot;

use super::Shard;

/// Orders that may wait for a shard. Each takes microseconds: more than these wait only where it does not answer at all.
const ORDERS_MAX: usize = 1024;
/// How long an answer is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Something that is done on a shard, between two turns of its tasks.
type Order = Box<dyn FnOnce(&Rc<Shard>) + Send>;

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

/// Orders from the gateway to a shard, and the bell for all of its mailboxes.
#[derive(Default)]
pub struct Control {
    ending: AtomicU8,
    /// Of the shard's first task, which lasts as long as the shard.
    bell: OnceLock<Waker>,
    /// Nothing, once nobody will take them any more.
    orders: Mutex<Orders>,
    /// There may be some: looked at instead of the lock.
    has_orders: AtomicBool,
}

#[derive(Default)]
struct Orders {
    waiting: Vec<Order>,
    is_over: bool,
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

    /// Has the shard do this. False: it has ended, or does not answer.
    fn order(&self, order: Order) -> bool {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if orders.is_over || orders.waiting.len() >= ORDERS_MAX {
            return false;
        }
        orders.waiting.push(order);
        drop(orders);
        self.has_orders.store(true, Ordering::Release);
        self.ring();
        true
    }

    /// What is to be done now.
    pub(super) fn take_orders(&self) -> Vec<Order> {
        if !self.has_orders.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.has_orders.store(false, Ordering::Relaxed);
        std::mem::take(&mut self.orders.lock().unwrap_or_else(PoisonError::into_inner).waiting)
    }

    /// Nobody takes orders any more: who waits for an answer is told so.
    pub(super) fn end_orders(&self) {
        let waiting = {
            let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
            orders.is_over = true;
            std::mem::take(&mut orders.waiting)
        };
        drop(waiting);
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

/// All shards, for other threads.
#[derive(Clone)]
pub struct Shards(Arc<[Arc<Control>]>);

impl Shards {
    /// Those that these control.
    pub fn new(controls: Vec<Arc<Control>>) -> Self {
        Shards(controls.into())
    }

    /// How many there are.
    #[allow(clippy::len_without_is_empty)] // there is always one
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells all of them how to end.
    pub fn end(&self, ending: Ending) {
        self.0.iter().for_each(|control| control.end(ending));
    }

    /// Something may be in their mailboxes.
    pub fn ring(&self) {
        self.0.iter().for_each(|control| control.ring());
    }

    /// Has shard `n` do something between two turns of its tasks, and gives what that returns; `None`: the shard has ended, or has not
    /// answered within five seconds. What nobody waits for any more when its turn comes is not done. It must take microseconds:
    /// everything else of the shard waits meanwhile.
    ///
    /// # Panics
    /// Outside of a tokio runtime with a clock.
    pub(crate) async fn ask<R: Send + 'static>(
        &self,
        n: usize,
        what: impl FnOnce(&Rc<Shard>) -> R + Send + 'static,
    ) -> Option<R> {
        let (answer, answered) = oneshot::channel();
        let is_ordered = self.0[n].order(Box::new(move |shard| {
            // Who has been told that it was not done is to be right.
            if !answer.is_closed() {
                let _ = answer.send(what(shard));
            }
        }));
        if !is_ordered {
            return None;
        }
        tokio::time::timeout(ANSWER_TIMEOUT, answered).await.ok()?.ok()
    }

    /// The same of every shard at the same time; the answers in the shards' order.
    pub(crate) async fn ask_all<R: Send + 'static>(
        &self,
        what: impl Fn(&Rc<Shard>) -> R + Clone + Send + 'static,
    ) -> Vec<Option<R>> {
        let mut asked = Vec::with_capacity(self.len());
        for control in self.0.iter() {
            let (answer, answered) = oneshot::channel();
            let what = what.clone();
            control.order(Box::new(move |shard| {
                let _ = answer.send(what(shard));
            }));
            asked.push(answered);
        }
        let until = tokio::time::Instant::now() + ANSWER_TIMEOUT;
        let mut answers = Vec::with_capacity(asked.len());
        for answered in asked {
            // A refused order was dropped, and its answer with it.
            answers.push(tokio::time::timeout_at(until, answered).await.ok().and_then(Result::ok));
        }
        answers
    }

    /// As [`Shards::ask`], for threads that may block, and each shard with something of its own.
    pub(crate) fn tell_each<T: Send + 'static, R: Send + 'static>(
        &self,
        each: impl IntoIterator<Item = T>,
        what: impl Fn(&Rc<Shard>, T) -> R + Clone + Send + 'static,
    ) -> Vec<Option<R>> {
        let mut asked = Vec::with_capacity(self.len());
        for (control, own) in self.0.iter().zip(each) {
            let (answer, answered) = bounded(1);
            let what = what.clone();
            control.order(Box::new(move |shard| {
                let _ = answer.send(what(shard, own));
            }));
            asked.push(answered);
        }
        let until = std::time::Instant::now() + ANSWER_TIMEOUT;
        asked.into_iter().map(|answered| answered.recv_deadline(until).ok()).collect()
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
