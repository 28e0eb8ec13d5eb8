//! `bulkhead node adopt`.

use crate::{
    Context,
    args::Environment,
    error::{Error, Kind, Result},
    inventory,
    output::{Paint, printable, size},
    pools,
    session::{As, Session, cache_directory, node_error},
    workspace::{FLEET, FleetFiles, shown},
};
use bulkhead_core::{
    EnvironmentName, NodeName, PoolName,
    fleet::{FleetNode, PoolProvider},
    name::nearest,
    node::{CONFIRM_WITHIN_S, NodeConfig, NodeIdentity},
};
use bulkhead_fleet::{
    ConnectError, HostKey, Target,
    bootstrap::{Architecture, BootstrapError, Found, Installed, Machine, find_agent},
    config::SshConfig,
    resolve_machine,
};
use bulkhead_wire::ACCOUNT;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::{path::Path, str::FromStr};

/// What an interruption means while the machine is between the two SSH servers.
const BETWEEN: &str =
    "the machine gives its stock SSH server back within 5 minutes; then the same command again goes on";
/// The same, once `fleet.toml` has the node.
const ENTERED: &str = "the same command again tells whether it is a node now, and goes on where it is not";
/// The port of a node's SSH server.
const SSH_PORT: u16 = 22;

/// Makes a stock Debian or Ubuntu machine a node, over the login its provider gave you
///
/// Looks first, says what it will change, and asks; without a terminal and without `--yes` it ends there. Needs root, or an account whose `sudo` asks nothing, by key. The machine
/// is then reached as a node is: over SSH on port 22, by the policy's keys alone; root and password logins are closed.
/// Should the node's own SSH server not let you in, the stock one comes back within five minutes. Run again it
/// changes nothing. See docs/adopt.md.
#[derive(Debug, Args)]
pub struct NodeAdoptArgs {
    /// The machine: USER@HOST, where HOST may be a `Host` of `~/.ssh/config`; `root` where no user is named.
    #[arg(value_name = "USER@HOST")]
    pub machine: MachineAddress,

    #[command(flatten)]
    environment: Environment,

    /// The node's name; the machine's own host name by default.
    #[arg(long, value_name = "NAME")]
    pub name: Option<NodeName>,

    /// The pool that it becomes a machine of, where `fleet.toml` has one of fixed machines.
    ///
    /// Deploys pass it by then; it runs what the pool was granted.
    #[arg(long, value_name = "NAME")]
    pub pool: Option<PoolName>,

    /// The port of the machine's SSH server, where it is not 22 and `~/.ssh/config` does not say.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,

    /// The machine's SSH host key as its provider or its console shows it: `SHA256:…` or `ssh-ed25519 AAAA…`.
    ///
    /// Without it `~/.ssh/known_hosts` must know the machine, or you are shown the key and asked to compare it.
    #[arg(long, value_name = "FINGERPRINT|KEY")]
    pub host_key: Option<HostKey>,

    /// The host key was made for this one connection, by whoever bought the machine: the machine drops it.
    #[arg(long, requires = "host_key", hide = true)]
    pub one_time_host_key: bool,

    /// Goes on without a question; the host key must be known then.
    #[arg(short, long)]
    pub yes: bool,
}

/// `root@203.0.113.7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineAddress {
    /// The account, where it was named.
    pub user: Option<String>,
    /// Host name, address, or a `Host` of `~/.ssh/config`.
    pub host: String,
}

impl FromStr for MachineAddress {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (user, host) = match text.rsplit_once('@') {
            Some((user, host)) => (Some(user.to_owned()), host),
            None => (None, text),
        };
        let host = host.trim_matches(['[', ']']);
        let is_empty = host.is_empty() || user.as_ref().is_some_and(String::is_empty);
        if is_empty || text.contains(char::is_whitespace) || text.contains("://") {
            return Err("write USER@HOST, such as root@203.0.113.7".into());
        }
        if host.parse::<std::net::SocketAddrV4>().is_ok() || (host.matches(':').count() == 1) {
            return Err("name the port with `--port PORT`".into());
        }
        Ok(Self { user, host: host.to_owned() })
    }
}

