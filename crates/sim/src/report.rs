//! What came of a run: figures, and plots of them.

use crate::world::Setup;
use bulkhead_scale::{Billing, Decision, HOUR_MS, Micros, State, Time};
use plotters::prelude::*;
use serde::Serialize;
use std::{collections::BTreeMap, fmt};

/// How things stood at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Seconds since the beginning.
    pub at_s: u64,
    /// Instances that are wanted.
    pub wanted: usize,
    /// Machines that exist.
    pub machines: usize,
    /// Machines on their way.
    pub coming: usize,
    /// Instances without a place.
    pub waiting: usize,
    /// What all of it has cost.
    pub spent: Micros,
}

/// What came of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The most machines.
    pub machines: u32,
    /// Instances on one.
    pub slots: u32,
    /// For how many days there was demand.
    pub days: u32,
    /// Chance.
    pub seed: u64,
    /// Events that were handled.
    pub steps: u64,
    /// Requests to create a machine.
    pub creates: u64,
    /// Machines that were made.
    pub made: u64,
    /// How often the scaler crashed.
    pub crashes: u32,
    /// What it cost.
    pub cost: Micros,
    /// What a fleet costs that is always as large as the peak demands.
    pub cost_fixed: Micros,
    /// What no scaler can go below: exactly as many machines as are full, at every moment, without any boot.
    pub cost_least: Micros,
    /// Most instances wanted at once.
    pub peak: usize,
    /// How long instances waited until they ran, in milliseconds.
    pub wait: Waits,
    /// How often each was decided.
    pub decisions: BTreeMap<&'static str, u64>,
    /// How things stood over time.
    pub samples: Vec<Sample>,
    #[serde(skip)]
    price: Micros,
    #[serde(skip)]
    billing: Billing,
    #[serde(skip)]
    begin: Time,
    #[serde(skip)]
    last: (Time, usize),
    #[serde(skip)]
    machine_ms: u128,
    #[serde(skip)]
    waits: Histogram,
}

/// Waiting times in milliseconds: half of all waited no longer than `p50`, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Waits {
    /// How many.
    pub count: u64,
    /// Half.
    pub p50: u64,
    /// 95 of a hundred.
    pub p95: u64,
    /// 99 of a hundred.
    pub p99: u64,
    /// The longest.
    pub most: u64,
}

/// Times by size: 32 classes for each doubling, so within three in a hundred.
#[derive(Debug, Clone, Default)]
struct Histogram {
    classes: BTreeMap<u32, u64>,
    most: u64,
}

impl Histogram {
    fn add(&mut self, value: u64) {
        *self.classes.entry(Self::class(value)).or_default() += 1;
        self.most = self.most.max(value);
    }

    fn class(value: u64) -> u32 {
        let bits = 64 - value.leading_zeros();
        if bits <= 5 {
            return u32::try_from(value).unwrap_or(0);
        }
        let shift = bits - 6;
        shift * 32 + u32::try_from(value >> shift).unwrap_or(0)
    }

    /// The largest value of a class.
    fn value(class: u32) -> u64 {
        if class < 64 {
            return u64::from(class);
        }
        let shift = class / 32 - 1;
        ((u64::from(class % 32 + 32) + 1) << shift) - 1
    }

    fn at(&self, percent: u64) -> u64 {
        let count: u64 = self.classes.values().sum();
        let mut left = (count * percent).div_ceil(100);
        for (class, in_class) in &self.classes {
            left = left.saturating_sub(*in_class);
            if left == 0 {
                return Self::value(*class).min(self.most);
            }
        }
        self.most
    }
}

impl Report {
    pub(crate) fn new(setup: &Setup, begin: Time) -> Self {
        Self {
            machines: setup.machines,
            slots: setup.slots,
            days: setup.days,
            seed: setup.seed,
            steps: 0,
            creates: 0,
            made: 0,
            crashes: 0,
            cost: Micros(0),
            cost_fixed: Micros(0),
            cost_least: Micros(0),
            peak: 0,
            wait: Waits::default(),
            decisions: BTreeMap::new(),
            samples: Vec::new(),
            price: setup.price,
            billing: setup.billing,
            begin,
            last: (begin, 0),
            machine_ms: 0,
            waits: Histogram::default(),
        }
    }

