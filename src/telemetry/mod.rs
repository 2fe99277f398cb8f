//! What the operator sees: the log, and what may stand in it; the events and who observes them; what metrics there are, and how they are
//! counted and written.
//!
//! Knows nothing of how anything is done; it is told.

pub mod distribution;
mod escaped;
pub mod events;
pub mod exposition;
pub mod log;
pub mod metrics;
pub mod process;
mod refusals;
mod reloads;

pub use escaped::Escaped;
pub use events::{Event, Observer};
pub use refusals::{refused, reported};
pub use reloads::{Reload, Reloads, reloaded, reloads};
