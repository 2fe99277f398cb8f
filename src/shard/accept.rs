//! Accepting connections: who gets a session, who is told to come later, and what happens without descriptors.

use std::cell::Cell;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, RawFd};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::{AsyncWriteExt, FutureExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::timer::Timer;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendFlags, SocketFlags, accept_with, send};

use super::admitted::{Admitted, log_refused};
use super::link::Link;
use super::settings::Listening;
use super::{Ending, Service, Shard, connection, proxied};
use crate::mail::{Phase, Refusal, Status};
use crate::policy::Resource;
use crate::smtp::{TlsMode, refusal_line};

/// Without descriptors accepting pauses for this long: sessions that end give some back.
const PAUSE: Duration = Duration::from_millis(100);
/// How many of those who wait are told so, each time.
const REFUSED_AT_ONCE_MAX: usize = 64;
const COME_LATER: &[u8] = b"421 4.3.2 Try again later\r\n";

/// Accepts on one listening socket until the shard ends.
///
/// Where it is to stop because somebody else accepts on the same socket from here on, whom the ring has been told to accept already is served:
/// that he has come may be known to nobody else. Under load that is the next one; where nobody comes, nobody is lost.
pub async fn run(shard: Rc<Shard>, socket: std::net::TcpListener, listening: Rc<Listening>) {
    let fd = socket.into_raw_fd();
    // SAFETY: `fd` is a listening socket that nobody else owns; glommio's listener owns it from here on and closes it.
    let listener = unsafe { TcpListener::from_raw_fd(fd) };
    let mut reserve = File::open("/dev/null").ok();
    while shard.ending.get() == Ending::No && !listening.is_let_go.get() {
        let accept = listener.shared_accept();
        let mut accept = pin!(accept);
        let is_armed = Cell::new(false);
        let accepted = loop {
            let stop = async {
                listening.stop.wait().await;
                None
            };
            let accepted = async {
                is_armed.set(true);
                Some(accept.as_mut().await)
            };
            match accepted.or(stop).await {
                None if listening.is_let_go.get() && is_armed.get() => {}
                accepted => break accepted,
            }
        };
        let service = listening.service.borrow().clone();
        match accepted {
            None => return,
            Some(Ok(accepted)) => {
                // Bound at once: an accepted stream that is not bound leaks its descriptor. And asked for its peer before that, it
                // closes the descriptor where the peer has gone already, which is closed again as the bound stream's: by then it may
                // be another's, of any thread.
                let stream = accepted.bind_to_executor();
                if let Ok(peer) = stream.peer_addr() {
                    admit(&shard, &service, stream, peer);
                }
            }
            Some(Err(error)) => {
                shard.meters.accept_failed();
                tracing::warn!(%error, "cannot accept connections for the moment");
                drop(reserve.take());
                if !listening.is_let_go.get() {
                    refuse_waiting(fd, service.session.tls);
                }
                reserve = File::open("/dev/null").ok();
                Timer::new(PAUSE).await;
            }
        }
    }
}

fn admit(shard: &Rc<Shard>, service: &Rc<Service>, stream: TcpStream, peer: SocketAddr) {
    // Replies are small and somebody waits for each: without this the kernel would hold them back.
    let _ = stream.set_nodelay(true);
    let admitted = refusal_of_any(shard).map_or_else(|| Admitted::new(shard, service, peer), Err);
    let admitted = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            log_refused(shard, service, peer, &refusal);
            let line = refusal_line(&refusal, Phase::Connect) + "\r\n";
            shard.meters.replied(line.as_bytes());
            return refuse(service, stream, line.into_bytes());
        }
    };
    let link = Link::new(shard.clone(), stream);
    shard.meters.connected(peer, service.address, shard.connections.borrow().len());
    match service.is_proxy(peer.ip()) {
        true => glommio::spawn_local(proxied::serve(link, service.clone(), peer)).detach(),
        false => {
            let served = connection::serve(link, service.clone(), peer, admitted, Vec::new());
            glommio::spawn_local(served).detach()
        }
    };
}

/// Why nobody at all can have a session, if that is so.
fn refusal_of_any(shard: &Shard) -> Option<Refusal> {
    let is_full = shard.connections.borrow().len() >= shard.settings.borrow().sessions_max;
    let is_stopping = shard.ending.get() != Ending::No;
    match (is_stopping || !shard.disk().is_accepting(), is_full) {
        // RFC 3463 X.3.2: system not accepting network messages.
        (true, _) => Some(Refusal::final_one(Status::temporary(3, 2), "Try again later")),
        (_, true) => Some(Resource::Sessions.refusal()),
        _ => None,
    }
}

/// Says why, and closes.
fn refuse(service: &Service, mut stream: TcpStream, line: impl AsRef<[u8]> + 'static) {
    // In clear there is nothing to be said to a peer that expects TLS.
    if service.session.tls == TlsMode::Implicit {
        return;
    }
    // The socket's buffer is empty, so this is written at once or not at all.
    let refuse = async move {
        let _ = stream.write_all(line.as_ref()).or(async { Ok(()) }).await;
    };
    glommio::spawn_local(refuse).detach();
}

/// With the one descriptor that was kept back, tells those who wait to come later: otherwise they would wait in the backlog
/// for nothing.
fn refuse_waiting(fd: RawFd, tls: TlsMode) {
    // SAFETY: the listener that owns `fd` lives in the caller for longer than this call.
    let listener = unsafe { BorrowedFd::borrow_raw(fd) };
    let no_wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    for _ in 0..REFUSED_AT_ONCE_MAX {
        let is_waiting = poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&no_wait));
        if !matches!(is_waiting, Ok(1)) {
            return;
        }
        let Ok(stream) = accept_with(listener, SocketFlags::CLOEXEC) else { return };
        // As in `admit`.
        if tls != TlsMode::Implicit {
            let _ = send(&stream, COME_LATER, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }
}
