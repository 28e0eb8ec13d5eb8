//! `bulkhead pool plan`.

use super::{FROZEN, Looked, against};
use crate::{
    Context,
    error::Result,
    notices::revoked,
    output::{Paint, printable},
    pools::{grants, machines_granted},
};
use bulkhead_core::PoolName;
use bulkhead_pool::{Desk, Request};
use bulkhead_scale::{Command, Decision, Event, InstanceId, MachineId, Micros, Output, PoolIndex, Scaler, Wish};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;

/// Shows what the loop would decide if it looked now, and what holds it back
///
/// With what was asked and no loop has taken yet. Decided on a copy: nothing is bought, started or written.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {}

/// What would be decided.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PoolPlanReport {
    /// Whether a loop runs on this machine.
    pub running: bool,
    /// Whether nothing is bought, emptied or deleted, once what was asked is done.
    pub frozen: bool,
    /// How many machines would be bought for each pool, and what they cost.
    pub buys: Vec<String>,
    /// What would be decided, and why.
    pub decisions: Vec<String>,
    /// What would be done; nothing where a loop runs, which has begun it.
    pub commands: Vec<String>,
    /// Why nothing is bought for what waits.
    pub holds: Vec<String>,
    /// How far each pool, and all together, are from their limits now.
    pub limits: Vec<String>,
    /// What was asked and is not carried out yet.
    pub pending: Vec<String>,
}

/// Shows it.
pub(super) fn run(context: &Context, _: &PlanArgs) -> Result<()> {
    let looked = Looked::at(context)?;
    let files = &looked.files;
    let revoked = revoked(&files.directory, &files.policy()?.policy)?;
    let granted = machines_granted(&grants(files, &|error| context.ui.warn(error))?, &revoked);
    let report = report(&looked, &|pool| granted.get(pool).copied().unwrap_or(0));
    context.ui.result(&report, render)
}

/// `granted` says how many machines grants let a pool have.
fn report(looked: &Looked, granted: &dyn Fn(&PoolName) -> u32) -> PoolPlanReport {
    let mut copy = Copy::of(looked);
    copy.bound(granted);
    let limits = limits(looked, &copy.desk.scaler);
    copy.step(Event::Tick);
    let pending = || looked.view.iter().flat_map(|view| &view.pending);
    for request in pending().filter_map(|asked| asked.request.as_ref().ok()) {
        copy.carry(request.clone());
    }
    let is_hold = |decision: &&Decision| matches!(decision, Decision::Hold { .. });
    let decisions = copy.output.decisions.iter().filter(|decision| !is_hold(decision));
    PoolPlanReport {
        running: looked.is_running(),
        frozen: copy.desk.scaler.is_frozen(),
        buys: copy.buys(),
        decisions: decisions.map(|decision| copy.decision(decision)).collect(),
        commands: if looked.is_running() { vec![] } else { copy.commands() },
        holds: copy.holds(),
        limits,
        pending: pending()
            .map(|asked| asked.request.as_ref().map_or_else(Clone::clone, |request| copy.request(request)))
            .collect(),
    }
}

/// A copy of what a loop knows, on which requests are carried out as a loop does.
struct Copy<'a> {
    looked: &'a Looked,
    desk: Desk,
    /// All that came of it so far.
    output: Output,
}

impl<'a> Copy<'a> {
    fn of(looked: &'a Looked) -> Self {
        let view = looked.view.as_ref();
        Self {
            looked,
            desk: Desk {
                scaler: looked.scaler(),
                workloads: view.map(|view| view.workloads.clone()).unwrap_or_default(),
                next_instance: view.map_or(InstanceId(0), |view| view.next_instance),
            },
            output: Output::default(),
        }
    }

    fn bound(&mut self, granted: &dyn Fn(&PoolName) -> u32) {
        for index in (0..).map(PoolIndex) {
            let Some(view) = self.desk.scaler.pool(index) else { break };
            let most = granted(&view.pool.name);
            self.desk.scaler.bound(index, Some(most));
        }
    }

    fn step(&mut self, event: Event) {
        let mut outputs = Vec::new();
        self.desk.step(event, self.looked.now, &mut outputs);
        self.take(outputs);
    }

