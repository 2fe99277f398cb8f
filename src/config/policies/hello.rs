//! `type = "hello"`.

use serde::{Deserialize, Serialize};

use super::at::FromHello;
use crate::config::value::{flag, word, write_word};

/// What the name in HELO must be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hello {
    /// When it is asked.
    #[serde(deserialize_with = "word", serialize_with = "write_word")]
    pub at: FromHello,
    /// A domain with a dot, or an address literal.
    #[serde(deserialize_with = "flag")]
    pub fqdn: bool,
    /// Neither our host name nor an accepted domain, nor the address of the listener.
    #[serde(deserialize_with = "flag")]
    pub not_ours: bool,
    /// An address literal must be the peer's.
    #[serde(deserialize_with = "flag")]
    pub literal_is_peer: bool,
    /// A domain must have an address or an MX.
    #[serde(deserialize_with = "flag")]
    pub resolves: bool,
}

impl Default for Hello {
    fn default() -> Self {
        Hello {
            at: FromHello::default(),
            fqdn: true,
            not_ours: true,
            literal_is_peer: false,
            resolves: false,
        }
    }
}
