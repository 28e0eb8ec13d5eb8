//! Milliseconds since 1970-01-01T00:00:00Z, and the months that budgets are for.

use bulkhead_core::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One second, as spans of time here are counted.
pub const SECOND_MS: u64 = 1_000;
/// One minute.
pub const MINUTE_MS: u64 = 60 * SECOND_MS;
/// One hour.
pub const HOUR_MS: u64 = 60 * MINUTE_MS;
/// One day.
pub const DAY_MS: u64 = 24 * HOUR_MS;

/// A moment, in milliseconds of Unix time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub u64);

impl Time {
    /// So much later.
    #[must_use]
    pub fn plus(self, span_ms: u64) -> Self {
        Self(self.0.saturating_add(span_ms))
    }

    /// How long since an earlier moment; nothing if that one is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The month of the calendar it is in, in UTC.
    #[must_use]
    pub fn month(self) -> Month {
        let (year, month, _) = civil(self.0 / DAY_MS);
        Month(year * 12 + month - 1)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Timestamp(i64::try_from(self.0 / SECOND_MS).unwrap_or(i64::MAX)).fmt(f)
    }
}

/// A month of the calendar: months since the year 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Month(pub u32);

impl Month {
    /// When it begins.
    #[must_use]
    pub fn start(self) -> Time {
        // Days from civil, for the first of the month, after Howard Hinnant,
        // <https://howardhinnant.github.io/date_algorithms.html>.
        let (year, month) = (u64::from(self.0 / 12), u64::from(self.0 % 12 + 1));
        let year = if month <= 2 { year - 1 } else { year };
        let (era, year_of_era) = (year / 400, year % 400);
        let shifted = if month > 2 { month - 3 } else { month + 9 };
        let day_of_year = (153 * shifted + 2) / 5;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        Time((era * 146_097 + day_of_era).saturating_sub(719_468) * DAY_MS)
    }

    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.0 / 12, self.0 % 12 + 1)
    }
}

/// Year, month from 1 and day from 1 of so many days since 1970-01-01, after the same source.
fn civil(days: u64) -> (u32, u32, u32) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    (small(year), small(month), small(day))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months() {
        for (day, text) in [(0, "1970-01"), (30, "1970-01"), (31, "1970-02"), (11_016, "2000-02"), (11_017, "2000-03")]
        {
            let month = Time(day * DAY_MS).month();
            assert_eq!(month.to_string(), text);
            assert!(month.start() <= Time(day * DAY_MS) && Time(day * DAY_MS) < month.next().start(), "{text}");
        }
        for month in 1970 * 12 + 1..2400 * 12 {
            let month = Month(month);
            assert_eq!(month.start().month(), month);
            assert_eq!(Time(month.start().0 - 1).month().next(), month);
        }
    }
}
