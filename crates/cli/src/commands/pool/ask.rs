//! What people ask of the loop beside instances: brakes, single machines, orphans.

use super::{Looked, NO_LOOP};
use crate::{
    Context,
    error::{Error, Kind, Result},
    output::printable,
    pools::database_error,
};
use bulkhead_core::name::nearest;
use bulkhead_pool::{Request, View, ask, make};
use bulkhead_scale::{Machine, ServerId, State, Wish};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

/// Has the loop buy, empty and delete nothing until it is thawed
#[derive(Debug, Args)]
pub(super) struct FreezeArgs {}

/// Has the loop go on, after a freeze or after it suspected its own sight
///
/// For an hour after it, lists of the provider that lack many machines are believed: look there first.
#[derive(Debug, Args)]
pub(super) struct ThawArgs {
    /// Goes on without a question.
    #[arg(short, long)]
    yes: bool,
}

/// Places nothing new on a machine
#[derive(Debug, Args)]
pub(super) struct CordonArgs {
    /// The machine, as `bulkhead pool ls` names it, or its number.
    #[arg(value_name = "MACHINE")]
    machine: String,
}

/// Uses a machine again; ends a drain too
#[derive(Debug, Args)]
pub(super) struct UncordonArgs {
    /// The machine, as `bulkhead pool ls` names it, or its number.
    #[arg(value_name = "MACHINE")]
    machine: String,
}

/// Empties a machine and gives it back
#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// The machine, as `bulkhead pool ls` names it, or its number.
    #[arg(value_name = "MACHINE")]
    machine: String,

    /// Goes on without a question.
    #[arg(short, long)]
    yes: bool,
}

/// Gives a machine back from quarantine
#[derive(Debug, Args)]
pub(super) struct DiscardArgs {
    /// The machine, as `bulkhead pool ls` names it, or its number.
    #[arg(value_name = "MACHINE")]
    machine: String,

    /// Goes on without a question.
    #[arg(short, long)]
    yes: bool,
}

/// Deletes a machine of the fleet at the provider that is on no record
///
/// Another loop's machines look like that too, one that lost its database or runs elsewhere: be sure that none does.
#[derive(Debug, Args)]
pub(super) struct ReleaseOrphanArgs {
    /// The provider's number, as `bulkhead pool ls` shows it.
    #[arg(value_name = "SERVER")]
    server: u64,

    /// Goes on without a question.
    #[arg(short, long)]
    yes: bool,
}

/// What was asked of the loop.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PoolAskedReport {
    /// In words.
    pub asked: String,
    /// The machine, where it is about one.
    pub machine: Option<String>,
    /// Whether a loop runs, which carries it out; if not it waits for the next one.
    pub running: bool,
}

pub(super) fn freeze(context: &Context) -> Result<()> {
    put(context, &Looked::unchecked(context)?, "freeze", None, &Request::Freeze)
}

pub(super) async fn thaw(context: &Context, args: &ThawArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.yes)?;
    let looked = Looked::unchecked(context)?;
    context.ui.confirm("Buy, empty and delete machines again?", args.yes).await?;
    put(context, &looked, "thaw", None, &Request::Thaw)
}

pub(super) fn cordon(context: &Context, args: &CordonArgs) -> Result<()> {
    let looked = Looked::unchecked(context)?;
    let machine = machine(&looked, &args.machine)?;
    must_be(machine, matches!(machine.state, State::Ready | State::Draining), "ready or draining")?;
    wish(context, &looked, "cordon", machine, Wish::Cordon)
}

pub(super) fn uncordon(context: &Context, args: &UncordonArgs) -> Result<()> {
    let looked = Looked::unchecked(context)?;
    let machine = machine(&looked, &args.machine)?;
    let is_held = match machine.state {
        State::Cordoned | State::Draining => true,
        State::Quarantined => machine.is_node(),
        _ => false,
    };
    must_be(machine, is_held, "cordoned, draining, or a node in quarantine")?;
    wish(context, &looked, "uncordon", machine, Wish::Use)
}

