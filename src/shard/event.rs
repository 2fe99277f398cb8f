//! Waiting within one shard: something happened, and one task, or several, wait for it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use slab::Slab;

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
    waiters: RefCell<Slab<Waker>>,
}

impl Broadcast {
    /// It happened: everybody who waits goes on.
    pub fn set(&self) {
        self.generation.set(self.generation.get() + 1);
        self.waiters.borrow().iter().for_each(|(_, waker)| waker.wake_by_ref());
    }

    /// Waits until it happens again.
    pub fn wait(&self) -> Wait<'_> {
        Wait { broadcast: self, seen: self.generation.get(), key: None }
    }
}

/// One task's wait. It has one place among the waiters, given back when it ends: glommio counts the wakers of a task in
/// 16 bits, so none may be left behind.
pub struct Wait<'a> {
    broadcast: &'a Broadcast,
    seen: u64,
    key: Option<usize>,
}

impl Future for Wait<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.broadcast.generation.get() != self.seen {
            return Poll::Ready(());
        }
        let mut waiters = self.broadcast.waiters.borrow_mut();
        match self.key {
            Some(key) => waiters[key].clone_from(context.waker()),
            None => {
                let key = waiters.insert(context.waker().clone());
                drop(waiters);
                self.key = Some(key);
            }
        }
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.broadcast.waiters.borrow_mut().remove(key);
        }
    }
}
