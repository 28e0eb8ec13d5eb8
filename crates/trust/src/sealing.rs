//! Sealed secrets: a value that one node can open, or one pool's loop, for one app's use.
//!
//! HPKE (RFC 9180) in base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
//! ChaCha20-Poly1305. Whom and what it is for goes into the key schedule as
//! `info`, so a value that was sealed for another fleet, environment, node, app
//! or name does not open.
//!
//! ```text
//! sealed   u8 version 1 | encapsulated key, 32 bytes | ciphertext, the value's length and 16 bytes
//! info     "bulkhead secret 1" or "bulkhead pool secret 1"
//!          | for each of fleet, environment, node or pool, app, name: u8 length | bytes
//! ```
//!
//! A node has a key for this alone. A pool's loop opens with the Ed25519 key that the policy gives the role `scale`,
//! as the X25519 key that it is on the other form of the curve: so whom people seal to is what root keys signed. That
//! the two uses of one key do not harm each other was shown for this very construction (Thormarker, "On using the same
//! key pair for Ed25519 and an X25519 based KEM", 2021).
//!
//! Who can seal needs no key of its own: that a value is the one that must be
//! used is said by the signed order, which names the digest of what is sealed.

use crate::sshsig::PublicKey;
use bulkhead_core::{AppName, EnvironmentName, FleetName, NodeName, PoolName, SecretName, digest};
use ed25519_dalek::SigningKey;
use hpke::{
    Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _,
    aead::ChaCha20Poly1305,
    kdf::HkdfSha256,
    kem::X25519HkdfSha256,
    rand_core::{TryCryptoRng, TryRng},
    single_shot_open, single_shot_seal_with_rng,
};
use std::convert::Infallible;
use zeroize::Zeroizing;

/// The longest value.
pub const VALUE_MAX_BYTES: usize = 64 << 10;
/// The longest sealed value.
pub const SEALED_MAX_BYTES: usize = VALUE_MAX_BYTES + OVERHEAD_BYTES;

const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const OVERHEAD_BYTES: usize = 1 + KEY_BYTES + TAG_BYTES;

type Kem = X25519HkdfSha256;

/// Why a value cannot be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealingError {
    /// The text is not a public key.
    #[error("the sealing key is not one: 64 hexadecimal digits of an X25519 public key are")]
    Key,
    /// The key can sign, and not open.
    #[error(
        "nothing can be sealed to a key of type sk-ssh-ed25519, which a device keeps: an ssh-ed25519 key is needed"
    )]
    Signer,
    /// The value is longer than any may be.
    #[error("the value is {bytes} bytes long; a secret is at most {VALUE_MAX_BYTES}")]
    TooLong {
        /// How long.
        bytes: usize,
    },
    /// HPKE refused to seal.
    #[error("the value cannot be sealed to this key")]
    Seal,
    /// It is not a sealed value of a known form.
    #[error("not a sealed value")]
    Malformed,
    /// It was sealed for another node or pool, app, environment or name, or was changed.
    #[error("sealed for another node or pool, app, environment or name, or altered since")]
    Open,
}

/// Whom and what a value is sealed for.
#[derive(Debug, Clone, Copy)]
pub struct Purpose<'a> {
    /// The fleet.
    pub fleet: &'a FleetName,
    /// The environment.
    pub environment: &'a EnvironmentName,
    /// Who may open it.
    pub to: Recipient<'a>,
    /// The app.
    pub app: &'a AppName,
    /// The secret's name.
    pub name: &'a SecretName,
}

