//! XCLIENT: whom a trusted front end speaks for. As Postfix documents it (XCLIENT_README).

use std::net::{IpAddr, SocketAddr};

use super::command;
use super::reply::Reply;

/// What a peer says of the client it speaks for. What it leaves out stays as it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Xclient {
    /// ADDR; unknown stays as it is.
    pub address: Option<IpAddr>,
    /// PORT.
    pub port: Option<u16>,
    /// HELO: how the client has named itself.
    pub hello: Option<Box<str>>,
    /// LOGIN: as whom it has authenticated itself; `Some(None)`: as nobody.
    pub login: Option<Option<Box<str>>>,
}

impl Xclient {
    /// The attributes behind the verb. NAME, PROTO, DESTADDR and DESTPORT are known and of no use here.
    pub fn parse(arguments: &[u8]) -> Result<Self, Reply> {
        let mut xclient = Xclient::default();
        let mut words = arguments.split(|c| *c == b' ').filter(|word| !word.is_empty()).peekable();
        if words.peek().is_none() {
            return Err(Reply::BadArguments);
        }
        for word in words {
            let at = word.iter().position(|c| *c == b'=').ok_or(Reply::BadArguments)?;
            let (name, value) = (&word[..at], decoded(&word[at + 1..]).ok_or(Reply::BadArguments)?);
            let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
            let is_known =
                !value.eq_ignore_ascii_case("[UNAVAILABLE]") && !value.eq_ignore_ascii_case("[TEMPUNAVAIL]");
            if is("ADDR") {
                xclient.address = is_known.then(|| address(&value)).transpose()?;
            } else if is("PORT") {
                xclient.port =
                    is_known.then(|| value.parse().map_err(|_| Reply::BadArguments)).transpose()?;
            } else if is("HELO") {
                let hello = |value: &str| command::hello(value.as_bytes()).map(Box::from);
                xclient.hello = is_known.then(|| hello(&value)).transpose()?;
            } else if is("LOGIN") {
                if value.len() > 255 || value.chars().any(char::is_control) || value.is_empty() {
                    return Err(Reply::BadArguments);
                }
                xclient.login = Some(is_known.then(|| value.into()));
            } else if !["NAME", "PROTO", "DESTADDR", "DESTPORT", "REVERSE_NAME"].into_iter().any(is) {
                return Err(Reply::BadArguments);
            }
        }
        Ok(xclient)
    }

    /// Where the client is, if the front end is at `peer`.
    pub fn peer(&self, peer: SocketAddr) -> SocketAddr {
        match self.address {
            Some(address) => SocketAddr::new(address, self.port.unwrap_or(0)),
            None => peer,
        }
    }
}

/// `IPV6:` in front of an IPv6 address, as in an address literal.
fn address(text: &str) -> Result<IpAddr, Reply> {
    let rest = text.get(..5).filter(|tag| tag.eq_ignore_ascii_case("IPV6:")).map(|_| &text[5..]);
    rest.unwrap_or(text).parse().map_err(|_| Reply::BadArguments)
}

/// Undoes `xtext` (RFC 3461 §4).
fn decoded(value: &[u8]) -> Option<String> {
    let mut octets = Vec::with_capacity(value.len());
    let mut rest = value.iter();
    while let Some(c) = rest.next() {
        octets.push(match c {
            b'+' => {
                let digits = [*rest.next()?, *rest.next()?];
                // A sign is a digit to nobody but the parser.
                digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            c => *c,
        });
    }
    String::from_utf8(octets).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_say_whom_the_peer_speaks_for() {
        let none = Xclient::default;
        let table = [
            ("ADDR=192.0.2.7", Ok(Xclient { address: "192.0.2.7".parse().ok(), ..none() })),
            (
                "addr=IPv6:2001:db8::7 PORT=25 NAME=c.example",
                Ok(Xclient { address: "2001:db8::7".parse().ok(), port: Some(25), ..none() }),
            ),
            ("ADDR=[UNAVAILABLE] PORT=[unavailable]", Ok(none())),
            ("HELO=c+2Eexample", Ok(Xclient { hello: Some("c.example".into()), ..none() })),
            ("LOGIN=bob", Ok(Xclient { login: Some(Some("bob".into())), ..none() })),
            ("LOGIN=[UNAVAILABLE]", Ok(Xclient { login: Some(None), ..none() })),
            ("PROTO=ESMTP DESTADDR=192.0.2.1 DESTPORT=25", Ok(none())),
            ("", Err(Reply::BadArguments)),
            ("ADDR", Err(Reply::BadArguments)),
            ("ADDR=x", Err(Reply::BadArguments)),
            ("ADDR=é", Err(Reply::BadArguments)),
            ("PORT=65536", Err(Reply::BadArguments)),
            ("HELO=a+20b", Err(Reply::BadHello)),
            ("LOGIN=a+0Ab", Err(Reply::BadArguments)),
            ("LOGIN=a+0", Err(Reply::BadArguments)),
            ("LOGIN=a++1", Err(Reply::BadArguments)),
            ("LOGIN=", Err(Reply::BadArguments)),
            ("X=1", Err(Reply::BadArguments)),
        ];
        for (text, expected) in table {
            assert_eq!(Xclient::parse(text.as_bytes()), expected, "{text:?}");
        }
    }
}
