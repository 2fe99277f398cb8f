//! Which sockets of an executor are ready: an epoll of its own, edge-triggered, beside glommio's ring.
//!
//! Why not the ring alone: glommio asks it about one socket at a time and anew for each read, and the kernel interrupts the
//! thread for each answer, wherever it runs. Between a harness and a server on neighbouring cores these interrupts were most
//! of what a message cost, on both sides: the server, too, was measured slower than it is. An epoll collects what becomes
//! ready while the thread has something to do, and interrupts nobody. Only when there is nothing to do is the ring asked to
//! tell when the epoll has something; timers and everything else stay glommio's.
//!
//! Invariants:
//! - a socket is registered once, from [`Socket::new`] to its drop;
//! - who was told that nothing is there is woken when something comes: readiness is given up only where a call said so.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_lite::AsyncRead;
use glommio::net::TcpStream;
use rustix::event::{Timespec, epoll};
use slab::Slab;

/// Sockets that are looked at in one call.
const EVENTS_MAX: usize = 256;

thread_local! {
    static HERE: RefCell<Option<Rc<Readiness>>> = const { RefCell::new(None) };
}

struct Readiness {
    epoll: OwnedFd,
    slots: RefCell<Slab<Slot>>,
}

/// What is known of one socket.
#[derive(Default)]
struct Slot {
    is_readable: bool,
    /// The other side sends no more: that comes without an event of its own, behind what it has sent.
    is_ended: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Runs `body` on this executor, with readiness for its sockets.
///
/// # Errors
/// Those of making the epoll.
pub async fn provide<T>(body: impl Future<Output = T>) -> io::Result<T> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let readiness = Rc::new(Readiness { epoll, slots: RefCell::default() });
    HERE.with(|here| *here.borrow_mut() = Some(readiness.clone()));
    let watch = glommio::spawn_local(readiness.watch());
    let result = body.await;
    watch.cancel().await;
    HERE.with(|here| *here.borrow_mut() = None);
    Ok(result)
}

impl Readiness {
    async fn watch(self: Rc<Self>) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            if self.look(&mut events) {
                // Everybody who was woken has their turn before the next look.
                glommio::executor().yield_task_queue_now().await;
            } else if let Err(error) = self.sleep().await {
                // Without readiness nothing goes on; the run ends by its timeouts and says that nothing came.
                eprintln!("loadtest: no readiness of sockets: {error}");
                return;
            }
        }
    }

    /// Wakes those whose sockets have become ready; whether there were any.
    fn look(&self, events: &mut Vec<epoll::Event>) -> bool {
        events.clear();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let buffer = rustix::buffer::spare_capacity(events);
        if epoll::wait(&self.epoll, buffer, Some(&now)).is_err() {
            return false;
        }
        let mut slots = self.slots.borrow_mut();
        for event in events.iter() {
            // It may have gone meanwhile.
            let Some(slot) = slots.get_mut(event.data.u64() as usize) else { continue };
            let flags = event.flags;
            let ended = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
            slot.is_ended |= flags.intersects(ended);
            if slot.is_ended || flags.contains(epoll::EventFlags::IN) {
                slot.is_readable = true;
                slot.reader.take().into_iter().for_each(Waker::wake);
            }
            if slot.is_ended || flags.contains(epoll::EventFlags::OUT) {
                slot.writer.take().into_iter().for_each(Waker::wake);
            }
        }
        !events.is_empty()
    }

    /// Sleeps until the epoll has something.
    async fn sleep(&self) -> io::Result<()> {
        let epoll = self.epoll.try_clone()?;
        // SAFETY: the descriptor was just given up by its only owner. It is no socket, so receiving from it fails, which is
        // all that is done with it here; before that glommio waits until it is readable, which is what is wanted.
        let mut waiting = unsafe { TcpStream::from_raw_fd(epoll.into_raw_fd()) };
        poll_fn(|context| Pin::new(&mut waiting).poll_read(context, &mut [0]).map(|_| Ok(()))).await
    }
}

/// A socket that does not block, and tells when it is ready.
pub struct Socket {
    socket: socket2::Socket,
    key: usize,
    readiness: Rc<Readiness>,
}

impl Socket {
    /// Takes a socket that does not block, connected or about to be.
    ///
    /// # Errors
    /// Those of registering it.
    pub fn new(socket: socket2::Socket) -> io::Result<Self> {
        let readiness = HERE.with(|here| here.borrow().clone()).expect("readiness is provided");
        let key = readiness.slots.borrow_mut().insert(Slot { is_readable: true, ..Slot::default() });
        let socket = Socket { socket, key, readiness };
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&socket.readiness.epoll, &socket.socket, epoll::EventData::new_u64(key as u64), flags)?;
        Ok(socket)
    }

    /// Receives; 0 at the end.
    pub fn poll_read(&mut self, context: &mut Context<'_>, octets: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.slot(|slot| slot.is_readable) {
            match (&self.socket).read(octets) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.slot(|slot| slot.is_readable = slot.is_ended);
                }
                Ok(size) => {
                    // Less than there was room for: there is no more, but for the end.
                    self.slot(|slot| slot.is_readable = size == octets.len() || slot.is_ended);
                    return Poll::Ready(Ok(size));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.slot(|slot| keep(&mut slot.reader, context));
        Poll::Pending
    }

    /// Sends some of `octets`.
    pub fn poll_write(&mut self, context: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        match (&self.socket).write(octets) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.slot(|slot| keep(&mut slot.writer, context));
                Poll::Pending
            }
            result => Poll::Ready(result),
        }
    }

    /// Ends this side's sending.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn shut(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }

    fn slot<T>(&self, with: impl FnOnce(&mut Slot) -> T) -> T {
        with(&mut self.readiness.slots.borrow_mut()[self.key])
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Closing it, which follows, takes it out of the epoll.
        self.readiness.slots.borrow_mut().remove(self.key);
    }
}

fn keep(kept: &mut Option<Waker>, context: &Context<'_>) {
    if !kept.as_ref().is_some_and(|kept| kept.will_wake(context.waker())) {
        *kept = Some(context.waker().clone());
    }
}
