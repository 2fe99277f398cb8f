//! For whom a connection is counted: who has connected, or whom a proxy or a front end has named.

use std::net::{IpAddr, SocketAddr};

use super::{Service, Shard, clock};
use crate::mail::{Phase, Refusal};
use crate::policy::{Facts, Place};

/// A connection that may be.
pub struct Admitted {
    ip: IpAddr,
    /// Its place among the connections, where it needs one.
    _place: Option<Place>,
}

impl Admitted {
    /// Whether `peer` may have another connection.
    pub fn new(shard: &Shard, service: &Service, peer: SocketAddr) -> Result<Self, Refusal> {
        let ip = peer.ip();
        if let Some(refusal) = shard.refusal_of_all().filter(|_| !service.is_trusted) {
            return Err(refusal);
        }
        let place = match service.is_guarded(ip) {
            true => shard.settings().admission.admit(ip, shard.parts(), clock::now())?,
            false => None,
        };
        Ok(Admitted { ip, _place: place })
    }

    /// As [`Admitted::new`]; a refusal is logged.
    pub fn new_or_logged(shard: &Shard, service: &Service, peer: SocketAddr) -> Result<Self, Refusal> {
        Self::new(shard, service, peer).inspect_err(|refusal| log_refused(shard, service, peer, refusal))
    }

    /// The connection is `peer`'s from here on, and whoever had it before has one less.
    pub fn pass_to(&mut self, shard: &Shard, service: &Service, peer: SocketAddr) -> Result<(), Refusal> {
        if peer.ip() != self.ip {
            *self = Admitted { ip: peer.ip(), _place: None };
            *self = Admitted::new(shard, service, peer)?;
        }
        Ok(())
    }
}

/// Says that `peer` has got no session.
pub fn log_refused(shard: &Shard, service: &Service, peer: SocketAddr, refusal: &Refusal) {
    let facts = Facts::of_peer(peer, clock::now(), clock::unix_now());
    let facts = Facts { listener: service.address, ..facts };
    shard.meters.not_admitted(Phase::Connect, &facts, refusal);
}
