//! What an operator may know of the sessions of a shard: who is there, and what they say.
//!
//! Sessions are looked at in pages, each of a few tens of microseconds. What is shown of one is kept with its connection in as few octets
//! as there are ([`Shown`]); the socket is asked for the rest.
//!
//! A tap is what somebody who looks on has laid: networks, and a channel. While there is none a session looks at one flag per receive.
//! What the channel has no room for is counted, and said when there is room again: nobody who looks on slows a session down.
//!
//! Invariant: what goes into a channel has had its secrets taken out by the protocol core ([`Heard`]).

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::SystemTime;

use ipnet::IpNet;
use socket2::SockRef;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::{Ending, Shard, clock, is_in};
use crate::mail::TlsVersion;
use crate::policy::Level;
use crate::smtp::{HEARD_LINE_SIZE_MAX, Heard, Session, Standing};

/// Sessions that one order looks at: each takes a few system calls.
const PAGE_SIZE: usize = 32;
/// Places that it looks at to find them: most of them are free where there have been many sessions.
const PLACES_MAX: usize = 4096;
/// Sessions of which a tap remembers that they were left out: more are not counted.
const LEFT_OUT_MAX: usize = 16_384;
/// Taps at a time.
const TAPS_MAX: usize = 4;

/// What is kept of a session to be shown.
#[derive(Default)]
pub struct Shown {
    /// What its client, helo name and user are, with a NUL between; the client only where somebody speaks for it.
    names: Cell<Option<Box<str>>>,
    facts: Cell<Facts>,
}

#[derive(Clone, Copy)]
struct Facts {
    descriptor: RawFd,
    /// Seconds since 1970.
    since: u32,
    messages: u32,
    standing: Standing,
    tls: Option<TlsVersion>,
}

impl Default for Facts {
    fn default() -> Self {
        Facts { descriptor: -1, since: 0, messages: 0, standing: Standing::Connected, tls: None }
    }
}

impl Shown {
    /// Of a connection that has just come.
    pub fn new(stream: &impl AsRawFd) -> Self {
        let since = u32::try_from(clock::unix_now()).unwrap_or(u32::MAX);
        let facts = Facts { descriptor: stream.as_raw_fd(), since, ..Facts::default() };
        Shown { names: Cell::default(), facts: Cell::new(facts) }
    }

    /// Keeps what is to be shown of `session`. `is_spoken_for`: its client may be another than the socket's peer.
    pub fn look_at(&self, session: &Session, is_spoken_for: bool) {
        let tls = session.tls().map(|tls| tls.version);
        self.facts.set(Facts { standing: session.standing(), tls, ..self.facts.get() });
        let (hello, user) =
            (session.hello().unwrap_or_default(), session.authenticated().unwrap_or_default());
        let names = self.names.take();
        let mut parts = names.as_deref().unwrap_or("\0\0").split('\0');
        let is_same = match (parts.next(), parts.next(), parts.next()) {
            (Some(client), Some(before), Some(name)) => {
                let is_client = match is_spoken_for {
                    true => client.parse() == Ok(session.peer()),
                    false => client.is_empty(),
                };
                before == hello && name == user && is_client
            }
            _ => false,
        };
        self.names.set(match is_same {
            true => names,
            false => {
                let client = if is_spoken_for { session.peer().to_string() } else { String::new() };
                Some(format!("{client}\0{hello}\0{user}").into())
            }
        });
    }

    /// It waits for us.
    pub fn wait(&self) {
        self.facts.set(Facts { standing: Standing::Waiting, ..self.facts.get() });
    }

    /// A message of it was accepted.
    pub fn count_message(&self) {
        let facts = self.facts.get();
        self.facts.set(Facts { messages: facts.messages.saturating_add(1), ..facts });
    }
}

/// A session, as it is shown.
#[derive(Clone, Debug)]
pub(crate) struct SessionFacts {
    /// Its place on the shard; another may have it once this one has ended.
    pub key: usize,
    /// Whom it is with, or who speaks for whom.
    pub peer: SocketAddr,
    /// The address of ours that it has connected to.
    pub listener: Option<SocketAddr>,
    pub tls: Option<TlsVersion>,
    pub hello: String,
    pub user: String,
    pub standing: Standing,
    /// Seconds since 1970.
    pub since: u64,
    /// Octets as TCP has counted them: received, and sent and received by the peer.
    pub octets: Option<(u64, u64)>,
    pub messages: u32,
}

