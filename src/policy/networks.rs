//! Networks that are welcome, and networks that are not.
//!
//! The most specific network that has the peer's address decides.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Answer, Facts, Phase, Phases, Policy, Verdict};
use crate::mail::{Refusal, Status};

/// Sends peers away by their address, and vouches for others.
pub struct Networks {
    name: String,
    prefixes: Prefixes,
}

/// Networks by the size of their prefix, each with whether it is welcome: a lookup takes one search for each size that occurs.
struct Prefixes {
    /// The longest first.
    v4: Vec<(u8, Vec<(u32, bool)>)>,
    v6: Vec<(u8, Vec<(u128, bool)>)>,
}

impl Networks {
    /// `allow` is vouched for, `deny` is sent away. A network that is in both is allowed.
    pub fn new(name: &str, allow: &[IpNet], deny: &[IpNet]) -> Self {
        Networks { name: name.into(), prefixes: Prefixes::new(allow, deny) }
    }
}

impl Policy for Networks {
    fn name(&self) -> &str {
        &self.name
    }

    fn phases(&self) -> Phases {
        Phases::of(Phase::Connect)
    }

    fn check(&self, _: Phase, facts: &Facts<'_>) -> Answer {
        match self.prefixes.find(facts.peer.ip()) {
            None => Verdict::Accept.into(),
            Some((_, true)) => Verdict::Trust.into(),
            Some((network, false)) => {
                Refusal::new(Status::permanent(7, 1), "Your network is not welcome here")
                    .keyed(network.to_string())
                    .into()
            }
        }
    }
}

impl Prefixes {
    fn new(allow: &[IpNet], deny: &[IpNet]) -> Self {
        let mut prefixes = Prefixes { v4: Vec::new(), v6: Vec::new() };
        let all =
            deny.iter().map(|network| (network, false)).chain(allow.iter().map(|network| (network, true)));
        for (network, is_welcome) in all {
            match network.trunc() {
                IpNet::V4(net) => {
                    add(&mut prefixes.v4, net.prefix_len(), u32::from(net.network()), is_welcome)
                }
                IpNet::V6(net) => {
                    add(&mut prefixes.v6, net.prefix_len(), u128::from(net.network()), is_welcome)
                }
            }
        }
        arrange(&mut prefixes.v4);
        arrange(&mut prefixes.v6);
        prefixes
    }

    /// The most specific network with `address`, and whether it is welcome.
    fn find(&self, address: IpAddr) -> Option<(IpNet, bool)> {
        let address = address.to_canonical();
        let network =
            |size: u8| IpNet::new(address, size).expect("the size is of this kind of address").trunc();
        match address {
            IpAddr::V4(v4) => {
                let address = u32::from(v4);
                self.v4.iter().find_map(|(size, networks)| {
                    let start = address & u32::MAX.checked_shl(32 - u32::from(*size)).unwrap_or(0);
                    look_up(networks, start).map(|is_welcome| (network(*size), is_welcome))
                })
            }
            IpAddr::V6(v6) => {
                let address = u128::from(v6);
                self.v6.iter().find_map(|(size, networks)| {
                    let start = address & u128::MAX.checked_shl(128 - u32::from(*size)).unwrap_or(0);
                    look_up(networks, start).map(|is_welcome| (network(*size), is_welcome))
                })
            }
        }
    }
}

fn add<T>(prefixes: &mut Vec<(u8, Vec<(T, bool)>)>, size: u8, start: T, is_welcome: bool) {
    match prefixes.iter_mut().find(|(other, _)| *other == size) {
        Some((_, networks)) => networks.push((start, is_welcome)),
        None => prefixes.push((size, vec![(start, is_welcome)])),
    }
}

fn arrange<T: Ord + Copy>(prefixes: &mut [(u8, Vec<(T, bool)>)]) {
    prefixes.sort_unstable_by_key(|(size, _)| std::cmp::Reverse(*size));
    for (_, networks) in prefixes {
        // Of one network that is both, the welcome is found first and the other dropped.
        networks.sort_unstable_by_key(|(start, is_welcome)| (*start, !is_welcome));
        networks.dedup_by_key(|(start, _)| *start);
    }
}

fn look_up<T: Ord + Copy>(networks: &[(T, bool)], start: T) -> Option<bool> {
    let index = networks.binary_search_by_key(&start, |(start, _)| *start).ok()?;
    Some(networks[index].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_most_specific_network_decides() {
        let policy = Networks::new(
            "networks",
            &networks(&["192.0.2.0/25", "2001:db8:1::/48", "10.0.0.1/32", "198.51.100.0/24"]),
            &networks(&["192.0.2.0/24", "2001:db8::/32", "10.0.0.0/8", "198.51.100.0/24", "192.0.2.7/32"]),
        );
        let table = [
            ("192.0.2.1", "trust", None),
            ("192.0.2.7", "reject", Some("192.0.2.7/32")),
            ("192.0.2.200", "reject", Some("192.0.2.0/24")),
            ("::ffff:192.0.2.200", "reject", Some("192.0.2.0/24")),
            ("10.0.0.1", "trust", None),
            ("10.0.0.2", "reject", Some("10.0.0.0/8")),
            ("198.51.100.9", "trust", None),
            ("203.0.113.1", "accept", None),
            ("2001:db8:1::5", "trust", None),
            ("2001:db8:2::5", "reject", Some("2001:db8::/32")),
            ("2001:db9::1", "accept", None),
        ];
        for (peer, word, key) in table {
            let Answer::Now(Ok(verdict)) = policy.check(Phase::Connect, &Facts::of(peer)) else { panic!() };
            assert_eq!(verdict.word(), word, "{peer}");
            let keyed = match &verdict {
                Verdict::Refuse(refusal) => refusal.key.as_deref(),
                _ => None,
            };
            assert_eq!(keyed, key, "{peer}");
        }
    }

    #[test]
    fn the_whole_of_the_internet_is_a_network_too() {
        let policy = Networks::new("networks", &[], &networks(&["0.0.0.0/0", "::/0"]));
        for peer in ["192.0.2.1", "2001:db8::1"] {
            let Answer::Now(Ok(verdict)) = policy.check(Phase::Connect, &Facts::of(peer)) else { panic!() };
            assert_eq!(verdict.word(), "reject", "{peer}");
        }
    }
}
