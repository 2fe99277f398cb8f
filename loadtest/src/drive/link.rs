//! A connection's octets, through TLS where there is any.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::readiness::Socket as Stream;
use super::tls::{Channel, Client};

/// What is asked of a socket before it connects.
#[derive(Clone, Copy, Debug, Default)]
pub struct Habits {
    /// To close it resets the connection (SO_LINGER of 0).
    pub is_resetting: bool,
    /// SO_RCVBUF, octets.
    pub receive_buffer_size: Option<usize>,
}

/// One connection.
pub struct Link {
    stream: Stream,
    tls: Option<Box<Secured>>,
}

struct Secured {
    channel: Channel,
    /// Ciphertext, and how much of it the socket has taken.
    unsent: Vec<u8>,
    sent: usize,
    plaintext: Vec<u8>,
}

impl Link {
    /// Begins to connect; the first read or write waits for the end of it. `source` is the address it leaves from.
    ///
    /// # Errors
    /// Those of the socket and, where they are known at once, of connecting.
    pub fn connect(target: SocketAddr, source: Option<IpAddr>, habits: Habits) -> io::Result<Self> {
        let socket =
            Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        if habits.is_resetting {
            socket.set_linger(Some(Duration::ZERO))?;
        }
        if let Some(size) = habits.receive_buffer_size {
            socket.set_recv_buffer_size(size)?;
        }
        if let Some(source) = source {
            // The port is chosen when the target is known: so many for each target, instead of so many in all.
            bind_address_no_port(&socket)?;
            socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
        }
        match socket.connect(&SockAddr::from(target)) {
            Err(e) if e.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                return Err(e);
            }
            _ => {}
        }
        Ok(Link { stream: Stream::new(socket)?, tls: None })
    }

    /// Begins TLS.
    pub fn secure(&mut self, client: &Client) -> io::Result<()> {
        let channel = Channel::new(client)?;
        self.tls = Some(Box::new(Secured { channel, unsent: Vec::new(), sent: 0, plaintext: Vec::new() }));
        Ok(())
    }

    /// Goes on with the handshake, to its end. True: an earlier session was resumed.
    pub fn poll_handshake(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<io::Result<bool>> {
        let Link { stream, tls } = self;
        let secured = tls.as_mut().expect("TLS has begun");
        loop {
            ready!(secured.poll_send(stream, context))?;
            if !secured.channel.is_handshaking() {
                return Poll::Ready(Ok(secured.channel.is_resumed()));
            }
            if ready!(secured.poll_receive(stream, context, scratch))? {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Sends some of `octets`; how many. With TLS what was taken may wait for [`Link::poll_sent`].
    pub fn poll_write(&mut self, context: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let Link { stream, tls } = self;
        let Some(secured) = tls else {
            return stream.poll_write(context, octets);
        };
        loop {
            match secured.channel.write(octets)? {
                // The channel is full.
                0 => ready!(secured.poll_send(stream, context))?,
                size => return Poll::Ready(Ok(size)),
            }
        }
    }

    /// Waits until the socket has taken everything.
    pub fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Link { stream, tls } = self;
        match tls {
            Some(secured) => secured.poll_send(stream, context),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Ends this side's sending; the other's goes on.
    pub fn shut(&self) -> io::Result<()> {
        self.stream.shut()
    }

    /// Receives octets and gives them to `with`; 0 at the end of the connection.
    pub fn poll_read<R>(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut [u8],
        with: impl FnOnce(&[u8]) -> R,
    ) -> Poll<io::Result<R>> {
        let Link { stream, tls } = self;
        let Some(secured) = tls else {
            let size = ready!(stream.poll_read(context, scratch))?;
            return Poll::Ready(Ok(with(&scratch[..size])));
        };
        while secured.plaintext.is_empty() {
            let is_closed = ready!(secured.poll_receive(stream, context, scratch))?;
            if is_closed && secured.plaintext.is_empty() {
                return Poll::Ready(Ok(with(&[])));
            }
        }
        let result = with(&secured.plaintext);
        secured.plaintext.clear();
        Poll::Ready(Ok(result))
    }
}

/// `IP_BIND_ADDRESS_NO_PORT` (ip(7)), which neither socket2 nor rustix has.
fn bind_address_no_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the option takes an int; it lives to the end of the call, and the descriptor is open.
    let result = unsafe {
        let on = (&raw const on).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, on, size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Secured {
    fn poll_send(&mut self, stream: &mut Stream, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.channel.take_ciphertext(&mut self.unsent)?;
        while self.sent < self.unsent.len() {
            self.sent += ready!(stream.poll_write(context, &self.unsent[self.sent..]))?;
        }
        self.unsent.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// True: nothing more will come.
    fn poll_receive(
        &mut self,
        stream: &mut Stream,
        context: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<io::Result<bool>> {
        let size = ready!(stream.poll_read(context, scratch))?;
        if size == 0 {
            return Poll::Ready(Ok(true));
        }
        Poll::Ready(self.channel.read(&scratch[..size], &mut self.plaintext))
    }
}
