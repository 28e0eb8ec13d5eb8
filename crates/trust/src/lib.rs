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
//!   missing.

pub mod order;
pub mod policy;
pub mod sshsig;

pub use order::{Accepted, Context, Standing, authorize_order, verify_accepted};
pub use policy::{accept_policy, pin_first_policy};
pub use sshsig::{PublicKey, SignatureError};

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

    /// Who signed it, sorted: as the policy names them (for root keys: their fingerprints).
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
}

impl Refusal {
    fn new(rule: Rule, message: impl Into<String>) -> Self {
        Self { rule, message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
