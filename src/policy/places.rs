//! Places that all share: how many of them one address, and the network around it, has at a time.
//!
//! Connections are such places, and so are handshakes and passwords that are being looked at.
//!
//! Invariants:
//! - never more than permitted, on however many shards at once, and not fewer either: whether there is room is decided, and the place
//!   taken, in one step for the address and its network together;
//! - a place is given back when its [`Place`] is dropped, once;
//! - there are at most two entries for each place that is taken, so what bounds places bounds this.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Prefix;

/// Callers are few (shards), and each holds a stripe for less than a microsecond.
const STRIPES: usize = 64;

/// Places by address and network.
pub struct Places {
    address_max: u32,
    network_max: u32,
    stripes: Box<[Mutex<Counts>]>,
    hasher: RandomState,
}

/// Places of some networks and of the addresses in them.
type Counts = HashMap<Prefix, u32>;

/// A place of an address, given back when it is dropped.
pub struct Place {
    places: Arc<Places>,
    ip: IpAddr,
}

/// There is no place left for who is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// From where.
    pub prefix: Prefix,
    /// How many it has, which is as many as it may.
    pub count: u32,
}

impl Places {
    /// So many for one address and for one network at a time; 0: without a bound.
    pub fn new(address_max: u32, network_max: u32) -> Arc<Self> {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        Arc::new(Places { address_max, network_max, stripes, hasher: RandomState::new() })
    }

    /// A place for `ip`.
    pub fn take(self: &Arc<Self>, ip: IpAddr) -> Result<Place, Full> {
        self.take_of(ip, 1)
    }

    /// The same where only one of `parts` of the places of each may be taken, but one at least.
    pub fn take_of(self: &Arc<Self>, ip: IpAddr, parts: u32) -> Result<Place, Full> {
        let mut counts = self.counts(ip);
        let bounds = self.bounds(ip);
        for (prefix, max) in bounds {
            let count = counts.get(&prefix).copied().unwrap_or(0);
            if max > 0 && count >= (max / parts).max(1) {
                return Err(Full { prefix, count });
            }
        }
        for (prefix, _) in bounds.into_iter().filter(|(_, max)| *max > 0) {
            *counts.entry(prefix).or_insert(0) += 1;
        }
        drop(counts);
        Ok(Place { places: self.clone(), ip })
    }

    /// Addresses and networks that have places.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.stripes.iter().map(|stripe| lock(stripe).len()).sum()
    }

    /// Whether nobody has one.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn bounds(&self, ip: IpAddr) -> [(Prefix, u32); 2] {
        [(Prefix::of_address(ip), self.address_max), (Prefix::of_network(ip), self.network_max)]
    }

    /// An address's counts are where its network's are.
    fn counts(&self, ip: IpAddr) -> MutexGuard<'_, Counts> {
        let hash = self.hasher.hash_one(Prefix::of_network(ip));
        lock(&self.stripes[hash as usize % STRIPES])
    }
}

fn lock(stripe: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    stripe.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.counts(self.ip);
        for (prefix, _) in self.places.bounds(self.ip) {
            if let Some(count) = counts.get_mut(&prefix) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&prefix);
                }
            }
        }
        // What a flood has made large does not stay so.
        if counts.capacity() > 64 && counts.len() < counts.capacity() / 8 {
            let size = counts.len() * 2;
            counts.shrink_to(size);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_and_its_network_have_so_many_and_no_more() {
        let places = Places::new(2, 3);
        let take = |from: &str| places.take(ip(from)).map_err(|full| (full.prefix.to_string(), full.count));
        let mut taken = Vec::new();
        for (from, expected) in [
            ("192.0.2.1", Ok(())),
            ("::ffff:192.0.2.1", Ok(())),
            ("192.0.2.1", Err(("192.0.2.1".to_string(), 2))),
            ("192.0.2.2", Ok(())),
            ("192.0.2.2", Err(("192.0.2.0/24".to_string(), 3))),
            ("192.0.3.2", Ok(())),
            ("2001:db8::1", Ok(())),
            ("2001:db8::2", Ok(())),
            ("2001:db8::3", Err(("2001:db8::/64".to_string(), 2))),
            ("2001:db8:0:1::", Ok(())),
            ("2001:db8:0:2::", Err(("2001:db8::/48".to_string(), 3))),
        ] {
            let one = take(from);
            assert_eq!(one.as_ref().map(drop).map_err(Clone::clone), expected, "{from}");
            taken.extend(one);
        }
        taken.remove(0);
        taken.push(take("192.0.2.2").unwrap_or_else(|_| panic!("a place was given back")));
        assert!(take("192.0.2.2").is_err());
        taken.clear();
        assert!(places.is_empty());
    }

    #[test]
    fn without_a_bound_nothing_is_counted() {
        for (address_max, network_max, entries) in [(0, 0, 0), (0, 1000, 1), (1000, 0, 1), (1000, 1000, 2)] {
            let places = Places::new(address_max, network_max);
            let taken: Vec<_> = (0..1000).map(|_| places.take(ip("192.0.2.1")).ok()).collect();
            assert!(taken.iter().all(Option::is_some));
            assert_eq!(places.len(), entries);
            drop(taken);
            assert!(places.is_empty());
        }
    }

    #[test]
    fn the_bounds_are_exact_however_many_threads_ask() {
        const THREADS: usize = 8;
        for round in 0..50 {
            let (places, together) = (Places::new(7, 19), Barrier::new(THREADS));
            let (places, together) = (&places, &together);
            let taken = thread::scope(|scope| {
                let ask = |n: usize| {
                    move || {
                        together.wait();
                        // Some come and go meanwhile.
                        let mut kept = Vec::new();
                        for i in 0..40 {
                            let one = places.take(ip(&format!("192.0.2.{}", (n + i) % 4)));
                            kept.extend(one.ok().filter(|_| (i + round) % 3 > 0));
                        }
                        for i in 0..40 {
                            kept.extend(places.take(ip(&format!("192.0.2.{}", i % 4))));
                        }
                        kept
                    }
                };
                let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(ask(n))).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(taken.len(), 19, "the network's bound is reached and not passed");
            for n in 0..4 {
                let of = |place: &&Place| place.ip == ip(&format!("192.0.2.{n}"));
                assert!(taken.iter().filter(of).count() <= 7);
            }
            drop(taken);
            assert!(places.is_empty());
        }
    }

    #[test]
    fn a_million_who_come_and_go_leave_nothing() {
        let places = Places::new(1, 0);
        for thousand in 0..1000_u32 {
            let from = |n: u32| IpAddr::from((thousand * 1000 + n).to_be_bytes());
            let taken: Vec<_> = (0..1000).map(|n| places.take(from(n)).ok()).collect();
            assert_eq!(places.len(), 1000);
            drop(taken);
        }
        assert!(places.is_empty());
        let capacity: usize = places.stripes.iter().map(|stripe| lock(stripe).capacity()).sum();
        assert!(capacity <= STRIPES * 64, "{capacity}");
    }
}
