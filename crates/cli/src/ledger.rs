//! What this machine keeps of nodes' audit logs: which key signs them, where
//! they ended when it looked last, and the receipts of its own orders.
//!
//! ```text
//! STATE/nodes/FLEET/NODE-HOST/audit-key        the key that was seen first, of a node that the policy lists no keys of
//! STATE/nodes/FLEET/NODE-HOST/sealing-key      the key that secrets are sealed to, likewise
//! STATE/nodes/FLEET/NODE-HOST/head.json        the newest head that was checked
//! STATE/nodes/FLEET/NODE-HOST/receipts/ORDER.json
//! ```
//!
//! `HOST` is of the host key that `fleet.toml` pins, so a machine that was made
//! anew under an old name has a memory of its own. The directory is no cache:
//! what is lost of it is what a node could deny. It says nothing secret.
//!
//! What lies here was checked when it was written and is believed.

use crate::{
    error::{Error, Kind, Result},
    session::state_directory,
    workspace::{read_if_present, write_durably, write_json},
};
use bulkhead_core::{
    FleetName, NodeName, OrderId, SignedText,
    digest::{hex, sha256},
    fleet::FleetNode,
    policy::Policy,
};
use bulkhead_trust::{
    PublicKey,
    audit::{Head, Receipt, Seen, Statement, signer_of, verify_statement},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Receipts that are kept of a node; the oldest go first. Each one's place in the log is before the newest head's.
const RECEIPTS_MAX: usize = 1000;

/// What is kept of one node.
#[derive(Debug, Clone)]
pub struct Ledger {
    directory: PathBuf,
    fleet: FleetName,
    node: NodeName,
}

/// How a node's audit key is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownBy {
    /// The policy lists it.
    Policy,
    /// This machine saw it before.
    Before,
    /// It was seen for the first time, over a connection to the pinned host key.
    First,
}

impl Ledger {
    /// Of a node.
    ///
    /// # Errors
    /// The environment does not say where state is kept.
    pub fn of(fleet: &FleetName, node: &NodeName, known: &FleetNode) -> Result<Self> {
        Ok(Self::below(&state_directory()?, fleet, node, known.host_key.as_deref()))
    }

    fn below(state: &Path, fleet: &FleetName, node: &NodeName, host_key: Option<&str>) -> Self {
        let host = hex(&sha256(host_key.unwrap_or_default().as_bytes())[..6]);
        let directory = state.join("nodes").join(fleet.as_str()).join(format!("{node}-{host}"));
        Self { directory, fleet: fleet.clone(), node: node.clone() }
    }

    /// Reads what the node signed about its log, with the key that the policy lists, or else the one that was seen
    /// first, which from now on is this one.
    ///
    /// # Errors
    /// It is signed with another key, or not at all.
    pub fn verify<T: Statement>(
        &self,
        policy: &Policy,
        signed: &SignedText,
        what: &'static str,
    ) -> Result<(T, String, KnownBy)> {
        let path = self.directory.join("audit-key");
        let (key, by) = match policy.nodes.get(&self.node) {
            Some(keys) => (keys.audit.clone(), KnownBy::Policy),
            None => match read_if_present(&path)? {
                Some(key) => (key.trim_end().to_owned(), KnownBy::Before),
                None => (self.shown_by::<T>(signed, what)?.to_openssh(), KnownBy::First),
            },
        };
        let statement = verify_statement(signed, what, &key, &self.fleet, &self.node).map_err(|error| {
            let error = Error::of(Kind::Refused, &error);
            match by {
                KnownBy::Policy => error.hint("the policy's `nodes` lists another key for this node"),
                KnownBy::Before | KnownBy::First => error.hint(format!(
                    "{} holds the key that was seen first; list the node's keys in the policy to settle which is right",
                    path.display()
                )),
            }
        })?;
        if by == KnownBy::First {
            self.write("audit-key", format!("{key}\n").as_bytes())?;
        }
        Ok((statement, key, by))
    }