/// Who may open a value.
#[derive(Debug, Clone, Copy)]
pub enum Recipient<'a> {
    /// A node, for its services.
    Node(&'a NodeName),
    /// A pool's loop, for the nodes that it buys: it seals the value again to each of them.
    Pool(&'a PoolName),
}

impl Purpose<'_> {
    fn info(&self) -> Vec<u8> {
        let Self { fleet, environment, to, app, name } = self;
        let (kind, to) = match to {
            Recipient::Node(node) => ("bulkhead secret 1", node.as_str()),
            Recipient::Pool(pool) => ("bulkhead pool secret 1", pool.as_str()),
        };
        let mut info = kind.as_bytes().to_vec();
        for field in [fleet.as_str(), environment.as_str(), to, app.as_str(), name.as_str()] {
            info.push(u8::try_from(field.len()).expect("names are short"));
            info.extend_from_slice(field.as_bytes());
        }
        info
    }
}

/// A node's key for opening what was sealed to it.
pub struct SealingKey {
    private: <Kem as hpke::Kem>::PrivateKey,
    public: <Kem as hpke::Kem>::PublicKey,
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealingKey({})", self.public())
    }
}

impl SealingKey {
    /// From 32 random bytes (RFC 9180 section 7.1.3, `DeriveKeyPair`).
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let (private, public) = Kem::derive_keypair(seed);
        Self { private, public }
    }

    /// The key of whoever signs with this Ed25519 key (its 32 bytes, RFC 8032's private key). [`public_of`] gives the
    /// public half to those who have only that.
    #[must_use]
    pub fn of_signer(seed: &[u8; 32]) -> Self {
        let scalar = Zeroizing::new(SigningKey::from_bytes(seed).to_scalar_bytes());
        let private = <Kem as hpke::Kem>::PrivateKey::from_bytes(scalar.as_ref()).expect("any 32 bytes are a scalar");
        let public = Kem::sk_to_pk(&private);
        Self { private, public }
    }

    /// Its public half, as policies have it.
    #[must_use]
    pub fn public(&self) -> String {
        digest::hex(&self.public.to_bytes())
    }

    /// Opens what was sealed to this key.
    ///
    /// # Errors
    /// It was sealed to another key or for another purpose, or was changed.
    pub fn open(&self, purpose: &Purpose<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealingError> {
        let (version, rest) = sealed.split_first().ok_or(SealingError::Malformed)?;
        if *version != VERSION || sealed.len() > SEALED_MAX_BYTES || rest.len() < KEY_BYTES + TAG_BYTES {
            return Err(SealingError::Malformed);
        }
        let (key, ciphertext) = rest.split_at(KEY_BYTES);
        let key = <Kem as hpke::Kem>::EncappedKey::from_bytes(key).map_err(|_| SealingError::Malformed)?;
        let info = purpose.info();
        single_shot_open::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeR::Base,
            &self.private,
            &key,
            &info,
            ciphertext,
            b"",
        )
        .map(Zeroizing::new)
        .map_err(|_| SealingError::Open)
    }
}

/// What is sealed to whoever holds the private half of an SSH key, in the form that [`seal`] takes.
///
/// # Errors
/// It is a security key's, which signs and opens nothing, or no point.
pub fn public_of(key: &PublicKey) -> Result<String, SealingError> {
    key.to_montgomery().map(|point| digest::hex(&point)).ok_or(SealingError::Signer)
}

/// Seals a value to a node's key, as policies have it. `seed` is 32 random bytes that serve for nothing else.
///
/// # Errors
/// The key is none, or the value is too long.
pub fn seal(
    public: &str,
    purpose: &Purpose<'_>,
    value: &[u8],
    seed: Zeroizing<[u8; 32]>,
) -> Result<Vec<u8>, SealingError> {
    if value.len() > VALUE_MAX_BYTES {
        return Err(SealingError::TooLong { bytes: value.len() });
    }
    let point = digest::parse(public).map_err(|_| SealingError::Key)?;
    let key = <Kem as hpke::Kem>::PublicKey::from_bytes(&point).map_err(|_| SealingError::Key)?;
    let info = purpose.info();
    let (encapsulated, ciphertext) = single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, Kem>(
        &OpModeS::Base,
        &key,
        &info,
        value,
        b"",
        &mut Drawn { seed, used: 0 },
    )
    .map_err(|_| SealingError::Seal)?;
    let mut sealed = vec![VERSION];
    sealed.extend_from_slice(&encapsulated.to_bytes());
    sealed.extend_from_slice(&ciphertext);
    Ok(sealed)
}

