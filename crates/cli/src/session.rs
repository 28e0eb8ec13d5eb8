//! A fleet ready to be talked to: its files, the verified policy, keys, SSH
//! settings and what this machine remembers; and asking many nodes at once.
//!
//! What saves time lies in one cache directory, which may be deleted at any
//! time and decides nothing. What this machine saw of nodes' audit logs lies in
//! a state directory ([`crate::ledger`]).
//!
//! ```text
//!          cache                                    state
//! Linux    $XDG_CACHE_HOME/bulkhead, ~/.cache/…     $XDG_STATE_HOME/bulkhead, ~/.local/state/…
//! macOS    ~/Library/Caches/bulkhead                ~/Library/Application Support/bulkhead
//! Windows  %LOCALAPPDATA%\bulkhead                  %LOCALAPPDATA%\bulkhead-state
//! any      $BULKHEAD_CACHE                          $BULKHEAD_STATE
//! ```

use crate::{
    Context,
    args::OrderArgs,
    error::{Error, Kind, Result},
    left::Answers,
    output::printable,
    workspace::{FleetFiles, PolicyFiles},
};
use bulkhead_core::{
    AppName, EnvironmentName, FleetName, NodeName, Timestamp,
    fleet::FleetNode,
    policy::{Environment, Role},
};
use bulkhead_fleet::{
    Identities, NodeClient, NodeError, Target, Timeouts,
    config::SshConfig,
    memory::Memory,
    push::{Early, FetchError, PushError, SpoolError},
    resolve_as,
    sign::{SignError, Signer},
};
use bulkhead_trust::PublicKey;
use bulkhead_wire::{ACCOUNT, AppStatus, NodeStatus, OBSERVE_ACCOUNT, OPERATE_ACCOUNT};
use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// A fleet ready to be talked to.
#[derive(Debug, Clone)]
pub struct Session {
    /// `fleet.toml`.
    pub files: FleetFiles,
    /// The verified policy.
    pub policy: PolicyFiles,
    /// The private keys at hand.
    pub identities: Identities,
    /// Bounds on waiting.
    pub timeouts: Timeouts,
    /// What this machine remembers.
    pub memory: Memory,
    ssh: SshConfig,
}

/// As whom a node is connected to: each role has an account of its own there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// Brings what is signed, and sees what an order must follow.
    Courier,
    /// Sees what runs, and logs.
    Observer,
    /// Sees files of services, and talks to services.
    Operator,
}

impl As {
    /// The account on nodes.
    #[must_use]
    pub fn account(self) -> &'static str {
        match self {
            Self::Courier => ACCOUNT,
            Self::Observer => OBSERVE_ACCOUNT,
            Self::Operator => OPERATE_ACCOUNT,
        }
    }
}

/// A node and what it answered, or why it did not.
#[derive(Debug)]
pub struct Answer<T> {
    /// Which node.
    pub node: NodeName,
    /// What it said.
    pub result: Result<T>,
}

/// The home directory, where keys and SSH settings lie.
///
/// # Errors
/// The environment does not say.
pub fn home() -> Result<PathBuf> {
    std::env::home_dir().filter(|home| !home.as_os_str().is_empty()).ok_or_else(|| {
        Error::configuration("the home directory is unknown").hint(if cfg!(windows) {
            "set USERPROFILE"
        } else {
            "set HOME"
        })
    })
}

/// Where this machine keeps what saves time.
///
/// # Errors
/// The environment does not say.
pub fn cache_directory() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(named) = set("BULKHEAD_CACHE") {
        return Ok(named);
    }
    if cfg!(windows) {
        if let Some(local) = set("LOCALAPPDATA") {
            return Ok(local.join("bulkhead"));
        }
    } else if cfg!(target_os = "macos") {
        return Ok(home()?.join("Library/Caches/bulkhead"));
    } else if let Some(cache) = set("XDG_CACHE_HOME").filter(|path| path.is_absolute()) {
        return Ok(cache.join("bulkhead"));
    }
    Ok(home()?.join(".cache/bulkhead"))
}

