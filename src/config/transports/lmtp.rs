//! `type = "lmtp"`.

use super::next_hop::with_session;
use crate::client::Endpoint;
use crate::config::value::Text;

with_session! {
    /// A server that takes mail by LMTP (RFC 2033).
    pub struct Lmtp ("super::next_hop::off") {
        /// Where it listens.
        pub address: Text<Endpoint>,
    }
}
