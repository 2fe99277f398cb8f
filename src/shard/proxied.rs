//! A connection that a proxy in front of us has made: whose it is comes first, in a header of the PROXY protocol.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::Service;
use super::admitted::Admitted;
use super::clock;
use super::connection;
use super::link::{Input, Link};
use crate::mail::Phase;
use crate::proxy::{Header, parse};
use crate::smtp::{TlsMode, refusal_line};

/// A proxy writes its header before anything else, and in one write: what takes longer is no header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the header, then serves the peer it names. Without one the connection is closed: who connects from a proxy's address and
/// does not say for whom is not to be taken for the proxy.
pub async fn serve(mut link: Link, service: Rc<Service>, proxy: SocketAddr) {
    let deadline = clock::now() + HEADER_TIMEOUT;
    let mut received = Vec::new();
    let peer = loop {
        match link.receive(deadline, |octets| received.extend_from_slice(octets)).await {
            Ok(Input::Octets(())) => {}
            Ok(Input::Ending(ending)) if ending < super::Ending::Abort => {}
            // It was only to look what time it is.
            Ok(Input::Time) if clock::now() < deadline => {}
            Ok(Input::End | Input::Time | Input::Ending(_)) => {
                tracing::info!(%proxy, "closed: no PROXY header came");
                return;
            }
            Err(_) => return,
        }
        match parse(&received) {
            Header::Incomplete => {}
            Header::Direct { size } => {
                received.drain(..size);
                break proxy;
            }
            Header::Peer { peer, size, .. } => {
                received.drain(..size);
                break peer;
            }
            Header::Invalid(why) => {
                tracing::info!(%proxy, why, "closed: no PROXY header");
                return;
            }
        }
    };
    let admitted = match Admitted::new_or_logged(&link.shard, &service, peer) {
        Ok(admitted) => admitted,
        Err(refusal) => {
            // In clear there is nothing to be said to a peer that expects TLS.
            if service.session.tls != TlsMode::Implicit {
                let mut line = (refusal_line(&refusal, Phase::Connect) + "\r\n").into_bytes();
                let _ = link.close(&mut line).await;
            }
            return;
        }
    };
    link.tell_again();
    connection::serve(link, service, peer, admitted, received).await;
}