/// Where this machine keeps what it must not forget: `BULKHEAD_STATE`, or where the system keeps such.
///
/// # Errors
/// The environment does not say.
pub fn state_directory() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(named) = set("BULKHEAD_STATE") {
        return Ok(named);
    }
    if cfg!(windows) {
        if let Some(local) = set("LOCALAPPDATA") {
            return Ok(local.join("bulkhead-state"));
        }
    } else if cfg!(target_os = "macos") {
        return Ok(home()?.join("Library/Application Support/bulkhead"));
    } else if let Some(state) = set("XDG_STATE_HOME").filter(|path| path.is_absolute()) {
        return Ok(state.join("bulkhead"));
    }
    Ok(home()?.join(".local/state/bulkhead"))
}

/// The private keys at hand: `BULKHEAD_KEY` before all, then the agent and the usual files. The passphrase of
/// an encrypted file is asked for at the terminal, once, when that very key is used.
///
/// # Errors
/// The home directory is unknown.
pub fn identities(context: &Context) -> Result<Identities> {
    let ui = Arc::clone(&context.ui);
    let ask = move |path: &Path| ui.secret(&format!("passphrase of {}: ", printable(&path.display().to_string())));
    let identities = Identities::new(&home()?).asking(Arc::new(ask));
    Ok(match std::env::var_os("BULKHEAD_KEY").filter(|path| !path.is_empty()) {
        Some(path) => identities.with_file(path.into()),
        None => identities,
    })
}

/// The time, as documents carry it.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Forgets what is remembered of a node of this name with another host key: it was made anew, or is of another
/// fleet that is called the same.
fn forget_other(cache: &Path, fleet: &FleetName, name: &NodeName, node: &FleetNode) {
    let Some(key) = &node.host_key else { return };
    let known = cache.join("keys").join(fleet.as_str()).join(name.as_str());
    if std::fs::read_to_string(&known).is_ok_and(|known| known == *key) {
        return;
    }
    for part in ["nodes/nodes", "live", "seen"] {
        let path = cache.join(part).join(fleet.as_str()).join(name.as_str());
        // A memory is never worth failing for: a node that differs says so.
        std::fs::remove_dir_all(&path).ok();
        std::fs::remove_file(path.with_extension("json")).ok();
    }
    if let Some(parent) = known.parent() {
        std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&known, key)).ok();
    }
}

impl Session {
    /// Reads the fleet's files and what is needed to reach its nodes. Connects to nothing.
    ///
    /// # Errors
    /// A file is missing or wrong.
    pub fn open(context: &Context) -> Result<Self> {
        Self::of(context, FleetFiles::load(&context.places)?)
    }

    /// As [`Session::open`], for files that were read already.
    ///
    /// # Errors
    /// The policy or an SSH setting is missing or wrong.
    pub fn of(context: &Context, files: FleetFiles) -> Result<Self> {
        let policy = files.policy()?;
        let ssh = SshConfig::load(&home()?).map_err(|error| Error::of(Kind::Configuration, &error))?;
        let wanted: Vec<&str> = policy.policy.keys.values().map(|key| key.key.as_str()).collect();
        let identities = identities(context)?.preferring(wanted);
        let cache = cache_directory()?;
        for (name, node) in &files.fleet.nodes {
            forget_other(&cache, &files.fleet.fleet, name, node);
        }
        let memory = Memory::at(cache.join("nodes"));
        Ok(Self { files, policy, identities, timeouts: Timeouts::default(), memory, ssh })
    }

    /// How `~/.ssh/config` says that hosts are reached.
    #[must_use]
    pub fn ssh(&self) -> &SshConfig {
        &self.ssh
    }

    /// How nodes are reached by whoever brings orders.
    ///
    /// # Errors
    /// An SSH setting makes no sense.
    pub fn targets(&self, nodes: &[(NodeName, FleetNode)]) -> Result<Vec<Target>> {
        self.targets_as(nodes, As::Courier)
    }

