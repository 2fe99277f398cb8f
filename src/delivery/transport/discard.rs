//! Delivers to nowhere, for measuring what everything before it costs. Does not read the content.

use std::future::ready;

use crate::delivery::{Attempt, Delivering, Delivery, Outcome};
use crate::mail::Capabilities;

/// Everything is delivered, and gone.
pub struct Discard;

impl Delivery for Discard {
    /// Nothing goes anywhere, so nothing is too much.
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    fn deliver<'a>(&'a self, attempt: &'a Attempt) -> Delivering<'a> {
        Box::pin(ready(vec![Outcome::delivered(); attempt.recipients.len()]))
    }
}
