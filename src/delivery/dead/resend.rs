//! Sends dead letters again: puts those that were asked for back into the queue, one after the other.
//!
//! What is put there is a new message for the recipients given up: a new message id, the content octet for octet, arrived as
//! before but now, so that its lifetime begins anew. Recipients given up again make a new dead letter.
//!
//! The steps, and what breaks if two are swapped:
//! 1. the queue has stored the message, durably;
//! 2. the letter is removed (or, where a recipient was added meanwhile, those sent are taken out of it): before 1, a crash loses
//!    the message;
//! 3. the request is removed: before 2, a crash leaves a letter that was sent and looks as if it had not been.
//!
//! A crash between 1 and 2 sends the message twice, never loses it. One between 2 and 3 leaves a request without a letter, which is
//! withdrawn.
//!
//! What fails stays: a queue that takes nothing now is asked again at the next look, a letter that cannot be read after a minute.
//! One that is malformed is reported and its request withdrawn, for it will be no better until somebody has mended it.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use tracing::{error, info, warn};

use super::{DeadLetters, Group, ReadError, SentAgain, unix_now};
use crate::mail::{Arrival, Envelope, MessageId, Provenance};

/// How often requests are looked for.
pub const RESEND_INTERVAL: Duration = Duration::from_secs(1);
/// How long a letter that could not be read waits.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// A message to be stored, besides its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resent {
    /// Who gets it.
    pub envelope: Envelope,
    /// How it came, and when it counts as having come.
    pub arrival: Arrival,
    /// Octets of its content.
    pub size: u64,
}

/// Whoever holds the queue.
pub trait Intake: Send {
    /// Stores a new message, durably; waits for that. `content` is read in pieces, never as a whole, and is as long as `message`
    /// says or is not taken.
    fn store(&mut self, message: Resent, content: &mut dyn Read) -> Result<MessageId, NotTaken>;
}

/// Why a message was not stored.
#[derive(Debug)]
pub enum NotTaken {
    /// The queue takes none now; the words say why.
    Later(&'static str),
    /// This content could not be read.
    Content(io::Error),
}

/// What keeps a letter from being sent now.
enum Delay {
    /// It would keep the others too.
    All(String),
    /// It alone.
    This(String),
}

/// See the module.
pub struct Resender {
    dead: Arc<DeadLetters>,
    intake: Box<dyn Intake>,
    stop: Receiver<()>,
    /// Letters that are to wait, and until when.
    later: HashMap<MessageId, Instant>,
    /// The recipients of letters that are in the queue again and could not be removed: they are not sent a third time.
    stored: HashMap<MessageId, Group>,
    /// What was said last of why nothing goes on: said once.
    told: Option<String>,
}

impl Resender {
    /// One that ends when the other end of `stop` is dropped.
    pub fn new(dead: Arc<DeadLetters>, intake: Box<dyn Intake>, stop: Receiver<()>) -> Self {
        Resender { dead, intake, stop, later: HashMap::new(), stored: HashMap::new(), told: None }
    }

