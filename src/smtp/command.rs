//! A line to a command: the verb, and the arguments of MAIL, RCPT and HELO (RFC 5321 §4.1.1).
//!
//! Borrows from the line; only paths are copied. A refusal is the reply to give; no octet of the peer is in
//! it.

use crate::mail::{ForwardPath, PathError, ReversePath};

use super::params::{self, MailParams, Offered, RecipientParams};
use super::reply::Reply;
use super::transaction::Chunk;

/// The longest argument of HELO in octets: a domain's bound (RFC 5321 §4.5.3.1.2).
const HELLO_SIZE_MAX: usize = 255;

/// The commands that have a meaning here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Answered with what we offer.
    Ehlo,
    /// Answered with our name.
    Helo,
    /// LMTP's EHLO.
    Lhlo,
    /// Opens a transaction.
    Mail,
    /// Adds a recipient.
    Rcpt,
    /// Content follows.
    Data,
    /// Ends a transaction without a message.
    Rset,
    /// Nothing.
    Noop,
    /// Never answered with knowledge.
    Vrfy,
    /// The commands there are.
    Help,
    /// The end.
    Quit,
    /// Known, not offered, and harmless: one line.
    NotOffered,
    /// A chunk of content follows.
    Bdat,
    /// TLS follows.
    Starttls,
    /// A mechanism, and perhaps its first response.
    Auth,
    /// Whom the peer speaks for.
    Xclient,
    /// Not mail but, most likely, a web client that was made to talk to us.
    Foreign,
}

impl Verb {
    /// Whether the command brings no message nearer, so that too many of them are a nuisance. RSET is not among them: RFC 5321
    /// §4.1.1.5 forbids to close a connection because of it.
    pub fn is_idle(self) -> bool {
        use Verb::*;
        matches!(self, Ehlo | Helo | Lhlo | Noop | Vrfy | Help | Starttls | Auth | Xclient)
    }
}

/// Takes a line without its CRLF apart into verb and arguments, the latter without surrounding spaces.
pub fn parse(line: &[u8]) -> Result<(Verb, &[u8]), Reply> {
    let line = trim_end(line);
    // RFC 5321 §4.1.1: "the receiving SMTP servers SHOULD tolerate trailing white space"; inside, no control
    // octet is.
    if line.iter().any(|c| *c < 0x20 || *c == 0x7f) {
        return Err(Reply::BadOctet);
    }
    let size = line.iter().position(|c| *c == b' ').unwrap_or(line.len());
    let (word, arguments) = line.split_at(size);
    let verb = verb(word).ok_or(Reply::Unrecognized)?;
    Ok((verb, trim_start(arguments)))
}

fn verb(word: &[u8]) -> Option<Verb> {
    if let Ok(four) = <[u8; 4]>::try_from(word) {
        return match &four.map(|c| c.to_ascii_uppercase()) {
            b"EHLO" => Some(Verb::Ehlo),
            b"HELO" => Some(Verb::Helo),
            b"LHLO" => Some(Verb::Lhlo),
            b"AUTH" => Some(Verb::Auth),
            b"MAIL" => Some(Verb::Mail),
            b"RCPT" => Some(Verb::Rcpt),
            b"DATA" => Some(Verb::Data),
            b"RSET" => Some(Verb::Rset),
            b"NOOP" => Some(Verb::Noop),
            b"VRFY" => Some(Verb::Vrfy),
            b"HELP" => Some(Verb::Help),
            b"QUIT" => Some(Verb::Quit),
            b"BDAT" => Some(Verb::Bdat),
            b"EXPN" | b"ETRN" | b"TURN" | b"ATRN" | b"SEND" | b"SOML" | b"SAML" => Some(Verb::NotOffered),
            b"POST" | b"HEAD" => Some(Verb::Foreign),
            _ => None,
        };
    }
    let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
    if is("STARTTLS") {
        return Some(Verb::Starttls);
    }
    if is("XCLIENT") {
        return Some(Verb::Xclient);
    }
    let foreign = ["GET", "PUT", "PATCH", "TRACE", "DELETE", "OPTIONS", "CONNECT"];
    // `Host:`, `Content-Type:` … follow the request line of a web client; no verb of ours has a colon.
    if foreign.into_iter().any(is) || (word.len() > 1 && word.ends_with(b":")) {
        return Some(Verb::Foreign);
    }
    None
}

