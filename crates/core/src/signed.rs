//! A document with its signatures, before anybody has looked at either.

use serde::{Deserialize, Serialize};

/// A document as it was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedText {
    /// Its exact text.
    pub text: String,
    /// Armoured SSHSIG signatures over the text's bytes.
    pub signatures: Vec<String>,
}
