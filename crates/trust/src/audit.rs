//! Audit logs: the hash chain that a node keeps, the head that it signs of it,
//! and what a client can tell from heads that it saw before.
//!
//! Each line of a log is one [`Entry`] as JSON. `previous` is the sha256 of the
//! line before, its line feed not included, so no line can be changed, dropped
//! or put in without every later one showing it. The chain alone says nothing of
//! its end, nor of one that was made anew from the start: for that there are
//! [`Head`]s. A head is a node's signed word of how many entries there are and
//! what the last one is; whoever keeps one can hold every later chain against it.
//!
//! A node that was taken over can leave out what happens from then on. It cannot
//! change what somebody saw before.

use crate::sshsig::{self, PublicKey, SignatureError};
use bulkhead_core::{AppName, EntryId, FleetName, NodeName, OrderId, SignedText, Timestamp, policy::Policy};
use serde::{Deserialize, Serialize};

/// SSHSIG namespace of heads.
pub const NAMESPACE: &str = "audit@bulkhead";
/// SSHSIG namespace of receipts.
pub const RECEIPT_NAMESPACE: &str = "receipt@bulkhead";
/// SSHSIG namespace in which people sign heads that they saw.
pub const WITNESS_NAMESPACE: &str = "witness@bulkhead";
/// The longest head or receipt that anyone reads.
pub const HEAD_MAX_BYTES: usize = 16 << 10;
/// The most witnesses of one head that are looked at.
const WITNESSES_MAX: usize = 64;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// An order was accepted: its counter is used up.
    Accepted,
    /// A rule refused an order.
    Refused,
    /// An accepted order was carried out.
    Done,
    /// An accepted order could not be carried out.
    Failed,
    /// A signed document that is no order was taken in: a policy, a revocation, a statement.
    Brought,
}

impl What {
    /// The word for it, as the log has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Brought => "brought",
        }
    }
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number: the first is 1.
    pub number: u64,
    /// sha256 of the line before; zeros for the first.
    pub previous: EntryId,
    /// When, by the node's clock.
    pub at: Timestamp,
    /// What happened.
    pub event: What,
    /// The order or other document: sha256 of the bytes that came, whoever sent them.
    pub order: OrderId,
    /// The app, where the order was signed well enough to be read.
    pub app: Option<AppName>,
    /// The order's counter here.
    pub counter: Option<u64>,
    /// Who signed it.
    pub signers: Vec<String>,
    /// The holder (or else the beginning) of the key that the connection was made with, as the gate says.
    pub courier: Option<String>,
    /// The rule that refused, or the step that failed.
    pub rule: Option<String>,
    /// Why.
    pub message: Option<String>,
}

impl Entry {
    /// An entry about an order, the rest empty. Whoever appends it to a log fills in `number` and `previous`.
    #[must_use]
    pub fn new(event: What, at: Timestamp, order: OrderId) -> Self {
        Self {
            number: 0,
            previous: EntryId([0; 32]),
            at,
            event,
            order,
            app: None,
            counter: None,
            signers: vec![],
            courier: None,
            rule: None,
            message: None,
        }
    }
}

/// How long a chain is, and what its last line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// How many entries there are.
    pub entries: u64,
    /// sha256 of the last line; zeros where there is none.
    pub head: EntryId,
}

impl End {
    /// Of a chain without entries.
    pub const EMPTY: Self = Self { entries: 0, head: EntryId([0; 32]) };
}

/// A node's word of where its log ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Version of this format: 1.
    pub format: u32,
    /// The node's fleet.
    pub fleet: FleetName,
    /// The node.
    pub node: NodeName,
    /// How many entries there were.
    pub entries: u64,
    /// sha256 of the last line.
    pub head: EntryId,
    /// When, by the node's clock.
    pub at: Timestamp,
}

