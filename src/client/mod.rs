//! The client side of SMTP and LMTP (RFC 5321, RFC 2033): how the gateway speaks to what stands behind it.
//!
//! [`ReplyReader`] makes replies of octets, sans-I/O. A [`Connection`] says commands and waits for their replies, each in its time; it runs on
//! threads with tokio, never on a shard. A [`Pool`] keeps a few connections open for those who ask often and little.
//!
//! Invariants:
//! - what a server sends takes bounded memory, whatever it is: a line, the lines of a reply, and what stands behind it;
//! - a reply belongs to the command before it: octets that nobody asked for end the connection, and so does everything that is no reply;
//! - nothing that a server says is written anywhere but as printable ASCII.
//!
//! Knows nothing of policies, of the server side, and of what its caller wants to know.

mod connection;
mod endpoint;
mod pool;
mod reply;

pub use connection::{Connection, Failure, Introduction, Protocol, Step, Timeouts, Why};
pub use endpoint::Endpoint;
pub use pool::Pool;
pub use reply::{BadReply, Reply, ReplyReader};
