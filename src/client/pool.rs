//! Connections kept open for those who come often.
//!
//! Invariants:
//! - there are never more connections than permitted, busy and idle ones together; who needs one more waits;
//! - a connection on which the server has said something meanwhile, or from which it has gone, is not used again.
//!
//! A connection belongs to the runtime on which it was opened, and works best there: who takes one gets one of its own runtime if there is any. What was
//! idle too long is closed by a task of the runtime on which it was given back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Id};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Connection, Endpoint, Failure, Target};

/// What a [`Pool`] keeps.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at a time.
    pub connections_max: usize,
    /// Idle ones at a time; 0: each connection is used once.
    pub idle_max: usize,
    /// How long a connection may have been idle to be used again: less than the server waits (RFC 5321 §4.5.3.2.7: 5 minutes).
    pub idle_timeout: Duration,
    /// How often one is used.
    pub uses_max: u32,
}

/// Connections to one server. Cheap to clone.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    target: Target,
    bounds: Bounds,
    places: Arc<Semaphore>,
    idle: Mutex<Idles>,
}

#[derive(Default)]
struct Idles {
    /// The longest idle first.
    all: Vec<Idle>,
    /// Somebody will look after them.
    is_tended: bool,
}

struct Idle {
    connection: Connection,
    since: Instant,
    runtime: Id,
    uses: u32,
    refusals: u32,
}

/// A connection out of a [`Pool`]. Dropped, it is closed.
pub struct Leased {
    /// To be used.
    pub connection: Connection,
    /// What the server has refused on it, as whoever uses it counts.
    pub refusals: u32,
    uses: u32,
    place: OwnedSemaphorePermit,
}

impl Leased {
    /// Whether somebody has used it before: the server may have closed it meanwhile.
    pub fn is_used(&self) -> bool {
        self.uses > 0
    }
}

impl Pool {
    /// Of connections to `target`.
    pub fn new(target: Target, bounds: Bounds) -> Self {
        let places = Arc::new(Semaphore::new(bounds.connections_max.min(Semaphore::MAX_PERMITS)));
        Pool(Arc::new(Shared { target, bounds, places, idle: Mutex::default() }))
    }

    /// Who is spoken to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.target.endpoint
    }

    /// A connection that is idle, or a new one. Waits while there are as many as there may be, all in use.
    pub async fn take(&self) -> Result<Leased, Failure> {
        let place = self.0.places.clone().acquire_owned().await.expect("the pool is never closed");
        match self.0.take_idle() {
            Some(Idle { connection, uses, refusals, .. }) => Ok(Leased { connection, refusals, uses, place }),
            None => self.open(place).await,
        }
    }

    /// A new connection, in the place of one that turned out to be of no use.
    pub async fn renew(&self, leased: Leased) -> Result<Leased, Failure> {
        let Leased { connection, place, .. } = leased;
        drop(connection);
        self.open(place).await
    }

    /// It may be used again: a transaction is not open on it.
    pub fn give_back(&self, leased: Leased) {
        let Leased { mut connection, uses, refusals, place } = leased;
        let bounds = self.0.bounds;
        if uses + 1 >= bounds.uses_max || bounds.idle_max == 0 || !connection.is_fit() {
            connection.quit();
            return;
        }
        let runtime = Handle::current().id();
        let idle = Idle { connection, since: Instant::now(), runtime, uses: uses + 1, refusals };
        let mut idles = self.0.lock();
        idles.all.push(idle);
        let surplus = (idles.all.len() > bounds.idle_max).then(|| idles.all.remove(0));
        if !std::mem::replace(&mut idles.is_tended, true) {
            tokio::spawn(tend(Arc::downgrade(&self.0), bounds.idle_timeout));
        }
        drop(idles);
        // Not before: who gets the place finds the connection, and opens no other.
        drop(place);
        if let Some(surplus) = surplus {
            surplus.connection.quit();
        }
    }

    async fn open(&self, place: OwnedSemaphorePermit) -> Result<Leased, Failure> {
        let connection = Connection::open(&self.0.target).await?;
        Ok(Leased { connection, refusals: 0, uses: 0, place })
    }
}

impl Shared {
    /// The one that was idle for the shortest time, of this runtime if there is one.
    fn take_idle(&self) -> Option<Idle> {
        let here = Handle::current().id();
        loop {
            let mut idle = {
                let mut idles = self.lock();
                let of_here = idles.all.iter().rposition(|idle| idle.runtime == here);
                let at = of_here.or(idles.all.len().checked_sub(1))?;
                idles.all.remove(at)
            };
            if idle.since.elapsed() < self.bounds.idle_timeout && idle.connection.is_fit() {
                return Some(idle);
            }
            idle.connection.quit();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Idles> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes what was idle too long, until nothing is idle.
async fn tend(pool: Weak<Shared>, idle_timeout: Duration) {
    loop {
        tokio::time::sleep(idle_timeout).await;
        let Some(pool) = pool.upgrade() else { return };
        let (old, is_tended) = {
            let mut idles = pool.lock();
            let old: Vec<_> = idles.all.extract_if(.., |idle| idle.since.elapsed() >= idle_timeout).collect();
            idles.is_tended = !idles.all.is_empty();
            (old, idles.is_tended)
        };
        old.into_iter().for_each(|idle| idle.connection.quit());
        if !is_tended {
            return;
        }
    }
}
