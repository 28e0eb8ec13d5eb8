//! `bulkhead key`.

use crate::{
    Context,
    commands::policy::{GoArgs, go_on},
    error::{Error, Kind, Result},
    proposal::name_of,
    workspace::{FleetFiles, read_text},
};
use bulkhead_core::{
    PersonName,
    policy::{Key, Policy, Role},
};
use bulkhead_trust::PublicKey;
use clap::{Args, Subcommand};
use std::{collections::BTreeSet, path::Path, str::FromStr};

/// Adds, changes and revokes keys, as proposals of the next policy
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    Add(AddArgs),
    Rotate(RotateArgs),
    Revoke(RevokeArgs),
}

/// Adds a key, or roles to one
///
/// A person who deploys and looks has `release`, `courier`, `observe` and `operate`
/// (the default); a CI signer `green`, and `courier` if it brings what it signs; a
/// dashboard `observe`. `root` makes it one of the keys that sign policies.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// The holder's name.
    #[arg(value_name = "NAME")]
    pub name: PersonName,

    /// The public key: a `.pub` file, or `ssh-ed25519 AAAA…` itself.
    #[arg(value_name = "KEY")]
    pub key: String,

    /// What it may do.
    #[arg(long = "role", value_name = "ROLE", default_values = ["release", "courier", "observe", "operate"])]
    pub roles: Vec<RoleOrRoot>,

    /// Its signatures count only where the security key checked a PIN or finger.
    #[arg(long)]
    pub verify_user: bool,

    #[command(flatten)]
    go: GoArgs,
}

/// Puts a new key in the place of a holder's, with the same roles
#[derive(Debug, Args)]
pub struct RotateArgs {
    /// The holder's name.
    #[arg(value_name = "NAME")]
    pub name: PersonName,

    /// The new public key: a `.pub` file, or `ssh-ed25519 AAAA…` itself.
    #[arg(value_name = "KEY")]
    pub key: String,

    #[command(flatten)]
    go: GoArgs,
}

/// Takes a key out of the policy: it signs nothing any more, and its connections end
///
/// What it signed before goes on running. `bulkhead revoke` keeps that from starting again.
/// A root key may stand under no name, as those of `bulkhead policy roots` do: its fingerprint
/// names it then, as `bulkhead policy show` has it, or its public key.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The holder's name, or the key's fingerprint (`SHA256:…`), `.pub` file or `ssh-ed25519 AAAA…` itself.
    #[arg(value_name = "NAME|KEY")]
    pub key: String,

    #[command(flatten)]
    go: GoArgs,
}

/// A role, or to be among the root keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleOrRoot {
    /// A role.
    Role(Role),
    /// A root key.
    Root,
}

impl FromStr for RoleOrRoot {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "root" { Ok(Self::Root) } else { text.parse().map(Self::Role) }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// Whatever it could not do.
pub async fn run(context: &Context, args: &KeyArgs) -> Result<()> {
    let files = FleetFiles::load(&context.places)?;
    match &args.command {
        KeyCommand::Add(args) => {
            let line = public(&args.key)?;
            go_on(context, &files, &args.go, |policy| add(policy, args, line)).await
        }
        KeyCommand::Rotate(args) => {
            let line = public(&args.key)?;
            go_on(context, &files, &args.go, |policy| rotate(policy, &args.name, &line)).await
        }
        KeyCommand::Revoke(args) => go_on(context, &files, &args.go, |policy| revoke(policy, &args.key)).await,
    }
}

/// A public key from a file, or given as it is.
pub(crate) fn public(text: &str) -> Result<String> {
    if PublicKey::parse(text).is_ok() { Ok(text.trim().to_owned()) } else { read_public(Path::new(text)) }
}

/// The key of a `.pub` file.
///
/// # Errors
/// It cannot be read, or is no key that can sign.
pub(crate) fn read_public(path: &Path) -> Result<String> {
    let text = read_text(path)?;
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
    PublicKey::parse(&line).map_err(|error| {
        Error::during(Kind::Configuration, format!("{} is not a public key that can sign", path.display()), &error)
            .hint("Ed25519 keys can, also those of security keys: `ssh-keygen -t ed25519`")
    })?;
    Ok(line)
}

fn is_same(one: &str, other: &str) -> bool {
    matches!((PublicKey::parse(one), PublicKey::parse(other)), (Ok(one), Ok(other)) if one == other)
}

fn add(policy: &mut Policy, args: &AddArgs, line: String) -> Result<()> {
    if let Some(known) = policy.keys.get(&args.name)
        && !is_same(&known.key, &line)
    {
        return Err(Error::configuration(format!("`{}` has another key", args.name))
            .hint(format!("`bulkhead key rotate {} KEY` puts a new one in its place", args.name)));
    }
    let roles: BTreeSet<Role> = args
        .roles
        .iter()
        .filter_map(|role| if let RoleOrRoot::Role(role) = role { Some(*role) } else { None })
        .collect();
    if args.roles.contains(&RoleOrRoot::Root) && !policy.root.keys.iter().any(|root| is_same(root, &line)) {
        policy.root.keys.push(line.clone());
    }
    if roles.is_empty() {
        return Ok(());
    }
    let key = policy.keys.entry(args.name.clone()).or_insert_with(|| Key {
        key: line,
        roles: BTreeSet::new(),
        verify_user: false,
    });
    key.roles.extend(roles);
    key.verify_user |= args.verify_user;
    Ok(())
}

fn holder<'a>(policy: &'a mut Policy, name: &PersonName) -> Result<&'a mut Key> {
    let unknown = no_key(policy, &format!("of `{name}`"));
    policy.keys.get_mut(name).ok_or(unknown)
}

