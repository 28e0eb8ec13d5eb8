//! `bulkhead secret`.

use crate::{
    Context,
    args::{Environment, GrantArgs, MaybeEnvironment, OrderArgs},
    commands::rollback,
    error::{Error, Kind, Result},
    output::Paint,
    pools::{scale_key, section},
    secrets::{
        POOL_SECRETS, PoolSecret, Recipients, SECRETS, digest, file, folder, joined, read, recipients, seal_to, unread,
        write,
    },
    session::{Session, app_of},
    table::Table,
    workspace::{App, FleetFiles, MANIFEST, shown, write_json},
};
use bulkhead_core::{
    AppName, EnvironmentName, NodeName, PersonName, PoolName, SecretName, fleet::FleetNode, order::ServiceSpec,
};
use bulkhead_trust::sealing::VALUE_MAX_BYTES;
use clap::{Args, Subcommand};
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    collections::BTreeSet,
    io::{IsTerminal as _, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use zeroize::Zeroizing;

/// Gives services secrets, sealed to the nodes that run them
#[derive(Debug, Args)]
pub struct SecretArgs {
    #[command(subcommand)]
    command: SecretCommand,
}

#[derive(Debug, Subcommand)]
enum SecretCommand {
    Set(SetArgs),
    Rotate(RotateArgs),
    Ls(LsArgs),
    Rm(RmArgs),
}

/// Which secret, and where its value comes from.
#[derive(Debug, Args)]
struct ValueArgs {
    #[command(flatten)]
    environment: Environment,

    /// The app.
    #[arg(value_name = "APP")]
    app: AppName,

    /// The secret's name: services read it from a file of this name.
    #[arg(value_name = "NAME")]
    name: SecretName,

    /// Takes the value from a file, byte for byte.
    #[arg(long, value_name = "FILE", conflicts_with = "command")]
    file: Option<PathBuf>,

    /// Takes the value from what a command prints, such as a password manager's; a line feed at its end is left out.
    #[arg(long, value_name = "COMMAND")]
    command: Option<String>,
}

/// Seals a value to each node of the environment, and writes that beside fleet.toml
///
/// The value is asked for at the terminal, or read from standard input (without a line feed at its end). It is
/// encrypted here, to keys that never leave the nodes, and for this app, environment and name alone: what is written
/// to `.bulkhead/secrets` can be checked in. Services get it with the next order: `bulkhead deploy`, or `secret rotate`.
/// The nodes are asked whether the keys are still theirs: one that was made anew has others, and nothing is sealed
/// until the policy lists them (`bulkhead policy nodes`).
///
/// With `--pool` it is sealed to the pool's loop instead: to the key that the policy gives the role `scale`. The loop
/// seals it again to each node on which it starts an instance, and so can read it.
#[derive(Debug, Args)]
struct SetArgs {
    #[command(flatten)]
    value: ValueArgs,

    /// Seals it for instances on the nodes of a pool.
    #[arg(long, value_name = "POOL")]
    pool: Option<PoolName>,

    /// Whose key the pool's loop has, where the policy gives several the role `scale`.
    #[arg(long, value_name = "PERSON", requires = "pool")]
    key: Option<PersonName>,
}

/// As `set`, and has the nodes run what they run already, with the new value
#[derive(Debug, Args)]
struct RotateArgs {
    #[command(flatten)]
    value: ValueArgs,

    /// What the environment may demand besides signatures.
    #[command(flatten)]
    grant: GrantArgs,

    #[command(flatten)]
    order: OrderArgs,
}

/// Lists which secrets have values, and for which nodes
#[derive(Debug, Args)]
struct LsArgs {
    #[command(flatten)]
    environment: MaybeEnvironment,

    /// One app only.
    #[arg(value_name = "APP")]
    app: Option<AppName>,
}

/// Removes the sealed values of a secret beside fleet.toml; nodes keep what they have until their next order
#[derive(Debug, Args)]
struct RmArgs {
    #[command(flatten)]
    environment: Environment,

    /// The app.
    #[arg(value_name = "APP")]
    app: AppName,

    /// The secret's name.
    #[arg(value_name = "NAME")]
    name: SecretName,

    /// What was sealed for a pool.
    #[arg(long, value_name = "POOL")]
    pool: Option<PoolName>,

    /// Goes on without a question.
    #[arg(short, long)]
    yes: bool,
}

/// What was done with a secret. Never its value.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SecretReport {
    /// The app.
    pub app: AppName,
    /// The environment.
    pub environment: EnvironmentName,
    /// The secret.
    pub name: SecretName,
    /// The pool whose loop can open the value, where it is for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// The nodes that can open the value; none where it was removed.
    pub nodes: Vec<NodeName>,
    /// Of these, those whose keys the policy does not list: they were taken as seen first.
    pub first_seen: Vec<NodeName>,
    /// What is to be looked at: the app or the name stands nowhere that is known here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Where the sealed values lie.
    pub file: String,
}

