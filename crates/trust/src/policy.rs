//! Which policy a node enforces, and how the next one replaces it.

use crate::{PublicKey, Refusal, Rule, Verified, sshsig};
use bulkhead_core::{
    FleetName,
    policy::{NAMESPACE, POLICY_MAX_BYTES, Policy, Role, Root},
};
use std::collections::{BTreeMap, BTreeSet};

/// The most signatures that are looked at; more than any policy can need.
pub const SIGNATURES_MAX: usize = 64;

/// The distinct keys of `wanted` that signed these bytes, by the name given beside each.
/// Signatures that are no good or of unknown keys count for nothing, and the
/// notes say what each was.
pub(crate) fn signers<'a>(
    bytes: &[u8],
    signatures: &[String],
    namespace: &'static str,
    wanted: impl IntoIterator<Item = (String, &'a str)>,
) -> (BTreeMap<PublicKey, String>, Vec<String>) {
    let known: BTreeMap<PublicKey, String> =
        wanted.into_iter().filter_map(|(name, key)| Some((PublicKey::parse(key).ok()?, name))).collect();
    let mut found = BTreeMap::new();
    let mut notes = Vec::new();
    for armoured in signatures.iter().take(SIGNATURES_MAX) {
        match sshsig::verify(armoured, namespace, bytes) {
            Ok(key) => match known.get(&key) {
                Some(name) => drop(found.insert(key, name.clone())),
                None => notes.push(format!("a signature by {}, which has no such role here", key.fingerprint())),
            },
            Err(error) => notes.push(format!("a signature that {}", phrase(&error))),
        }
    }
    (found, notes)
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

/// "nothing" or a list of what came instead of enough good signatures.
pub(crate) fn presented(found: &BTreeMap<PublicKey, String>, notes: &[String]) -> String {
    let mut parts: Vec<String> = found.values().map(|name| format!("a good signature by {name}")).collect();
    parts.extend(notes.iter().take(5).cloned());
    if parts.is_empty() { "no signature".into() } else { parts.join(", ") }
}

fn signed_by_roots(bytes: &[u8], signatures: &[String], root: &Root, whose: &str) -> Result<Vec<String>, Refusal> {
    let wanted = root.keys.iter().map(|key| {
        let name = PublicKey::parse(key).map_or_else(|error| error.to_string(), |key| key.fingerprint());
        (name, key.as_str())
    });
    let (found, notes) = signers(bytes, signatures, NAMESPACE, wanted);
    if found.len() < root.threshold as usize {
        let message = format!(
            "the policy needs {} of {whose} {} root keys; presented: {}",
            root.threshold,
            root.keys.len(),
            presented(&found, &notes)
        );
        return Err(Refusal::new(Rule::Threshold, message).hint("have the missing root keys' holders sign it"));
    }
    Ok(found.into_values().collect())
}

/// Checks the policy that a node is installed with. Whoever installs a node
/// gives it its trust, so the document vouches for itself: it must be signed by
/// the roots it names, and be for the node's fleet.
///
/// # Errors
/// Which rule it breaks.
pub fn pin_first_policy(bytes: &[u8], signatures: &[String], fleet: &FleetName) -> Result<Verified<Policy>, Refusal> {
    let policy = parse(bytes, fleet)?;
    let signers = signed_by_roots(bytes, signatures, &policy.root, "its")?;
    Ok(Verified::new(policy, signers))
}

/// Checks the policy that is to follow `pinned`: exactly one version on, signed
/// by enough roots of both.
///
/// # Errors
/// Which rule it breaks.
pub fn accept_policy(bytes: &[u8], signatures: &[String], pinned: &Policy) -> Result<Verified<Policy>, Refusal> {
    // The pinned roots must have signed these bytes before anything of them is believed.
    signed_by_roots(bytes, signatures, &pinned.root, "the present")?;
    let policy = parse(bytes, &pinned.fleet)?;
    if Some(policy.version) != pinned.version.checked_add(1) {
        let message = format!("the policy is version {}, the one after {} is needed", policy.version, pinned.version);
        return Err(Refusal::new(Rule::PolicyVersion, message));
    }
    let signers = signed_by_roots(bytes, signatures, &policy.root, "the new")?;
    Ok(Verified::new(policy, signers))
}

fn parse(bytes: &[u8], fleet: &FleetName) -> Result<Policy, Refusal> {
    if bytes.len() > POLICY_MAX_BYTES {
        return Err(Refusal::new(Rule::Malformed, "the policy is longer than 1 MiB"));
    }
    let policy = Policy::parse(bytes).map_err(|what| Refusal::new(Rule::Malformed, what))?;
    check_keys(&policy)?;
    if policy.fleet != *fleet {
        return Err(Refusal::new(Rule::Fleet, format!("the policy is for fleet `{}`, not `{fleet}`", policy.fleet)));
    }
    Ok(policy)
}

/// Every key must be readable, no key may stand under two names (each name
/// would count), and no environment may demand more than there are keys.
fn check_keys(policy: &Policy) -> Result<(), Refusal> {
    let malformed = |message: String| Refusal::new(Rule::Malformed, message);
    let mut seen: BTreeMap<PublicKey, &str> = BTreeMap::new();
    for (name, key) in &policy.keys {
        let parsed = PublicKey::parse(&key.key).map_err(|error| malformed(format!("key of `{name}`: {error}")))?;
        if let Some(other) = seen.insert(parsed, name.as_str()) {
            return Err(malformed(format!("`{other}` and `{name}` have the same key")));
        }
    }
    let roots: Result<BTreeSet<PublicKey>, _> = policy.root.keys.iter().map(|key| PublicKey::parse(key)).collect();
    let roots = roots.map_err(|error| malformed(format!("a root key: {error}")))?;
    if roots.len() != policy.root.keys.len() {
        return Err(malformed("a root key stands twice".into()));
    }
    let release_keys = policy.holders(Role::Release).count();
    for (name, demand) in &policy.environments {
        if demand.release as usize > release_keys {
            let message =
                format!("environment `{name}` demands {} release keys, the policy has {release_keys}", demand.release);
            return Err(malformed(message));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sshsig::tests::TestKey;
    use bulkhead_core::policy::{Demand, Key};

    pub(crate) fn policy(
        version: u64,
        roots: &[&TestKey],
        threshold: u32,
        release: &[(&str, &TestKey)],
        demand: u32,
    ) -> Policy {
        let key = |key: &TestKey| Key { key: key.public.to_openssh(), roles: [Role::Release].into() };
        Policy {
            format: 1,
            fleet: "acme".parse().unwrap(),
            version,
            root: Root { threshold, keys: roots.iter().map(|key| key.public.to_openssh()).collect() },
            keys: release.iter().map(|(name, k)| (name.parse().unwrap(), key(k))).collect(),
            environments: [("staging".parse().unwrap(), Demand { release: demand })].into(),
        }
    }

    fn sign(keys: &[&TestKey], bytes: &[u8]) -> Vec<String> {
        keys.iter().map(|key| key.sign(NAMESPACE, bytes)).collect()
    }

    fn rule<T>(result: Result<T, Refusal>) -> Option<Rule> {
        result.err().map(|refusal| refusal.rule)
    }

    #[test]
    fn the_first_policy_vouches_for_itself() {
        let (a, b) = (TestKey::new(1), TestKey::new(2));
        let bytes = policy(1, &[&a, &b], 2, &[("ada", &a)], 1).to_bytes();
        let fleet = "acme".parse().unwrap();
        assert_eq!(rule(pin_first_policy(&bytes, &sign(&[&a, &b], &bytes), &fleet)), None);
        assert_eq!(rule(pin_first_policy(&bytes, &sign(&[&a], &bytes), &fleet)), Some(Rule::Threshold));
        assert_eq!(
            rule(pin_first_policy(&bytes, &sign(&[&a, &a], &bytes), &fleet)),
            Some(Rule::Threshold),
            "one key twice"
        );
        assert_eq!(
            rule(pin_first_policy(&bytes, &sign(&[&a, &b], &bytes), &"other".parse().unwrap())),
            Some(Rule::Fleet)
        );
    }

    #[test]
    fn the_next_policy_needs_both_roots() {
        let (old, new) = (TestKey::new(1), TestKey::new(2));
        let pinned = policy(1, &[&old], 1, &[("ada", &old)], 1);
        let check = |version, signers: &[&TestKey]| {
            let bytes = policy(version, &[&new], 1, &[("ada", &old)], 1).to_bytes();
            rule(accept_policy(&bytes, &sign(signers, &bytes), &pinned))
        };
        assert_eq!(check(2, &[&old, &new]), None);
        assert_eq!(check(2, &[&new]), Some(Rule::Threshold), "new root only");
        assert_eq!(check(2, &[&old]), Some(Rule::Threshold), "old root only");
        assert_eq!(check(3, &[&old, &new]), Some(Rule::PolicyVersion), "skipped");
        assert_eq!(check(1, &[&old, &new]), Some(Rule::PolicyVersion), "replayed");
    }

    #[test]
    fn one_key_under_two_names_is_refused() {
        let key = TestKey::new(1);
        let bytes = policy(1, &[&key], 1, &[("ada", &key), ("bob", &key)], 2).to_bytes();
        assert_eq!(
            rule(pin_first_policy(&bytes, &sign(&[&key], &bytes), &"acme".parse().unwrap())),
            Some(Rule::Malformed)
        );
    }

    #[test]
    fn thresholds_that_cannot_be_met_or_mean_nothing_are_refused() {
        let key = TestKey::new(1);
        let fleet = "acme".parse().unwrap();
        for (threshold, demand) in [(0, 1), (2, 1), (1, 0), (1, 2)] {
            let bytes = policy(1, &[&key], threshold, &[("ada", &key)], demand).to_bytes();
            assert_eq!(
                rule(pin_first_policy(&bytes, &sign(&[&key], &bytes), &fleet)),
                Some(Rule::Malformed),
                "{threshold} {demand}"
            );
        }
    }
}
