//! What a node was brought that is no order: its policy, revocations,
//! heartbeats, statements about images. Each is kept exactly as it was signed.
//!
//! ```text
//! policy/lock                   flock; held while any of these is changed
//! policy/signed.json            the policy that is enforced
//! policy/revocations/ID.json    what must not be started, as release and green keys said since that policy
//! policy/heartbeat.json         the newest
//! policy/ending                 there while sessions of keys that were taken away may still be open
//! policy/statements/IMAGE/ID.json
//! ```
//!
//! Invariants:
//! - One file holds a document and its signatures, so replacing it is one rename.
//! - Of a document only those signatures are kept that count.
//! - A revocation stays, whoever's key goes: to forbid is not undone by a change of keys. Once a policy lists the
//!   same, its file goes.
//! - The policy decides who may connect: the accounts' key files follow from it, and are brought in line again by
//!   the next boot where a crash came between.

use crate::{
    durable::{self, FileError},
    install::{authorized_keys, key_files},
    state::Paths,
};
use bulkhead_core::{
    ImageId, SignedText, Timestamp,
    digest::{hex, sha256},
    notice::{HEARTBEAT_NAMESPACE, Heartbeat, REVOCATION_NAMESPACE, REVOKED_MAX, Revocation, Revoked},
    policy::{NAMESPACE as POLICY_NAMESPACE, Policy, key_blob},
    statement::{NAMESPACE as STATEMENT_NAMESPACE, STATEMENTS_MAX},
};
use bulkhead_trust::{
    PublicKey, Refusal, Rule, accept_policy,
    green::verify_statement,
    notice::{verify_heartbeat, verify_revocation},
    signers::SIGNATURES_MAX,
    sshsig,
};
use bulkhead_wire::{Enforced, Paper};
use rustix::fs::{FlockOperation, flock};
use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Images about which a node keeps statements: more than it ever holds. Beyond, the oldest go.
const STATED_IMAGES_MAX: usize = 1024;
/// sshd reads an account's keys with the account's own rights.
const KEY_FILE_MODE: u32 = 0o644;

/// All that decides what a node may start.
#[derive(Debug)]
pub struct Papers {
    /// The policy that it enforces. It was verified when it was pinned.
    pub policy: Policy,
    /// What revocations since say.
    pub revoked: Revoked,
    /// The newest heartbeat.
    pub heartbeat: Option<Heartbeat>,
}

/// What was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brought {
    /// Who signed it.
    pub signers: Vec<String>,
    /// What it says, on a line.
    pub what: String,
    /// Whether it was known before.
    pub already: bool,
}

/// Why a document was not taken in.
#[derive(Debug)]
pub enum BringError {
    /// A rule refuses it.
    Refused(Box<Refusal>),
    /// The node could not.
    File(FileError),
}

