//! A document with its signatures, before anybody has looked at either.

use serde::{Deserialize, Serialize};

/// The bytes of a document that is to be signed: indented JSON and a line feed, so that a person can read what they sign.
///
/// # Panics
/// Never: documents are plain data, which always serialises.
#[must_use]
pub fn document_bytes(document: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(document).expect("plain data always serialises");
    bytes.push(b'\n');
    bytes
}

/// A document as it was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedText {
    /// Its exact text.
    pub text: String,
    /// Armoured SSHSIG signatures over the text's bytes.
    pub signatures: Vec<String>,
}
