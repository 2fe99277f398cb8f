//! No shard ends alone: where its thread ends before its work, the process does. Nor does what happens go unobserved: where an observer
//! panics, on whatever thread, the process ends too.
//!
//! For gateways in other people's programs, whose panic hook is theirs: it is looked at when the thread is over, whatever was unwound
//! until then. Where a panic ends the process anyway there is nothing to look at.

use std::cell::Cell;

use crate::policy::{Answer, Facts, Phase, Phases, Policy};
use crate::telemetry::{self, Event, Observer};

/// Its end is its thread's.
#[derive(Default)]
struct Sentinel {
    is_awaited: Cell<bool>,
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        if self.is_awaited.get() {
            end_process("a shard has panicked: the process ends, and nothing acknowledged is lost");
        }
    }
}

thread_local! {
    static SENTINEL: Sentinel = Sentinel::default();
}

/// Does `work`, which the thread is for.
pub async fn guard_thread<T>(work: impl Future<Output = T>) -> T {
    SENTINEL.with(|sentinel| sentinel.is_awaited.set(true));
    let done = work.await;
    SENTINEL.with(|sentinel| sentinel.is_awaited.set(false));
    done
}

/// An observer or a policy whose panic ends the process.
pub struct Guarded<O>(pub O);

impl<O: Observer> Observer for Guarded<O> {
    fn observe(&self, event: &Event<'_>) {
        let unwinding = Unwinding;
        self.0.observe(event);
        std::mem::forget(unwinding);
    }
}

/// Dropped by a panic only.
struct Unwinding;

impl Drop for Unwinding {
    fn drop(&mut self) {
        end_process(
            "an observer or a policy has panicked: the process ends, and nothing acknowledged is lost",
        );
    }
}

fn end_process(words: &str) {
    tracing::error!("{words}");
    telemetry::log::write_out();
    std::process::abort();
}

impl<P: Policy> Policy for Guarded<P> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn phases(&self) -> Phases {
        self.0.phases()
    }

    fn is_guard(&self) -> bool {
        self.0.is_guard()
    }

    fn check(&self, phase: Phase, facts: &Facts<'_>) -> Answer {
        let unwinding = Unwinding;
        let answer = self.0.check(phase, facts);
        std::mem::forget(unwinding);
        answer
    }
}
