//! `type = "discard"`.

use serde::{Deserialize, Serialize};

/// Nothing is to be said of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Discard {}