    /// How a node is reached as this account.
    ///
    /// # Errors
    /// An SSH setting makes no sense.
    pub fn target(&self, name: &NodeName, node: &FleetNode, who: As) -> Result<Target> {
        resolve_as(name, node, &self.ssh, who.account()).map_err(|error| Error::of(Kind::Configuration, &error))
    }

    fn targets_as(&self, nodes: &[(NodeName, FleetNode)], who: As) -> Result<Vec<Target>> {
        nodes.iter().map(|(name, node)| self.target(name, node, who)).collect()
    }

    /// Asks nodes the same, all at once, each over a connection of its own that
    /// ends with the answer. One that cannot be reached delays no other.
    ///
    /// # Errors
    /// An SSH setting makes no sense; what a node could not answer is in its [`Answer`].
    pub async fn ask_all<T, F, Fut>(&self, nodes: &[(NodeName, FleetNode)], who: As, ask: F) -> Result<Vec<Answer<T>>>
    where
        T: Send + 'static,
        F: Fn(NodeClient) -> Fut,
        Fut: Future<Output = std::result::Result<T, NodeError>> + Send + 'static,
        F: Clone + Send + Sync + 'static,
    {
        let mut tasks = Vec::new();
        for target in self.targets_as(nodes, who)? {
            let (identities, timeouts, ask) = (self.identities.clone(), self.timeouts, ask.clone());
            tasks.push((
                target.node.clone(),
                tokio::spawn(async move {
                    let client = NodeClient::connect(&target, &identities, timeouts).await?;
                    let answer = ask(client.clone()).await;
                    client.close().await;
                    answer
                }),
            ));
        }
        let mut answers = Vec::with_capacity(tasks.len());
        for (node, task) in tasks {
            let result = match task.await {
                Ok(answer) => answer.map_err(|error| node_error(&error)),
                Err(error) => Err(Error::during(Kind::Internal, format!("{node}: asking failed"), &error)),
            };
            answers.push(Answer { node, result });
        }
        Ok(answers)
    }

    /// Every node's facts and what runs on it.
    ///
    /// # Errors
    /// An SSH setting makes no sense.
    pub async fn statuses(&self, nodes: &[(NodeName, FleetNode)]) -> Result<Vec<Answer<NodeStatus>>> {
        self.ask_all(nodes, As::Observer, |client| async move { client.status().await }).await
    }

    /// Begins to connect to nodes, for requests that come when other work is done, an order at their end.
    ///
    /// # Errors
    /// An SSH setting makes no sense.
    pub fn begin(&self, nodes: &[(NodeName, FleetNode)]) -> Result<Early> {
        let begun = self.targets(nodes)?.into_iter().map(|target| {
            let (identities, timeouts) = (self.identities.clone(), self.timeouts);
            let node = target.node.clone();
            let connecting = async move {
                let client = NodeClient::connect(&target, &identities, timeouts).await?;
                client.make_ready();
                Ok(client)
            };
            (node, tokio::spawn(connecting))
        });
        Ok(begun.collect())
    }

    /// Asks nodes over connections that were begun, and gives the connections back.
    pub async fn ask_over<T, F, Fut>(&self, early: Early, ask: F) -> (Early, Vec<Answer<T>>)
    where
        T: Send + 'static,
        F: Fn(NodeClient) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = std::result::Result<T, NodeError>> + Send + 'static,
    {
        let mut asking = Vec::new();
        for (node, connecting) in early {
            let ask = ask.clone();
            let task = tokio::spawn(async move {
                let connected = connecting.await;
                let client = connected
                    .map_err(|error| Error::during(Kind::Internal, "connecting ended early", &error))?
                    .map_err(|error| node_error(&error))?;
                let answer = ask(client.clone()).await.map_err(|error| node_error(&error))?;
                Ok((client, answer))
            });
            asking.push((node, task));
        }
        let mut connected = Early::new();
        let mut answers = Vec::with_capacity(asking.len());
        for (node, task) in asking {
            let result = match task.await {
                Ok(Ok((client, answer))) => {
                    connected.insert(node.clone(), tokio::spawn(std::future::ready(Ok(client))));
                    Ok(answer)
                }
                Ok(Err(error)) => Err(error),
                Err(error) => Err(Error::during(Kind::Internal, format!("{node}: asking failed"), &error)),
            };
            answers.push(Answer { node, result });
        }
        (connected, answers)
    }

