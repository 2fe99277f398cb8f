//! `type = "embedded"`.

use serde::{Deserialize, Serialize};

/// Nothing is to be said of it: a program brings it along, by the transport's name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedded {}