/// The argument of HELO or EHLO: a domain or an address literal, as leniently as the world needs it.
///
/// Underscores, single labels and unknown literals are in wide use. What is required is one printable ASCII
/// word.
pub fn hello(arguments: &[u8]) -> Result<&str, Reply> {
    let is_word = !arguments.is_empty()
        && arguments.len() <= HELLO_SIZE_MAX
        && arguments.iter().all(|c| c.is_ascii_graphic());
    if !is_word {
        return Err(Reply::BadHello);
    }
    std::str::from_utf8(arguments).map_err(|_| Reply::BadHello)
}

/// `FROM:<reverse-path>` and its parameters.
pub fn mail(arguments: &[u8], offered: Offered) -> Result<(ReversePath, MailParams), Reply> {
    let (path, rest) = path_and_rest(arguments, b"FROM:")?;
    let params = params::mail(rest, offered)?;
    let path = std::str::from_utf8(path).map_err(|_| Reply::BadReversePath)?;
    let path = ReversePath::parse(path, params.smtputf8).map_err(|e| match e {
        PathError::Syntax => Reply::BadReversePath,
        PathError::NeedsSmtpUtf8 => Reply::NeedsSmtpUtf8,
    })?;
    Ok((path, params))
}

/// `TO:<forward-path>` and its parameters. `utf8`: SMTPUTF8 was given with MAIL.
pub fn recipient(
    arguments: &[u8],
    utf8: bool,
    offered: Offered,
) -> Result<(ForwardPath, RecipientParams), Reply> {
    let (path, rest) = path_and_rest(arguments, b"TO:")?;
    let params = params::recipient(rest, utf8, offered)?;
    let path = std::str::from_utf8(path).map_err(|_| Reply::BadForwardPath)?;
    let path = ForwardPath::parse(path, utf8).map_err(|e| match e {
        PathError::Syntax => Reply::BadForwardPath,
        PathError::NeedsSmtpUtf8 => Reply::NeedsSmtpUtf8,
    })?;
    Ok((path, params))
}

/// `chunk-size [SP "LAST"]` (RFC 3030 §2). What is no such thing says nothing of where the chunk ends.
pub fn chunk(arguments: &[u8]) -> Option<Chunk> {
    let mut words = arguments.split(|c| *c == b' ').filter(|word| !word.is_empty());
    let digits = words.next()?;
    let is_last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case(b"LAST") => true,
        Some(_) => return None,
    };
    let left = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|c| c.is_ascii_digit()))?;
    words.next().is_none().then_some(Chunk { left: left.parse().ok()?, is_last })
}

/// Whether a line that is no command was to be a BDAT: whatever is wrong with it, a chunk may follow, and its size is not known.
pub fn is_spoilt_chunk(line: &[u8]) -> bool {
    let from = line.iter().position(|c| c.is_ascii_graphic()).unwrap_or(line.len());
    line[from..].get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"BDAT"))
}

/// What is between the angle brackets, without its source route, and what is behind them.
///
/// Spaces after the colon are in wide use and are permitted; a path without brackets is not.
fn path_and_rest<'a>(arguments: &'a [u8], keyword: &[u8]) -> Result<(&'a [u8], &'a [u8]), Reply> {
    let (given, rest) = arguments.split_at_checked(keyword.len()).ok_or(Reply::BadArguments)?;
    if !given.eq_ignore_ascii_case(keyword) {
        return Err(Reply::BadArguments);
    }
    let path = trim_start(rest).strip_prefix(b"<").ok_or(Reply::BadArguments)?;
    let size = bracketed_size(path).ok_or(Reply::BadArguments)?;
    let (path, rest) = (&path[..size], &path[size + 1..]);
    if !rest.is_empty() && rest[0] != b' ' {
        return Err(Reply::BadArguments);
    }
    Ok((without_source_route(path)?, rest))
}

/// The octets before the `>` that closes the path. One in a quoted local part does not.
fn bracketed_size(path: &[u8]) -> Option<usize> {
    let mut is_quoted = false;
    let mut i = 0;
    while let Some(c) = path.get(i) {
        match c {
            b'>' if !is_quoted => return Some(i),
            b'"' => is_quoted = !is_quoted,
            b'\\' if is_quoted => i += 1,
            _ => {}
        }
        i += 1;
    }
    None
}

