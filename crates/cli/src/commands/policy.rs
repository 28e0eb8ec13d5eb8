//! `bulkhead policy`.

use crate::{
    Context,
    args::MaybeEnvironment,
    error::{Error, ErrorBody, Kind, Result},
    ledger::Ledger,
    notices::{NOTICES, keep_notice},
    output::{Paint, printable},
    proposal::{self, Proposal, Signed, name_of},
    session::{Answer, As, Hand, Session, identities, not_taken, now, sign_error, summary},
    table::Table,
    workspace::{FleetFiles, POLICY, read_text, shown},
};
use bulkhead_core::{
    EnvironmentName, NodeName, PersonName, SignedText,
    notice::{HEARTBEAT_NAMESPACE, Heartbeat},
    policy::{Demand, Environment, Isolation, Key, NodeKeys, Policy, Role, Root},
};
use bulkhead_fleet::sign::{SignError, Signer};
use bulkhead_wire::Paper;
use clap::{Args, Subcommand};
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
};

/// Shows, changes and brings to nodes who must sign what
///
/// A change makes the next version of `policy.json` as a proposal, a pair of files
/// that people pass around (`policy.next.json` and its signatures) until enough root
/// keys of both versions have signed. Every key at hand signs at once: with one root
/// key, a change takes effect in one command.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    Show(ShowArgs),
    Diff(DiffArgs),
    Edit(EditArgs),
    Require(RequireArgs),
    Nodes(NodesArgs),
    Roots(RootsArgs),
    Sign(SignArgs),
    Push(PushArgs),
    Drop(DropArgs),
    Heartbeat(HeartbeatArgs),
}

/// Shows the policy in force, and what is proposed
#[derive(Debug, Args)]
pub struct ShowArgs {}

/// Shows what the proposal changes, line by line
#[derive(Debug, Args)]
pub struct DiffArgs {}

/// Opens the next policy in $EDITOR and proposes what comes of it
#[derive(Debug, Args)]
pub struct EditArgs {
    #[command(flatten)]
    go: GoArgs,
}

/// Sets what an environment demands of an order that runs an image
///
/// Ways are alternatives, one of them is enough: `release`, `2-release`, `green+release`,
/// `green+2-release`, `green` (an order signed by CI), `green+standing` (likewise, and a
/// person's standing order covers it). For "green, and one of us": `bulkhead policy
/// require -e production green+release --green-key ci.pub`.
#[derive(Debug, Args)]
pub struct RequireArgs {
    /// The environment; made where the policy has none of that name.
    #[arg(short, long = "env", value_name = "ENV")]
    pub environment: EnvironmentName,

    /// What is enough. None: what it was.
    #[arg(value_name = "WAY", value_parser = parse_way)]
    pub ways: Vec<Demand>,

    /// The public key of CI's signer, as key `ci` with the role `green`.
    #[arg(long, value_name = "FILE")]
    pub green_key: Option<PathBuf>,

    /// How many release keys may look into services with tools.
    #[arg(long, value_name = "NUMBER")]
    pub look: Option<u32>,

    /// How many release keys together may run an image that is not green, with a reason. 0: none may.
    #[arg(long, value_name = "NUMBER")]
    pub break_glass: Option<u32>,

    /// A node that has heard nothing signed for so many seconds starts nothing new. 0: it starts all the same.
    #[arg(long, value_name = "SECONDS")]
    pub heartbeat: Option<u32>,

    /// What a node must offer to run anything, such as `fs-verity`; instead of what was demanded.
    #[arg(long, value_name = "ISOLATION", value_parser = parse_isolation)]
    pub isolation: Vec<Isolation>,

    #[command(flatten)]
    go: GoArgs,
}

/// Lists the nodes' own keys: whom secrets are sealed to, and who signs audit logs
///
/// Each node is asked over a connection to the host key that fleet.toml pins, so look first at whether the nodes there
/// are yours. Once the policy lists any node's keys, no other node is given secrets. Nodes that are listed and were not
/// asked stay as they are.
#[derive(Debug, Args)]
pub struct NodesArgs {
    #[command(flatten)]
    environment: MaybeEnvironment,

