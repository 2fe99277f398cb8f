//! One SMTP session as a client: octets as the test wants them, replies parsed, everything with a deadline. In clear or over TLS.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

/// How long a reply may take before a test gives up on it.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to the gateway.
pub struct Client {
    reader: BufReader<Wire>,
}

/// What the octets go through.
enum Wire {
    Clear(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
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
        Self::over(TcpStream::connect_timeout(&address, patience)?)
    }

    /// Connects from `source`, another of this machine's addresses than it would choose, as 127.0.0.2.
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&address.into(), REPLY_TIMEOUT)?;
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
        Ok(Client { reader: BufReader::new(Wire::Clear(stream)) })
    }

    /// Connects and shakes hands at once; the greeting is still to be read.
    pub fn connect_tls(address: SocketAddr, tls: &Arc<ClientConfig>) -> io::Result<Self> {
        Self::connect(address)?.shake_hands(tls)
    }

    /// Connects, says EHLO and STARTTLS, shakes hands, and says EHLO again.
    pub fn try_greet_tls(address: SocketAddr, tls: &Arc<ClientConfig>) -> io::Result<Self> {
        let mut client = Self::try_greet(address)?;
        client.send(b"STARTTLS\r\n")?;
        client.demand(220)?;
        let mut client = client.shake_hands(tls)?;
        client.send(b"EHLO client.test\r\n")?;
        client.demand(250)?;
        Ok(client)
    }

    /// Shakes hands now, as a client that knows the gateway as `mx.test`.
    pub fn shake_hands(self, tls: &Arc<ClientConfig>) -> io::Result<Self> {
        let left = self.reader.buffer().len();
        assert_eq!(
            left, 0,
            "octets in clear stand before the handshake: they would be taken for protected ones"
        );
        let Wire::Clear(mut stream) = self.reader.into_inner() else { panic!("there is TLS already") };
        let name = ServerName::try_from("mx.test").expect("a name");
        let mut connection = ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(Client { reader: BufReader::new(Wire::Tls(Box::new(StreamOwned::new(connection, stream)))) })
    }

    /// What TLS knows, and the socket below it.
    #[track_caller]
    pub fn tls(&mut self) -> (&mut ClientConnection, &mut TcpStream) {
        match self.reader.get_mut() {
            Wire::Clear(_) => panic!("there is no TLS"),
            Wire::Tls(stream) => (&mut stream.conn, &mut stream.sock),
        }
    }

    /// The socket.
    pub fn socket(&mut self) -> &mut TcpStream {
        match self.reader.get_mut() {
            Wire::Clear(stream) => stream,
            Wire::Tls(stream) => &mut stream.sock,
        }
    }

    /// Goes away with a reset instead of an end.
    pub fn reset(mut self) {
        socket2::SockRef::from(&*self.socket())
            .set_linger(Some(Duration::ZERO))
            .expect("an option of the socket");
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
        let wire = self.reader.get_mut();
        wire.write_all(octets)?;
        wire.flush()
    }

    /// Sends octets as they are, for as long as the gateway takes some of them within `patience`.
    pub fn send_for(&mut self, octets: &[u8], patience: Duration) -> io::Result<()> {
        self.socket().set_write_timeout(Some(patience))?;
        let sent = self.send(octets);
        self.socket().set_write_timeout(Some(REPLY_TIMEOUT))?;
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
        self.socket().shutdown(Shutdown::Write)
    }

    /// Whether nothing comes from the gateway for this long.
    pub fn is_silent_for(&mut self, time: Duration) -> bool {
        let _ = self.socket().set_read_timeout(Some(time));
        let is_silent = matches!(self.reader.fill_buf(), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        let _ = self.socket().set_read_timeout(Some(REPLY_TIMEOUT));
        is_silent
    }

    /// Whether the gateway has closed the connection, without an octet before it.
    pub fn is_closed(&mut self) -> bool {
        match self.reader.read(&mut [0]) {
            Ok(n) => n == 0,
            Err(e) => e.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Everything that comes until the connection ends.
    pub fn read_rest(&mut self, text: &mut String) -> io::Result<usize> {
        self.reader.read_to_string(text)
    }

    fn demand(&mut self, code: u16) -> io::Result<Reply> {
        let reply = self.reply()?;
        if reply.code != code {
            return Err(io::Error::other(format!("{code} was expected: {}", reply.line())));
        }
        Ok(reply)
    }
}

impl Read for Wire {
    fn read(&mut self, octets: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Clear(stream) => stream.read(octets),
            Wire::Tls(stream) => stream.read(octets),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Clear(stream) => stream.write(octets),
            Wire::Tls(stream) => stream.write(octets),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Wire::Clear(stream) => stream.flush(),
            Wire::Tls(stream) => stream.flush(),
        }
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
