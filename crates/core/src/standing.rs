//! Standing orders: what a person allows in advance. Where an environment
//! accepts "green and a standing order", a green key may sign orders for an
//! app by itself, as long as a release key's standing order covers them: which
//! app and nodes, exactly which sandbox, until when, how often. Only the image
//! is left open, and that must be green.
//!
//! A JSON document, signed as SSHSIG in the namespace [`NAMESPACE`]. Each node
//! counts its uses by itself.

use crate::{
    digest::OrderId,
    name::{AppName, EnvironmentName, FleetName, NodeName},
    order::{Order, Run, ServiceSpec, check_services},
    signed::document_bytes,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// SSHSIG namespace of standing orders.
pub const NAMESPACE: &str = "standing@bulkhead";
/// The largest standing order that anyone reads.
pub const STANDING_MAX_BYTES: usize = 256 << 10;
/// How long one may last: who forgets one is rid of it after a year.
pub const LIFETIME_MAX_S: i64 = 366 * 24 * 3600;

/// What is allowed in advance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StandingOrder {
    /// Version of this format: 1.
    pub format: u32,
    /// The fleet it is for.
    pub fleet: FleetName,
    /// The environment it is for.
    pub environment: EnvironmentName,
    /// The app it is about.
    pub app: AppName,
    /// The nodes it is for; all of the environment where empty.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub nodes: BTreeSet<NodeName>,
    /// The services, each with its whole sandbox: an order must have exactly these.
    pub services: Vec<ServiceSpec>,
    /// When it was made, by the signer's clock.
    pub issued: Timestamp,
    /// From when on it allows nothing.
    pub not_after: Timestamp,
    /// How many orders it covers on each node.
    pub uses_max: u32,
}

impl StandingOrder {
    /// Reads a standing order from its exact bytes. Verify signatures before calling this.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let standing: Self = serde_json::from_slice(bytes).map_err(|error| format!("not a standing order: {error}"))?;
        standing.check()?;
        Ok(standing)
    }

    /// Its id: sha256 of its exact bytes.
    #[must_use]
    pub fn id(bytes: &[u8]) -> OrderId {
        OrderId::of(bytes)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.format != 1 {
            return Err(format!("standing order format {} is not known here", self.format));
        }
        if self.uses_max == 0 {
            return Err("it covers no order at all".into());
        }
        if self.not_after <= self.issued || self.not_after.0.saturating_sub(self.issued.0) > LIFETIME_MAX_S {
            return Err("it lasts at most a year".into());
        }
        check_services(&self.services)
    }

    /// The bytes to sign.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        document_bytes(self)
    }

    /// Whether it covers this order's run on this node at this time. Its uses are for whoever counts them.
    ///
    /// # Errors
    /// What it does not cover, in a sentence.
    pub fn covers(&self, order: &Order, run: &Run, node: &NodeName, now: Timestamp) -> Result<(), String> {
        if self.fleet != order.fleet || self.environment != order.environment || self.app != order.app {
            return Err(format!(
                "the standing order is for `{}` in `{}` of fleet `{}`",
                self.app, self.environment, self.fleet
            ));
        }
        if !self.nodes.is_empty() && !self.nodes.contains(node) {
            return Err(format!("the standing order is not for node `{node}`"));
        }
        if self.not_after <= now {
            return Err(format!("the standing order ended at {}", self.not_after));
        }
        if self.services != run.services {
            return Err("the standing order is for services with other settings".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        digest::{BootId, ImageId},
        order::{Action, Target, tests::service},
    };

    fn standing() -> StandingOrder {
        StandingOrder {
            format: 1,
            fleet: "acme".parse().unwrap(),
            environment: "staging".parse().unwrap(),
            app: "notes".parse().unwrap(),
            nodes: BTreeSet::new(),
            services: vec![service()],
            issued: Timestamp(0),
            not_after: Timestamp(1000),
            uses_max: 3,
        }
    }

    fn order() -> Order {
        let run = Run {
            image: ImageId([7; 32]),
            services: vec![service()],
            source: None,
            origin: None,
            fallback: BTreeSet::new(),
        };
        Order {
            format: 1,
            fleet: "acme".parse().unwrap(),
            environment: "staging".parse().unwrap(),
            app: "notes".parse().unwrap(),
            targets: [("n1".parse().unwrap(), Target::new(1, None, BootId([9; 32])))].into(),
            issued: Timestamp(0),
            not_after: Timestamp(600),
            policy: 1,
            action: Action::Run(run),
            break_glass: None,
            message: None,
        }
    }

    #[test]
    fn bytes_and_back() {
        assert_eq!(StandingOrder::parse(&standing().to_bytes()), Ok(standing()));
    }

    #[test]
    fn what_is_refused() {
        let check = |change: fn(&mut StandingOrder), words: &str| {
            let mut standing = standing();
            change(&mut standing);
            let error = StandingOrder::parse(&standing.to_bytes()).unwrap_err();
            assert!(error.contains(words), "{error}");
        };
        check(|standing| standing.format = 2, "format 2");
        check(|standing| standing.uses_max = 0, "no order at all");
        check(|standing| standing.not_after = Timestamp(0), "at most a year");
        check(|standing| standing.not_after = Timestamp(LIFETIME_MAX_S + 1), "at most a year");
        check(|standing| standing.services.clear(), "1 to 64 services");
        check(|standing| standing.services[0].port = Some(0), "port 0");
        let longest = StandingOrder { not_after: Timestamp(LIFETIME_MAX_S), ..standing() };
        assert_eq!(longest.check(), Ok(()));
    }

    #[test]
    fn what_it_covers() {
        let check = |change: fn(&mut StandingOrder, &mut Order, &mut Timestamp), words: Option<&str>| {
            let (mut standing, mut order, mut now) = (standing(), order(), Timestamp(999));
            change(&mut standing, &mut order, &mut now);
            let Action::Run(run) = &order.action else { panic!("it runs") };
            match (standing.covers(&order, run, &"n1".parse().unwrap(), now), words) {
                (Ok(()), None) => {}
                (Err(error), Some(words)) => assert!(error.contains(words), "{error}"),
                (got, words) => panic!("{got:?} instead of {words:?}"),
            }
        };
        check(|_, _, _| {}, None);
        check(|standing, _, _| standing.nodes = ["n1".parse().unwrap()].into(), None);
        check(|standing, _, _| standing.nodes = ["n2".parse().unwrap()].into(), Some("not for node"));
        check(|_, _, now| *now = Timestamp(1000), Some("ended"));
        check(|_, order, _| order.fleet = "evil".parse().unwrap(), Some("of fleet"));
        check(|_, order, _| order.environment = "production".parse().unwrap(), Some("in `staging`"));
        check(|_, order, _| order.app = "other".parse().unwrap(), Some("for `notes`"));
        check(|standing, _, _| drop(standing.services[0].env.insert("A".into(), "b".into())), Some("other settings"));
        check(
            |_, order, _| {
                let Action::Run(run) = &mut order.action else { return };
                run.image = ImageId([8; 32]);
            },
            None,
        );
    }
}
