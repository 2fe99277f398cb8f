//! One SMTP session as a client: octets as the test wants them, replies parsed, everything with a deadline.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// How long a reply may take before a test gives up on it.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to the gateway.
pub struct Client {
    reader: BufReader<TcpStream>,
}

/// A reply of one or more lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The three digits.
    pub code: u16,
    /// The lines without their codes and line ends, joined with `\n`.
    pub text: String,
}

impl Reply {
    /// The code and the first line, as they stood on the wire.
    pub fn line(&self) -> String {
        format!("{} {}", self.code, self.text.lines().next().unwrap_or_default())
    }

    /// The id of `250 2.0.0 Ok: queued as <id>`.
    pub fn message_id(&self) -> Option<&str> {
        self.text.split_once("queued as ").map(|(_, id)| id.trim())
    }
}

impl Client {
    /// Connects; the greeting is still to be read.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::connect_within(address, REPLY_TIMEOUT)
    }

    /// Connects if the kernel takes the connection within `patience`.
    pub fn connect_within(address: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
        Ok(Client { reader: BufReader::new(stream) })
    }

    /// Connects and introduces itself; an error if the gateway does not take it.
    pub fn try_greet(address: SocketAddr) -> io::Result<Self> {
        let mut client = Self::connect(address)?;
        client.demand(220)?;
        client.send(b"EHLO client.test\r\n")?;
        client.demand(250)?;
        Ok(client)
    }

    /// Connects and introduces itself.
    #[track_caller]
    pub fn greet(address: SocketAddr) -> Self {
        Self::try_greet(address).unwrap_or_else(|e| panic!("no session at {address}: {e}"))
    }

    /// Sends octets as they are.
    pub fn send(&mut self, octets: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(octets)
    }

    /// Sends octets as they are, for as long as the gateway takes some of them within `patience`.
    pub fn send_for(&mut self, octets: &[u8], patience: Duration) -> io::Result<()> {
        self.reader.get_mut().set_write_timeout(Some(patience))?;
        let sent = self.send(octets);
        self.reader.get_mut().set_write_timeout(Some(REPLY_TIMEOUT))?;
        sent
    }

    /// Reads one whole reply.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let mut text = Vec::new();
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the gateway closed the connection",
                ));
            }
            let bare = line
                .strip_suffix("\r\n")
                .ok_or_else(|| io::Error::other(format!("a reply line without CRLF: {line:?}")))?;
            let malformed = || io::Error::other(format!("not a reply: {line:?}"));
            let code = bare.get(..3).and_then(|digits| digits.parse().ok()).ok_or_else(malformed)?;
            text.push(bare.get(4..).unwrap_or_default().to_string());
            match bare.as_bytes().get(3) {
                Some(b'-') => {}
                None | Some(b' ') => return Ok(Reply { code, text: text.join("\n") }),
                _ => return Err(malformed()),
            }
        }
    }

    /// Sends a line and returns the reply to it.
    #[track_caller]
    pub fn say(&mut self, line: &str) -> Reply {
        self.send(format!("{line}\r\n").as_bytes()).unwrap_or_else(|e| panic!("{line:?}: {e}"));
        self.reply().unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }

    /// Sends a line and panics unless the reply has this code.
    #[track_caller]
    pub fn expect(&mut self, line: &str, code: u16) -> Reply {
        let reply = self.say(line);
        assert_eq!(reply.code, code, "{line:?} was answered {reply:?}");
        reply
    }

    /// Sends an envelope, a recipient or more, as one pipelined group; the replies to MAIL, to each RCPT and to DATA.
    pub fn envelope(&mut self, from: &str, to: &[&str]) -> io::Result<Vec<Reply>> {
        let mut group = format!("MAIL FROM:<{from}>\r\n");
        for recipient in to {
            group += &format!("RCPT TO:<{recipient}>\r\n");
        }
        group += "DATA\r\n";
        self.send(group.as_bytes())?;
        (0..to.len() + 2).map(|_| self.reply()).collect()
    }

    /// Sends content, dot-stuffed here, and its end; the reply to the end-of-data.
    pub fn content(&mut self, content: &[u8]) -> io::Result<Reply> {
        self.send(&on_the_wire(content))?;
        self.reply()
    }

    /// A whole transaction. The first reply that refuses something ends it.
    pub fn transact(&mut self, from: &str, to: &[&str], content: &[u8]) -> io::Result<Reply> {
        for reply in self.envelope(from, to)? {
            if reply.code >= 400 {
                return Ok(reply);
            }
        }
        self.content(content)
    }

    /// A whole transaction that must be accepted; the message id.
    #[track_caller]
    pub fn deliver(&mut self, from: &str, to: &[&str], content: &[u8]) -> String {
        let reply = self.transact(from, to, content).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(reply.code, 250, "{reply:?}");
        reply.message_id().unwrap_or_else(|| panic!("no message id in {reply:?}")).to_string()
    }

    /// Sends no more; replies can still be read.
    pub fn finish_sending(&mut self) -> io::Result<()> {
        self.reader.get_mut().shutdown(Shutdown::Write)
    }

    /// Whether nothing comes from the gateway for this long.
    pub fn is_silent_for(&mut self, time: Duration) -> bool {
        let _ = self.reader.get_mut().set_read_timeout(Some(time));
        let is_silent = matches!(self.reader.fill_buf(), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        let _ = self.reader.get_mut().set_read_timeout(Some(REPLY_TIMEOUT));
        is_silent
    }

    /// Whether the gateway has closed the connection, without an octet before it.
    pub fn is_closed(&mut self) -> bool {
        match self.reader.read(&mut [0]) {
            Ok(n) => n == 0,
            Err(e) => e.kind() != io::ErrorKind::WouldBlock,
        }
    }

    fn demand(&mut self, code: u16) -> io::Result<Reply> {
        let reply = self.reply()?;
        if reply.code != code {
            return Err(io::Error::other(format!("{code} was expected: {}", reply.line())));
        }
        Ok(reply)
    }
}

/// Content with its leading dots doubled and the end-of-data after it (RFC 5321 §4.5.2). It ends with CRLF or is empty.
pub fn on_the_wire(content: &[u8]) -> Vec<u8> {
    assert!(content.is_empty() || content.ends_with(b"\r\n"), "content ends with a whole line");
    let mut wire = Vec::with_capacity(content.len() + content.len() / 64 + 5);
    let mut at_line_start = true;
    for octet in content {
        if at_line_start && *octet == b'.' {
            wire.push(b'.');
        }
        wire.push(*octet);
        at_line_start = *octet == b'\n';
    }
    wire.extend_from_slice(b".\r\n");
    wire
}
