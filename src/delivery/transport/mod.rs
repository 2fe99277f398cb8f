//! The transports: how an attempt is made. One file each.

mod discard;
mod maildir;
mod pipe;
mod template;
pub mod webhook;

pub use discard::Discard;
pub use maildir::Maildir;
pub use pipe::{CommandTemplate, LineEnds, Pipe, PipeSettings, User};
pub use template::{PathTemplate, TooLong};
pub use webhook::Webhook;
