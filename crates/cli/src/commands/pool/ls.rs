//! `bulkhead pool ls`.

use super::{FROZEN, Looked, NO_LOOP, against, span};
use crate::{
    Context,
    error::Result,
    output::{Paint, printable, seconds},
    pools::{self, database_error},
    table::Table,
};
use bulkhead_pool::{NodeRecord, Told, decisions, records};
use bulkhead_scale::{Cause, Doing, Event, Machine, Micros, Output, Pool, PoolIndex, State, Time};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// How far back the log is looked through for why something waits.
const REASONS_MAX: u32 = 500;

/// Shows pools: machines, slots, instances, what they cost; and each machine
#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Shows how long each part of a machine's way took, from the request to the provider to the first instance.
    #[arg(long)]
    timings: bool,
}

/// The pools.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PoolLsReport {
    /// Whether a loop runs on this machine.
    pub running: bool,
    /// Whether a person froze it: nothing is bought, emptied or deleted.
    pub frozen: bool,
    /// How many requests wait for the loop.
    pub pending: usize,
    /// Each pool.
    pub pools: Vec<ListedPool>,
    /// Each machine that is not gone, oldest first.
    pub machines: Vec<ListedMachine>,
    /// Machines at the provider that are on no record.
    pub orphans: Vec<ListedOrphan>,
}

/// A pool.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListedPool {
    /// Its name.
    pub pool: String,
    /// Its environment; none where it is configured no more.
    pub environment: Option<String>,
    /// Machines by state.
    pub machines: BTreeMap<String, usize>,
    /// How many slots one machine has.
    pub slots: u32,
    /// Which experiment found that number.
    pub slots_note: Option<String>,
    /// Slots in use, those reserved on machines that are coming among them.
    pub slots_used: u64,
    /// Free slots on ready machines.
    pub slots_free: u64,
    /// Free slots on machines that are coming.
    pub slots_coming: u64,
    /// Instances by what they do.
    pub instances: BTreeMap<String, usize>,
    /// For how long the first of those that have no place has waited, in milliseconds.
    pub waits_ms: Option<u64>,
    /// Why nothing is bought for them.
    pub why: Option<String>,
    /// What its machines cost an hour, in millionths of a dollar.
    pub per_hour_micros: u64,
    /// What they may cost.
    pub per_hour_max_micros: Option<u64>,
    /// What they have cost this month (UTC) so far.
    pub per_month_micros: u64,
    /// What they may cost in a month.
    pub per_month_max_micros: Option<u64>,
}

/// A machine.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListedMachine {
    /// Its name, as a node.
    pub machine: String,
    /// Its pool.
    pub pool: String,
    /// Its state.
    pub state: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Why, for states that have a reason.
    pub cause: Option<String>,
    /// Slots in use.
    pub slots_used: u32,
    /// Slots it has.
    pub slots: u32,
    /// The provider's number for it.
    pub server: Option<u64>,
    /// Where it is reached, once it was laid out.
    pub address: Option<String>,
    /// Since when it does not answer, in milliseconds since 1970.
    pub silent_since_ms: Option<u64>,
    /// Whether it became a node.
    pub node: bool,
    /// When it is given back by itself, in milliseconds since 1970, where it is in quarantine and nobody must decide.
    pub goes_ms: Option<u64>,
    /// The parts of its way from the request to the provider to its first instance, as far as it is.
    pub parts: Vec<MachinePart>,
}

/// A part of a machine's way to its first instance.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MachinePart {
    /// What it ended with: `located`, `reached`, `packages`, `laid out`, `greeted`, `first instance`.
    pub part: String,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

/// A machine on no record.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListedOrphan {
    /// The provider's number for it.
    pub server: u64,
    /// Its name there.
    pub name: String,
}

