//! An answer from another thread, for one task of a shard.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

struct State<T> {
    answer: Option<T>,
    waiter: Option<Waker>,
}

/// Where the answer is waited for.
pub struct Answer<T>(Arc<Mutex<State<T>>>);

/// Whoever gives it. Dropped without having given one it gives the one it was made with.
pub struct Answerer<T> {
    state: Arc<Mutex<State<T>>>,
    otherwise: Option<T>,
}

/// Both ends; `otherwise` is the answer if nobody gives one.
pub fn answer<T>(otherwise: T) -> (Answer<T>, Answerer<T>) {
    let state = Arc::new(Mutex::new(State { answer: None, waiter: None }));
    (Answer(state.clone()), Answerer { state, otherwise: Some(otherwise) })
}

fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Answer<T> {
    /// The answer, once it is there.
    pub fn poll(&self, context: &Context<'_>) -> Poll<T> {
        let mut state = lock(&self.0);
        match state.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                state.waiter = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Answerer<T> {
    /// Whether the other end is still there.
    pub fn is_waited_for(&self) -> bool {
        Arc::strong_count(&self.state) > 1
    }

    /// Gives it. From any thread.
    pub fn give(mut self, answer: T) {
        self.otherwise = Some(answer);
    }
}

impl<T> Drop for Answerer<T> {
    fn drop(&mut self) {
        let waiter = {
            let mut state = lock(&self.state);
            state.answer = self.otherwise.take();
            state.waiter.take()
        };
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_even_if_nobody_gives_one() {
        let context = &mut Context::from_waker(Waker::noop());
        let (waiting, given) = answer(1);
        assert_eq!(waiting.poll(context), Poll::Pending);
        given.give(2);
        assert_eq!(waiting.poll(context), Poll::Ready(2));
        let (waiting, given) = answer(1);
        drop(given);
        assert_eq!(waiting.poll(context), Poll::Ready(1));
    }

    #[test]
    fn whoever_answers_can_tell_whether_somebody_waits() {
        let (waiting, given) = answer(1);
        assert!(given.is_waited_for());
        drop(waiting);
        assert!(!given.is_waited_for());
    }
}
