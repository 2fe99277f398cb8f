//! The transports: how an attempt is made. One file each.

mod discard;
mod maildir;
pub mod next_hop;
mod pipe;
mod template;
pub mod webhook;

pub use discard::Discard;
pub use maildir::Maildir;
pub use next_hop::NextHop;
pub use pipe::{CommandTemplate, LineEnds, Pipe, PipeSettings, User};
pub use template::PathTemplate;
pub use webhook::Webhook;
