//! `fleet.toml`: the nodes and how to reach them. It lives in the team's
//! repository and holds nothing secret.

use crate::{
    manifest::Platform,
    name::{EnvironmentName, FleetName, NodeName, PoolName},
};
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
    /// The tools that `bulkhead look` brings to nodes, in an image of their own.
    #[serde(default)]
    pub tools: Tools,
}

/// The tool image. Its packages are pinned in `tools.lock` beside this file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Tools {
    /// Debian packages, of which every program is a tool. With `busybox` among them, what it knows is there too.
    pub packages: Vec<String>,
    /// The Debian suite that they come from.
    pub suite: String,
    /// The platform of the nodes.
    pub platform: Platform,
}

impl Default for Tools {
    fn default() -> Self {
        let packages =
            ["busybox", "coreutils", "gdb", "iproute2", "lsof", "ncurses-base", "procps", "strace", "tcpdump"];
        Self { packages: packages.map(str::to_owned).to_vec(), suite: "trixie".into(), platform: Platform::Amd64 }
    }
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
    /// The pool that it was bought for: it runs instances of granted apps, and deploys pass it by. Such nodes stand not
    /// in `fleet.toml` but in what the loop that buys them keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
}
