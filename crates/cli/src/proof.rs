//! What is about to be signed again is taken from the orders that made it, and
//! from nothing else that a node says: a node that somebody has taken over would
//! otherwise choose what the whole fleet runs next.

use crate::{
    error::{Error, Kind, Result},
    session::Session,
};
use bulkhead_core::{EnvironmentName, FleetName, NodeName, OrderId, order::Action, policy::Policy};
use bulkhead_trust::{Accepted, Presented, verify_accepted};
use bulkhead_wire::Release;

/// Who may have signed what runs in an environment.
#[derive(Debug)]
pub struct Proof {
    policy: Policy,
    fleet: FleetName,
    environment: EnvironmentName,
}

impl Proof {
    /// By this machine's own copy of the policy.
    #[must_use]
    pub fn of(session: &Session, environment: &EnvironmentName) -> Self {
        let (policy, fleet) = (session.policy.policy.clone(), session.files.fleet.fleet.clone());
        Self { policy, fleet, environment: environment.clone() }
    }

    /// A release as the order that made it says, once the order's signatures are found good.
    ///
    /// # Errors
    /// The node sent no order, or it is not signed well enough, or not the one that it is said to be.
    pub fn release(&self, node: &NodeName, release: &Release) -> Result<Release> {
        let Release { app, number, .. } = release;
        let refused = |why: String| {
            let message = format!("release {number} of {app} on {node} is not signed again: {why}");
            Error::new(Kind::Refused, message).hint(
                "it may have been signed or stated green by a key that the policy has no more, as after `key rotate`: \
                 mark the image again with `bulkhead ci mark`, or deploy from the sources; if no key was replaced, \
                 look into that node, whose word alone is not enough",
            )
        };
        let signed = release.signed.as_ref().ok_or_else(|| refused("the node does not show its order".into()))?;
        let bytes = signed.text.as_bytes();
        let accepted = Accepted { fleet: &self.fleet, environment: &self.environment, node, app, counter: *number };
        let presented = Presented {
            bytes,
            signatures: &signed.signatures,
            statements: &release.statements,
            standing: release.standing.as_ref(),
            grant: None,
        };
        let order = verify_accepted(&presented, &self.policy, &accepted)
            .map_err(|refusal| refused(refusal.message))?
            .order
            .into_value();
        let Action::Run(run) = order.action else {
            return Err(refused("its order runs nothing".into()));
        };
        Ok(Release {
            order: OrderId::of(bytes),
            image: Some(run.image),
            services: run.services,
            source: run.source,
            origin: run.origin,
            message: order.message,
            ..release.clone()
        })
    }
}