    #[command(flatten)]
    go: GoArgs,
}

/// Makes these the root keys, and no others
///
/// It takes enough of the present root keys, and of the new ones: each of these shows so that it can sign before it
/// counts. `bulkhead policy roots 2 ada.pub bob.pub safe.pub` makes it two of three.
#[derive(Debug, Args)]
pub struct RootsArgs {
    /// How many of them must sign a policy.
    #[arg(value_name = "THRESHOLD", value_parser = clap::value_parser!(u32).range(1..))]
    pub threshold: u32,

    /// The public keys: `.pub` files, or `ssh-ed25519 AAAA…` itself.
    #[arg(value_name = "KEY", required = true)]
    pub keys: Vec<String>,

    /// Their signatures count only where the security key checked a PIN or finger.
    #[arg(long)]
    pub verify_user: bool,

    #[command(flatten)]
    go: GoArgs,
}

/// Signs the proposal with every root key at hand
#[derive(Debug, Args)]
pub struct SignArgs {
    #[command(flatten)]
    go: GoArgs,
}

/// Puts a proposal that is signed enough into force, and brings every node to the policy in force
#[derive(Debug, Args)]
pub struct PushArgs {
    #[command(flatten)]
    go: GoArgs,
}

/// Takes the proposal back
#[derive(Debug, Args)]
pub struct DropArgs {}

/// Signs a word that nothing is kept from the nodes, and brings it to them
///
/// For environments with a heartbeat; a timer on any machine with a release or green key does.
#[derive(Debug, Args)]
pub struct HeartbeatArgs {}

/// What every change of the policy can be given.
#[derive(Debug, Clone, Args)]
pub struct GoArgs {
    /// Goes on without a question.
    #[arg(short, long)]
    pub yes: bool,

    /// Leaves the proposal as a file, even where it is signed enough to take effect.
    #[arg(long)]
    pub only_propose: bool,
}

/// The policy and what is proposed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PolicyReport {
    /// The fleet.
    pub fleet: String,
    /// The version in force.
    pub version: u64,
    /// How many root keys must sign the next one.
    pub root_threshold: u32,
    /// The root keys: fingerprints, with holders where the policy names them, or else what is noted beside the key.
    pub roots: Vec<String>,
    /// The other keys.
    pub keys: Vec<ShownKey>,
    /// What environments demand.
    pub environments: Vec<ShownEnvironment>,
    /// How many things are revoked.
    pub revoked: usize,
    /// What is proposed.
    pub proposal: Option<ShownProposal>,
    /// What came of bringing it to nodes, where that was done.
    pub nodes: Vec<BroughtTo>,
}

/// A key.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownKey {
    /// Its holder.
    pub holder: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// Its type.
    pub kind: String,
    /// Its fingerprint.
    pub fingerprint: String,
    /// Whether its signatures count only with a PIN or finger.
    pub verify_user: bool,
}

/// What an environment demands.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownEnvironment {
    /// Which.
    pub environment: String,
    /// What is enough to run an image, in words.
    pub accepts: String,
    /// How many release keys may look with tools.
    pub look: Option<u32>,
    /// How many release keys may break glass.
    pub break_glass: Option<u32>,
    /// Seconds.
    pub heartbeat_s: Option<u32>,
    /// What nodes must offer.
    pub requires: Vec<String>,
}

/// A proposal.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownProposal {
    /// Its version.
    pub version: u64,
    /// Whether it can take effect.
    pub complete: bool,
    /// Who has signed.
    pub signed_by: Vec<String>,
    /// Whose signatures would count yet.
    pub missing: Vec<String>,
    /// How many are wanting of the root keys in force.
    pub wanting_of_present: u32,
    /// How many are wanting of the proposed root keys.
    pub wanting_of_next: u32,
}

/// What came of bringing a document to a node.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BroughtTo {
    /// Which.
    pub node: String,
    /// What it had before, and has now, in words.
    pub result: String,
    /// What went wrong, where something did.
    pub error: Option<ErrorBody>,
}

