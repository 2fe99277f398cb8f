//! What octets go through: a socket, in clear or within TLS.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::{Endpoint, SystemResolver};

/// Addresses of a host that are tried.
const ADDRESSES_MAX: usize = 8;

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// Of the network.
    Tcp(TcpStream),
    /// Of this machine.
    Unix(UnixStream),
}

impl Socket {
    /// Connects to the first address of `endpoint` that takes it, within `patience` from now on. Who knows them is `resolver`.
    pub async fn connect(
        endpoint: &Endpoint,
        resolver: &SystemResolver,
        patience: Duration,
    ) -> io::Result<Socket> {
        let until = Instant::now() + patience;
        let (host, port) = match endpoint {
            Endpoint::Unix(path) => return UnixStream::connect(path).await.map(Socket::Unix),
            Endpoint::Tcp(host, port) => (host.as_str(), *port),
        };
        let addresses = resolver.find(host, port).await?;
        let stream = first_of(&addresses, until, TcpStream::connect).await?;
        // Commands are small, and written together where they can be.
        stream.set_nodelay(true)?;
        Ok(Socket::Tcp(stream))
    }
}

/// What `connect` makes of the first of `addresses` with which it succeeds. Each has its share of the time that is left: one that does not answer takes
/// nothing from the others.
async fn first_of<T, F: Future<Output = io::Result<T>>>(
    addresses: &[SocketAddr],
    until: Instant,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    let count = addresses.len().min(ADDRESSES_MAX);
    for (address, left) in addresses.iter().zip((1..=count as u32).rev()) {
        let share = until.saturating_duration_since(Instant::now()) / left;
        match timeout(share, connect(*address)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
        }
    }
    Err(last)
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

/// A socket, or TLS over one.
#[derive(Debug)]
pub enum Wire {
    /// In clear.
    Clear(Socket),
    /// Within TLS.
    Tls(Box<TlsStream<Socket>>),
}

impl Wire {
    /// Whether it is protected.
    pub fn is_tls(&self) -> bool {
        matches!(self, Wire::Tls(_))
    }

    /// The socket.
    ///
    /// # Panics
    /// Where there is TLS: what is within it would be lost.
    pub fn into_clear(self) -> Socket {
        match self {
            Wire::Clear(socket) => socket,
            Wire::Tls(_) => panic!("there is TLS already"),
        }
    }

    /// Whether the other side has neither said anything since it was asked last, nor gone. Asks the socket itself: what the runtime knows of it
    /// may be old.
    pub fn is_quiet(&mut self) -> bool {
        let socket = match self {
            Wire::Clear(socket) => &*socket,
            Wire::Tls(stream) => stream.get_ref().0,
        };
        let waiting = recv(socket, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        if waiting.err() != Some(rustix::io::Errno::AGAIN) {
            return false;
        }
        // What was decrypted and not read yet is no longer in the socket.
        let (mut room, mut context) = ([0; 1], Context::from_waker(Waker::noop()));
        let is_clear = !self.is_tls();
        is_clear || Pin::new(self).poll_read(&mut context, &mut ReadBuf::new(&mut room)).is_pending()
    }

    /// Writes what can be written at once. For words that nobody waits to be answered.
    pub fn write_now(&mut self, octets: &[u8]) {
        let mut context = Context::from_waker(Waker::noop());
        let mut wire = Pin::new(self);
        if wire.as_mut().poll_write(&mut context, octets).is_ready() {
            let _ = wire.poll_flush(&mut context);
        }
    }
}

macro_rules! delegate {
    ($outer:ident: $($variant:ident),*) => {
        impl AsyncRead for $outer {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                room: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $($outer::$variant(inner) => Pin::new(inner).poll_read(context, room),)*
                }
            }
        }

        impl AsyncWrite for $outer {
            fn poll_write(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                octets: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $($outer::$variant(inner) => Pin::new(inner).poll_write(context, octets),)*
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                pieces: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $($outer::$variant(inner) => Pin::new(inner).poll_write_vectored(context, pieces),)*
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    $($outer::$variant(inner) => inner.is_write_vectored(),)*
                }
            }

            fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $($outer::$variant(inner) => Pin::new(inner).poll_flush(context),)*
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $($outer::$variant(inner) => Pin::new(inner).poll_shutdown(context),)*
                }
            }
        }
    };
}

delegate!(Socket: Tcp, Unix);
delegate!(Wire: Clear, Tls);

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[test]
    fn an_address_that_does_not_answer_takes_its_share_of_the_time_only() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let addresses: Vec<SocketAddr> =
            (1..=10).map(|port| SocketAddr::from(([192, 0, 2, 1], port))).collect();
        // The port that answers, the addresses there are, and whether it is found among them.
        for (port, count, is_found) in [(1, 3, true), (3, 3, true), (8, 10, true), (9, 10, false)] {
            let found = runtime.block_on(async {
                let until = Instant::now() + Duration::from_millis(300);
                let connect = async |address: SocketAddr| match address.port() == port {
                    true => Ok(port),
                    false => pending().await,
                };
                timeout(Duration::from_secs(60), first_of(&addresses[..count], until, connect)).await
            });
            let found = found.expect("it comes to an end").map_err(|error| error.to_string());
            let expected = if is_found { Ok(port) } else { Err("no answer in time".into()) };
            assert_eq!(found, expected, "{port} of {count}");
        }
    }
}