/// Random bytes that were drawn by the caller, each given out once: an ephemeral key takes exactly these.
struct Drawn {
    seed: Zeroizing<[u8; 32]>,
    used: usize,
}

impl TryRng for Drawn {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes).map(|()| u32::from_le_bytes(bytes))
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes).map(|()| u64::from_le_bytes(bytes))
    }
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        let end = self.used + out.len();
        out.copy_from_slice(self.seed.get(self.used..end).expect("one ephemeral X25519 key takes 32 bytes"));
        self.used = end;
        Ok(())
    }
}

impl TryCryptoRng for Drawn {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Names(FleetName, EnvironmentName, NodeName, AppName, SecretName);

    fn names(words: [&str; 5]) -> Names {
        let [fleet, environment, node, app, name] = words;
        Names(
            fleet.parse().unwrap(),
            environment.parse().unwrap(),
            node.parse().unwrap(),
            app.parse().unwrap(),
            name.parse().unwrap(),
        )
    }

    impl Names {
        fn purpose(&self) -> Purpose<'_> {
            let to = Recipient::Node(&self.2);
            Purpose { fleet: &self.0, environment: &self.1, to, app: &self.3, name: &self.4 }
        }
    }

    const WORDS: [&str; 5] = ["acme", "production", "prod-1", "notes", "DATABASE_URL"];

    fn sealed(key: &SealingKey, value: &[u8]) -> Vec<u8> {
        seal(&key.public(), &names(WORDS).purpose(), value, Zeroizing::new([3; 32])).unwrap()
    }

    #[test]
    fn there_and_back() {
        let key = SealingKey::from_seed(&[1; 32]);
        for value in [&b""[..], b"postgres://u:p@h/d", &vec![7; VALUE_MAX_BYTES]] {
            let sealed = sealed(&key, value);
            assert_eq!(sealed.len(), value.len() + OVERHEAD_BYTES);
            assert_eq!(**key.open(&names(WORDS).purpose(), &sealed).unwrap(), *value);
        }
        let long = vec![7; VALUE_MAX_BYTES + 1];
        let purpose = names(WORDS);
        let refused = seal(&key.public(), &purpose.purpose(), &long, Zeroizing::new([3; 32]));
        assert_eq!(refused, Err(SealingError::TooLong { bytes: VALUE_MAX_BYTES + 1 }));
    }

    #[test]
    fn bounds() {
        assert_eq!(SEALED_MAX_BYTES, 65_536 + 1 + 32 + 16);
        let (key, names) = (SealingKey::from_seed(&[1; 32]), names(WORDS));
        // Too short to hold a key and a tag, though the version is right.
        for length in 1..OVERHEAD_BYTES {
            assert_eq!(key.open(&names.purpose(), &vec![VERSION; length]), Err(SealingError::Malformed), "{length}");
        }
        assert_eq!(key.open(&names.purpose(), &vec![VERSION; SEALED_MAX_BYTES + 1]), Err(SealingError::Malformed));
        assert_ne!(key.open(&names.purpose(), &vec![VERSION; SEALED_MAX_BYTES]), Err(SealingError::Malformed));
    }

    #[test]
    fn a_private_key_shows_its_public_half() {
        let key = SealingKey::from_seed(&[1; 32]);
        assert_eq!(format!("{key:?}"), format!("SealingKey({})", key.public()));
    }

    #[test]
    fn other_drawings_other_ciphertexts() {
        let key = SealingKey::from_seed(&[1; 32]);
        let names = names(WORDS);
        let other = seal(&key.public(), &names.purpose(), b"x", Zeroizing::new([4; 32])).unwrap();
        assert_ne!(sealed(&key, b"x"), other);
        assert_eq!(**key.open(&names.purpose(), &other).unwrap(), *b"x");
    }

    #[test]
    fn only_for_what_it_was_sealed_for() {
        let key = SealingKey::from_seed(&[1; 32]);
        let sealed = sealed(&key, b"value");
        for index in 0..WORDS.len() {
            let mut words = WORDS;
            words[index] = if index == 4 { "DATABASE_URM" } else { "other" };
            assert_eq!(key.open(&names(words).purpose(), &sealed), Err(SealingError::Open), "{words:?}");
        }
        // The same letters, divided otherwise.
        let shifted = names(["acmep", "roduction", "prod-1", "notes", "DATABASE_URL"]);
        assert_eq!(key.open(&shifted.purpose(), &sealed), Err(SealingError::Open));
        let other = SealingKey::from_seed(&[2; 32]);
        assert_eq!(other.open(&names(WORDS).purpose(), &sealed), Err(SealingError::Open));
    }

    #[test]
    fn a_signers_key_opens_what_is_sealed_to_its_public_half() {
        let line = crate::PrivateKey::from_seed([5; 32]).public_key().to_openssh();
        let public = public_of(&PublicKey::parse(&line).unwrap()).unwrap();
        let key = SealingKey::of_signer(&[5; 32]);
        assert_eq!(key.public(), public);
        let (names, pool) = (names(WORDS), "kernels".parse().unwrap());
        let purpose = Purpose { to: Recipient::Pool(&pool), ..names.purpose() };
        let sealed = seal(&public, &purpose, b"value", Zeroizing::new([3; 32])).unwrap();
        assert_eq!(**key.open(&purpose, &sealed).unwrap(), *b"value");
        // Neither for a node that is called as the pool is, nor for another pool.
        let node = "kernels".parse().unwrap();
        let other = "others".parse().unwrap();
        for to in [Recipient::Node(&node), Recipient::Pool(&other)] {
            assert_eq!(key.open(&Purpose { to, ..purpose }, &sealed), Err(SealingError::Open));
        }
        let device = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAICg1o3kx0yQLoWxXfb/tJgcSXnsU93JnvUbLCcqRPuyUAAAABHNzaDo=";
        let device = PublicKey::parse(device).unwrap();
        assert_eq!(public_of(&device), Err(SealingError::Signer));
    }

    /// The same key pair, by two roads: from RFC 8032 section 7.1, test 1, and RFC 7748's map of its point.
    #[test]
    fn the_map_is_that_of_rfc_7748() {
        let seed = digest::parse("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let public = "d85e07ec22b0ad881537c2f44d662d1a143cf830c57aca4305d85c7a90f6b62e";
        assert_eq!(SealingKey::of_signer(&seed).public(), public);
    }

    #[test]
    fn keys_that_are_none() {
        let names = names(WORDS);
        for public in ["", "0f", &"zz".repeat(32), &"0F".repeat(32)] {
            let refused = seal(public, &names.purpose(), b"x", Zeroizing::new([3; 32]));
            assert_eq!(refused, Err(SealingError::Key), "{public}");
        }
        // Of small order: every sender would share one secret with the world.
        let refused = seal(&"00".repeat(32), &names.purpose(), b"x", Zeroizing::new([3; 32]));
        assert_eq!(refused, Err(SealingError::Seal));
    }

    proptest! {
        #[test]
        fn one_changed_byte_never_opens(position in 0usize..1000, change in 1u8..) {
            let key = SealingKey::from_seed(&[1; 32]);
            let mut sealed = sealed(&key, b"a value of some length");
            let index = position % sealed.len();
            sealed[index] ^= change;
            // X25519 ignores the topmost bit of a public key (RFC 7748 section 5), HPKE's key schedule does not.
            prop_assert!(key.open(&names(WORDS).purpose(), &sealed).is_err());
        }

        #[test]
        fn any_bytes_are_an_error(bytes: Vec<u8>) {
            prop_assert!(SealingKey::from_seed(&[1; 32]).open(&names(WORDS).purpose(), &bytes).is_err());
        }
    }
}