    fn shown_by<T: Statement>(&self, signed: &SignedText, what: &'static str) -> Result<PublicKey> {
        signer_of::<T>(signed)
            .map_err(|error| Error::during(Kind::Refused, format!("{}: {what} is not signed", self.node), &error))
    }

    /// The key that secrets are sealed to: the policy's, or else the one that was seen first, if any was.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sealing_key(&self, policy: &Policy) -> Result<Option<String>> {
        if let Some(keys) = policy.nodes.get(&self.node) {
            return Ok(Some(keys.sealing.clone()));
        }
        Ok(read_if_present(&self.directory.join("sealing-key"))?.map(|key| key.trim_end().to_owned()))
    }

    /// Keeps the key that a node showed over a connection to its pinned host key.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_sealing_key(&self, key: &str) -> Result<()> {
        self.write("sealing-key", format!("{key}\n").as_bytes())
    }

    /// Every place at which the log was seen to end: the newest head, and receipts.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn seen(&self) -> Result<Vec<Seen>> {
        let mut seen = Vec::new();
        if let Some(head) = self.read::<Head>(&self.directory.join("head.json"))? {
            let (.., end) = head.said();
            seen.push(Seen { end, at: head.at, by: "seen by this machine".into() });
        }
        for (_, path) in self.receipts() {
            if let Some(receipt) = self.read::<Receipt>(&path)? {
                let (.., end) = receipt.said();
                seen.push(Seen { end, at: receipt.at, by: format!("receipt of order {}", receipt.order.short()) });
            }
        }
        Ok(seen)
    }

    fn read<T: Statement>(&self, path: &Path) -> Result<Option<T>> {
        let damaged = |error: &serde_json::Error| {
            Error::during(Kind::Internal, format!("{} is damaged", path.display()), error)
                .hint("remove it: what it says of the node's log is then forgotten")
        };
        let Some(text) = read_if_present(path)? else { return Ok(None) };
        let signed: SignedText = serde_json::from_str(&text).map_err(|error| damaged(&error))?;
        serde_json::from_str(&signed.text).map(Some).map_err(|error| damaged(&error))
    }

    fn receipts(&self) -> Vec<(SystemTime, PathBuf)> {
        let entries = fs::read_dir(self.directory.join("receipts")).into_iter().flatten().flatten();
        let is_receipt = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
        let mut all: Vec<_> = entries
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .filter(|(_, path)| is_receipt(path))
            .collect();
        all.sort();
        all
    }

    /// Keeps a head that was checked, and against which the next one is held.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_head(&self, signed: &SignedText) -> Result<()> {
        write_json(&self.directory.join("head.json"), signed)
    }

    /// Checks and keeps what a node says came of an order.
    ///
    /// # Errors
    /// It is not the node's word about this order, or cannot be written.
    pub fn keep_receipt(&self, policy: &Policy, order: OrderId, signed: &SignedText) -> Result<()> {
        let (receipt, ..) = self.verify::<Receipt>(policy, signed, "the receipt")?;
        if receipt.order != order {
            let message = format!("{}: the receipt is for order {}", self.node, receipt.order.short());
            return Err(Error::new(Kind::Refused, message));
        }
        write_json(&self.directory.join("receipts").join(format!("{order}.json")), signed)?;
        let all = self.receipts();
        for (_, old) in &all[..all.len().saturating_sub(RECEIPTS_MAX)] {
            // One that another process removed first is gone all the same.
            fs::remove_file(old).ok();
        }
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.directory.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .map_err(|error| Error::during(Kind::Internal, format!("cannot make {}", parent.display()), &error))?;
        }
        write_durably(&path, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::{EntryId, Timestamp, policy::NodeKeys};
    use bulkhead_trust::PrivateKey;

    fn policy() -> Policy {
        let text = r#"{"format":1,"fleet":"acme","version":1,"root":{"threshold":1,"keys":["a"]},
            "keys":{},"environments":{}}"#;
        serde_json::from_str(text).unwrap()
    }

    fn head(key: &PrivateKey, entries: u64) -> SignedText {
        let (fleet, node) = ("acme".parse().unwrap(), "n1".parse().unwrap());
        let head = Head { format: 1, fleet, node, entries, head: EntryId([9; 32]), at: Timestamp(5) };
        let text = head.to_text();
        SignedText { signatures: vec![key.sign(Head::NAMESPACE, text.as_bytes())], text }
    }

    fn receipt(key: &PrivateKey, order: OrderId) -> SignedText {
        let (fleet, node, outcome) = ("acme".parse().unwrap(), "n1".parse().unwrap(), "done".into());
        let (head, at) = (EntryId([8; 32]), Timestamp(4));
        let receipt = Receipt { format: 1, fleet, node, order, counter: 3, outcome, entries: 7, head, at };
        let text = receipt.to_text();
        SignedText { signatures: vec![key.sign(Receipt::NAMESPACE, text.as_bytes())], text }
    }

    #[test]
    fn the_first_key_is_kept_until_a_policy_says_otherwise() {
        let state = tempfile::tempdir().unwrap();
        let (fleet, node) = ("acme".parse().unwrap(), "n1".parse().unwrap());
        let ledger = |host| Ledger::below(state.path(), &fleet, &node, Some(host));
        let (first, other) = (PrivateKey::from_seed([1; 32]), PrivateKey::from_seed([2; 32]));
        let verify = |ledger: &Ledger, policy: &Policy, key| {
            ledger.verify::<Head>(policy, &head(key, 1), "the head").map(|(.., by)| by).map_err(|error| error.kind)
        };
        let mut policy = policy();
        assert_eq!(verify(&ledger("h"), &policy, &first), Ok(KnownBy::First));
        assert_eq!(verify(&ledger("h"), &policy, &first), Ok(KnownBy::Before));
        assert_eq!(verify(&ledger("h"), &policy, &other), Err(Kind::Refused));
        // Another host key, another machine.
        assert_eq!(verify(&ledger("anew"), &policy, &other), Ok(KnownBy::First));
        let audit = other.public_key().to_openssh();
        assert_eq!(ledger("h").sealing_key(&policy).unwrap(), None);
        ledger("h").keep_sealing_key("0f").unwrap();
        assert_eq!(ledger("h").sealing_key(&policy).unwrap().as_deref(), Some("0f"));
        assert_eq!(ledger("anew").sealing_key(&policy).unwrap(), None);
        policy.nodes.insert(node.clone(), NodeKeys { audit, sealing: "1f".into() });
        assert_eq!(ledger("h").sealing_key(&policy).unwrap().as_deref(), Some("1f"));
        assert_eq!(verify(&ledger("h"), &policy, &other), Ok(KnownBy::Policy));
        assert_eq!(verify(&ledger("h"), &policy, &first), Err(Kind::Refused));
    }

    #[test]
    fn heads_and_receipts() {
        let state = tempfile::tempdir().unwrap();
        let key = PrivateKey::from_seed([1; 32]);
        let ledger = Ledger::below(state.path(), &"acme".parse().unwrap(), &"n1".parse().unwrap(), None);
        assert_eq!(ledger.seen().unwrap(), []);
        ledger.keep_head(&head(&key, 4)).unwrap();
        ledger.keep_head(&head(&key, 5)).unwrap();
        let order = OrderId([3; 32]);
        ledger.keep_receipt(&policy(), order, &receipt(&key, order)).unwrap();
        assert!(ledger.keep_receipt(&policy(), OrderId([4; 32]), &receipt(&key, order)).is_err());
        let stranger = PrivateKey::from_seed([2; 32]);
        assert!(ledger.keep_receipt(&policy(), order, &receipt(&stranger, order)).is_err());
        let entries: Vec<u64> = ledger.seen().unwrap().iter().map(|seen| seen.end.entries).collect();
        assert_eq!(entries, [5, 7]);
        fs::write(ledger.directory.join("head.json"), "{").unwrap();
        assert!(ledger.seen().is_err());
    }
}