/// Which secrets have values.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SecretLsReport {
    /// Each secret.
    pub secrets: Vec<ListedSecret>,
}

/// A secret that has a value.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct ListedSecret {
    /// The environment.
    pub environment: EnvironmentName,
    /// The app.
    pub app: AppName,
    /// Its name.
    pub name: SecretName,
    /// The pool that it is for, whose loop can open it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// The nodes that can open it, each with the digest of what is sealed to it, as orders pin it.
    pub nodes: Vec<SealedTo>,
}

/// A node that can open a secret.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct SealedTo {
    /// The node.
    pub node: NodeName,
    /// sha256 of what is sealed to it.
    pub digest: String,
}

/// Does what was asked.
///
/// # Errors
/// No value, no key of a node, or a file that cannot be written.
pub async fn run(context: &Context, args: &SecretArgs) -> Result<()> {
    match &args.command {
        SecretCommand::Set(args) => {
            let report = match &args.pool {
                Some(pool) => set_for_pool(context, &args.value, pool, args.key.as_ref()).await?,
                None => set(context, &args.value).await?,
            };
            context.ui.result(&report, render_set)
        }
        SecretCommand::Rotate(args) => {
            context.ui.must_be_able_to_ask(args.order.yes)?;
            let report = set(context, &args.value).await?;
            context.ui.step(&format!("sealed {} to {}", report.name, joined(&report.nodes)));
            let rollback = rollback::RollbackArgs::again(
                args.value.environment.clone(),
                args.value.app.clone(),
                args.grant.clone(),
                args.order.clone(),
            );
            rollback::run_again(context, &rollback).await
        }
        SecretCommand::Ls(args) => {
            let report = list(context, args)?;
            context.ui.result(&report, render_list)
        }
        SecretCommand::Rm(args) => remove(context, args).await,
    }
}

async fn set(context: &Context, args: &ValueArgs) -> Result<SecretReport> {
    let session = Session::open(context)?;
    let environment = &args.environment.environment;
    let local = local_app(context)?;
    let nodes = nodes_of(local.as_ref(), &session.files, environment, &args.app).map_err(|error| {
        let mut pools = session.files.fleet.pools.iter().filter(|(_, section)| section.environment == *environment);
        match pools.next() {
            Some((pool, _)) => error.hint(format!("for instances on pool `{pool}`: `--pool {pool}`")),
            None => error,
        }
    })?;
    // Before the value is asked for: it would be for nothing.
    let recipients = recipients(context, &session, environment, &nodes).await?;
    let unread = look_for_readers(args, local.as_ref(), &recipients);
    if let Some(warning) = &unread {
        context.ui.note(&format!("warning: {warning}"));
    }
    let value = value(context, args).await?;
    let fleet = &session.files.fleet.fleet;
    let sealed = seal_to(fleet, environment, &args.app, &args.name, &recipients, &value)?;
    let path = file(&session.files.directory, environment, &args.app, &args.name);
    write(&path, &sealed)?;
    Ok(SecretReport {
        app: args.app.clone(),
        environment: environment.clone(),
        name: args.name.clone(),
        pool: None,
        nodes: sealed.into_keys().collect(),
        first_seen: recipients.first_seen,
        warning: unread,
        file: shown(&path).to_string(),
    })
}

