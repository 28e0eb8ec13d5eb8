//! How many instances are wanted, over time.

use bulkhead_scale::{DAY_MS, HOUR_MS, MINUTE_MS, Time};

/// The shape of demand.
#[derive(Debug, Clone, PartialEq)]
pub enum Demand {
    /// About as many all the time.
    Steady,
    /// A wave a day, from a fifth to all.
    Daily,
    /// A fifth, and at random moments, twice a day, all within minutes, for an hour or two.
    Burst,
    /// What a file says: from a moment on, so many. In order.
    Trace(Vec<(Time, u32)>),
}

/// What is wrong with a trace file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the trace: {what}; each line is SECONDS,INSTANCES, in order of time")]
pub struct TraceError {
    line: usize,
    what: &'static str,
}

impl Demand {
    /// Reads a trace: lines of `seconds,instances`, in order; empty ones and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// The first line that is not so.
    pub fn trace(text: &str) -> Result<Self, TraceError> {
        let mut points: Vec<(Time, u32)> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let wrong = |what| TraceError { line: line_number, what };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (time, count) = line.split_once(',').ok_or_else(|| wrong("there is no comma"))?;
            let seconds: u64 = time.trim().parse().map_err(|_| wrong("the time is no whole number of seconds"))?;
            let time = Time(seconds.checked_mul(1000).ok_or_else(|| wrong("the time is too large"))?);
            let count = count.trim().parse().map_err(|_| wrong("the instances are no whole number"))?;
            if points.last().is_some_and(|(before, _)| *before >= time) {
                return Err(wrong("it is not later than the one before"));
            }
            points.push((time, count));
        }
        Ok(Self::Trace(points))
    }
}

/// Arrivals of instances that live for a while, so that about as many are there as the shape says.
#[derive(Debug)]
pub(crate) struct Arrivals {
    demand: Demand,
    peak: f64,
    lifetime_ms: f64,
    start: Time,
    burst: Option<(Time, Time)>,
}

/// Exponentially distributed.
fn exponential(rng: &mut fastrand::Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.f64()).ln()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "spans of time below 2^53 ms")]
fn span(ms: f64) -> u64 {
    ms.clamp(1.0, 1e15) as u64
}

impl Arrivals {
    pub(crate) fn new(demand: Demand, peak: u32, lifetime_ms: u64, start: Time) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "spans of time below 2^53 ms")]
        Self { demand, peak: f64::from(peak), lifetime_ms: lifetime_ms as f64, start, burst: None }
    }

    /// The part of the peak that is wanted then, from 0 to 1.
    fn level(&mut self, now: Time, rng: &mut fastrand::Rng) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "spans of time below 2^53 ms")]
        let day = (now.since(self.start) % DAY_MS) as f64 / DAY_MS as f64;
        match &self.demand {
            Demand::Steady => 0.8,
            Demand::Daily => 0.6 - 0.4 * (day * std::f64::consts::TAU).cos(),
            Demand::Burst => {
                let (from, to) = *self.burst.get_or_insert_with(|| {
                    let from = now.plus(span(exponential(rng, 12.0 * 3_600_000.0)));
                    (from, from.plus(rng.u64(HOUR_MS..2 * HOUR_MS)))
                });
                if now >= to {
                    self.burst = None;
                }
                if (from..to).contains(&now) { 1.0 } else { 0.2 }
            }
            Demand::Trace(_) => 0.0,
        }
    }

    /// When the next instance is wanted after now, where so many are. Thinning of a process at the peak's rate; in a
    /// burst they come ten times faster than they end, until as many are there as the burst is about.
    pub(crate) fn next(&mut self, now: Time, wanted: usize, rng: &mut fastrand::Rng) -> Time {
        let hurry = if matches!(self.demand, Demand::Burst) { 10.0 } else { 1.0 };
        let gap = self.lifetime_ms / self.peak / hurry;
        let mut at = now;
        loop {
            at = at.plus(span(exponential(rng, gap)));
            let level = self.level(at, rng);
            #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^53")]
            let is_behind = (wanted as f64) < level * self.peak * 0.9;
            if rng.f64() < if is_behind { level } else { level / hurry } {
                return at;
            }
        }
    }

    /// How long one lives.
    pub(crate) fn lifetime(&self, rng: &mut fastrand::Rng) -> u64 {
        span(exponential(rng, self.lifetime_ms)).max(MINUTE_MS / 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces() {
        assert_eq!(
            Demand::trace("# a trace\n0,5\n\n60, 24\n"),
            Ok(Demand::Trace(vec![(Time(0), 5), (Time(60_000), 24)]))
        );
        for (text, line) in [("5", 1), ("0,1\n0,2", 2), ("x,1", 1), ("0,-1", 1), ("99999999999999999999,1", 1)] {
            assert_eq!(Demand::trace(text).unwrap_err().line, line, "{text}");
        }
    }

    #[test]
    fn about_as_many_as_wanted() {
        for demand in [Demand::Steady, Demand::Daily] {
            let mut rng = fastrand::Rng::with_seed(1);
            let mut arrivals = Arrivals::new(demand.clone(), 1_000, HOUR_MS, Time(0));
            let (mut now, mut lived) = (Time(0), 0u64);
            while now < Time(10 * DAY_MS) {
                now = arrivals.next(now, 0, &mut rng);
                lived += arrivals.lifetime(&mut rng);
            }
            let mean = lived / (10 * DAY_MS);
            let wanted = if demand == Demand::Steady { 800 } else { 600 };
            assert!(mean.abs_diff(wanted) < wanted / 50, "{demand:?}: {mean}");
        }
    }
}
