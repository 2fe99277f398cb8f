//! The transports: how an attempt is made. One file each.

mod discard;
mod maildir;
pub mod next_hop;
mod template;

pub use discard::Discard;
pub use maildir::Maildir;
pub use next_hop::NextHop;
pub use template::{PathTemplate, TooLong};