/// Shows them.
pub(super) fn run(context: &Context, args: &LsArgs) -> Result<()> {
    let looked = Looked::at(context)?;
    // What cannot be read of machines keeps nobody from seeing the rest.
    let nodes = records(&pools::directory(&looked.files.fleet.fleet)?).unwrap_or_default();
    let told = decisions(&looked.path, 0, REASONS_MAX).map_err(|error| database_error(&error))?;
    let report = report(&looked, &nodes, &told);
    context.ui.result(&report, |report, paint| {
        let mut out = render(report, looked.now, paint);
        if args.timings {
            put!(out, "\n{}", ways(report, paint));
        }
        out
    })
}

fn report(looked: &Looked, nodes: &BTreeMap<String, NodeRecord>, told: &[Told]) -> PoolLsReport {
    let now = looked.now;
    // A first step says why nothing would be bought; it is looked at beside the rows, which it changes.
    let mut tick = looked.scaler();
    tick.step(Event::Tick, now, &mut Output::default());
    let scaler = looked.scaler();
    let machines: Vec<_> = scaler.machines().filter(|machine| machine.state != State::Gone).collect();
    let instances: Vec<_> = scaler.instances().collect();
    let mut listed = Vec::new();
    for index in (0..).map(PoolIndex) {
        let Some(view) = scaler.pool(index) else { break };
        let name = &view.pool.name;
        let section = looked.files.fleet.pools.get(name);
        let mut by_state: BTreeMap<String, usize> = BTreeMap::new();
        let mut slots_used = 0;
        for machine in machines.iter().filter(|machine| machine.pool == index) {
            *by_state.entry(machine.state.to_string()).or_default() += 1;
            slots_used += u64::from(machine.used.slots);
        }
        if section.is_none() && by_state.is_empty() {
            continue;
        }
        let mut by_doing: BTreeMap<String, usize> = BTreeMap::new();
        let mut first = None;
        for instance in instances.iter().filter(|instance| instance.pool == index) {
            *by_doing.entry(instance.doing.to_string()).or_default() += 1;
            if instance.doing == Doing::Waiting {
                first = Some(first.map_or(instance.since, |first: Time| first.min(instance.since)));
            }
        }
        // What only the running loop knows, such as a provider's refusals, is in its log alone.
        let logged = told.iter().rev().find_map(|told| {
            let reason = told.text.strip_prefix(&format!("buy nothing for {name}, where "))?;
            Some(reason.split_once(": ")?.1.to_owned()).filter(|_| first.is_some_and(|first| told.at >= first))
        });
        let hold = tick.pool(index).and_then(|pool| pool.hold).map(|hold| hold.to_string());
        let micros = |amount: Micros| amount.0;
        listed.push(ListedPool {
            pool: name.to_string(),
            environment: section.map(|section| section.environment.to_string()),
            machines: by_state,
            slots: view.pool.machine.slots,
            slots_note: section.and_then(|section| section.slots_note.clone()),
            slots_used,
            slots_free: view.free_slots,
            slots_coming: view.coming_slots,
            instances: by_doing,
            waits_ms: first.map(|first| now.since(first)),
            why: first.and(hold.or(logged)),
            per_hour_micros: view.ledger.rate().0,
            per_hour_max_micros: view.pool.caps.per_hour.map(micros),
            per_month_micros: view.ledger.spent().0,
            per_month_max_micros: view.pool.caps.per_month.map(micros),
        });
    }
    let view = looked.view.as_ref();
    // A loop that takes rows up listens anew; what the last one heard stands in the rows alone.
    let silent: BTreeMap<_, _> = view
        .iter()
        .flat_map(|view| &view.rows.machines)
        .filter_map(|machine| Some((machine.id, machine.silent_since?.0)))
        .collect();
    PoolLsReport {
        running: looked.is_running(),
        frozen: view.is_some_and(|view| view.rows.is_frozen),
        pending: view.map_or(0, |view| view.pending.len()),
        pools: listed,
        machines: machines
            .iter()
            .map(|machine| {
                let name = machine.name.split('.').next().unwrap_or_default();
                let pool = scaler.pool(machine.pool).map(|view| view.pool);
                let node = nodes.get(name);
                let parts = node.map(|node| node.milestones.parts()).unwrap_or_default();
                ListedMachine {
                    machine: name.to_owned(),
                    pool: pool.map(|pool| pool.name.to_string()).unwrap_or_default(),
                    state: machine.state.to_string(),
                    since_ms: machine.since.0,
                    cause: machine.cause.map(|cause| cause.to_string()),
                    slots_used: machine.used.slots,
                    slots: pool.map_or(0, |pool| pool.machine.slots),
                    server: machine.server.map(|server| server.0),
                    address: node.map(|node| node.node.address.clone()),
                    silent_since_ms: silent.get(&machine.id).copied(),
                    node: machine.is_node(),
                    goes_ms: goes_ms(machine, pool),
                    parts: parts.into_iter().map(|(part, ms)| MachinePart { part: part.to_owned(), ms }).collect(),
                }
            })
            .collect(),
        orphans: view
            .iter()
            .flat_map(|view| &view.orphans)
            .map(|(server, name)| ListedOrphan { server: server.0, name: name.clone() })
            .collect(),
    }
}

