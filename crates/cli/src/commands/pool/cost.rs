//! `bulkhead pool cost`.

use super::{Looked, against};
use crate::{Context, error::Result, output::Paint, table::Table};
use bulkhead_scale::{Caps, HOUR_MS, Ledger, Micros, PoolIndex, Time};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

/// Shows what pools cost: an hour now, this month so far, and at its end if all goes on as now
///
/// Every machine that may exist counts, from when it was intended until it is known to be gone: the sums are at or above the bill.
#[derive(Debug, Args)]
pub(super) struct CostArgs {}

/// What pools cost, in millionths of a dollar.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PoolCostReport {
    /// The month (UTC), as `2026-11`.
    pub month: String,
    /// Each pool.
    pub pools: Vec<Cost>,
    /// All together.
    pub all: Cost,
}

/// What a pool costs, in millionths of a dollar.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Cost {
    /// Its name; none for all together.
    pub pool: Option<String>,
    /// Machines that may exist.
    pub machines: u32,
    /// What one costs an hour; none for all together.
    pub price_micros: Option<u64>,
    /// What all cost an hour.
    pub per_hour_micros: u64,
    /// What they may cost.
    pub per_hour_max_micros: Option<u64>,
    /// What they have cost this month.
    pub per_month_micros: u64,
    /// What they may cost in a month.
    pub per_month_max_micros: Option<u64>,
    /// What the month will have cost if all goes on as now.
    pub month_end_micros: u64,
}

/// Shows it.
pub(super) fn run(context: &Context, _: &CostArgs) -> Result<()> {
    let looked = Looked::unchecked(context)?;
    context.ui.result(&report(&looked), render)
}

fn report(looked: &Looked) -> PoolCostReport {
    let scaler = looked.scaler();
    let pools = (0..).map_while(|index| scaler.pool(PoolIndex(index)));
    let pools = pools.filter(|view| !view.pool.is_retired || view.possible > 0 || view.ledger.spent() > Micros(0));
    PoolCostReport {
        month: looked.now.month().to_string(),
        pools: pools
            .map(|view| {
                let name = Some(view.pool.name.to_string());
                cost(name, view.possible, Some(view.pool.price), view.ledger, view.pool.caps, looked.now)
            })
            .collect(),
        all: cost(None, scaler.possible(), None, scaler.ledger(), looked.pools.limits.caps, looked.now),
    }
}

fn cost(pool: Option<String>, machines: u32, price: Option<Micros>, mut ledger: Ledger, caps: Caps, now: Time) -> Cost {
    ledger.advance(now);
    Cost {
        pool,
        machines,
        price_micros: price.map(|price| price.0),
        per_hour_micros: ledger.rate().0,
        per_hour_max_micros: caps.per_hour.map(|most| most.0),
        per_month_micros: ledger.spent().0,
        per_month_max_micros: caps.per_month.map(|most| most.0),
        month_end_micros: month_end(ledger, now).0,
    }
}

/// What the month will have cost at the present rate, rounded up as all sums are.
fn month_end(ledger: Ledger, now: Time) -> Micros {
    let left_ms = now.month().next().start().since(now);
    let rest = (u128::from(ledger.rate().0) * u128::from(left_ms)).div_ceil(u128::from(HOUR_MS));
    ledger.spent() + Micros(u64::try_from(rest).unwrap_or(u64::MAX))
}

fn render(report: &PoolCostReport, paint: Paint) -> String {
    let mut table = Table::new(&["POOL", ">MACHINES", ">PRICE", "PER HOUR", "THIS MONTH", ">AT ITS END"]);
    for cost in report.pools.iter().chain([&report.all]) {
        table.row([
            cost.pool.clone().unwrap_or_else(|| "all together".into()),
            cost.machines.to_string(),
            cost.price_micros.map(|price| Micros(price).to_string()).unwrap_or_default(),
            against(Micros(cost.per_hour_micros), cost.per_hour_max_micros.map(Micros)),
            against(Micros(cost.per_month_micros), cost.per_month_max_micros.map(Micros)),
            // Cents are enough of what is a guess.
            Micros(cost.month_end_micros.div_ceil(10_000) * 10_000).to_string(),
        ]);
    }
    let mut out = table.render(paint);
    for cost in report.pools.iter().chain([&report.all]) {
        if let Some(most) = cost.per_month_max_micros.filter(|most| cost.month_end_micros > *most) {
            let whose = cost.pool.as_deref().unwrap_or("all together");
            putln!(
                out,
                "{whose}: at this rate {} will not last for {}; it ends buying, not what runs",
                Micros(most),
                report.month
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::pool::tests::looked;

    #[test]
    fn tables() {
        let folder = tempfile::tempdir().unwrap();
        let report = report(&looked(folder.path()));
        insta::assert_snapshot!(render(&report, Paint { colour: false }), @r"
        POOL          MACHINES     PRICE  PER HOUR           THIS MONTH           AT ITS END
        kernels              2  $0.03571  $0.07142           $0.020893 of $20.00       $9.61
        all together         2         -  $0.07142 of $1.00  $0.020893                 $9.61
        ");
    }

    #[test]
    fn projection_is_exact_and_never_too_low() {
        let month = Time(0).month();
        let mut ledger = Ledger::new(month.start());
        ledger.begin(Micros(1), Micros(0));
        let end = month.next().start();
        let now = Time(end.0 - HOUR_MS - 1);
        ledger.advance(now);
        assert_eq!(month_end(ledger, now), Micros(ledger.spent().0 + 2));
    }
}