/// What came of it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AdoptReport {
    /// The node's name.
    pub node: String,
    /// Its environment.
    pub environment: String,
    /// Its address, as in `fleet.toml`.
    pub address: String,
    /// Its host key, as in `fleet.toml`.
    pub host_key: String,
    /// Whether anything was changed: `false` where it was this node already.
    pub changed: bool,
    /// Packages that were installed.
    pub packages: Vec<String>,
    /// Everything that was changed on the machine, in order.
    pub changes: Vec<String>,
    /// What somebody should know.
    pub notes: Vec<String>,
}

/// Adopts.
///
/// # Errors
/// The machine cannot be reached or cannot be a node, or its own SSH server let nobody in.
pub(super) async fn run(context: &Context, args: &NodeAdoptArgs) -> Result<()> {
    let session = Session::open(context)?;
    check_environment(&session, &args.environment.environment)?;
    check_pool(&session, args)?;
    let agent = Agent::at_hand().await?;
    if let Some(report) = already_a_node(context, &session, args).await? {
        return context.ui.result(&report, render);
    }

    context.ui.progress(&format!("logging in to {}", args.machine.host));
    let (mut machine, host_key_from) = reach(context, &session, args).await?;
    let done = adopt(context, &session, args, &agent, &mut machine, host_key_from).await;
    machine.close().await;
    context.ui.clear();
    context.ui.result(&done?, render)
}

async fn adopt(
    context: &Context,
    session: &Session,
    args: &NodeAdoptArgs,
    agent: &Agent,
    machine: &mut Machine,
    host_key_from: &'static str,
) -> Result<AdoptReport> {
    let ui = &context.ui;
    ui.progress("looking at what is there");
    let found = machine.look().await.map_err(|error| bootstrap_error(&error))?;
    let name = name(session, args, &found)?;
    let identity = NodeIdentity {
        fleet: session.files.fleet.fleet.clone(),
        node: name.clone(),
        environment: args.environment.environment.clone(),
        pool: args.pool.clone(),
    };
    let obstacles = found.obstacles(agent.architecture, &identity);
    if !obstacles.is_empty() {
        let mut error =
            Error::new(Kind::Node, format!("{} cannot become a node; nothing was changed", args.machine.host));
        error.causes = obstacles.iter().map(ToString::to_string).collect();
        return Err(error);
    }
    let mut node = FleetNode {
        environment: identity.environment.clone(),
        address: args.machine.host.clone(),
        port: port(args, machine)?,
        host_key: None,
        provider: None,
        pool: args.pool.clone(),
    };
    target_as_node(session, &name, &node)?;

    let packages = found.missing_packages();
    let plan = Plan { args, identity: &identity, found: &found, packages: &packages, host_key_from };
    ui.preview(|paint| plan.render(paint))?;
    if !args.yes && !ui.is_interactive() {
        return Err(Error::usage(
            "this would change the machine, and there is no terminal to ask at; nothing was changed",
        )
        .hint("say `--yes` to go on without a question"));
    }
    ui.confirm(&format!("\nMake {} the node {name}?", args.machine.host), args.yes).await?;

    if !packages.is_empty() {
        ui.progress(&format!("installing {}", packages.join(", ")));
        ui.stage("nothing but packages was installed");
        machine.install_packages(&packages).await.map_err(|error| bootstrap_error(&error))?;
        ui.step(&format!("installed {}", packages.join(", ")));
    }
    ui.progress("laying it out as a node");
    ui.stage(BETWEEN);
    let config = config(session, &identity)?;
    let installed = match machine.install(&agent.bytes, &config).await {
        Ok(installed) => installed,
        Err(error) => return Err(put_back(machine, bootstrap_error(&error)).await),
    };
    ui.step(&format!("laid it out as a node ({} changes)", installed.changes.len()));

    // Before the new server is known to work: an interruption from here on must not lose the node's host key.
    let was = session.files.fleet.nodes.get(&name).cloned();
    node.host_key = Some(installed.host_key.clone());
    inventory::edit(&session.files, |document| inventory::set(document, &name, &node))?;
    ui.stage(ENTERED);
    ui.progress("making a fresh connection to its own SSH server");
    if let Err(error) = greet(session, machine, &identity, &node).await {
        let error = put_back(machine, error).await;
        inventory::edit(&session.files, |document| match &was {
            Some(was) => inventory::set(document, &name, was),
            None => inventory::remove(document, &name),
        })?;
        return Err(error);
    }
    ui.step(&format!("{name} answers on its own SSH server; entered into {FLEET}"));
    ui.stage("the node is adopted; only files of use on the way may be left on it");
    machine.clear(args.one_time_host_key).await.map_err(|error| bootstrap_error(&error))?;
    forget_host(&session.files, &name);
    Ok(report(&identity, &node, packages, installed))
}