impl From<FileError> for BringError {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl From<Refusal> for BringError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

fn directory(paths: &Paths) -> PathBuf {
    paths.state.join("policy")
}

fn signed(path: &Path) -> Result<Option<SignedText>, FileError> {
    durable::read_json(path)
}

fn make_private(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(FileError::io("create", path))
}

fn name(text: &str) -> String {
    format!("{}.json", hex(&sha256(text.as_bytes())))
}

fn damaged(path: &Path, what: impl Into<String>) -> FileError {
    FileError::Damaged { path: path.into(), what: what.into() }
}

/// The policy that the node enforces.
///
/// # Errors
/// There is none, or it is damaged.
pub fn policy(paths: &Paths) -> Result<Policy, FileError> {
    let path = directory(paths).join("signed.json");
    let text = signed_policy(paths)?.text;
    Policy::parse(text.as_bytes()).map_err(|what| damaged(&path, what))
}

fn signed_policy(paths: &Paths) -> Result<SignedText, FileError> {
    let path = directory(paths).join("signed.json");
    signed(&path)?.ok_or_else(|| damaged(&path, "there is none: no order can be verified"))
}

/// Everything that decides about orders.
///
/// # Errors
/// A part of it cannot be read: then nothing can be decided.
pub fn load(paths: &Paths) -> Result<Papers, FileError> {
    let mut revoked = Revoked::default();
    for (path, text) in revocations(paths)? {
        let revocation = Revocation::parse(text.text.as_bytes()).map_err(|what| damaged(&path, what))?;
        revoked.extend(&revocation.revoked);
    }
    Ok(Papers { policy: policy(paths)?, revoked, heartbeat: heartbeat(paths)? })
}

fn heartbeat(paths: &Paths) -> Result<Option<Heartbeat>, FileError> {
    let path = directory(paths).join("heartbeat.json");
    let parse = |signed: SignedText| Heartbeat::parse(signed.text.as_bytes()).map_err(|what| damaged(&path, what));
    signed(&path)?.map(parse).transpose()
}

fn revocations(paths: &Paths) -> Result<Vec<(PathBuf, SignedText)>, FileError> {
    let mut all = Vec::new();
    for path in listed(&directory(paths).join("revocations"))? {
        all.extend(signed(&path)?.map(|signed| (path, signed)));
    }
    Ok(all)
}

/// The documents in a directory, in the order of their names; none where there is no directory.
fn listed(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(source) => return Err(FileError::Io { operation: "list", path: directory.into(), source }),
    };
    let mut paths = Vec::new();
    for entry in entries {
        // One that cannot be looked at may be the revocation that matters.
        let path = entry.map_err(FileError::io("list", directory))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// All of it as it was signed, for a client.
///
/// # Errors
/// A part of it cannot be read.
pub fn enforced(paths: &Paths) -> Result<Enforced, FileError> {
    Ok(Enforced {
        policy: signed_policy(paths)?,
        revocations: revocations(paths)?.into_iter().map(|(_, signed)| signed).collect(),
        heartbeat: signed(&directory(paths).join("heartbeat.json"))?,
    })
}

/// What was stated about an image.
///
/// # Errors
/// It cannot be read.
pub fn statements(paths: &Paths, image: ImageId) -> Result<Vec<SignedText>, FileError> {
    let mut all = Vec::new();
    for path in listed(&directory(paths).join("statements").join(image.to_string()))? {
        all.extend(signed(&path)?);
    }
    Ok(all)
}

/// Puts on record what is about to be taken in: without that it is not.
pub type Record<'a> = dyn Fn(&Brought) -> Result<(), FileError> + 'a;

/// The right to change what is here; given up when dropped.
struct Lock(#[expect(dead_code, reason = "it is the open file that holds the lock")] File);

fn lock(paths: &Paths) -> Result<Lock, FileError> {
    let path = directory(paths).join("lock");
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(FileError::io("open", &path))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|error| FileError::io("lock", &path)(error.into()))?;
    Ok(Lock(file))
}

/// Takes a document in, if the policy lets it count. `record` is asked once it is known to count, and before it does;
/// of a heartbeat it is not asked, for it tells of nothing but that all is well.
///
/// # Errors
/// A rule refuses it, or it cannot be written.
pub fn bring(
    paths: &Paths,
    paper: Paper,
    document: SignedText,
    now: Timestamp,
    record: &Record<'_>,
) -> Result<Brought, BringError> {
    let _lock = lock(paths)?;
    match paper {
        Paper::Policy => bring_policy(paths, document, record),
        Paper::Revocation => bring_revocation(paths, document, record),
        Paper::Heartbeat => bring_heartbeat(paths, document, now),
        Paper::Statement => bring_statement(paths, document, now, record),
    }
}

/// Brings the key files in line with the policy, and has sessions ended where that is still to be done: after a boot or
/// a keeper's death, and with every policy that comes. `end` is given the policy.
///
/// # Errors
/// The policy cannot be read, or a key file not be written.
pub fn settle(paths: &Paths, end: impl FnOnce(&Policy)) -> Result<(), FileError> {
    // What is written must be of the policy that is in force by then, and not of one that was read before another came.
    let _lock = lock(paths)?;
    let policy = policy(paths)?;
    follow(paths, &policy)?;
    if ending(paths).exists() {
        end(&policy);
        durable::remove(&ending(paths))?;
    }
    Ok(())
}

fn bring_policy(paths: &Paths, document: SignedText, record: &Record<'_>) -> Result<Brought, BringError> {
    let path = directory(paths).join("signed.json");
    let pinned = signed_policy(paths)?;
    let pinned_policy = Policy::parse(pinned.text.as_bytes()).map_err(|what| damaged(&path, what))?;
    if pinned.text == document.text {
        return Ok(Brought { signers: vec![], what: format!("version {}", pinned_policy.version), already: true });
    }
    let verified = accept_policy(document.text.as_bytes(), &document.signatures, &pinned_policy)?;
    let policy = verified.value();
    let document = counted(document, POLICY_NAMESPACE, [&pinned_policy, policy]);
    let what = format!("version {}", policy.version);
    let brought = Brought { signers: verified.signers().to_vec(), what, already: false };
    record(&brought)?;
    if takes_away(&pinned_policy, policy) {
        // Before the policy is in force: whoever dies in between, the sessions are ended by who comes next.
        durable::write(&ending(paths), b"")?;
    }
    durable::write_json(&path, &document)?;
    for (path, signed) in revocations(paths)? {
        let listed = Revocation::parse(signed.text.as_bytes()).is_ok_and(|it| is_within(&it.revoked, &policy.revoked));
        if listed {
            durable::remove(&path)?;
        }
    }
    Ok(brought)
}

fn ending(paths: &Paths) -> PathBuf {
    directory(paths).join("ending")
}

fn takes_away(before: &Policy, after: &Policy) -> bool {
    before.keys.iter().any(|(name, key)| {
        after
            .keys
            .get(name)
            .is_none_or(|now| !key.roles.is_subset(&now.roles) || key_blob(&now.key) != key_blob(&key.key))
    })
}

/// A document with those of its signatures that keys of these policies made: what else came with it could fill the disk,
/// and every answer that shows it.
fn counted<const N: usize>(document: SignedText, namespace: &'static str, policies: [&Policy; N]) -> SignedText {
    let known: BTreeSet<PublicKey> = policies
        .iter()
        .flat_map(|policy| policy.keys.values().map(|key| &key.key).chain(&policy.root.keys))
        .filter_map(|key| PublicKey::parse(key).ok())
        .collect();
    let mut seen = BTreeSet::new();
    let SignedText { text, mut signatures } = document;
    signatures.truncate(SIGNATURES_MAX);
    signatures.retain(|armoured| {
        sshsig::verify(armoured, namespace, text.as_bytes())
            .is_ok_and(|signer| known.contains(&signer.key) && seen.insert(signer.key))
    });
    SignedText { text, signatures }
}

fn is_within(part: &Revoked, whole: &Revoked) -> bool {
    part.images.is_subset(&whole.images)
        && part.orders.is_subset(&whole.orders)
        && part.statements.is_subset(&whole.statements)
}

/// Brings the accounts' key files in line with the policy.
fn follow(paths: &Paths, policy: &Policy) -> Result<(), FileError> {
    for (account, roles) in key_files() {
        let path = paths.etc.join("keys").join(account);
        let text = authorized_keys(policy, roles);
        let mode = fs::metadata(&path).map(|metadata| metadata.permissions().mode() & 0o7777).ok();
        if durable::read(&path)?.as_deref() != Some(text.as_bytes()) || mode != Some(KEY_FILE_MODE) {
            durable::write_with_mode(&path, text.as_bytes(), KEY_FILE_MODE)?;
        }
    }
    Ok(())
}

fn bring_revocation(paths: &Paths, document: SignedText, record: &Record<'_>) -> Result<Brought, BringError> {
    let papers = load(paths)?;
    let verified = verify_revocation(document.text.as_bytes(), &document.signatures, &papers.policy)?;
    let revocation = verified.value();
    let directory = directory(paths).join("revocations");
    make_private(&directory)?;
    let path = directory.join(name(&document.text));
    let what = format!("{} revoked: {}", revocation.revoked.len(), revocation.reason);
    let brought = Brought { signers: verified.signers().to_vec(), what, already: path.exists() };
    if !brought.already {
        let document = counted(document.clone(), REVOCATION_NAMESPACE, [&papers.policy]);
        let mut all = papers.revoked;
        all.extend(&revocation.revoked);
        if all.len() > REVOKED_MAX || listed(&directory)?.len() >= REVOKED_MAX {
            let refusal = Refusal::new(Rule::Malformed, format!("a node keeps at most {REVOKED_MAX} revocations"));
            return Err(refusal.hint("list them in a policy instead").into());
        }
        record(&brought)?;
        durable::write_json(&path, &document)?;
    }
    Ok(brought)
}

fn bring_heartbeat(paths: &Paths, document: SignedText, now: Timestamp) -> Result<Brought, BringError> {
    let policy = policy(paths)?;
    let verified = verify_heartbeat(document.text.as_bytes(), &document.signatures, &policy, now)?;
    let issued = verified.value().issued;
    // One that was made before the newest says nothing more; it is no error to be late.
    let already = heartbeat(paths)?.is_some_and(|known| known.issued >= issued);
    if !already {
        let document = counted(document, HEARTBEAT_NAMESPACE, [&policy]);
        durable::write_json(&directory(paths).join("heartbeat.json"), &document)?;
    }
    Ok(Brought { signers: verified.signers().to_vec(), what: format!("of {issued}"), already })
}

fn bring_statement(
    paths: &Paths,
    document: SignedText,
    now: Timestamp,
    record: &Record<'_>,
) -> Result<Brought, BringError> {
    let policy = policy(paths)?;
    let verified = verify_statement(&document, &policy, now)?;
    let statement = verified.value();
    let all = directory(paths).join("statements");
    let directory = all.join(statement.image.to_string());
    make_private(&directory)?;
    let path = directory.join(name(&document.text));
    let what = format!("image {} of `{}` is {}", statement.image.short(), statement.app, statement.colour());
    let brought = Brought { signers: verified.signers().to_vec(), what, already: path.exists() };
    if !brought.already {
        let document = counted(document.clone(), STATEMENT_NAMESPACE, [&policy]);
        if listed(&directory)?.len() >= STATEMENTS_MAX {
            let message = format!("there are {STATEMENTS_MAX} statements about image {}", statement.image.short());
            return Err(Refusal::new(Rule::Malformed, message).into());
        }
        record(&brought)?;
        durable::write_json(&path, &document)?;
        forget_oldest(&all, &directory)?;
    }
    Ok(brought)
}

/// Keeps what came for an image last, and so many others.
fn forget_oldest(all: &Path, but: &Path) -> Result<(), FileError> {
    let entries = fs::read_dir(all).map_err(FileError::io("list", all))?;
    let mut dated: BTreeSet<(std::time::SystemTime, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .filter(|(_, path)| path != but)
        .collect();
    while dated.len() >= STATED_IMAGES_MAX {
        if let Some((_, path)) = dated.pop_first() {
            durable::remove_tree(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    #[test]
    fn the_oldest_statements_go() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..STATED_IMAGES_MAX + 2 {
            let path = root.path().join(number.to_string());
            fs::create_dir(&path).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64);
            File::open(&path).unwrap().set_modified(time).unwrap();
        }
        // The one that just came is kept whatever its time.
        forget_oldest(root.path(), &root.path().join("0")).unwrap();
        let left = fs::read_dir(root.path()).unwrap().count();
        assert_eq!(left, STATED_IMAGES_MAX);
        for (number, stays) in [("0", true), ("1", false), ("2", false), ("3", true)] {
            assert_eq!(root.path().join(number).exists(), stays, "{number}");
        }
    }

    #[test]
    fn what_a_policy_covers() {
        let image = |byte: u8| Revoked { images: [ImageId([byte; 32])].into(), ..Revoked::default() };
        let mut both = image(1);
        both.extend(&image(2));
        assert!(is_within(&image(1), &both));
        assert!(!is_within(&both, &image(1)));
    }
}
