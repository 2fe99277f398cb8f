//! `type = "reverse_dns"`.

use serde::{Deserialize, Serialize};

use super::at::{At, FromConnect};
use crate::config::value::{Word, word, write_word};
use crate::mail::{Class, Phase};
use crate::policy::Required;

/// What is required of the name of a peer's address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReverseDns {
    /// When it is asked.
    #[serde(deserialize_with = "word", serialize_with = "write_word")]
    pub at: FromConnect,
    /// Who is refused.
    #[serde(deserialize_with = "word", serialize_with = "write_word")]
    pub require: Required,
    /// How.
    #[serde(deserialize_with = "word", serialize_with = "write_word")]
    pub refuse: Refuse,
}

impl Default for ReverseDns {
    fn default() -> Self {
        ReverseDns { at: At(Phase::Connect), require: Required::Nothing, refuse: Refuse(Class::Temporary) }
    }
}

/// Whether who is refused may come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refuse(pub Class);

impl Word for Refuse {
    const WORDS: &'static [(&'static str, Self)] =
        &[("defer", Refuse(Class::Temporary)), ("reject", Refuse(Class::Permanent))];
}

impl Word for Required {
    const WORDS: &'static [(&'static str, Self)] =
        &[("none", Required::Nothing), ("ptr", Required::Name), ("confirmed", Required::ConfirmedName)];
}