    /// So many are wanted from now on.
    pub(crate) fn wanted(&mut self, now: Time, wanted: usize) {
        let (since, before) = self.last;
        self.machine_ms += u128::from(now.since(since)) * before.div_ceil(self.slots as usize) as u128;
        self.last = (now, wanted);
        self.peak = self.peak.max(wanted);
    }

    pub(crate) fn waited(&mut self, span_ms: u64) {
        self.waits.add(span_ms);
    }

    pub(crate) fn sample(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    pub(crate) fn decided(&mut self, decision: &Decision) {
        let what = match decision {
            Decision::Buy { .. } => "bought",
            Decision::Hold { .. } => "held back",
            Decision::Again { .. } => "asked again",
            Decision::Adopt { .. } => "adopted from a list",
            Decision::Reprieve { .. } => "kept after all",
            Decision::Orphan { .. } => "orphans",
            Decision::Suspect { .. } => "own network suspected",
            Decision::Frozen(_) => "frozen or thawed",
            Decision::Became { state: State::Quarantined, .. } => "put in quarantine",
            Decision::Became { state: State::Gone, .. } => "gone",
            Decision::Became { .. } => return,
        };
        *self.decisions.entry(what).or_default() += 1;
    }

    pub(crate) fn finish(mut self, steps: u64, made: u64, creates: u64, cost: Micros, crashes: u32) -> Self {
        let (end, wanted) = self.last;
        self.wanted(end, wanted);
        (self.steps, self.made, self.creates, self.cost, self.crashes) = (steps, made, creates, cost, crashes);
        let least = self.machine_ms * u128::from(self.price.0) / u128::from(HOUR_MS);
        self.cost_least = Micros(u64::try_from(least).unwrap_or(u64::MAX));
        let whole = end.since(self.begin);
        let fixed = self.billing.cost(self.price, whole);
        self.cost_fixed = fixed.times(self.peak.div_ceil(self.slots as usize) as u64);
        let waits = &self.waits;
        self.wait = Waits {
            count: waits.classes.values().sum(),
            p50: waits.at(50),
            p95: waits.at(95),
            p99: waits.at(99),
            most: waits.most,
        };
        self
    }

    /// A plot of demand, machines, and what both cost, as SVG.
    ///
    /// # Errors
    /// A sentence, should drawing fail.
    pub fn svg(&self) -> Result<String, String> {
        let mut text = String::new();
        {
            let root = SVGBackend::with_string(&mut text, (960, 720)).into_drawing_area();
            self.draw(&root).map_err(|error| format!("cannot draw: {error}"))?;
            root.present().map_err(|error| format!("cannot draw: {error}"))?;
        }
        Ok(text)
    }

    #[expect(clippy::cast_precision_loss, reason = "plots show a few digits")]
    fn draw<'a>(
        &self,
        root: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
    ) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
        root.fill(&WHITE)?;
        let panels = root.split_evenly((3, 1));
        let days = |sample: &Sample| sample.at_s as f64 / 86_400.0;
        let end = self.samples.last().map_or(1.0, days);
        let slots = f64::from(self.slots);
        let series = |value: fn(&Sample) -> f64| self.samples.iter().map(move |sample| (days(sample), value(sample)));
        let top = |value: fn(&Sample) -> f64| self.samples.iter().map(value).fold(1.0, f64::max) * 1.08;
        let font = ("sans-serif", 15);

        let most = top(|sample| sample.machines as f64).max(self.peak as f64 / slots * 1.08);
        let mut chart = ChartBuilder::on(&panels[0])
            .caption("machines that exist, and the least that would do", font)
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(72)
            .build_cartesian_2d(0.0..end, 0.0..most)?;
        chart.configure_mesh().light_line_style(TRANSPARENT).x_desc("days").draw()?;
        let needed = series(|sample| sample.wanted as f64).map(|(day, wanted)| (day, (wanted / slots).ceil()));
        chart.draw_series(AreaSeries::new(needed, 0.0, RGBColor(0x8f, 0xb8, 0xde).mix(0.7)))?;
        chart.draw_series(LineSeries::new(
            series(|sample| sample.machines as f64),
            RGBColor(0x1f, 0x3a, 0x5f).stroke_width(2),
        ))?;

