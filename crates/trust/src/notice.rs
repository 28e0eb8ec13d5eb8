//! Which revocations, heartbeats and discharges count.

use crate::{
    Refusal, Rule, Verified,
    order::{CLOCK_SKEW_S, Context, check_time},
    policy::signed_by_roots,
    signers::{holders, signers},
};
use bulkhead_core::{
    FleetName, OrderId, Timestamp,
    notice::{
        DISCHARGE_NAMESPACE, Discharge, HEARTBEAT_NAMESPACE, Heartbeat, NOTICE_MAX_BYTES, REVOCATION_NAMESPACE,
        Revocation,
    },
    policy::{Policy, Role},
};

/// Checks a revocation: any one release key may revoke anything, a green key images and statements.
///
/// # Errors
/// The first rule that refuses.
pub fn verify_revocation(
    bytes: &[u8],
    signatures: &[String],
    policy: &Policy,
) -> Result<Verified<Revocation>, Refusal> {
    check_length(bytes, "revocation")?;
    let release = signers(bytes, signatures, REVOCATION_NAMESPACE, holders(policy, Role::Release));
    let green = signers(bytes, signatures, REVOCATION_NAMESPACE, holders(policy, Role::Green));
    let hint = || format!("release keys are held by {}", policy.names_of(Role::Release));
    if release.count() == 0 && green.count() == 0 {
        let message = format!("a revocation needs a release or green key; presented: {}", release.presented());
        return Err(Refusal::new(Rule::Threshold, message).hint(hint()));
    }
    let revocation = Revocation::parse(bytes).map_err(|what| Refusal::new(Rule::Malformed, what))?;
    check_fleet(&revocation.fleet, policy)?;
    if release.count() == 0 && !revocation.revoked.orders.is_empty() {
        let message = "a green key revokes images and statements; the revocation of an order needs a release key";
        return Err(Refusal::new(Rule::Threshold, message).hint(hint()));
    }
    let mut names = release.into_names();
    names.extend(green.into_names());
    names.sort();
    names.dedup();
    Ok(Verified::new(revocation, names))
}

/// Checks a heartbeat: of a release or green key, and not from the future, which would keep a node from getting
/// stale for as long.
///
/// # Errors
/// The first rule that refuses.
pub fn verify_heartbeat(
    bytes: &[u8],
    signatures: &[String],
    policy: &Policy,
    now: Timestamp,
) -> Result<Verified<Heartbeat>, Refusal> {
    check_length(bytes, "heartbeat")?;
    let wanted = holders(policy, Role::Release).chain(holders(policy, Role::Green));
    let found = signers(bytes, signatures, HEARTBEAT_NAMESPACE, wanted);
    if found.count() == 0 {
        let message = format!("a heartbeat needs a release or green key; presented: {}", found.presented());
        return Err(Refusal::new(Rule::Threshold, message));
    }
    let heartbeat = Heartbeat::parse(bytes).map_err(|what| Refusal::new(Rule::Malformed, what))?;
    check_fleet(&heartbeat.fleet, policy)?;
    if heartbeat.policy > policy.version {
        // To say that there is a newer policy stops what is new: the policy itself says so, once it is brought.
        let message = format!("the heartbeat tells of policy {}; this is {}", heartbeat.policy, policy.version);
        return Err(Refusal::new(Rule::PolicyVersion, message).hint("bring that first: `bulkhead policy push`"));
    }
    if heartbeat.issued > now.plus_s(CLOCK_SKEW_S) {
        let message = format!("the heartbeat was issued at {}; the node's clock says {now}", heartbeat.issued);
        return Err(Refusal::new(Rule::Expired, message).hint("compare the clocks"));
    }
    Ok(Verified::new(heartbeat, found.into_names()))
}

/// Checks that a machine is to be a node no longer: as many root keys as for a policy must say so, of this very node
/// and its present boot, and of now. Whoever could log in to it before it was a node can do so after.
///
/// # Errors
/// The first rule that refuses.
pub fn verify_discharge(
    bytes: &[u8],
    signatures: &[String],
    context: &Context<'_>,
) -> Result<Verified<Discharge>, Refusal> {
    check_length(bytes, "discharge")?;
    let whose = ("discharge", "the policy's");
    let names = signed_by_roots(bytes, signatures, &context.policy.root, DISCHARGE_NAMESPACE, whose)?;
    let id = OrderId::of(bytes);
    if [&context.policy.revoked, context.revoked].iter().any(|revoked| revoked.orders.contains(&id)) {
        return Err(Refusal::new(Rule::Revoked, "the discharge was revoked"));
    }
    let discharge = Discharge::parse(bytes).map_err(|what| Refusal::new(Rule::Malformed, what))?;
    check_fleet(&discharge.fleet, context.policy)?;
    if discharge.node != *context.node {
        let message = format!("the discharge is for `{}`; this node is `{}`", discharge.node, context.node);
        return Err(Refusal::new(Rule::Node, message));
    }
    check_time("discharge", discharge.issued, discharge.not_after, context)?;
    if discharge.boot != context.boot {
        let message = format!("the discharge was signed for an earlier boot of `{}`", context.node);
        return Err(Refusal::new(Rule::Boot, message).hint("sign it again"));
    }
    Ok(Verified::new(discharge, names))
}