    /// The connection to a node among those that were begun, once it is there. It stays among them.
    pub async fn over(&self, early: &mut Early, node: &NodeName) -> Option<NodeClient> {
        let client = early.remove(node)?.await.ok()?.ok()?;
        early.insert(node.clone(), tokio::spawn(std::future::ready(Ok(client.clone()))));
        Some(client)
    }

    /// One connection, for what goes on over it.
    ///
    /// # Errors
    /// The node cannot be reached.
    pub async fn connect(&self, name: &NodeName, node: &FleetNode, who: As) -> Result<NodeClient> {
        let target = self.target(name, node, who)?;
        NodeClient::connect(&target, &self.identities, self.timeouts).await.map_err(|error| node_error(&error))
    }

    /// What an environment demands.
    ///
    /// # Errors
    /// The policy has no such environment.
    pub fn environment(&self, name: &EnvironmentName) -> Result<&Environment> {
        let policy = &self.policy.policy;
        policy.environments.get(name).ok_or_else(|| {
            let known: Vec<&str> = policy.environments.keys().map(EnvironmentName::as_str).collect();
            let message = format!("the policy has no environment `{name}`, so its nodes would accept no order");
            Error::new(Kind::Refused, message).hint(format!("it has {}", known.join(", ")))
        })
    }

    /// The private keys at hand that the policy gives a say in orders.
    ///
    /// # Errors
    /// A key that was named is of no use.
    pub async fn hand(&self) -> Result<Hand> {
        let policy = &self.policy.policy;
        let holders = |role| policy.holders(role).map(|(_, key)| key.key.clone()).collect::<Vec<_>>();
        let (release, green) = (holders(Role::Release), holders(Role::Green));
        let found = Signer::find_all(&self.identities, release.iter().chain(&green).map(String::as_str)).await;
        let (found, missing) = match found {
            Ok(found) => (found, None),
            Err(error @ SignError::NoKey { .. }) => (vec![], Some(Error::of(Kind::Configuration, &error).as_causes())),
            Err(error) => return Err(sign_error(&error)),
        };
        let mut hand = Hand { release: vec![], green: vec![], causes: missing.unwrap_or_default() };
        let is_among = |keys: &[String], signer: &Signer| {
            keys.iter().any(|key| PublicKey::parse(key).is_ok_and(|key| key == *signer.public_key()))
        };
        for signer in found {
            for (keys, signers) in [(&release, &mut hand.release), (&green, &mut hand.green)] {
                // One key may be at hand twice, in the agent and in a file; a node counts distinct keys.
                let is_new = signers.iter().all(|known: &Signer| known.public_key() != signer.public_key());
                if is_new && is_among(keys, &signer) {
                    signers.push(signer.clone());
                }
            }
        }
        Ok(hand)
    }

    /// Keys that sign an order for an environment.
    ///
    /// # Errors
    /// The policy has no such environment, or keys are missing.
    pub async fn signers(&self, name: &EnvironmentName, purpose: Purpose) -> Result<Vec<Signer>> {
        self.hand().await?.signers(self, name, purpose)
    }

    /// Likewise for an order that may be drafted, for which as many sign as are at hand, or was signed already.
    ///
    /// # Errors
    /// The policy has no such environment, or keys are missing.
    pub async fn signers_of(&self, name: &EnvironmentName, purpose: Purpose, args: &OrderArgs) -> Result<Vec<Signer>> {
        self.hand().await?.signers_of(self, name, purpose, args)
    }
}

/// What an order is for, as far as it decides who must sign it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To stop or restart, or to go back to what is listed to go back to.
    AnyOne,
    /// To start again, or to remove.
    People,
    /// To look with a tool.
    Look,
    /// To run an image.
    Run,
    /// To run an image that is not green.
    BreakGlass,
}

