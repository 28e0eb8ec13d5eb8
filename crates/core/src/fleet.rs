//! `fleet.toml`: the nodes and how to reach them. It lives in the team's
//! repository and holds nothing secret.

use crate::name::{EnvironmentName, FleetName, NodeName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The fleet's inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// The fleet's name; every order carries it.
    pub fleet: FleetName,
    /// The nodes, by name.
    #[serde(default)]
    pub nodes: BTreeMap<NodeName, FleetNode>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FleetNode {
    /// The one environment it belongs to.
    pub environment: EnvironmentName,
    /// Host name, address, or a `Host` of `~/.ssh/config`.
    pub address: String,
    /// SSH port, where it is not 22 and `~/.ssh/config` does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The node's SSH host key, as `ssh-ed25519 AAAA…`. Without it `~/.ssh/known_hosts` must know the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// Who made the machine: absent for one adopted by hand, `local` for `bulkhead local up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
}