fn check_length(bytes: &[u8], what: &str) -> Result<(), Refusal> {
    if bytes.len() > NOTICE_MAX_BYTES {
        return Err(Refusal::new(Rule::Malformed, format!("the {what} is longer than 256 KiB")));
    }
    Ok(())
}

fn check_fleet(fleet: &FleetName, policy: &Policy) -> Result<(), Refusal> {
    if *fleet != policy.fleet {
        let message = format!("the document is for fleet `{fleet}`; this node is of `{}`", policy.fleet);
        return Err(Refusal::new(Rule::Fleet, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{policy::tests::policy, sshsig::tests::TestKey};
    use bulkhead_core::{
        BootId, ImageId, OrderId,
        notice::Revoked,
        policy::{Key, Role, Root},
    };
    use std::collections::BTreeSet;

    fn with_green() -> (Policy, TestKey, TestKey) {
        let (ada, ci) = (TestKey::new(1), TestKey::new(3));
        let mut policy = policy(1, &[&ada], 1, &[("ada", &ada)], 1);
        let key = Key { key: ci.public.to_openssh(), roles: [Role::Green].into(), verify_user: false };
        policy.keys.insert("ci".parse().unwrap(), key);
        (policy, ada, ci)
    }

    #[test]
    fn revocations() {
        let (policy, ada, ci) = with_green();
        let stranger = TestKey::new(9);
        let image = Revoked { images: [ImageId([1; 32])].into(), ..Revoked::default() };
        let order = Revoked { orders: [OrderId([1; 32])].into(), ..Revoked::default() };
        let check = |fleet: &str, revoked: &Revoked, namespace, keys: &[&TestKey]| {
            let bytes = Revocation {
                format: 1,
                fleet: fleet.parse().unwrap(),
                issued: Timestamp(7),
                reason: "why".into(),
                revoked: revoked.clone(),
            }
            .to_bytes();
            let signatures: Vec<String> = keys.iter().map(|key| key.sign(namespace, &bytes)).collect();
            verify_revocation(&bytes, &signatures, &policy)
                .map(|verified| verified.signers().join(" "))
                .map_err(|refusal| refusal.rule)
        };
        const NAMESPACE: &str = REVOCATION_NAMESPACE;
        assert_eq!(check("acme", &image, NAMESPACE, &[&ada]).as_deref(), Ok("ada"));
        assert_eq!(check("acme", &order, NAMESPACE, &[&ada]).as_deref(), Ok("ada"));
        assert_eq!(check("acme", &image, NAMESPACE, &[&ci]).as_deref(), Ok("ci"));
        assert_eq!(check("acme", &order, NAMESPACE, &[&ci, &ada]).as_deref(), Ok("ada ci"));
        assert_eq!(check("acme", &order, NAMESPACE, &[&ci]), Err(Rule::Threshold));
        assert_eq!(check("acme", &image, NAMESPACE, &[]), Err(Rule::Threshold));
        assert_eq!(check("acme", &image, NAMESPACE, &[&stranger]), Err(Rule::Threshold));
        assert_eq!(check("acme", &image, "order@bulkhead", &[&ada]), Err(Rule::Threshold));
        assert_eq!(check("evil", &image, NAMESPACE, &[&ada]), Err(Rule::Fleet));
        assert_eq!(check("acme", &Revoked::default(), NAMESPACE, &[&ada]), Err(Rule::Malformed));
    }

    #[test]
    fn heartbeats() {
        let (policy, ada, ci) = with_green();
        let now = Timestamp(10_000);
        let check = |fleet: &str, issued: Timestamp, keys: &[&TestKey]| {
            let bytes = Heartbeat { format: 1, fleet: fleet.parse().unwrap(), issued, policy: 1 }.to_bytes();
            let signatures: Vec<String> = keys.iter().map(|key| key.sign(HEARTBEAT_NAMESPACE, &bytes)).collect();
            verify_heartbeat(&bytes, &signatures, &policy, now)
                .map(|verified| verified.value().policy)
                .map_err(|refusal| refusal.rule)
        };
        assert_eq!(check("acme", now, &[&ada]), Ok(1));
        assert_eq!(check("acme", now, &[&ci]), Ok(1));
        assert_eq!(check("acme", now.plus_s(CLOCK_SKEW_S), &[&ci]), Ok(1));
        assert_eq!(check("acme", now.plus_s(CLOCK_SKEW_S + 1), &[&ci]), Err(Rule::Expired));
        assert_eq!(check("acme", now, &[]), Err(Rule::Threshold));
        assert_eq!(check("acme", now, &[&TestKey::new(9)]), Err(Rule::Threshold));
        assert_eq!(check("evil", now, &[&ada]), Err(Rule::Fleet));
        let newer = Heartbeat { format: 1, fleet: policy.fleet.clone(), issued: now, policy: 2 }.to_bytes();
        let refusal = verify_heartbeat(&newer, &[ada.sign(HEARTBEAT_NAMESPACE, &newer)], &policy, now).unwrap_err();
        assert_eq!(refusal.rule, Rule::PolicyVersion);
    }

    #[test]
    fn discharges() {
        let (policy, ada, ci) = with_green();
        let bob = TestKey::new(2);
        let policy = Policy {
            root: Root {
                threshold: 2,
                keys: vec![ada.public.to_openssh(), bob.public.to_openssh()],
                verify_user: false,
            },
            ..policy
        };
        let (environment, node) = ("staging".parse().unwrap(), "n1".parse().unwrap());
        let (revoked, offers) = (Revoked::default(), BTreeSet::new());
        let now = Timestamp(10_000);
        let context = Context {
            fleet: &policy.fleet,
            environment: &environment,
            node: &node,
            pool: None,
            policy: &policy,
            now,
            minimum_time: Timestamp(0),
            boot: BootId([1; 32]),
            revoked: &revoked,
            heartbeat: None,
            offers: &offers,
        };
        let good = Discharge {
            format: 1,
            fleet: policy.fleet.clone(),
            node: node.clone(),
            boot: context.boot,
            issued: now,
            not_after: now.plus_s(600),
            volumes: false,
            reason: "sold".into(),
        };
        let check = |change: &dyn Fn(&mut Discharge), namespace, keys: &[&TestKey]| {
            let mut discharge = good.clone();
            change(&mut discharge);
            let bytes = discharge.to_bytes();
            let signatures: Vec<String> = keys.iter().map(|key| key.sign(namespace, &bytes)).collect();
            verify_discharge(&bytes, &signatures, &context).map(|it| it.signers().len()).map_err(|refusal| refusal.rule)
        };
        const NAMESPACE: &str = DISCHARGE_NAMESPACE;
        let as_it_is = |_: &mut Discharge| {};
        assert_eq!(check(&as_it_is, NAMESPACE, &[&ada, &bob]), Ok(2));
        for keys in [&[][..], &[&ada], &[&ada, &ada], &[&ada, &ci], &[&ada, &TestKey::new(9)]] {
            assert_eq!(check(&as_it_is, NAMESPACE, keys), Err(Rule::Threshold));
        }
        assert_eq!(check(&as_it_is, "policy@bulkhead", &[&ada, &bob]), Err(Rule::Threshold));
        let refused = |change: &dyn Fn(&mut Discharge)| check(change, NAMESPACE, &[&ada, &bob]).unwrap_err();
        assert_eq!(refused(&|it| it.fleet = "evil".parse().unwrap()), Rule::Fleet);
        assert_eq!(refused(&|it| it.node = "n2".parse().unwrap()), Rule::Node);
        assert_eq!(refused(&|it| it.boot = BootId([2; 32])), Rule::Boot);
        assert_eq!(refused(&|it| it.not_after = now), Rule::Expired);
        assert_eq!(refused(&|it| it.not_after = now.plus_s(3 * 3600)), Rule::Expired);
        assert_eq!(refused(&|it| it.issued = now.plus_s(CLOCK_SKEW_S + 1)), Rule::Expired);
        assert_eq!(refused(&|it| it.format = 2), Rule::Malformed);
        assert_eq!(refused(&|it| it.reason = String::new()), Rule::Malformed);
        let id = OrderId::of(&good.to_bytes());
        let taken_back = Revoked { orders: [id].into(), ..Revoked::default() };
        let bytes = good.to_bytes();
        let signatures = [&ada, &bob].map(|key| key.sign(NAMESPACE, &bytes));
        let by_notice = Context { revoked: &taken_back, ..context };
        assert_eq!(verify_discharge(&bytes, &signatures, &by_notice).unwrap_err().rule, Rule::Revoked);
        let stricter = Policy { revoked: taken_back.clone(), ..policy.clone() };
        let by_policy = Context { policy: &stricter, ..context };
        assert_eq!(verify_discharge(&bytes, &signatures, &by_policy).unwrap_err().rule, Rule::Revoked);
        let late = Context { minimum_time: now.plus_s(1), ..context };
        assert_eq!(verify_discharge(&bytes, &signatures, &late).unwrap_err().rule, Rule::Clock);
    }

    #[test]
    fn what_is_too_long_is_not_read() {
        let (policy, ada, _) = with_green();
        let long = vec![b' '; NOTICE_MAX_BYTES + 1];
        let sign = |namespace| vec![ada.sign(namespace, &long)];
        let revocation = verify_revocation(&long, &sign(REVOCATION_NAMESPACE), &policy).unwrap_err();
        let heartbeat = verify_heartbeat(&long, &sign(HEARTBEAT_NAMESPACE), &policy, Timestamp(0)).unwrap_err();
        for refusal in [revocation, heartbeat] {
            assert!(refusal.message.contains("longer than"), "{refusal}");
        }
        let longest = vec![b' '; NOTICE_MAX_BYTES];
        let refusal = verify_revocation(&longest, &[ada.sign(REVOCATION_NAMESPACE, &longest)], &policy).unwrap_err();
        assert!(refusal.message.contains("not a revocation"), "{refusal}");
    }
}