/// Whom it is sealed to the policy says, so nobody is asked.
async fn set_for_pool(
    context: &Context,
    args: &ValueArgs,
    pool: &PoolName,
    key: Option<&PersonName>,
) -> Result<SecretReport> {
    let files = FleetFiles::load(&context.places)?;
    let environment = &args.environment.environment;
    let section = section(&files.fleet, pool)?;
    if section.environment != *environment {
        let message = format!("pool `{pool}` is for `{}`, and not for `{environment}`", section.environment);
        return Err(Error::usage(message));
    }
    let key = scale_key(&files.policy()?.policy, key)?;
    let local = local_app(context)?;
    let manifest = local.as_ref().map(|local| &local.manifest.app);
    let services = local.as_ref().filter(|local| local.manifest.app == args.app);
    let services = services.map(|local| local.manifest.services_in(environment));
    let unread = unread(&args.app, &args.name, environment, manifest, services.as_deref());
    if let Some(warning) = &unread {
        context.ui.note(&format!("warning: {warning}"));
    }
    let secret = PoolSecret { environment, pool, app: &args.app, name: &args.name };
    // Before the value is asked for: it would be for nothing.
    secret.seal(&files.fleet.fleet, &key, b"")?;
    let value = value(context, args).await?;
    let sealed = secret.seal(&files.fleet.fleet, &key, &value)?;
    let path = secret.file(&files.directory);
    write_json(&path, &sealed)?;
    Ok(SecretReport {
        app: args.app.clone(),
        environment: environment.clone(),
        name: args.name.clone(),
        pool: Some(pool.clone()),
        nodes: vec![],
        first_seen: vec![],
        warning: unread,
        file: shown(&path).to_string(),
    })
}

/// The manifest that is here, if one is.
fn local_app(context: &Context) -> Result<Option<App>> {
    let path = context.places.manifest.clone().unwrap_or_else(|| MANIFEST.into());
    if matches!(path.try_exists(), Ok(false)) {
        return Ok(None);
    }
    // One that is here and wrong may be what says which nodes.
    App::load(&context.places).map(Some)
}

/// The nodes that run the app: those that its manifest names, where that is here, else all of the environment.
fn nodes_of(
    local: Option<&App>,
    files: &FleetFiles,
    environment: &EnvironmentName,
    app: &AppName,
) -> Result<Vec<(NodeName, FleetNode)>> {
    match local {
        Some(local) if local.manifest.app == *app => local.nodes_in(files, environment),
        _ => files.nodes_in(environment),
    }
}

/// What is to be said where neither the manifest that is here nor what runs on nodes has such a secret.
fn look_for_readers(args: &ValueArgs, local: Option<&App>, recipients: &Recipients) -> Option<String> {
    let environment = &args.environment.environment;
    let manifest = local.map(|local| &local.manifest.app);
    let services: Option<Vec<ServiceSpec>> = match local {
        Some(local) if local.manifest.app == args.app => Some(local.manifest.services_in(environment)),
        _ => {
            let apps = recipients.statuses.iter().filter_map(|status| app_of(status, &args.app));
            let live: Vec<_> = apps.filter_map(|app| app.live.as_ref()).collect();
            (!live.is_empty()).then(|| live.into_iter().flat_map(|live| live.services.clone()).collect())
        }
    };
    unread(&args.app, &args.name, environment, manifest, services.as_deref())
}

async fn value(context: &Context, args: &ValueArgs) -> Result<Zeroizing<Vec<u8>>> {
    if let Some(path) = &args.file {
        let cannot =
            |error: &std::io::Error| Error::during(Kind::Configuration, format!("cannot read {}", shown(path)), error);
        let opened = std::fs::File::open(path).map_err(|error| cannot(&error))?;
        return bounded(opened).map_err(|error| cannot(&error)).and_then(checked);
    }
    if let Some(command) = &args.command {
        return from_command(command).map(without_line_feed).and_then(checked);
    }
    if std::io::stdin().is_terminal() {
        let (ui, prompt) = (std::sync::Arc::clone(&context.ui), format!("value of {}: ", args.name));
        let asked = tokio::task::spawn_blocking(move || ui.secret(&prompt)).await;
        let typed = asked.map_err(|error| Error::during(Kind::Internal, "the value cannot be asked for", &error))?;
        let typed = typed.ok_or_else(|| Error::usage("no value was given"))?;
        return checked(Zeroizing::new(typed.into_bytes()));
    }
    bounded(std::io::stdin())
        .map(without_line_feed)
        .map_err(|error| Error::during(Kind::Usage, "the value cannot be read from standard input", &error))
        .and_then(checked)
}