/// Gives the stock SSH server back at once, while the connection to it lasts; by itself it would take minutes.
async fn put_back(machine: &Machine, error: Error) -> Error {
    match machine.revert().await {
        Ok(()) => error.hint("its stock SSH server serves on; where it had been stopped it was put back"),
        Err(_) => error.hint(format!(
            "where SSH as before does not answer: its stock server comes back within {} minutes",
            CONFIRM_WITHIN_S / 60
        )),
    }
}

/// The agent's static binary.
struct Agent {
    bytes: Vec<u8>,
    architecture: Architecture,
}

impl Agent {
    async fn at_hand() -> Result<Self> {
        let path = find_agent().map_err(|error| {
            Error::of(Kind::Configuration, &error).hint("name the binary for nodes in BULKHEAD_AGENT")
        })?;
        let bytes = tokio::fs::read(&path)
            .await
            .map_err(|error| Error::during(Kind::Configuration, format!("cannot read {}", path.display()), &error))?;
        let architecture = Architecture::of_elf(&bytes).ok_or_else(|| {
            Error::configuration(format!("{} is not a Linux program for x86_64 or aarch64", path.display()))
        })?;
        Ok(Self { bytes, architecture })
    }
}

fn check_environment(session: &Session, environment: &EnvironmentName) -> Result<()> {
    let known: Vec<&str> = session.policy.policy.environments.keys().map(EnvironmentName::as_str).collect();
    if known.contains(&environment.as_str()) {
        return Ok(());
    }
    let error = Error::configuration(format!(
        "the policy has no environment `{environment}`: a node of it would accept no order"
    ));
    Err(match nearest(environment.as_str(), known.iter().copied()) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint(format!("it has {}", known.join(", "))),
    })
}

/// A pool must be there, of fixed machines, and of the same environment: nothing else would ever lease this one.
fn check_pool(session: &Session, args: &NodeAdoptArgs) -> Result<()> {
    let Some(name) = &args.pool else { return Ok(()) };
    let section = pools::section(&session.files.fleet, name)?;
    if section.provider != PoolProvider::Fixed {
        return Err(Error::usage(format!(
            "pool `{name}` is from {}, which makes its machines: only a `fixed` one takes a machine that is there",
            section.provider.as_str()
        )));
    }
    if section.environment != args.environment.environment {
        return Err(Error::usage(format!(
            "pool `{name}` is for `{}`, and the node for `{}`",
            section.environment, args.environment.environment
        )));
    }
    if args.machine.host.parse::<std::net::IpAddr>().is_err() {
        return Err(Error::usage(format!("`{}` is not an IP address", printable(&args.machine.host)))
            .hint("a machine of a pool is leased by its address: name it by that"));
    }
    Ok(())
}

/// The report, where `fleet.toml` has this machine and it answers as this node; an error, where it has another of this
/// name.
async fn already_a_node(context: &Context, session: &Session, args: &NodeAdoptArgs) -> Result<Option<AdoptReport>> {
    let nodes = &session.files.fleet.nodes;
    let path = session.files.directory.join(FLEET);
    let known = match &args.name {
        Some(name) => nodes.get_key_value(name),
        None => nodes.iter().find(|(_, node)| is_same_machine(node, args)),
    };
    let Some((name, node)) = known else { return Ok(None) };
    if !is_same_machine(node, args) {
        return Err(Error::configuration(format!(
            "{} has a node `{name}` at {}, which is another machine",
            shown(&path),
            node.address
        ))
        .hint("choose another name with `--name`"));
    }
    if node.environment != args.environment.environment {
        return Err(Error::configuration(format!(
            "{} has this machine as node `{name}` of {}; a node does not change its environment",
            shown(&path),
            node.environment
        )));
    }
    if node.pool != args.pool {
        let of = node.pool.as_ref().map_or_else(|| "of no pool".to_owned(), |pool| format!("of pool `{pool}`"));
        return Err(Error::configuration(format!(
            "{} has this machine as node `{name}` {of}; a node does not change its pool",
            shown(&path)
        )));
    }
    context.ui.progress(&format!("asking {name}"));
    let asked = async {
        let client = session.connect(name, node, As::Courier).await?;
        let status = client.status().await.map_err(|error| node_error(&error));
        client.close().await;
        status
    };
    match asked.await {
        Ok(status) if status.node == *name && status.fleet == session.files.fleet.fleet => Ok(Some(AdoptReport {
            node: name.to_string(),
            environment: node.environment.to_string(),
            address: address(node),
            host_key: node.host_key.clone().unwrap_or_default(),
            changed: false,
            packages: vec![],
            changes: vec![],
            notes: vec![],
        })),
        Ok(status) => Err(Error::new(
            Kind::Refused,
            format!("{} is node `{}` of fleet `{}`", address(node), status.node, status.fleet),
        )),
        Err(error) => {
            context.ui.clear();
            let place = shown(&path);
            context.ui.note(&format!("{place} has {name} already, but it does not answer as a node: {error}"));
            Ok(None)
        }
    }
}