fn parse_way(text: &str) -> std::result::Result<Demand, String> {
    let mut demand = Demand { release: 0, green: 0, standing: false };
    for part in text.split('+') {
        let (count, word) = part.split_once('-').unwrap_or(("1", part));
        let count: u32 = count.parse().map_err(|_| format!("`{part}`: write `release` or `2-release`"))?;
        match word {
            "release" => demand.release = count,
            "green" => demand.green = count,
            "standing" if count == 1 => demand.standing = true,
            _ => return Err(format!("`{part}` is none of `release`, `green`, `standing`")),
        }
    }
    Ok(demand)
}

fn parse_isolation(text: &str) -> std::result::Result<Isolation, String> {
    let known = Isolation::ALL.map(Isolation::as_str);
    let found = Isolation::ALL.into_iter().find(|isolation| isolation.as_str() == text);
    found.ok_or_else(|| format!("`{text}` is none of {}", known.join(", ")))
}

/// Runs the subcommand.
///
/// # Errors
/// Whatever it could not do.
pub async fn run(context: &Context, args: &PolicyArgs) -> Result<()> {
    match &args.command {
        PolicyCommand::Show(_) => show(context),
        PolicyCommand::Diff(_) => diff(context),
        PolicyCommand::Edit(args) => edit(context, args).await,
        PolicyCommand::Require(args) => require(context, args).await,
        PolicyCommand::Nodes(args) => nodes(context, args).await,
        PolicyCommand::Roots(args) => roots(context, args).await,
        PolicyCommand::Sign(args) => sign(context, args).await,
        PolicyCommand::Push(args) => push(context, args).await,
        PolicyCommand::Drop(_) => take_back(context),
        PolicyCommand::Heartbeat(_) => heartbeat(context).await,
    }
}

fn show(context: &Context) -> Result<()> {
    let files = FleetFiles::load(&context.places)?;
    let current = files.policy()?.policy;
    let proposal = proposal::load(&files, &current)?;
    context.ui.result(&report(&current, proposal.as_ref(), vec![]), render)
}

fn diff(context: &Context) -> Result<()> {
    let files = FleetFiles::load(&context.places)?;
    let current = files.policy()?;
    let Some(proposal) = proposal::load(&files, &current.policy)? else {
        return Err(Error::configuration("nothing is proposed")
            .hint("`bulkhead policy edit`, `policy require`, `key add`, `key rotate` and `key revoke` propose"));
    };
    let lines = differences(&String::from_utf8_lossy(&current.bytes), &String::from_utf8_lossy(&proposal.bytes));
    context.ui.result(&lines, |lines, paint| {
        lines.iter().map(|line| if line.starts_with(' ') { paint.faint(line) } else { line.clone() } + "\n").collect()
    })
}

/// The lines of two texts, each with `-`, `+` or a space before it; unchanged ones only near others.
fn differences(before: &str, after: &str) -> Vec<String> {
    let diff = similar::TextDiff::from_lines(before, after);
    let mut lines = Vec::new();
    for group in diff.grouped_ops(3) {
        if !lines.is_empty() {
            lines.push(" …".to_owned());
        }
        for operation in group {
            for change in diff.iter_changes(&operation) {
                lines.push(format!("{}{}", change.tag(), printable(change.value().trim_end_matches('\n'))));
            }
        }
    }
    lines
}