/// A node's word of what came of an order, and of where its log ended then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Version of this format: 1.
    pub format: u32,
    /// The node's fleet.
    pub fleet: FleetName,
    /// The node.
    pub node: NodeName,
    /// The order.
    pub order: OrderId,
    /// The order's counter on the node.
    pub counter: u64,
    /// How it ended: `done`.
    pub outcome: String,
    /// How many entries there were.
    pub entries: u64,
    /// sha256 of the last line.
    pub head: EntryId,
    /// When, by the node's clock.
    pub at: Timestamp,
}

/// What is signed about the end of a log.
pub trait Statement: Serialize + for<'de> Deserialize<'de> {
    /// The namespace that nodes sign it in.
    const NAMESPACE: &'static str;
    /// Version of its format, whose node it is of, and where the log ended.
    fn said(&self) -> (u32, &FleetName, &NodeName, End);

    /// The bytes to sign.
    ///
    /// # Panics
    /// Never: plain data always serialises.
    fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data always serialises") + "\n"
    }
}

impl Statement for Head {
    const NAMESPACE: &'static str = NAMESPACE;
    fn said(&self) -> (u32, &FleetName, &NodeName, End) {
        (self.format, &self.fleet, &self.node, End { entries: self.entries, head: self.head })
    }
}

impl Statement for Receipt {
    const NAMESPACE: &'static str = RECEIPT_NAMESPACE;
    fn said(&self) -> (u32, &FleetName, &NodeName, End) {
        (self.format, &self.fleet, &self.node, End { entries: self.entries, head: self.head })
    }
}

/// Why a log, or what is said about it, cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// A line is no entry.
    #[error("line {line} of the audit log is not an entry: {what}")]
    NotAnEntry {
        /// Which line.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// A line does not follow the one before: one of the two was changed, or lines between them are gone.
    #[error(
        "line {line} of the audit log does not follow the line before: a line was changed, dropped or put in there"
    )]
    DoesNotFollow {
        /// Which line.
        line: u64,
    },
    /// The chain is shorter than it was.
    #[error(
        "the audit log ends at line {found}, and had {known} lines at {at} ({by}): it was cut off after line {found}"
    )]
    CutOff {
        /// How many lines there are.
        found: u64,
        /// How many there were.
        known: u64,
        /// When.
        at: Timestamp,
        /// Who saw that.
        by: String,
    },
    /// A line is another one than it was.
    #[error("line {line} of the audit log is not the one that was there at {at} ({by}): the log was written anew")]
    Rewritten {
        /// Which line.
        line: u64,
        /// When it was seen.
        at: Timestamp,
        /// Who saw it.
        by: String,
    },
    /// The signed head does not end the chain that came with it.
    #[error("the node signed an audit log of {signed} lines, and sent one of {sent} lines that ends otherwise")]
    OtherEnd {
        /// How many the head says.
        signed: u64,
        /// How many came.
        sent: u64,
    },
    /// A statement is not signed by the node.
    #[error("{what} is not signed with the audit key of node {node}: {why}")]
    Signature {
        /// What is not.
        what: &'static str,
        /// Whose key it should be.
        node: NodeName,
        /// What is wrong.
        why: String,
    },
    /// A statement is not one of its kind.
    #[error("{what} cannot be understood: {why}")]
    Malformed {
        /// What cannot.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// A statement is about another node.
    #[error("{what} is of node `{found_node}` of fleet `{found_fleet}`")]
    Elsewhere {
        /// What is.
        what: &'static str,
        /// That node.
        found_node: NodeName,
        /// Its fleet.
        found_fleet: FleetName,
    },
    /// A key of a node is no key.
    #[error("the audit key of node {node} cannot be used")]
    Key {
        /// Whose.
        node: NodeName,
        /// Why.
        #[source]
        source: SignatureError,
    },
}

/// A log whose lines follow one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The entries, the first one first.
    pub entries: Vec<Entry>,
    lines: Vec<EntryId>,
}

