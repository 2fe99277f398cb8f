//! `type = "recipients_limit"`.

use serde::{Deserialize, Serialize};

use crate::config::value::count;
use crate::limits::RECIPIENTS_MAX_HIGH;

/// How many recipients a transaction may have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipientsLimit {
    /// Recipients.
    #[serde(deserialize_with = "count::<1, RECIPIENTS_MAX_HIGH, _, _>")]
    pub max: usize,
}