pub(super) async fn drain(context: &Context, args: &DrainArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.yes)?;
    let looked = Looked::unchecked(context)?;
    let machine = machine(&looked, &args.machine)?;
    must_be(machine, matches!(machine.state, State::Ready | State::Cordoned), "ready or cordoned").map_err(
        |error| match machine.state {
            State::Quarantined => error.hint(format!("`bulkhead pool discard {}` gives it back", node(machine))),
            _ => error,
        },
    )?;
    let question =
        format!("Empty {}, on which {} instances are, and give it back?", node(machine), machine.instances.len());
    context.ui.confirm(&question, args.yes).await?;
    wish(context, &looked, "drain", machine, Wish::Drain)
}

pub(super) async fn discard(context: &Context, args: &DiscardArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.yes)?;
    let looked = Looked::unchecked(context)?;
    let machine = machine(&looked, &args.machine)?;
    must_be(machine, machine.state == State::Quarantined, "in quarantine").map_err(|error| match machine.state {
        State::Ready | State::Cordoned => {
            error.hint(format!("`bulkhead pool drain {}` empties it and gives it back", node(machine)))
        }
        _ => error,
    })?;
    context.ui.confirm(&format!("Give {} back, with all that is on it?", node(machine)), args.yes).await?;
    wish(context, &looked, "discard", machine, Wish::Discard)
}

pub(super) async fn release_orphan(context: &Context, args: &ReleaseOrphanArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.yes)?;
    let looked = Looked::unchecked(context)?;
    let server = ServerId(args.server);
    let orphans = looked.view.iter().flat_map(|view| &view.orphans);
    let Some((_, name)) = orphans.clone().find(|(known, _)| *known == server) else {
        let known: Vec<String> = orphans.map(|(server, _)| server.to_string()).collect();
        let error = Error::usage(format!("the loop has reported no orphan {server}"));
        return Err(if known.is_empty() { error } else { error.hint(format!("there are {}", known.join(", "))) });
    };
    context
        .ui
        .confirm_word(&format!("Delete {} ({server}) at the provider?", printable(name)), &server.to_string(), args.yes)
        .await?;
    let what = format!("delete the orphan {name}");
    put(context, &looked, &what, None, &Request::DeleteOrphan { server })
}

fn node(machine: &Machine) -> &str {
    machine.name.split('.').next().unwrap_or_default()
}

/// A machine by its name as a node, its name at the provider, or its number.
fn machine<'a>(looked: &'a Looked, wanted: &str) -> Result<&'a Machine> {
    let machines: &[Machine] = looked.view.as_ref().map_or(&[], |view: &View| &view.rows.machines);
    let is_it =
        |machine: &&Machine| &*machine.name == wanted || node(machine) == wanted || wanted.parse() == Ok(machine.id.0);
    machines.iter().find(is_it).ok_or_else(|| {
        let known = machines.iter().filter(|machine| machine.state != State::Gone).map(node);
        let error = Error::usage(format!("no pool has a machine `{wanted}`"));
        match nearest(wanted, known) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint("`bulkhead pool ls` shows them"),
        }
    })
}

fn must_be(machine: &Machine, is_so: bool, what: &str) -> Result<()> {
    if is_so {
        return Ok(());
    }
    Err(Error::new(Kind::Refused, format!("{} is {}, and must be {what}", node(machine), machine.state)))
}

fn wish(context: &Context, looked: &Looked, what: &str, machine: &Machine, wish: Wish) -> Result<()> {
    let request = Request::Machine { machine: machine.id, wish };
    put(context, looked, what, Some(node(machine)), &request)
}

fn put(context: &Context, looked: &Looked, what: &str, machine: Option<&str>, request: &Request) -> Result<()> {
    let asked = make(&looked.path).and_then(|()| ask(&looked.path, request));
    asked.map_err(|error| database_error(&error))?;
    let report =
        PoolAskedReport { asked: what.to_owned(), machine: machine.map(str::to_owned), running: looked.is_running() };
    context.ui.result(&report, |report, _| {
        let whom = report.machine.as_ref().map(|machine| format!(" {machine}")).unwrap_or_default();
        let then = if report.running { "`bulkhead pool log` shows what came of it" } else { NO_LOOP };
        format!("asked the loop to {}{whom}; {then}\n", printable(&report.asked))
    })
}
