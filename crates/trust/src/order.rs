//! Whether a node carries an order out.

use crate::{
    Refusal, Rule, Verified,
    policy::{presented, signers},
};
use bulkhead_core::{
    AppName, EnvironmentName, FleetName, NodeName, OrderId, Timestamp,
    order::{NAMESPACE, ORDER_MAX_BYTES, Order},
    policy::{Policy, Role},
};

/// How far ahead of the node's clock an order may have been issued: clocks of
/// operators' machines differ by minutes, not by hours.
pub const CLOCK_SKEW_S: i64 = 600;

/// How long an order may last, whatever its signer wrote: one that was captured before it was used, or comes to a
/// machine that was put back to a snapshot, is a danger for no longer.
pub const LIFETIME_MAX_S: i64 = 2 * 3600;

/// Who decides: the node and the policy that it pinned.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The node's fleet.
    pub fleet: &'a FleetName,
    /// Its environment.
    pub environment: &'a EnvironmentName,
    /// Its name.
    pub node: &'a NodeName,
    /// The policy it enforces.
    pub policy: &'a Policy,
    /// Its clock.
    pub now: Timestamp,
    /// The latest time it has ever known, kept on disk: a clock before it has gone back.
    pub minimum_time: Timestamp,
}

/// Where the app stands on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Counter of the last accepted order; 0 where there was none.
    pub counter: u64,
    /// That order.
    pub previous: Option<OrderId>,
}

/// Checks an order's signatures over its exact bytes, then everything it says
/// about whom it is for and when. `standing` gives where the order's app stands
/// on this node; it is asked only once the signatures are good.
///
/// # Errors
/// The first rule that refuses.
pub fn authorize_order(
    bytes: &[u8],
    signatures: &[String],
    context: &Context<'_>,
    standing: impl FnOnce(&AppName) -> Standing,
) -> Result<Verified<Order>, Refusal> {
    let signers = signed_enough(bytes, signatures, context.policy, context.environment)?;
    let order = Order::parse(bytes).map_err(|error| Refusal::new(Rule::Malformed, error.to_string()))?;
    check_address(&order, context.fleet, context.environment, context.node)?;
    check_time(&order, context)?;
    check_standing(&order, context, standing(&order.app))?;
    Ok(Verified::new(order, signers))
}

/// Checks an order that a node says it accepted, before anything of it is signed again: that by the policy of
/// today its exact bytes are signed well enough, and that it is what the node says it is. Its time is over and says nothing.
///
/// # Errors
/// The first rule that refuses.
pub fn verify_accepted(
    bytes: &[u8],
    signatures: &[String],
    policy: &Policy,
    accepted: &Accepted<'_>,
) -> Result<Verified<Order>, Refusal> {
    let signers = signed_enough(bytes, signatures, policy, accepted.environment)?;
    let order = Order::parse(bytes).map_err(|error| Refusal::new(Rule::Malformed, error.to_string()))?;
    check_address(&order, accepted.fleet, accepted.environment, accepted.node)?;
    if order.app != *accepted.app {
        let message = format!("the order is for app `{}`, not `{}`", order.app, accepted.app);
        return Err(Refusal::new(Rule::Malformed, message));
    }
    let counter = order.targets[accepted.node].counter;
    if counter != accepted.counter {
        let message = format!("the order is number {counter} there, not {}", accepted.counter);
        return Err(Refusal::new(Rule::Counter, message));
    }
    Ok(Verified::new(order, signers))
}

/// What a node says of an order that it accepted.
#[derive(Debug, Clone, Copy)]
pub struct Accepted<'a> {
    /// The fleet.
    pub fleet: &'a FleetName,
    /// The node's environment.
    pub environment: &'a EnvironmentName,
    /// The node.
    pub node: &'a NodeName,
    /// The app.
    pub app: &'a AppName,
    /// The order's counter there.
    pub counter: u64,
}

