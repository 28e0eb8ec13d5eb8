//! A node's own documents: who it is (`/etc/bulkhead/node.json`) and what an
//! installation is given. Both are written and read with root's rights only,
//! so nothing in them is signed but the policy, which every node pins.

use crate::name::{EnvironmentName, FleetName, NodeName, PoolName};
use serde::{Deserialize, Serialize};

/// Stock units that listen to a network and have no place on a node: an
/// installation stops and masks those that are there. The last two are made by
/// systemd's own generator where it finds an sshd.
pub const UNWANTED_UNITS: [&str; 13] = [
    "ssh.service",
    "ssh.socket",
    "sshd.service",
    "sshd.socket",
    "rpcbind.service",
    "rpcbind.socket",
    "exim4.service",
    "avahi-daemon.service",
    "avahi-daemon.socket",
    "cups.service",
    "cups.socket",
    "sshd-unix-local.socket",
    "sshd-vsock.socket",
];

/// How long a machine that is being adopted waits for the first request through
/// its new SSH server, before it gives the stock one back. The same as in the
/// agent's `bulkhead-adoption.timer`.
pub const CONFIRM_WITHIN_S: u64 = 300;

/// Who a node is: the whole of `/etc/bulkhead/node.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeIdentity {
    /// The fleet whose policy it enforces.
    pub fleet: FleetName,
    /// Its own name; orders carry it.
    pub node: NodeName,
    /// The one environment it belongs to.
    pub environment: EnvironmentName,
    /// The pool that it was bought for. Only then it takes orders that rest on a scale grant ([`crate::grant`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
}

/// What `bulkhead-agent install` reads from standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The fleet whose policy it enforces.
    pub fleet: FleetName,
    /// Its own name; orders carry it.
    pub node: NodeName,
    /// The one environment it belongs to.
    pub environment: EnvironmentName,
    /// The pool that it was bought for; see [`NodeIdentity::pool`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// The exact text of the policy, as it was signed. Its couriers' keys are the ones that may connect.
    pub policy: String,
    /// Armoured SSHSIG signatures over the policy's bytes.
    pub signatures: Vec<String>,
    /// An OpenSSH private key to use as the host key. Where absent the node makes one and keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
}

impl NodeConfig {
    /// The part that the node keeps as `/etc/bulkhead/node.json`.
    #[must_use]
    pub fn identity(&self) -> NodeIdentity {
        let Self { fleet, node, environment, pool, .. } = self.clone();
        NodeIdentity { fleet, node, environment, pool }
    }
}