/// The private keys at hand.
#[derive(Debug)]
pub struct Hand {
    release: Vec<Signer>,
    green: Vec<Signer>,
    /// Why there are none, where there are none.
    causes: Vec<String>,
}

impl Hand {
    /// A key that may sign what is no order: a release key before a green one.
    #[must_use]
    pub fn any(&self) -> Option<&Signer> {
        self.release.first().or(self.green.first())
    }

    /// As few of them as are needed; for a draft all that there are, and none for an order that was signed already.
    ///
    /// # Errors
    /// There are too few.
    pub fn signers_of(
        &self,
        session: &Session,
        name: &EnvironmentName,
        purpose: Purpose,
        args: &OrderArgs,
    ) -> Result<Vec<Signer>> {
        match (&args.draft, &args.order) {
            (Some(_), _) => Ok(self.release.clone()),
            (None, Some(_)) => Ok(vec![]),
            (None, None) => self.signers(session, name, purpose),
        }
    }

    /// As few of them as are needed.
    ///
    /// # Errors
    /// There are too few.
    pub fn signers(&self, session: &Session, name: &EnvironmentName, purpose: Purpose) -> Result<Vec<Signer>> {
        let environment = session.environment(name)?;
        let forbidden = |what: &str, field: &str| {
            Error::new(Kind::Refused, format!("the policy lets nobody {what} in `{name}`")).hint(format!(
                "the policy can allow it: `bulkhead policy require -e {name} {field} NUMBER` of release keys"
            ))
        };
        // How many release keys, by each way; none means a green one.
        let ways: Vec<u32> = match purpose {
            Purpose::AnyOne => vec![1],
            Purpose::People => vec![environment.people()],
            Purpose::Look => vec![environment.lookers().ok_or_else(|| forbidden("look with tools", "--look"))?],
            Purpose::Run => environment.accepts.iter().map(|demand| demand.release).collect(),
            Purpose::BreakGlass => {
                vec![environment.break_glass.ok_or_else(|| forbidden("break glass", "--break-glass"))?]
            }
        };
        let possible = ways.iter().filter_map(|needed| match *needed {
            0 => self.green.get(..1),
            needed => self.release.get(..needed as usize),
        });
        if let Some(signers) = possible.min_by_key(|signers| signers.len()) {
            return Ok(signers.to_vec());
        }
        let policy = &session.policy.policy;
        let needed = ways.iter().copied().filter(|needed| *needed > 0).min().unwrap_or(0);
        let message = match needed {
            0 => format!("an order for `{name}` must be signed with a green key, and none is at hand"),
            needed => {
                format!("`{name}` demands {needed} release signature(s); keys at hand give {}", self.release.len())
            }
        };
        let mut error = Error::configuration(message);
        error.causes.clone_from(&self.causes);
        let mut error = error
            .hint(format!("release keys are those of {}", policy.names_of(Role::Release)))
            .hint("load your key with `ssh-add`, or name its file in BULKHEAD_KEY");
        if needed > 1 && !self.release.is_empty() {
            error = error.hint("to gather the signatures of several people: `--draft FILE`, see docs/policy.md");
        }
        Err(error)
    }
}

/// An app's state among a node's.
#[must_use]
pub fn app_of<'a>(status: &'a NodeStatus, app: &AppName) -> Option<&'a AppStatus> {
    status.apps.iter().find(|known| known.app == *app)
}

/// The answers of those that answered; the others' errors are told, and the
/// first of them is returned where nobody answered.
///
/// # Errors
/// No node answered.
pub fn those_that_answered<T>(context: &Context, answers: Vec<Answer<T>>) -> Result<Vec<(NodeName, T)>> {
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for answer in answers {
        match answer.result {
            Ok(value) => good.push((answer.node, value)),
            Err(error) => bad.push(error),
        }
    }
    match (good.is_empty(), bad.is_empty()) {
        (true, false) => Err(bad.swap_remove(0)),
        (_, _) => {
            for error in &bad {
                context.ui.warn(error);
            }
            Ok(good)
        }
    }
}

