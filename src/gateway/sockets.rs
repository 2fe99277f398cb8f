//! The listening sockets: of each address one for each shard, which share the port.
//!
//! The gateway keeps a duplicate of each, so that another process can be given them; a socket is closed for good when both are.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::Error;
use super::systemd::{self, Inherited};
use crate::config::Listener;

/// What the kernel keeps of what a peer does not read, octets (it doubles them for its own needs).
const SEND_BUFFER_SIZE: usize = 64 << 10;

/// Sockets by shard.
pub struct Sockets(Vec<Vec<Bound>>);

/// A socket and where it listens.
struct Bound {
    address: SocketAddr,
    socket: TcpListener,
}

impl Sockets {
    /// None yet, for so many shards.
    pub fn new(shards: usize) -> Self {
        Sockets((0..shards).map(|_| Vec::new()).collect())
    }

    /// Those that somebody else has bound, spread over so many shards.
    pub fn of_others(sockets: Vec<TcpListener>, shards: usize) -> io::Result<Self> {
        let mut all = Sockets::new(shards);
        let mut bound: Vec<Bound> = Vec::with_capacity(sockets.len());
        for socket in sockets {
            bound.push(Bound { address: socket.local_addr()?, socket });
        }
        bound.sort_by_key(|bound| bound.address);
        for group in bound.chunk_by_mut(|a, b| a.address == b.address) {
            for (n, Bound { address, socket }) in group.iter().enumerate() {
                all.0[n % shards].push(Bound { address: *address, socket: socket.try_clone()? });
            }
        }
        Ok(all)
    }

    /// Whether some shard listens there.
    fn has(&self, address: SocketAddr) -> bool {
        self.0.iter().flatten().any(|bound| bound.address == address)
    }

    /// Of `listeners` whose port was to be chosen by the system, those that one of these is for have its port.
    pub fn name_ports(&self, listeners: &mut [Listener]) {
        let mut taken: Vec<SocketAddr> = Vec::new();
        for listener in listeners.iter_mut().filter(|listener| listener.address.port() == 0) {
            let mut bound = self.0.iter().flatten().map(|bound| bound.address);
            let known =
                bound.find(|address| address.ip() == listener.address.ip() && !taken.contains(address));
            if let Some(known) = known {
                taken.push(known);
                listener.address = known;
            }
        }
    }

    /// Takes those that somebody has bound before the start.
    pub fn inherit(&mut self, listeners: &[Listener], inherited: &mut Vec<Inherited>) -> Result<(), Error> {
        for listener in listeners {
            let taken = systemd::take(inherited, listener.address, self.0.len()).map_err(Error)?;
            for (shard, socket) in self.0.iter_mut().zip(taken) {
                let _ = SockRef::from(&socket).set_send_buffer_size(SEND_BUFFER_SIZE);
                shard.push(Bound { address: listener.address, socket });
            }
        }
        Ok(())
    }

    /// Sockets for those of `listeners` that have none, by shard; ports that were 0 are known afterwards.
    pub fn bind_missing(&self, listeners: &mut [Listener]) -> Result<Sockets, Error> {
        let mut new = Sockets::new(self.0.len());
        for listener in listeners.iter_mut().filter(|listener| !self.has(listener.address)) {
            let address = listener.address;
            let failed = |error| Error(explain_bind(address, &error));
            // Shards share the port by SO_REUSEPORT, and so would a second gateway of the same user: it is refused here.
            listener.address = bind(address, None).and_then(|probe| probe.local_addr()).map_err(failed)?;
            for shard in &mut new.0 {
                let socket = bind(listener.address, Some(listener.backlog)).map_err(failed)?;
                shard.push(Bound { address: listener.address, socket });
            }
        }
        Ok(new)
    }

    /// Sockets for those shards that have none of an address that others of them have: there are more shards than there were.
    pub fn bind_more(&mut self, listeners: &[Listener]) -> Result<(), Error> {
        for listener in listeners.iter().filter(|listener| self.has(listener.address)).collect::<Vec<_>>() {
            let address = listener.address;
            for shard in &mut self.0 {
                if shard.iter().any(|bound| bound.address == address) {
                    continue;
                }
                match bind(address, Some(listener.backlog)) {
                    Ok(socket) => shard.push(Bound { address, socket }),
                    // Whoever has bound the first is another user, as systemd is.
                    Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                        tracing::warn!(%address, "a shard takes no connections there: there are fewer sockets than shards");
                    }
                    Err(error) => return Err(Error(explain_bind(address, &error))),
                }
            }
        }
        Ok(())
    }

    /// These, too.
    pub fn add(&mut self, others: Sockets) {
        self.0.iter_mut().zip(others.0).for_each(|(own, others)| own.extend(others));
    }

    /// Only those of these addresses are kept.
    pub fn keep(&mut self, listeners: &[Listener]) {
        let is_kept = |bound: &Bound| listeners.iter().any(|listener| listener.address == bound.address);
        self.0.iter_mut().for_each(|shard| shard.retain(is_kept));
    }

    /// Another descriptor of each, by shard, with its address.
    pub fn duplicates(&self) -> io::Result<Vec<Vec<(SocketAddr, TcpListener)>>> {
        let duplicate = |bound: &Bound| Ok((bound.address, bound.socket.try_clone()?));
        self.0.iter().map(|shard| shard.iter().map(duplicate).collect()).collect()
    }

    /// The first shard's socket there.
    pub fn first_of(&self, address: SocketAddr) -> Option<&TcpListener> {
        let mut first = self.0.first()?.iter();
        first.find(|bound| bound.address == address).map(|bound| &bound.socket)
    }

    /// All of them, in no order that matters.
    pub fn all(&self) -> impl Iterator<Item = &TcpListener> {
        self.0.iter().flatten().map(|bound| &bound.socket)
    }
}

/// Binds; listens with the backlog, sharing the port, if there is one.
pub(super) fn bind(address: SocketAddr, backlog: Option<u32>) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections inherit it. Replies and handshakes are small; a peer that does not read them must not have the kernel keep megabytes.
    socket.set_send_buffer_size(SEND_BUFFER_SIZE)?;
    socket.set_reuse_address(true)?;
    if backlog.is_some() {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    if let Some(backlog) = backlog {
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    }
    Ok(socket.into())
}

fn explain_bind(address: SocketAddr, error: &std::io::Error) -> String {
    let remedy = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            "another process listens there: stop it, or choose another port with --listen or [[listener]] address"
        }
        Some(libc::EACCES) => {
            "ports below 1024 need a right: run with AmbientCapabilities=CAP_NET_BIND_SERVICE of the unit, or choose another port"
        }
        Some(libc::EADDRNOTAVAIL) => "no interface of this machine has that address",
        _ => "choose another address with --listen or [[listener]] address",
    };
    format!("cannot listen on {address}: {error}; {remedy}")
}
