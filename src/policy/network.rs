//! What of an address stands for one host: by that peers are counted and remembered.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::Ipv6Net;

/// The address itself; of IPv6 its /64, since one host has all of that to choose from.
pub fn of_one_host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(prefix_v6(v6, 64)),
        v4 => v4,
    }
}

fn prefix_v6(address: Ipv6Addr, size: u8) -> Ipv6Addr {
    Ipv6Net::new_assert(address, size.min(128)).network()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stands_for_its_host() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (address, host) in [
            ("192.0.2.77", "192.0.2.77"),
            ("::ffff:192.0.2.77", "192.0.2.77"),
            ("2001:db8:1:2:3::4", "2001:db8:1:2::"),
        ] {
            assert_eq!(of_one_host(ip(address)), ip(host));
        }
    }
}
