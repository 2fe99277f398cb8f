//! `type = "size_limit"`.

use serde::{Deserialize, Serialize};

use crate::config::value::{size, write_size};
use crate::limits::MESSAGE_SIZE_MAX_HIGH;

/// How large a message may be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizeLimit {
    /// Octets of content.
    #[serde(deserialize_with = "size::<1, MESSAGE_SIZE_MAX_HIGH, _, _>", serialize_with = "write_size")]
    pub max: u64,
}
