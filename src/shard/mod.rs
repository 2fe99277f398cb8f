//! One core's world: its listeners, sessions and log, driven by one glommio executor.
//!
//! The only module that names glommio and that awaits sockets and files. It contains no rule: what a command means is
//! `smtp`'s, what a record looks like is `spool`'s, who may send is `policy`'s.
//!
//! Promises:
//! - a session's reply to a stored message is asked for only after `Disk::store` has said so;
//! - memory is bounded: by the sessions permitted, the content budget, the spool's pages and the delivery cache;
//! - a panic here ends the process: see `gateway`.

mod accept;
mod admitted;
mod ages;
mod answer;
mod checking;
mod clock;
mod connection;
mod control;
pub(crate) mod directory;
mod disk;
mod event;
mod handoff;
mod inject;
mod link;
pub(crate) mod medium;
pub(crate) mod meters;
mod pressure;
mod proxied;
mod quarantine;
pub(crate) mod queue;
pub(crate) mod read_back;
pub(crate) mod sessions;
mod settings;

use std::cell::{Cell, OnceCell, RefCell};
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use glommio::timer::Timer;
use slab::Slab;

pub use control::{Control, Ending, Shards};
pub use directory::{
    DataLock, DirectoryError, OpenedLog, count_segments, is_locked, lock, open, open_beside, open_in_memory,
    open_others,
};
pub use handoff::Outward;
pub use inject::{Injected, Injector, injection};
pub use pressure::Pressure;
pub use settings::{Change, Service, Settings};

use crate::delivery::{OutcomeReceiver, OutcomeSender};
use crate::limits::SCRATCH_SIZE;
use crate::mail::Refusal;
use crate::policy::{Overload, Place, Places};
use crate::smtp::BareLineEnds;
use crate::telemetry::Observer;
use connection::admission;
use disk::Disk;
use event::Event;
use handoff::Handoff;
use link::Connection;
use meters::Meters;
use settings::{Listening, is_in};

/// How often deadlines are looked at: timeouts are seconds and minutes.
const DEADLINES_INTERVAL: Duration = Duration::from_millis(250);
/// Reply buffers kept for reuse; each is a few hundred octets.
const SPARE_BUFFERS_MAX: usize = 64;
/// A reply buffer that has grown beyond this is not kept.
const SPARE_BUFFER_SIZE_MAX: usize = 4096;

/// What a shard is made of.
pub struct Plan {
    /// Listening sockets, each of them this shard's own, and what they are for.
    pub listeners: Vec<(std::net::TcpListener, Service)>,
    /// What all sessions share.
    pub settings: Settings,
    /// The shard's own log first, then the logs it adopts. Never empty.
    pub logs: Vec<OpenedLog>,
    /// Where damaged octets of the logs are kept.
    pub damaged: PathBuf,
    /// Octets of a segment.
    pub segment_size: u32,
    /// Sync before 250.
    pub sync: bool,
    /// Who gets what.
    pub outward: Outward,
    /// For the workers to answer.
    pub outcomes: OutcomeSender,
    /// Their answers.
    pub reports: OutcomeReceiver,
    /// Messages that do not come by SMTP, if they come to this shard.
    pub injected: Vec<Injected>,
    /// Told of events, on the shard's thread.
    pub observer: Option<Arc<dyn Observer>>,
    /// Orders from the gateway.
    pub control: Arc<Control>,
    /// Told when the shard accepts, and when it has no session left after it was told to drain.
    pub progress: crossbeam_channel::Sender<Progress>,
}

/// How far a shard has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It accepts connections.
    Ready,
    /// It has stopped accepting, and no session is left.
    Drained,
}

/// What the tasks of one shard share.
pub(crate) struct Shard {
    settings: RefCell<Rc<Settings>>,
    handshakes: Cell<usize>,
    /// Those of one address.
    handshake_places: RefCell<Arc<Places>>,
    /// Numbers of sessions given so far, and where they begin.
    sessions_count: Cell<u64>,
    overload: RefCell<Overload>,
    /// When to look next at sessions that keep others waiting.
    impatient_at: Cell<Instant>,
    handoff: Rc<Handoff>,
    /// Where damaged octets of the logs are kept.
    damaged: PathBuf,
    segment_size: u32,
    sync: bool,
    /// The log that new messages go into, and those that were adopted.
    own_disk: OnceCell<Rc<Disk>>,
    disks: RefCell<Vec<Rc<Disk>>>,
    listening: RefCell<Vec<Rc<Listening>>>,
    accepting: RefCell<Vec<glommio::task::JoinHandle<()>>>,
    connections: RefCell<Slab<Rc<Connection>>>,
    /// The last connection has ended.
    emptied: Event,
    ending: Cell<Ending>,
    /// Every receive goes here: an idle session owns no buffer.
    scratch: RefCell<Box<[u8]>>,
    /// And what it is decrypted to here.
    plaintext: RefCell<Vec<u8>>,
    spare_buffers: RefCell<Vec<Vec<u8>>>,
    content_memory: Cell<usize>,
    /// Octets of envelopes that are not handed over yet; as much as content may have.
    envelope_memory: Cell<usize>,
    dates: clock::Dates,
    /// Who looks at sessions.
    taps: sessions::Taps,
    meters: Rc<Meters>,
}

