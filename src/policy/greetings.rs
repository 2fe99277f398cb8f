//! Who must wait for the greeting, and who has shown before that it can.
//!
//! A mail server waits for the greeting, as RFC 5321 §3.1 has it; much of what sends spam does not. Waiting costs an honest peer time once:
//! its address is remembered.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Prefix, Table};

/// Addresses that are remembered at most: some 10 MB.
const REMEMBERED_MAX: usize = 100_000;

/// See the module. One for all shards.
pub struct Greetings {
    delay: Duration,
    remembered: Duration,
    passed: Table<Prefix, ()>,
}

impl Greetings {
    /// Who is not known waits for `delay`; who did is known for `remembered`.
    pub fn new(delay: Duration, remembered: Duration) -> Self {
        Greetings { delay, remembered, passed: Table::new(REMEMBERED_MAX) }
    }

    /// How long this peer waits, in milliseconds.
    pub fn delay_millis(&self, peer: IpAddr, now: Instant) -> u16 {
        self.delay_millis_of_at_least(0, peer, now)
    }

    /// The same, where there is much to do: strangers wait for at least so long.
    pub fn delay_millis_of_at_least(&self, least: u16, peer: IpAddr, now: Instant) -> u16 {
        let delay = u16::try_from(self.delay.as_millis()).unwrap_or(u16::MAX).max(least);
        match delay == 0 || self.passed.get(&Prefix::of_address(peer), now).is_some() {
            true => 0,
            false => delay,
        }
    }

    /// It has waited for its greeting, and said nothing before.
    pub fn remember(&self, peer: IpAddr, now: Instant) {
        if !self.remembered.is_zero() {
            self.passed.insert(Prefix::of_address(peer), (), now + self.remembered, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_waited_once_does_not_wait_again_for_a_time() {
        let hour = Duration::from_secs(3600);
        let greetings = Greetings::new(Duration::from_secs(2), hour);
        let now = Instant::now();
        let (peer, other): (IpAddr, IpAddr) =
            ("2001:db8::1".parse().unwrap(), "2001:db8::ffff:2".parse().unwrap());
        assert_eq!(greetings.delay_millis(peer, now), 2000);
        greetings.remember(peer, now);
        assert_eq!(greetings.delay_millis(peer, now), 0);
        assert_eq!(greetings.delay_millis(other, now), 0, "the same /64");
        assert_eq!(greetings.delay_millis("192.0.2.1".parse().unwrap(), now), 2000);
        assert_eq!(greetings.delay_millis(peer, now + hour), 2000);
    }

    #[test]
    fn without_a_delay_nobody_waits() {
        let greetings = Greetings::new(Duration::ZERO, Duration::from_secs(1));
        let (peer, now) = ("192.0.2.1".parse().unwrap(), Instant::now());
        assert_eq!(greetings.delay_millis(peer, now), 0);
        assert_eq!(greetings.delay_millis_of_at_least(500, peer, now), 500);
        greetings.remember(peer, now);
        assert_eq!(greetings.delay_millis_of_at_least(500, peer, now), 0);
    }
}