async fn edit(context: &Context, args: &EditArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.go.yes)?;
    let files = FleetFiles::load(&context.places)?;
    let current = files.policy()?.policy;
    let base = proposal::base(&files, &current)?;
    let file = tempfile::Builder::new().prefix("policy-").suffix(".json").tempfile();
    let file = file.map_err(|error| Error::during(Kind::Internal, "cannot make a file to edit", &error))?;
    std::fs::write(file.path(), base.to_bytes())
        .map_err(|error| Error::during(Kind::Internal, "cannot write the file to edit", &error))?;
    let editor = ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var(name).ok().filter(|text| !text.is_empty()));
    let editor = editor.unwrap_or_else(|| if cfg!(windows) { "notepad" } else { "vi" }.into());
    // As every program does that honours EDITOR: it may have arguments.
    let mut words = editor.split_whitespace();
    let program = words.next().unwrap_or("vi");
    let status = Command::new(program).args(words).arg(file.path()).status();
    let status = status.map_err(|error| {
        Error::during(Kind::Configuration, format!("cannot run the editor `{editor}`"), &error).hint("set EDITOR")
    })?;
    if !status.success() {
        return Err(Error::configuration(format!("the editor `{editor}` failed: nothing is proposed")));
    }
    let text = read_text(file.path())?;
    let edited =
        Policy::parse(text.as_bytes()).map_err(|what| Error::configuration(format!("nothing is proposed: {what}")))?;
    if edited == base {
        return Err(Error::usage("nothing was changed"));
    }
    go_on(context, &files, &args.go, |policy| {
        *policy = Policy { version: policy.version, ..edited };
        Ok(())
    })
    .await
}

async fn require(context: &Context, args: &RequireArgs) -> Result<()> {
    let files = FleetFiles::load(&context.places)?;
    let green_key = args.green_key.as_deref().map(crate::commands::key::read_public).transpose()?;
    let known = files.policy()?.policy.environments;
    if !known.contains_key(&args.environment) {
        let names: Vec<&str> = known.keys().map(bulkhead_core::EnvironmentName::as_str).collect();
        context.ui.note(&format!(
            "`{}` is an environment that the policy does not have yet; it has {}",
            args.environment,
            names.join(", ")
        ));
    }
    go_on(context, &files, &args.go, |policy| {
        if let Some(line) = green_key {
            let name: PersonName = "ci".parse().map_err(|error| Error::of(Kind::Internal, &error))?;
            let key = policy.keys.entry(name).or_insert_with(|| Key {
                key: line.clone(),
                roles: BTreeSet::new(),
                verify_user: false,
            });
            key.key = line;
            key.roles.insert(Role::Green);
        }
        let environment = policy
            .environments
            .entry(args.environment.clone())
            .or_insert_with(|| Environment::accepting(Demand::release(1)));
        if !args.ways.is_empty() {
            environment.accepts.clone_from(&args.ways);
        }
        let none_of_zero = |number: u32| (number > 0).then_some(number);
        environment.look = args.look.map_or(environment.look, none_of_zero);
        environment.break_glass = args.break_glass.map_or(environment.break_glass, none_of_zero);
        environment.heartbeat_s = args.heartbeat.map_or(environment.heartbeat_s, none_of_zero);
        if !args.isolation.is_empty() {
            environment.requires = args.isolation.iter().copied().collect();
        }
        Ok(())
    })
    .await
}

async fn roots(context: &Context, args: &RootsArgs) -> Result<()> {
    let files = FleetFiles::load(&context.places)?;
    let lines: Vec<String> = args.keys.iter().map(|key| crate::commands::key::public(key)).collect::<Result<_>>()?;
    // What a file says after the key is its owner's own note: a name is worth keeping, a machine's is not.
    let plain = |line: &String| {
        let key = line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        proposal::note_of(line).map_or(key.clone(), |note| format!("{key} {note}"))
    };
    let keys: Vec<String> = lines.iter().map(plain).collect();
    go_on(context, &files, &args.go, |policy| {
        policy.root = Root { threshold: args.threshold, keys, verify_user: args.verify_user };
        Ok(())
    })
    .await
}

