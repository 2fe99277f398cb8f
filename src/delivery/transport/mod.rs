//! The transports: how an attempt is made. One file each.

mod discard;
mod maildir;
mod template;
pub mod webhook;

pub use discard::Discard;
pub use maildir::Maildir;
pub use template::{PathTemplate, TooLong};
pub use webhook::Webhook;
