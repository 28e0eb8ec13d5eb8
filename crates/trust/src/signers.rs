//! Which of the wanted keys signed a document.

use crate::{PublicKey, sshsig};
use bulkhead_core::policy::{Policy, Role};
use std::collections::BTreeMap;

/// The most signatures that are looked at; more than any policy can need.
pub const SIGNATURES_MAX: usize = 64;

const OF_ANOTHER_ROLE: &str = "which has no such role here";

/// A key whose signature would count.
pub(crate) struct Wanted<'a> {
    /// Its holder.
    pub(crate) name: String,
    /// The OpenSSH public key.
    pub(crate) key: &'a str,
    /// Whether the security key must have checked a PIN or finger.
    pub(crate) verify_user: bool,
}

/// The distinct wanted keys that signed, and what the other signatures were.
pub(crate) struct Found {
    by_key: BTreeMap<PublicKey, String>,
    notes: Vec<String>,
}

/// The holders of a role in a policy.
pub(crate) fn holders(policy: &Policy, role: Role) -> impl Iterator<Item = Wanted<'_>> {
    policy.holders(role).map(|(name, key)| Wanted {
        name: name.to_string(),
        key: &key.key,
        verify_user: key.verify_user,
    })
}

/// Finds who of the wanted signed these bytes. Signatures that are no good or of
/// other keys count for nothing, and the notes say what each was.
pub(crate) fn signers<'a>(
    bytes: &[u8],
    signatures: &[String],
    namespace: &'static str,
    wanted: impl IntoIterator<Item = Wanted<'a>>,
) -> Found {
    let known: BTreeMap<PublicKey, (String, bool)> = wanted
        .into_iter()
        .filter_map(|wanted| Some((PublicKey::parse(wanted.key).ok()?, (wanted.name, wanted.verify_user))))
        .collect();
    let mut found = Found { by_key: BTreeMap::new(), notes: Vec::new() };
    for armoured in signatures.iter().take(SIGNATURES_MAX) {
        let signer = match sshsig::verify(armoured, namespace, bytes) {
            Ok(signer) => signer,
            Err(error) => {
                found.notes.push(format!("a signature that {}", phrase(&error)));
                continue;
            }
        };
        match known.get(&signer.key) {
            None => {
                found.notes.push(format!("a signature by {}, {OF_ANOTHER_ROLE}", signer.key.fingerprint()));
            }
            Some((name, true)) if !signer.verified_user => {
                found.notes.push(format!("a signature by {name} for which the security key asked no PIN or finger"));
            }
            Some((name, _)) => drop(found.by_key.insert(signer.key, name.clone())),
        }
    }
    found
}

fn phrase(error: &sshsig::SignatureError) -> String {
    match error {
        sshsig::SignatureError::Mismatch => "does not match the document".into(),
        sshsig::SignatureError::UserPresence => "was made without touching the security key".into(),
        sshsig::SignatureError::Namespace { found, wanted } => {
            format!("was made for documents of kind `{found}`, not `{wanted}`")
        }
        other => format!("cannot be read ({other})"),
    }
}

impl Found {
    /// How many distinct keys.
    pub(crate) fn count(&self) -> usize {
        self.by_key.len()
    }

    /// Their holders.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.by_key.values()
    }

    /// Whether this key is one of them.
    pub(crate) fn has(&self, key: &PublicKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// Their holders.
    pub(crate) fn into_names(self) -> Vec<String> {
        self.by_key.into_values().collect()
    }

    /// "no signature", or a list of what came.
    pub(crate) fn presented(&self) -> String {
        let mut parts: Vec<String> = self.names().map(|name| format!("a good signature by {name}")).collect();
        parts.extend(self.notes.iter().take(5).cloned());
        if parts.is_empty() { "no signature".into() } else { parts.join(", ") }
    }
}

/// What came with an order, of release keys and of green ones. Neither kind is a stranger to the other.
pub(crate) fn presented_by(release: &Found, green: &Found) -> String {
    if release.count() == 0 && green.count() == 0 {
        return release.presented();
    }
    let mut parts: Vec<String> = release.names().map(|name| format!("a good signature by {name}")).collect();
    parts.extend(green.names().map(|name| format!("a good signature by {name}, with a green key")));
    parts.extend(release.notes.iter().filter(|note| !note.ends_with(OF_ANOTHER_ROLE)).take(5).cloned());
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sshsig::tests::TestKey;

    const NAMESPACE: &str = "order@bulkhead";

    /// What a refusal says of the signatures that came.
    #[test]
    fn what_was_presented() {
        let (ada, ci, stranger) = (TestKey::new(1), TestKey::new(3), TestKey::new(9));
        let (of_ada, of_ci) = (ada.public.to_openssh(), ci.public.to_openssh());
        let presented = |keys: &[&TestKey], namespace: &str| {
            let signatures: Vec<String> = keys.iter().map(|key| key.sign(namespace, b"order")).collect();
            let found = |name: &str, key: &str| {
                signers(b"order", &signatures, NAMESPACE, [Wanted { name: name.into(), key, verify_user: false }])
            };
            presented_by(&found("ada", &of_ada), &found("ci", &of_ci))
        };
        let (by_ada, by_ci) = ("a good signature by ada", "a good signature by ci, with a green key");
        assert_eq!(presented(&[], NAMESPACE), "no signature");
        assert_eq!(presented(&[&ada], NAMESPACE), by_ada);
        // Of neither role's keys the other kind is a stranger, so none is told as one.
        assert_eq!(presented(&[&ci], NAMESPACE), by_ci);
        assert_eq!(presented(&[&ci, &ada], NAMESPACE), format!("{by_ada}, {by_ci}"));
        let unknown = format!("a signature by {}, {OF_ANOTHER_ROLE}", stranger.public.fingerprint());
        assert_eq!(presented(&[&stranger], NAMESPACE), unknown);
        assert_eq!(presented(&[&ada, &stranger], NAMESPACE), by_ada);
        // What is wrong with a signature is said beside the good ones.
        let wrong = "a signature that was made for documents of kind `file`, not `order@bulkhead`";
        assert_eq!(presented(&[&ada], "file"), wrong);
        let mixed = [ada.sign(NAMESPACE, b"order"), ci.sign("file", b"order")];
        let wanted = || [Wanted { name: "ada".into(), key: &of_ada, verify_user: false }];
        let found = signers(b"order", &mixed, NAMESPACE, wanted());
        let none = signers(b"order", &[], NAMESPACE, wanted());
        assert_eq!(presented_by(&found, &none), format!("{by_ada}, {wrong}"));
    }
}