/// A head that somebody saw, as far as a chain is held against it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where the log ended.
    pub end: End,
    /// When.
    pub at: Timestamp,
    /// Who saw it, for the message.
    pub by: String,
}

impl Chain {
    /// Reads a whole log and checks that each line follows the one before.
    ///
    /// # Errors
    /// The first line that does not.
    pub fn check(text: &str) -> Result<Self, AuditError> {
        let mut chain = Self { entries: vec![], lines: vec![] };
        for (index, text) in text.lines().enumerate() {
            let line = index as u64 + 1;
            let entry: Entry =
                serde_json::from_str(text).map_err(|error| AuditError::NotAnEntry { line, what: error.to_string() })?;
            let End { entries, head } = chain.end();
            if entry.number != entries + 1 || entry.previous != head {
                return Err(AuditError::DoesNotFollow { line });
            }
            chain.lines.push(EntryId::of(text.as_bytes()));
            chain.entries.push(entry);
        }
        Ok(chain)
    }

    /// Where it ends.
    #[must_use]
    pub fn end(&self) -> End {
        self.lines.last().map_or(End::EMPTY, |head| End { entries: self.lines.len() as u64, head: *head })
    }

    /// Demands that the chain ends where the node's head says.
    ///
    /// # Errors
    /// It does not.
    pub fn ends_at(&self, head: &Head) -> Result<(), AuditError> {
        let (.., said) = head.said();
        if self.end() == said {
            return Ok(());
        }
        Err(AuditError::OtherEnd { signed: head.entries, sent: self.end().entries })
    }

    /// Demands that what was seen once is still the beginning of the chain.
    ///
    /// # Errors
    /// The log was cut off or written anew.
    pub fn continues(&self, seen: &Seen) -> Result<(), AuditError> {
        let Seen { end, at, by } = seen;
        let Some(last) = end.entries.checked_sub(1) else { return Ok(()) };
        let found = usize::try_from(last).ok().and_then(|last| self.lines.get(last));
        match found {
            None => Err(AuditError::CutOff { found: self.end().entries, known: end.entries, at: *at, by: by.clone() }),
            Some(line) if *line != end.head => {
                Err(AuditError::Rewritten { line: end.entries, at: *at, by: by.clone() })
            }
            Some(_) => Ok(()),
        }
    }
}

/// Reads a node's head or receipt: signed with this audit key, and about this node.
///
/// # Errors
/// It is not.
pub fn verify_statement<T: Statement>(
    signed: &SignedText,
    what: &'static str,
    audit_key: &str,
    fleet: &FleetName,
    node: &NodeName,
) -> Result<T, AuditError> {
    let key = PublicKey::parse(audit_key).map_err(|source| AuditError::Key { node: node.clone(), source })?;
    if signed.text.len() > HEAD_MAX_BYTES {
        return Err(AuditError::Malformed { what, why: "it is far too long".into() });
    }
    let unsigned = |why: String| AuditError::Signature { what, node: node.clone(), why };
    let [signature] = signed.signatures.as_slice() else {
        return Err(unsigned(format!("it has {} signatures", signed.signatures.len())));
    };
    let signer = sshsig::verify(signature, T::NAMESPACE, signed.text.as_bytes())
        .map_err(|error| unsigned(format!("its signature {error}")))?;
    if signer.key != key {
        return Err(unsigned(format!("it is signed with {}", signer.key.fingerprint())));
    }
    let statement: T =
        serde_json::from_str(&signed.text).map_err(|error| AuditError::Malformed { what, why: error.to_string() })?;
    let (format, found_fleet, found_node, _) = statement.said();
    if format != 1 {
        return Err(AuditError::Malformed { what, why: format!("format {format} is not known here") });
    }
    if found_fleet != fleet || found_node != node {
        let (found_node, found_fleet) = (found_node.clone(), found_fleet.clone());
        return Err(AuditError::Elsewhere { what, found_node, found_fleet });
    }
    Ok(statement)
}

