//! What of a shard may change while it runs: what is done for those who connect, where they do, and what all of them share.
//!
//! A session keeps the [`Service`] it began with, to its end; new ones have the new.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::disk::Disk;
use super::event::Event;
use super::handoff::Outward;
use super::{Pressure, Shard, accept, inject};
use crate::policy::{Admission, Greetings, Lookups, Places, Policies, Verifier};
use crate::shard::{Injected, OpenedLog};
use crate::smtp::SessionConfig;
use crate::tls::Acceptor;

/// What is done for those who connect to one address.
#[derive(Clone)]
pub struct Service {
    /// What sessions may do.
    pub session: Arc<SessionConfig>,
    /// Begins TLS, where there is any.
    pub acceptor: Option<Arc<Acceptor>>,
    /// Verifies passwords, where anybody may log in.
    pub verifier: Option<Arc<Verifier>>,
    /// Who may send what to whom.
    pub policies: Policies,
    /// Does what they must wait for.
    pub lookups: Arc<Lookups>,
    /// From there connections begin with a header of the PROXY protocol.
    pub proxy_from: Vec<IpNet>,
    /// From there XCLIENT is taken.
    pub xclient_from: Vec<IpNet>,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whoever connects is vouched for.
    pub is_trusted: bool,
}

impl Service {
    pub(super) fn is_proxy(&self, peer: IpAddr) -> bool {
        is_in(&self.proxy_from, peer)
    }

    pub(super) fn may_xclient(&self, peer: IpAddr) -> bool {
        is_in(&self.xclient_from, peer)
    }

    /// Whether a session's client may be another than its socket's peer.
    pub(super) fn may_be_spoken_for(&self) -> bool {
        !(self.proxy_from.is_empty() && self.xclient_from.is_empty())
    }

    /// Whether what one address may have is asked of `peer`: not of who is vouched for, nor of who speaks for others.
    pub(super) fn is_guarded(&self, peer: IpAddr) -> bool {
        !(self.is_trusted || self.is_proxy(peer) || self.may_xclient(peer))
    }
}

pub(super) fn is_in(networks: &[IpNet], peer: IpAddr) -> bool {
    let peer = peer.to_canonical();
    networks.iter().any(|network| network.contains(&peer))
}

/// What all sessions of a shard share.
#[derive(Clone)]
pub struct Settings {
    /// Handshakes at a time.
    pub handshakes_max: usize,
    /// How long one may take.
    pub handshake_timeout: Duration,
    /// Who may connect.
    pub admission: Arc<Admission>,
    /// Peers whose bare line ends are made CRLF.
    pub normalised: Arc<[IpNet]>,
    /// Sessions at most.
    pub sessions_max: usize,
    /// Who waits for the greeting.
    pub greetings: Arc<Greetings>,
    /// What is asked of peers when there is much to do.
    pub pressure: Pressure,
    /// Messages in the queue at most.
    pub depth_max: usize,
    /// Octets of content in memory at most.
    pub content_memory_max: usize,
}

impl Settings {
    /// Those of one address: a quarter of them.
    pub(super) fn handshake_places(&self) -> Arc<Places> {
        Places::new(u32::try_from(self.handshakes_max / 4).unwrap_or(u32::MAX).max(1), 0)
    }
}

/// Everything that a configuration says to a shard that runs.
#[derive(Clone)]
pub struct Change {
    /// What all sessions share.
    pub settings: Settings,
    /// For those who connect, address by address.
    pub services: Vec<Service>,
    /// Who gets what.
    pub outward: Outward,
}

/// A socket that is accepted on.
pub(super) struct Listening {
    pub(super) service: RefCell<Rc<Service>>,
    /// Whoever accepts is to stop.
    pub(super) stop: Event,
    /// Somebody else accepts there from here on.
    pub(super) is_let_go: Cell<bool>,
}

impl Shard {
    /// What all sessions share, at present.
    pub(super) fn settings(&self) -> Rc<Settings> {
        self.settings.borrow().clone()
    }

    /// From here on it is so. Sockets whose address has no service any more are closed.
    pub(crate) fn apply(self: &Rc<Self>, change: Change) {
        let Change { settings, services, outward } = change;
        if settings.handshakes_max != self.settings().handshakes_max {
            *self.handshake_places.borrow_mut() = settings.handshake_places();
        }
        *self.settings.borrow_mut() = Rc::new(settings);
        self.listening.borrow_mut().retain(|listening| {
            let address = listening.service.borrow().address;
            match services.iter().find(|service| service.address == address) {
                Some(service) => *listening.service.borrow_mut() = Rc::new(service.clone()),
                None => listening.stop.set(),
            }
            services.iter().any(|service| service.address == address)
        });
        let disks = self.disks.borrow();
        self.handoff.replace(outward, disks.iter().map(|disk| disk.spool()));
        disks.iter().for_each(|disk| disk.feed());
    }

    /// Accepts on these, too.
    pub(crate) fn listen(self: &Rc<Self>, sockets: Vec<(TcpListener, Service)>) {
        for (socket, service) in sockets {
            let listening = Rc::new(Listening {
                service: RefCell::new(Rc::new(service)),
                stop: Event::default(),
                is_let_go: Cell::new(false),
            });
            self.listening.borrow_mut().push(listening.clone());
            let accepting = glommio::spawn_local(accept::run(self.clone(), socket, listening)).detach();
            self.accepting.borrow_mut().push(accepting);
        }
    }

    /// Accepts nowhere any more. Somebody else does: who is on the way already is served.
    pub(crate) fn let_go(&self) {
        self.listening.borrow().iter().for_each(|listening| {
            listening.is_let_go.set(true);
            listening.stop.set();
        });
    }

    /// Nobody else accepts after all: it goes on with these.
    pub(crate) fn listen_again(self: &Rc<Self>, sockets: Vec<(TcpListener, Service)>) {
        self.stop_listening();
        self.listen(sockets);
    }

    pub(super) fn stop_listening(&self) {
        self.listening.borrow_mut().drain(..).for_each(|listening| {
            listening.is_let_go.set(false);
            listening.stop.set();
        });
    }

    /// Takes messages that do not come by SMTP.
    pub(crate) fn take_in(self: &Rc<Self>, injected: Injected) {
        glommio::spawn_local(inject::run(self.clone(), injected)).detach();
    }

    /// Delivers what is in these logs, too. Their lanes are to have the names that this shard's have.
    pub(crate) fn adopt(self: &Rc<Self>, logs: Vec<OpenedLog>) {
        for log in logs {
            let disk = self.open(log);
            disk.run();
            disk.feed();
            self.disks.borrow_mut().push(disk);
        }
    }

    pub(super) fn open(&self, log: OpenedLog) -> Rc<Disk> {
        let (damaged, handoff) = (self.damaged.clone(), self.handoff.clone());
        let (size, sync, meters) = (self.segment_size, self.sync, self.meters.clone());
        Disk::new(log.place, damaged, log.recovered, size, sync, handoff, meters)
    }
}
