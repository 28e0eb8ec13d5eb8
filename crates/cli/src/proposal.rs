//! The next policy, while people sign it.
//!
//! ```text
//! policy.json, policy.json.sig             in force
//! policy.next.json, policy.next.json.sig   proposed: a file that people pass around until enough have signed
//! .bulkhead/policies/N.json                every policy that was in force, with its signatures: a node that is
//!                                          several behind takes them one after another
//! ```
//!
//! A proposal is the version after the one in force, and becomes it when enough
//! root keys of both have signed, which is what every node demands as well.

use crate::{
    Context,
    error::{Error, Kind, Result},
    session::{Answer, As, Session, identities, sign_error},
    workspace::{
        FleetFiles, POLICY, POLICY_SIGNATURES, PolicyFiles, read_if_present, read_signatures, shown, write_durably,
        write_json,
    },
};
use bulkhead_core::{
    NodeName, PersonName, SignedText,
    fleet::FleetNode,
    policy::{NAMESPACE, Policy, Role, Root},
};
use bulkhead_fleet::{
    NodeError,
    sign::{SignError, Signer},
};
use bulkhead_trust::{PublicKey, accept_policy, sshsig};
use bulkhead_wire::Paper;
use std::{collections::BTreeSet, path::PathBuf};

const NEXT: &str = "policy.next.json";
const NEXT_SIGNATURES: &str = "policy.next.json.sig";
const HISTORY: &str = ".bulkhead/policies";
/// How many policies a node may be behind: each is a question and an answer.
const BEHIND_MAX: u64 = 1000;

/// A policy that is proposed.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// Its exact bytes.
    pub bytes: Vec<u8>,
    /// The signatures it has.
    pub signatures: Vec<String>,
    /// What it says.
    pub policy: Policy,
}

/// How far one set of root keys has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// How many must.
    pub needed: u32,
    /// Who has: fingerprints, with names where the policy has them.
    pub by: Vec<String>,
    /// Who may yet.
    pub missing: Vec<String>,
}

impl Signed {
    /// Whether enough have.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.by.len() >= self.needed as usize
    }
}

/// A key as people know it: the holder's name where the policy has one, and the fingerprint.
#[must_use]
pub fn name_of(policy: &Policy, openssh: &str) -> String {
    let Ok(key) = PublicKey::parse(openssh) else { return "a key that cannot be read".into() };
    let is_same = |other: &str| PublicKey::parse(other).is_ok_and(|other| other == key);
    let holder = policy.keys.iter().find(|(_, other)| is_same(&other.key));
    match (holder, note_of(openssh)) {
        (Some((name, _)), _) => format!("{name} ({})", key.fingerprint()),
        // Its owner's own word, and no name that the policy gives.
        (None, Some(note)) => format!("{} noted as `{note}`", key.fingerprint()),
        (None, None) => key.fingerprint(),
    }
}

/// What is written after a key, if it is one word that can be a person's name.
#[must_use]
pub fn note_of(openssh: &str) -> Option<PersonName> {
    let mut words = openssh.split_whitespace().skip(2);
    let note = words.next()?.parse().ok()?;
    words.next().is_none().then_some(note)
}

/// A signer as a node names it: the holder's name, or of a root key the fingerprint, to which what is known of it is
/// added.
#[must_use]
pub fn signer_name(policy: &Policy, signer: &str) -> String {
    let mut all = policy.keys.values().map(|key| &key.key).chain(&policy.root.keys);
    let is_it = |key: &&String| PublicKey::parse(key).is_ok_and(|key| key.fingerprint() == signer);
    all.find(is_it).map_or_else(|| signer.to_owned(), |key| name_of(policy, key))
}

/// The proposal in the fleet's folder. One whose version is not the one after the policy in force is none: it is left
/// over from what has been enacted since.
///
/// # Errors
/// It cannot be read, or is none.
pub fn load(files: &FleetFiles, current: &Policy) -> Result<Option<Proposal>> {
    let path = files.directory.join(NEXT);
    let Some(text) = read_if_present(&path)? else { return Ok(None) };
    let bytes = text.replace("\r\n", "\n").into_bytes();
    let policy = Policy::parse(&bytes).map_err(|what| Error::configuration(format!("{}: {what}", shown(&path))))?;
    if policy.version != current.version + 1 {
        return Ok(None);
    }
    let signatures = read_signatures(&files.directory.join(NEXT_SIGNATURES))?.unwrap_or_default();
    Ok(Some(Proposal { bytes, signatures, policy }))
}

/// What is proposed, or else the policy in force with the next version: where a change begins.
///
/// # Errors
/// The proposal cannot be read.
pub fn base(files: &FleetFiles, current: &Policy) -> Result<Policy> {
    let open = load(files, current)?.map(|open| open.policy);
    Ok(open.unwrap_or_else(|| Policy { version: current.version + 1, ..current.clone() }))
}

