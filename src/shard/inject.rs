//! Messages that do not come by SMTP: from a plain thread into a shard's log.
//!
//! The thread has an [`Injector`], the shard's task the other end. One order is on its way at a time and each is answered, so the
//! thread goes as slowly as the disk: back-pressure, and one piece of content in memory, whatever the message's size. A message
//! is admitted as one of a session is: a full queue or disk is an answer, not a wait.
//!
//! Invariant: a message id is answered only after [`Disk::store`] has said so. Content is stored as it is given: no trace field is
//! put in front.
//!
//! [`Disk::store`]: super::disk::Disk::store

use std::future::poll_fn;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use atomic_waker::AtomicWaker;
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use super::handoff::JustAccepted;
use super::{Ending, Shard, admission};
use crate::delivery::{Intake, NotTaken, Resent};
use crate::limits::PIECE_SIZE_MAX;
use crate::mail::{Arrival, Envelope, MessageId};
use crate::spool::{AppendError, Receiving};

const STOPPING: &str = "the gateway ends";
const NO_ROOM: &str = "the disk is full";
const QUEUE_FULL: &str = "the queue is full";
const FAILED: &str = "the spool's medium failed";

/// The two ends of a way into a shard.
pub fn injection() -> (Injector, Injected) {
    let (orders, orders_end) = bounded(1);
    let (answers, answers_end) = bounded(1);
    let bell = Arc::new(AtomicWaker::new());
    (
        Injector { orders, answers: answers_end, bell: Bell(bell.clone()) },
        Injected { orders: orders_end, answers, bell },
    )
}

enum Order {
    /// A message of so many octets; what was there of another is given up.
    Begin(u64),
    Piece(Vec<u8>),
    /// The last of the content; the commit point.
    Store(Box<Last>),
    /// The message will not come.
    Abandon,
}

struct Last {
    envelope: Box<Envelope>,
    arrival: Arrival,
    tail: Vec<u8>,
}

/// What came of an order; an id of [`Order::Store`] alone.
type Answer = Result<Option<MessageId>, &'static str>;

/// The thread's end. It waits for the shard.
pub struct Injector {
    orders: Sender<Order>,
    answers: Receiver<Answer>,
    bell: Bell,
}

/// The last that is dropped of an injector: the other end looks, and finds that nobody is there.
struct Bell(Arc<AtomicWaker>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl Injector {
    fn order(&self, order: Order) -> Result<Option<MessageId>, NotTaken> {
        // The other end goes only when the shard does.
        self.orders.send(order).map_err(|_| NotTaken::Later(STOPPING))?;
        self.bell.0.wake();
        self.answers.recv().unwrap_or(Err(STOPPING)).map_err(NotTaken::Later)
    }
}

impl Intake for Injector {
    fn store(&mut self, message: Resent, content: &mut dyn Read) -> Result<MessageId, NotTaken> {
        let Resent { envelope, arrival, size } = message;
        self.order(Order::Begin(size))?;
        let mut left = size;
        loop {
            let piece = read_piece(content, left).map_err(|e| {
                // The answer is of no interest: the shard gives up an unfinished message before the next one too.
                let _ = self.order(Order::Abandon);
                NotTaken::Content(e)
            })?;
            left -= piece.len() as u64;
            if left > 0 {
                self.order(Order::Piece(piece))?;
                continue;
            }
            let last = Last { envelope: Box::new(envelope), arrival, tail: piece };
            let stored = self.order(Order::Store(Box::new(last)))?;
            return Ok(stored.expect("a stored message has an id"));
        }
    }
}

/// The next piece of content that has `left` octets: as much of it as a piece may be. With the last of it the content has to end.
fn read_piece(content: &mut dyn Read, left: u64) -> io::Result<Vec<u8>> {
    let size = left.min(PIECE_SIZE_MAX as u64);
    let mut piece = vec![0; size as usize];
    content.read_exact(&mut piece)?;
    if size == left && content.read(&mut [0])? > 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than its record says"));
    }
    Ok(piece)
}

/// The shard's end.
pub struct Injected {
    orders: Receiver<Order>,
    answers: Sender<Answer>,
    bell: Arc<AtomicWaker>,
}

impl Injected {
    /// The next order; `None` when there will be none.
    async fn next(&self) -> Option<Order> {
        poll_fn(|context| {
            self.bell.register(context.waker());
            match self.orders.try_recv() {
                Ok(order) => Poll::Ready(Some(order)),
                Err(TryRecvError::Disconnected) => Poll::Ready(None),
                Err(TryRecvError::Empty) => Poll::Pending,
            }
        })
        .await
    }
}

/// Does as it is ordered, one message after the other.
pub(super) async fn run(shard: Rc<Shard>, injected: Injected) {
    let mut receiving = Receiving::default();
    while let Some(order) = injected.next().await {
        let answer = obey(&shard, &mut receiving, order).await;
        if answer.is_err() {
            shard.disk().abandon(&mut receiving);
        }
        // There is room: each order is answered once, and its sender waits for that.
        let _ = injected.answers.try_send(answer);
    }
    shard.disk().abandon(&mut receiving);
}