/// The key that signed something, whoever's it is: what a client remembers of a node that the policy lists no key of.
///
/// # Errors
/// The signature is not good.
pub fn signer_of<T: Statement>(signed: &SignedText) -> Result<PublicKey, SignatureError> {
    let signature = signed.signatures.first().map_or("", String::as_str);
    sshsig::verify(signature, T::NAMESPACE, signed.text.as_bytes()).map(|signer| signer.key)
}

/// A head and the people who say that they saw it: what is kept in `witness/NODE.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witnessed {
    /// The head as the node signed it.
    pub head: SignedText,
    /// Signatures of people over the head's text, in the namespace [`WITNESS_NAMESPACE`].
    pub witnesses: Vec<String>,
}

impl Witnessed {
    /// Who of the policy's people saw it.
    #[must_use]
    pub fn people(&self, policy: &Policy) -> Vec<String> {
        let keys = self.witnesses.iter().take(WITNESSES_MAX).filter_map(|signature| {
            sshsig::verify(signature, WITNESS_NAMESPACE, self.head.text.as_bytes()).ok().map(|signer| signer.key)
        });
        let keys: Vec<PublicKey> = keys.collect();
        let is_here = |key: &str| PublicKey::parse(key).is_ok_and(|key| keys.contains(&key));
        policy.keys.iter().filter(|(_, key)| is_here(&key.key)).map(|(name, _)| name.to_string()).collect()
    }

