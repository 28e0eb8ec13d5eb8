//! SSHSIG: what `ssh-keygen -Y sign` makes and `ssh-keygen -Y verify` checks.
//!
//! Source: OpenSSH `PROTOCOL.sshsig`, `PROTOCOL.u2f`, RFC 4251 section 5 (strings
//! are a big-endian u32 length and bytes), RFC 8709 (ssh-ed25519).
//!
//! ```text
//! armour     -----BEGIN SSH SIGNATURE----- base64, in lines -----END SSH SIGNATURE-----
//! blob       "SSHSIG" | u32 version 1 | string public key | string namespace
//!            | string reserved | string hash algorithm | string signature
//! signed     "SSHSIG" | string namespace | string reserved | string hash algorithm | string H(message)
//! ```
//!
//! Stricter than OpenSSH: `ssh-ed25519` and `sk-ssh-ed25519@openssh.com` only;
//! reserved must be empty; no trailing bytes anywhere; ed25519 signatures are
//! checked with `verify_strict` (no small-order keys, one encoding); a security
//! key must have seen a person (`flags & 1`) and must be of the application
//! `ssh:`, neither of which `ssh-keygen -Y verify` demands. Whether it also
//! checked a PIN or finger (`flags & 4`) is told to whoever asks, because a
//! policy may demand it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature as Ed25519Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256, Sha512};

const MAGIC: &[u8] = b"SSHSIG";
const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const END: &str = "-----END SSH SIGNATURE-----";
/// The longest armoured signature that is read; a security key's is below 700 bytes.
pub const ARMOUR_MAX_BYTES: usize = 4096;
/// `ssh-keygen -t ed25519-sk` makes keys of this application by default.
const SK_APPLICATION: &[u8] = b"ssh:";
const SK_USER_PRESENT: u8 = 1;
const SK_USER_VERIFIED: u8 = 4;

/// Why a key or signature is not good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The text is not an armoured SSHSIG.
    #[error("not an SSH signature: {0}")]
    Malformed(&'static str),
    /// The text is not an OpenSSH public key of a supported type.
    #[error("not a usable public key: {0}")]
    Key(&'static str),
    /// It was made for another kind of document.
    #[error("made for namespace `{found}`, not `{wanted}`")]
    Namespace {
        /// The namespace it was made for.
        found: String,
        /// The one it is needed for.
        wanted: &'static str,
    },
    /// It does not match the bytes.
    #[error("does not match the document")]
    Mismatch,
    /// A security key signed without a touch.
    #[error("the security key was not touched")]
    UserPresence,
}

/// Who made a good signature, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The key.
    pub key: PublicKey,
    /// Whether a security key made it that had checked a PIN or finger.
    pub verified_user: bool,
}

/// A public key: what its owner is, whatever comment stands beside it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey {
    blob: Vec<u8>,
    point: [u8; 32],
    security_key: bool,
}

