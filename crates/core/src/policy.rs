//! The policy: who must sign what. A JSON document signed by root keys as
//! SSHSIG in the namespace [`NAMESPACE`]; every node pins the one it accepted.

use crate::name::{EnvironmentName, FleetName, PersonName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// SSHSIG namespace of policies.
pub const NAMESPACE: &str = "policy@bulkhead";
/// The largest policy that anyone reads.
pub const POLICY_MAX_BYTES: usize = 1 << 20;

/// Who must sign what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Version of this format: 1.
    pub format: u32,
    /// The fleet it is for.
    pub fleet: FleetName,
    /// One more than the policy before; the first is 1.
    pub version: u64,
    /// Who may sign the next policy.
    pub root: Root,
    /// The keys of people and machines, by holder.
    pub keys: BTreeMap<PersonName, Key>,
    /// What each environment demands of an order. One that is not here accepts none.
    pub environments: BTreeMap<EnvironmentName, Demand>,
}

/// Root keys and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// How many distinct keys.
    pub threshold: u32,
    /// OpenSSH public keys, `ssh-ed25519 AAAA…`.
    pub keys: Vec<String>,
}

/// One key and what it may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// OpenSSH public key, `ssh-ed25519 AAAA…` or `sk-ssh-ed25519@openssh.com AAAA…`.
    pub key: String,
    /// What it may do.
    pub roles: BTreeSet<Role>,
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Sign orders.
    Release,
    /// Connect to nodes, bring what is signed, and look.
    Courier,
}

/// What an environment demands of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demand {
    /// How many distinct release keys must have signed.
    pub release: u32,
}

impl Policy {
    /// Reads a policy from its exact bytes. Verify signatures before trusting it.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let policy: Self = serde_json::from_slice(bytes).map_err(|error| format!("not a policy: {error}"))?;
        if policy.format != 1 {
            return Err(format!("policy format {} is not known here", policy.format));
        }
        let distinct: BTreeSet<&str> = policy.root.keys.iter().map(|key| key_blob(key)).collect();
        if policy.root.threshold == 0 || policy.root.threshold as usize > distinct.len() {
            return Err(format!("root threshold {} of {} distinct keys", policy.root.threshold, distinct.len()));
        }
        if let Some((name, _)) = policy.environments.iter().find(|(_, demand)| demand.release == 0) {
            return Err(format!("environment `{name}` demands no signature at all"));
        }
        Ok(policy)
    }

    /// The bytes to sign.
    ///
    /// # Panics
    /// Never: plain data always serialises.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("plain data always serialises");
        bytes.push(b'\n');
        bytes
    }

    /// The OpenSSH public keys that have a role, with their holders.
    pub fn holders(&self, role: Role) -> impl Iterator<Item = (&PersonName, &str)> {
        self.keys.iter().filter(move |(_, key)| key.roles.contains(&role)).map(|(name, key)| (name, key.key.as_str()))
    }
}

/// The base64 part of an OpenSSH public key, which is the key; the rest is its type's name and a comment.
#[must_use]
pub fn key_blob(openssh: &str) -> &str {
    openssh.split_whitespace().nth(1).unwrap_or(openssh)
}
