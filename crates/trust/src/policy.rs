//! Which policy a node enforces, and how the next one replaces it.

use crate::{
    PublicKey, Refusal, Rule, Verified,
    signers::{Wanted, signers},
};
use bulkhead_core::{
    FleetName,
    policy::{NAMESPACE, POLICY_MAX_BYTES, Policy, Root},
};
use std::collections::{BTreeMap, BTreeSet};

/// The root keys that signed, if they are enough. `what` is the kind of document, `whose` tells one set of roots from another.
pub(crate) fn signed_by_roots(
    bytes: &[u8],
    signatures: &[String],
    root: &Root,
    namespace: &'static str,
    (what, whose): (&str, &str),
) -> Result<Vec<String>, Refusal> {
    let wanted = root.keys.iter().map(|key| Wanted {
        name: PublicKey::parse(key).map_or_else(|error| error.to_string(), |key| key.fingerprint()),
        key,
        verify_user: root.verify_user,
    });
    let found = signers(bytes, signatures, namespace, wanted);
    if found.count() < root.threshold as usize {
        let message = format!(
            "the {what} needs {} of {whose} {} root keys; presented: {}",
            root.threshold,
            root.keys.len(),
            found.presented()
        );
        return Err(Refusal::new(Rule::Threshold, message).hint("have the missing root keys' holders sign it"));
    }
    Ok(found.into_names())
}

/// Checks the policy that a node is installed with. Whoever installs a node
/// gives it its trust, so the document vouches for itself: it must be signed by
/// the roots it names, and be for the node's fleet.
///
/// # Errors
/// Which rule it breaks.
pub fn pin_first_policy(bytes: &[u8], signatures: &[String], fleet: &FleetName) -> Result<Verified<Policy>, Refusal> {
    let policy = parse(bytes, fleet)?;
    let signers = signed_by_roots(bytes, signatures, &policy.root, NAMESPACE, ("policy", "its"))?;
    Ok(Verified::new(policy, signers))
}

/// Checks the policy that is to follow `pinned`: exactly one version on, signed
/// by enough roots of both.
///
/// # Errors
/// Which rule it breaks.
pub fn accept_policy(bytes: &[u8], signatures: &[String], pinned: &Policy) -> Result<Verified<Policy>, Refusal> {
    // The pinned roots must have signed these bytes before anything of them is believed.
    signed_by_roots(bytes, signatures, &pinned.root, NAMESPACE, ("policy", "the present"))?;
    let policy = parse(bytes, &pinned.fleet)?;
    if Some(policy.version) != pinned.version.checked_add(1) {
        let message = format!("the policy is version {}, the one after {} is needed", policy.version, pinned.version);
        return Err(Refusal::new(Rule::PolicyVersion, message));
    }
    let signers = signed_by_roots(bytes, signatures, &policy.root, NAMESPACE, ("policy", "the new"))?;
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

/// Every key must be readable, and no key may stand under two names: each name would count.
///
/// # Errors
/// The first key that is not.
pub fn check_keys(policy: &Policy) -> Result<(), Refusal> {
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
    for (name, node) in &policy.nodes {
        let key =
            PublicKey::parse(&node.audit).map_err(|error| malformed(format!("audit key of `{name}`: {error}")))?;
        if seen.contains_key(&key) || roots.contains(&key) {
            return Err(malformed(format!("the audit key of `{name}` is also a person's")));
        }
        let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if node.sealing.len() != 64 || !node.sealing.chars().all(is_digit) {
            return Err(malformed(format!("the sealing key of `{name}` is not 64 hexadecimal digits")));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sshsig::tests::TestKey;
    use bulkhead_core::{
        notice::Revoked,
        policy::{Demand, Environment, Key, NodeKeys, Role},
    };

    pub(crate) fn policy(
        version: u64,
        roots: &[&TestKey],
        threshold: u32,
        release: &[(&str, &TestKey)],
        demand: u32,
    ) -> Policy {
        let key =
            |key: &TestKey| Key { key: key.public.to_openssh(), roles: [Role::Release].into(), verify_user: false };
        Policy {
            format: 1,
            fleet: "acme".parse().unwrap(),
            version,
            root: Root {
                threshold,
                keys: roots.iter().map(|key| key.public.to_openssh()).collect(),
                verify_user: false,
            },
            keys: release.iter().map(|(name, k)| (name.parse().unwrap(), key(k))).collect(),
            environments: [("staging".parse().unwrap(), Environment::accepting(Demand::release(demand)))].into(),
            nodes: BTreeMap::new(),
            revoked: Revoked::default(),
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

    #[test]
    fn a_policy_one_byte_long_too_much_is_not_read() {
        let key = TestKey::new(1);
        let mut bytes = policy(1, &[&key], 1, &[("ada", &key)], 1).to_bytes();
        bytes.resize(POLICY_MAX_BYTES, b' ');
        let check = |bytes: &[u8]| rule(pin_first_policy(bytes, &sign(&[&key], bytes), &"acme".parse().unwrap()));
        assert_eq!(check(&bytes), None);
        bytes.push(b' ');
        assert_eq!(check(&bytes), Some(Rule::Malformed));
    }

    #[test]
    fn a_root_key_that_stands_twice_is_refused() {
        let (a, b) = (TestKey::new(1), TestKey::new(2));
        let mut policy = policy(1, &[&a, &b], 1, &[("ada", &a)], 1);
        policy.root.keys.push(format!("{} again", a.public.to_openssh()));
        let bytes = policy.to_bytes();
        assert_eq!(rule(pin_first_policy(&bytes, &sign(&[&a], &bytes), &policy.fleet)), Some(Rule::Malformed));
    }

    #[test]
    fn roots_that_must_verify_their_users() {
        let key = TestKey::security_key(1);
        let mut policy = policy(1, &[&key], 1, &[("ada", &key)], 1);
        policy.root.verify_user = true;
        let bytes = policy.to_bytes();
        let check = |flags| {
            let signature = key.sign_as_security_key(NAMESPACE, &bytes, flags);
            rule(pin_first_policy(&bytes, &[signature], &policy.fleet))
        };
        assert_eq!(check(5), None);
        assert_eq!(check(1), Some(Rule::Threshold), "touched, no PIN");
        assert_eq!(check(4), Some(Rule::Threshold), "PIN, not touched");
    }

    #[test]
    fn keys_of_nodes() {
        let (ada, node) = (TestKey::new(1), TestKey::new(7));
        let (bob, root) = (TestKey::new(2), TestKey::new(3));
        let check = |audit: String, sealing: &str| {
            let mut policy = policy(1, &[&ada, &root], 1, &[("ada", &ada), ("bob", &bob)], 1);
            policy.nodes.insert("n1".parse().unwrap(), NodeKeys { audit, sealing: sealing.into() });
            let bytes = policy.to_bytes();
            rule(pin_first_policy(&bytes, &sign(&[&ada], &bytes), &policy.fleet))
        };
        let good = "0f".repeat(32);
        assert_eq!(check(node.public.to_openssh(), &good), None);
        for (key, whose) in [(&ada, "a person's and a root's"), (&bob, "a person's"), (&root, "a root's")] {
            assert_eq!(check(key.public.to_openssh(), &good), Some(Rule::Malformed), "{whose}");
        }
        assert_eq!(check("ssh-rsa AAAA".into(), &good), Some(Rule::Malformed));
        assert_eq!(check(node.public.to_openssh(), "0f"), Some(Rule::Malformed));
        assert_eq!(check(node.public.to_openssh(), &"0F".repeat(32)), Some(Rule::Malformed));
    }
}
