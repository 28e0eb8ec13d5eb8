//! What a fleet tells its nodes between two orders, each a signed JSON document
//! in a namespace of its own:
//!
//! - a [`Revocation`]: what must not run any more. Any one release key may
//!   revoke: to forbid needs less than to allow. A green key may revoke images
//!   and its own statements.
//! - a [`Heartbeat`]: that nothing is being kept from the node. It names the
//!   policy's version, so a node that was not brought the newest one knows it.
//!
//! - a [`Discharge`]: that a machine is to be a node no longer. It takes the
//!   root keys, because it gives the machine back to whoever could log in to it
//!   before.
//!
//! The first two stop nothing that runs. **Silence never stops work**, and a
//! revocation forbids to start.

use crate::{
    digest::{BootId, ImageId, OrderId, StatementId},
    name::{FleetName, NodeName},
    signed::document_bytes,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// SSHSIG namespace of revocations.
pub const REVOCATION_NAMESPACE: &str = "revocation@bulkhead";
/// SSHSIG namespace of heartbeats.
pub const HEARTBEAT_NAMESPACE: &str = "heartbeat@bulkhead";
/// SSHSIG namespace of discharges.
pub const DISCHARGE_NAMESPACE: &str = "discharge@bulkhead";
/// The largest of these documents that anyone reads.
pub const NOTICE_MAX_BYTES: usize = 256 << 10;
/// The most things that one document revokes.
pub const REVOKED_MAX: usize = 10_000;

/// What must not be started any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// Images, whoever signed for them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub images: BTreeSet<ImageId>,
    /// Orders and standing orders, by the sha256 of their bytes.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub orders: BTreeSet<OrderId>,
    /// Statements, by the sha256 of their bytes.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub statements: BTreeSet<StatementId>,
}

impl Revoked {
    /// Whether it is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many things.
    #[must_use]
    pub fn len(&self) -> usize {
        self.images.len() + self.orders.len() + self.statements.len()
    }

    /// Takes in what another revokes.
    pub fn extend(&mut self, other: &Self) {
        self.images.extend(&other.images);
        self.orders.extend(&other.orders);
        self.statements.extend(&other.statements);
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        if self.len() > REVOKED_MAX {
            return Err(format!("more than {REVOKED_MAX} things are revoked at once"));
        }
        Ok(())
    }
}

/// A signed list of what must not be started any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// Version of this format: 1.
    pub format: u32,
    /// The fleet it is for.
    pub fleet: FleetName,
    /// When it was made, by the signer's clock.
    pub issued: Timestamp,
    /// Why, in the signer's words.
    pub reason: String,
    /// What.
    pub revoked: Revoked,
}

/// A signed word that nothing is being kept from the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// Version of this format: 1.
    pub format: u32,
    /// The fleet it is for.
    pub fleet: FleetName,
    /// When it was made, by the signer's clock.
    pub issued: Timestamp,
    /// The newest policy's version, as the signer knows.
    pub policy: u64,
}

/// A signed word that a machine is to be a node no longer: its apps are stopped, and what made it a node is undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Discharge {
    /// Version of this format: 1.
    pub format: u32,
    /// The fleet it is for.
    pub fleet: FleetName,
    /// The node.
    pub node: NodeName,
    /// The node's boot that it is for.
    pub boot: BootId,
    /// When it was made, by the signer's clock.
    pub issued: Timestamp,
    /// From when on the node does not accept it any more.
    pub not_after: Timestamp,
    /// Whether the volumes of its apps are deleted, for ever.
    pub volumes: bool,
    /// Why, in the signer's words.
    pub reason: String,
}

/// Whether a text can be shown on one line.
pub(crate) fn is_line(text: &str) -> bool {
    text.len() <= 1000 && !text.chars().any(char::is_control)
}

impl Revocation {
    /// Reads a revocation from its exact bytes. Verify signatures before calling this.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let revocation: Self = serde_json::from_slice(bytes).map_err(|error| format!("not a revocation: {error}"))?;
        revocation.check()?;
        Ok(revocation)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.format != 1 {
            return Err(format!("revocation format {} is not known here", self.format));
        }
        if self.reason.is_empty() || !is_line(&self.reason) {
            return Err("the reason is one line of 1 to 1000 bytes".into());
        }
        if self.revoked.is_empty() {
            return Err("it revokes nothing".into());
        }
        self.revoked.check()
    }

    /// The bytes to sign.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        document_bytes(self)
    }
}

impl Discharge {
    /// Reads a discharge from its exact bytes. Verify signatures before calling this.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let discharge: Self = serde_json::from_slice(bytes).map_err(|error| format!("not a discharge: {error}"))?;
        discharge.check()?;
        Ok(discharge)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.format != 1 {
            return Err(format!("discharge format {} is not known here", self.format));
        }
        if self.reason.is_empty() || !is_line(&self.reason) {
            return Err("the reason is one line of 1 to 1000 bytes".into());
        }
        Ok(())
    }

    /// The bytes to sign.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        document_bytes(self)
    }
}

impl Heartbeat {
    /// Reads a heartbeat from its exact bytes. Verify signatures before calling this.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let heartbeat: Self = serde_json::from_slice(bytes).map_err(|error| format!("not a heartbeat: {error}"))?;
        if heartbeat.format != 1 {
            return Err(format!("heartbeat format {} is not known here", heartbeat.format));
        }
        Ok(heartbeat)
    }

    /// The bytes to sign.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        document_bytes(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revocation() -> Revocation {
        Revocation {
            format: 1,
            fleet: "acme".parse().unwrap(),
            issued: Timestamp(7),
            reason: "leaks memory".into(),
            revoked: Revoked { images: [ImageId([1; 32])].into(), ..Revoked::default() },
        }
    }

    #[test]
    fn bytes_and_back() {
        assert_eq!(Revocation::parse(&revocation().to_bytes()), Ok(revocation()));
        let heartbeat = Heartbeat { format: 1, fleet: "acme".parse().unwrap(), issued: Timestamp(7), policy: 3 };
        assert_eq!(Heartbeat::parse(&heartbeat.to_bytes()), Ok(heartbeat.clone()));
        assert!(Heartbeat::parse(&Heartbeat { format: 2, ..heartbeat }.to_bytes()).is_err());
        assert!(Heartbeat::parse(&revocation().to_bytes()).is_err());
    }

    #[test]
    fn what_is_refused() {
        let check = |change: fn(&mut Revocation), words: &str| {
            let mut revocation = revocation();
            change(&mut revocation);
            let error = Revocation::parse(&revocation.to_bytes()).unwrap_err();
            assert!(error.contains(words), "{error}");
        };
        check(|revocation| revocation.format = 0, "format 0");
        check(|revocation| revocation.reason.clear(), "1 to 1000 bytes");
        check(|revocation| revocation.reason = "a\nb".into(), "one line");
        check(|revocation| revocation.revoked = Revoked::default(), "revokes nothing");
        let many = |revocation: &mut Revocation| {
            let id = |n: usize| OrderId::of(&n.to_le_bytes());
            revocation.revoked.orders = (0..=REVOKED_MAX).map(id).collect();
        };
        check(many, "more than 10000");
    }

    #[test]
    fn lists_add_up() {
        let mut all = revocation().revoked;
        all.extend(&Revoked { orders: [OrderId([2; 32])].into(), ..Revoked::default() });
        all.extend(&Revoked { images: [ImageId([1; 32])].into(), ..Revoked::default() });
        assert_eq!((all.len(), all.is_empty()), (2, false));
    }
}