async fn obey(shard: &Shard, receiving: &mut Receiving, order: Order) -> Answer {
    let disk = shard.disk();
    match order {
        Order::Begin(size) => {
            disk.abandon(receiving);
            admit(shard, size).map(|()| None)
        }
        Order::Piece(piece) => disk.append_piece(receiving, &piece).await.map(|()| None).map_err(words),
        Order::Store(last) => {
            let Last { envelope, arrival, tail } = *last;
            let message = JustAccepted { envelope, arrival, trace: Vec::new(), tail };
            disk.store(receiving, message, |_| Vec::new()).await.map(Some).map_err(words)
        }
        Order::Abandon => {
            disk.abandon(receiving);
            Ok(None)
        }
    }
}

/// May a message of this size come now?
fn admit(shard: &Shard, size: u64) -> Result<(), &'static str> {
    // Until the workers have ended they have something to tell.
    if shard.ending.get() == Ending::Finish {
        return Err(STOPPING);
    }
    shard.admit_message(size).map_err(|refusal| {
        let known = [(admission::NO_ROOM, NO_ROOM), (admission::QUEUE_FULL, QUEUE_FULL)];
        known.into_iter().find(|(known, _)| *known == refusal).map_or(FAILED, |(_, words)| words)
    })
}

fn words(error: AppendError) -> &'static str {
    match error {
        AppendError::NoRoom => NO_ROOM,
        AppendError::Busy | AppendError::Failed => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::mail::{Body, ForwardPath, Protocol, ReversePath};

    fn message(size: u64) -> Resent {
        Resent {
            envelope: Envelope {
                reverse_path: ReversePath::Null,
                forward_paths: vec![ForwardPath::Postmaster],
                body: Body::SevenBit,
                smtputf8: false,
                require_tls: false,
                dsn: None,
                via: None,
            },
            arrival: Arrival {
                peer: "192.0.2.1:25".parse().unwrap(),
                hello: "e.net".into(),
                protocol: Protocol::Smtp,
                tls: None,
                authenticated: None,
                client_name: None,
                tags: Vec::new(),
                unix_time: 1,
                provenance: Default::default(),
            },
            size,
        }
    }

    /// A shard's end that takes everything, and refuses the order of this number; what it took, and the sizes.
    fn taker(injected: Injected, refused: Option<usize>) -> thread::JoinHandle<(Vec<u8>, Vec<usize>, bool)> {
        thread::spawn(move || {
            let (mut content, mut sizes, mut is_stored) = (Vec::new(), Vec::new(), false);
            for n in 0.. {
                let Ok(order) = injected.orders.recv() else { break };
                let piece = match order {
                    Order::Begin(_) => None,
                    Order::Abandon => {
                        content.clear();
                        None
                    }
                    Order::Piece(piece) => Some(piece),
                    Order::Store(last) => {
                        is_stored = refused != Some(n);
                        Some(last.tail)
                    }
                };
                if let Some(piece) = piece {
                    sizes.push(piece.len());
                    content.extend(piece);
                }
                let id = is_stored.then_some(MessageId { log: 1, sequence: 2 });
                let answer = if refused == Some(n) { Err(NO_ROOM) } else { Ok(id) };
                injected.answers.send(answer).unwrap();
            }
            (content, sizes, is_stored)
        })
    }

    #[test]
    fn content_goes_in_pieces_and_whole() {
        const MAX: usize = PIECE_SIZE_MAX;
        let table: [(usize, &[usize]); 6] = [
            (0, &[0]),
            (1, &[1]),
            (MAX, &[MAX]),
            (MAX + 1, &[MAX, 1]),
            (2 * MAX, &[MAX, MAX]),
            (2 * MAX + 7, &[MAX, MAX, 7]),
        ];
        for (size, pieces) in table {
            let (mut injector, injected) = injection();
            let taker = taker(injected, None);
            let content: Vec<u8> = (0..size).map(|i| i as u8).collect();
            let id = injector.store(message(size as u64), &mut &content[..]).unwrap();
            assert_eq!(id, MessageId { log: 1, sequence: 2 });
            drop(injector);
            let (taken, sizes, is_stored) = taker.join().unwrap();
            assert!(taken == content && is_stored);
            assert_eq!(sizes, pieces);
        }
    }

    #[test]
    fn content_of_another_size_is_not_stored() {
        for (promised, size) in [(3, 2), (3, 4), (0, 1), (200_000, 199_999), (200_000, 200_001)] {
            let (mut injector, injected) = injection();
            let taker = taker(injected, None);
            let stored = injector.store(message(promised), &mut &vec![b'x'; size][..]);
            assert!(matches!(stored, Err(NotTaken::Content(_))), "{promised} {size}");
            drop(injector);
            let (taken, _, is_stored) = taker.join().unwrap();
            assert!(taken.is_empty() && !is_stored, "{promised} {size}");
        }
    }

    #[test]
    fn a_refusal_at_any_order_ends_it() {
        for refused in 0..4 {
            let (mut injector, injected) = injection();
            let taker = taker(injected, Some(refused));
            let stored = injector.store(message(200_000), &mut &[b'x'; 200_000][..]);
            assert!(matches!(stored, Err(NotTaken::Later(NO_ROOM))), "{refused}");
            drop(injector);
            assert!(!taker.join().unwrap().2);
        }
    }

    #[test]
    fn without_a_shard_nothing_is_taken() {
        let (mut injector, injected) = injection();
        drop(injected);
        assert!(matches!(injector.store(message(0), &mut &b""[..]), Err(NotTaken::Later(STOPPING))));
    }
}