/// When a machine goes from quarantine by itself. Those that something is on, or that are not what they were, wait for
/// people.
fn goes_ms(machine: &Machine, pool: Option<&Pool>) -> Option<u64> {
    let is_for_people = matches!(machine.cause, Some(Cause::Renamed | Cause::Unknown));
    let goes = machine.state == State::Quarantined && machine.instances.is_empty() && !is_for_people;
    pool.filter(|_| goes).map(|pool| machine.since.plus(pool.quarantine_ms).0)
}

/// What a person can do about a machine in quarantine.
fn about_quarantined(machine: &ListedMachine, now: Time) -> String {
    let name = &machine.machine;
    // Who may log in to a machine as root goes once it is a node.
    let look = match machine.address.as_deref() {
        _ if machine.node => {
            format!("`bulkhead ps` and `logs` show what runs there, `bulkhead pool uncordon {name}` uses it again")
        }
        Some(address) => format!("look at it with `ssh root@{address}` and the loop's key"),
        None => "look at it at the provider".to_owned(),
    };
    let goes = machine.goes_ms.map_or_else(
        || "it stays until somebody does".to_owned(),
        |goes| format!("by itself it goes in {}", span(Time(goes).since(now))),
    );
    format!("quarantined: {name} is paid for; {look}; `bulkhead pool discard {name}` gives it back; {goes}")
}

/// `2 ready, 1 booting`, in an order of its own.
fn counted(counts: &BTreeMap<String, usize>, order: &[&str]) -> String {
    let known = order.iter().filter_map(|word| Some(format!("{} {word}", counts.get(*word)?)));
    known.collect::<Vec<_>>().join(", ")
}

const STATES: [&str; 9] =
    ["ready", "joining", "booting", "creating", "planned", "cordoned", "draining", "deleting", "quarantined"];
const DOINGS: [&str; 7] = ["running", "moving", "leaving", "starting", "reserved", "waiting", "stopping"];

