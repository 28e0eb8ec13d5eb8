//! Sealed secrets beside `fleet.toml`: for each node the value that it alone can
//! open. Nothing here says what a value is, so the files can be checked in.
//!
//! ```text
//! .bulkhead/secrets/ENV/APP/NAME.json             {"NODE": "base64 of the sealed value", …}
//! .bulkhead/pool-secrets/ENV/POOL/APP/NAME.json   {"SHA256:…": the same, for the loop with this key}
//! ```
//!
//! An order pins, for each node, the digests of what lies here at that moment,
//! and the values go with it. So does a grant, of what is sealed to its pool.

use crate::{
    Context,
    error::{Error, Kind, Result},
    ledger::Ledger,
    session::Session,
    workspace::{MANIFEST, read_if_present, shown, write_json},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bulkhead_core::{
    AppName, EnvironmentName, FleetName, NodeName, PoolName, SecretDigest, SecretName, fleet::FleetNode, name::nearest,
    order::ServiceSpec, policy::Policy,
};
use bulkhead_trust::{
    sealing::{Purpose, Recipient, public_of, seal},
    sshsig::PublicKey,
};
use bulkhead_wire::{NodeStatus, SECRETS_MAX_BYTES};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// The folder of sealed secrets, beside `fleet.toml`.
pub const SECRETS: &str = ".bulkhead/secrets";

/// Sealed values by node, in base64.
pub type Sealed = BTreeMap<NodeName, String>;

/// The folder of an app's secrets in an environment.
#[must_use]
pub fn folder(fleet_directory: &Path, environment: &EnvironmentName, app: &AppName) -> PathBuf {
    fleet_directory.join(SECRETS).join(environment.as_str()).join(app.as_str())
}

/// The file of one secret.
#[must_use]
pub fn file(fleet_directory: &Path, environment: &EnvironmentName, app: &AppName, name: &SecretName) -> PathBuf {
    folder(fleet_directory, environment, app).join(format!("{name}.json"))
}

/// Reads a file of sealed values; `None` where there is none.
///
/// # Errors
/// It cannot be read, or is no such file.
pub fn read(path: &Path) -> Result<Option<Sealed>> {
    let Some(text) = read_if_present(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        Error::during(Kind::Configuration, format!("{} does not hold sealed values", shown(path)), &error)
    })
}

/// Writes one.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, sealed: &Sealed) -> Result<()> {
    write_json(path, sealed)
}

/// The digest of a sealed value, as orders pin it.
///
/// # Errors
/// It is not base64.
pub fn digest(sealed: &str) -> std::result::Result<SecretDigest, base64::DecodeError> {
    STANDARD.decode(sealed).map(|bytes| SecretDigest::of(&bytes))
}

/// The secrets that services have.
fn names(services: &[ServiceSpec]) -> BTreeSet<&SecretName> {
    services.iter().flat_map(|service| &service.secrets).collect()
}

/// Whether secrets may go to a node: where the policy lists the keys of any, `fleet.toml` alone makes none that has
/// them, for whoever can write to the repository can write there.
fn check_listed(policy: &Policy, environment: &EnvironmentName, node: &NodeName) -> Result<()> {
    if policy.nodes.is_empty() || policy.nodes.contains_key(node) {
        return Ok(());
    }
    let message = format!("the policy lists keys of nodes, and none of `{node}`: it is given no secrets");
    let hint = format!("if it is one of yours: `bulkhead policy nodes -e {environment}` lists its keys");
    Err(Error::configuration(message).hint(hint))
}

