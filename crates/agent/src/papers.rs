//! What a node was brought that is no order: its policy, revocations,
//! heartbeats, statements about images. Each is kept exactly as it was signed.
//!
//! ```text
//! policy/lock                   flock; held while any of these is changed
//! policy/signed.json            the policy that is enforced
//! policy/revocations/KEY.ID.json  what must not be started, as release and green keys said since that policy
//! policy/heartbeat.json         the newest
//! policy/ending                 there while sessions of keys that were taken away may still be open
//! policy/statements/KEY.COLOUR.APP.IMAGE.json   the newest that this key signed
//! ```
//!
//! Invariants:
//! - One file holds a document and its signatures, so replacing it is one rename.
//! - Of a document only those signatures are kept that count.
//! - **Every key has room of its own.** What one key signs, captured or not, takes no place from what another did.
//! - A red mark is forgotten for other red marks of its own key alone, and no mark for those of other keys.
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
    AppName, ImageId, PersonName, SignedText, StatementId, Timestamp,
    digest::{hex, sha256},
    notice::{HEARTBEAT_NAMESPACE, Heartbeat, REVOCATION_NAMESPACE, Revocation, Revoked},
    policy::{NAMESPACE as POLICY_NAMESPACE, Policy, Role, key_blob},
    statement::{NAMESPACE as STATEMENT_NAMESPACE, Statement, TestResult},
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
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// What a node keeps of revocations in all: it shows them in one message, together with its policy and heartbeat.
const REVOCATIONS_MAX_BYTES: u64 = 1 << 20;
/// The keys that may revoke have equal parts of that, and none more than this part: as if there were so many at least.
const REVOKERS_MIN: usize = 8;
/// Marks of a colour that a node keeps of one key: more than it ever holds images. Beyond, that key's oldest of the
/// same colour go.
const MARKS_MAX: usize = 1024;
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

/// What the policy's green keys stated about an app's image.
///
/// # Errors
/// It cannot be read.
pub fn statements(paths: &Paths, policy: &Policy, app: &AppName, image: ImageId) -> Result<Vec<SignedText>, FileError> {
    let mut all: Vec<SignedText> = Vec::new();
    let keys = policy.holders(Role::Green).filter_map(|(_, key)| PublicKey::parse(&key.key).ok());
    for (key, result) in keys.flat_map(|key| TestResult::ALL.map(|result| (key.clone(), result))) {
        let Some(found) = signed(&mark(paths, &key, result, app, image))? else { continue };
        match all.iter_mut().find(|known| known.text == found.text) {
            // Two keys signed the same.
            Some(known) => known.signatures.extend(found.signatures),
            None => all.push(found),
        }
    }
    Ok(all)
}

fn marks(paths: &Paths) -> PathBuf {
    directory(paths).join("statements")
}

fn mark(paths: &Paths, key: &PublicKey, result: TestResult, app: &AppName, image: ImageId) -> PathBuf {
    marks(paths).join(format!("{}.{}.{app}.{image}.json", owner(key), result.colour()))
}

/// How files name a key.
fn owner(key: &PublicKey) -> String {
    hex(&sha256(key.to_openssh().as_bytes()))
}

/// The keys that a policy gives these holders.
fn keys_of<'a>(policy: &'a Policy, holders: &'a [String]) -> impl Iterator<Item = PublicKey> + 'a {
    let names = holders.iter().filter_map(|holder| holder.parse::<PersonName>().ok());
    names.filter_map(|name| PublicKey::parse(&policy.keys.get(&name)?.key).ok())
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
    forget_strangers(paths, &policy)?;
    forget_listed(paths, &policy)?;
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
    signed_by(document, namespace, &known)
}