fn render(report: &PoolLsReport, now: Time, paint: Paint) -> String {
    let mut out = String::new();
    let mut table = Table::new(&["POOL", "ENV", "MACHINES", "SLOTS", "INSTANCES", "PER HOUR", "THIS MONTH"]);
    for pool in &report.pools {
        let mut slots = format!("{} used, {} free", pool.slots_used, pool.slots_free);
        if pool.slots_coming > 0 {
            put!(slots, ", {} coming", pool.slots_coming);
        }
        table.row([
            pool.pool.clone(),
            pool.environment.clone().unwrap_or_else(|| "retired".into()),
            counted(&pool.machines, &STATES),
            slots,
            counted(&pool.instances, &DOINGS),
            against(Micros(pool.per_hour_micros), pool.per_hour_max_micros.map(Micros)),
            against(Micros(pool.per_month_micros), pool.per_month_max_micros.map(Micros)),
        ]);
    }
    out.push_str(&table.render(paint));
    for pool in &report.pools {
        if let Some(waits) = pool.waits_ms {
            let count = pool.instances.get("waiting").copied().unwrap_or_default();
            let why = pool.why.as_deref().unwrap_or("the loop has not looked at it yet");
            let (instances, wait) = if count == 1 { ("instance", "waits") } else { ("instances", "wait") };
            putln!(
                out,
                "{count} {instances} of {} {wait} for a place since {}: {}",
                pool.pool,
                span(waits),
                printable(why)
            );
        }
    }
    if !report.machines.is_empty() {
        let mut table = Table::new(&["MACHINE", "STATE", "SINCE", "CAUSE", ">SLOTS", ">SERVER", "ADDRESS"]);
        for machine in &report.machines {
            let cause = match (machine.silent_since_ms, &machine.cause) {
                (Some(since), _) => format!("silent since {}", span(now.since(Time(since)))),
                (None, cause) => cause.clone().unwrap_or_default(),
            };
            table.row([
                machine.machine.clone(),
                machine.state.clone(),
                span(now.since(Time(machine.since_ms))),
                cause,
                format!("{} of {}", machine.slots_used, machine.slots),
                machine.server.map(|server| server.to_string()).unwrap_or_default(),
                machine.address.clone().unwrap_or_default(),
            ]);
        }
        put!(out, "\n{}", table.render(paint));
    }
    let mut notes = Vec::new();
    for pool in &report.pools {
        if let Some(note) = &pool.slots_note {
            notes.push(format!("{}: {} slots a machine, by experiment: {}", pool.pool, pool.slots, printable(note)));
        }
    }
    for orphan in &report.orphans {
        notes.push(format!(
            "orphan: the provider has {} ({}), which is on no record and costs money: `bulkhead pool release-orphan {}`",
            printable(&orphan.name),
            orphan.server,
            orphan.server
        ));
    }
    for machine in report.machines.iter().filter(|machine| machine.state == State::Cordoned.as_str()) {
        if machine.slots_used == 0 {
            let name = &machine.machine;
            notes.push(format!("{name} is empty, cordoned, and paid for: `bulkhead pool drain {name}` gives it back"));
        }
    }
    for machine in report.machines.iter().filter(|machine| machine.state == State::Quarantined.as_str()) {
        notes.push(about_quarantined(machine, now));
    }
    if report.frozen {
        notes.push(FROZEN.to_owned());
    }
    if !report.running {
        notes.push(NO_LOOP.to_owned());
    }
    match report.pending {
        0 => {}
        1 => notes.push("1 request waits for the loop".to_owned()),
        count => notes.push(format!("{count} requests wait for the loop")),
    }
    if !notes.is_empty() {
        put!(out, "\n{}\n", notes.join("\n"));
    }
    out
}

