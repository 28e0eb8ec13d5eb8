//! The node's last order: to be a node no longer.

use super::{OrFail, failure, now, submit::courier};
use crate::{
    audit::{self, Entry, What},
    durable,
    papers::{self, Papers},
    peer::Peer,
    state::{self, Paths},
    systemd,
};
use bulkhead_core::{OrderId, notice::NOTICE_MAX_BYTES};
use bulkhead_trust::{notice::verify_discharge, order::Context};
use bulkhead_wire::{Failure, FailureKind};
use std::collections::BTreeSet;

/// Takes the discharge and begins what it says. That ends this keeper too, some moments later.
///
/// # Errors
/// What to tell the client.
pub(super) fn discharge(
    paths: &Paths,
    peer: &mut Peer,
    signatures: &[String],
    key: Option<&str>,
) -> Result<(), Box<Failure>> {
    refuse_while_under_way(paths)?;
    let bytes = peer.read_stream("discharge", NOTICE_MAX_BYTES).or_fail()?;
    let identity = state::identity(paths).or_fail()?;
    let Papers { policy, revoked, heartbeat } = papers::load(paths).or_fail()?;
    // It starts nothing, so nothing that the node offers is asked for.
    let offers = BTreeSet::new();
    let context = Context {
        fleet: &identity.fleet,
        environment: &identity.environment,
        node: &identity.node,
        pool: identity.pool.as_ref(),
        policy: &policy,
        now: now(),
        minimum_time: state::minimum_time(paths).or_fail()?,
        boot: state::boot(paths).or_fail()?,
        revoked: &revoked,
        heartbeat: heartbeat.as_ref(),
        offers: &offers,
    };
    let result = verify_discharge(&bytes, signatures, &context);
    let (event, signers, rule, message) = match &result {
        Ok(verified) => {
            let discharge = verified.value();
            let volumes = if discharge.volumes { "deleted" } else { "kept" };
            let message = format!("discharge: {}; volumes are {volumes}", discharge.reason);
            (What::Accepted, verified.signers().to_vec(), None, message)
        }
        Err(refusal) => {
            (What::Refused, vec![], Some(refusal.rule.to_string()), format!("discharge: {}", refusal.message))
        }
    };
    let entry = Entry {
        courier: key.map(|key| courier(&policy, key)),
        signers,
        rule,
        message: Some(message),
        ..Entry::new(event, now(), OrderId::of(&bytes))
    };
    // On record before it counts, though the record goes with the node. Clients fetch the log before they bring this, so
    // only of one that comes to nothing is this entry seen.
    audit::append(&paths.audit(), entry).or_fail()?;
    let verified = result.map_err(|refusal| {
        let mut failure = failure(FailureKind::Refused, &refusal.rule.to_string(), refusal.message);
        failure.hint = refusal.hint;
        failure
    })?;
    peer.commit();
    let volumes = if verified.value().volumes { "delete" } else { "keep" };
    // From here on a boot finishes what a power cut broke off.
    if !durable::create(&paths.discharging(), volumes.as_bytes()).or_fail()? {
        // Another was accepted meanwhile.
        return refuse_while_under_way(paths);
    }
    let unit = format!("bulkhead-discharge@{volumes}.service");
    systemd::systemctl(&["start", "--no-block", &unit]).map(drop).or_fail().inspect_err(|_| {
        // Nothing has begun, and whoever asked is told so: the node goes on. Should this fail too, a boot finishes it.
        durable::remove(&paths.discharging()).ok();
    })
}

/// Nothing is started any more on a node that is being given back, and it is given back once.
///
/// # Errors
/// It is.
pub(super) fn refuse_while_under_way(paths: &Paths) -> Result<(), Box<Failure>> {
    if !paths.discharging().exists() {
        return Ok(());
    }
    Err(failure(FailureKind::Node, "discharging", "the node is being given back: it takes nothing more"))
}