/// RFC 5321 §4.1.1.3: a source route "MUST BE accepted, SHOULD NOT be generated, and SHOULD be ignored".
fn without_source_route(path: &[u8]) -> Result<&[u8], Reply> {
    if path.first() != Some(&b'@') {
        return Ok(path);
    }
    let is_hop = |hop: &[u8]| {
        let domain = hop.strip_prefix(b"@").unwrap_or_default();
        !domain.is_empty()
            && domain.iter().all(|c| c.is_ascii_alphanumeric() || b"-.[]_".contains(c) || *c >= 0x80)
    };
    let size = path.iter().position(|c| *c == b':').ok_or(Reply::BadArguments)?;
    let (route, mailbox) = (&path[..size], &path[size + 1..]);
    if mailbox.is_empty() || !route.split(|c| *c == b',').all(is_hop) {
        return Err(Reply::BadArguments);
    }
    Ok(mailbox)
}

fn trim_start(octets: &[u8]) -> &[u8] {
    let from = octets.iter().position(|c| *c != b' ').unwrap_or(octets.len());
    &octets[from..]
}

fn trim_end(octets: &[u8]) -> &[u8] {
    let size = octets.iter().rposition(|c| *c != b' ' && *c != b'\t').map_or(0, |last| last + 1);
    &octets[..size]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Body;

    #[test]
    fn a_chunk_has_a_size_or_is_none() {
        let chunk = |left, is_last| Some(Chunk { left, is_last });
        let table = [
            ("0", chunk(0, false)),
            ("86", chunk(86, false)),
            ("007 last", chunk(7, true)),
            ("86  LAST", chunk(86, true)),
            ("18446744073709551615", chunk(u64::MAX, false)),
            ("18446744073709551616", None),
            ("", None),
            ("LAST", None),
            ("x", None),
            ("-1", None),
            ("+1", None),
            ("0x4 LAST", None),
            ("4 LAST x", None),
            ("4 5", None),
            ("4LAST", None),
        ];
        for (text, expected) in table {
            assert_eq!(super::chunk(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn a_spoilt_bdat_is_known_for_what_it_was_to_be() {
        for yes in ["BDAT\t4", "bdat\r", " BDAT 4", "\n\tBdat", "BDAT4", "BDATA 4"] {
            assert!(is_spoilt_chunk(yes.as_bytes()), "{yes:?}");
        }
        for no in ["", "BDA", "DATA BDAT", "BDOT 4", "NOOP\nBDAT 4", "É"] {
            assert!(!is_spoilt_chunk(no.as_bytes()), "{no:?}");
        }
    }

    #[test]
    fn lines_are_taken_apart() {
        type Row<'a> = (&'a str, Result<(Verb, &'a str), Reply>);
        let table: [Row; 26] = [
            ("NOOP", Ok((Verb::Noop, ""))),
            ("noop", Ok((Verb::Noop, ""))),
            ("nOOp  x  y \t ", Ok((Verb::Noop, "x  y"))),
            ("MAIL FROM:<>", Ok((Verb::Mail, "FROM:<>"))),
            ("BDAT 1", Ok((Verb::Bdat, "1"))),
            ("EXPN x", Ok((Verb::NotOffered, "x"))),
            ("STARTTLS", Ok((Verb::Starttls, ""))),
            ("GET / HTTP/1.1", Ok((Verb::Foreign, "/ HTTP/1.1"))),
            ("post /", Ok((Verb::Foreign, "/"))),
            ("Host: x", Ok((Verb::Foreign, "x"))),
            ("Content-Type: x", Ok((Verb::Foreign, "x"))),
            ("", Err(Reply::Unrecognized)),
            (" ", Err(Reply::Unrecognized)),
            (" NOOP", Err(Reply::Unrecognized)),
            ("NOOPS", Err(Reply::Unrecognized)),
            ("NOO", Err(Reply::Unrecognized)),
            (".", Err(Reply::Unrecognized)),
            (":", Err(Reply::Unrecognized)),
            ("é", Err(Reply::Unrecognized)),
            ("NÖÖP", Err(Reply::Unrecognized)),
            ("NOOP\tx", Err(Reply::BadOctet)),
            ("NOOP \0", Err(Reply::BadOctet)),
            ("NOOP \x1b[1m", Err(Reply::BadOctet)),
            ("NOOP \x7f", Err(Reply::BadOctet)),
            ("NOOP\nQUIT", Err(Reply::BadOctet)),
            ("NOOP\rQUIT", Err(Reply::BadOctet)),
        ];
        for (line, expected) in table {
            assert_eq!(
                parse(line.as_bytes()),
                expected.map(|(verb, arguments)| (verb, arguments.as_bytes())),
                "{line:?}"
            );
        }
    }

    #[test]
    fn hello_takes_one_printable_word() {
        for good in
            ["c.example", "my_pc", "localhost", "[127.0.0.1]", "[IPv6:::1]", "[x]", "a--b.", &"a".repeat(255)]
        {
            assert_eq!(hello(good.as_bytes()), Ok(good));
        }
        for bad in ["", "a b", "a\x01", "é.example", &"a".repeat(256)] {
            assert_eq!(hello(bad.as_bytes()), Err(Reply::BadHello), "{bad:?}");
        }
    }

    #[test]
    fn reverse_paths_are_found_among_their_decoration() {
        let table: [(&str, Result<&str, Reply>); 26] = [
            ("FROM:<>", Ok("")),
            ("from:<a@e.org>", Ok("a@e.org")),
            ("FROM: <a@e.org>", Ok("a@e.org")),
            ("FROM:<@x,@y:a@e.org>", Ok("a@e.org")),
            ("FROM:<\"a>b\"@e.org>", Ok("\"a>b\"@e.org")),
            ("FROM:<\"a\\\">b\"@e.org> SIZE=1", Ok("\"a\\\">b\"@e.org")),
            ("FROM:<a@e.org>  SIZE=1", Ok("a@e.org")),
            ("FROM:<é@e.org> SMTPUTF8", Ok("é@e.org")),
            ("FROM:<é@e.org>", Err(Reply::NeedsSmtpUtf8)),
            ("FROM:<a@e.org>junk", Err(Reply::BadArguments)),
            ("FROM:<a@e.org>>>>", Err(Reply::BadArguments)),
            ("FROM:<a@e.org", Err(Reply::BadArguments)),
            ("FROM:a@e.org", Err(Reply::BadArguments)),
            ("FROM:a@e.org>", Err(Reply::BadArguments)),
            ("FROM: a@e.org", Err(Reply::BadArguments)),
            ("FROM <a@e.org>", Err(Reply::BadArguments)),
            ("FROM", Err(Reply::BadArguments)),
            ("", Err(Reply::BadArguments)),
            ("TO:<a@e.org>", Err(Reply::BadArguments)),
            ("FROM:<@x:>", Err(Reply::BadArguments)),
            ("FROM:<@x,y:a@e.org>", Err(Reply::BadArguments)),
            ("FROM:<@x>", Err(Reply::BadArguments)),
            ("FROM:<a@b@e.org>", Err(Reply::BadReversePath)),
            ("FROM:<<a@e.org>", Err(Reply::BadReversePath)),
            ("FROM:<postmaster>", Err(Reply::BadReversePath)),
            ("FROM:< >", Err(Reply::BadReversePath)),
        ];
        for (arguments, expected) in table {
            let found = mail(arguments.as_bytes(), Offered::default());
            assert_eq!(found.as_ref().map(|(p, _)| p.as_str()), expected.as_ref().copied(), "{arguments}");
        }
        assert_eq!(
            mail(b"FROM:<\xff@e.org> SMTPUTF8", Offered::default()).map(|_| ()),
            Err(Reply::BadReversePath)
        );
        let (_, params) = mail(b"FROM:<> BODY=8BITMIME", Offered::default()).unwrap();
        assert_eq!(params.body, Some(Body::EightBit));
    }

    #[test]
    fn forward_paths_are_found_among_their_decoration() {
        let table: [(&str, bool, Result<&str, Reply>); 9] = [
            ("TO:<a@e.org>", false, Ok("a@e.org")),
            ("to: <Postmaster>", false, Ok("postmaster")),
            ("TO:<@x:a@e.org>", false, Ok("a@e.org")),
            ("TO:<é@e.org>", true, Ok("é@e.org")),
            ("TO:<é@e.org>", false, Err(Reply::NeedsSmtpUtf8)),
            ("TO:<>", false, Err(Reply::BadForwardPath)),
            ("TO:<;sleep 66;>", false, Err(Reply::BadForwardPath)),
            ("TO:<a@e.org> NOTIFY=NEVER", false, Err(Reply::UnknownParameter)),
            ("FROM:<a@e.org>", false, Err(Reply::BadArguments)),
        ];
        for (arguments, utf8, expected) in table {
            let found = recipient(arguments.as_bytes(), utf8, Offered::default());
            assert_eq!(
                found.as_ref().map(|(path, _)| path.as_str()),
                expected.as_ref().copied(),
                "{arguments}"
            );
        }
    }
}