/// One error for all nodes that did not answer: of their kind where none answered, else partly.
#[must_use]
pub fn summary(errors: &[Error], nodes: usize) -> Option<Error> {
    summary_of(errors, nodes, "did not answer")
}

/// Likewise for nodes that were brought something and did not take it.
#[must_use]
pub fn not_taken(errors: &[Error], nodes: usize) -> Option<Error> {
    summary_of(errors, nodes, "did not take it")
}

fn summary_of(errors: &[Error], nodes: usize, what: &str) -> Option<Error> {
    let first = errors.first()?;
    if errors.len() == nodes && nodes == 1 {
        return Some(first.clone());
    }
    let same = errors.iter().all(|error| error.kind == first.kind);
    let kind = if errors.len() == nodes && same { first.kind } else { Kind::Partial };
    let mut error = Error::new(kind, format!("{} of {nodes} nodes {what}", errors.len()));
    for cause in errors {
        let because = if cause.causes.is_empty() { String::new() } else { format!(": {}", cause.causes.join(": ")) };
        error.causes.push(format!("{}{because}", cause.message));
        for hint in &cause.hints {
            if !error.hints.contains(hint) {
                error.hints.push(hint.clone());
            }
        }
    }
    Some(error)
}

/// What nodes answered, and the one error for those that did not, for the end of a command that shows the rest.
///
/// # Errors
/// No node answered.
pub fn those_and_the_rest<T>(answers: Vec<Answer<T>>) -> Result<(Answers<T>, Option<Error>)> {
    let nodes = answers.len();
    let (mut good, mut errors) = (Vec::new(), Vec::new());
    for Answer { node, result } in answers {
        match result {
            Ok(value) => good.push((node, value)),
            Err(error) => errors.push(error),
        }
    }
    let rest = summary(&errors, nodes);
    match rest {
        Some(error) if good.is_empty() => Err(error),
        rest => Ok((good, rest)),
    }
}

/// A node's error in the one shape.
#[must_use]
pub fn node_error(error: &NodeError) -> Error {
    match error {
        NodeError::Failed { node, failure } => Error::failure(node, failure),
        NodeError::Local { .. } => Error::of(Kind::Internal, error),
        _ => Error::of(Kind::Unreachable, error),
    }
}

/// A push's error in the one shape.
#[must_use]
pub fn push_error(error: &PushError) -> Error {
    match error {
        PushError::Node(error) => node_error(error),
        PushError::Lost { accepted, .. } => {
            let hint = if *accepted { "it carries the order out" } else { "it may carry the order out" };
            Error::of(Kind::Unreachable, error).hint(format!("{hint}: `bulkhead releases` tells how it ended"))
        }
        PushError::Restored { .. } => Error::of(Kind::Refused, error)
            .hint("look at its volumes too: they are as old as the snapshot")
            .hint("to go on from where it stands: the same command with `--accept-restored`"),
        PushError::Sign { .. } => Error::of(Kind::Configuration, error),
        PushError::Pack { source, .. } if matches!(**source, SpoolError::Fetch(_)) => fetch_error(error, source),
        PushError::Pack { .. } => Error::of(Kind::Configuration, error)
            .hint("files that changed while they were sent: the same command again")
            .hint("an image that was built elsewhere: `bulkhead deploy` it from its own sources"),
    }
}

/// What is needed of an image that was not built here is not to be had.
fn fetch_error(error: &PushError, source: &SpoolError) -> Error {
    match source {
        SpoolError::Fetch(FetchError::Nowhere { tried, .. }) => {
            let kind = if tried.is_empty() { Kind::Configuration } else { Kind::Unreachable };
            Error::of(kind, error)
                .hint("the same command again, once a node that holds the image can be reached")
                .hint("the same command on the machine that built the image")
                .hint("`bulkhead deploy` builds it anew from the app's own sources")
        }
        _ => Error::of(Kind::Internal, error),
    }
}