fn is_same_machine(node: &FleetNode, args: &NodeAdoptArgs) -> bool {
    // A node listens on 22 whatever the stock server did, unless a forwarding on the way keeps another port.
    node.address == args.machine.host && node.port.is_none_or(|port| args.port.is_none_or(|given| given == port))
}

/// Logs in with the host key that was given or is known, or that a person compared. Also says which of them.
async fn reach(context: &Context, session: &Session, args: &NodeAdoptArgs) -> Result<(Machine, &'static str)> {
    let log_in = async |host_key: Option<&HostKey>| {
        let target = target_as_machine(session, args, host_key)?;
        Ok::<_, Error>(Machine::reach(&target, &session.identities, session.timeouts).await)
    };
    let error = match log_in(args.host_key.as_ref()).await? {
        Ok(machine) if args.host_key.is_some() => return Ok((machine, "as given")),
        Ok(machine) => return Ok((machine, "known by ~/.ssh/known_hosts")),
        Err(error) => error,
    };
    let BootstrapError::Reach { source, .. } = &error else { return Err(bootstrap_error(&error)) };
    let ConnectError::HostKeyUnknown { address, shown, line, .. } = &**source else {
        return Err(bootstrap_error(&error));
    };
    let question = format!(
        "{address} shows the host key\n  {shown}\nCompare it with what the machine's own console shows, or its provider:\n  ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub\n"
    );
    if !context.ui.is_interactive() {
        return Err(Error::new(Kind::Unreachable, format!("the host key of {address} is not known: it shows {shown}"))
            .hint(
                "compare it with the machine's own: `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on its console",
            )
            .hint(format!("where they are the same: `--host-key {shown}`")));
    }
    // To a terminal, as the question that follows it.
    context.ui.clear();
    for line in question.lines() {
        context.ui.note(line);
    }
    context.ui.confirm_word("Are all of its characters the same there?", "same", false).await?;
    let compared: HostKey = line.parse().map_err(|error| Error::of(Kind::Unreachable, &error))?;
    let machine = log_in(Some(&compared)).await?.map_err(|error| bootstrap_error(&error))?;
    Ok((machine, "as compared"))
}

fn ssh_config() -> Result<SshConfig> {
    SshConfig::load(&crate::session::home()?).map_err(|error| Error::of(Kind::Configuration, &error))
}

fn target_as_machine(session: &Session, args: &NodeAdoptArgs, host_key: Option<&HostKey>) -> Result<Target> {
    let config = ssh_config()?;
    let MachineAddress { user, host } = &args.machine;
    // Where neither names a user, the provider's is root, not this machine's.
    let named = user.clone().or_else(|| match config.lookup(host, "root").user {
        Some(_) => None,
        None => Some("root".to_owned()),
    });
    let label = args.name.clone().or_else(|| session.files.fleet.nodes.keys().next().cloned());
    let label = label.unwrap_or_else(|| "new".parse().expect("this is a name"));
    resolve_machine(&label, named.as_deref(), host, args.port, host_key, &config)
        .map_err(|_| Error::usage(format!("`{}` is not a host name or address", printable(host))))
}

/// How the machine is reached once it is a node. What `~/.ssh/config` says of the host must not stand against it.
fn target_as_node(session: &Session, name: &NodeName, node: &FleetNode) -> Result<Target> {
    let targets = session.targets(&[(name.clone(), node.clone())])?;
    let target = targets.into_iter().next().ok_or_else(|| Error::new(Kind::Internal, "no target for the node"))?;
    if target.user != ACCOUNT {
        return Err(Error::configuration(format!(
            "~/.ssh/config says `User {}` for {}; a node is reached as `{ACCOUNT}`",
            printable(&target.user),
            node.address
        ))
        .hint("take that line out, and name the user on the command line: `bulkhead node adopt USER@HOST`")
        .hint("or name the machine by its address"));
    }
    Ok(target)
}