    /// What it says, where its node or one of the policy's people signed it; `None` where nobody did who counts.
    ///
    /// # Errors
    /// It is of another node, or no head.
    pub fn seen(
        &self,
        policy: &Policy,
        audit_key: &str,
        fleet: &FleetName,
        node: &NodeName,
    ) -> Result<Option<Seen>, AuditError> {
        const WHAT: &str = "the witnessed head";
        let people = self.people(policy);
        let head: Head = match verify_statement(&self.head, WHAT, audit_key, fleet, node) {
            Ok(head) => head,
            Err(AuditError::Signature { .. }) if people.is_empty() => return Ok(None),
            // The node has another key by now; the people who saw it vouch for it.
            Err(AuditError::Signature { .. }) => serde_json::from_str(&self.head.text)
                .map_err(|error| AuditError::Malformed { what: WHAT, why: error.to_string() })?,
            Err(error) => return Err(error),
        };
        if head.fleet != *fleet || head.node != *node {
            return Err(AuditError::Elsewhere { what: WHAT, found_node: head.node, found_fleet: head.fleet });
        }
        let (.., end) = head.said();
        let by = if people.is_empty() { "witnessed".into() } else { format!("witnessed by {}", people.join(", ")) };
        Ok(Some(Seen { end, at: head.at, by }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sshsig::PrivateKey;

    fn line(number: u64, previous: EntryId, at: i64) -> String {
        let entry = Entry { number, previous, ..Entry::new(What::Accepted, Timestamp(at), OrderId([7; 32])) };
        serde_json::to_string(&entry).unwrap()
    }

    fn lines(count: u64, at: i64) -> Vec<String> {
        let mut previous = EntryId([0; 32]);
        (1..=count)
            .map(|number| {
                let line = line(number, previous, at);
                previous = EntryId::of(line.as_bytes());
                line
            })
            .collect()
    }

    fn chain(lines: &[String]) -> Result<Chain, AuditError> {
        Chain::check(&lines.join("\n"))
    }

    fn seen(chain: &Chain) -> Seen {
        Seen { end: chain.end(), at: Timestamp(0), by: "seen here".into() }
    }

    #[test]
    fn a_chain() {
        let chain = chain(&lines(5, 7)).unwrap();
        assert_eq!(chain.entries.iter().map(|entry| entry.number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(chain.end().entries, 5);
        assert_eq!(Chain::check("").unwrap().end(), End::EMPTY);
    }

    #[test]
    fn every_alteration_shows() {
        let good = lines(4, 7);
        let pick = |numbers: &[usize]| numbers.iter().map(|number| good[number - 1].clone()).collect::<Vec<_>>();
        let mut altered = good.clone();
        altered[1] = altered[1].replacen("\"at\":7", "\"at\":8", 1);
        let mut renumbered = good.clone();
        renumbered[2] = renumbered[2].replacen("\"number\":3", "\"number\":4", 1);
        for (case, lines, number) in [
            ("altered", altered, 3),
            ("renumbered", renumbered, 3),
            ("dropped", pick(&[1, 3, 4]), 2),
            ("first dropped", pick(&[2, 3, 4]), 1),
            ("repeated", pick(&[1, 1, 2]), 2),
            ("swapped", pick(&[1, 3, 2]), 2),
        ] {
            assert_eq!(chain(&lines), Err(AuditError::DoesNotFollow { line: number }), "{case}");
        }
        let mut garbage = good;
        garbage[2] = "{".into();
        assert!(matches!(chain(&garbage), Err(AuditError::NotAnEntry { line: 3, .. })));
    }

    #[test]
    fn what_was_seen_before_is_still_there() {
        let good = lines(5, 7);
        let before = seen(&chain(&good[..3]).unwrap());
        assert_eq!(chain(&good).unwrap().continues(&before), Ok(()));
        assert_eq!(chain(&good[..3]).unwrap().continues(&before), Ok(()));
        // An empty one is the beginning of all.
        assert_eq!(chain(&good).unwrap().continues(&seen(&chain(&[]).unwrap())), Ok(()));
        assert!(matches!(
            chain(&good[..2]).unwrap().continues(&before),
            Err(AuditError::CutOff { found: 2, known: 3, .. })
        ));
        assert!(matches!(chain(&[]).unwrap().continues(&before), Err(AuditError::CutOff { found: 0, .. })));
        // Every line anew, each following the one before.
        assert!(matches!(chain(&lines(5, 8)).unwrap().continues(&before), Err(AuditError::Rewritten { line: 3, .. })));
        // Forked after the second line.
        let mut forked = good[..2].to_vec();
        let other = line(3, EntryId::of(forked[1].as_bytes()), 9);
        forked.push(other.clone());
        forked.push(line(4, EntryId::of(other.as_bytes()), 9));
        assert!(matches!(chain(&forked).unwrap().continues(&before), Err(AuditError::Rewritten { line: 3, .. })));
    }

    fn head(chain: &Chain) -> Head {
        let End { entries, head } = chain.end();
        let (fleet, node) = ("acme".parse().unwrap(), "n1".parse().unwrap());
        Head { format: 1, fleet, node, entries, head, at: Timestamp(9) }
    }

    fn signed(key: &PrivateKey, statement: &impl Statement, namespace: &str) -> SignedText {
        let text = statement.to_text();
        SignedText { signatures: vec![key.sign(namespace, text.as_bytes())], text }
    }

    #[test]
    fn words_of_events() {
        let words = [What::Accepted, What::Refused, What::Done, What::Failed, What::Brought].map(What::as_str);
        assert_eq!(words, ["accepted", "refused", "done", "failed", "brought"]);
        for what in [What::Accepted, What::Refused, What::Done, What::Failed, What::Brought] {
            assert_eq!(serde_json::to_value(what).unwrap(), what.as_str());
        }
    }

    #[test]
    fn heads_that_are_too_long_are_not_read() {
        let (key, chain) = (PrivateKey::from_seed([1; 32]), chain(&lines(3, 7)).unwrap());
        let good = head(&chain);
        for (length, why) in [(HEAD_MAX_BYTES, "expected"), (HEAD_MAX_BYTES + 1, "too long")] {
            let text = "x".repeat(length);
            let signed = SignedText { signatures: vec![key.sign(NAMESPACE, text.as_bytes())], text };
            let public = key.public_key().to_openssh();
            match verify_statement::<Head>(&signed, "the head", &public, &good.fleet, &good.node) {
                Err(AuditError::Malformed { why: found, .. }) => assert!(found.contains(why), "{found}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn heads_are_signed_by_their_node() {
        let (node_key, other) = (PrivateKey::from_seed([1; 32]), PrivateKey::from_seed([2; 32]));
        let chain = chain(&lines(3, 7)).unwrap();
        let good = head(&chain);
        let (fleet, node) = (good.fleet.clone(), good.node.clone());
        let public = node_key.public_key().to_openssh();
        let verify = |signed: &SignedText, node: &str| {
            verify_statement::<Head>(signed, "the head", &public, &fleet, &node.parse().unwrap())
        };
        let mine = signed(&node_key, &good, NAMESPACE);
        assert_eq!(verify(&mine, "n1"), Ok(good.clone()));
        assert_eq!(chain.ends_at(&good), Ok(()));
        assert!(matches!(verify(&mine, "n2"), Err(AuditError::Elsewhere { .. })));
        assert!(matches!(verify(&signed(&other, &good, NAMESPACE), "n1"), Err(AuditError::Signature { .. })));
        assert!(matches!(
            verify(&signed(&node_key, &good, RECEIPT_NAMESPACE), "n1"),
            Err(AuditError::Signature { .. })
        ));
        let changed = SignedText { text: mine.text.replace("\"entries\": 3", "\"entries\": 2"), ..mine.clone() };
        assert!(matches!(verify(&changed, "n1"), Err(AuditError::Signature { .. })));
        assert!(matches!(verify(&SignedText { signatures: vec![], ..mine }, "n1"), Err(AuditError::Signature { .. })));
        assert!(matches!(
            chain.ends_at(&Head { entries: 2, ..good }),
            Err(AuditError::OtherEnd { signed: 2, sent: 3 })
        ));
        assert_eq!(node.as_str(), "n1");
    }

    #[test]
    fn witnesses() {
        use crate::policy::tests::policy;
        use crate::sshsig::tests::TestKey;
        let (ada, node_key) = (TestKey::new(1), PrivateKey::from_seed([9; 32]));
        let policy = policy(1, &[&ada], 1, &[("ada", &ada)], 1);
        let chain = chain(&lines(2, 7)).unwrap();
        let good = head(&chain);
        let public = node_key.public_key().to_openssh();
        let witnessed = |key: &PrivateKey, by: &[&TestKey]| {
            let head = signed(key, &good, NAMESPACE);
            let witnesses = by.iter().map(|key| key.sign(WITNESS_NAMESPACE, head.text.as_bytes())).collect();
            Witnessed { head, witnesses }
        };
        let see =
            |witnessed: &Witnessed, node: &str| witnessed.seen(&policy, &public, &good.fleet, &node.parse().unwrap());
        let by = |witnessed: &Witnessed| see(witnessed, "n1").unwrap().map(|seen| seen.by);
        assert_eq!(by(&witnessed(&node_key, &[&ada])).as_deref(), Some("witnessed by ada"));
        assert_eq!(by(&witnessed(&node_key, &[])).as_deref(), Some("witnessed"));
        // The node's key was changed: who saw it vouches; of strangers nothing is believed.
        let other = PrivateKey::from_seed([8; 32]);
        assert_eq!(by(&witnessed(&other, &[&ada])).as_deref(), Some("witnessed by ada"));
        assert_eq!(by(&witnessed(&other, &[&TestKey::new(5)])), None);
        assert!(matches!(see(&witnessed(&node_key, &[&ada]), "n2"), Err(AuditError::Elsewhere { .. })));
        assert!(matches!(see(&witnessed(&other, &[&ada]), "n2"), Err(AuditError::Elsewhere { .. })));
    }
}