/// What each node must be brought for these services: nothing where they have no secrets.
///
/// # Errors
/// A value is not there for a node, the policy lists others and not this one, or all of them are too much.
pub fn for_order<'a>(
    fleet_directory: &Path,
    policy: &Policy,
    environment: &EnvironmentName,
    app: &AppName,
    services: &[ServiceSpec],
    nodes: impl IntoIterator<Item = &'a NodeName>,
) -> Result<BTreeMap<NodeName, BTreeMap<SecretName, String>>> {
    let mut files: BTreeMap<&SecretName, (PathBuf, Sealed)> = BTreeMap::new();
    for name in names(services) {
        let path = file(fleet_directory, environment, app, name);
        let sealed = read(&path)?.ok_or_else(|| {
            let message =
                format!("secret `{name}` of {app} has no value in {environment}: there is no {}", shown(&path));
            Error::configuration(message)
                .hint(format!("`bulkhead secret set {app} {name} -e {environment}` gives it one"))
        })?;
        files.insert(name, (path, sealed));
    }
    let mut all = BTreeMap::new();
    if files.is_empty() {
        return Ok(all);
    }
    for node in nodes {
        check_listed(policy, environment, node)?;
        let mut of_node = BTreeMap::new();
        for (name, (path, sealed)) in &files {
            let value = sealed.get(node).ok_or_else(|| {
                Error::configuration(format!("{} has no value for node `{node}`", shown(path)))
                    .hint(format!("`bulkhead secret set {app} {name} -e {environment}` again seals it to all nodes"))
            })?;
            digest(value).map_err(|error| {
                let what = format!("{}: the value for node `{node}` is not base64", shown(path));
                Error::during(Kind::Configuration, what, &error)
            })?;
            of_node.insert((*name).clone(), value.clone());
        }
        check_size(app, &of_node)?;
        all.insert(node.clone(), of_node);
    }
    Ok(all)
}

/// A node takes so much with one order.
fn check_size(app: &AppName, sealed: &BTreeMap<SecretName, String>) -> Result<()> {
    let bytes: usize = sealed.values().map(|value| value.len() / 4 * 3).sum();
    if bytes <= SECRETS_MAX_BYTES {
        return Ok(());
    }
    let message = format!("the secrets of {app} are {bytes} bytes together; a node takes at most {SECRETS_MAX_BYTES}");
    Err(Error::configuration(message))
}

/// The digests of what [`for_order`] gives.
#[must_use]
pub fn digests(sealed: &BTreeMap<SecretName, String>) -> BTreeMap<SecretName, SecretDigest> {
    sealed.iter().filter_map(|(name, value)| Some((name.clone(), digest(value).ok()?))).collect()
}

/// Whom a value is sealed to.
#[derive(Debug)]
pub struct Recipients {
    /// Each node's sealing key.
    keys: BTreeMap<NodeName, String>,
    /// Of these, those whose keys the policy does not list: they are taken as seen first.
    pub first_seen: Vec<NodeName>,
    /// What nodes that answered say of themselves.
    pub statuses: Vec<NodeStatus>,
}

/// The keys of nodes: the policy's, or else those that were seen first. Nodes are asked which they have: one that was
/// made anew has another than the policy lists, cannot open what is sealed to that, and would refuse the next order.
///
/// # Errors
/// The policy lists others and not this node, its key cannot be had, or it is not the node's any more.
pub async fn recipients(
    context: &Context,
    session: &Session,
    environment: &EnvironmentName,
    nodes: &[(NodeName, FleetNode)],
) -> Result<Recipients> {
    let (fleet, policy) = (&session.files.fleet.fleet, &session.policy.policy);
    for (node, _) in nodes {
        check_listed(policy, environment, node)?;
    }
    let mut to = Recipients { keys: BTreeMap::new(), first_seen: vec![], statuses: vec![] };
    let mut other = Vec::new();
    for (answer, (node, known)) in session.statuses(nodes).await?.into_iter().zip(nodes) {
        let ledger = Ledger::of(fleet, node, known)?;
        let kept = ledger.sealing_key(policy)?;
        let status = match (answer.result, &kept) {
            (Ok(status), _) => status,
            // It is sealed to all the same: whoever sets a secret need not be let in to nodes.
            (Err(error), Some(key)) => {
                let what = "whether the key that is sealed to is still its own was not asked";
                context.ui.note(&format!("{node}: {what}: {}", error.as_causes().join(": ")));
                to.keys.insert(node.clone(), key.clone());
                continue;
            }
            (Err(error), None) => return Err(error),
        };
        let shown = status.keys.as_ref().map(|keys| keys.sealing.clone());
        let key = match (kept, shown) {
            (Some(kept), Some(shown)) if kept != shown => {
                other.push(node.clone());
                continue;
            }
            (Some(kept), _) => kept,
            (None, Some(shown)) => {
                ledger.keep_sealing_key(&shown)?;
                shown
            }
            (None, None) => {
                return Err(Error::new(Kind::Node, format!("{node} has no sealing key"))
                    .hint("install the node again, which makes one"));
            }
        };
        if !policy.nodes.contains_key(node) {
            to.first_seen.push(node.clone());
        }
        to.keys.insert(node.clone(), key);
        to.statuses.push(status);
    }
    if !other.is_empty() {
        return Err(made_anew(policy, environment, &other));
    }
    Ok(to)
}

