//! How many notifications there may be: so many per interval for each domain they go to, and so many in all.
//!
//! A leaky bucket each, kept as the time at which it is empty (the generic cell rate algorithm): after a pause the whole count may come at once, and then
//! one each `interval / count`.
//!
//! Invariants:
//! - in any interval there are at most twice the count, of a domain and in all;
//! - no more domains are kept than three times the count of all: one is kept only when it was permitted a notification, and until its bucket is
//!   empty, which takes an interval at most.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::mail::ReversePath;

/// What there have been too many for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The domain of the reverse-path.
    Domain,
    /// All.
    All,
}

/// Whether there may be one more notification.
pub struct NotificationRate {
    count_max: usize,
    all: Rate,
    per_domain: Rate,
    all_empty: Option<Instant>,
    domains_empty: HashMap<Box<str>, Instant>,
}

#[derive(Clone, Copy)]
struct Rate {
    interval: Duration,
    step: Duration,
}

impl Rate {
    fn new(count: NonZeroU32, interval: Duration) -> Self {
        Rate { interval, step: interval / count.get() }
    }

    /// When a bucket that is empty at `empty` will be after one more; `None` if it has no room for that.
    fn add(self, empty: Option<Instant>, now: Instant) -> Option<Instant> {
        let empty = empty.map_or(now, |empty| empty.max(now)) + self.step;
        (empty <= now + self.interval).then_some(empty)
    }
}

impl NotificationRate {
    /// Permits `all` in `interval`, and to one domain `per_domain`.
    pub fn new(all: NonZeroU32, per_domain: NonZeroU32, interval: Duration) -> Self {
        NotificationRate {
            count_max: all.get() as usize,
            all: Rate::new(all, interval),
            per_domain: Rate::new(per_domain, interval),
            all_empty: None,
            domains_empty: HashMap::new(),
        }
    }

    /// Counts a notification to `reverse_path`, or says why there may be none. What is refused is not counted.
    pub fn admit(&mut self, reverse_path: &ReversePath, now: Instant) -> Result<(), Over> {
        let domain = match reverse_path {
            ReversePath::Null => return Ok(()),
            ReversePath::Mailbox(mailbox) => mailbox.canonical_domain(),
        };
        let domain_empty = self.domains_empty.get(&*domain).copied();
        let domain_empty = self.per_domain.add(domain_empty, now).ok_or(Over::Domain)?;
        self.all_empty = Some(self.all.add(self.all_empty, now).ok_or(Over::All)?);
        // Two thirds at most have a reason to stay, so each is looked at three times at most.
        if self.domains_empty.len() >= 3 * self.count_max {
            self.domains_empty.retain(|_, empty| *empty > now);
        }
        self.domains_empty.insert(domain.into(), domain_empty);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn rates(all: u32, per_domain: u32) -> NotificationRate {
        let count = |count| NonZeroU32::new(count).unwrap();
        NotificationRate::new(count(all), count(per_domain), MINUTE)
    }

    fn path(domain: &str) -> ReversePath {
        ReversePath::parse(&format!("a@{domain}"), true).unwrap()
    }

    #[test]
    fn a_domain_has_its_count_and_then_one_at_a_time() {
        let mut rates = rates(100, 3);
        let start = Instant::now();
        let table = [
            (0, "e.org", Ok(())),
            (0, "E.org", Ok(())),
            (0, "e.net", Ok(())),
            (0, "e.org", Ok(())),
            (0, "e.org", Err(Over::Domain)),
            (19, "e.org", Err(Over::Domain)),
            (20, "e.org", Ok(())),
            (20, "e.org", Err(Over::Domain)),
            (200, "bücher.example", Ok(())),
            (200, "xn--bcher-kva.example", Ok(())),
            (200, "bücher.example", Ok(())),
            (200, "xn--bcher-kva.example", Err(Over::Domain)),
        ];
        for (at, domain, expected) in table {
            let admitted = rates.admit(&path(domain), start + Duration::from_secs(at));
            assert_eq!(admitted, expected, "{at} {domain}");
        }
    }

    #[test]
    fn all_domains_together_are_bounded_and_a_refusal_costs_nothing() {
        let mut rates = rates(4, 2);
        let now = Instant::now();
        for n in 0..10 {
            let expected = if n < 4 { Ok(()) } else { Err(Over::All) };
            assert_eq!(rates.admit(&path(&format!("e{n}.org")), now), expected);
        }
        let later = now + Duration::from_secs(30);
        for (domain, expected) in [("e9.org", Ok(())), ("e9.org", Ok(())), ("e9.org", Err(Over::Domain))] {
            assert_eq!(rates.admit(&path(domain), later), expected);
        }
        assert_eq!(rates.admit(&path("e8.org"), later), Err(Over::All));
    }

    #[test]
    fn no_number_of_domains_fills_the_memory_or_exceeds_twice_the_count() {
        for per_domain in [1, 5, 50] {
            let mut rates = rates(50, per_domain);
            let start = Instant::now();
            let mut admitted = Vec::new();
            let mut most = 0;
            for n in 0..20_000u64 {
                let now = start + Duration::from_millis(n * 50);
                if rates.admit(&path(&format!("e{n}.org")), now).is_ok() {
                    admitted.push(now);
                }
                most = most.max(rates.domains_empty.len());
            }
            let in_one_interval =
                |from: &Instant| admitted.iter().filter(|at| *from <= **at && **at < *from + MINUTE).count();
            assert!(admitted.iter().map(in_one_interval).max().unwrap() <= 100);
            assert!(most <= 150, "{most}");
        }
    }
}
