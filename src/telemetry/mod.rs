//! What the operator sees: the log, and what may stand in it.
//!
//! Knows nothing of how anything is done; it is told.

mod escaped;
pub mod log;
mod refusals;

pub use escaped::Escaped;
pub use refusals::{refused, reported};