fn name(session: &Session, args: &NodeAdoptArgs, found: &Found) -> Result<NodeName> {
    let name = match (&args.name, &found.node) {
        (Some(name), _) => return Ok(name.clone()),
        (None, Some(node)) => node.node.clone(),
        (None, None) => {
            let label = found.hostname.split('.').next().unwrap_or_default().to_lowercase();
            label.parse().map_err(|_| {
                Error::usage(format!("the machine calls itself `{}`, which is no name for a node", found.hostname))
                    .hint("name it with `--name NAME`")
            })?
        }
    };
    match session.files.fleet.nodes.get(&name) {
        Some(node) if !is_same_machine(node, args) => Err(Error::configuration(format!(
            "the machine calls itself `{name}`, and {FLEET} has a node of that name at {}",
            node.address
        ))
        .hint("name it with `--name NAME`")),
        _ => Ok(name),
    }
}

/// The port under which the node is reached from here: 22, unless something on the way forwards another one to it.
fn port(args: &NodeAdoptArgs, machine: &Machine) -> Result<Option<u16>> {
    let Some(here) = args.port.filter(|port| *port != SSH_PORT) else { return Ok(None) };
    match machine.arrived_at() {
        Some(SSH_PORT) => Ok(Some(here)),
        Some(there) if there != here => Err(Error::new(
            Kind::Node,
            format!("port {here} leads to port {there} of the machine, and a node listens on {SSH_PORT} alone; nothing was changed"),
        )
        .hint(format!("have it lead to port {SSH_PORT}"))),
        _ => Ok(None),
    }
}

fn config(session: &Session, identity: &NodeIdentity) -> Result<NodeConfig> {
    Ok(NodeConfig {
        fleet: identity.fleet.clone(),
        node: identity.node.clone(),
        environment: identity.environment.clone(),
        pool: identity.pool.clone(),
        policy: String::from_utf8(session.policy.bytes.clone())
            .map_err(|error| Error::during(Kind::Configuration, "the policy is not text", &error))?,
        signatures: session.policy.signatures.clone(),
        host_key: None,
    })
}

async fn greet(session: &Session, machine: &Machine, identity: &NodeIdentity, node: &FleetNode) -> Result<()> {
    let target = target_as_node(session, &identity.node, node)?;
    let greeted = machine.greet(&target, &session.identities, session.timeouts).await;
    let status = greeted.map_err(|error| bootstrap_error(&error))?;
    if (&status.fleet, &status.node, &status.environment) == (&identity.fleet, &identity.node, &identity.environment) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        format!("{} answers as node `{}` of fleet `{}`", address(node), status.node, status.fleet),
    ))
}

/// What this machine remembers of an earlier node of the name is of no use, and it is never worth failing for.
fn forget_host(files: &FleetFiles, name: &NodeName) {
    if let Ok(cache) = cache_directory() {
        std::fs::remove_file(cache.join("keys").join(files.fleet.fleet.as_str()).join(name.as_str())).ok();
    }
}

fn report(identity: &NodeIdentity, node: &FleetNode, packages: Vec<&'static str>, installed: Installed) -> AdoptReport {
    AdoptReport {
        node: identity.node.to_string(),
        environment: identity.environment.to_string(),
        address: address(node),
        host_key: installed.host_key,
        changed: true,
        packages: packages.into_iter().map(str::to_owned).collect(),
        changes: installed.changes,
        notes: installed.notes,
    }
}

fn address(node: &FleetNode) -> String {
    match node.port {
        Some(port) => format!("{}:{port}", node.address),
        None => node.address.clone(),
    }
}

