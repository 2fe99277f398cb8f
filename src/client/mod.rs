//! The client side of SMTP and LMTP (RFC 5321, RFC 2033): how the gateway speaks to what stands behind it.
//!
//! [`ReplyReader`] makes replies of octets and [`Transaction`] sends a message by what they say, both sans-I/O. A [`Connection`] says commands and
//! content and waits for the replies, each in its time; it runs on threads with tokio, never on a shard. A [`Pool`] keeps a few connections open
//! for those who come often.
//!
//! Invariants:
//! - what a server sends takes bounded memory, whatever it is: a line, the lines of a reply, and what stands behind it; and so does what it does not
//!   take: content is read as it is written;
//! - a reply belongs to the command before it: octets that nobody asked for end the connection, and so does everything that is no reply;
//! - no octet of content is ever said where a command could be read, nor a command within content;
//! - nothing that a server says is written anywhere but as printable ASCII.
//!
//! Knows nothing of policies and deliveries, of the server side, and of what its caller wants to know.

mod connection;
mod dns;
mod endpoint;
mod login;
mod lookup;
mod message;
mod offers;
mod pool;
mod reply;
#[cfg(test)]
pub(crate) mod scripted;
mod stuffing;
#[cfg(test)]
mod tests;
mod tls;
mod transaction;
mod wire;

pub use connection::{
    Connection, Content, Failure, Interrupted, Introduction, Protocol, Step, Target, Timeouts, Why,
};
pub use dns::resolver;
pub use endpoint::Endpoint;
pub use login::Login;
pub use lookup::SystemResolver;
pub use message::{HeaderText, Message, Objection, Origin};
pub use offers::Offers;
pub use pool::{Bounds, Leased, Pool};
pub use reply::{BadReply, Reply, ReplyReader};
pub use tls::{Protection, TlsUse, Trust};
pub use transaction::{Fate, Transaction};
