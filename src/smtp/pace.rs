//! How fast a peer must send octets that have no lines to be counted in: content, and what is skipped.

use std::time::{Duration, Instant};

use super::config::SessionConfig;

/// The rate is not looked at before this: slow start and a greylisting peer's first pause are within it.
const RATE_GRACE: Duration = Duration::from_secs(30);

/// How far a peer has got, and since when.
#[derive(Clone, Debug)]
pub struct Pace {
    /// When the first octet could have come, later by every time we kept the peer waiting.
    started: Instant,
    /// When the last octets came, or we went on after a wait of our own.
    latest: Instant,
    /// Octets as they were sent.
    received_size: u64,
}

impl Pace {
    /// From now on octets are expected.
    pub fn new(now: Instant) -> Self {
        Pace { started: now, latest: now, received_size: 0 }
    }

    /// So many octets have come.
    pub fn receive(&mut self, size: usize, now: Instant) {
        self.latest = now;
        self.received_size += size as u64;
    }

    /// Octets so far.
    pub fn received_size(&self) -> u64 {
        self.received_size
    }

    /// Nothing could come since `latest`, and not for want of the peer's will: that time is not the peer's.
    pub fn resume(&mut self, now: Instant) {
        self.started += now.saturating_duration_since(self.latest);
        self.latest = now;
    }

    /// When the peer has been too slow, if nothing more comes.
    pub fn deadline(&self, config: &SessionConfig) -> Instant {
        let deadline = self.latest + config.data_timeout;
        match u64::from(config.content_rate_min) {
            0 => deadline,
            rate => {
                let earned = Duration::from_millis(self.received_size.saturating_mul(1000) / rate);
                deadline.min(self.started + earned.max(RATE_GRACE))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_deadline_is_of_the_block_and_of_the_rate() {
        let config =
            SessionConfig { data_timeout: 100 * SECOND, content_rate_min: 10, ..SessionConfig::new("mx") };
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.deadline(&config), start + RATE_GRACE);
        // 350 octets pay for 35 seconds.
        pace.receive(350, start + SECOND);
        assert_eq!(pace.deadline(&config), start + 35 * SECOND);
        // A wait of ours is not the peer's.
        pace.resume(start + 21 * SECOND);
        assert_eq!(pace.deadline(&config), start + 55 * SECOND);
        // 10,000 octets pay for more than a block may take.
        pace.receive(10_000, start + 30 * SECOND);
        assert_eq!(pace.deadline(&config), start + 130 * SECOND);
        let patient = SessionConfig { content_rate_min: 0, ..config };
        assert_eq!(pace.deadline(&patient), start + 130 * SECOND);
    }
}