/// At most one byte more than a value may have. The buffer never grows, so no copy of it stays behind.
fn bounded(from: impl Read) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut value = Zeroizing::new(Vec::with_capacity(VALUE_MAX_BYTES + 64));
    from.take(VALUE_MAX_BYTES as u64 + 2).read_to_end(&mut value)?;
    Ok(value)
}

fn without_line_feed(mut value: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    if value.last() == Some(&b'\n') {
        value.pop();
        if value.last() == Some(&b'\r') {
            value.pop();
        }
    }
    value
}

fn checked(value: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>> {
    if value.is_empty() {
        return Err(Error::usage("the value is empty"));
    }
    if value.len() > VALUE_MAX_BYTES {
        return Err(Error::usage(format!("the value is longer than {VALUE_MAX_BYTES} bytes")));
    }
    Ok(value)
}

fn from_command(command: &str) -> Result<Zeroizing<Vec<u8>>> {
    let (shell, flag) = if cfg!(windows) { ("cmd", "/C") } else { ("/bin/sh", "-c") };
    let cannot = |error: &std::io::Error| Error::during(Kind::Usage, "the command cannot be run", error);
    let mut child =
        Command::new(shell).args([flag, command]).stdout(Stdio::piped()).spawn().map_err(|error| cannot(&error))?;
    let output = child.stdout.take().ok_or_else(|| Error::new(Kind::Internal, "the command has no output"))?;
    let value = bounded(output).map_err(|error| cannot(&error))?;
    let status = child.wait().map_err(|error| cannot(&error))?;
    if !status.success() {
        return Err(Error::usage(format!("the command failed: {status}")));
    }
    Ok(value)
}

fn list(context: &Context, args: &LsArgs) -> Result<SecretLsReport> {
    let files = FleetFiles::load(&context.places)?;
    let mut secrets = Vec::new();
    let environments: BTreeSet<EnvironmentName> = match &args.environment.environment {
        Some(environment) => [environment.clone()].into(),
        None => {
            let of_pools = files.fleet.pools.values().map(|section| section.environment.clone());
            files.environments().into_iter().chain(of_pools).collect()
        }
    };
    for environment in environments {
        let apps = match &args.app {
            Some(app) => vec![app.clone()],
            None => names_in(&files.directory.join(SECRETS).join(environment.as_str()), ""),
        };
        for app in apps {
            for name in names_in::<SecretName>(&folder(&files.directory, &environment, &app), ".json") {
                let path = file(&files.directory, &environment, &app, &name);
                let sealed = read(&path)?.unwrap_or_default();
                let to = |(node, value): (NodeName, String)| {
                    let digest = digest(&value).map_or_else(|_| "not base64".into(), |digest| digest.to_string());
                    SealedTo { node, digest }
                };
                let nodes = sealed.into_iter().map(to).collect();
                let (environment, app) = (environment.clone(), app.clone());
                secrets.push(ListedSecret { environment, app, name, pool: None, nodes });
            }
        }
        let of_pools = files.directory.join(POOL_SECRETS).join(environment.as_str());
        for pool in names_in::<PoolName>(&of_pools, "") {
            let of_pool = of_pools.join(pool.as_str());
            let apps = args.app.clone().map_or_else(|| names_in(&of_pool, ""), |app| vec![app]);
            for app in apps {
                for name in names_in(&of_pool.join(app.as_str()), ".json") {
                    let (environment, app, pool) = (environment.clone(), app.clone(), Some(pool.clone()));
                    secrets.push(ListedSecret { environment, app, name, pool, nodes: vec![] });
                }
            }
        }
    }
    secrets.sort();
    Ok(SecretLsReport { secrets })
}

/// The names that files or folders have in a folder, which need not be there.
fn names_in<T: std::str::FromStr>(folder: &Path, suffix: &str) -> Vec<T> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(suffix)?.parse().ok()).collect()
}