fn no_key(policy: &Policy, which: &str) -> Error {
    let known: Vec<&str> = policy.keys.keys().map(PersonName::as_str).collect();
    let error = Error::configuration(format!("the policy has no key {which}"))
        .hint(format!("there are those of {}", known.join(", ")));
    let is_named = |root: &String| policy.keys.values().any(|key| is_same(&key.key, root));
    let nameless: Vec<String> =
        policy.root.keys.iter().filter(|root| !is_named(root)).map(|root| name_of(policy, root)).collect();
    if nameless.is_empty() {
        return error;
    }
    error
        .hint(format!("root keys under no name: {}; `bulkhead key revoke SHA256:…` takes one out", nameless.join(", ")))
}

/// The key that is meant, as the policy has it.
fn found(policy: &Policy, text: &str) -> Result<String> {
    let mut all = policy.keys.values().map(|key| &key.key).chain(&policy.root.keys);
    if text.starts_with("SHA256:") {
        let is_meant = |key: &&String| PublicKey::parse(key).is_ok_and(|key| key.fingerprint() == text);
        return all.find(is_meant).cloned().ok_or_else(|| no_key(policy, &format!("with the fingerprint {text}")));
    }
    if let Ok(name) = text.parse::<PersonName>() {
        let key = policy.keys.get(&name).map(|key| key.key.clone());
        return key.ok_or_else(|| no_key(policy, &format!("of `{text}`")));
    }
    if PublicKey::parse(text).is_err() && !Path::new(text).is_file() {
        return Err(no_key(policy, &format!("of `{text}`")));
    }
    let line = public(text)?;
    let known = all.find(|key| is_same(key, &line)).cloned();
    known.ok_or_else(|| no_key(policy, &format!("like that of {text}")))
}

fn rotate(policy: &mut Policy, name: &PersonName, line: &str) -> Result<()> {
    let key = holder(policy, name)?;
    if is_same(&key.key, line) {
        return Err(Error::usage(format!("that is the key that `{name}` has")));
    }
    let old = std::mem::replace(&mut key.key, line.to_owned());
    for root in policy.root.keys.iter_mut().filter(|root| is_same(root, &old)) {
        line.clone_into(root);
    }
    Ok(())
}

fn revoke(policy: &mut Policy, text: &str) -> Result<()> {
    let old = found(policy, text)?;
    policy.keys.retain(|_, key| !is_same(&key.key, &old));
    policy.root.keys.retain(|root| !is_same(root, &old));
    if policy.root.keys.len() < policy.root.threshold as usize {
        return Err(Error::configuration(format!(
            "without `{text}` there are {} root keys, and {} must sign",
            policy.root.keys.len(),
            policy.root.threshold
        ))
        .hint("first another root key: `bulkhead key add NAME KEY --role root`")
        .hint("or another set of them: `bulkhead policy roots THRESHOLD KEY …`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::starter;

    const ADA: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO92SB71v5YBUOl3Jy/6mjI8LJJau2i2qR6UXkv6GxqN ada";
    const BOB: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUDTvhRrAASRoEhcS4NFJVyrm2wBC2zfnrE8xNvp bob";

    fn policy() -> Policy {
        starter::policy(&"acme".parse().unwrap(), &"ada".parse().unwrap(), ADA)
    }

    #[test]
    fn rotating_follows_the_root() {
        let mut policy = policy();
        let ada = "ada".parse().unwrap();
        assert!(rotate(&mut policy, &ada, ADA).is_err(), "the same");
        rotate(&mut policy, &ada, BOB).unwrap();
        assert_eq!((policy.root.keys[0].as_str(), policy.keys[&ada].key.as_str()), (BOB, BOB));
        assert!(policy.keys[&ada].roles.contains(&Role::Release));
    }

    #[test]
    fn the_last_root_key_stays() {
        let mut policy = policy();
        let error = revoke(&mut policy.clone(), "ada").unwrap_err();
        assert!(error.message.contains("0 root keys, and 1 must sign"), "{error}");
        assert!(revoke(&mut policy.clone(), "bob").unwrap_err().message.contains("no key of `bob`"));
        policy.root.keys.push(BOB.into());
        revoke(&mut policy, "ada").unwrap();
        assert_eq!(policy.root.keys, [BOB]);
        assert!(policy.keys.is_empty());
    }

    /// `policy roots` lists keys that stand under no name.
    #[test]
    fn a_root_key_under_no_name_is_found_by_its_fingerprint() {
        let mut policy = policy();
        policy.root.keys.push(BOB.into());
        let print = PublicKey::parse(BOB).unwrap().fingerprint();
        let error = revoke(&mut policy.clone(), "bob").unwrap_err();
        assert!(
            error.hints.iter().any(|hint| hint.contains(&print) && hint.contains("key revoke SHA256:")),
            "{error:?}"
        );
        for text in [print.as_str(), BOB, "SHA256:x", "ssh-ed25519 x"] {
            let mut tried = policy.clone();
            let known = !text.ends_with('x');
            assert_eq!(revoke(&mut tried, text).is_ok(), known, "{text}");
            assert_eq!(tried.root.keys.len(), if known { 1 } else { 2 });
            assert_eq!(tried.keys.len(), 1);
        }
        // A holder's key is found by it too, and goes under every name and as a root key.
        revoke(&mut policy, &PublicKey::parse(ADA).unwrap().fingerprint()).unwrap();
        assert_eq!((policy.root.keys.as_slice(), policy.keys.len()), (&[BOB.to_owned()][..], 0));
    }
}