async fn nodes(context: &Context, args: &NodesArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.go.yes)?;
    let session = Session::open(context)?;
    let (files, current) = (&session.files, &session.policy.policy);
    let asked = files.nodes(args.environment.environment.as_ref())?;
    let listed = proposal::base(files, current)?.nodes;
    let mut shown: BTreeMap<NodeName, NodeKeys> = BTreeMap::new();
    let mut errors = Vec::new();
    for (answer, (node, known)) in session.statuses(&asked).await?.into_iter().zip(&asked) {
        let keys = answer.result.and_then(|status| {
            status.keys.ok_or_else(|| {
                Error::new(Kind::Node, format!("{node} has no keys of its own"))
                    .hint("install the node again, which makes them")
            })
        });
        match keys {
            Ok(keys) => {
                let before = Ledger::of(&files.fleet.fleet, node, known)?.sealing_key(current)?;
                if before.is_some_and(|before| before != keys.sealing) {
                    let what = "shows another sealing key than before: it was made anew, or is not what it was";
                    context.ui.note(&format!("{node} {what}"));
                }
                shown.insert(node.clone(), keys);
            }
            Err(error) => {
                context.ui.note(&format!("{node} is left as it is: {}", error.message));
                errors.push(error);
            }
        }
    }
    if !shown.iter().all(|(node, keys)| listed.get(node) == Some(keys)) {
        let list = |policy: &mut Policy| {
            policy.nodes.extend(shown);
            Ok(())
        };
        go_on(context, files, &args.go, list).await?;
    } else if errors.is_empty() {
        context.ui.note("the policy lists these keys already");
        let open = proposal::load(files, current)?;
        context.ui.result(&report(current, open.as_ref(), vec![]), render)?;
    }
    summary(&errors, asked.len()).map_or(Ok(()), Err)
}

/// Proposes a change, signs it with what is at hand, and where that is enough puts it into force.
///
/// # Errors
/// The change makes no sense, a key did not sign, or nobody agreed.
pub(crate) async fn go_on(
    context: &Context,
    files: &FleetFiles,
    args: &GoArgs,
    change: impl FnOnce(&mut Policy) -> Result<()>,
) -> Result<()> {
    context.ui.must_be_able_to_ask(args.yes)?;
    let current = files.policy()?;
    let mut proposal = proposal::propose(files, &current.policy, change)?;
    let lines = differences(&String::from_utf8_lossy(&current.bytes), &String::from_utf8_lossy(&proposal.bytes));
    context.ui.preview(|paint| {
        let shown = |line: &String| if line.starts_with(' ') { paint.faint(line) } else { line.clone() };
        lines.iter().map(|line| shown(line) + "\n").collect()
    })?;
    context.ui.confirm("\nSign this policy?", args.yes).await?;
    proposal::store(files, &proposal)?;
    proposal.sign(context, files, &current.policy).await?;
    finish(context, files, args, &proposal).await
}

async fn sign(context: &Context, args: &SignArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.go.yes)?;
    let files = FleetFiles::load(&context.places)?;
    let current = files.policy()?;
    let Some(mut proposal) = proposal::load(&files, &current.policy)? else {
        return Err(Error::configuration("nothing is proposed"));
    };
    proposal::check(&proposal.policy, &files)?;
    let lines = differences(&String::from_utf8_lossy(&current.bytes), &String::from_utf8_lossy(&proposal.bytes));
    context.ui.preview(|_| lines.join("\n") + "\n")?;
    context.ui.confirm("\nSign this policy?", args.go.yes).await?;
    if proposal.sign(context, &files, &current.policy).await? == 0 && !proposal.is_complete(&current.policy) {
        let [present, next] = proposal.signed(&current.policy);
        return Err(Error::configuration("none of the keys at hand is a root key that has yet to sign")
            .hint(format!("signatures that would count: {}", missing(&present, &next).join(", ")))
            .hint("load your key with `ssh-add`, or name its file in BULKHEAD_KEY"));
    }
    finish(context, &files, &args.go, &proposal).await
}

fn missing(present: &Signed, next: &Signed) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for signed in [present, next].into_iter().filter(|signed| !signed.is_enough()) {
        all.extend(signed.missing.iter().filter(|name| !all.contains(name)).cloned().collect::<Vec<_>>());
    }
    all
}

