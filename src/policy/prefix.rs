//! Whom an address stands for when something is counted: one customer, or the network around it.
//!
//! An IPv4 address is one customer. Of IPv6 one customer has a /64 at least, and as many addresses as he likes (RFC 6177), so a
//! /64 counts as an address does. The networks around them are a /24 and a /48. An IPv4-mapped address is the IPv4 address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The start of an address; equal for all addresses that count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// The address's first bits, the others 0.
    bits: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    /// A /32.
    V4Address,
    /// A /24.
    V4Network,
    /// A /64.
    V6Address,
    /// A /48.
    V6Network,
}

impl Prefix {
    /// What counts as one address: an IPv4 address, or a /64.
    pub fn of_address(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(v4) => Prefix { bits: u64::from(v4.to_bits()), kind: Kind::V4Address },
            IpAddr::V6(v6) => Prefix { bits: (v6.to_bits() >> 64) as u64, kind: Kind::V6Address },
        }
    }

    /// The network around it: a /24, or a /48.
    pub fn of_network(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(v4) => Prefix { bits: u64::from(v4.to_bits() & !0xff), kind: Kind::V4Network },
            IpAddr::V6(v6) => Prefix { bits: (v6.to_bits() >> 64) as u64 & !0xffff, kind: Kind::V6Network },
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v4 = || Ipv4Addr::from_bits(self.bits as u32);
        let v6 = || Ipv6Addr::from_bits(u128::from(self.bits) << 64);
        match self.kind {
            Kind::V4Address => write!(f, "{}", v4()),
            Kind::V4Network => write!(f, "{}/24", v4()),
            Kind::V6Address => write!(f, "{}/64", v6()),
            Kind::V6Network => write!(f, "{}/48", v6()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stands_for_its_customer_and_its_network() {
        let table = [
            ("192.0.2.7", "192.0.2.7", "192.0.2.0/24"),
            ("255.255.255.255", "255.255.255.255", "255.255.255.0/24"),
            ("0.0.0.0", "0.0.0.0", "0.0.0.0/24"),
            ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.0/24"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", "2001:db8:1::/48"),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ffff:ffff:ffff:ffff::/64", "ffff:ffff:ffff::/48"),
            ("::1", "::/64", "::/48"),
        ];
        for (ip, address, network) in table {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(Prefix::of_address(ip).to_string(), address);
            assert_eq!(Prefix::of_network(ip).to_string(), network);
        }
        let of = |text: &str| Prefix::of_address(text.parse().unwrap());
        assert_ne!(of("0.0.0.0"), of("::"), "the two kinds are not mixed up");
        assert_eq!(size_of::<Prefix>(), 16);
    }
}
