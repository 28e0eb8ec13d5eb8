//! How many requests may be sent: sliding windows, and what the provider said.
//!
//! Moments are milliseconds since the client was made, and arguments.

use bulkhead_scale::{HOUR_MS, MINUTE_MS};
use std::collections::VecDeque;

/// The longest that a provider is believed when it says to wait.
const WAIT_MAX_MS: u64 = HOUR_MS;

/// Counts requests of one token. Others may use the same: what the provider says counts too.
#[derive(Debug)]
pub(crate) struct Limiter {
    per_minute: usize,
    per_hour: usize,
    sent: VecDeque<u64>,
    closed_until_ms: u64,
}

impl Limiter {
    pub(crate) fn new(per_minute: Option<u32>, per_hour: Option<u32>) -> Self {
        let most = |limit: Option<u32>| limit.map_or(usize::MAX, |limit| limit as usize);
        Self { per_minute: most(per_minute), per_hour: most(per_hour), sent: VecDeque::new(), closed_until_ms: 0 }
    }

    /// Counts a request that is sent now, or says after how many milliseconds it may be.
    pub(crate) fn admit(&mut self, now_ms: u64) -> Result<(), u64> {
        while self.sent.front().is_some_and(|sent| now_ms.saturating_sub(*sent) >= HOUR_MS) {
            self.sent.pop_front();
        }
        let over = |most: usize, window_ms: u64| {
            let nth = self.sent.len().checked_sub(most).map(|index| self.sent[index] + window_ms);
            nth.filter(|end| now_ms < *end).map_or(0, |end| end - now_ms)
        };
        let closed_ms = self.closed_until_ms.saturating_sub(now_ms);
        match over(self.per_minute, MINUTE_MS).max(over(self.per_hour, HOUR_MS)).max(closed_ms) {
            0 => {
                self.sent.push_back(now_ms);
                Ok(())
            }
            wait_ms => Err(wait_ms),
        }
    }

    /// The provider takes no request for so long.
    pub(crate) fn close(&mut self, now_ms: u64, wait_ms: u64) {
        self.closed_until_ms = self.closed_until_ms.max(now_ms + wait_ms.min(WAIT_MAX_MS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_slide() {
        let mut limiter = Limiter::new(Some(3), Some(5));
        for now_ms in [0, 10_000, 20_000] {
            assert_eq!(limiter.admit(now_ms), Ok(()));
        }
        assert_eq!(limiter.admit(30_000), Err(30_000));
        assert_eq!(limiter.admit(59_999), Err(1));
        assert_eq!(limiter.admit(60_000), Ok(()));
        assert_eq!(limiter.admit(60_000), Err(10_000), "the second of the first three still counts");
        assert_eq!(limiter.admit(80_000), Ok(()));
        assert_eq!(limiter.admit(300_000), Err(HOUR_MS - 300_000));
        assert_eq!(limiter.admit(HOUR_MS), Ok(()));
        assert_eq!(limiter.admit(HOUR_MS), Err(10_000));
    }

    #[test]
    fn what_the_provider_says_counts() {
        let mut limiter = Limiter::new(None, None);
        assert_eq!(limiter.admit(0), Ok(()));
        limiter.close(1_000, 5_000);
        limiter.close(1_000, 2_000);
        assert_eq!(limiter.admit(2_000), Err(4_000));
        assert_eq!(limiter.admit(6_000), Ok(()));
        limiter.close(6_000, u64::MAX);
        assert_eq!(limiter.admit(6_000), Err(WAIT_MAX_MS));
    }
}