        let most = top(|sample| (sample.waiting + sample.coming) as f64);
        let mut chart = ChartBuilder::on(&panels[1])
            .caption("machines on their way (line), instances without a place (area)", font)
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(72)
            .build_cartesian_2d(0.0..end, 0.0..most)?;
        chart.configure_mesh().light_line_style(TRANSPARENT).x_desc("days").draw()?;
        chart.draw_series(AreaSeries::new(
            series(|sample| sample.waiting as f64),
            0.0,
            RGBColor(0xd9, 0x77, 0x57).mix(0.7),
        ))?;
        chart.draw_series(LineSeries::new(
            series(|sample| sample.coming as f64),
            RGBColor(0x1f, 0x3a, 0x5f).stroke_width(1),
        ))?;

        let dollars = |micros: Micros| micros.0 as f64 / 1e6;
        let fixed = dollars(self.cost_fixed);
        let most = fixed.max(dollars(self.cost)) * 1.08;
        let mut chart = ChartBuilder::on(&panels[2])
            .caption(
                "dollars: this pool (line), a fixed fleet for the peak (dashed), the least possible at the end (dot)",
                font,
            )
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(72)
            .build_cartesian_2d(0.0..end, 0.0..most.max(0.01))?;
        chart.configure_mesh().light_line_style(TRANSPARENT).x_desc("days").draw()?;
        let spent = self.samples.iter().map(|sample| (days(sample), dollars(sample.spent)));
        chart.draw_series(LineSeries::new(spent, RGBColor(0x1f, 0x3a, 0x5f).stroke_width(2)))?;
        let whole = f64::from(self.days);
        let line = [(0.0, 0.0), (whole.min(end), fixed)];
        chart.draw_series(DashedLineSeries::new(line, 6, 4, RGBColor(0x88, 0x88, 0x88).stroke_width(1)))?;
        chart.draw_series([Circle::new(
            (whole.min(end), dollars(self.cost_least)),
            4,
            RGBColor(0xd9, 0x77, 0x57).filled(),
        )])?;
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
        let seconds = |ms: u64| ms as f64 / 1000.0;
        #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
        let part = |cost: Micros| cost.0 as f64 / self.cost_fixed.0.max(1) as f64 * 100.0;
        writeln!(
            f,
            "{} machines of {} slots at most, {} days, seed {}",
            self.machines, self.slots, self.days, self.seed
        )?;
        writeln!(f, "  events          {}", self.steps)?;
        writeln!(f, "  peak            {} instances", self.peak)?;
        writeln!(f, "  machines made   {} by {} requests", self.made, self.creates)?;
        writeln!(f, "  crashes         {}", self.crashes)?;
        writeln!(f, "  cost            {:>14}  {:5.1} % of a fixed fleet", self.cost.to_string(), part(self.cost))?;
        writeln!(f, "  fixed fleet     {:>14}", self.cost_fixed.to_string())?;
        writeln!(f, "  least possible  {:>14}  {:5.1} %", self.cost_least.to_string(), part(self.cost_least))?;
        let wait = self.wait;
        writeln!(
            f,
            "  waiting         half {:.1} s, 95 % {:.1} s, 99 % {:.1} s, longest {:.1} s ({} instances)",
            seconds(wait.p50),
            seconds(wait.p95),
            seconds(wait.p99),
            seconds(wait.most),
            wait.count
        )?;
        for (what, count) in &self.decisions {
            writeln!(f, "  {what:<22} {count}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let mut histogram = Histogram::default();
        for value in 0..=100_000u64 {
            let class = Histogram::class(value);
            assert!(Histogram::value(class) >= value && Histogram::class(Histogram::value(class)) == class, "{value}");
            histogram.add(value);
        }
        assert!(histogram.at(50).abs_diff(50_000) < 2_000);
        assert!(histogram.at(99).abs_diff(99_000) < 3_200);
        assert_eq!(histogram.at(100), 100_000);
    }
}