fn made_anew(policy: &Policy, environment: &EnvironmentName, nodes: &[NodeName]) -> Error {
    let by = if nodes.iter().any(|node| policy.nodes.contains_key(node)) {
        "the policy lists"
    } else {
        "this machine saw before"
    };
    let message = format!(
        "{} has another sealing key than {by}: it was made anew since, or is not what it was; nothing was sealed",
        joined(nodes)
    );
    Error::configuration(message)
        .hint(
            "if nobody made it anew, somebody else has it: take it out of fleet.toml, and set the secret for the others",
        )
        .hint(format!("if you made it anew: `bulkhead policy nodes -e {environment}`, then this command again"))
        .hint("what was sealed to it before must be set again too: `bulkhead secret ls` shows what there is")
}

/// Names, as a sentence has them.
pub fn joined(nodes: &[NodeName]) -> String {
    nodes.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}

/// Seals a value to nodes.
///
/// # Errors
/// A key is none, or the value is too long.
pub fn seal_to(
    fleet: &FleetName,
    environment: &EnvironmentName,
    app: &AppName,
    name: &SecretName,
    recipients: &Recipients,
    value: &[u8],
) -> Result<Sealed> {
    let mut sealed = Sealed::new();
    for (node, key) in &recipients.keys {
        let purpose = Purpose { fleet, environment, to: Recipient::Node(node), app, name };
        sealed.insert(node.clone(), seal_one(key, node.as_str(), &purpose, value)?);
    }
    Ok(sealed)
}

fn seal_one(key: &str, whose: &str, purpose: &Purpose<'_>, value: &[u8]) -> Result<String> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut())
        .map_err(|error| Error::during(Kind::Internal, "the system gives no random numbers", &error))?;
    let bytes = seal(key, purpose, value, seed)
        .map_err(|error| Error::during(Kind::Configuration, format!("cannot seal to {whose}"), &error))?;
    Ok(STANDARD.encode(bytes))
}

// ---- pools ----

/// The folder of what is sealed to pools, beside `fleet.toml`.
pub const POOL_SECRETS: &str = ".bulkhead/pool-secrets";

/// Values that are sealed to a pool, by the fingerprint of the key that opens them.
pub type SealedToPool = BTreeMap<String, String>;

/// Which secret of a pool's.
#[derive(Debug, Clone, Copy)]
pub struct PoolSecret<'a> {
    /// The pool's environment.
    pub environment: &'a EnvironmentName,
    /// The pool.
    pub pool: &'a PoolName,
    /// The app.
    pub app: &'a AppName,
    /// The secret.
    pub name: &'a SecretName,
}