/// Who signed it, where they are enough.
fn signed_enough(
    bytes: &[u8],
    signatures: &[String],
    policy: &Policy,
    environment: &EnvironmentName,
) -> Result<Vec<String>, Refusal> {
    if bytes.len() > ORDER_MAX_BYTES {
        return Err(Refusal::new(Rule::Malformed, "the order is longer than 256 KiB"));
    }
    let holders = policy.holders(Role::Release).map(|(name, key)| (name.to_string(), key));
    let (found, notes) = signers(bytes, signatures, NAMESPACE, holders);
    let Some(demand) = policy.environments.get(environment) else {
        let message = format!("the policy (version {}) has no environment `{environment}`", policy.version);
        return Err(Refusal::new(Rule::Environment, message).hint("add it to the policy and have the roots sign it"));
    };
    if found.len() < demand.release as usize {
        let names: Vec<&str> = policy.holders(Role::Release).map(|(name, _)| name.as_str()).collect();
        let message = format!(
            "an order for `{}` needs {} distinct release key{}; presented: {}",
            environment,
            demand.release,
            if demand.release == 1 { "" } else { "s" },
            presented(&found, &notes)
        );
        return Err(
            Refusal::new(Rule::Threshold, message).hint(format!("release keys are held by {}", names.join(", ")))
        );
    }
    Ok(found.into_values().collect())
}

fn check_address(
    order: &Order,
    fleet: &FleetName,
    environment: &EnvironmentName,
    node: &NodeName,
) -> Result<(), Refusal> {
    if order.fleet != *fleet {
        let message = format!("the order is for fleet `{}`; this node is of `{fleet}`", order.fleet);
        return Err(Refusal::new(Rule::Fleet, message));
    }
    if order.environment != *environment {
        let message = format!("the order is for environment `{}`; this node is of `{environment}`", order.environment);
        return Err(Refusal::new(Rule::Environment, message));
    }
    if !order.targets.contains_key(node) {
        let named: Vec<&str> = order.targets.keys().take(5).map(NodeName::as_str).collect();
        let message = format!("the order is for {}; this node is `{node}`", named.join(", "));
        return Err(Refusal::new(Rule::Node, message));
    }
    Ok(())
}

fn check_time(order: &Order, context: &Context<'_>) -> Result<(), Refusal> {
    if context.now < context.minimum_time {
        let message = format!("the node's clock says {}, but it has known {}", context.now, context.minimum_time);
        return Err(Refusal::new(Rule::Clock, message).hint("set the node's clock right"));
    }
    if order.not_after <= context.now {
        let message = format!("the order expired at {}; the node's clock says {}", order.not_after, context.now);
        return Err(Refusal::new(Rule::Expired, message).hint("sign it again, or compare the clocks"));
    }
    if order.not_after.0.saturating_sub(order.issued.0) > LIFETIME_MAX_S {
        let message = format!("the order was issued at {} to last until {}", order.issued, order.not_after);
        return Err(Refusal::new(Rule::Expired, message).hint("an order lasts two hours at most; sign it again"));
    }
    if order.issued > context.now.plus_s(CLOCK_SKEW_S) {
        let message = format!("the order was issued at {}; the node's clock says {}", order.issued, context.now);
        return Err(Refusal::new(Rule::Expired, message).hint("compare the clocks"));
    }
    Ok(())
}

