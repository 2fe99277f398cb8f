//! `type = "networks"`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::value::list;

/// Who is vouched for, and who is sent away. The most specific network decides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Networks {
    /// Guards are not asked about peers from here.
    #[serde(deserialize_with = "list")]
    pub allow: Vec<IpNet>,
    /// Peers from here are refused.
    #[serde(deserialize_with = "list")]
    pub deny: Vec<IpNet>,
}