impl PoolSecret<'_> {
    /// Where its sealed values lie.
    #[must_use]
    pub fn file(&self, fleet_directory: &Path) -> PathBuf {
        let Self { environment, pool, app, name } = self;
        let folder = fleet_directory.join(POOL_SECRETS).join(environment.as_str()).join(pool.as_str());
        folder.join(app.as_str()).join(format!("{name}.json"))
    }

    /// Reads them; `None` where there are none.
    ///
    /// # Errors
    /// The file cannot be read, or is none.
    pub fn read(&self, fleet_directory: &Path) -> Result<Option<SealedToPool>> {
        let path = self.file(fleet_directory);
        let Some(text) = read_if_present(&path)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            Error::during(Kind::Configuration, format!("{} does not hold sealed values", shown(&path)), &error)
        })
    }

    /// Seals a value to a loop's key (an OpenSSH line): to it alone, for no loop needs what others' pools are given.
    ///
    /// # Errors
    /// A device keeps the key, or the value is too long.
    pub fn seal(&self, fleet: &FleetName, key: &str, value: &[u8]) -> Result<SealedToPool> {
        let Self { environment, pool, app, name } = *self;
        let purpose = Purpose { fleet, environment, to: Recipient::Pool(pool), app, name };
        let wrong = |error: &dyn std::error::Error| Error::of(Kind::Configuration, error);
        let key = PublicKey::parse(key).map_err(|error| wrong(&error))?;
        let public = public_of(&key).map_err(|error| wrong(&error))?;
        let sealed = seal_one(&public, &format!("the loop of pool {pool}"), &purpose, value)?;
        Ok(SealedToPool::from([(key.fingerprint(), sealed)]))
    }

    /// What is sealed to the holder of this key (an OpenSSH line).
    ///
    /// # Errors
    /// Nothing is.
    pub fn sealed_to(&self, fleet_directory: &Path, key: &str) -> Result<String> {
        let Self { environment, pool, app, name } = self;
        let set = format!("`bulkhead secret set {app} {name} -e {environment} --pool {pool}`");
        let Some(mut sealed) = self.read(fleet_directory)? else {
            let message = format!(
                "secret `{name}` of {app} has no value in pool {pool}: there is no {}",
                shown(&self.file(fleet_directory))
            );
            return Err(Error::configuration(message).hint(format!("{set} gives it one")));
        };
        let key = PublicKey::parse(key).map_err(|error| Error::of(Kind::Configuration, &error))?;
        sealed.remove(&key.fingerprint()).filter(|text| digest(text).is_ok()).ok_or_else(|| {
            let path = self.file(fleet_directory);
            Error::configuration(format!("{} has no value for the key {}", shown(&path), key.fingerprint()))
                .hint(format!("{set} again seals it to the key that the loop has now"))
        })
    }
}

/// What a grant's holder must have, for these secrets of an app.
///
/// # Errors
/// A value is not there for its key.
pub fn for_grant<'a>(
    fleet_directory: &Path,
    environment: &EnvironmentName,
    pool: &PoolName,
    app: &AppName,
    names: impl IntoIterator<Item = &'a SecretName>,
    key: &str,
) -> Result<BTreeMap<SecretName, String>> {
    let of = |name: &'a SecretName| {
        let sealed = PoolSecret { environment, pool, app, name }.sealed_to(fleet_directory, key)?;
        Ok((name.clone(), sealed))
    };
    let all = names.into_iter().map(of).collect::<Result<_>>()?;
    check_size(app, &all)?;
    Ok(all)
}