/// A changed policy as a proposal that nobody has signed, and that is in no file before somebody does or [`store`]s it.
///
/// # Errors
/// The changed policy makes no sense.
pub fn propose(
    files: &FleetFiles,
    current: &Policy,
    change: impl FnOnce(&mut Policy) -> Result<()>,
) -> Result<Proposal> {
    let mut policy = base(files, current)?;
    change(&mut policy)?;
    check(&policy, files)?;
    Ok(Proposal { bytes: policy.to_bytes(), signatures: vec![], policy })
}

/// Whether the policy can be read by nodes, and leaves somebody who can still go on from it.
///
/// # Errors
/// What is wrong with it.
pub fn check(policy: &Policy, files: &FleetFiles) -> Result<()> {
    policy.check().map_err(|what| Error::configuration(format!("this policy would be refused: {what}")))?;
    bulkhead_trust::policy::check_keys(policy)
        .map_err(|refusal| Error::configuration(format!("this policy would be refused: {}", refusal.message)))?;
    if policy.fleet != files.fleet.fleet {
        return Err(Error::configuration(format!("the policy is for fleet `{}`", policy.fleet)));
    }
    if policy.holders(Role::Courier).next().is_none() {
        return Err(Error::configuration(
            "nobody could connect to bring an order or the next policy: no key has the role `courier`",
        ));
    }
    Ok(())
}

/// Puts a proposal in the place of what was proposed: signatures over that are void then.
///
/// # Errors
/// A file cannot be written.
pub fn store(files: &FleetFiles, proposal: &Proposal) -> Result<()> {
    // Signatures first: those over other bytes are worth nothing, and a document without any is what it looks like.
    write_json(&files.directory.join(NEXT_SIGNATURES), &proposal.signatures)?;
    write_durably(&files.directory.join(NEXT), &proposal.bytes)
}

/// Takes the proposal back.
///
/// # Errors
/// A file cannot be removed.
pub fn drop_it(files: &FleetFiles) -> Result<bool> {
    let mut was_there = false;
    for name in [NEXT, NEXT_SIGNATURES] {
        let path = files.directory.join(name);
        match std::fs::remove_file(&path) {
            Ok(()) => was_there = true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::during(Kind::Internal, format!("cannot remove {}", shown(&path)), &error)),
        }
    }
    Ok(was_there)
}

impl Proposal {
    /// How far each set of root keys has signed: those in force, and the proposed ones.
    #[must_use]
    pub fn signed(&self, current: &Policy) -> [Signed; 2] {
        [self.signed_by(&current.root, current), self.signed_by(&self.policy.root, &self.policy)]
    }

    fn signed_by(&self, root: &Root, names: &Policy) -> Signed {
        let found: BTreeSet<PublicKey> = self
            .signatures
            .iter()
            .filter_map(|armoured| sshsig::verify(armoured, NAMESPACE, &self.bytes).ok())
            .filter(|signer| !root.verify_user || signer.verified_user)
            .map(|signer| signer.key)
            .collect();
        let has = |key: &&String| PublicKey::parse(key).is_ok_and(|key| found.contains(&key));
        let (by, missing): (Vec<&String>, Vec<&String>) = root.keys.iter().partition(has);
        let shown = |keys: Vec<&String>| keys.into_iter().map(|key| name_of(names, key)).collect();
        Signed { needed: root.threshold, by: shown(by), missing: shown(missing) }
    }

    /// Whether it can take effect.
    #[must_use]
    pub fn is_complete(&self, current: &Policy) -> bool {
        self.signed(current).iter().all(Signed::is_enough)
    }

    /// Signs with every root key at hand, of both policies, that has not signed yet. Gives how many did.
    ///
    /// # Errors
    /// A key did not sign.
    pub async fn sign(&mut self, context: &Context, files: &FleetFiles, current: &Policy) -> Result<usize> {
        let wanted: Vec<&str> = current.root.keys.iter().chain(&self.policy.root.keys).map(String::as_str).collect();
        let signers = match Signer::find_all(&identities(context)?, wanted).await {
            Ok(signers) => signers,
            Err(SignError::NoKey { .. }) => return Ok(0),
            Err(error) => return Err(sign_error(&error)),
        };
        let mut done: BTreeSet<PublicKey> = self
            .signatures
            .iter()
            .filter_map(|armoured| Some(sshsig::verify(armoured, NAMESPACE, &self.bytes).ok()?.key))
            .collect();
        let mut count = 0;
        for signer in signers {
            if !done.insert(signer.public_key().clone()) {
                continue;
            }
            let signature = signer.sign(NAMESPACE, &self.bytes).await.map_err(|error| sign_error(&error))?;
            self.signatures.push(signature);
            count += 1;
        }
        if count > 0 {
            store(files, self)?;
        }
        Ok(count)
    }