async fn finish(context: &Context, files: &FleetFiles, args: &GoArgs, proposal: &Proposal) -> Result<()> {
    let current = files.policy()?;
    if args.only_propose || !proposal.is_complete(&current.policy) {
        context.ui.result(&report(&current.policy, Some(proposal), vec![]), render)?;
        if !proposal.is_complete(&current.policy) {
            context.ui.note(&not_in_force(proposal, &current.policy));
        }
        return Ok(());
    }
    proposal.enact(files, &current)?;
    if may_bring(context, [&current.policy, &proposal.policy]).await? {
        return bring_to_all(context, files).await;
    }
    // Whoever holds a root key alone signs, and connects to nothing.
    context.ui.result(&report(&proposal.policy, None, vec![]), render)?;
    context.ui.note("no key at hand may connect to nodes: `bulkhead policy push`, by whoever's may, brings it to them");
    Ok(())
}

/// Whether a key at hand may bring documents by one of these policies.
async fn may_bring(context: &Context, policies: [&Policy; 2]) -> Result<bool> {
    let holders = policies.into_iter().flat_map(|policy| policy.holders(Role::Courier));
    let wanted: Vec<&str> = holders.map(|(_, key)| key.key.as_str()).collect();
    match Signer::find(&identities(context)?, wanted).await {
        Ok(_) => Ok(true),
        Err(SignError::NoKey { .. }) => Ok(false),
        Err(error) => Err(sign_error(&error)),
    }
}

async fn push(context: &Context, args: &PushArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.go.yes)?;
    let files = FleetFiles::load(&context.places)?;
    let current = files.policy()?;
    let mut open = None;
    if let Some(proposal) = proposal::load(&files, &current.policy)? {
        if !proposal.is_complete(&current.policy) {
            open = Some(not_in_force(&proposal, &current.policy));
        } else if !args.go.only_propose {
            let question = format!("Put version {} into force?", proposal.policy.version);
            context.ui.confirm(&question, args.go.yes).await?;
            proposal.enact(&files, &current)?;
        }
    }
    bring_to_all(context, &files).await?;
    // Nodes have what is in force, and whoever waits for what is proposed must not take that for it.
    match open {
        Some(what) => Err(Error::configuration(what).hint("they sign with `bulkhead policy sign`; then push again")),
        None => Ok(()),
    }
}

/// That a proposal is one, and who could change that.
fn not_in_force(proposal: &Proposal, current: &Policy) -> String {
    let [present, next] = proposal.signed(current);
    format!(
        "version {} is proposed and NOT in force: signatures are missing that could be of {}",
        proposal.policy.version,
        missing(&present, &next).join(", ")
    )
}

/// Brings every node of the fleet to the policy in force, and says what came of it.
async fn bring_to_all(context: &Context, files: &FleetFiles) -> Result<()> {
    let session = Session::of(context, FleetFiles::read(files.directory.clone())?)?;
    let nodes = session.files.all_nodes(None)?;
    let answers = proposal::bring(&session, &nodes).await?;
    let asked = answers.len();
    let mut errors = Vec::new();
    let mut brought = Vec::new();
    for Answer { node, result } in answers {
        let (result, error) = match result {
            Ok(versions) if versions.before == versions.now => (format!("has version {}", versions.now), None),
            Ok(versions) => (format!("version {} → {}", versions.before, versions.now), None),
            Err(error) => ("not brought".to_owned(), Some(error)),
        };
        brought.push(BroughtTo {
            node: node.to_string(),
            result,
            error: error.as_ref().map(|error| error.report().error),
        });
        errors.extend(error);
    }
    let open = proposal::load(&session.files, &session.policy.policy)?;
    context.ui.result(&report(&session.policy.policy, open.as_ref(), brought), render)?;
    match not_taken(&errors, asked) {
        None => Ok(()),
        Some(error) => Err(error.hint("once they can be reached: `bulkhead policy push`")),
    }
}

fn take_back(context: &Context) -> Result<()> {
    let files = FleetFiles::load(&context.places)?;
    if !proposal::drop_it(&files)? {
        return Err(Error::configuration("nothing is proposed"));
    }
    context.ui.result(&report(&files.policy()?.policy, None, vec![]), render)
}

