//! Orders that a release key signed, and that no node may accept all the same. They are about an app that is not
//! there, so that a node which accepted one would change nothing that runs.

use super::siege::no_app;
use crate::session::{Session, now};
use bulkhead_core::{
    BootId, ImageId, NodeName, OrderId, ServiceName, Timestamp,
    notice::REVOCATION_NAMESPACE,
    order::{Action, NAMESPACE, Order, Rights, Run, ServiceSpec, Target, Tool},
};
use bulkhead_wire::NodeStatus;
use std::collections::BTreeMap;

/// An order that must not be accepted although a release key signed.
pub(super) struct Forged {
    pub(super) attack: &'static str,
    pub(super) namespace: &'static str,
    pub(super) signed: Vec<u8>,
    pub(super) sent: Vec<u8>,
    /// How often the one signature is presented.
    pub(super) times: usize,
    pub(super) rule: &'static str,
}

/// Makes orders about an app that is not there.
pub(super) struct Forge<'a> {
    pub(super) session: &'a Session,
    pub(super) node: &'a NodeName,
    pub(super) status: &'a NodeStatus,
}

impl Forge<'_> {
    /// A good order to stop the app that is not there, changed.
    pub(super) fn order(&self, change: impl FnOnce(&mut Order)) -> Order {
        let issued = now();
        let place = Target::new(1, None, self.status.boot.unwrap_or(BootId([0; 32])));
        let mut order = Order {
            format: 1,
            fleet: self.session.policy.policy.fleet.clone(),
            environment: self.status.environment.clone(),
            app: no_app(),
            targets: BTreeMap::from([(self.node.clone(), place)]),
            issued,
            not_after: issued.plus_s(600),
            policy: self.status.policy_version,
            action: Action::Stop { services: vec![] },
            break_glass: None,
            message: Some("bulkhead attack".into()),
        };
        change(&mut order);
        order
    }

    fn forged(&self, attack: &'static str, rule: &'static str, change: impl FnOnce(&mut Order)) -> Forged {
        let bytes = self.order(change).to_bytes();
        Forged { attack, namespace: NAMESPACE, signed: bytes.clone(), sent: bytes, times: 1, rule }
    }

    pub(super) fn signed_well_otherwise_wrong(&self) -> Vec<Forged> {
        const HOUR_S: i64 = 3600;
        let name = self.node;
        let time = |order: &mut Order, from_s: i64, to_s: i64| {
            let at: Timestamp = now();
            (order.issued, order.not_after) = (at.plus_s(from_s), at.plus_s(to_s));
        };
        let mut all = vec![
            self.forged("an order for another fleet", "fleet", |order| {
                order.fleet = "another-fleet".parse().expect("a name");
            }),
            self.forged("an order for another environment", "environment", |order| {
                order.environment = "another-environment".parse().expect("a name");
            }),
            self.forged("an order for another node", "node", |order| {
                let place = order.targets.remove(name).expect("it was put there");
                order.targets.insert("another-node".parse().expect("a name"), place);
            }),
            self.forged("an order whose time is over", "expired", |order| time(order, -2 * HOUR_S, -HOUR_S)),
            self.forged("an order from the future", "expired", |order| time(order, HOUR_S, 2 * HOUR_S)),
            self.forged("an order that lasts a year", "expired", |order| time(order, 0, 365 * 24 * HOUR_S)),
            self.forged("an order from before the node booted", "boot", |order| {
                order.targets.insert(name.clone(), Target::new(1, None, BootId([0; 32])));
            }),
            self.forged("an order that uses all counters up", "counter", |order| {
                let place = order.targets.get_mut(name).expect("it was put there");
                place.counter = u64::MAX;
            }),
            self.forged("an order that follows another one", "previous", |order| {
                let place = order.targets.get_mut(name).expect("it was put there");
                place.previous = Some(OrderId([1; 32]));
            }),
        ];
        let good = self.order(|_| {}).to_bytes();
        let other = self.order(|order| order.app = "bulkhead-attack-2".parse().expect("a name")).to_bytes();
        let forged = |attack, namespace, sent: &[u8], rule| Forged {
            attack,
            namespace,
            signed: good.clone(),
            sent: sent.to_vec(),
            times: 1,
            rule,
        };
        all.push(forged("an order that was changed after it was signed", NAMESPACE, &other, "threshold"));
        all.push(forged("an order signed as another kind of document", REVOCATION_NAMESPACE, &good, "threshold"));
        all.push(Forged {
            signed: b"{}".to_vec(),
            ..forged("a signed document that is no order", NAMESPACE, b"{}", "malformed")
        });
        self.beyond_one_key(&mut all);
        all
    }

    /// What the environment takes more for than one release key.
    fn beyond_one_key(&self, all: &mut Vec<Forged>) {
        let Some(demands) = self.session.policy.policy.environments.get(&self.status.environment) else { return };
        let run = || Action::Run(Run::new(ImageId([0; 32]), vec![ServiceSpec::new(web(), vec!["web".into()])]));
        if demands.accepts.iter().all(|demand| demand.green > 0) {
            // With one signature: where two are demanded as well, that is what is said.
            let rule = if demands.accepts.iter().any(|demand| demand.release <= 1) { "not-green" } else { "threshold" };
            all.push(self.forged("to run an image that nobody stated green", rule, |order| {
                order.action = run();
            }));
        }
        if demands.break_glass.is_none() {
            all.push(self.forged("to break glass where the policy lets nobody", "break-glass", |order| {
                order.action = run();
                order.break_glass = Some("bulkhead attack".into());
            }));
        }
        if demands.people() > 1 {
            let start = |order: &mut Order| order.action = Action::Start { services: vec![] };
            let mut twice = self.forged("one person's signature for two", "threshold", start);
            twice.times = 2;
            all.push(twice);
        }
        if demands.lookers().is_none() {
            all.push(self.forged("to look with a tool where nobody may", "threshold", |order| {
                order.action = Action::Look(Tool {
                    service: web(),
                    image: ImageId([0; 32]),
                    command: vec!["strace".into()],
                    rights: Rights::Trace,
                    within_ms: 1000,
                });
            }));
        }
    }
}

/// A service's name.
fn web() -> ServiceName {
    "web".parse().expect("a name")
}
