//! Who signed an index.
//!
//! An `InRelease` file counts if at least one of its signatures is good, was made
//! by a key of the ring, over SHA-2, and neither the key nor the signature has
//! expired or been revoked. What is given back is the text that was signed and
//! nothing around it.

use pgp::{
    composed::{CleartextSignedMessage, Deserializable as _, SignedPublicKey},
    crypto::hash::HashAlgorithm,
    packet::{Signature, SignatureType},
    types::{KeyDetails as _, Tag, VerifyingKey},
};

/// The keys of Debian's archive, see `keys/README.md`. Testing and unstable are signed with those of the releases.
const DEBIAN: [(&str, &[u8]); 6] = [
    ("bookworm-automatic", include_bytes!("../../keys/bookworm-automatic.gpg")),
    ("bookworm-security-automatic", include_bytes!("../../keys/bookworm-security-automatic.gpg")),
    ("bookworm-stable", include_bytes!("../../keys/bookworm-stable.gpg")),
    ("trixie-automatic", include_bytes!("../../keys/trixie-automatic.gpg")),
    ("trixie-security-automatic", include_bytes!("../../keys/trixie-security-automatic.gpg")),
    ("trixie-stable", include_bytes!("../../keys/trixie-stable.gpg")),
];

/// Why a text is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A key of the ring cannot be read.
    #[error("the archive key {name} cannot be read: {what}")]
    Key {
        /// Its name.
        name: String,
        /// Why.
        what: String,
    },
    /// It is not a clear-signed message.
    #[error("it is not a signed message: {what}")]
    Malformed {
        /// What the parser says.
        what: String,
    },
    /// No signature counts.
    #[error("none of its signatures counts:{reasons}")]
    NotTrusted {
        /// One phrase for each signature.
        reasons: String,
    },
}

/// Keys whose signatures count.
#[derive(Debug)]
pub(crate) struct Keyring {
    keys: Vec<(String, SignedPublicKey)>,
}

/// A key, primary or not, with what decides whether it may sign.
struct Signer<'a> {
    key: &'a dyn Verify,
    /// Seconds since the epoch; `None` is never.
    expires: Option<u64>,
    usable: bool,
}

trait Verify {
    fn check(&self, signature: &Signature, text: &[u8]) -> bool;
    fn made(&self, signature: &Signature) -> bool;
}

impl<K: VerifyingKey> Verify for K {
    fn check(&self, signature: &Signature, text: &[u8]) -> bool {
        signature.verify(self, text).is_ok()
    }

    fn made(&self, signature: &Signature) -> bool {
        signature.issuer_fingerprint().iter().any(|id| **id == self.fingerprint())
            || signature.issuer_key_id().iter().any(|id| **id == self.legacy_key_id())
    }
}

/// When a key expires by the newest signature that says what it is for.
fn expiry<'a>(created: u64, selves: impl Iterator<Item = &'a Signature>) -> Option<u64> {
    let newest = selves.max_by_key(|signature| signature.created().map(|time| time.as_secs()))?;
    let lifetime = newest.key_expiration_time().map(|lifetime| u64::from(lifetime.as_secs()))?;
    (lifetime != 0).then(|| created + lifetime)
}

impl Keyring {
    /// Debian's own.
    pub(crate) fn debian() -> Result<Self, SignatureError> {
        let keys = DEBIAN.iter().map(|(name, bytes)| Self::read(name, bytes)).collect::<Result<_, _>>()?;
        Ok(Self { keys })
    }

    fn read(name: &str, bytes: &[u8]) -> Result<(String, SignedPublicKey), SignatureError> {
        let failed = |error: pgp::errors::Error| SignatureError::Key { name: name.to_owned(), what: error.to_string() };
        let key = SignedPublicKey::from_bytes(bytes).map_err(failed)?;
        Ok((name.to_owned(), key))
    }

    #[cfg(test)]
    pub(crate) fn of(name: &str, bytes: &[u8]) -> Self {
        Self { keys: vec![Self::read(name, bytes).expect("a test's own key")] }
    }

