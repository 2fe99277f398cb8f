//! The PROXY protocol, versions 1 and 2: which peer a proxy in front of us speaks for (HAProxy's `proxy-protocol.txt`).
//!
//! Give [`parse`] all that was received so far, until it no longer says [`Header::Incomplete`]; the octets behind the header's size
//! are the peer's. To be asked only where the sender is trusted: whoever may send a header may claim to be anybody.
//!
//! Invariants:
//! - nothing is a header that is not one octet for octet by the grammar, and nothing is concluded of one before it is whole, but that it
//!   cannot become one;
//! - how the octets were split changes nothing;
//! - at most [`SIZE_MAX`] octets are looked at.
//!
//! `ppp` reads headers that are whole. What it is not asked, because version 2.3 answers otherwise than the protocol does:
//! - whether a line is whole: cut behind the space before its last port it is refused, and an `UNKNOWN` one of many words is waited for
//!   without end;
//! - what version 1 permits in a line: it takes ports such as `+25`;
//! - whether the family of a LOCAL header makes sense: it is to be ignored (§2.2), and is judged.
//!
//! Version 2's TLVs are skipped and not judged, the checksum among them.
//!
//! Knows nothing of sockets, of time, and of who is trusted.

use std::net::{IpAddr, SocketAddr};

use ppp::{v1, v2};

/// A whole version 1 line has at most so many octets, its CRLF included (§2.1).
const LINE_SIZE_MAX: usize = 107;
/// Signature, command, family and the size of the rest: what every version 2 header begins with.
const FIXED_SIZE: usize = 16;
/// Addresses and TLVs of version 2, in octets. Addresses are 216 at most; a client's certificate's names, an authority and what cloud providers add
/// fit several times. The protocol would permit 65,535.
const REST_SIZE_MAX: usize = 4096;

/// No header has more octets.
pub const SIZE_MAX: usize = FIXED_SIZE + REST_SIZE_MAX;

const _: () = assert!(LINE_SIZE_MAX <= SIZE_MAX);

/// What stands at the beginning of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// It may become a header.
    Incomplete,
    /// A header of `size` octets that names nobody (LOCAL, UNKNOWN), or nobody with an IP address and TCP (UNSPEC, UNIX, datagrams): the
    /// connection's own addresses are the ones that count (§2.1, §2.2).
    Direct {
        /// Of the header, in octets.
        size: usize,
    },
    /// A header of `size` octets: the connection is `peer`'s, who connected to `local`. IPv4 addresses that were mapped into IPv6 are IPv4
    /// here.
    Peer {
        /// Who connected to the proxy. Its port is 0 where the proxy does not tell.
        peer: SocketAddr,
        /// Where the proxy took the connection; `None` where it does not tell (an unspecified address).
        local: Option<SocketAddr>,
        /// Of the header, in octets.
        size: usize,
    },
    /// No header, and never one, whatever comes: the connection is to be closed (§2.2). Says why, for the log.
    Invalid(&'static str),
}

/// Looks at all octets received so far.
pub fn parse(octets: &[u8]) -> Header {
    const LINE_PREFIX: &[u8] = b"PROXY ";
    let may_become = |prefix: &[u8]| octets.iter().zip(prefix).all(|(octet, expected)| octet == expected);
    match (may_become(LINE_PREFIX), may_become(v2::PROTOCOL_PREFIX)) {
        (false, false) => Header::Invalid("it begins like neither version"),
        (true, false) if octets.len() >= LINE_PREFIX.len() => parse_line(octets),
        (false, true) if octets.len() >= FIXED_SIZE => parse_binary(octets),
        _ => Header::Incomplete,
    }
}