async fn remove(context: &Context, args: &RmArgs) -> Result<()> {
    let files = FleetFiles::load(&context.places)?;
    let environment = &args.environment.environment;
    let (path, is_there, where_to, what) = match &args.pool {
        None => {
            let path = file(&files.directory, environment, &args.app, &args.name);
            let is_there = read(&path)?.is_some();
            (path, is_there, environment.to_string(), format!("no order for {} can be made", args.app))
        }
        Some(pool) => {
            let secret = PoolSecret { environment, pool, app: &args.app, name: &args.name };
            let is_there = secret.read(&files.directory)?.is_some();
            let what = format!("no instance of {} starts there", args.app);
            (secret.file(&files.directory), is_there, format!("pool {pool} of {environment}"), what)
        }
    };
    if let Some(pool) = args.pool.as_ref().filter(|_| !is_there) {
        section(&files.fleet, pool)?;
    }
    if !is_there {
        return Err(Error::usage(format!("secret `{}` of {} has no value in {where_to}", args.name, args.app))
            .hint("`bulkhead secret ls` shows those that have one"));
    }
    let question = format!("Remove {}? Without it {what}.", shown(&path));
    context.ui.confirm(&question, args.yes).await?;
    std::fs::remove_file(&path)
        .map_err(|error| Error::during(Kind::Internal, format!("cannot remove {}", shown(&path)), &error))?;
    let report = SecretReport {
        app: args.app.clone(),
        environment: environment.clone(),
        name: args.name.clone(),
        pool: args.pool.clone(),
        nodes: vec![],
        first_seen: vec![],
        warning: None,
        file: shown(&path).to_string(),
    };
    context.ui.result(&report, |report, _| format!("removed {}\n", report.file))
}

fn render_set(report: &SecretReport, _: Paint) -> String {
    let mut out = String::new();
    if let Some(pool) = &report.pool {
        putln!(out, "{}: sealed to the loop of pool {pool}", report.file);
        putln!(out, "instances have it with the next grant: `bulkhead pool grant {pool} -e {}`", report.environment);
        return out;
    }
    putln!(out, "{}: sealed to {}", report.file, joined(&report.nodes));
    if !report.first_seen.is_empty() {
        putln!(out, "the policy lists no keys of {}: taken as seen first", joined(&report.first_seen));
    }
    putln!(out, "services have it with the next order: `bulkhead deploy -e {}`", report.environment);
    out
}

fn render_list(report: &SecretLsReport, paint: Paint) -> String {
    let mut table = Table::new(&["ENVIRONMENT", "APP", "SECRET", "SEALED TO"]);
    for secret in &report.secrets {
        let nodes: Vec<NodeName> = secret.nodes.iter().map(|sealed| sealed.node.clone()).collect();
        let to = secret.pool.as_ref().map_or_else(|| joined(&nodes), |pool| format!("pool {pool}"));
        table.row([secret.environment.to_string(), secret.app.to_string(), secret.name.to_string(), to]);
    }
    if table.is_empty() { "no secret has a value\n".into() } else { table.render(paint) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let take = |bytes: &[u8]| bounded(bytes).map(without_line_feed).unwrap();
        assert_eq!(**take(b"x\n"), *b"x");
        assert_eq!(**take(b"x\r\n"), *b"x");
        assert_eq!(**take(b"x\n\n"), *b"x\n");
        assert_eq!(**take(b"x"), *b"x");
        assert!(checked(take(b"\n")).is_err());
        assert!(checked(take(&vec![b'x'; VALUE_MAX_BYTES])).is_ok());
        let line = [vec![b'x'; VALUE_MAX_BYTES], b"\n".to_vec()].concat();
        assert!(checked(take(&line)).is_ok());
        assert!(checked(take(&vec![b'x'; VALUE_MAX_BYTES + 1])).is_err());
    }
}