async fn heartbeat(context: &Context) -> Result<()> {
    let session = Session::open(context)?;
    let policy = &session.policy.policy;
    let hand = session.hand().await?;
    let signer = one_of(&hand)?;
    let heartbeat = Heartbeat { format: 1, fleet: policy.fleet.clone(), issued: now(), policy: policy.version };
    let bytes = heartbeat.to_bytes();
    let signature = signer.sign(HEARTBEAT_NAMESPACE, &bytes).await.map_err(|error| sign_error(&error))?;
    bring_notice(context, &session, Paper::Heartbeat, bytes, vec![signature], "heard").await
}

/// A release or green key at hand.
pub(crate) fn one_of(hand: &Hand) -> Result<&bulkhead_fleet::sign::Signer> {
    hand.any().ok_or_else(|| {
        Error::configuration("no release or green key is at hand")
            .hint("load your key with `ssh-add`, or name its file in BULKHEAD_KEY")
    })
}

/// Keeps a notice beside `fleet.toml`, brings it to every node, and says what came of it.
pub(crate) async fn bring_notice(
    context: &Context,
    session: &Session,
    paper: Paper,
    bytes: Vec<u8>,
    signatures: Vec<String>,
    word: &str,
) -> Result<()> {
    let text =
        String::from_utf8(bytes).map_err(|error| Error::during(Kind::Internal, "the document is not text", &error))?;
    let document = SignedText { text, signatures };
    keep_notice(&session.files.directory, paper, &document)?;
    let nodes = session.files.all_nodes(None)?;
    let answers = session
        .ask_all(&nodes, As::Courier, move |client| {
            let document = document.clone();
            async move { client.bring(paper, &document).await }
        })
        .await?;
    let asked = answers.len();
    let mut errors = Vec::new();
    let mut brought = Vec::new();
    for Answer { node, result } in answers {
        let error = result.err();
        brought.push(BroughtTo {
            node: node.to_string(),
            result: if error.is_some() { "not brought".into() } else { word.into() },
            error: error.as_ref().map(|error| error.report().error),
        });
        errors.extend(error);
    }
    context.ui.result(&brought, |brought, paint| {
        let mut table = Table::new(&["NODE", "RESULT"]);
        brought.iter().for_each(|node| table.row([node.node.clone(), said(node)]));
        table.render(paint)
    })?;
    let place = shown(&session.files.directory.join(NOTICES)).to_string();
    let kept = format!("it is kept in {place}, and machines that a loop buys are brought it");
    match not_taken(&errors, asked) {
        None if asked == 0 => context.ui.note(&format!("there is no node yet; {kept}")),
        None => {}
        Some(error) => return Err(error.hint(kept).hint("nodes that were away: the same command again")),
    }
    Ok(())
}

fn said(node: &BroughtTo) -> String {
    match &node.error {
        Some(error) => format!("{}: {}", node.result, error.message),
        None => node.result.clone(),
    }
}

fn report(policy: &Policy, proposal: Option<&Proposal>, nodes: Vec<BroughtTo>) -> PolicyReport {
    let key = |(holder, key): (&PersonName, &Key)| {
        let parsed = bulkhead_trust::PublicKey::parse(&key.key).ok();
        ShownKey {
            holder: holder.to_string(),
            roles: key.roles.iter().map(ToString::to_string).collect(),
            kind: parsed.as_ref().map(|key| key.kind().to_owned()).unwrap_or_default(),
            fingerprint: parsed.map(|key| key.fingerprint()).unwrap_or_default(),
            verify_user: key.verify_user,
        }
    };
    let environment = |(name, environment): (&EnvironmentName, &Environment)| ShownEnvironment {
        environment: name.to_string(),
        accepts: environment.shown(),
        look: environment.lookers(),
        break_glass: environment.break_glass,
        heartbeat_s: environment.heartbeat_s,
        requires: environment.requires.iter().map(|isolation| isolation.as_str().to_owned()).collect(),
    };
    PolicyReport {
        fleet: policy.fleet.to_string(),
        version: policy.version,
        root_threshold: policy.root.threshold,
        roots: policy.root.keys.iter().map(|key| name_of(policy, key)).collect(),
        keys: policy.keys.iter().map(key).collect(),
        environments: policy.environments.iter().map(environment).collect(),
        revoked: policy.revoked.len(),
        proposal: proposal.map(|proposal| {
            let [present, next] = proposal.signed(policy);
            let wanting =
                |signed: &Signed| signed.needed.saturating_sub(u32::try_from(signed.by.len()).unwrap_or(u32::MAX));
            let mut signed_by = present.by.clone();
            signed_by.extend(next.by.iter().filter(|name| !present.by.contains(name)).cloned());
            ShownProposal {
                version: proposal.policy.version,
                complete: present.is_enough() && next.is_enough(),
                signed_by,
                missing: missing(&present, &next),
                wanting_of_present: wanting(&present),
                wanting_of_next: wanting(&next),
            }
        }),
        nodes,
    }
}