fn bootstrap_error(error: &BootstrapError) -> Error {
    let kind = match error {
        BootstrapError::Reach { .. } | BootstrapError::Channel { .. } | BootstrapError::Broken { .. } => {
            Kind::Unreachable
        }
        BootstrapError::NotRoot { .. } => Kind::Refused,
        BootstrapError::Shut { .. } => Kind::Unreachable,
        _ => Kind::Node,
    };
    let folded = Error::of(kind, error);
    match error {
        BootstrapError::Reach { source, .. } => match &**source {
            ConnectError::Authentication { .. } => folded
                .hint("adoption logs in by key: put your public key into the account's authorized_keys first")
                .hint("an adoption that was interrupted closes this login for up to 5 minutes: try again then"),
            ConnectError::HostKeyChanged { .. } => {
                folded.hint("compare the machine's key on its console, and name it with `--host-key`")
            }
            _ => folded,
        },
        BootstrapError::NotRoot { .. } => {
            folded.hint("log in as root, or let the account use sudo without a password while it is adopted")
        }
        BootstrapError::Shut { .. } => folded
            .hint("the policy must name your key as a courier's, and nothing on the way may keep you from port 22"),
        _ => folded,
    }
}

/// What will be changed.
struct Plan<'a> {
    args: &'a NodeAdoptArgs,
    identity: &'a NodeIdentity,
    found: &'a Found,
    packages: &'a [&'static str],
    host_key_from: &'static str,
}

impl Plan<'_> {
    fn render(&self, paint: Paint) -> String {
        let Found { os, systemd, openssh, free_kib, .. } = self.found;
        let mut facts = vec![os.pretty.clone()];
        facts.extend(systemd.map(|version| format!("systemd {version}")));
        facts.extend(openssh.map(|(major, minor)| format!("OpenSSH {major}.{minor}")));
        facts.push(format!("{} free", size(free_kib * 1024)));
        let NodeIdentity { fleet, node, environment, .. } = self.identity;
        let mut out = format!("{}: {}\n", paint.bold(&self.args.machine.host), facts.join(", "));
        putln!(out, "host key {}", self.host_key_from);
        putln!(out, "\nbecomes the node {} of {fleet}, environment {environment}:", paint.bold(node.as_str()));
        let mut line = |what: &str, how: &str| putln!(out, "  {what:<18} {how}");
        if !self.packages.is_empty() {
            line("install packages", &self.packages.join(", "));
        }
        line("make accounts", "bulkhead, bulkhead-drop; no shell, no password");
        line("install agent", "/usr/lib/bulkhead, /etc/bulkhead, /var/lib/bulkhead, units bulkhead-*");
        line("SSH server", "bulkhead-sshd.service on port 22, with a host key of its own");
        line("close", "root login, password login, shells, forwarding");
        if !self.found.unwanted.is_empty() {
            line("stop and mask", &self.found.unwanted.join(", "));
        }
        line("packet filter", "drops all that comes in but SSH on port 22, and traffic to metadata services");
        if self.found.cloud_init {
            line("switch off", "cloud-init, at the next boot");
        }
        line("journal", "on disk, at most 512 MB");
        for listener in &self.found.listeners {
            let program = if listener.program.is_empty() { "a program" } else { &listener.program };
            line("out of reach", &format!("{} port {}, where {program} listens", listener.protocol, listener.port));
        }
        putln!(
            out,
            "\nUntil a fresh connection to the new SSH server has worked, the old one comes back by itself after {} minutes.",
            CONFIRM_WITHIN_S / 60
        );
        out
    }
}

fn render(report: &AdoptReport, paint: Paint) -> String {
    let AdoptReport { node, environment, address, .. } = report;
    if !report.changed {
        return format!("{} ({environment}) at {address}: nothing to change\n", paint.bold(node));
    }
    let mut out = format!("{} ({environment}) at {address}: adopted\n", paint.bold(node));
    putln!(out, "  host key  {}", report.host_key);
    putln!(out, "  closed    root and password login; port 22 alone is open");
    for note in &report.notes {
        putln!(out, "  note      {}", printable(note));
    }
    putln!(out, "\nnext: `bulkhead node ls`, and bring {} into version control", Path::new(FLEET).display());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_on_the_command_line() {
        for (text, user, host) in [
            ("root@203.0.113.7", Some("root"), "203.0.113.7"),
            ("web.example.org", None, "web.example.org"),
            ("deb@[2001:db8::1]", Some("deb"), "2001:db8::1"),
            ("root@2001:db8::1", Some("root"), "2001:db8::1"),
        ] {
            let wanted = MachineAddress { user: user.map(str::to_owned), host: host.to_owned() };
            assert_eq!(text.parse(), Ok(wanted), "{text}");
        }
        for text in ["", "root@", "@host", "ssh://root@host", "a b", "root@host:22"] {
            assert!(text.parse::<MachineAddress>().is_err(), "{text}");
        }
    }
}
