//! Waiting within one shard: something happened, and one task, or several, wait for it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

/// Something one task waits for. Set before or during the wait; a wait takes it back.
#[derive(Default)]
pub struct Event {
    is_set: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Event {
    /// It happened.
    pub fn set(&self) {
        if !self.is_set.replace(true)
            && let Some(waiter) = self.waiter.borrow_mut().take()
        {
            waiter.wake();
        }
    }

    /// Ready once it has happened since the last time this was ready.
    pub fn poll(&self, context: &Context<'_>) -> Poll<()> {
        if self.is_set.take() {
            return Poll::Ready(());
        }
        keep_waker(&mut self.waiter.borrow_mut(), context);
        Poll::Pending
    }

    /// Waits until it has happened.
    pub async fn wait(&self) {
        poll_fn(|context| self.poll(context)).await;
    }
}

/// Keeps the task's waker, without a new one where the old serves.
pub fn keep_waker(waiter: &mut Option<Waker>, context: &Context<'_>) {
    if waiter.as_ref().is_none_or(|waker| !waker.will_wake(context.waker())) {
        *waiter = Some(context.waker().clone());
    }
}

/// Something any number of tasks wait for. Each waits for the next time it happens.
#[derive(Default)]
pub struct Broadcast {
    generation: Cell<u64>,
    waiters: RefCell<Vec<Waker>>,
}

impl Broadcast {
    /// It happened: everybody who waits goes on.
    pub fn set(&self) {
        self.generation.set(self.generation.get() + 1);
        self.waiters.borrow_mut().drain(..).for_each(Waker::wake);
    }

    /// Waits until it happens again.
    pub async fn wait(&self) {
        let seen = self.generation.get();
        poll_fn(|context| {
            if self.generation.get() != seen {
                return Poll::Ready(());
            }
            self.waiters.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