/// A part of the sessions of a shard.
#[derive(Debug)]
pub(crate) struct SessionPage {
    pub sessions: Vec<SessionFacts>,
    /// Where to go on; nothing: that was the last.
    pub next: Option<usize>,
}

/// What is seen of a session.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub at: SystemTime,
    pub shard: usize,
    /// The session's place on the shard.
    pub key: usize,
    pub peer: SocketAddr,
    pub what: Sight,
}

/// What it is.
#[derive(Clone, Debug)]
pub(crate) enum Sight {
    /// It has just connected.
    Begun,
    /// It was there before anybody looked.
    Joined,
    /// The peer has said so.
    Heard(Heard),
    /// We have said so: a line of a reply, up to 512 octets of it.
    Said(Box<[u8]>),
    /// TLS has begun.
    Secured(TlsVersion),
    /// The connection has ended.
    Ended,
    /// So many were not seen: whoever looks on was too slow.
    Missed(u64),
    /// More sessions match than are looked at; this is the number of those that were left out so far.
    LeftOut(u64),
}

/// Somebody looks on.
#[derive(Clone)]
pub(crate) struct Tap {
    /// Of this number it is known.
    pub id: u64,
    /// The number of this shard.
    pub shard: usize,
    /// At sessions from there.
    pub networks: Vec<IpNet>,
    /// At so many at a time, on this shard.
    pub sessions_max: usize,
    pub sender: Sender<Seen>,
}

struct Laid {
    tap: Tap,
    watched: HashSet<usize>,
    /// Sessions that match, and for which there is no room; as many as are remembered.
    left: HashSet<usize>,
    left_out: u64,
    missed: u64,
}

/// The taps of a shard.
#[derive(Default)]
pub struct Taps {
    is_any: Cell<bool>,
    laid: RefCell<Vec<Laid>>,
    /// Sessions that somebody looks at, and content of them that was not said yet.
    watched: RefCell<HashMap<usize, (SocketAddr, usize)>>,
}

impl Taps {
    /// Whether anybody looks on.
    pub fn is_any(&self) -> bool {
        self.is_any.get()
    }

    /// Whether anybody looks at the session in this place.
    fn is_watched(&self, key: usize) -> bool {
        self.watched.borrow().contains_key(&key)
    }

    /// Looks at a session from here on, if anybody wants to. True: somebody does.
    pub fn join(&self, key: usize, peer: SocketAddr, is_new: bool) -> bool {
        let mut is_watched = false;
        if let Some((known, _)) = self.watched.borrow_mut().get_mut(&key) {
            // Somebody may have said meanwhile for whom it speaks.
            *known = peer;
            is_watched = true;
        }
        let at = SystemTime::now();
        for laid in self.laid.borrow_mut().iter_mut() {
            // Others may look at it already: everybody who looks on is asked.
            if laid.watched.contains(&key) || !is_in(&laid.tap.networks, peer.ip()) {
                continue;
            }
            if laid.watched.len() < laid.tap.sessions_max {
                laid.left.remove(&key);
                laid.watched.insert(key);
                self.watched.borrow_mut().entry(key).or_insert((peer, 0));
                is_watched = true;
                laid.send(at, key, peer, if is_new { Sight::Begun } else { Sight::Joined });
            } else if laid.left.len() < LEFT_OUT_MAX && laid.left.insert(key) {
                laid.left_out += 1;
                // That is told ever more rarely: it takes room of what is looked at.
                if laid.left_out.is_power_of_two() {
                    let left_out = Sight::LeftOut(laid.left_out);
                    laid.send(at, key, peer, left_out);
                }
            }
        }
        is_watched
    }

    /// The peer has said so.
    pub fn hear(&self, key: usize, heard: Vec<Heard>) {
        for heard in heard {
            match heard {
                // Content comes in many parts, and is said as one.
                Heard::Content(size) => {
                    if let Some((_, content)) = self.watched.borrow_mut().get_mut(&key) {
                        *content += size;
                    }
                }
                heard => self.tell(key, Sight::Heard(heard)),
            }
        }
    }

