//! A signed document that is no order, on its way in.

use super::{OrFail, caller::Caller, chain, failure, now, submit::courier};
use crate::{
    account,
    audit::{self, Entry, What},
    install::key_files,
    papers::{self, BringError, Brought},
    peer::Peer,
    state::Paths,
    systemd,
};
use bulkhead_core::{
    OrderId, SignedText,
    notice::NOTICE_MAX_BYTES,
    policy::{POLICY_MAX_BYTES, Policy, Role, key_blob},
};
use bulkhead_wire::{Bring, Failure, FailureKind, Paper};
use std::{collections::BTreeSet, fs};

/// Takes the document in, and puts it on record.
///
/// # Errors
/// What to tell the client.
pub(super) fn bring(
    paths: &Paths,
    peer: &mut Peer,
    bring: Bring,
    key: Option<&str>,
    caller: &Caller,
) -> Result<(), Box<Failure>> {
    let Bring { paper, signatures } = bring;
    let length = if paper == Paper::Policy { POLICY_MAX_BYTES } else { NOTICE_MAX_BYTES };
    let bytes = peer.read_stream(paper.as_str(), length).or_fail()?;
    let before = papers::policy(paths).or_fail()?;
    let id = OrderId::of(&bytes);
    let entry = |event, signers, rule, message| Entry {
        courier: key.map(|key| courier(&before, key)),
        signers,
        rule,
        message: Some(message),
        ..Entry::new(event, now(), id)
    };
    let text = String::from_utf8(bytes).map_err(|error| {
        failure(FailureKind::Request, "malformed", format!("the {} is not text: {error}", paper.as_str()))
    })?;
    let record = |brought: &Brought| {
        let message = format!("{}: {}", paper.as_str(), brought.what);
        audit::append(&paths.audit(), entry(What::Brought, brought.signers.clone(), None, message)).map(drop)
    };
    let brought = papers::bring(paths, paper, SignedText { text, signatures }, now(), &record);
    if paper == Paper::Policy {
        peer.commit();
        // Whatever came of it: one that came before may have been taken in half.
        let settled = papers::settle(paths, |policy| {
            // Whoever brought it may be whom it shuts out.
            let stays = key.is_some_and(|key| may_bring(policy, key));
            end_sessions(stays.then_some(caller.pid));
        });
        match settled {
            Err(error) if brought.is_err() => {
                systemd::eprintln_bounded(&format!("what follows from the policy: {}", chain(&error)));
            }
            settled => settled.or_fail()?,
        }
    }
    match brought {
        Ok(_) => Ok(()),
        Err(BringError::Refused(refusal)) => {
            let message = format!("{}: {}", paper.as_str(), refusal.message);
            let rule = refusal.rule.to_string();
            audit::append(&paths.audit(), entry(What::Refused, vec![], Some(rule.clone()), message)).or_fail()?;
            let mut failure = failure(FailureKind::Refused, &rule, refusal.message);
            failure.hint = refusal.hint;
            Err(failure)
        }
        Err(BringError::File(error)) => Err(error).or_fail(),
    }
}

/// Whether this key may still bring documents.
fn may_bring(policy: &Policy, key: &str) -> bool {
    policy.holders(Role::Courier).any(|(_, known)| key_blob(&known.key) == key_blob(key))
}

/// Ends every connection but one: some of them may be of keys that may not connect any more, and a gate does not know
/// which. Whoever still may comes again.
pub(crate) fn end_sessions(but: Option<i32>) {
    let accounts = key_files().map(|(account, _)| account).collect();
    account::end_sessions_for_good(&accounts, &but.map(ancestors).unwrap_or_default());
}

/// A process and those above it: the gate that asks, and its own sshd.
fn ancestors(mut pid: i32) -> BTreeSet<i32> {
    let mut all = BTreeSet::new();
    while pid > 1 && all.insert(pid) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        pid = parent.unwrap_or(0);
    }
    all
}