    fn signers(key: &SignedPublicKey) -> Vec<Signer<'_>> {
        let created = u64::from(key.primary_key.created_at().as_secs());
        // Other people certify Debian's keys too; only what the key says of itself counts: by its
        // user ids and directly. Either may hold the expiry, and the earlier one holds.
        let primary = &key.primary_key;
        let mut selves: Vec<Vec<&Signature>> = Vec::new();
        for user in &key.details.users {
            let own = |signature: &&Signature| {
                signature.is_certification() && signature.verify_certification(primary, Tag::UserId, &user.id).is_ok()
            };
            selves.push(user.signatures.iter().filter(own).collect());
        }
        selves.push(key.details.direct_signatures.iter().filter(|s| s.verify_key(primary).is_ok()).collect());
        selves.retain(|own| !own.is_empty());
        let expires = selves.iter().filter_map(|own| expiry(created, own.iter().copied())).min();
        let usable = !selves.is_empty() && key.details.revocation_signatures.is_empty();
        let mut signers = vec![Signer { key: &key.primary_key, expires, usable }];
        for sub in &key.public_subkeys {
            let bound = sub.verify_bindings(&key.primary_key).is_ok();
            let revoked = sub.signatures.iter().any(|s| s.typ() == Some(SignatureType::SubkeyRevocation));
            let signs = sub.signatures.iter().any(|s| s.key_flags().sign());
            let own = expiry(u64::from(sub.key.created_at().as_secs()), sub.signatures.iter());
            // A subkey lives no longer than its primary key.
            let expires = [own, expires].into_iter().flatten().min();
            signers.push(Signer { key: &sub.key, expires, usable: usable && bound && signs && !revoked });
        }
        signers
    }

    /// The signed text of an `InRelease` file, with plain line ends.
    pub(crate) fn verify(&self, message: &str, now_seconds: u64) -> Result<String, SignatureError> {
        let (message, _) = CleartextSignedMessage::from_string(message)
            .map_err(|error| SignatureError::Malformed { what: error.to_string() })?;
        let text = message.signed_text();
        let mut reasons = String::new();
        for signature in message.signatures() {
            match self.judge(signature, text.as_bytes(), now_seconds) {
                Ok(()) => return Ok(text.replace("\r\n", "\n")),
                Err(reason) => reasons.push_str(&reason),
            }
        }
        if reasons.is_empty() {
            reasons.push_str(" there is none");
        }
        Err(SignatureError::NotTrusted { reasons })
    }

    fn judge(&self, signature: &Signature, text: &[u8], now_seconds: u64) -> Result<(), String> {
        if !matches!(signature.typ(), Some(SignatureType::Text | SignatureType::Binary)) {
            return Err(" one is not over a text;".into());
        }
        let strong = [HashAlgorithm::Sha256, HashAlgorithm::Sha384, HashAlgorithm::Sha512];
        if !signature.hash_alg().is_some_and(|hash| strong.contains(&hash)) {
            return Err(" one is over a broken hash;".into());
        }
        for (name, certificate) in &self.keys {
            let Some(signer) = Self::signers(certificate).into_iter().find(|signer| signer.key.made(signature)) else {
                continue;
            };
            if !signer.usable {
                return Err(format!(" the key {name} is revoked or not for signing;"));
            }
            if signer.expires.is_some_and(|expires| expires <= now_seconds) {
                return Err(format!(" the key {name} has expired (a newer bulkhead brings newer keys);"));
            }
            let created = signature.created().map_or(0, |time| u64::from(time.as_secs()));
            let lifetime = signature.signature_expiration_time().map_or(0, |time| u64::from(time.as_secs()));
            if lifetime != 0 && created + lifetime <= now_seconds {
                return Err(format!(" the signature by {name} has expired;"));
            }
            if !signer.key.check(signature, text) {
                return Err(format!(" the signature by {name} does not fit the text, so the text was changed;"));
            }
            return Ok(());
        }
        let mut reason = String::from(" one is by an unknown key");
        if let Some(id) = signature.issuer_fingerprint().first() {
            reason.push_str(&format!(" {id:X}"));
        }
        reason.push(';');
        Err(reason)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use pgp::{
        composed::{KeyType, SecretKeyParamsBuilder, SignedSecretKey},
        ser::Serialize as _,
        types::{Password, Timestamp},
    };
    use rand::SeedableRng as _;

    /// A key pair of a test, made from a seed.
    pub(crate) struct TestKey(SignedSecretKey);

    impl TestKey {
        pub(crate) fn new(seed: u64) -> Self {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let key = SecretKeyParamsBuilder::default()
                .key_type(KeyType::Ed25519Legacy)
                .can_certify(true)
                .can_sign(true)
                // Part of the fingerprint: two made from one seed must be one key, whenever they are made.
                .created_at(Timestamp::from_secs(1_700_000_000))
                .primary_user_id("Fake Archive <fake@example.org>".into())
                .build()
                .unwrap()
                .generate(&mut rng)
                .unwrap();
            Self(key)
        }

        pub(crate) fn public(&self) -> Vec<u8> {
            SignedPublicKey::from(self.0.clone()).to_bytes().unwrap()
        }

        pub(crate) fn sign(&self, text: &str) -> String {
            let rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
            let message = CleartextSignedMessage::sign(rng, text, &self.0.primary_key, &Password::empty()).unwrap();
            message.to_armored_string(Default::default()).unwrap()
        }
    }

    /// The first seconds of 2026 and of 2040.
    const NOW: u64 = 1_767_225_600;
    const LATER: u64 = 2_208_988_800;

    #[test]
    fn what_counts() {
        let (known, unknown) = (TestKey::new(1), TestKey::new(2));
        let ring = Keyring::of("fake", &known.public());
        let good = known.sign("Suite: x\n- dash\n");
        assert_eq!(ring.verify(&good, NOW).unwrap().trim_end(), "Suite: x\n- dash");
        let check = |message: &str, expected: &str| {
            let error = ring.verify(message, NOW).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&good.replace("Suite: x", "Suite: y"), "the text was changed");
        check(&unknown.sign("Suite: x\n"), "unknown key");
        check("Suite: x\n", "not a signed message");
        check(&format!("extra\n{good}"), "not a signed message");
    }

    #[test]
    fn debians_keys_are_good_until_they_expire() {
        let ring = Keyring::debian().unwrap();
        for (name, key) in &ring.keys {
            let signers = Keyring::signers(key);
            assert!(signers.iter().any(|signer| signer.usable), "{name}");
            for signer in signers {
                assert!(signer.expires.is_some_and(|at| at > NOW && at < LATER), "{name}");
            }
        }
    }

    #[test]
    fn a_real_release_file_and_its_expiry() {
        let message = include_str!("testdata/trixie-updates.InRelease");
        let ring = Keyring::debian().unwrap();
        assert!(ring.verify(message, NOW).unwrap().contains("Codename: trixie-updates"));
        let error = ring.verify(message, LATER).unwrap_err().to_string();
        assert!(error.contains("has expired"), "{error}");
    }
}