/// Version 1: a line.
fn parse_line(octets: &[u8]) -> Header {
    let seen = &octets[..octets.len().min(LINE_SIZE_MAX)];
    let is_printable = |octet: &u8| (b' '..=b'~').contains(octet);
    let Some(text_size) = seen.iter().position(|octet| !is_printable(octet)) else {
        return match seen.len() {
            LINE_SIZE_MAX => Header::Invalid("the line is too long"),
            _ => Header::Incomplete,
        };
    };
    // "The receiver must not tolerate a single CR or LF character to end the line" (§2.1).
    match seen[text_size..] {
        [b'\r', b'\n', ..] => {}
        [b'\r'] if seen.len() == LINE_SIZE_MAX => return Header::Invalid("the line is too long"),
        [b'\r'] => return Header::Incomplete,
        [b'\r' | b'\n', ..] => return Header::Invalid("the line does not end in CR LF"),
        _ => return Header::Invalid("the line is not printable"),
    }
    let size = text_size + 2;
    let text = std::str::from_utf8(&seen[..size]).expect("printable ASCII");
    let words: Vec<_> = text[..text_size].split(' ').collect();
    match words[..] {
        // What else such a line says is ignored (§2.1).
        ["PROXY", "UNKNOWN", ..] => return Header::Direct { size },
        ["PROXY", "TCP4" | "TCP6", _, _, port, other_port] if is_decimal(port) && is_decimal(other_port) => {}
        _ => return Header::Invalid("the line is not of the protocol's form"),
    }
    match v1::Header::try_from(text).map(|header| header.addresses) {
        Ok(v1::Addresses::Tcp4(of)) => {
            named(of.source_address, of.source_port, of.destination_address, of.destination_port, size)
        }
        Ok(v1::Addresses::Tcp6(of)) => {
            named(of.source_address, of.source_port, of.destination_address, of.destination_port, size)
        }
        Ok(v1::Addresses::Unknown) | Err(_) => Header::Invalid("an address or a port in the line is none"),
    }
}

fn is_decimal(port: &str) -> bool {
    port.bytes().all(|octet| octet.is_ascii_digit())
}

/// Version 2: `octets` has at least the fixed part.
fn parse_binary(octets: &[u8]) -> Header {
    const COMMAND: usize = v2::PROTOCOL_PREFIX.len();
    const LOCAL: u8 = 0x20;
    let size = FIXED_SIZE + usize::from(u16::from_be_bytes([octets[COMMAND + 2], octets[COMMAND + 3]]));
    if size > SIZE_MAX {
        return Header::Invalid("the header is too long");
    }
    if octets[COMMAND] == LOCAL {
        // "Discard the protocol block including the family" (§2.2).
        return if octets.len() < size { Header::Incomplete } else { Header::Direct { size } };
    }
    let header = match v2::Header::try_from(&octets[..octets.len().min(size)]) {
        Ok(header) => header,
        Err(v2::ParseError::Partial(..)) => return Header::Incomplete,
        Err(v2::ParseError::Version(_)) => return Header::Invalid("a version that is not known"),
        Err(v2::ParseError::Command(_)) => return Header::Invalid("a command that is not known"),
        Err(v2::ParseError::AddressFamily(_)) => {
            return Header::Invalid("an address family that is not known");
        }
        Err(v2::ParseError::Protocol(_)) => return Header::Invalid("a transport protocol that is not known"),
        Err(v2::ParseError::InvalidAddresses(..)) => return Header::Invalid("too short for its addresses"),
        Err(_) => return Header::Invalid("the header is not of the protocol's form"),
    };
    match (header.protocol, header.addresses) {
        (v2::Protocol::Stream, v2::Addresses::IPv4(of)) => {
            named(of.source_address, of.source_port, of.destination_address, of.destination_port, size)
        }
        (v2::Protocol::Stream, v2::Addresses::IPv6(of)) => {
            named(of.source_address, of.source_port, of.destination_address, of.destination_port, size)
        }
        // The forms that a receiver "does not support" fall back to UNSPEC, which the real addresses stand for (§2.2).
        _ => Header::Direct { size },
    }
}

/// A peer, unless its address is nobody's: policies would have nothing to judge.
fn named(
    source: impl Into<IpAddr>,
    source_port: u16,
    destination: impl Into<IpAddr>,
    destination_port: u16,
    size: usize,
) -> Header {
    let (source, destination) = (source.into().to_canonical(), destination.into().to_canonical());
    let is_somebodys = match source {
        IpAddr::V4(address) => !address.is_broadcast(),
        IpAddr::V6(_) => true,
    };
    if source.is_unspecified() || source.is_multicast() || !is_somebodys {
        return Header::Invalid("an address that no peer can have");
    }
    let local = (!destination.is_unspecified()).then(|| SocketAddr::new(destination, destination_port));
    Header::Peer { peer: SocketAddr::new(source, source_port), local, size }
}