    /// We say so: whole lines.
    pub fn say(&self, key: usize, octets: &[u8]) {
        if self.is_watched(key) {
            let lines = octets.split(|c| *c == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
            for line in lines.filter(|line| !line.is_empty()) {
                self.tell(key, Sight::Said(line[..line.len().min(HEARD_LINE_SIZE_MAX)].into()));
            }
        }
    }

    /// TLS has begun.
    pub fn secured(&self, key: usize, version: TlsVersion) {
        self.tell(key, Sight::Secured(version));
    }

    /// The connection has ended.
    pub fn end(&self, key: usize) {
        if self.is_watched(key) {
            self.tell(key, Sight::Ended);
            self.watched.borrow_mut().remove(&key);
        }
        self.laid.borrow_mut().iter_mut().for_each(|laid| {
            laid.watched.remove(&key);
            laid.left.remove(&key);
        });
    }

    /// Tells everybody who looks at this session; before it, the content that it has sent.
    fn tell(&self, key: usize, what: Sight) {
        let Some((peer, content)) =
            self.watched.borrow_mut().get_mut(&key).map(|(peer, content)| (*peer, std::mem::take(content)))
        else {
            return;
        };
        let at = SystemTime::now();
        let mut is_over = false;
        for laid in self.laid.borrow_mut().iter_mut().filter(|laid| laid.watched.contains(&key)) {
            if content > 0 {
                laid.send(at, key, peer, Sight::Heard(Heard::Content(content)));
            }
            is_over |= !laid.send(at, key, peer, what.clone());
        }
        if is_over {
            self.retain(|laid| !laid.tap.sender.is_closed());
        }
    }

    fn retain(&self, keep: impl FnMut(&mut Laid) -> bool) {
        let mut laid = self.laid.borrow_mut();
        laid.retain_mut(keep);
        self.is_any.set(!laid.is_empty());
        self.watched.borrow_mut().retain(|key, _| laid.iter().any(|laid| laid.watched.contains(key)));
    }
}

impl Laid {
    /// False: nobody is there any more.
    fn send(&mut self, at: SystemTime, key: usize, peer: SocketAddr, what: Sight) -> bool {
        let seen = Seen { at, shard: self.tap.shard, key, peer, what };
        if self.missed > 0 {
            let missed = Seen { what: Sight::Missed(self.missed), ..seen.clone() };
            match self.tap.sender.try_send(missed) {
                Ok(()) => self.missed = 0,
                Err(TrySendError::Full(_)) => {}
                Err(TrySendError::Closed(_)) => return false,
            }
        }
        match self.tap.sender.try_send(seen) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.missed += 1;
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }
}

impl Shard {
    /// Why it takes no mail now; nothing where it takes some.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let (disk, settings) = (self.disk(), self.settings());
        let mut troubles = Vec::new();
        if !disk.is_accepting() {
            troubles.push(
                "the spool's medium has failed: see the log; replace it, and start the gateway anew".into(),
            );
        } else if !disk.has_room(0) {
            troubles.push("no room in the spool: free some, or have the queue delivered".into());
        }
        if self.disks.borrow().iter().map(|disk| disk.depth()).sum::<usize>() >= settings.depth_max {
            troubles.push("the queue is as long as it may be (spool.depth_max)".into());
        }
        if self.connections.borrow().len() >= settings.sessions_max {
            troubles.push("there are as many sessions as there may be (sessions_max)".into());
        }
        let overload = self.overload.borrow();
        if overload.level() == Level::Full {
            troubles.push(format!("overload: {} has run out", overload.resource().word()));
        }
        if self.ending.get() != Ending::No {
            troubles.push("it is ending".into());
        }
        troubles
    }

    /// The sessions in the places from `from` on, whose peer is in `networks`; all, where there are none.
    pub(crate) fn session_page(&self, from: usize, networks: &[IpNet]) -> SessionPage {
        let connections = self.connections.borrow();
        let end = connections.capacity();
        let to = from.saturating_add(PLACES_MAX).min(end);
        let (mut sessions, mut looked) = (Vec::new(), 0);
        for key in from..to {
            let Some(connection) = connections.get(key) else { continue };
            if looked == PAGE_SIZE {
                return SessionPage { sessions, next: Some(key) };
            }
            looked += 1;
            let descriptor = connection.shown.facts.get().descriptor;
            // SAFETY: the link that owns the descriptor is alive while its connection stands here.
            let socket = unsafe { BorrowedFd::borrow_raw(descriptor) };
            let Some(mut facts) = connection.shown.facts(key, &SockRef::from(&socket)) else { continue };
            if networks.is_empty() || is_in(networks, facts.peer.ip()) {
                facts.octets = octets(descriptor);
                sessions.push(facts);
            }
        }
        SessionPage { sessions, next: (to < end).then_some(to) }
    }