/// A signature's error in the one shape.
#[must_use]
pub fn sign_error(error: &SignError) -> Error {
    let told = Error::of(Kind::Configuration, error);
    match error {
        SignError::NoKey { .. } => told.hint("load the key with `ssh-add`, or name its file in BULKHEAD_KEY"),
        _ => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_fleet::memory::Remembered;

    /// A node that was made anew has none of what the one before had, whatever its name.
    #[test]
    fn another_host_key_is_another_node() {
        let cache = tempfile::tempdir().unwrap();
        let fleet: FleetName = "f".parse().unwrap();
        let app: AppName = "notes".parse().unwrap();
        let names: [NodeName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let node = |key: &str| FleetNode {
            environment: "staging".parse().unwrap(),
            address: "10.0.0.1".into(),
            port: None,
            host_key: Some(key.into()),
            provider: None,
            pool: None,
        };
        let memory = Memory::at(cache.path().join("nodes"));
        let mut something = Remembered::default();
        something.add_image(bulkhead_core::ImageId([7; 32]));
        let others = |name: &NodeName| {
            let of = |part: &str| cache.path().join(part).join("f");
            [of("live").join(name.as_str()).join("notes.json"), of("seen").join(format!("{name}.json"))]
        };
        let look = |key: &str| {
            forget_other(cache.path(), &fleet, &names[0], &node(key));
            forget_other(cache.path(), &fleet, &names[1], &node("ssh-ed25519 B"));
        };
        let is_known = |name: &NodeName| {
            let facts = others(name).iter().map(|path| path.exists()).collect::<Vec<_>>();
            assert!(facts.iter().all(|there| *there == facts[0]), "{facts:?}");
            assert_eq!(memory.recall(&fleet, name, &app) == something, facts[0]);
            assert_eq!(memory.recall_tools(&fleet, name) == something.images, facts[0]);
            facts[0]
        };
        look("ssh-ed25519 A");
        for name in &names {
            memory.remember(&fleet, name, &app, &something).unwrap();
            memory.remember_tools(&fleet, name, &something.images).unwrap();
            for path in others(name) {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "{}").unwrap();
            }
        }
        look("ssh-ed25519 A");
        assert!(is_known(&names[0]) && is_known(&names[1]));
        look("ssh-ed25519 C");
        assert!(!is_known(&names[0]) && is_known(&names[1]));
    }

    #[test]
    fn nodes_that_did_not_answer_decide_the_exit_code() {
        let error = |kind| Error::new(kind, "x");
        let (away, no) = (Kind::Unreachable, Kind::Refused);
        for (errors, nodes, expected) in [
            (vec![], 2, None),
            (vec![away], 1, Some(4)),
            (vec![away, away], 2, Some(4)),
            (vec![away], 2, Some(9)),
            (vec![away, no], 2, Some(9)),
        ] {
            let errors: Vec<Error> = errors.into_iter().map(error).collect();
            assert_eq!(summary(&errors, nodes).map(|error| error.kind.exit_code()), expected, "{errors:?} {nodes}");
        }
    }

    #[test]
    fn what_the_rest_said_is_shown_and_the_end_says_who_did_not() {
        let answer = |node: &str, kind: Option<Kind>| Answer {
            node: node.parse().unwrap(),
            result: kind.map_or(Ok(()), |kind| Err(Error::new(kind, format!("{node} is away")))),
        };
        let away = Some(Kind::Unreachable);
        let (good, rest) = those_and_the_rest(vec![answer("a", away), answer("b", None)]).unwrap();
        assert_eq!(good.len(), 1);
        let rest = rest.unwrap();
        assert_eq!((rest.kind, rest.message.as_str()), (Kind::Partial, "1 of 2 nodes did not answer"));
        assert_eq!(rest.causes, ["a is away"]);
        assert!(those_and_the_rest(vec![answer("a", None)]).unwrap().1.is_none());
        let error = those_and_the_rest(vec![answer("a", away), answer("b", away)]).unwrap_err();
        assert_eq!((error.kind, error.causes.len()), (Kind::Unreachable, 2));
    }
}
