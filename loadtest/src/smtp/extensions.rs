//! What a server says it can do (RFC 5321 §4.1.1.1).

use super::Reply;

/// The keywords of an EHLO reply that the load makes use of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 3030.
    pub chunking: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 1870.
    pub size: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
}

impl Extensions {
    /// Those of a reply to EHLO.
    pub fn of(reply: &Reply<'_>) -> Self {
        let mut extensions = Extensions::default();
        for keyword in keywords(reply) {
            let known = match keyword.split(' ').next().unwrap_or_default().to_ascii_uppercase().as_str() {
                "PIPELINING" => &mut extensions.pipelining,
                "CHUNKING" => &mut extensions.chunking,
                "STARTTLS" => &mut extensions.starttls,
                "SIZE" => &mut extensions.size,
                "8BITMIME" => &mut extensions.eight_bit_mime,
                _ => continue,
            };
            *known = true;
        }
        extensions
    }
}

/// The lines of a reply to EHLO behind the first, without code and line end.
pub fn keywords<'a>(reply: &Reply<'a>) -> impl Iterator<Item = String> + 'a {
    let lines = reply.octets.split(|octet| *octet == b'\n').skip(1);
    lines.filter_map(|line| Some(String::from_utf8_lossy(line.get(4..)?).trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_are_known_in_any_case_and_unknown_ones_are_nothing() {
        let octets =
            b"250-mx.test greets\r\n250-pipelining\r\n250-SIZE 1000\r\n250-XNEW a b\r\n250 STARTTLS\r\n";
        let extensions = Extensions::of(&Reply { code: 250, octets });
        let expected = Extensions { pipelining: true, size: true, starttls: true, ..Extensions::default() };
        assert_eq!(extensions, expected);
    }
}