    /// Makes it the policy in force, in this folder. Nodes take it from [`bring`].
    ///
    /// # Errors
    /// Too few root keys have signed it.
    pub fn enact(&self, files: &FleetFiles, current: &PolicyFiles) -> Result<()> {
        accept_policy(&self.bytes, &self.signatures, &current.policy).map_err(|refusal| {
            let mut error = Error::new(Kind::Refused, refusal.message);
            error.hints.extend(refusal.hint);
            error
        })?;
        // Both are in the history before either is replaced: a node may be at any of them, and whoever reads the policy
        // between the two replacements finds the signatures there.
        keep(files, &current.policy, &current.bytes, &current.signatures)?;
        keep(files, &self.policy, &self.bytes, &self.signatures)?;
        write_json(&files.directory.join(POLICY_SIGNATURES), &self.signatures)?;
        write_durably(&files.directory.join(POLICY), &self.bytes)?;
        drop_it(files).map(drop)
    }
}

fn history_path(files: &FleetFiles, version: u64) -> PathBuf {
    files.directory.join(HISTORY).join(format!("{version}.json"))
}

fn keep(files: &FleetFiles, policy: &Policy, bytes: &[u8], signatures: &[String]) -> Result<()> {
    let text = String::from_utf8(bytes.to_vec())
        .map_err(|error| Error::during(Kind::Internal, "the policy is not text", &error))?;
    write_json(&history_path(files, policy.version), &SignedText { text, signatures: signatures.to_vec() })
}

/// A policy of this folder's history, or the one in force.
fn of_version(files: &FleetFiles, current: &PolicyFiles, version: u64) -> Result<SignedText> {
    if version == current.policy.version {
        let text = String::from_utf8(current.bytes.clone())
            .map_err(|error| Error::during(Kind::Internal, "the policy is not text", &error))?;
        return Ok(SignedText { text, signatures: current.signatures.clone() });
    }
    let path = history_path(files, version);
    if matches!(path.try_exists(), Ok(false)) {
        return Err(Error::configuration(format!("version {version} of the policy is not in {HISTORY}/"))
            .hint("bring it back from version control: a node takes policies one after another"));
    }
    crate::grants::read_signed(&path)
}

/// What a node had and has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brought {
    /// The version that it enforced.
    pub before: u64,
    /// The version that it enforces now.
    pub now: u64,
}

/// Brings nodes to the policy in force, one version after another.
///
/// # Errors
/// This folder's history lacks a version that a node needs, or an SSH setting makes no sense.
pub async fn bring(session: &Session, nodes: &[(NodeName, FleetNode)]) -> Result<Vec<Answer<Brought>>> {
    let current = &session.policy;
    let asked = session
        .ask_all(nodes, As::Courier, |client| async move {
            let enforced = client.policy().await?;
            let version = Policy::parse(enforced.policy.text.as_bytes()).map_or(0, |policy| policy.version);
            Ok(version)
        })
        .await?;
    let versions = asked.iter().filter_map(|answer| answer.result.as_ref().ok().copied());
    let oldest = versions.min().unwrap_or(current.policy.version);
    if current.policy.version.saturating_sub(oldest) > BEHIND_MAX {
        return Err(Error::configuration(format!("a node is at version {oldest}: too far behind to catch up")));
    }
    let mut chain = Vec::new();
    for version in (oldest + 1).min(current.policy.version)..=current.policy.version {
        chain.push((version, of_version(&session.files, current, version)?));
    }
    let mut answers = Vec::new();
    for answer in asked {
        let node = answer.node.clone();
        let result = match answer.result {
            Err(error) => Err(error),
            Ok(before) if before > current.policy.version => Ok(Brought { before, now: before }),
            Ok(before) => {
                // The one in force also where it is there: the node may have taken it in half.
                let is_wanted = |version: u64| version > before || version == current.policy.version;
                let wanted: Vec<SignedText> =
                    chain.iter().filter(|(version, _)| is_wanted(*version)).map(|(_, signed)| signed.clone()).collect();
                let one: Vec<_> = nodes.iter().filter(|(name, _)| *name == node).cloned().collect();
                bring_chain(session, &one, wanted, before).await
            }
        };
        answers.push(Answer { node, result });
    }
    Ok(answers)
}

async fn bring_chain(
    session: &Session,
    node: &[(NodeName, FleetNode)],
    chain: Vec<SignedText>,
    before: u64,
) -> Result<Brought> {
    let now = session.policy.policy.version;
    let mut answers = session
        .ask_all(node, As::Courier, move |client| {
            let chain = chain.clone();
            async move {
                for document in &chain {
                    client.bring(Paper::Policy, document).await?;
                }
                Ok::<_, NodeError>(())
            }
        })
        .await?;
    match answers.pop() {
        Some(answer) => answer.result.map(|()| Brought { before, now }),
        None => Err(Error::new(Kind::Internal, "the node was not asked")),
    }
}