/// A document with the good signatures of these keys, the best one of each: where a security key made one with a PIN or
/// finger and one without, the first may count where the other does not.
fn signed_by(document: SignedText, namespace: &'static str, known: &BTreeSet<PublicKey>) -> SignedText {
    let SignedText { text, signatures } = document;
    let mut best: BTreeMap<PublicKey, (bool, String)> = BTreeMap::new();
    for armoured in signatures.into_iter().take(SIGNATURES_MAX) {
        let Ok(signer) = sshsig::verify(&armoured, namespace, text.as_bytes()) else { continue };
        let has_one = best.get(&signer.key).is_some_and(|(verified, _)| *verified || !signer.verified_user);
        if known.contains(&signer.key) && !has_one {
            best.insert(signer.key, (signer.verified_user, armoured));
        }
    }
    SignedText { text, signatures: best.into_values().map(|(_, armoured)| armoured).collect() }
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
    let policy = policy(paths)?;
    let verified = verify_revocation(document.text.as_bytes(), &document.signatures, &policy)?;
    let revocation = verified.value();
    let directory = directory(paths).join("revocations");
    make_private(&directory)?;
    let name = name(&document.text);
    let kept = listed(&directory)?;
    let what = format!("{} revoked: {}", revocation.revoked.len(), revocation.reason);
    // What the policy says itself takes no room: whoever brings it again must not undo that.
    let already = is_within(&revocation.revoked, &policy.revoked)
        || kept.iter().any(|path| path.to_string_lossy().ends_with(&name));
    let brought = Brought { signers: verified.signers().to_vec(), what, already };
    if !brought.already {
        let document = counted(document, REVOCATION_NAMESPACE, [&policy]);
        let owner = with_room(&policy, &brought.signers, &kept, &document)?;
        record(&brought)?;
        durable::write_json(&directory.join(format!("{owner}.{name}")), &document)?;
    }
    Ok(brought)
}

/// Whose room a revocation takes: that of the first of its signers who has so much left.
fn with_room(
    policy: &Policy,
    signers: &[String],
    kept: &[PathBuf],
    document: &SignedText,
) -> Result<String, BringError> {
    let used = |prefix: &str| -> Result<u64, FileError> {
        let own = kept.iter().filter(|path| begins(path, prefix));
        own.map(|path| fs::metadata(path).map(|found| found.len()).map_err(FileError::io("examine", path))).sum()
    };
    let revokers =
        policy.keys.values().filter(|key| [Role::Release, Role::Green].iter().any(|r| key.roles.contains(r)));
    let share = REVOCATIONS_MAX_BYTES / revokers.count().max(REVOKERS_MIN) as u64;
    let needed = serde_json::to_vec(document).map_or(u64::MAX, |bytes| bytes.len() as u64);
    if used("")?.saturating_add(needed) <= REVOCATIONS_MAX_BYTES {
        for key in keys_of(policy, signers) {
            let owner = owner(&key);
            if used(&owner)?.saturating_add(needed) <= share {
                return Ok(owner);
            }
        }
    }
    let message = format!(
        "there is no room for a revocation of {needed} bytes by {}: a node keeps {share} bytes of each key, and \
         {REVOCATIONS_MAX_BYTES} in all",
        signers.join(", ")
    );
    let hint = "list what is to stay revoked in the policy, which makes room: `revoked` in `bulkhead policy edit`";
    Err(Refusal::new(Rule::Malformed, message).hint(hint).into())
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

/// Of each key its newest green and its newest red mark about an app's image are kept. One that was revoked gives its
/// place up to any that was not.
fn bring_statement(
    paths: &Paths,
    document: SignedText,
    now: Timestamp,
    record: &Record<'_>,
) -> Result<Brought, BringError> {
    let Papers { policy, revoked, .. } = load(paths)?;
    let verified = verify_statement(&document, &policy, now)?;
    let statement = verified.value();
    let counts = |signed: &SignedText| {
        let id = StatementId::of(signed.text.as_bytes());
        ![&revoked, &policy.revoked].iter().any(|revoked| revoked.statements.contains(&id))
    };
    let rank = (counts(&document), statement.predicate.issued);
    let mut new = Vec::new();
    for key in keys_of(&policy, verified.signers()) {
        let path = mark(paths, &key, statement.predicate.result, &statement.app, statement.image);
        let is_new = match signed(&path)? {
            None => true,
            Some(kept) => {
                let issued = Statement::parse(kept.text.as_bytes()).map_err(|what| damaged(&path, what))?;
                (counts(&kept), issued.predicate.issued) < rank
            }
        };
        if is_new {
            new.push((path, key));
        }
    }
    let what = format!("image {} of `{}` is {}", statement.image.short(), statement.app, statement.colour());
    let brought = Brought { signers: verified.signers().to_vec(), what, already: new.is_empty() };
    if brought.already {
        return Ok(brought);
    }
    make_private(&marks(paths))?;
    record(&brought)?;
    for (path, key) in new {
        let prefix = format!("{}.{}.", owner(&key), statement.colour());
        durable::write_json(&path, &signed_by(document.clone(), STATEMENT_NAMESPACE, &[key].into()))?;
        forget_oldest(&marks(paths), &prefix, &path)?;
    }
    Ok(brought)
}

/// Keeps the mark that came last, and so many others whose names begin like its own.
fn forget_oldest(directory: &Path, prefix: &str, but: &Path) -> Result<(), FileError> {
    let mut others = listed(directory)?;
    others.retain(|path| path != but && begins(path, prefix));
    if others.len() < MARKS_MAX {
        return Ok(());
    }
    let dated = others.into_iter().filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)));
    let mut dated: BTreeSet<(SystemTime, PathBuf)> = dated.collect();
    while dated.len() >= MARKS_MAX {
        if let Some((_, path)) = dated.pop_first() {
            durable::remove(&path)?;
        }
    }
    Ok(())
}

