//! Signatures and policy: exact bytes in, [`Verified`] values or a [`Refusal`] out.
//!
//! Pure: what time it is, which policy is pinned and where an app stands are
//! arguments. Rules that everything here keeps:
//!
//! - **Verify first, parse after.** A document's JSON is read only once enough
//!   signatures over its exact bytes were found good.
//! - **Count distinct keys**, never signatures, names or comments.
//! - **Each kind of document has a namespace of its own**, so a signature made
//!   for one cannot serve for another.
//! - **A refusal is complete**: which rule refused, what was presented, what is
//!   missing, and who could provide it.
//! - **To forbid needs less than to allow**: any one release key may stop,
//!   revoke, and go back to what was listed to go back to.
//!
//! | module | decides |
//! |---|---|
//! | [`sshsig`] | whether a signature is good |
//! | [`signers`] | which of the wanted keys signed a document |
//! | [`policy`] | which policy a node enforces next |
//! | [`order`] | whether a node carries an order out |
//! | [`green`] | whether an image is green |
//! | [`notice`] | which revocations and heartbeats count |
//! | [`audit`] | whether an audit log is whole, and is still the one that was seen |
//! | [`sealing`] | what a node can open of what was sealed |

pub mod audit;
pub mod green;
pub mod notice;
pub mod order;
pub mod policy;
pub mod sealing;
pub mod signers;
pub mod sshsig;

pub use bulkhead_core::SignedText;
pub use order::{
    Accepted, Authorized, Context, Grounds, Live, Place, Presented, SignedGrant, authorize_order, read_grant,
    read_signed, verify_accepted,
};
pub use policy::{accept_policy, pin_first_policy};
pub use sshsig::{PrivateKey, PublicKey, SignatureError};

use std::fmt;

/// A document whose signatures satisfied the rules for its kind. Only this
/// crate makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T> {
    value: T,
    signers: Vec<String>,
}

impl<T> Verified<T> {
    pub(crate) fn new(value: T, mut signers: Vec<String>) -> Self {
        signers.sort();
        Self { value, signers }
    }

    /// The document.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The document, by value.
    pub fn into_value(self) -> T {
        self.value
    }

    /// Who signed it, sorted: as the policy names them (for root keys: their fingerprints). Green keys that signed an
    /// order are among them.
    pub fn signers(&self) -> &[String] {
        &self.signers
    }
}

/// Which rule refused a document. Stable words: they are part of the wire format and the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Too few distinct keys with the right role signed it.
    Threshold,
    /// It is not a document of its kind.
    Malformed,
    /// It is for another fleet.
    Fleet,
    /// It is for another environment, or one the policy does not know.
    Environment,
    /// It is for other nodes.
    Node,
    /// Its counter is not the next: a replay, or another order came first.
    Counter,
    /// It does not follow the order that the node accepted last.
    Previous,
    /// It has expired, or claims to be from the future.
    Expired,
    /// The node's own clock went back.
    Clock,
    /// A policy that is not the next version, or is not signed by the roots.
    PolicyVersion,
    /// It is for another boot of the node.
    Boot,
    /// The node has forgotten orders that it had accepted: it was put back to a snapshot.
    Restored,
    /// What it would start, or the document itself, was revoked.
    Revoked,
    /// The node may have been kept from something newer: nothing new starts.
    Stale,
    /// The node does not offer what the policy demands for anything to run.
    Isolation,
    /// The image is not green, and must be.
    NotGreen,
    /// The policy allows no breaking of glass, or not by so few.
    BreakGlass,
    /// A standing order does not cover it, or is used up.
    Standing,
    /// A scale grant does not cover it, or is not signed well enough.
    Grant,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Threshold => "threshold",
            Self::Malformed => "malformed",
            Self::Fleet => "fleet",
            Self::Environment => "environment",
            Self::Node => "node",
            Self::Counter => "counter",
            Self::Previous => "previous",
            Self::Expired => "expired",
            Self::Clock => "clock",
            Self::PolicyVersion => "policy-version",
            Self::Boot => "boot",
            Self::Restored => "restored",
            Self::Revoked => "revoked",
            Self::Stale => "stale",
            Self::Isolation => "isolation",
            Self::NotGreen => "not-green",
            Self::BreakGlass => "break-glass",
            Self::Standing => "standing",
            Self::Grant => "grant",
        })
    }
}

/// Why a document was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Which rule.
    pub rule: Rule,
    /// What was presented and what is missing, in a sentence.
    pub message: String,
    /// Who or what could mend it.
    pub hint: Option<String>,
    /// Of an order that meets every demand and yet comes too late in the node's own count: how many orders the node
    /// must have accepted when it was signed. The node has forgotten some.
    pub ahead: Option<u64>,
}

impl Refusal {
    /// A refusal by a rule. Whoever enforces bounds beside this crate's refuses in the same shape.
    #[must_use]
    pub fn new(rule: Rule, message: impl Into<String>) -> Self {
        Self { rule, message: message.into(), hint: None, ahead: None }
    }

    /// With who or what could mend it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs and people know the rules by these words.
    #[test]
    fn words_of_rules() {
        let words = [
            (Rule::Threshold, "threshold"),
            (Rule::Malformed, "malformed"),
            (Rule::Fleet, "fleet"),
            (Rule::Environment, "environment"),
            (Rule::Node, "node"),
            (Rule::Counter, "counter"),
            (Rule::Previous, "previous"),
            (Rule::Expired, "expired"),
            (Rule::Clock, "clock"),
            (Rule::PolicyVersion, "policy-version"),
            (Rule::Boot, "boot"),
            (Rule::Restored, "restored"),
            (Rule::Revoked, "revoked"),
            (Rule::Stale, "stale"),
            (Rule::Isolation, "isolation"),
            (Rule::NotGreen, "not-green"),
            (Rule::BreakGlass, "break-glass"),
            (Rule::Standing, "standing"),
            (Rule::Grant, "grant"),
        ];
        for (rule, word) in words {
            assert_eq!(rule.to_string(), word);
        }
    }
}