impl Shard {
    /// The log that new messages go into.
    fn disk(&self) -> &Rc<Disk> {
        self.own_disk.get().expect("it is opened before anything else runs")
    }

    /// Connections there are.
    pub(crate) fn sessions(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Messages that are not done, in all logs.
    pub(crate) fn depth(&self) -> usize {
        self.disks.borrow().iter().map(|disk| disk.depth()).sum()
    }

    /// Of these the operator holds so many.
    pub(crate) fn held(&self) -> usize {
        self.disks.borrow().iter().map(|disk| disk.spool().borrow().held_count()).sum()
    }

    fn take_buffer(&self) -> Vec<u8> {
        self.spare_buffers.borrow_mut().pop().unwrap_or_default()
    }

    fn give_buffer(&self, mut buffer: Vec<u8>) {
        let mut spare = self.spare_buffers.borrow_mut();
        if (1..=SPARE_BUFFER_SIZE_MAX).contains(&buffer.capacity()) && spare.len() < SPARE_BUFFERS_MAX {
            buffer.clear();
            spare.push(buffer);
        }
    }

    fn bare_line_ends(&self, peer: IpAddr) -> BareLineEnds {
        match is_in(&self.settings.borrow().normalised, peer) {
            true => BareLineEnds::Normalise,
            false => BareLineEnds::Refuse,
        }
    }

    /// A number that no other session has.
    fn next_session(&self) -> u64 {
        let number = self.sessions_count.get().wrapping_add(1);
        self.sessions_count.set(number);
        number
    }

    /// A place among the handshakes, if one is free, and one of those that `from` may have, if it is counted; given back when it is
    /// dropped.
    fn begin_handshake(self: &Rc<Self>, from: Option<IpAddr>) -> Option<Handshake> {
        let place = from.map(|ip| self.handshake_places.borrow().take(ip)).transpose().ok()?;
        let count = self.handshakes.get();
        (count < self.settings.borrow().handshakes_max).then(|| {
            self.handshakes.set(count + 1);
            Handshake { shard: self.clone(), _place: place }
        })
    }

    /// Whose `peer`'s share of what all share is, if it is counted.
    fn counted(&self, service: &Service, peer: IpAddr) -> Option<IpAddr> {
        let is_counted = service.is_guarded(peer) && !self.settings.borrow().admission.is_exempt(peer);
        is_counted.then_some(peer)
    }

    /// May another recipient be remembered now?
    fn admit_recipient(&self) -> Result<(), Refusal> {
        match self.envelope_memory.get() > self.settings.borrow().content_memory_max {
            true => Err(admission::NO_ROOM),
            false => Ok(()),
        }
    }

    /// May a message of this size come now?
    fn admit_message(&self, size: u64) -> Result<(), Refusal> {
        let disk = self.disk();
        if !disk.is_accepting() {
            return Err(admission::MEDIUM_FAILED);
        }
        if self.depth() >= self.settings.borrow().depth_max {
            return Err(admission::QUEUE_FULL);
        }
        if disk.has_room(size) { Ok(()) } else { Err(admission::NO_ROOM) }
    }
}

/// A handshake that is going on.
struct Handshake {
    shard: Rc<Shard>,
    _place: Option<Place>,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.shard.handshakes.set(self.shard.handshakes.get() - 1);
    }
}

/// Can this process make an io_uring? The ring is given back at once.
pub fn check_ring() -> std::io::Result<()> {
    let mut params = rustix::io_uring::io_uring_params::default();
    // SAFETY: a new ring's descriptor is owned by what is returned and closed with it; nothing is mapped or submitted.
    unsafe { rustix::io_uring::io_uring_setup(8, &mut params) }?;
    Ok(())
}

/// A random number that nobody outside can guess.
pub fn random() -> u64 {
    let mut octets = [0; 8];
    let mut filled = 0;
    while filled < octets.len() {
        filled += rustix::rand::getrandom(&mut octets[filled..], rustix::rand::GetRandomFlags::empty())
            .expect("the kernel has random numbers once it has booted");
    }
    u64::from_ne_bytes(octets)
}

