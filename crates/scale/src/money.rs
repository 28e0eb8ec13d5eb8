//! Money, exactly: whole micro-dollars, and what a provider bills for a machine.

use crate::time::{HOUR_MS, SECOND_MS};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    ops::{Add, AddAssign, Sub},
    str::FromStr,
};

/// An amount in millionths of a dollar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(pub u64);

impl Micros {
    /// So many cents.
    #[must_use]
    pub const fn cents(cents: u64) -> Self {
        Self(cents * 10_000)
    }

    /// So many times as much.
    #[must_use]
    pub fn times(self, factor: u64) -> Self {
        Self(self.0.saturating_mul(factor))
    }
}

impl Add for Micros {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Micros {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Micros {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// `$12.34`; as many digits as are needed beyond two.
impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("${}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000);
        while text.ends_with('0') && text.len() - text.find('.').unwrap_or(0) > 3 {
            text.pop();
        }
        f.pad(&text)
    }
}

/// What is not an amount of money.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an amount: write dollars, such as `12` or `0.03571`, with six decimals at most")]
pub struct ParseMicrosError(String);

/// Dollars, with or without `$` before them: `12.5`, `$0.03571`.
impl FromStr for Micros {
    type Err = ParseMicrosError;
    fn from_str(text: &str) -> Result<Self, ParseMicrosError> {
        let wrong = || ParseMicrosError(text.chars().take(40).collect());
        let (whole, part) = text
            .strip_prefix('$')
            .unwrap_or(text)
            .split_once('.')
            .map_or_else(|| (text.strip_prefix('$').unwrap_or(text), ""), |(whole, part)| (whole, part));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || part.len() > 6 || !digits(whole) || !digits(part) || text.ends_with('.') {
            return Err(wrong());
        }
        let part: u64 = format!("{part:0<6}").parse().map_err(|_| wrong())?;
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        whole.checked_mul(1_000_000).and_then(|micros| micros.checked_add(part)).map(Self).ok_or_else(wrong)
    }
}

/// How a provider bills for a machine's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Billing {
    /// Each second, and at least so much for each machine (DigitalOcean since 2026: 60 s or a cent).
    PerSecond {
        /// At least so many seconds.
        least_s: u32,
        /// And at least this.
        least: Micros,
    },
    /// Each hour that has begun (Hetzner).
    PerHour,
    /// Nothing: machines that are paid for anyway.
    Free,
}

impl Billing {
    /// DigitalOcean's, since 2026-01-01.
    pub const DIGITALOCEAN: Self = Self::PerSecond { least_s: 60, least: Micros::cents(1) };

    /// What a machine costs that lived for so long at this price an hour.
    #[must_use]
    pub fn cost(self, price: Micros, lived_ms: u64) -> Micros {
        match self {
            Self::Free => Micros(0),
            Self::PerHour => price.times(lived_ms.div_ceil(HOUR_MS).max(1)),
            Self::PerSecond { least_s, least } => {
                let seconds = lived_ms.div_ceil(SECOND_MS).max(u64::from(least_s));
                Micros(price.0.saturating_mul(seconds).div_ceil(3600)).max(least)
            }
        }
    }

    /// What a machine costs at least, however short it lives.
    #[must_use]
    pub fn least(self, price: Micros) -> Micros {
        self.cost(price, 0)
    }

    /// For how long after `lived_ms` the machine is paid for already.
    #[must_use]
    pub fn paid_ahead_ms(self, lived_ms: u64) -> u64 {
        match self {
            Self::Free => 0,
            Self::PerHour => lived_ms.div_ceil(HOUR_MS).max(1) * HOUR_MS - lived_ms,
            Self::PerSecond { least_s, .. } => (u64::from(least_s) * SECOND_MS).saturating_sub(lived_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (text, micros, shown) in [
            ("12", 12_000_000, "$12.00"),
            ("$0.03571", 35_710, "$0.03571"),
            ("0.5", 500_000, "$0.50"),
            ("0.000001", 1, "$0.000001"),
        ] {
            assert_eq!(text.parse(), Ok(Micros(micros)));
            assert_eq!(Micros(micros).to_string(), shown);
            assert_eq!(shown.parse(), Ok(Micros(micros)));
        }
        for text in ["", "$", ".5", "5.", "1.0000001", "-1", "1e3", "99999999999999999999", "18446744073710"] {
            assert!(text.parse::<Micros>().is_err(), "{text}");
        }
    }

    #[test]
    fn bills() {
        let price = Micros(36_000);
        let second = Billing::PerSecond { least_s: 60, least: Micros(0) };
        for (billing, lived_ms, cost) in [
            (Billing::Free, HOUR_MS, 0),
            (second, 0, 600),
            (second, 60_000, 600),
            (second, 60_001, 610),
            (Billing::DIGITALOCEAN, 60_001, 10_000),
            (Billing::DIGITALOCEAN, HOUR_MS, 36_000),
            (Billing::PerHour, 0, 36_000),
            (Billing::PerHour, HOUR_MS, 36_000),
            (Billing::PerHour, HOUR_MS + 1, 72_000),
        ] {
            assert_eq!(billing.cost(price, lived_ms), Micros(cost), "{billing:?} {lived_ms}");
        }
        assert_eq!(Billing::PerHour.paid_ahead_ms(0), HOUR_MS);
        assert_eq!(Billing::PerHour.paid_ahead_ms(HOUR_MS), 0);
        assert_eq!(Billing::PerHour.paid_ahead_ms(HOUR_MS + 1), HOUR_MS - 1);
        assert_eq!(second.paid_ahead_ms(1_000), 59_000);
        assert_eq!(second.paid_ahead_ms(90_000), 0);
    }
}
