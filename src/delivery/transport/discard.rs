//! Delivers to nowhere, for measuring what everything before it costs. Does not read the content.

use crate::delivery::{Attempt, Delivery, Outcome};
use crate::mail::Capabilities;

/// Everything is delivered, and gone.
pub struct Discard {
    name: Box<str>,
}

impl Discard {
    /// A transport of the given name.
    pub fn new(name: &str) -> Self {
        Discard { name: name.into() }
    }
}

impl Delivery for Discard {
    fn name(&self) -> &str {
        &self.name
    }

    /// Nothing goes anywhere, so nothing is too much.
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    fn deliver(&self, attempt: &Attempt<'_>) -> Vec<Outcome> {
        vec![Outcome::Delivered; attempt.recipients.len()]
    }
}