/// The body of the fuzz target: arbitrary octets never panic, every split agrees with the whole, and a peer is only ever taken from a
/// line that can be written back, or from a header whose octets are its addresses. Not part of the API.
pub fn fuzz(data: &[u8]) {
    let whole = parse(data);
    let decided = (0..=data.len())
        .map(|cut| (cut, parse(&data[..cut])))
        .find(|(_, header)| *header != Header::Incomplete);
    let Some((cut, first)) = decided else {
        assert_eq!(whole, Header::Incomplete);
        assert!(data.len() < SIZE_MAX);
        return;
    };
    assert_eq!(first, whole, "what was decided at {cut} octets stands");
    match whole {
        Header::Invalid(_) | Header::Incomplete => {}
        Header::Direct { size } => assert_eq!(size, cut),
        Header::Peer { peer, local, size } => {
            assert_eq!(size, cut, "no octet behind the header was needed");
            assert!(size <= SIZE_MAX);
            assert_eq!(peer.ip(), peer.ip().to_canonical());
            if data.starts_with(b"PROXY ") {
                let line = std::str::from_utf8(&data[..size]).expect("a line is ASCII");
                let words: Vec<_> = line.trim_end_matches("\r\n").split(' ').collect();
                assert_eq!(format!("{}\r\n", words.join(" ")), line);
                let [_, _, source, _, port, local_port] = words[..] else { panic!("{line:?}") };
                assert_eq!(source.parse::<IpAddr>().map(|ip| ip.to_canonical()), Ok(peer.ip()));
                assert_eq!(port, peer.port().to_string());
                assert!(local.is_none_or(|local| local_port == local.port().to_string()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let size = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &size, rest].concat()
    }

    fn peer(peer: &str, local: &str) -> Header {
        let local = (!local.is_empty()).then(|| local.parse().unwrap());
        Header::Peer { peer: peer.parse().unwrap(), local, size: 0 }
    }

    /// With its size taken out, which the table's octets say.
    fn sized(header: Header, size: usize) -> Header {
        match header {
            Header::Direct { .. } => Header::Direct { size },
            Header::Peer { peer, local, .. } => Header::Peer { peer, local, size },
            other => other,
        }
    }

    const V4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 2, 0x9c, 0x40, 0, 25];

    fn v6(source: &str, destination: &str) -> Vec<u8> {
        let octets = |address: &str| address.parse::<std::net::Ipv6Addr>().unwrap().octets();
        [&octets(source)[..], &octets(destination), &[0, 0, 0, 25]].concat()
    }

    /// Every kind of whole header, and what it says.
    fn headers() -> Vec<(Vec<u8>, Header)> {
        let direct = Header::Direct { size: 0 };
        let line = |text: &str, header| (format!("{text}\r\n").into_bytes(), header);
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let tlv = |size: usize| [&[0xe0][..], &(size as u16).to_be_bytes(), &vec![b'x'; size]].concat();
        let v4 = peer("192.0.2.1:40000", "198.51.100.2:25");
        let unix = [b"/run/a".to_vec(), vec![0; 210]].concat();
        vec![
            line("PROXY TCP4 192.0.2.1 198.51.100.2 40000 25", v4),
            line(
                "PROXY TCP4 255.255.255.254 255.255.255.255 65535 65535",
                peer("255.255.255.254:65535", "255.255.255.255:65535"),
            ),
            line("PROXY TCP4 192.0.2.1 198.51.100.2 0 0", peer("192.0.2.1:0", "198.51.100.2:0")),
            line("PROXY TCP4 192.0.2.1 0.0.0.0 1 2", peer("192.0.2.1:1", "")),
            line(
                "PROXY TCP6 2001:db8::1 2001:DB8::2 40000 25",
                peer("[2001:db8::1]:40000", "[2001:db8::2]:25"),
            ),
            line("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.2 40000 25", v4),
            line(
                &format!("PROXY TCP6 fe80:ffff:ffff:ffff:ffff:ffff:ffff:ffff {longest} 65535 65535"),
                peer("[fe80:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535", &format!("[{longest}]:65535")),
            ),
            line("PROXY UNKNOWN", direct),
            line("PROXY UNKNOWN ", direct),
            line("PROXY UNKNOWN a b c d e f g h", direct),
            line(&format!("PROXY UNKNOWN {longest} {longest} 65535 65535"), direct),
            (binary(0x21, 0x11, V4), v4),
            (binary(0x21, 0x11, &[V4, &tlv(0), &tlv(300)].concat()), v4),
            // TLVs are not judged.
            (binary(0x21, 0x11, &[V4, &[1, 0xff, 0xff]].concat()), v4),
            (binary(0x21, 0x11, &[V4, &vec![0; REST_SIZE_MAX - V4.len()][..]].concat()), v4),
            (
                binary(0x21, 0x21, &v6("2001:db8::1", "2001:db8::2")),
                peer("[2001:db8::1]:0", "[2001:db8::2]:25"),
            ),
            (binary(0x21, 0x21, &v6("::ffff:192.0.2.1", "::")), peer("192.0.2.1:0", "")),
            // LOCAL, with whatever family and rest.
            (binary(0x20, 0x00, &[]), direct),
            (binary(0x20, 0x11, V4), direct),
            (binary(0x20, 0x11, &[]), direct),
            (binary(0x20, 0xff, &tlv(3)), direct),
            // PROXY, for what is no TCP over IP.
            (binary(0x21, 0x00, &[]), direct),
            (binary(0x21, 0x00, V4), direct),
            (binary(0x21, 0x10, V4), direct),
            (binary(0x21, 0x01, V4), direct),
            (binary(0x21, 0x12, V4), direct),
            (binary(0x21, 0x22, &v6("::1", "::1")), direct),
            (binary(0x21, 0x31, &unix), direct),
            (binary(0x21, 0x32, &unix), direct),
        ]
    }

    #[test]
    fn a_header_is_incomplete_at_every_split_until_it_is_whole() {
        for (octets, expected) in headers() {
            let shown = octets.escape_ascii();
            let expected = sized(expected, octets.len());
            for cut in 0..octets.len() {
                assert_eq!(parse(&octets[..cut]), Header::Incomplete, "{shown} cut at {cut}");
            }
            for behind in ["", "E", "EHLO c.example\r\n", "\r\n\r\n", "PROXY TCP4 "] {
                let stream = [&octets, behind.as_bytes()].concat();
                assert_eq!(parse(&stream), expected, "{shown} {behind:?}");
            }
            fuzz(&octets);
        }
    }

    #[test]
    fn what_is_no_header_never_becomes_one() {
        let lines = [
            "EHLO c.example\r\n",
            "proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXy TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
            " PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY\tTCP4 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY\r\n",
            "PROXY \r\n",
            "PROXY  TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY tcp4 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY unknown\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY UNKNOWN\n",
            "PROXY UNKNOWN\rx\n",
            "PROXY UNKNOWN a\nb\r\n",
            "PROXY UNKNOWN \u{e9}\r\n",
            "PROXY UNKNOWN \0\r\n",
            "PROXY TCP5 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 \r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 2 \r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n",
            "PROXY TCP4 192.0.2.1  198.51.100.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1  2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r ",
            "PROXY TCP4 192.0.2.1\r198.51.100.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 01 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 00\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 +2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 -1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 65536 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 0x1 2\r\n",
            "PROXY TCP4 192.0.2.01 198.51.100.2 1 2\r\n",
            "PROXY TCP4 192.0.2 198.51.100.2 1 2\r\n",
            "PROXY TCP4 192.0.2.256 198.51.100.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 mx.example 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY TCP6 [::1] [::1] 1 2\r\n",
            "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
            "PROXY TCP6 2001::db8::1 ::1 1 2\r\n",
            "PROXY TCP4 0.0.0.0 198.51.100.2 1 2\r\n",
            "PROXY TCP4 224.0.0.1 198.51.100.2 1 2\r\n",
            "PROXY TCP4 255.255.255.255 198.51.100.2 1 2\r\n",
            "PROXY TCP6 :: ::1 1 2\r\n",
            "PROXY TCP6 ff02::1 ::1 1 2\r\n",
            "PROXY TCP6 ::ffff:0.0.0.0 ::1 1 2\r\n",
            "\r\nEHLO c.example\r\n",
            "\r\n\r\n\0\r\nQUIT\r\n",
        ];
        let mut table: Vec<Vec<u8>> = lines.iter().map(|line| line.as_bytes().to_vec()).collect();
        table.extend([
            format!("PROXY UNKNOWN {}\r\n", "x".repeat(LINE_SIZE_MAX - 15)).into_bytes(),
            format!("PROXY UNKNOWN {}", "x".repeat(1000)).into_bytes(),
            format!("PROXY TCP4 192.0.2.1 198.51.100.2 1 {}2\r\n", "0".repeat(60)).into_bytes(),
            binary(0x22, 0x11, V4),
            binary(0x2f, 0x11, V4),
            binary(0x11, 0x11, V4),
            binary(0x31, 0x11, V4),
            binary(0x10, 0x11, V4),
            binary(0x21, 0x41, V4),
            binary(0x21, 0x13, V4),
            binary(0x21, 0x11, &V4[1..]),
            binary(0x21, 0x21, V4),
            binary(0x21, 0x31, V4),
            binary(0x21, 0x11, &[&[0; 4], &V4[4..]].concat()),
            binary(0x21, 0x11, &[V4, &vec![0; REST_SIZE_MAX - V4.len() + 1][..]].concat()),
            binary(0x20, 0x00, &[0; REST_SIZE_MAX + 1]),
        ]);
        for octets in table {
            let shown = octets.escape_ascii();
            assert!(matches!(parse(&octets), Header::Invalid(_)), "{shown}: {:?}", parse(&octets));
            fuzz(&octets);
        }
    }

    /// The claims of the module's header: what no longer holds of `ppp` may be asked of it.
    #[test]
    fn the_crate_answers_otherwise_where_it_is_not_asked() {
        use ppp::PartialResult;
        let line = |text| v1::Header::try_from(text);
        assert!(line("PROXY TCP4 192.0.2.1 198.51.100.2 1 ").is_complete());
        assert!(line("PROXY UNKNOWN a b c d e f\r\n").is_incomplete());
        assert!(line("PROXY TCP4 192.0.2.1 198.51.100.2 +1 2\r\n").is_ok());
        assert!(v2::Header::try_from(&binary(0x20, 0x11, &[])[..]).is_err());
        assert!(v2::Header::try_from(&binary(0x20, 0xff, &[])[..]).is_err());
    }

    #[test]
    fn a_line_of_the_greatest_size_is_taken_and_no_longer_one() {
        let line = |size: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(size - 16)).into_bytes();
        assert_eq!(parse(&line(LINE_SIZE_MAX)), Header::Direct { size: LINE_SIZE_MAX });
        let long = line(LINE_SIZE_MAX + 1);
        assert_eq!(parse(&long[..LINE_SIZE_MAX - 1]), Header::Incomplete);
        assert_eq!(parse(&long[..LINE_SIZE_MAX]), Header::Invalid("the line is too long"));
    }

    proptest! {
        #[test]
        fn arbitrary_octets_keep_the_promises(data in prop::collection::vec(any::<u8>(), 0..80), start in 0..4) {
            let starts: [&[u8]; 4] = [b"", b"PROXY ", SIGNATURE, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0"];
            fuzz(&[starts[start as usize], &data].concat());
        }

        #[test]
        fn headers_with_a_fault_keep_the_promises(
            which in any::<prop::sample::Index>(),
            place in any::<prop::sample::Index>(),
            octet in any::<u8>(),
            change in 0..3,
        ) {
            let headers = headers();
            let mut octets = which.get(&headers).0.clone();
            let place = place.index(octets.len());
            match change {
                0 => octets[place] = octet,
                1 => octets.insert(place, octet),
                _ => drop(octets.remove(place)),
            }
            fuzz(&octets);
        }

        #[test]
        fn lines_of_its_words_keep_the_promises(
            line in "PROXY (TCP4|TCP6|UNKNOWN)( (0|1|25|025|\\+25|65535|65536|192.0.2.1|::1|::ffff:192.0.2.1|0.0.0.0)){3,5}(\r\n|\n|\r)"
        ) {
            fuzz(line.as_bytes());
        }
    }
}
