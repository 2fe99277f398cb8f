//! The client's side of RFC 5321, without I/O: octets of replies in, commands and measurements out.
//!
//! [`Replies`] cuts what arrives into whole replies. A [`Dialogue`] is one session: it is told of replies and says what
//! comes [next](Dialogue::next); what it measures goes to the [`Listener`] it is given.
//!
//! Knows nothing of sockets, of TLS, or of which messages count.

mod dialogue;
mod extensions;
mod reply;

pub use dialogue::{Dialogue, Listener, Message, Next, Outcome, Rules};
pub use extensions::Extensions;
pub use reply::{NotSmtp, Replies, Reply};
