//! Who may connect, before a session is made for him.
//!
//! Two things are looked at: whether the address is banned, and how many connections it and its network have. Networks that are exempt are
//! neither counted nor banned; front ends, which speak for others, are to be left out by whoever asks.
//!
//! Knows nothing of sockets and of what a peer is told beyond the words.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use super::Prefix;
use super::bans::{Ban, Bans, Terms};
use super::{Place, Places};
use crate::mail::{Refusal, Status};

/// See the module.
pub struct Admission {
    connections: Arc<Places>,
    bans: Bans,
    exempt: Vec<IpNet>,
}

/// What admission goes by.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Connections of one address at a time; 0: as many as come.
    pub address_max: u32,
    /// Connections of one network at a time; 0: as many as come.
    pub network_max: u32,
    /// When an address is banned.
    pub bans: Terms,
    /// Whom none of it concerns.
    pub exempt: Vec<IpNet>,
}

impl Admission {
    /// Goes by these.
    pub fn new(bounds: Bounds) -> Self {
        let Bounds { address_max, network_max, bans, exempt } = bounds;
        Admission { connections: Places::new(address_max, network_max), bans: Bans::new(bans), exempt }
    }

    /// Whether nothing of this concerns `ip`.
    pub fn is_exempt(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.exempt.iter().any(|network| network.contains(&ip))
    }

    /// A place among the connections, of which each may have one of `parts` now; none is needed by who is exempt.
    pub fn admit(&self, ip: IpAddr, parts: u32, now: Instant) -> Result<Option<Place>, Refusal> {
        if self.is_exempt(ip) {
            return Ok(None);
        }
        if let Some(left) = self.bans.left(ip, now) {
            let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            let s = if seconds == 1 { "" } else { "s" };
            let text = format!("Too many errors from your address, try again in {seconds} second{s}");
            let refusal =
                Refusal { text: Cow::Owned(text), ..Refusal::final_one(Status::temporary(7, 0), "") };
            return Err(refusal.keyed(format!("ban of {}", Prefix::of_address(ip))));
        }
        self.connections.take_of(ip, parts).map(Some).map_err(|full| {
            Refusal::final_one(Status::temporary(7, 0), "Too many connections")
                .keyed(format!("{}: {} connections", full.prefix, full.count))
        })
    }

    /// A session with `ip` had to be ended for what the peer did. A ban that begins with it.
    pub fn blame(&self, ip: IpAddr, now: Instant) -> Option<Ban> {
        if self.is_exempt(ip) { None } else { self.bans.blame(ip, now) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_exempt_are_neither_counted_nor_banned() {
        let terms = Terms { after: 2, window: Duration::from_secs(60), time: Duration::from_secs(90) };
        let exempt = vec!["127.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        let admission = Admission::new(Bounds { address_max: 1, network_max: 0, bans: terms, exempt });
        let now = Instant::now();
        for (ip, is_exempt) in [
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("2001:db8::1", true),
            ("::1", false),
            ("192.0.2.1", false),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            let words = |now| {
                admission.admit(ip, 1, now).err().map(|refusal| {
                    assert!(refusal.disconnect && refusal.status == Status::temporary(7, 0));
                    (refusal.text.to_string(), refusal.key.unwrap().to_string())
                })
            };
            let first = admission.admit(ip, 1, now).expect("there is room");
            assert_eq!(first.is_none(), is_exempt);
            let expected = |text: &str, key: String| (!is_exempt).then(|| (text.to_string(), key));
            let prefix = Prefix::of_address(ip);
            assert_eq!(words(now), expected("Too many connections", format!("{prefix}: 1 connections")));
            drop(first);
            assert_eq!(words(now), None);
            let bans = [admission.blame(ip, now), admission.blame(ip, now)];
            assert_eq!(bans.map(|ban| ban.is_some()), [false, !is_exempt]);
            let text = "Too many errors from your address, try again in 90 seconds";
            assert_eq!(words(now), expected(text, format!("ban of {prefix}")));
            assert_eq!(words(now + Duration::from_secs(90)), None);
        }
    }
}