/// How long each part of each machine's way took.
fn ways(report: &PoolLsReport, paint: Paint) -> String {
    const PARTS: [&str; 6] = ["located", "reached", "packages", "laid out", "greeted", "first instance"];
    let mut table = Table::new(&[
        "MACHINE",
        ">LOCATED",
        ">REACHED",
        ">PACKAGES",
        ">LAID OUT",
        ">GREETED",
        ">FIRST INSTANCE",
        ">IN ALL",
    ]);
    let time = |ms| seconds(Duration::from_millis(ms));
    for machine in &report.machines {
        let of = |wanted: &str| machine.parts.iter().find(|part| part.part == wanted).map(|part| time(part.ms));
        let mut row = vec![machine.machine.clone()];
        row.extend(PARTS.map(|part| of(part).unwrap_or_default()));
        row.push(time(machine.parts.iter().map(|part| part.ms).sum()));
        table.row(row);
    }
    table.render(paint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::pool::tests::looked;

    #[test]
    fn tables() {
        let folder = tempfile::tempdir().unwrap();
        let looked = looked(folder.path());
        let json = serde_json::json!({
            "name": "kernels-k3f9-0",
            "server": 1000,
            "node": { "environment": "production", "address": "192.0.2.1", "pool": "kernels" },
            "is_adopted": false,
            "milestones": { "asked": 100, "located": 1_600, "reached": 31_000, "packaged": 31_100, "laid_out": 33_000 },
        });
        let nodes = [("kernels-k3f9-0".to_owned(), serde_json::from_value(json).unwrap())].into();
        let mut report = super::report(&looked, &nodes, &[]);
        report.pools[0].slots_note = Some("the third starts in 9 s instead of 2 (November, s-2vcpu-4gb)".into());
        report.orphans.push(ListedOrphan { server: 77, name: "kernels-zzzz-3.acme.bulkhead".into() });
        insta::assert_snapshot!(render(&report, looked.now, Paint { colour: false }), @r"
        POOL     ENV         MACHINES            SLOTS           INSTANCES                         PER HOUR  THIS MONTH
        kernels  production  1 ready, 1 booting  4 used, 0 free  2 running, 2 reserved, 1 waiting  $0.07142  $0.020893 of $20.00
        1 instance of kernels waits for a place since 5 s: the pool may have 2 machines

        MACHINE         STATE    SINCE  CAUSE   SLOTS  SERVER  ADDRESS
        kernels-k3f9-0  ready    35 s   -      2 of 2    1000  192.0.2.1
        kernels-k3f9-1  booting  14 s   -      2 of 2    1001  -

        kernels: 2 slots a machine, by experiment: the third starts in 9 s instead of 2 (November, s-2vcpu-4gb)
        orphan: the provider has kernels-zzzz-3.acme.bulkhead (77), which is on no record and costs money: `bulkhead pool release-orphan 77`
        no loop runs here: `bulkhead pool run` buys machines and starts instances
        ");
        let notes = |report: &PoolLsReport| {
            let text = render(report, looked.now, Paint { colour: false });
            text.lines()
                .filter(|line| line.contains("quarantined: ") || line.contains("silent"))
                .collect::<Vec<_>>()
                .join("\n")
        };
        report.machines[1].state = "quarantined".into();
        report.machines[1].goes_ms = Some(looked.now.0 + 1_800_000);
        report.machines[1].address = Some("192.0.2.2".into());
        insta::assert_snapshot!(notes(&report), @"quarantined: kernels-k3f9-1 is paid for; look at it with `ssh root@192.0.2.2` and the loop's key; `bulkhead pool discard kernels-k3f9-1` gives it back; by itself it goes in 30 min");
        report.machines[1].goes_ms = None;
        report.machines[1].node = true;
        assert!(notes(&report).contains("`bulkhead pool uncordon kernels-k3f9-1` uses it again"));
        assert!(notes(&report).ends_with("it stays until somebody does"));
        insta::assert_snapshot!(ways(&report, Paint { colour: false }), @r"
        MACHINE         LOCATED  REACHED  PACKAGES  LAID OUT  GREETED  FIRST INSTANCE   IN ALL
        kernels-k3f9-0   1.50 s  29.40 s    100 ms    1.90 s        -               -  32.90 s
        kernels-k3f9-1        -        -         -         -        -               -     0 ms
        ");
    }

    #[test]
    fn a_machine_that_fell_silent_is_shown_as_that() {
        let folder = tempfile::tempdir().unwrap();
        let mut looked = looked(folder.path());
        let then = Time(looked.now.0 - 7_000);
        looked.view.as_mut().unwrap().rows.machines[0].silent_since = Some(then);
        let report = super::report(&looked, &BTreeMap::new(), &[]);
        assert_eq!(report.machines[0].silent_since_ms, Some(then.0));
        assert!(render(&report, looked.now, Paint { colour: false }).contains("silent since 7 s"));
    }

    #[test]
    fn quarantine_ends_by_itself_or_by_people() {
        let folder = tempfile::tempdir().unwrap();
        let looked = looked(folder.path());
        let pool = &looked.pools.pools[0];
        let mut machine = looked.view.as_ref().unwrap().rows.machines[0].clone();
        let of = |machine: &Machine| goes_ms(machine, Some(pool));
        assert_eq!(of(&machine), None);
        (machine.state, machine.cause) = (State::Quarantined, Some(Cause::NeverReady));
        assert_eq!(of(&machine), None, "instances are on it");
        machine.instances.clear();
        assert_eq!(of(&machine), Some(machine.since.0 + pool.quarantine_ms));
        machine.cause = Some(Cause::Unknown);
        assert_eq!(of(&machine), None);
    }
}
