//! What this month has cost so far, never too little.

use crate::{
    money::Micros,
    time::{HOUR_MS, Month, Time},
};
use serde::{Deserialize, Serialize};

/// Spending of a pool or of all, counted up to a moment.
///
/// Every server that may exist is counted as if it did, from when it was
/// intended until it is known to be gone, and what its provider asks at least
/// is counted at once: the sum is at or above the bill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    month: Month,
    /// Up to when it is counted.
    at: Time,
    /// What all servers cost an hour from there on.
    rate: Micros,
    /// In micro-dollars.
    spent: Micros,
    /// What is beyond whole micro-dollars, in parts of an hour of one.
    part: u64,
}

impl Ledger {
    /// Nothing spent, nothing running.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self { month: now.month(), at: now, rate: Micros(0), spent: Micros(0), part: 0 }
    }

    /// Counts up to now.
    pub fn advance(&mut self, now: Time) {
        while self.month < now.month() {
            self.month = self.month.next();
            self.at = self.month.start();
            (self.spent, self.part) = (Micros(0), 0);
        }
        let parts = u128::from(now.since(self.at)) * u128::from(self.rate.0) + u128::from(self.part);
        self.spent += Micros(u64::try_from(parts / u128::from(HOUR_MS)).unwrap_or(u64::MAX));
        self.part = u64::try_from(parts % u128::from(HOUR_MS)).unwrap_or(0);
        self.at = self.at.max(now);
    }

    /// So much an hour more, and at least this much at once.
    pub fn begin(&mut self, price: Micros, least: Micros) {
        self.rate += price;
        self.spent += least;
    }

    /// So much an hour less.
    pub fn end(&mut self, price: Micros) {
        self.rate = self.rate - price;
    }

    /// Takes up what was spent until a crash; what runs is added by whoever knows it.
    pub fn resume(&mut self, earlier: &Self) {
        if earlier.month == self.month {
            self.spent = earlier.spent;
            // Until now, what ran then is taken to have run on.
            let ran = u128::from(self.at.since(earlier.at)) * u128::from(earlier.rate.0);
            let parts = (ran + u128::from(earlier.part)).div_ceil(u128::from(HOUR_MS));
            self.spent += Micros(u64::try_from(parts).unwrap_or(u64::MAX));
        }
    }

    /// What this month has cost up to when it is counted.
    #[must_use]
    pub fn spent(&self) -> Micros {
        self.spent + Micros(u64::from(self.part > 0))
    }

    /// What everything costs an hour.
    #[must_use]
    pub fn rate(&self) -> Micros {
        self.rate
    }

    /// The month it is about.
    #[must_use]
    pub fn month(&self) -> Month {
        self.month
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{DAY_MS, SECOND_MS};

    #[test]
    fn counts_exactly() {
        let start = Month(2026 * 12).start();
        let mut ledger = Ledger::new(start);
        ledger.begin(Micros(35_710), Micros(0));
        // A million odd steps give what one gives.
        let mut now = start;
        for step in 0..1_000_000u64 {
            now = now.plus(step % 7);
            ledger.advance(now);
        }
        let mut once = Ledger::new(start);
        once.begin(Micros(35_710), Micros(0));
        once.advance(now);
        assert_eq!(ledger, once);
        assert_eq!(once.spent(), Micros((now.since(start) * 35_710).div_ceil(HOUR_MS)));
        // A new month begins with nothing, and what runs is paid from its first second on.
        let next = Month(2026 * 12 + 1).start();
        ledger.advance(next.plus(HOUR_MS));
        assert_eq!((ledger.month(), ledger.spent()), (Month(2026 * 12 + 1), Micros(35_710)));
        ledger.end(Micros(35_710));
        ledger.advance(next.plus(DAY_MS));
        assert_eq!(ledger.spent(), Micros(35_710));
        // Clocks that go back change nothing.
        ledger.advance(next.plus(SECOND_MS));
        assert_eq!(ledger.spent(), Micros(35_710));
    }
}
