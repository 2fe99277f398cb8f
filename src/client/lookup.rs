//! Addresses of hosts, as the system knows them.
//!
//! The system is asked on threads of their own, which end with its answer: what a resolver that is away holds up is nobody else's, neither the runtime nor
//! the threads on which files are read. Who has lost patience leaves a thread behind, in a place that is taken until the system answers.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;

use tokio::sync::{Semaphore, oneshot};

/// Lookups at a time of one [`SystemResolver`]: each is a thread.
const LOOKUPS_MAX: usize = 4;

/// Asks the system, in as many places as there are. Clones share the places.
#[derive(Clone, Debug)]
pub struct SystemResolver {
    places: Arc<Semaphore>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        SystemResolver { places: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }
}

impl SystemResolver {
    /// The addresses of `host`, with `port`; one that is written as an address needs no lookup.
    pub async fn find(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let place = self.places.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (answer, answered) = oneshot::channel();
        let host = host.to_owned();
        thread::Builder::new().name("lookup".into()).spawn(move || {
            let found = (host.as_str(), port).to_socket_addrs();
            // Who asked may have lost patience.
            let _ = answer.send(found.map(Iterator::collect));
            drop(place);
        })?;
        answered.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_though_every_thread_of_the_runtime_is_busy() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let found = runtime.block_on(async {
            tokio::task::spawn_blocking(move || held.recv());
            let resolver = SystemResolver { places: Arc::new(Semaphore::new(1)) };
            let _ = resolver.find("localhost", 0).await;
            resolver.find("localhost", 25).await
        });
        drop(release);
        let found = found.unwrap();
        assert!(!found.is_empty() && found.iter().all(|address| address.port() == 25), "{found:?}");
    }

    #[test]
    fn addresses_are_not_looked_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let resolver = SystemResolver { places: Arc::new(Semaphore::new(0)) };
        for (host, expected) in [("192.0.2.1", "192.0.2.1:25"), ("2001:db8::1", "[2001:db8::1]:25")] {
            let found = runtime.block_on(resolver.find(host, 25)).unwrap();
            assert_eq!(found, [expected.parse().unwrap()]);
        }
    }
}
