//! How much is asked for while a machine boots: what [`Headroom::Arrivals`](crate::pool::Headroom) is made of.

use crate::time::Time;
use std::collections::VecDeque;

/// How many windows are looked back on: 200 boots are some three hours.
const WINDOWS: usize = 200;

/// Slots asked for, in windows that are as long as a boot.
#[derive(Debug, Clone)]
pub(crate) struct Arrivals {
    begun: Time,
    here: u32,
    before: VecDeque<u32>,
}

impl Arrivals {
    pub(crate) fn new(now: Time) -> Self {
        Self { begun: now, here: 0, before: VecDeque::new() }
    }

    pub(crate) fn add(&mut self, slots: u32) {
        self.here = self.here.saturating_add(slots);
    }

    /// Closes windows that are over; true where one was.
    pub(crate) fn roll(&mut self, now: Time, window_ms: u64) -> bool {
        let window_ms = window_ms.max(1);
        let passed = now.since(self.begun) / window_ms;
        if passed == 0 {
            return false;
        }
        self.push(self.here);
        self.here = 0;
        for _ in 1..passed.min(WINDOWS as u64) {
            self.push(0);
        }
        self.begun = self.begun.plus(passed * window_ms);
        true
    }

    /// When the window now open closes.
    pub(crate) fn closes(&self, window_ms: u64) -> Time {
        self.begun.plus(window_ms.max(1))
    }

    /// The least that was enough in so many of a hundred windows. Nothing while there is no window to go by.
    pub(crate) fn percentile(&self, percentile: u8) -> u32 {
        if self.before.is_empty() {
            return 0;
        }
        let mut counts: Vec<u32> = self.before.iter().copied().collect();
        let rank = (counts.len() * usize::from(percentile.min(100))).div_ceil(100).max(1) - 1;
        *counts.select_nth_unstable(rank).1
    }

    fn push(&mut self, slots: u32) {
        if self.before.len() == WINDOWS {
            self.before.pop_front();
        }
        self.before.push_back(slots);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let mut arrivals = Arrivals::new(Time(0));
        assert_eq!(arrivals.percentile(95), 0);
        for window in 0..100u32 {
            arrivals.add(window);
            assert!(arrivals.roll(Time(u64::from(window + 1) * 10), 10));
            assert!(!arrivals.roll(Time(u64::from(window + 1) * 10 + 9), 10));
        }
        assert_eq!(arrivals.percentile(95), 94);
        assert_eq!(arrivals.percentile(100), 99);
        assert_eq!(arrivals.percentile(0), 0);
        // A long silence is windows in which nothing came.
        assert!(arrivals.roll(Time(1_000_000_000), 10));
        assert_eq!(arrivals.percentile(100), 0);
        assert_eq!(arrivals.closes(10), Time(1_000_000_010));
    }
}
