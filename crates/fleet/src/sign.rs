//! SSHSIG signatures with the keys that people have.
//!
//! What comes out is what `ssh-keygen -Y sign` would make with the same key, and
//! was checked by [`bulkhead_trust::sshsig::verify`] before it is handed out: a
//! signature that a node would refuse (a security key that nobody touched, an
//! agent that lies) is noticed here, where a person can do something about it.

use crate::identity::{Candidate, Hints, Identities, IdentityError};
use bulkhead_trust::{
    sealing::SealingKey,
    sshsig::{self, PublicKey, SignatureError},
};

/// Why there is no signature.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A wanted key is not a public key.
    #[error("`{key}` is not a public key that can sign")]
    Wanted {
        /// The line.
        key: String,
        /// Why.
        #[source]
        source: SignatureError,
    },
    /// No private key for any of the wanted public keys.
    #[error("none of the private keys at hand is one of the wanted ones ({}){}", wanted.join(", "), with_notes(notes))]
    NoKey {
        /// Their fingerprints.
        wanted: Vec<String>,
        /// Keys that were passed over, and why.
        notes: Vec<String>,
    },
    /// A key file given by name is of no use.
    #[error("cannot use the key that was given")]
    Given(#[source] IdentityError),
    /// The key did not sign.
    #[error("cannot use {key}")]
    Sign {
        /// Its fingerprint.
        key: String,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// What came out is not a good signature.
    #[error("{key} gave a signature that does not verify")]
    Bad {
        /// Its fingerprint.
        key: String,
        /// Why.
        #[source]
        source: SignatureError,
    },
    /// It signs, and cannot open what is sealed to it.
    #[error("{key} is held by an ssh-agent or a device, which sign and open nothing: opening takes its file")]
    Held {
        /// Its fingerprint.
        key: String,
    },
    /// The document could not be made.
    #[error("{0}")]
    Document(String),
}

fn with_notes(notes: &[String]) -> String {
    if notes.is_empty() { String::new() } else { format!("; passed over: {}", notes.join("; ")) }
}

/// A private key at hand. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Signer {
    identities: Identities,
    candidate: Candidate,
    public: PublicKey,
}

impl Signer {
    /// Finds the best private key at hand for one of these public keys (OpenSSH lines).
    ///
    /// # Errors
    /// None is at hand.
    pub async fn find<'a>(
        identities: &Identities,
        wanted: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, SignError> {
        Self::find_all(identities, wanted).await.map(|mut signers| signers.swap_remove(0))
    }

    /// Every private key at hand for these public keys, best first; at least one.
    ///
    /// # Errors
    /// None is at hand.
    pub async fn find_all<'a>(
        identities: &Identities,
        wanted: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Self>, SignError> {
        let mut keys = Vec::new();
        for line in wanted {
            let key = PublicKey::parse(line).map_err(|source| SignError::Wanted { key: line.to_owned(), source })?;
            keys.push(key);
        }
        let candidates = identities.candidates(&Hints::default()).await.map_err(SignError::Given)?;
        let signers: Vec<Self> = candidates
            .keys
            .into_iter()
            .filter_map(|candidate| {
                let public = keys.iter().find(|key| key.blob() == candidate.blob)?.clone();
                Some(Self { identities: identities.clone(), candidate, public })
            })
            .collect();
        if signers.is_empty() {
            let wanted = keys.iter().map(PublicKey::fingerprint).collect();
            return Err(SignError::NoKey { wanted, notes: candidates.notes });
        }
        Ok(signers)
    }

    /// The public key it signs with.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// The key as one that opens what people sealed to its public half. May ask for a passphrase.
    ///
    /// # Errors
    /// It is in no file, or that cannot be read.
    pub async fn sealing_key(&self) -> Result<SealingKey, SignError> {
        let key = || self.public.fingerprint();
        // An agent that holds the key as well signs with it; to open takes the file all the same.
        let seed = self.identities.seed(&self.candidate.blob).await;
        let seed = seed.map_err(|source| SignError::Sign { key: key(), source })?;
        seed.map(|seed| SealingKey::of_signer(&seed)).ok_or_else(|| SignError::Held { key: key() })
    }

    /// Signs; gives an armoured SSHSIG. May ask for a passphrase or a touch.
    ///
    /// # Errors
    /// The key did not sign.
    pub async fn sign(&self, namespace: &'static str, message: &[u8]) -> Result<String, SignError> {
        let data = sshsig::to_be_signed(namespace, message);
        let key = || self.public.fingerprint();
        let signature = self.candidate.sign(&self.identities, &data).await;
        let signature = signature.map_err(|source| SignError::Sign { key: key(), source })?;
        let armoured = sshsig::armor(&self.public, namespace, &signature);
        match sshsig::verify(&armoured, namespace, message) {
            Ok(by) if by.key == self.public => Ok(armoured),
            Ok(_) => Err(SignError::Bad { key: key(), source: SignatureError::Mismatch }),
            Err(source) => Err(SignError::Bad { key: key(), source }),
        }
    }
}
