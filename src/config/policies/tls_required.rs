//! `type = "tls_required"`.

use serde::{Deserialize, Serialize};

use crate::config::value::{word, write_word};
use crate::mail::TlsVersion;

/// Which TLS there must be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsRequired {
    /// The oldest version.
    #[serde(deserialize_with = "word", serialize_with = "write_word")]
    pub min_version: TlsVersion,
}

impl Default for TlsRequired {
    fn default() -> Self {
        TlsRequired { min_version: TlsVersion::Tls12 }
    }
}