    /// Looks at sessions for somebody. False: others do already, as many as may.
    pub(crate) fn lay_tap(&self, tap: Tap) -> bool {
        let mut laid = self.taps.laid.borrow_mut();
        laid.retain(|laid| !laid.tap.sender.is_closed());
        if laid.len() >= TAPS_MAX {
            return false;
        }
        laid.push(Laid { tap, watched: HashSet::new(), left: HashSet::new(), left_out: 0, missed: 0 });
        self.taps.is_any.set(true);
        true
    }

    /// Nobody looks on any more.
    pub(crate) fn remove_tap(&self, id: u64) {
        self.taps.retain(|laid| laid.tap.id != id);
    }
}

impl Shown {
    /// What is known without asking for octets; nothing of a connection that has broken before it said who it is.
    fn facts(&self, key: usize, socket: &SockRef<'_>) -> Option<SessionFacts> {
        let Facts { since, messages, standing, tls, .. } = self.facts.get();
        let names = self.names.take();
        let mut parts = names.as_deref().unwrap_or_default().split('\0').map(String::from);
        let client = parts.next().unwrap_or_default().parse().ok();
        let (hello, user) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        self.names.set(names);
        let address =
            |of: std::io::Result<socket2::SockAddr>| of.ok().and_then(|address| address.as_socket());
        Some(SessionFacts {
            key,
            peer: client.or_else(|| address(socket.peer_addr()))?,
            listener: address(socket.local_addr()),
            tls,
            hello,
            user,
            standing,
            since: since.into(),
            octets: None,
            messages,
        })
    }
}

/// What TCP has counted: received, and acknowledged by the peer.
fn octets(descriptor: RawFd) -> Option<(u64, u64)> {
    // SAFETY: all octets of it may be zero.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes no more than `size` octets to `info`, which has them; older ones write fewer.
    let done = unsafe {
        libc::getsockopt(descriptor, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &mut size)
    };
    (done == 0).then_some((info.tcpi_bytes_received, info.tcpi_bytes_acked))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{Receiver, channel};

    use super::*;

    fn lay(taps: &Taps, id: u64, sessions_max: usize) -> Receiver<Seen> {
        let (sender, seen) = channel(100);
        let tap = Tap { id, shard: 0, networks: vec!["192.0.2.0/24".parse().unwrap()], sessions_max, sender };
        let laid = Laid { tap, watched: HashSet::new(), left: HashSet::new(), left_out: 0, missed: 0 };
        taps.laid.borrow_mut().push(laid);
        taps.is_any.set(true);
        seen
    }

    fn sights(seen: &mut Receiver<Seen>) -> Vec<(usize, String)> {
        std::iter::from_fn(|| seen.try_recv().ok())
            .map(|seen| (seen.key, format!("{:?}", seen.what)))
            .collect()
    }

    #[test]
    fn everybody_who_looks_on_sees_what_others_look_at_already() {
        let (taps, peer) = (Taps::default(), "192.0.2.1:25".parse().unwrap());
        let mut first = lay(&taps, 1, 10);
        assert!(taps.join(7, peer, true));
        let mut second = lay(&taps, 2, 10);
        assert!(taps.join(7, peer, false) && taps.join(7, peer, false));
        taps.end(7);
        assert_eq!(sights(&mut first), [(7, "Begun".into()), (7, "Ended".into())]);
        assert_eq!(sights(&mut second), [(7, "Joined".into()), (7, "Ended".into())]);
    }

    #[test]
    fn sessions_left_out_are_counted_once_and_told_of_ever_more_rarely() {
        let (taps, peer) = (Taps::default(), "192.0.2.1:25".parse().unwrap());
        let mut seen = lay(&taps, 1, 1);
        assert!(taps.join(0, peer, true));
        for _ in 0..20 {
            // Whatever they say.
            assert!((1..=5).all(|key| !taps.join(key, peer, false)));
        }
        assert!(!taps.join(9, "198.51.100.1:25".parse().unwrap(), true), "of another network");
        let expected = [(0, "Begun"), (1, "LeftOut(1)"), (2, "LeftOut(2)"), (4, "LeftOut(4)")];
        assert_eq!(sights(&mut seen), expected.map(|(key, what)| (key, what.to_string())));
        // Where one has ended there is room for another.
        taps.end(0);
        assert!(taps.join(3, peer, false));
    }
}
