//! Temporary bans: who has had to be sent away again and again is not listened to for a while.
//!
//! An address is banned when it has misbehaved [`Terms::after`] times within [`Terms::window`], for [`Terms::time`]. Who is banned
//! again before as long again as his ban has passed since its end is banned for twice as long, up to [`DOUBLED_MAX`] times in a row.
//!
//! Invariants:
//! - never more entries than [`ENTRIES_MAX`]: with more offenders at a time those nearest to their end are forgotten;
//! - what does not count any more is forgotten; memory per entry does not depend on how often somebody misbehaves.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Kept, Prefix, Table};

/// A ban is doubled so often at most: ten minutes become five hours and twenty minutes.
const DOUBLED_MAX: u32 = 5;
/// Addresses that are remembered at a time. Each takes some 120 octets.
const ENTRIES_MAX: usize = 100_000;

/// When somebody is banned, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// So many misdeeds; 0: nobody is banned.
    pub after: u32,
    /// Within this.
    pub window: Duration,
    /// For so long, the first time.
    pub time: Duration,
}

/// A ban that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// Who is banned.
    pub prefix: Prefix,
    /// For how long.
    pub time: Duration,
}

/// Who is banned, and who may come to be.
pub struct Bans {
    terms: Terms,
    offenders: Table<Prefix, Offender>,
}

#[derive(Clone, Copy)]
struct Offender {
    /// Misdeeds since `since`.
    count: u32,
    since: Instant,
    /// Banned until then, if it is still to come.
    until: Option<Instant>,
    /// For how long the latest ban was, in times of the first: 2 to the power of this.
    doubled: u32,
}

impl Bans {
    /// On these terms.
    pub fn new(terms: Terms) -> Self {
        Bans { terms, offenders: Table::new(ENTRIES_MAX) }
    }

    /// How long `ip` is banned yet, if it is.
    pub fn left(&self, ip: IpAddr, now: Instant) -> Option<Duration> {
        if self.terms.after == 0 {
            return None;
        }
        let until = self.offenders.get(&Prefix::of_address(ip), now)?.until?;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// `ip` has misbehaved. A ban that begins with it.
    ///
    /// The first misdeed begins a window, and the next after its end another: of those on both sides of such an end almost twice as
    /// many may come within the length of a window before they ban.
    pub fn blame(&self, ip: IpAddr, now: Instant) -> Option<Ban> {
        let Terms { after, window, time } = self.terms;
        if after == 0 {
            return None;
        }
        let prefix = Prefix::of_address(ip);
        self.offenders.update(prefix, now, |kept| {
            let none = || Kept {
                value: Offender { count: 0, since: now, until: None, doubled: 0 },
                until: now + window,
            };
            let Kept { value: offender, until } = kept.get_or_insert_with(none);
            // A session that was open before the ban began adds nothing to it.
            if offender.until.is_some_and(|banned| now < banned) {
                return None;
            }
            if now.saturating_duration_since(offender.since) >= window {
                (offender.count, offender.since) = (0, now);
            }
            offender.count += 1;
            *until = (*until).max(now + window);
            if offender.count < after {
                return None;
            }
            let doubled = offender.until.map_or(0, |_| (offender.doubled + 1).min(DOUBLED_MAX));
            let time = time * (1 << doubled);
            // Remembered for as long again.
            *until = now + time * 2;
            *offender = Offender { count: 0, since: now + time, until: Some(now + time), doubled };
            Some(Ban { prefix, time })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { after: 3, window: Duration::from_secs(60), time: Duration::from_secs(600) };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn bans_begin_end_and_double() {
        enum Do {
            /// Misbehaves; the ban's seconds, if one begins.
            Blame(Option<u64>),
            /// Asks how many seconds are left.
            Left(Option<u64>),
        }
        use Do::{Blame, Left};
        let bans = Bans::new(TERMS);
        let start = Instant::now();
        for (n, (at, what)) in [
            (0, Blame(None)),
            (1, Blame(None)),
            // The window is over: it begins anew.
            (60, Blame(None)),
            (61, Blame(None)),
            (62, Left(None)),
            (119, Blame(Some(600))),
            (119, Left(Some(600))),
            // A session that was open before.
            (120, Blame(None)),
            (718, Left(Some(1))),
            (719, Left(None)),
            (720, Blame(None)),
            (721, Blame(None)),
            (722, Blame(Some(1200))),
            (1921, Left(Some(1))),
            (1922, Blame(None)),
            (1923, Blame(None)),
            (1924, Blame(Some(2400))),
            // As long again as the ban was is over.
            (1924 + 4800, Blame(None)),
            (1924 + 4801, Blame(None)),
            (1924 + 4802, Blame(Some(600))),
        ]
        .into_iter()
        .enumerate()
        {
            let now = start + Duration::from_secs(at);
            match what {
                Blame(time) => {
                    let ban = bans.blame(ip("192.0.2.1"), now);
                    assert_eq!(ban.map(|ban| ban.time.as_secs()), time, "{n} at {at}");
                }
                Left(left) => {
                    assert_eq!(
                        bans.left(ip("192.0.2.1"), now).map(|left| left.as_secs()),
                        left,
                        "{n} at {at}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_ban_is_not_doubled_for_ever() {
        let (bans, mut now) = (Bans::new(Terms { after: 1, ..TERMS }), Instant::now());
        let mut times = Vec::new();
        for _ in 0..10 {
            let ban = bans.blame(ip("2001:db8::1"), now).unwrap();
            assert_eq!(bans.left(ip("2001:db8::ffff"), now), Some(ban.time), "a /64 is one");
            assert_eq!(bans.left(ip("2001:db8:0:1::"), now), None);
            times.push(ban.time.as_secs() / 600);
            now += ban.time;
        }
        assert_eq!(times, [1, 2, 4, 8, 16, 32, 32, 32, 32, 32]);
    }

    #[test]
    fn nobody_is_banned_where_nobody_is_to_be_and_a_million_offenders_are_bounded() {
        let now = Instant::now();
        for (after, entries_max) in [(0, 0), (1, ENTRIES_MAX + 64)] {
            let bans = Bans::new(Terms { after, ..TERMS });
            for n in 0..1_000_000_u32 {
                assert_eq!(bans.blame(IpAddr::from(n.to_be_bytes()), now).is_some(), after > 0);
            }
            assert!(bans.offenders.len() <= entries_max, "{}", bans.offenders.len());
        }
    }
}