    fn carry(&mut self, request: Request) {
        let mut outputs = Vec::new();
        // What is granted is for the loop to see; what it says besides is in its log.
        drop(self.desk.carry(request, self.looked.now, &|_, _| Ok(()), &mut outputs));
        self.take(outputs);
    }

    fn take(&mut self, outputs: Vec<Output>) {
        for mut output in outputs {
            self.output.commands.append(&mut output.commands);
            self.output.decisions.append(&mut output.decisions);
        }
    }

    /// A machine's name as a node.
    fn name(&self, machine: MachineId) -> String {
        let row = self.desk.scaler.machine(machine);
        row.and_then(|row| row.name.split('.').next()).map_or_else(|| machine.0.to_string(), str::to_owned)
    }

    /// What is bought for each pool in all.
    fn buys(&self) -> Vec<String> {
        let mut counts: BTreeMap<PoolIndex, u64> = BTreeMap::new();
        for decision in &self.output.decisions {
            if let Decision::Buy { machine, .. } = decision
                && let Some(row) = self.desk.scaler.machine(*machine)
            {
                *counts.entry(row.pool).or_default() += 1;
            }
        }
        let line = |(index, count): (PoolIndex, u64)| {
            let pool = self.desk.scaler.pool(index)?.pool;
            let cost = Micros(pool.price.0.saturating_mul(count));
            let machines = if count == 1 { "machine" } else { "machines" };
            Some(format!("{count} {machines} for {}: {cost} an hour", pool.name))
        };
        counts.into_iter().filter_map(line).collect()
    }