fn render(report: &PolicyReport, paint: Paint) -> String {
    let mut out = String::new();
    putln!(out, "{}", paint.bold(&format!("fleet {}: policy version {} in {POLICY}", report.fleet, report.version)));
    let of = report.roots.len();
    putln!(out, "the next one needs {} of {of} root key(s): {}\n", report.root_threshold, report.roots.join(", "));
    let mut keys = Table::new(&["KEY", "ROLES", "TYPE", "FINGERPRINT", "PIN"]);
    for key in &report.keys {
        let pin = if key.verify_user { "demanded" } else { "" };
        keys.row([key.holder.clone(), key.roles.join(" "), key.kind.clone(), key.fingerprint.clone(), pin.into()]);
    }
    out.push_str(&keys.render(paint));
    out.push('\n');
    let mut environments =
        Table::new(&["ENV", "TO RUN AN IMAGE", ">TOOLS", ">BREAK GLASS", ">HEARTBEAT", "NODES MUST HAVE"]);
    for it in &report.environments {
        let number = |number: Option<u32>| number.map_or_else(|| "nobody".into(), |number| number.to_string());
        environments.row([
            it.environment.clone(),
            it.accepts.clone(),
            number(it.look),
            number(it.break_glass),
            it.heartbeat_s.map(|period| format!("{period} s")).unwrap_or_default(),
            it.requires.join(" "),
        ]);
    }
    out.push_str(&environments.render(paint));
    if report.revoked > 0 {
        putln!(out, "\n{} images, orders or statements are revoked", report.revoked);
    }
    if let Some(proposal) = &report.proposal {
        putln!(out, "\n{}", paint.bold(&format!("proposed: version {}, in policy.next.json", proposal.version)));
        let by = if proposal.signed_by.is_empty() { "nobody yet".into() } else { proposal.signed_by.join(", ") };
        putln!(out, "signed by {by}");
        if proposal.complete {
            putln!(out, "signed enough: `bulkhead policy push` puts it into force");
        } else {
            putln!(
                out,
                "wanting: {} of the present root keys, {} of the new; signatures that would count: {}",
                proposal.wanting_of_present,
                proposal.wanting_of_next,
                proposal.missing.join(", ")
            );
            putln!(out, "pass policy.next.json and policy.next.json.sig on; they run `bulkhead policy sign`");
        }
    }
    if !report.nodes.is_empty() {
        out.push('\n');
        let mut table = Table::new(&["NODE", "POLICY"]);
        report.nodes.iter().for_each(|node| table.row([node.node.clone(), said(node)]));
        out.push_str(&table.render(paint));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways() {
        for (text, release, green, standing) in [
            ("release", 1, 0, false),
            ("2-release", 2, 0, false),
            ("green+release", 1, 1, false),
            ("green+2-release", 2, 1, false),
            ("2-green+release", 1, 2, false),
            ("green", 0, 1, false),
            ("green+standing", 0, 1, true),
        ] {
            assert_eq!(parse_way(text), Ok(Demand { release, green, standing }), "{text}");
        }
        for text in ["", "x", "2-standing", "-release", "release+", "two-release"] {
            assert!(parse_way(text).is_err(), "{text}");
        }
    }

    #[test]
    fn changed_lines() {
        assert_eq!(differences("a\nb\nc\n", "a\nB\nc\n"), [" a", "-b", "+B", " c"]);
        assert!(differences("a\n", "a\n").is_empty());
    }
}