/// What is to be said where nobody reads a secret of this name: `None` where somebody does. `services` are those that
/// the app's manifest has, or what runs of it; `None` where neither is known.
#[must_use]
pub fn unread(
    app: &AppName,
    name: &SecretName,
    environment: &EnvironmentName,
    manifest: Option<&AppName>,
    services: Option<&[ServiceSpec]>,
) -> Option<String> {
    let Some(services) = services else {
        let why = match manifest {
            Some(other) => format!("the {MANIFEST} here is of `{other}`"),
            None => format!("no {MANIFEST} is here"),
        };
        return Some(format!(
            "nothing known here or to the nodes that answered has an app `{app}` ({why}): look whether that is its name"
        ));
    };
    let known = names(services);
    if known.contains(name) {
        return None;
    }
    let whose = if manifest == Some(app) { format!("the {MANIFEST} here") } else { format!("what runs of {app}") };
    let known: Vec<&str> = known.into_iter().map(SecretName::as_str).collect();
    let there = match (nearest(name.as_str(), known.iter().copied()), known.as_slice()) {
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, []) => "its services have none".into(),
        (None, known) => format!("there are {}", known.join(", ")),
    };
    Some(format!("no service has a secret `{name}` in {environment} by {whose}: {there}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::{
        manifest::Manifest,
        notice::Revoked,
        policy::{NodeKeys, Root},
    };
    use bulkhead_trust::{PrivateKey, sealing::SealingKey};

    fn policy(listed: &[&str]) -> Policy {
        let keys = || NodeKeys { audit: String::new(), sealing: String::new() };
        Policy {
            format: 1,
            fleet: "acme".parse().unwrap(),
            version: 1,
            root: Root { threshold: 1, keys: vec![], verify_user: false },
            keys: BTreeMap::new(),
            environments: BTreeMap::new(),
            nodes: listed.iter().map(|name| (name.parse().unwrap(), keys())).collect(),
            revoked: Revoked::default(),
        }
    }

    #[test]
    fn what_an_order_takes_along() {
        let folder = tempfile::tempdir().unwrap();
        let (environment, app): (EnvironmentName, AppName) = ("staging".parse().unwrap(), "notes".parse().unwrap());
        let manifest = Manifest::parse(
            "app = \"notes\"\n[services.web]\ncommand = [\"x\"]\nsecrets = [\"A\", \"B\"]\n\
             [services.worker]\ncommand = [\"y\"]\nsecrets = [\"B\"]\n",
        )
        .unwrap();
        let services = manifest.services_in(&environment);
        let nodes: Vec<NodeName> = ["n1", "n2"].iter().map(|name| name.parse().unwrap()).collect();
        let take_by = |policy: &Policy| for_order(folder.path(), policy, &environment, &app, &services, &nodes);
        let take = || take_by(&policy(&[]));
        let put = |name: &str, nodes: &[&str], value: &str| {
            let sealed = nodes.iter().map(|node| (node.parse().unwrap(), value.to_owned())).collect();
            write(&file(folder.path(), &environment, &app, &name.parse().unwrap()), &sealed).unwrap();
        };
        assert!(take().unwrap_err().message.contains("secret `A` of notes has no value in staging"));
        put("A", &["n1", "n2"], "AAAA");
        put("B", &["n1"], "AAAA");
        assert!(take().unwrap_err().message.contains("has no value for node `n2`"));
        put("B", &["n1", "n2"], "!");
        assert!(take().unwrap_err().message.contains("is not base64"));
        put("B", &["n1", "n2", "n3"], "AAAB");
        let taken = take().unwrap();
        assert_eq!(taken.len(), 2);
        let of_node = &taken[&nodes[1]];
        assert_eq!(of_node.values().collect::<Vec<_>>(), ["AAAA", "AAAB"]);
        assert_eq!(digests(of_node).values().next(), Some(&SecretDigest::of(&[0, 0, 0])));
        // Where the policy lists nodes, the others have none; without secrets nobody asks.
        let unlisted = take_by(&policy(&["n1"])).unwrap_err();
        assert!(unlisted.message.contains("none of `n2`"), "{}", unlisted.message);
        assert_eq!(take_by(&policy(&["n1", "n2"])).unwrap(), taken);
        let none = Manifest::parse("app = \"notes\"\n[services.web]\ncommand = [\"x\"]\n").unwrap();
        let services = none.services_in(&environment);
        let listed = policy(&["n1"]);
        assert!(for_order(folder.path(), &listed, &environment, &app, &services, &nodes).unwrap().is_empty());
    }

    #[test]
    fn what_a_grant_takes_along() {
        let folder = tempfile::tempdir().unwrap();
        let (environment, pool, app) =
            ("staging".parse().unwrap(), "kernels".parse().unwrap(), "notes".parse().unwrap());
        let name: SecretName = "TOKEN".parse().unwrap();
        let fleet = "acme".parse().unwrap();
        let line = |seed: u8| PrivateKey::from_seed([seed; 32]).public_key().to_openssh();
        let secret = PoolSecret { environment: &environment, pool: &pool, app: &app, name: &name };
        let take = |key: &str| for_grant(folder.path(), &environment, &pool, &app, [&name], key);
        assert!(take(&line(1)).unwrap_err().message.contains("secret `TOKEN` of notes has no value in pool kernels"));

        let sealed = secret.seal(&fleet, &line(1), b"value").unwrap();
        write_json(&secret.file(folder.path()), &sealed).unwrap();
        let taken = take(&line(1)).unwrap();
        let purpose =
            Purpose { fleet: &fleet, environment: &environment, to: Recipient::Pool(&pool), app: &app, name: &name };
        let bytes = STANDARD.decode(&taken[&name]).unwrap();
        assert_eq!(**SealingKey::of_signer(&[1; 32]).open(&purpose, &bytes).unwrap(), *b"value");
        // Another key came after it was sealed.
        let error = take(&line(2)).unwrap_err();
        assert!(error.hints[0].contains("secret set notes TOKEN -e staging --pool kernels` again"), "{error:?}");
        // A device opens nothing, and that is said before a value is asked for.
        let device = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAICg1o3kx0yQLoWxXfb/tJgcSXnsU93JnvUbLCcqRPuyUAAAABHNzaDo=";
        let error = secret.seal(&fleet, device, b"").unwrap_err();
        assert!(error.message.contains("an ssh-ed25519 key is needed"), "{error:?}");
    }

    #[test]
    fn a_secret_that_nobody_reads_is_noticed() {
        let (environment, app): (EnvironmentName, AppName) = ("staging".parse().unwrap(), "notes".parse().unwrap());
        let other: AppName = "other".parse().unwrap();
        let services = |secrets: &str| {
            let text = format!("app = \"notes\"\n[services.web]\ncommand = [\"x\"]\nsecrets = [{secrets}]\n");
            Manifest::parse(&text).unwrap().services_in(&environment)
        };
        let (with, without) = (services("\"TOKEN\", \"KEY_OF_MAIL\""), services(""));
        let said = |name: &str, manifest: Option<&AppName>, services: Option<&[ServiceSpec]>| {
            unread(&app, &name.parse().unwrap(), &environment, manifest, services).unwrap_or_default()
        };
        assert_eq!(said("TOKEN", Some(&app), Some(&with)), "");
        assert_eq!(said("TOKEN", None, Some(&with)), "");
        for (name, manifest, services, words) in [
            ("TOKEM", Some(&app), Some(&with[..]), "by the bulkhead.toml here: did you mean `TOKEN`?"),
            ("ELSE", Some(&app), Some(&with[..]), "there are KEY_OF_MAIL, TOKEN"),
            ("TOKEN", Some(&app), Some(&without[..]), "its services have none"),
            ("ELSE", None, Some(&with[..]), "by what runs of notes: there are"),
            ("TOKEN", Some(&other), None, "has an app `notes` (the bulkhead.toml here is of `other`)"),
            ("TOKEN", None, None, "(no bulkhead.toml is here)"),
        ] {
            let said = said(name, manifest, services);
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn who_was_made_anew_is_said_with_what_to_do() {
        let (environment, node) = ("staging".parse().unwrap(), "n1".parse().unwrap());
        let error = made_anew(&policy(&["n1"]), &environment, &[node]);
        assert_eq!(error.kind, Kind::Configuration);
        assert!(error.message.starts_with("n1 has another sealing key than the policy lists"), "{error:?}");
        assert!(error.hints[1].contains("`bulkhead policy nodes -e staging`, then this command again"), "{error:?}");
    }
}