impl PublicKey {
    /// Reads `ssh-ed25519 AAAA… [comment]`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(openssh: &str) -> Result<Self, SignatureError> {
        let mut words = openssh.split_whitespace();
        let (Some(kind), Some(text)) = (words.next(), words.next()) else {
            return Err(SignatureError::Key("expected `ssh-ed25519 AAAA…`"));
        };
        let blob = STANDARD.decode(text).map_err(|_| SignatureError::Key("bad base64"))?;
        let key = Self::from_blob(&blob)?;
        if kind != key.kind() {
            return Err(SignatureError::Key("the type before the key is not the key's own"));
        }
        Ok(key)
    }

    /// Reads the binary form, as agents and signatures carry it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_blob(blob: &[u8]) -> Result<Self, SignatureError> {
        let short = SignatureError::Key("too short");
        let mut reader = Reader(blob);
        let kind = reader.string().ok_or(short.clone())?;
        let point = reader.string().ok_or(short.clone())?;
        let security_key = match kind {
            b"ssh-ed25519" => false,
            b"sk-ssh-ed25519@openssh.com" => {
                if reader.string().ok_or(short)? != SK_APPLICATION {
                    return Err(SignatureError::Key("a security key of an application other than `ssh:`"));
                }
                true
            }
            _ => return Err(SignatureError::Key("only ssh-ed25519 and sk-ssh-ed25519@openssh.com are accepted")),
        };
        let point = point.try_into().map_err(|_| SignatureError::Key("not 32 bytes"))?;
        if !reader.0.is_empty() {
            return Err(SignatureError::Key("bytes after its end"));
        }
        Ok(Self { blob: blob.to_vec(), point, security_key })
    }

    /// The binary form.
    #[must_use]
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// The type's name.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.security_key { "sk-ssh-ed25519@openssh.com" } else { "ssh-ed25519" }
    }

    /// `ssh-ed25519 AAAA…`, without a comment.
    #[must_use]
    pub fn to_openssh(&self) -> String {
        format!("{} {}", self.kind(), STANDARD.encode(&self.blob))
    }

    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let text = STANDARD.encode(Sha256::digest(&self.blob));
        format!("SHA256:{}", text.trim_end_matches('='))
    }

    /// Its point on the other form of the curve, as X25519 has it (RFC 7748 section 4.1); `None` for a security key's, which
    /// does nothing but sign, and for what is no point.
    pub(crate) fn to_montgomery(&self) -> Option<[u8; 32]> {
        if self.security_key {
            return None;
        }
        Some(VerifyingKey::from_bytes(&self.point).ok()?.to_montgomery().to_bytes())
    }

    /// Whether the signature is good; gives whether its maker was verified by the security key that made it.
    fn verify(&self, signed: &[u8], signature: &[u8]) -> Result<bool, SignatureError> {
        let malformed = SignatureError::Malformed("bad signature field");
        let mut reader = Reader(signature);
        let kind = reader.string().ok_or(malformed.clone())?;
        let bytes = reader.string().ok_or(malformed.clone())?;
        if kind != self.kind().as_bytes() {
            return Err(SignatureError::Malformed("the signature's type is not the key's"));
        }
        let signature = Ed25519Signature::from_bytes(bytes.try_into().map_err(|_| malformed.clone())?);
        let key = VerifyingKey::from_bytes(&self.point).map_err(|_| SignatureError::Key("not a point"))?;
        let check = |message: &[u8]| key.verify_strict(message, &signature).map_err(|_| SignatureError::Mismatch);
        if !self.security_key {
            if !reader.0.is_empty() {
                return Err(malformed);
            }
            return check(signed).map(|()| false);
        }
        // PROTOCOL.u2f: the authenticator signs H(application) | flags | counter | H(message).
        let (flags, counter) = match reader.0 {
            [flags, counter @ ..] if counter.len() == 4 => (*flags, counter),
            _ => return Err(malformed),
        };
        let mut message = Vec::with_capacity(69);
        message.extend_from_slice(&Sha256::digest(SK_APPLICATION));
        message.push(flags);
        message.extend_from_slice(counter);
        message.extend_from_slice(&Sha256::digest(signed));
        check(&message)?;
        if flags & SK_USER_PRESENT == 0 {
            return Err(SignatureError::UserPresence);
        }
        Ok(flags & SK_USER_VERIFIED != 0)
    }
}

/// A machine's own signing key; people's keys never come here.
pub struct PrivateKey {
    key: SigningKey,
    public: PublicKey,
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrivateKey({})", self.public.fingerprint())
    }
}

impl PrivateKey {
    /// From 32 random bytes, as RFC 8032 has it.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let key = SigningKey::from_bytes(&seed);
        let point = key.verifying_key().to_bytes();
        let mut blob = Vec::new();
        put_string(&mut blob, b"ssh-ed25519");
        put_string(&mut blob, &point);
        Self { key, public: PublicKey { blob, point, security_key: false } }
    }

    /// Its public half.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Signs; gives an armoured SSHSIG.
    #[must_use]
    pub fn sign(&self, namespace: &str, message: &[u8]) -> String {
        let mut field = Vec::new();
        put_string(&mut field, b"ssh-ed25519");
        put_string(&mut field, &self.key.sign(&to_be_signed(namespace, message)).to_bytes());
        armor(&self.public, namespace, &field)
    }
}

