//! Sealed secrets beside `fleet.toml`: for each node the value that it alone can
//! open. Nothing here says what a value is, so the files can be checked in.
//!
//! ```text
//! .bulkhead/secrets/ENV/APP/NAME.json   {"NODE": "base64 of the sealed value", …}
//! ```
//!
//! An order pins, for each node, the digests of what lies here at that moment,
//! and the values go with it.

use crate::{
    error::{Error, Kind, Result},
    ledger::Ledger,
    session::Session,
    workspace::{read_if_present, shown, write_json},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bulkhead_core::{
    AppName, EnvironmentName, NodeName, SecretDigest, SecretName, fleet::FleetNode, order::ServiceSpec, policy::Policy,
};
use bulkhead_trust::sealing::{Purpose, seal};
use bulkhead_wire::SECRETS_MAX_BYTES;
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
        let bytes: usize = of_node.values().map(|value| value.len() / 4 * 3).sum();
        if bytes > SECRETS_MAX_BYTES {
            return Err(Error::configuration(format!(
                "the secrets of {app} are {bytes} bytes together; a node takes at most {SECRETS_MAX_BYTES}"
            )));
        }
        all.insert(node.clone(), of_node);
    }
    Ok(all)
}

/// The digests of what [`for_order`] gives.
#[must_use]
pub fn digests(sealed: &BTreeMap<SecretName, String>) -> BTreeMap<SecretName, SecretDigest> {
    sealed.iter().filter_map(|(name, value)| Some((name.clone(), digest(value).ok()?))).collect()
}

/// Seals a value to nodes. Where the policy lists no node's keys, those that this machine does not know are asked.
///
/// # Errors
/// The policy lists others and not this node, its key cannot be had, or the value is too long.
pub async fn seal_to(
    session: &Session,
    environment: &EnvironmentName,
    app: &AppName,
    name: &SecretName,
    nodes: &[(NodeName, FleetNode)],
    value: &[u8],
) -> Result<(Sealed, Vec<NodeName>)> {
    let fleet = &session.files.fleet.fleet;
    let mut keys: BTreeMap<NodeName, String> = BTreeMap::new();
    let mut unknown = Vec::new();
    for (node, known) in nodes {
        check_listed(&session.policy.policy, environment, node)?;
        match Ledger::of(fleet, node, known)?.sealing_key(&session.policy.policy)? {
            Some(key) => drop(keys.insert(node.clone(), key)),
            None => unknown.push((node.clone(), known.clone())),
        }
    }
    let mut first = Vec::new();
    for answer in session.statuses(&unknown).await? {
        let status = answer.result?;
        let Some((node, known)) = unknown.iter().find(|(node, _)| *node == answer.node) else { continue };
        let shown = status.keys.ok_or_else(|| {
            Error::new(Kind::Node, format!("{node} has no sealing key")).hint("install the node again, which makes one")
        })?;
        Ledger::of(fleet, node, known)?.keep_sealing_key(&shown.sealing)?;
        first.push(node.clone());
        keys.insert(node.clone(), shown.sealing);
    }
    let mut sealed = Sealed::new();
    for (node, key) in &keys {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut())
            .map_err(|error| Error::during(Kind::Internal, "the system gives no random numbers", &error))?;
        let purpose = Purpose { fleet, environment, node, app, name };
        let bytes = seal(key, &purpose, value, seed)
            .map_err(|error| Error::during(Kind::Configuration, format!("cannot seal to {node}"), &error))?;
        sealed.insert(node.clone(), STANDARD.encode(bytes));
    }
    Ok((sealed, first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::{
        manifest::Manifest,
        notice::Revoked,
        policy::{NodeKeys, Root},
    };

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
}
