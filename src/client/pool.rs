//! Connections kept open for those who ask often and little.
//!
//! Invariant: there are never more connections than permitted, busy and idle ones together; who needs one more waits.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Connection, Endpoint, Failure, Introduction, Timeouts};

/// How long a connection may have been idle to be used again: less than any server waits (RFC 5321 §4.5.3.2.7: 5 minutes).
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How often one is used: servers count commands that lead to no mail, and slow down those who send many.
const USES_MAX: u32 = 50;

/// Connections to one server.
pub struct Pool {
    endpoint: Endpoint,
    introduction: Introduction,
    timeouts: Timeouts,
    places: Semaphore,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    connection: Connection,
    since: Instant,
    uses: u32,
    refusals: u32,
}

/// A connection out of a [`Pool`]. Dropped, it is closed.
pub struct Leased<'a> {
    /// To be used.
    pub connection: Connection,
    /// What the server has refused on it, as whoever uses it counts.
    pub refusals: u32,
    uses: u32,
    _place: SemaphorePermit<'a>,
}

impl Leased<'_> {
    /// Whether somebody has used it before: the server may have closed it meanwhile.
    pub fn is_used(&self) -> bool {
        self.uses > 0
    }
}

impl Pool {
    /// Of up to `connections_max` connections to `endpoint`.
    pub fn new(
        endpoint: Endpoint,
        introduction: Introduction,
        timeouts: Timeouts,
        connections_max: usize,
    ) -> Self {
        let places = Semaphore::new(connections_max);
        Pool { endpoint, introduction, timeouts, places, idle: Mutex::default() }
    }

    /// Who is asked.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// A connection that is idle, or a new one. Waits while there are as many as there may be.
    pub async fn take(&self) -> Result<Leased<'_>, Failure> {
        let place = self.places.acquire().await.expect("the pool is never closed");
        let idle = {
            let mut all = self.lock();
            all.retain(|idle| idle.since.elapsed() < IDLE_MAX);
            all.pop()
        };
        match idle {
            Some(Idle { connection, uses, refusals, .. }) => {
                Ok(Leased { connection, refusals, uses, _place: place })
            }
            None => self.open(place).await,
        }
    }

    /// A new connection, in the place of one that turned out to be of no use.
    pub async fn renew<'a>(&'a self, leased: Leased<'a>) -> Result<Leased<'a>, Failure> {
        self.open(leased._place).await
    }

    /// It may be used again: a transaction is not open on it.
    pub async fn give_back(&self, leased: Leased<'_>) {
        let Leased { connection, refusals, uses, _place } = leased;
        if uses + 1 >= USES_MAX {
            connection.quit().await;
            return;
        }
        // Before its place is free: idle ones count.
        self.lock().push(Idle { connection, since: Instant::now(), uses: uses + 1, refusals });
    }

    async fn open<'a>(&'a self, place: SemaphorePermit<'a>) -> Result<Leased<'a>, Failure> {
        let connection = Connection::open(&self.endpoint, &self.introduction, self.timeouts).await?;
        Ok(Leased { connection, refusals: 0, uses: 0, _place: place })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