/// The bytes that a key signs for a message in a namespace.
#[must_use]
pub fn to_be_signed(namespace: &str, message: &[u8]) -> Vec<u8> {
    signed_with(namespace.as_bytes(), b"sha512", &Sha512::digest(message))
}

fn signed_with(namespace: &[u8], hash: &[u8], digest: &[u8]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for field in [namespace, b"", hash, digest] {
        put_string(&mut out, field);
    }
    out
}

/// Puts a signature (the agent's blob: string type, string bytes, …) over
/// [`to_be_signed`] into armour.
#[must_use]
pub fn armor(public_key: &PublicKey, namespace: &str, signature: &[u8]) -> String {
    let mut blob = MAGIC.to_vec();
    blob.extend_from_slice(&1u32.to_be_bytes());
    for field in [public_key.blob(), namespace.as_bytes(), b"", b"sha512", signature] {
        put_string(&mut blob, field);
    }
    let text = STANDARD.encode(blob);
    let mut out = format!("{BEGIN}\n");
    for line in text.as_bytes().chunks(70) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out + END + "\n"
}

/// Checks an armoured signature over a message and gives the key that made it.
/// Whether that key means anything is the policy's business.
///
/// # Errors
/// Why it is not a good signature over this message in this namespace.
pub fn verify(armoured: &str, namespace: &'static str, message: &[u8]) -> Result<Signer, SignatureError> {
    let malformed = SignatureError::Malformed;
    if armoured.len() > ARMOUR_MAX_BYTES {
        return Err(malformed("longer than 4096 bytes"));
    }
    let body = armoured.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
    let text: String = body.ok_or(malformed("no armour"))?.split_ascii_whitespace().collect();
    let blob = STANDARD.decode(text).map_err(|_| malformed("bad base64"))?;
    let mut reader = Reader(blob.strip_prefix(MAGIC).ok_or(malformed("no magic"))?);
    let short = malformed("too short");
    if reader.u32().ok_or(short.clone())? != 1 {
        return Err(malformed("unknown version"));
    }
    let key = PublicKey::from_blob(reader.string().ok_or(short.clone())?)?;
    let found = reader.string().ok_or(short.clone())?;
    let reserved = reader.string().ok_or(short.clone())?;
    let hash = reader.string().ok_or(short.clone())?;
    let signature = reader.string().ok_or(short)?;
    if !reserved.is_empty() || !reader.0.is_empty() {
        return Err(malformed("unexpected bytes"));
    }
    if found != namespace.as_bytes() {
        let found = String::from_utf8_lossy(found).chars().filter(|c| !c.is_control()).take(60).collect();
        return Err(SignatureError::Namespace { found, wanted: namespace });
    }
    let signed = match hash {
        b"sha512" => signed_with(found, hash, &Sha512::digest(message)),
        b"sha256" => signed_with(found, hash, &Sha256::digest(message)),
        _ => return Err(malformed("unknown hash algorithm")),
    };
    let verified_user = key.verify(&signed, signature)?;
    Ok(Signer { key, verified_user })
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("fields of a signature are far below 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_at_checked(4)?;
        self.0 = rest;
        Some(u32::from_be_bytes(head.try_into().ok()?))
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A key pair made from one byte: for tests of this crate only.
    pub(crate) struct TestKey {
        key: SigningKey,
        pub(crate) public: PublicKey,
    }

    impl TestKey {
        pub(crate) fn new(seed: u8) -> Self {
            let key = SigningKey::from_bytes(&[seed; 32]);
            let mut blob = Vec::new();
            put_string(&mut blob, b"ssh-ed25519");
            put_string(&mut blob, key.verifying_key().as_bytes());
            Self { public: PublicKey::from_blob(&blob).unwrap(), key }
        }

        /// The same key pair as a security key's.
        pub(crate) fn security_key(seed: u8) -> Self {
            let key = SigningKey::from_bytes(&[seed; 32]);
            let mut blob = Vec::new();
            put_string(&mut blob, b"sk-ssh-ed25519@openssh.com");
            put_string(&mut blob, key.verifying_key().as_bytes());
            put_string(&mut blob, SK_APPLICATION);
            Self { public: PublicKey::from_blob(&blob).unwrap(), key }
        }

        pub(crate) fn sign(&self, namespace: &str, message: &[u8]) -> String {
            let mut field = Vec::new();
            put_string(&mut field, b"ssh-ed25519");
            put_string(&mut field, &self.key.sign(&to_be_signed(namespace, message)).to_bytes());
            armor(&self.public, namespace, &field)
        }

        pub(crate) fn sign_as_security_key(&self, namespace: &str, message: &[u8], flags: u8) -> String {
            let counter = 7u32.to_be_bytes();
            let mut signed = Sha256::digest(SK_APPLICATION).to_vec();
            signed.push(flags);
            signed.extend_from_slice(&counter);
            signed.extend_from_slice(&Sha256::digest(to_be_signed(namespace, message)));
            let mut field = Vec::new();
            put_string(&mut field, b"sk-ssh-ed25519@openssh.com");
            put_string(&mut field, &self.key.sign(&signed).to_bytes());
            field.push(flags);
            field.extend_from_slice(&counter);
            armor(&self.public, namespace, &field)
        }
    }

    const NAMESPACE: &str = "order@bulkhead";

    /// A blob in armour, of fields that may be wrong.
    fn armoured(fields: [&[u8]; 5], after: &[u8]) -> String {
        let mut blob = MAGIC.to_vec();
        blob.extend_from_slice(&1u32.to_be_bytes());
        for field in fields {
            put_string(&mut blob, field);
        }
        blob.extend_from_slice(after);
        format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(blob))
    }

    fn plain(key: &TestKey, signed: &[u8]) -> Vec<u8> {
        let mut field = Vec::new();
        put_string(&mut field, b"ssh-ed25519");
        put_string(&mut field, &key.key.sign(signed).to_bytes());
        field
    }

    #[test]
    fn fields_that_must_be_empty() {
        let key = TestKey::new(1);
        let field = plain(&key, &to_be_signed(NAMESPACE, b"m"));
        let fields = |reserved: &'static [u8]| [key.public.blob(), NAMESPACE.as_bytes(), reserved, b"sha512", &field];
        assert!(verify(&armoured(fields(b""), b""), NAMESPACE, b"m").is_ok());
        for text in [armoured(fields(b"x"), b""), armoured(fields(b""), b"x"), armoured(fields(b"x"), b"x")] {
            let found = verify(&text, NAMESPACE, b"m");
            assert_eq!(found, Err(SignatureError::Malformed("unexpected bytes")), "{text}");
        }
    }

    /// `ssh-keygen -O hashalg=sha256` makes these.
    #[test]
    fn hashes() {
        let key = TestKey::new(1);
        let field = plain(&key, &signed_with(NAMESPACE.as_bytes(), b"sha256", &Sha256::digest(b"m")));
        let fields = |hash: &'static [u8]| [key.public.blob(), NAMESPACE.as_bytes(), b"", hash, &field];
        assert!(verify(&armoured(fields(b"sha256"), b""), NAMESPACE, b"m").is_ok());
        assert_eq!(verify(&armoured(fields(b"sha256"), b""), NAMESPACE, b"n"), Err(SignatureError::Mismatch));
        assert_eq!(verify(&armoured(fields(b"sha512"), b""), NAMESPACE, b"m"), Err(SignatureError::Mismatch));
        let unknown = Err(SignatureError::Malformed("unknown hash algorithm"));
        assert_eq!(verify(&armoured(fields(b"sha1"), b""), NAMESPACE, b"m"), unknown);
    }

    #[test]
    fn a_foreign_namespace_is_safe_to_show() {
        let text = TestKey::new(1).sign("\u{1b}[2Jfile", b"m");
        let found = "[2Jfile".to_owned();
        assert_eq!(verify(&text, NAMESPACE, b"m"), Err(SignatureError::Namespace { found, wanted: NAMESPACE }));
    }

    #[test]
    fn armour_is_bounded() {
        let text = TestKey::new(1).sign(NAMESPACE, b"m");
        let padded = |length: usize| format!("{text}{}", " ".repeat(length - text.len()));
        assert!(verify(&padded(ARMOUR_MAX_BYTES), NAMESPACE, b"m").is_ok());
        let long = verify(&padded(ARMOUR_MAX_BYTES + 1), NAMESPACE, b"m");
        assert_eq!(long, Err(SignatureError::Malformed("longer than 4096 bytes")));
    }

    #[test]
    fn a_private_key_shows_its_fingerprint() {
        let key = PrivateKey::from_seed([1; 32]);
        assert_eq!(format!("{key:?}"), format!("PrivateKey({})", key.public_key().fingerprint()));
    }

    /// The counter of a security key has four bytes.
    #[test]
    fn counters_of_other_lengths() {
        let key = TestKey::security_key(1);
        for counter in [&[0, 0, 0, 7][..], &[0, 0, 7], &[0, 0, 0, 0, 7], &[]] {
            let mut signed = Sha256::digest(SK_APPLICATION).to_vec();
            signed.push(SK_USER_PRESENT);
            signed.extend_from_slice(counter);
            signed.extend_from_slice(&Sha256::digest(to_be_signed(NAMESPACE, b"m")));
            let mut field = Vec::new();
            put_string(&mut field, b"sk-ssh-ed25519@openssh.com");
            put_string(&mut field, &key.key.sign(&signed).to_bytes());
            field.push(SK_USER_PRESENT);
            field.extend_from_slice(counter);
            let found = verify(&armor(&key.public, NAMESPACE, &field), NAMESPACE, b"m");
            assert_eq!(found.is_ok(), counter.len() == 4, "{counter:?}");
        }
    }

    #[test]
    fn a_signature_by_ssh_keygen() {
        // Made with OpenSSH 9.2: printf 'hello\n' | ssh-keygen -Y sign -n order@bulkhead -f key
        let Signer { key, verified_user } = verify(VECTOR_SIGNATURE, NAMESPACE, b"hello\n").unwrap();
        assert!(!verified_user);
        assert_eq!(key, PublicKey::parse(VECTOR_KEY).unwrap());
        assert_eq!(key.to_openssh(), VECTOR_KEY);
        assert_eq!(key.fingerprint(), VECTOR_FINGERPRINT);
        assert_eq!(verify(VECTOR_SIGNATURE, NAMESPACE, b"hellO\n"), Err(SignatureError::Mismatch));
    }

    const VECTOR_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO92SB71v5YBUOl3Jy/6mjI8LJJau2i2qR6UXkv6GxqN";
    const VECTOR_FINGERPRINT: &str = "SHA256:Fm7fqAv964H6sBbmzijyldPDHBY9FcTQCeK46KKau8A";
    const VECTOR_SIGNATURE: &str = "-----BEGIN SSH SIGNATURE-----\nU1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAg73ZIHvW/lgFQ6XcnL/qaMjwskl\nq7aLapHpReS/obGo0AAAAOb3JkZXJAYnVsa2hlYWQAAAAAAAAABnNoYTUxMgAAAFMAAAAL\nc3NoLWVkMjU1MTkAAABAYNfAhDnC7m5u/X7++Ybl3RHDxiQ0Vu7485A3D42FrFXS7BpOfp\nHCepaPFXJOIVDdPhzKyGThXAW72nkGmjI6CA==\n-----END SSH SIGNATURE-----\n";

    #[test]
    fn namespaces_keep_documents_apart() {
        let key = TestKey::new(1);
        let armoured = key.sign("policy@bulkhead", b"x");
        assert!(matches!(verify(&armoured, NAMESPACE, b"x"), Err(SignatureError::Namespace { .. })));
        // A blob that claims another namespace than it was signed for.
        let lie = {
            let mut field = Vec::new();
            put_string(&mut field, b"ssh-ed25519");
            put_string(&mut field, &key.key.sign(&to_be_signed("policy@bulkhead", b"x")).to_bytes());
            armor(&key.public, NAMESPACE, &field)
        };
        assert_eq!(verify(&lie, NAMESPACE, b"x"), Err(SignatureError::Mismatch));
    }

    #[test]
    fn a_security_key_must_be_touched() {
        let key = TestKey::security_key(2);
        for (flags, verified_user) in [(1, false), (5, true), (0xc1, false)] {
            let armoured = key.sign_as_security_key(NAMESPACE, b"x", flags);
            let signer = Signer { key: key.public.clone(), verified_user };
            assert_eq!(verify(&armoured, NAMESPACE, b"x"), Ok(signer), "{flags}");
        }
        for flags in [0, 4] {
            let armoured = key.sign_as_security_key(NAMESPACE, b"x", flags);
            assert_eq!(verify(&armoured, NAMESPACE, b"x"), Err(SignatureError::UserPresence));
        }
    }

    #[test]
    fn a_security_key_of_another_application_is_no_key() {
        let mut blob = Vec::new();
        put_string(&mut blob, b"sk-ssh-ed25519@openssh.com");
        put_string(&mut blob, TestKey::new(2).key.verifying_key().as_bytes());
        put_string(&mut blob, b"ssh:elsewhere");
        assert!(matches!(PublicKey::from_blob(&blob), Err(SignatureError::Key(_))));
    }

    #[test]
    fn a_plain_signature_does_not_pass_for_a_security_keys_and_back() {
        let plain = TestKey::new(3);
        let secure = TestKey::security_key(3);
        let mut field = Vec::new();
        put_string(&mut field, b"ssh-ed25519");
        put_string(&mut field, &plain.key.sign(&to_be_signed(NAMESPACE, b"x")).to_bytes());
        assert!(verify(&armor(&secure.public, NAMESPACE, &field), NAMESPACE, b"x").is_err());
    }

    #[test]
    fn a_small_order_key_verifies_nothing() {
        let mut blob = Vec::new();
        put_string(&mut blob, b"ssh-ed25519");
        put_string(&mut blob, &[[1u8].as_slice(), &[0; 31]].concat());
        let key = PublicKey::from_blob(&blob).unwrap();
        let mut field = Vec::new();
        put_string(&mut field, b"ssh-ed25519");
        // R = identity, S = 0: accepted for any message by a lax verifier.
        put_string(&mut field, &[[1u8].as_slice(), &[0; 63]].concat());
        assert_eq!(verify(&armor(&key, NAMESPACE, &field), NAMESPACE, b"x"), Err(SignatureError::Mismatch));
    }

    #[test]
    fn keys_that_are_refused() {
        let good = TestKey::new(4).public.to_openssh();
        for text in [
            String::new(),
            "ssh-ed25519".into(),
            "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ==".into(),
            good.replace("ssh-ed25519 ", "ssh-rsa "),
            good.replace("AAAA", "AAAB"),
            good[..good.len() - 8].to_owned(),
        ] {
            assert!(PublicKey::parse(&text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn one_changed_character_never_verifies(position in 0usize..1000, to in "[A-Za-z0-9+/]") {
            let key = TestKey::new(5);
            let armoured = key.sign(NAMESPACE, b"message");
            let start = BEGIN.len() + 1;
            let index = start + position % (armoured.len() - END.len() - 1 - start);
            let mut changed = armoured.clone();
            prop_assume!(changed.as_bytes()[index] != b'\n' && changed[index..=index] != *to);
            changed.replace_range(index..=index, &to);
            // base64's last character may carry unused bits; the decoder refuses those too.
            prop_assert!(verify(&changed, NAMESPACE, b"message").is_err(), "accepted {changed}");
        }

        #[test]
        fn any_text_is_an_error(text: String) {
            prop_assert!(verify(&text, NAMESPACE, b"").is_err());
        }

        #[test]
        fn any_blob_in_armour_is_an_error(bytes: Vec<u8>) {
            let text = format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode([MAGIC, &1u32.to_be_bytes(), &bytes].concat()));
            prop_assert!(verify(&text, NAMESPACE, b"").is_err());
        }
    }
}
