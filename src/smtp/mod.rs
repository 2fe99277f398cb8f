//! The server side of RFC 5321, sans-I/O: octets in, replies and effects out.
//!
//! A [`Session`] is told what arrived (`handle_*`), appends its replies to a buffer of the driver's and says
//! what it wants done ([`Session::poll_effect`]). It does no I/O and reads no clock; the time is an argument.
//!
//! Promises:
//! - no octet of content is ever read as a command, and none of a command as content, for every split of the
//!   input;
//! - replies leave in the order of the commands, one for each;
//! - once content has begun, exactly one of [`Effect::Store`] and [`Effect::Abandon`] is raised for it;
//! - a `250` for a message is written by [`Session::handle_stored`] and by nothing else.
//!
//! ```text
//!   octets ─► line ─► command ─► session ─► reply ─► octets
//!                       params      │ state (State × Event)
//!          ─► content ─► header ────┴─► effects: Check · Piece · Store · Abandon · Close
//! ```
//!
//! Knows nothing of sockets, TLS, disks or threads.

mod command;
mod config;
mod content;
mod effect;
#[doc(hidden)]
pub mod fuzzing;
mod header;
mod line;
mod params;
mod reply;
mod session;
mod state;
mod trace;
mod transaction;

pub use config::{BareLineEnds, SessionConfig};
pub use effect::{Effect, NotStored, Submission};
pub use session::Session;
pub use trace::format_date;