/// Runs a shard to its end, inside its executor. Returns how many messages are left in its queue.
pub async fn run(plan: Plan) -> usize {
    let now = clock::now();
    let shard = Rc::new(Shard {
        handshakes: Cell::new(0),
        handshake_places: RefCell::new(plan.settings.handshake_places()),
        sessions_count: Cell::new(random() << 32),
        overload: RefCell::new(Overload::new(plan.settings.pressure.marks)),
        impatient_at: Cell::new(now),
        settings: RefCell::new(Rc::new(plan.settings)),
        handoff: Rc::new(Handoff::new(plan.outward, plan.outcomes)),
        damaged: plan.damaged,
        segment_size: plan.segment_size,
        sync: plan.sync,
        own_disk: OnceCell::new(),
        disks: RefCell::default(),
        listening: RefCell::default(),
        accepting: RefCell::default(),
        meters: Rc::new(Meters::new(plan.observer)),
        connections: RefCell::default(),
        emptied: Event::default(),
        ending: Cell::new(Ending::No),
        scratch: RefCell::new(vec![0; SCRATCH_SIZE].into_boxed_slice()),
        plaintext: RefCell::default(),
        spare_buffers: RefCell::default(),
        content_memory: Cell::new(0),
        envelope_memory: Cell::new(0),
        dates: clock::Dates::default(),
        taps: sessions::Taps::default(),
    });
    let disks: Vec<_> = plan.logs.into_iter().map(|log| shard.open(log)).collect();
    disks.iter().for_each(Disk::run);
    let is_first = shard.own_disk.set(disks[0].clone()).is_ok();
    assert!(is_first, "this is the only place");
    *shard.disks.borrow_mut() = disks;
    glommio::spawn_local(watch_deadlines(shard.clone(), plan.control.clone())).detach();
    std::future::poll_fn(|context| {
        plan.control.listen(context.waker());
        Poll::Ready(())
    })
    .await;
    shard.disk().ready().await;
    plan.injected.into_iter().for_each(|injected| shard.take_in(injected));
    shard.listen(plan.listeners);
    let _ = plan.progress.send(Progress::Ready);
    serve_mailboxes(&shard, &plan.reports, &plan.control, &plan.progress).await;
    let accepting = shard.accepting.take();
    for accepting in accepting {
        accepting.await;
    }
    let disks = shard.disks.borrow().clone();
    for disk in &disks {
        disk.finish().await;
    }
    wait_for_blocking_thread().await;
    shard.depth()
}

thread_local! {
    /// What this shard's blocking thread has been given and not given back.
    static BLOCKING: Cell<usize> = const { Cell::new(0) };
}

/// How long the end of a shard waits for its blocking thread.
const BLOCKING_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs on the shard's blocking thread.
async fn blocking<R: Send + 'static>(what: impl FnOnce() -> R + Send + 'static) -> R {
    BLOCKING.with(|count| count.set(count.get() + 1));
    let result = glommio::executor().spawn_blocking(what).await;
    BLOCKING.with(|count| count.set(count.get() - 1));
    result
}

/// Waits for the blocking thread: it panics if it has something to give back and the shard is gone.
async fn wait_for_blocking_thread() {
    let until = clock::now() + BLOCKING_TIMEOUT;
    while BLOCKING.with(Cell::get) > 0 && clock::now() < until {
        Timer::new(Duration::from_millis(1)).await;
    }
}

/// Takes reports and orders as they come, until the order to finish.
async fn serve_mailboxes(
    shard: &Rc<Shard>,
    reports: &OutcomeReceiver,
    control: &Control,
    progress: &crossbeam_channel::Sender<Progress>,
) {
    let mut is_drained = false;
    std::future::poll_fn(|context| {
        loop {
            control.listen(context.waker());
            // Before the reports: whoever orders to finish has sent the last of them before.
            let ending = control.ending();
            while let Some(report) = reports.try_recv() {
                let disks = shard.disks.borrow();
                if let Some(disk) = disks.iter().find(|disk| disk.log() == report.id.log) {
                    disk.handle_report(&report);
                }
            }
            for order in control.take_orders() {
                order(shard);
            }
            if ending != shard.ending.get() {
                shard.ending.set(ending);
                shard.stop_listening();
                shard.connections.borrow().iter().for_each(|(_, connection)| connection.wake());
            }
            if ending == Ending::Finish {
                control.end_orders();
                return Poll::Ready(());
            }
            let is_empty = shard.connections.borrow().is_empty();
            if ending != Ending::No && is_empty && !std::mem::replace(&mut is_drained, true) {
                let _ = progress.send(Progress::Drained);
            }
            if ending != Ending::No && shard.emptied.poll(context).is_ready() {
                continue;
            }
            if !reports.prepare_to_sleep() {
                return Poll::Pending;
            }
        }
    })
    .await;
}

/// Wakes connections whose time is over. Twenty thousand take some fifty microseconds, four times a second. The mailboxes are
/// looked at too: a worker that hangs in an attempt has not rung for the reports before it; and backlogs, for the channel they
/// wait for is shared with other shards.
async fn watch_deadlines(shard: Rc<Shard>, control: Arc<Control>) {
    loop {
        Timer::new(DEADLINES_INTERVAL).await;
        let now = clock::now();
        shard.measure(now);
        shard.connections.borrow().iter().for_each(|(_, connection)| connection.handle_time(now));
        shard.disks.borrow().iter().for_each(|disk| {
            disk.note_time(now);
            disk.feed();
        });
        control.ring();
    }
}
