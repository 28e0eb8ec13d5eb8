//! `bulkhead pool plan`.

use super::{Looked, against};
use crate::{
    Context,
    error::Result,
    output::{Paint, printable},
};
use bulkhead_pool::Request;
use bulkhead_scale::{Command, Decision, Event, MachineId, Output, PoolIndex, Scaler};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

/// Shows what the loop would decide if it looked now, and what holds it back
///
/// Decided on a copy: nothing is bought, started or written.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {}

/// What would be decided.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PoolPlanReport {
    /// Whether a loop runs on this machine.
    pub running: bool,
    /// Whether nothing is bought, emptied or deleted.
    pub frozen: bool,
    /// What would be decided, and why.
    pub decisions: Vec<String>,
    /// What would be done; nothing where a loop runs, which has begun it.
    pub commands: Vec<String>,
    /// Why nothing is bought for what waits.
    pub holds: Vec<String>,
    /// How far each pool, and all together, are from their limits.
    pub limits: Vec<String>,
    /// What was asked and is not carried out yet.
    pub pending: Vec<String>,
}

/// Shows it.
pub(super) fn run(context: &Context, _: &PlanArgs) -> Result<()> {
    let report = report(&Looked::at(context)?);
    context.ui.result(&report, render)
}

fn report(looked: &Looked) -> PoolPlanReport {
    let mut scaler = looked.scaler();
    let limits = limits(looked, &scaler);
    let mut output = Output::default();
    scaler.step(Event::Tick, looked.now, &mut output);
    let (holds, decisions): (Vec<_>, Vec<_>) =
        output.decisions.iter().partition(|decision| matches!(decision, Decision::Hold { .. }));
    let words = |decisions: Vec<&Decision>| decisions.iter().map(ToString::to_string).collect::<Vec<_>>();
    let commands = if looked.is_running() { &[][..] } else { &output.commands };
    let pending = looked.view.iter().flat_map(|view| &view.pending);
    PoolPlanReport {
        running: looked.is_running(),
        frozen: scaler.is_frozen(),
        decisions: words(decisions),
        commands: commands.iter().map(|command| in_words(command, looked, &scaler)).collect(),
        holds: words(holds),
        limits,
        pending: pending.map(|asked| asked.request.as_ref().map_or_else(Clone::clone, request_in_words)).collect(),
    }
}

fn in_words(command: &Command, looked: &Looked, scaler: &Scaler) -> String {
    let name = |machine: &MachineId| {
        let row = scaler.machine(*machine);
        row.and_then(|row| row.name.split('.').next()).map_or_else(|| machine.0.to_string(), str::to_owned)
    };
    let workload =
        |instance| looked.view.as_ref().and_then(|view| view.workloads.get(instance)).map_or("", String::as_str);
    match command {
        Command::Create { machine } => format!("ask the provider for {}", name(machine)),
        Command::List => "read the provider's list of machines".into(),
        Command::Join { machine, .. } => format!("make a node of {}", name(machine)),
        Command::Confirm { machine } => format!("ask {} what runs on it", name(machine)),
        Command::Delete { machine, server } => format!("delete {} (the provider's {server})", name(machine)),
        Command::Start { instance, machine } => {
            format!("start instance {} of {} on {}", instance.0, workload(instance), name(machine))
        }
        Command::Stop { instance, machine } => {
            format!("stop instance {} of {} on {}", instance.0, workload(instance), name(machine))
        }
    }
}

fn request_in_words(request: &Request) -> String {
    match request {
        Request::Start { workload, pool, count, .. } => format!("start {count} of {workload} in {pool}"),
        Request::Scale { workload, pool, count, .. } => format!("have {count} of {workload} in {pool}"),
        Request::Stop { workload, count, .. } => format!("stop {count} of {workload}"),
        Request::Freeze => "freeze".into(),
        Request::Thaw => "thaw".into(),
        Request::Machine { machine, wish } => format!("machine {}: {wish:?}", machine.0).to_lowercase(),
        Request::DeleteOrphan { server } => format!("delete the orphan {server}"),
    }
}

/// `kernels: 3 of 10 machines, $0.10 of $1.00 an hour, $3.21 of $50.00 this month`.
fn limits(looked: &Looked, scaler: &Scaler) -> Vec<String> {
    let line = |whose: &str, possible: u32, ledger: bulkhead_scale::Ledger, caps: bulkhead_scale::Caps| {
        let machines = caps.machines.map_or_else(|| possible.to_string(), |most| format!("{possible} of {most}"));
        let (hour, month) = (against(ledger.rate(), caps.per_hour), against(ledger.spent(), caps.per_month));
        format!("{whose}: {machines} machines, {hour} an hour, {month} this month")
    };
    let pools = (0..).map_while(|index| scaler.pool(PoolIndex(index)));
    let pools = pools.filter(|view| !view.pool.is_retired || view.possible > 0);
    let mut lines: Vec<String> =
        pools.map(|view| line(view.pool.name.as_str(), view.possible, view.ledger, view.pool.caps)).collect();
    lines.push(line("all together", scaler.possible(), scaler.ledger(), looked.pools.limits.caps));
    lines
}

fn render(report: &PoolPlanReport, paint: Paint) -> String {
    let mut out = String::new();
    let mut section = |title: &str, lines: &[String]| {
        if !lines.is_empty() {
            putln!(out, "{}", paint.bold(title));
            for line in lines {
                putln!(out, "  {}", printable(line));
            }
        }
    };
    section("would decide", &report.decisions);
    section("would do", &report.commands);
    section("holds back", &report.holds);
    section("asked, not yet taken", &report.pending);
    section("limits", &report.limits);
    if report.decisions.is_empty() && report.commands.is_empty() && report.holds.is_empty() {
        out.insert_str(0, "nothing to decide\n");
    }
    if report.frozen {
        out.push_str("frozen: nothing is bought, emptied or deleted: `bulkhead pool thaw`\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::pool::tests::looked;

    #[test]
    fn words() {
        let folder = tempfile::tempdir().unwrap();
        let report = report(&looked(folder.path()));
        insta::assert_snapshot!(render(&report, Paint { colour: false }), @r"
        would do
          make a node of kernels-k3f9-1
          read the provider's list of machines
        holds back
          buy nothing for kernels, where 1 wait: the pool may have 2 machines
        limits
          kernels: 2 of 2 machines, $0.07142 an hour, $0.020893 of $20.00 this month
          all together: 2 machines, $0.07142 of $1.00 an hour, $0.020893 this month
        ");
    }
}