    /// Why nothing is bought for what waits in the end.
    fn holds(&self) -> Vec<String> {
        let pools = (0..).map(PoolIndex).map_while(|index| self.desk.scaler.pool(index));
        let hold = |view: bulkhead_scale::PoolView<'_>| {
            let (pool, hold, waiting) = (view.pool.name.clone(), view.hold?, view.waiting);
            Some(Decision::Hold { pool, hold, waiting }.to_string())
        };
        pools.filter_map(hold).collect()
    }

    fn decision(&self, decision: &Decision) -> String {
        match decision {
            Decision::Buy { machine, why, free_slots } => {
                format!("buy {}: {why}; {free_slots} slots were free", self.name(*machine))
            }
            Decision::Again { machine } => format!("ask for {} again: no list shows it", self.name(*machine)),
            Decision::Adopt { machine, server } => {
                format!("{} is the provider's {server}, as a list shows", self.name(*machine))
            }
            Decision::Became { machine, state, cause } => {
                let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
                format!("{} is {state}{cause}", self.name(*machine))
            }
            Decision::Reprieve { machine } => format!("keep {}: it is wanted after all", self.name(*machine)),
            other => other.to_string(),
        }
    }

    /// What would be done, instances of a workload on a machine together.
    fn commands(&self) -> Vec<String> {
        let mut lines: Vec<(String, usize)> = Vec::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for command in &self.output.commands {
            let line = self.command(command);
            let place = *places.entry(line.clone()).or_insert_with(|| {
                lines.push((line, 0));
                lines.len() - 1
            });
            lines[place].1 += 1;
        }
        lines.into_iter().map(|(line, count)| line.replace("{count}", &count.to_string())).collect()
    }

    /// A command in words, with `{count}` where the like are counted.
    fn command(&self, command: &Command) -> String {
        let workload = |instance| self.desk.workloads.get(instance).map_or("", String::as_str);
        match command {
            Command::Create { machine } => format!("ask the provider for {}", self.name(*machine)),
            Command::List => "read the provider's list of machines".into(),
            Command::Join { machine, .. } => format!("make a node of {}", self.name(*machine)),
            Command::Confirm { machine } => format!("ask {} what runs on it", self.name(*machine)),
            Command::Delete { machine, server } => {
                format!("delete {} (the provider's {server})", self.name(*machine))
            }
            Command::Start { instance, machine } => {
                format!("start {{count}} of {} on {}", workload(instance), self.name(*machine))
            }
            Command::Stop { instance, machine } => {
                format!("stop {{count}} of {} on {}", workload(instance), self.name(*machine))
            }
        }
    }

    fn request(&self, request: &Request) -> String {
        match request {
            Request::Start { workload, pool, count, .. } => format!("start {count} of {workload} in {pool}"),
            Request::Scale { workload, pool, count, .. } => format!("have {count} of {workload} in {pool}"),
            Request::Stop { workload, pool, count } => {
                let many = if *count == u32::MAX { "all".to_owned() } else { count.to_string() };
                let place = pool.as_ref().map(|pool| format!(" in {pool}")).unwrap_or_default();
                format!("stop {many} of {workload}{place}")
            }
            Request::Freeze => "freeze".into(),
            Request::Thaw => "thaw".into(),
            Request::Machine { machine, wish } => {
                let what = match wish {
                    Wish::Cordon => "cordon",
                    Wish::Use => "uncordon",
                    Wish::Drain => "drain",
                    Wish::Discard => "discard",
                };
                format!("{what} {}", self.name(*machine))
            }
            Request::DeleteOrphan { server } => format!("delete the orphan {server}"),
        }
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
    section("asked, not yet taken", &report.pending);
    section("would buy", &report.buys);
    section("would decide", &report.decisions);
    section("would do", &report.commands);
    section("holds back", &report.holds);
    section("limits", &report.limits);
    if report.decisions.is_empty() && report.commands.is_empty() && report.holds.is_empty() {
        out.insert_str(0, "nothing to decide\n");
    }
    if report.frozen {
        putln!(out, "{FROZEN}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::pool::tests::looked;
    use bulkhead_pool::Asked;

    #[test]
    fn words() {
        let folder = tempfile::tempdir().unwrap();
        let report = report(&looked(folder.path()), &|_| 9);
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

    #[test]
    fn what_would_this_buy() {
        let folder = tempfile::tempdir().unwrap();
        let mut looked = looked(folder.path());
        let view = looked.view.as_mut().unwrap();
        looked.pools.pools[0].caps.machines = Some(10);
        let ask = |requests: Vec<Request>| {
            requests.into_iter().map(|request| Asked { id: 1, request: Ok(request) }).collect::<Vec<_>>()
        };
        let start = |count| Request::Start {
            workload: "notes/kernel".into(),
            pool: "kernels".parse().unwrap(),
            needs: bulkhead_scale::Room::slots(1),
            is_movable: false,
            count,
        };
        view.pending = ask(vec![start(4), Request::Machine { machine: MachineId(0), wish: Wish::Cordon }]);
        insta::assert_snapshot!(render(&report(&looked, &|_| 9), Paint { colour: false }), @r"
        asked, not yet taken
          start 4 of notes/kernel in kernels
          cordon kernels-k3f9-0
        would buy
          3 machines for kernels: $0.10713 an hour
        would decide
          buy kernels-k3f9-2: instance 4 fits nowhere; 0 slots were free
          buy kernels-k3f9-3: instance 6 fits nowhere; 0 slots were free
          buy kernels-k3f9-4: instance 8 fits nowhere; 0 slots were free
          kernels-k3f9-0 is cordoned: a person said so
        would do
          make a node of kernels-k3f9-1
          read the provider's list of machines
          ask the provider for kernels-k3f9-2
          ask the provider for kernels-k3f9-3
          ask the provider for kernels-k3f9-4
        limits
          kernels: 2 of 10 machines, $0.07142 an hour, $0.020893 of $20.00 this month
          all together: 2 machines, $0.07142 of $1.00 an hour, $0.020893 this month
        ");
        let view = looked.view.as_mut().unwrap();
        view.pending = ask(vec![Request::Stop { workload: "notes/kernel".into(), pool: None, count: u32::MAX }]);
        let stopped = report(&looked, &|_| 9);
        assert_eq!(stopped.pending, ["stop all of notes/kernel"]);
        assert!(stopped.commands.contains(&"stop 2 of notes/kernel on kernels-k3f9-0".to_owned()), "{stopped:?}");
        let view = looked.view.as_mut().unwrap();
        view.pending = ask(vec![Request::Freeze, start(1)]);
        assert!(report(&looked, &|_| 9).buys.len() == 1, "what waited before was bought for before the freeze");
        assert!(report(&looked, &|_| 9).frozen);
    }
}