    /// Serves requests until it is told to stop.
    pub fn run(&mut self) {
        loop {
            self.look();
            if self.stop.recv_timeout(RESEND_INTERVAL) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    /// Serves the requests that are there.
    fn look(&mut self) {
        let requests = match self.dead.requests().list() {
            Ok(requests) => requests,
            Err(e) => return self.tell(format!("cannot look for requests: {e}")),
        };
        self.later.retain(|id, _| requests.binary_search(id).is_ok());
        for id in requests {
            if is_stopped(&self.stop) {
                return;
            }
            if self.later.get(&id).is_some_and(|until| Instant::now() < *until) {
                continue;
            }
            match self.resend(id) {
                Ok(()) => self.told = None,
                Err(_) if is_stopped(&self.stop) => return,
                Err(Delay::All(words)) => return self.tell(words),
                Err(Delay::This(words)) => {
                    error!(message_id = %id, "cannot send a dead letter again, in a minute once more: {words}");
                    self.later.insert(id, Instant::now() + RETRY_INTERVAL);
                }
            }
        }
    }

    fn tell(&mut self, words: String) {
        if self.told.as_ref() != Some(&words) {
            warn!("dead letters wait to be sent again: {words}");
            self.told = Some(words);
        }
    }

    fn resend(&mut self, id: MessageId) -> Result<(), Delay> {
        loop {
            if !self.stored.contains_key(&id) {
                match self.store(id)? {
                    Some(group) => self.stored.insert(id, group),
                    None => return self.withdraw(id),
                };
            }
            let taken = self.dead.take_out(id, &self.stored[&id]);
            let is_gone = taken.map_err(|e| Delay::This(e.to_string()))?;
            self.stored.remove(&id);
            if is_gone {
                return self.withdraw(id);
            }
        }
    }

    /// Puts the letter into the queue for those whom one target has given up; who they are. `None` if it cannot be, ever.
    fn store(&mut self, id: MessageId) -> Result<Option<Group>, Delay> {
        let read = |dead: &DeadLetters| {
            let letter = dead.read(id)?;
            let content = dead.open_content(&letter)?;
            Ok((letter, content))
        };
        let (letter, content) = match read(&self.dead) {
            Ok(read) => read,
            Err(e @ ReadError::Gone(_)) => {
                warn!(message_id = %id, "a dead letter that was to be sent again is gone: {e}");
                return Ok(None);
            }
            Err(e @ ReadError::Malformed(..)) => {
                error!(message_id = %id, "a dead letter is malformed and not sent again: {e}");
                return Ok(None);
            }
            Err(e @ ReadError::Failed(..)) => return Err(Delay::This(e.to_string())),
        };
        let group = letter.first_group();
        let message = Resent {
            envelope: letter.envelope_of(&group),
            arrival: Arrival {
                unix_time: unix_now(),
                provenance: Provenance::Resent(id),
                ..letter.arrival.clone()
            },
            size: letter.size,
        };
        let recipients = group.indices.len();
        let new =
            self.intake.store(message, &mut Stoppable { content, stop: &self.stop }).map_err(
                |e| match e {
                    NotTaken::Later(words) => Delay::All(words.into()),
                    NotTaken::Content(e) => Delay::This(format!("{}: {e}", self.dead.path(id).display())),
                },
            )?;
        info!(message_id = %new, dead_letter = %id, recipients, size = letter.size, "a dead letter is sent again");
        let sent = SentAgain { id, as_id: new, unix_time: unix_now() };
        if let Err(e) = self.dead.sent().note(sent) {
            warn!(message_id = %new, dead_letter = %id, "cannot note that a dead letter was sent again: {e}");
        }
        Ok(Some(group))
    }

    fn withdraw(&self, id: MessageId) -> Result<(), Delay> {
        let withdrawn = self.dead.requests().withdraw(id);
        withdrawn.map_err(|e| Delay::This(format!("cannot remove the request: {e}")))
    }
}

/// Is the other end gone?
pub(super) fn is_stopped(stop: &Receiver<()>) -> bool {
    stop.try_recv() == Err(TryRecvError::Disconnected)
}

/// Content that ends in an error when the gateway does: a large letter does not hold it up.
struct Stoppable<'a, R> {
    content: R,
    stop: &'a Receiver<()>,
}

impl<R: Read> Read for Stoppable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match is_stopped(self.stop) {
            true => Err(io::Error::other("the gateway ends")),
            false => self.content.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Mutex;

    use crossbeam_channel::{Sender, bounded};

    use super::*;
    use crate::delivery::tests::message;
    use crate::delivery::{Attempt, Recipient};
    use crate::mail::Via;

    /// What a queue was given: messages and their contents.
    type Given = Arc<Mutex<Vec<(Resent, Vec<u8>)>>>;

    /// A queue that takes everything, unless it is told otherwise.
    struct Queue {
        given: Given,
        refusals: Receiver<&'static str>,
    }

    impl Intake for Queue {
        fn store(&mut self, message: Resent, content: &mut dyn Read) -> Result<MessageId, NotTaken> {
            if let Ok(words) = self.refusals.try_recv() {
                return Err(NotTaken::Later(words));
            }
            let mut octets = Vec::new();
            content.read_to_end(&mut octets).map_err(NotTaken::Content)?;
            let mut given = self.given.lock().unwrap();
            given.push((message, octets));
            Ok(MessageId { log: 9, sequence: given.len() as u64 })
        }
    }

    struct Rig {
        _root: tempfile::TempDir,
        dead: Arc<DeadLetters>,
        resender: Resender,
        given: Given,
        refuse: Sender<&'static str>,
        running: Option<Sender<()>>,
    }

    impl Rig {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let dead = Arc::new(DeadLetters::new(root.path()).unwrap());
            let (running, stop) = bounded(0);
            let (refuse, refusals) = bounded(9);
            let given = Given::default();
            let queue = Queue { given: given.clone(), refusals };
            let resender = Resender::new(dead.clone(), Box::new(queue), stop);
            Rig { _root: root, dead, resender, given, refuse, running: Some(running) }
        }

