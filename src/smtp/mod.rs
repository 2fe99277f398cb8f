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
//!               params · sasl · xclient │ state (State × Event)
//!          ─► content ─► header ────────┴─► effects: Check · StartTls · Authenticate · Piece · Store · Abandon · Close
//! ```
//!
//! LMTP (RFC 2033) is a dialect of the same session. Knows nothing of sockets, disks or threads, and of TLS only that it begins.

mod command;
mod config;
mod content;
mod effect;
#[doc(hidden)]
pub mod fuzzing;
mod header;
mod heard;
mod line;
mod pace;
mod params;
mod reply;
mod sasl;
mod session;
mod state;
mod trace;
mod transaction;
mod xclient;

pub use config::{AuthMode, BareLineEnds, Dialect, Peer, SessionConfig, TlsMode};
pub use effect::{Authentication, Credentials, Effect, NotStored, Submission};
pub use heard::{Heard, LINE_SIZE_MAX as HEARD_LINE_SIZE_MAX};
pub use reply::refusal_line;
pub use session::{Session, Standing};