fn check_standing(order: &Order, context: &Context<'_>, standing: Standing) -> Result<(), Refusal> {
    let target = &order.targets[context.node];
    if standing.counter.checked_add(1) != Some(target.counter) {
        let message = format!(
            "the order is number {} for `{}` here; the last accepted was {}",
            target.counter, order.app, standing.counter
        );
        return Err(Refusal::new(Rule::Counter, message).hint("another order came first, or this one was used already"));
    }
    if target.previous != standing.previous {
        let name = |id: Option<OrderId>| id.map_or_else(|| "none".into(), |id| id.short());
        let message = format!(
            "the order follows order {}; the last accepted for `{}` was {}",
            name(target.previous),
            order.app,
            name(standing.previous)
        );
        return Err(Refusal::new(Rule::Previous, message).hint("look at what was deployed since, then sign again"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{policy::tests::policy, sshsig::tests::TestKey};
    use bulkhead_core::order::{Action, Target};

    const NOW: Timestamp = Timestamp(1_000_000);

    fn order() -> Order {
        Order {
            format: 1,
            fleet: "acme".parse().unwrap(),
            environment: "staging".parse().unwrap(),
            app: "notes".parse().unwrap(),
            targets: [("n1".parse().unwrap(), Target { counter: 5, previous: Some(OrderId([5; 32])) })].into(),
            issued: NOW,
            not_after: NOW.plus_s(600),
            action: Action::Stop { services: vec![] },
            message: None,
        }
    }

    #[test]
    fn an_order_lasts_two_hours_at_most() {
        let check = |seconds: i64, allowed: bool| {
            let order = Order { not_after: NOW.plus_s(seconds), ..order() };
            let result = Case { order, ..Case::new() }.run();
            assert_eq!(result.is_ok(), allowed, "{result:?}");
        };
        check(LIFETIME_MAX_S, true);
        check(LIFETIME_MAX_S + 1, false);
        check(i64::MAX - NOW.0, false);
    }

    #[test]
    fn what_a_node_says_it_accepted() {
        let (ada, stranger) = (TestKey::new(1), TestKey::new(9));
        let policy = policy(1, &[&ada], 1, &[("ada", &ada)], 1);
        let (fleet, environment) = ("acme".parse().unwrap(), "staging".parse().unwrap());
        let (node, app) = ("n1".parse().unwrap(), "notes".parse().unwrap());
        let accepted = Accepted { fleet: &fleet, environment: &environment, node: &node, app: &app, counter: 5 };
        let bytes = order().to_bytes();
        let good = [ada.sign(NAMESPACE, &bytes)];
        let check = |bytes: &[u8], signatures: &[String], accepted: &Accepted<'_>| {
            verify_accepted(bytes, signatures, &policy, accepted).map_err(|refusal| refusal.rule)
        };
        // Long after it has expired.
        assert_eq!(check(&bytes, &good, &accepted).unwrap().value(), &order());
        assert_eq!(check(&bytes, &[], &accepted), Err(Rule::Threshold));
        assert_eq!(check(&bytes, &[stranger.sign(NAMESPACE, &bytes)], &accepted), Err(Rule::Threshold));
        assert_eq!(check(&bytes, &[ada.sign("file", &bytes)], &accepted), Err(Rule::Threshold));
        let other = Order { message: Some("altered".into()), ..order() }.to_bytes();
        assert_eq!(check(&other, &good, &accepted), Err(Rule::Threshold));
        assert_eq!(check(&bytes, &good, &Accepted { counter: 4, ..accepted }), Err(Rule::Counter));
        let (another_node, another_app) = ("n2".parse().unwrap(), "other".parse().unwrap());
        assert_eq!(check(&bytes, &good, &Accepted { node: &another_node, ..accepted }), Err(Rule::Node));
        assert_eq!(check(&bytes, &good, &Accepted { app: &another_app, ..accepted }), Err(Rule::Malformed));
        let another_fleet = "evil".parse().unwrap();
        assert_eq!(check(&bytes, &good, &Accepted { fleet: &another_fleet, ..accepted }), Err(Rule::Fleet));
    }

    /// An order through a node `n1` of 1-of-2 (or so) release keys, with what the case changes.
    struct Case {
        order: Order,
        signers: Vec<u8>,
        demand: u32,
        standing: Standing,
        now: Timestamp,
        minimum_time: Timestamp,
        namespace: &'static str,
        tamper: fn(&mut Vec<u8>),
    }

    impl Case {
        fn new() -> Self {
            Self {
                order: order(),
                signers: vec![1],
                demand: 1,
                standing: Standing { counter: 4, previous: Some(OrderId([5; 32])) },
                now: NOW,
                minimum_time: NOW,
                namespace: NAMESPACE,
                tamper: |_| {},
            }
        }

        fn run(self) -> Result<Verified<Order>, Refusal> {
            let (ada, bob) = (TestKey::new(1), TestKey::new(2));
            let policy = policy(1, &[&ada], 1, &[("ada", &ada), ("bob", &bob)], self.demand);
            let mut bytes = self.order.to_bytes();
            let signatures: Vec<String> =
                self.signers.iter().map(|seed| TestKey::new(*seed).sign(self.namespace, &bytes)).collect();
            (self.tamper)(&mut bytes);
            let context = Context {
                fleet: &"acme".parse().unwrap(),
                environment: &"staging".parse().unwrap(),
                node: &"n1".parse().unwrap(),
                policy: &policy,
                now: self.now,
                minimum_time: self.minimum_time,
            };
            authorize_order(&bytes, &signatures, &context, |_| self.standing)
        }
    }

    fn check(change: impl FnOnce(&mut Case), expected: Result<&[&str], (Rule, &str)>) {
        let mut case = Case::new();
        change(&mut case);
        match (case.run(), expected) {
            (Ok(verified), Ok(signers)) => assert_eq!(verified.signers(), signers),
            (Err(refusal), Err((rule, words))) => {
                assert_eq!(refusal.rule, rule, "{refusal}");
                assert!(refusal.message.contains(words), "{refusal}");
            }
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn accepted() {
        check(|_| {}, Ok(&["ada"]));
        check(|case| case.signers = vec![1, 2], Ok(&["ada", "bob"]));
        check(|case| case.now = NOW.plus_s(599), Ok(&["ada"]));
        check(|case| case.order.issued = NOW.plus_s(CLOCK_SKEW_S), Ok(&["ada"]));
        check(
            |case| {
                case.standing = Standing::default();
                case.order.targets.insert("n1".parse().unwrap(), Target { counter: 1, previous: None });
            },
            Ok(&["ada"]),
        );
    }

    #[test]
    fn signatures() {
        check(|case| case.signers.clear(), Err((Rule::Threshold, "presented: no signature")));
        check(|case| case.signers = vec![9], Err((Rule::Threshold, "has no such role here")));
        check(|case| case.namespace = "policy@bulkhead", Err((Rule::Threshold, "documents of kind")));
        check(|case| case.tamper = |bytes| bytes.push(b' '), Err((Rule::Threshold, "does not match the document")));
        check(|case| (case.demand, case.signers) = (2, vec![1]), Err((Rule::Threshold, "2 distinct release keys")));
        check(|case| (case.demand, case.signers) = (2, vec![1, 1]), Err((Rule::Threshold, "2 distinct release keys")));
        check(|case| (case.demand, case.signers) = (2, vec![1, 9]), Err((Rule::Threshold, "2 distinct release keys")));
    }

    #[test]
    fn whom_it_is_for() {
        check(|case| case.order.fleet = "other".parse().unwrap(), Err((Rule::Fleet, "fleet `other`")));
        check(|case| case.order.environment = "production".parse().unwrap(), Err((Rule::Environment, "`production`")));
        check(
            |case| {
                let target = case.order.targets.pop_first().unwrap().1;
                case.order.targets.insert("n2".parse().unwrap(), target);
            },
            Err((Rule::Node, "for n2; this node is `n1`")),
        );
    }

    #[test]
    fn replays_and_forks() {
        check(|case| case.standing.counter = 5, Err((Rule::Counter, "number 5")));
        check(|case| case.standing.counter = 6, Err((Rule::Counter, "last accepted was 6")));
        check(|case| case.standing.counter = 3, Err((Rule::Counter, "last accepted was 3")));
        check(|case| case.standing.counter = u64::MAX, Err((Rule::Counter, "number 5")));
        check(|case| case.standing.previous = Some(OrderId([6; 32])), Err((Rule::Previous, "follows order 0505")));
        check(|case| case.standing.previous = None, Err((Rule::Previous, "was none")));
    }

    #[test]
    fn times() {
        check(|case| case.now = NOW.plus_s(600), Err((Rule::Expired, "expired at")));
        check(|case| case.order.issued = NOW.plus_s(CLOCK_SKEW_S + 1), Err((Rule::Expired, "issued at")));
        check(|case| case.minimum_time = NOW.plus_s(1), Err((Rule::Clock, "has known")));
    }
}