        /// Gives up some recipients of a message and asks for it to be sent again.
        fn request(&self, sequence: u64, indices: &[u32]) -> Attempt {
            let attempt = message(sequence);
            let recipient = |index: &u32| (Recipient { index: *index, attempts: 3 }, "no");
            self.dead.write(&attempt, "store", &indices.iter().map(recipient).collect::<Vec<_>>()).unwrap();
            self.dead.requests().add(&[attempt.id]).unwrap();
            attempt
        }

        fn left(&self) -> (Vec<MessageId>, Vec<MessageId>) {
            (self.dead.ids().unwrap(), self.dead.requests().list().unwrap())
        }
    }

    #[test]
    fn a_letter_goes_to_those_given_up_as_it_came_but_now() {
        let mut rig = Rig::new();
        let attempt = rig.request(1, &[2, 0]);
        let before = unix_now();
        rig.resender.look();
        let given = rig.given.lock().unwrap();
        let [(message, content)] = &given[..] else { panic!("one message") };
        assert_eq!(content, b"Received: x\r\n\r\nhello\r\n");
        assert_eq!(message.size, content.len() as u64);
        let paths: Vec<_> = message.envelope.forward_paths.iter().map(|path| path.as_str()).collect();
        assert_eq!(paths, ["postmaster", "a@e.org"]);
        assert_eq!(message.envelope.via, Some(Via::Only("store".into())));
        let forward_paths = attempt.envelope.forward_paths.clone();
        assert_eq!(Envelope { forward_paths, via: None, ..message.envelope.clone() }, *attempt.envelope);
        assert!((before..=unix_now()).contains(&message.arrival.unix_time));
        assert_eq!(message.arrival.provenance, Provenance::Resent(attempt.id));
        let Arrival { unix_time, provenance, .. } = *attempt.arrival;
        assert_eq!(Arrival { unix_time, provenance, ..message.arrival.clone() }, *attempt.arrival);
        assert_eq!(rig.left(), (vec![], vec![]));
    }

    #[test]
    fn without_a_request_nothing_is_sent() {
        let mut rig = Rig::new();
        let attempt = rig.request(1, &[0]);
        rig.dead.requests().withdraw(attempt.id).unwrap();
        rig.resender.look();
        assert_eq!(rig.left(), (vec![attempt.id], vec![]));
        assert!(rig.given.lock().unwrap().is_empty());
    }

    #[test]
    fn a_queue_that_is_full_keeps_everything_and_is_asked_again() {
        let mut rig = Rig::new();
        let ids = [1, 2, 3].map(|sequence| rig.request(sequence, &[0]).id).to_vec();
        for _ in 0..3 {
            rig.refuse.send("full").unwrap();
            rig.resender.look();
            assert_eq!(rig.left(), (ids.clone(), ids.clone()));
        }
        rig.resender.look();
        assert_eq!(rig.left(), (vec![], vec![]));
        assert_eq!(rig.given.lock().unwrap().len(), 3);
    }

    #[test]
    fn what_cannot_be_sent_stands_in_nobodys_way() {
        let mut rig = Rig::new();
        let malformed = rig.request(1, &[0]).id;
        fs::write(rig.dead.path(malformed).join("dead.json"), "{}").unwrap();
        let short = rig.request(2, &[0]).id;
        fs::write(rig.dead.path(short).join("message.eml"), "short").unwrap();
        let gone = MessageId { log: 1, sequence: 3 };
        rig.dead.requests().add(&[gone]).unwrap();
        rig.request(4, &[1]);
        rig.resender.look();
        assert_eq!(rig.left(), (vec![malformed, short], vec![]), "kept, and not asked for any more");
        assert_eq!(rig.given.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_letter_that_cannot_be_removed_is_not_sent_a_third_time() {
        let mut rig = Rig::new();
        let id = rig.request(1, &[0]).id;
        // Neither a folder nor root's rights get past a file in the way.
        let in_the_way = rig.dead.dir().join(format!(".removed-{id}"));
        fs::write(&in_the_way, "").unwrap();
        for _ in 0..3 {
            rig.resender.look();
            rig.resender.later.clear();
            assert_eq!(rig.left(), (vec![id], vec![id]));
        }
        fs::remove_file(in_the_way).unwrap();
        rig.resender.look();
        assert_eq!(rig.left(), (vec![], vec![]));
        assert_eq!(rig.given.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_gateway_that_ends_leaves_the_rest_for_the_next() {
        let mut rig = Rig::new();
        let id = rig.request(1, &[0]).id;
        drop(rig.running.take());
        rig.resender.run();
        assert_eq!(rig.left(), (vec![id], vec![id]));
        assert!(rig.given.lock().unwrap().is_empty());
    }
}