fn begins(path: &Path, prefix: &str) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix))
}

/// Forgets revocations of which the policy itself says all.
fn forget_listed(paths: &Paths, policy: &Policy) -> Result<(), FileError> {
    for (path, signed) in revocations(paths)? {
        if Revocation::parse(signed.text.as_bytes()).is_ok_and(|it| is_within(&it.revoked, &policy.revoked)) {
            durable::remove(&path)?;
        }
    }
    Ok(())
}

/// Forgets the marks of keys that the policy lets say nothing about images any more.
fn forget_strangers(paths: &Paths, policy: &Policy) -> Result<(), FileError> {
    let keys = policy.holders(Role::Green).filter_map(|(_, key)| PublicKey::parse(&key.key).ok());
    let owners: Vec<String> = keys.map(|key| owner(&key)).collect();
    for path in listed(&marks(paths))? {
        if !owners.iter().any(|owner| begins(&path, owner)) {
            durable::remove(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::{
        policy::{Key, Root},
        statement::Predicate,
    };
    use bulkhead_trust::PrivateKey;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn person(seed: u8) -> PrivateKey {
        PrivateKey::from_seed([seed; 32])
    }

    /// A node whose policy has these keys with these roles; the first is its root.
    fn node(keys: &[(&str, &PrivateKey, Role)]) -> (tempfile::TempDir, Paths) {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        make_private(&directory(&paths)).unwrap();
        pin(&paths, keys);
        (root, paths)
    }

    fn pin(paths: &Paths, keys: &[(&str, &PrivateKey, Role)]) {
        let entry = |(name, key, role): &(&str, &PrivateKey, Role)| {
            let key = Key { key: key.public_key().to_openssh(), roles: [*role].into(), verify_user: false };
            (name.parse().unwrap(), key)
        };
        let policy = Policy {
            format: 1,
            fleet: "acme".parse().unwrap(),
            version: 1,
            root: Root { threshold: 1, keys: vec![keys[0].1.public_key().to_openssh()], verify_user: false },
            keys: keys.iter().map(entry).collect(),
            environments: BTreeMap::new(),
            nodes: BTreeMap::new(),
            revoked: Revoked::default(),
        };
        let text = String::from_utf8(policy.to_bytes()).unwrap();
        let document = SignedText { text, signatures: vec![] };
        durable::write_json(&directory(paths).join("signed.json"), &document).unwrap();
    }

    fn document(bytes: Vec<u8>, namespace: &str, keys: &[&PrivateKey]) -> SignedText {
        let signatures = keys.iter().map(|key| key.sign(namespace, &bytes)).collect();
        SignedText { text: String::from_utf8(bytes).unwrap(), signatures }
    }

    fn id(image: u16) -> ImageId {
        ImageId(sha256(&image.to_be_bytes()))
    }

    fn stated(image: u16, result: TestResult, issued: i64, keys: &[&PrivateKey]) -> SignedText {
        let word = || "x".to_owned();
        let statement = Statement {
            app: "notes".parse().unwrap(),
            image: id(image),
            predicate: Predicate {
                result,
                fleet: "acme".parse().unwrap(),
                repository: word(),
                commit: word(),
                builder: word(),
                issued: NOW.plus_s(issued),
            },
        };
        document(statement.to_bytes(), STATEMENT_NAMESPACE, keys)
    }

    /// Whether it was new.
    fn brings(paths: &Paths, paper: Paper, document: &SignedText) -> Result<bool, BringError> {
        bring(paths, paper, document.clone(), NOW, &|_| Ok(())).map(|brought| !brought.already)
    }

    fn known(paths: &Paths, image: u16) -> Vec<(String, usize)> {
        let found = statements(paths, &policy(paths).unwrap(), &"notes".parse().unwrap(), id(image)).unwrap();
        found
            .into_iter()
            .map(|it| (Statement::parse(it.text.as_bytes()).unwrap().colour().to_owned(), it.signatures.len()))
            .collect()
    }

    #[test]
    fn of_each_key_the_newest_mark_is_kept() {
        let (ci, builder) = (person(1), person(2));
        let (_root, paths) = node(&[("ci", &ci, Role::Green), ("builder", &builder, Role::Green)]);
        let state = |document: &SignedText| brings(&paths, Paper::Statement, document).unwrap();
        let (passed, failed) = (TestResult::Passed, TestResult::Failed);
        assert!(state(&stated(7, passed, 0, &[&ci])));
        assert!(!state(&stated(7, passed, 0, &[&ci])), "the same");
        assert!(!state(&stated(7, passed, -1, &[&ci])), "older");
        assert!(state(&stated(7, passed, 1, &[&ci])));
        assert!(state(&stated(7, failed, 0, &[&ci])), "another colour");
        assert_eq!(known(&paths, 7), [("green".into(), 1), ("red".into(), 1)]);
        // What two signed is theirs both, and each one's newest by itself.
        assert!(state(&stated(7, passed, 2, &[&ci, &builder])));
        assert_eq!(known(&paths, 7), [("green".into(), 2), ("red".into(), 1)]);
        assert!(state(&stated(7, passed, 3, &[&builder])));
        assert_eq!(known(&paths, 7), [("green".into(), 1), ("green".into(), 1), ("red".into(), 1)]);
        assert_eq!(known(&paths, 8), []);
        // A key that is green no more has no marks.
        pin(&paths, &[("builder", &builder, Role::Green), ("ci", &ci, Role::Release)]);
        assert_eq!(known(&paths, 7), [("green".into(), 1)]);
        fs::create_dir_all(paths.etc.join("keys")).unwrap();
        settle(&paths, |_| ()).unwrap();
        assert_eq!(listed(&marks(&paths)).unwrap().len(), 1);
    }

    #[test]
    fn a_key_crowds_out_nobodys_marks_but_its_own() {
        let (ci, thief) = (person(1), person(2));
        let (_root, paths) = node(&[("ci", &ci, Role::Green), ("thief", &thief, Role::Green)]);
        let state = |image, result, key: &PrivateKey| {
            assert!(brings(&paths, Paper::Statement, &stated(image, result, 0, &[key])).unwrap());
        };
        state(0, TestResult::Failed, &ci);
        state(0, TestResult::Failed, &thief);
        // As if they had come long ago, and then as many others as a key may have.
        for path in listed(&marks(&paths)).unwrap() {
            File::open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        let fill = |result| {
            for image in 1..=u16::try_from(MARKS_MAX).unwrap() - 1 {
                let path = mark(&paths, thief.public_key(), result, &"notes".parse().unwrap(), id(image));
                fs::write(path, "").unwrap();
            }
        };
        let red = || known(&paths, 0).into_iter().find(|(colour, _)| colour == "red");
        fill(TestResult::Passed);
        state(5000, TestResult::Passed, &thief);
        state(5001, TestResult::Passed, &thief);
        assert_eq!(listed(&marks(&paths)).unwrap().len(), MARKS_MAX + 2);
        assert_eq!(red(), Some(("red".into(), 2)));
        fill(TestResult::Failed);
        assert_eq!(red(), Some(("red".into(), 2)));
        state(5000, TestResult::Failed, &thief);
        // Its own red mark went, for red ones of its own.
        assert_eq!(red(), Some(("red".into(), 1)));
        assert_eq!(listed(&marks(&paths)).unwrap().len(), MARKS_MAX * 2 + 1);
    }

    #[test]
    fn a_revoked_mark_makes_room() {
        let (ci, ada) = (person(1), person(2));
        let (_root, paths) = node(&[("ci", &ci, Role::Green), ("ada", &ada, Role::Release)]);
        let newest = stated(7, TestResult::Passed, 5, &[&ci]);
        assert!(brings(&paths, Paper::Statement, &newest).unwrap());
        let id = StatementId::of(newest.text.as_bytes());
        let revoked = Revoked { statements: [id].into(), ..Revoked::default() };
        assert!(brings(&paths, Paper::Revocation, &revocation(revoked, "why", &[&ada])).unwrap());
        assert!(brings(&paths, Paper::Statement, &stated(7, TestResult::Passed, 0, &[&ci])).unwrap());
        assert!(!brings(&paths, Paper::Statement, &newest).unwrap());
        assert_eq!(known(&paths, 7).len(), 1);
    }

    fn revocation(revoked: Revoked, reason: &str, keys: &[&PrivateKey]) -> SignedText {
        let fleet = "acme".parse().unwrap();
        let revocation = Revocation { format: 1, fleet, issued: NOW, reason: reason.into(), revoked };
        document(revocation.to_bytes(), REVOCATION_NAMESPACE, keys)
    }

    #[test]
    fn a_key_uses_up_nobodys_room_for_revocations_but_its_own() {
        let (ada, thief) = (person(1), person(2));
        let keys = [("ada", &ada, Role::Release), ("thief", &thief, Role::Green)];
        let (_root, paths) = node(&keys);
        let images =
            |from: u16, count: u16| Revoked { images: (from..from + count).map(id).collect(), ..Revoked::default() };
        let revoke = |from, count, keys: &[&PrivateKey]| {
            brings(&paths, Paper::Revocation, &revocation(images(from, count), "why", keys))
        };
        let refused = |result: Result<bool, BringError>| match result {
            Err(BringError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        };
        assert!(revoke(0, 1000, &[&thief]).unwrap());
        assert!(!revoke(0, 1000, &[&thief, &ada]).unwrap(), "known");
        let refusal = refused(revoke(1000, 1000, &[&thief]));
        assert!(refusal.message.contains("by thief") && refusal.hint.as_ref().unwrap().contains("policy"), "{refusal}");
        // Others have all the room they had, and whoever signs together needs it of one.
        assert!(revoke(1000, 1000, &[&thief, &ada]).unwrap());
        assert!(revoke(2000, 1, &[&thief]).unwrap());
        refused(revoke(3000, 1000, &[&ada]));
        assert_eq!(load(&paths).unwrap().revoked.len(), 2001);
        // Its removal takes nothing back, and however many keys come and go there is an end to it.
        let mut keys = keys.to_vec();
        keys.remove(1);
        let others: Vec<PrivateKey> = (3..=22).map(person).collect();
        let names: Vec<String> = (3..=22).map(|number| format!("p{number}")).collect();
        keys.extend(names.iter().zip(&others).map(|(name, key)| (name.as_str(), key, Role::Release)));
        pin(&paths, &keys);
        assert_eq!(load(&paths).unwrap().revoked.len(), 2001);
        let took = others.iter().enumerate().filter(|(at, key)| {
            let from = 10_000 + 1000 * u16::try_from(*at).unwrap();
            revoke(from, 600, &[key]).is_ok()
        });
        assert!((15..20).contains(&took.count()));
        let sizes = listed(&directory(&paths).join("revocations")).unwrap().into_iter().map(|path| path.metadata());
        assert!(sizes.map(|found| found.unwrap().len()).sum::<u64>() <= REVOCATIONS_MAX_BYTES);
        assert!(serde_json::to_vec(&enforced(&paths).unwrap()).unwrap().len() < bulkhead_wire::MESSAGE_MAX_BYTES / 2);
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
