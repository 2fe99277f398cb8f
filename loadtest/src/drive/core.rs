//! One core's part of a run: its connections, its schedule, what it measures.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use glommio::timer::sleep;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::connection;
use super::siege;
use super::tls::Client;
use super::{Control, News, NewsSender};
use crate::content::{Contents, MessageId};
use crate::ledger::{Entry, Writer};
use crate::measure::{Failure, Figures, INTERVAL, Interval, Phase, nanoseconds};
use crate::plan::{Plan, TlsMode};
use crate::schedule::{Due, Schedule, Window};
use crate::smtp::{Listener, Message, Outcome, Reply, Rules};

/// Connections of a core that are being made at once: a listener's backlog is bounded, and a SYN that finds no room in it
/// is sent again after a second.
const CONNECTING_MAX: usize = 128;
/// Between two looks at deadlines, the interval's end and the ledger.
const TICK: Duration = Duration::from_millis(10);
/// A message that falls due sooner than this is waited for awake: a timer would be late by as much.
const AWAKE: Duration = Duration::from_micros(150);
/// Octets that a core receives in one call.
const SCRATCH_SIZE: usize = 64 * 1024;

/// What every core is given.
#[derive(Clone)]
pub struct Task {
    pub plan: Arc<Plan>,
    pub contents: Arc<Contents>,
    pub tls: Option<Arc<Client>>,
    /// Present where there are hostile clients.
    pub hostile_tls: Option<Arc<Client>>,
    pub run: u32,
    pub control: Arc<Control>,
}

/// One core's world.
pub struct Core {
    pub task: Task,
    pub rules: Rc<Rules>,
    /// What is received goes through this,
    pub scratch: RefCell<Vec<u8>>,
    /// and what is sent through this.
    pub outgoing: RefCell<Vec<u8>>,
    pub tally: RefCell<Tally>,
    pub connecting: Rc<glommio::sync::Semaphore>,
    /// Present from the beginning of the load.
    schedule: RefCell<Option<Schedule>>,
    /// Connections that wait for a message or for the end.
    idle: RefCell<Vec<Waker>>,
    /// Every connection's deadline.
    deadlines: RefCell<Vec<Rc<Deadline>>>,
    random: RefCell<SmallRng>,
    is_over: Cell<bool>,
}

/// When a connection gives up waiting.
#[derive(Default)]
pub struct Deadline {
    at: Cell<Option<Instant>>,
    waker: RefCell<Option<Waker>>,
}

impl Deadline {
    /// Whether it has passed.
    pub fn is_over(&self) -> bool {
        self.at.get().is_some_and(|at| Instant::now() >= at)
    }

    /// Sets or clears it.
    pub fn set(&self, at: Option<Instant>) {
        self.at.set(at);
    }

    /// Wakes the task of `context` when it passes.
    pub fn register(&self, waker: &Waker) {
        let mut kept = self.waker.borrow_mut();
        if !kept.as_ref().is_some_and(|kept| kept.will_wake(waker)) {
            *kept = Some(waker.clone());
        }
    }
}

/// What a connection does next.
pub enum Turn {
    Begin(Message),
    Wait,
    End,
}

/// What is measured, and where it is told.
pub struct Tally {
    pub figures: Figures,
    window: Option<Window>,
    interval: Interval,
    ledger: Option<Writer>,
    ledger_fault: Option<io::Error>,
}

/// Runs one core's part to its end.
///
/// # Errors
/// Those of the ledger: a run whose ledger is not whole is none.
pub async fn run(task: Task, index: usize, news: NewsSender) -> io::Result<()> {
    let plan = task.plan.clone();
    let ledger = plan.ledger.as_deref().map(Writer::append).transpose()?;
    let core_count = plan.cores.len();
    let connections = plan.connections / core_count + usize::from(index < plan.connections % core_count);
    let rules = Rules {
        host: plan.host.clone(),
        sender: plan.envelope.sender.clone(),
        recipient: plan.envelope.recipient.clone(),
        recipient_count: plan.envelope.recipient_count,
        is_pipelined: plan.is_pipelined,
        is_chunking: plan.is_chunking,
        is_starttls: plan.tls.as_ref().is_some_and(|tls| tls.mode == TlsMode::StartTls),
    };
    let core = Rc::new(Core {
        rules: Rc::new(rules),
        scratch: RefCell::new(vec![0; SCRATCH_SIZE]),
        outgoing: RefCell::default(),
        tally: RefCell::new(Tally {
            figures: Figures::default(),
            window: None,
            interval: Interval::new(0),
            ledger,
            ledger_fault: None,
        }),
        connecting: Rc::new(glommio::sync::Semaphore::new(CONNECTING_MAX as u64)),
        schedule: RefCell::new(None),
        idle: RefCell::default(),
        deadlines: RefCell::default(),
        random: RefCell::new(SmallRng::seed_from_u64(plan.seed ^ (index as u64).wrapping_mul(0x9E37_79B9))),
        is_over: Cell::new(false),
        task,
    });
    let mut tasks = Vec::with_capacity(connections);
    for n in 0..connections {
        let source = match plan.sources.as_slice() {
            [] => None,
            sources => Some(sources[(n * core_count + index) % sources.len()]),
        };
        let deadline = Rc::new(Deadline::default());
        core.deadlines.borrow_mut().push(deadline.clone());
        tasks.push(glommio::spawn_local(connection::run(core.clone(), source, deadline)));
    }
    let ticker = glommio::spawn_local(tick(core.clone(), index, news.clone()));
    let hostile = match plan.hostile.is_empty() || !plan.hostile_cores.is_empty() {
        true => None,
        false => Some(glommio::spawn_local(siege::run(core.task.clone(), index, news.clone()))),
    };
    for task in tasks {
        task.await;
    }
    if plan.connections == 0 {
        siege::wait_for_end(&core.task).await;
    }
    core.task.control.loaded_cores.fetch_sub(1, Ordering::Relaxed);
    if let Some(hostile) = hostile {
        hostile.await;
    }
    core.task.control.hang_bell(index, None);
    ticker.cancel().await;
    core.end(&news)
}

/// Looks at the clock for everything of a core that is not woken by its socket.
async fn tick(core: Rc<Core>, index: usize, news: NewsSender) {
    poll_fn(|context| {
        core.task.control.hang_bell(index, Some(context.waker().clone()));
        Poll::Ready(())
    })
    .await;
    loop {
        let now = Instant::now();
        core.handle_time(now, index, &news);
        let wait = core.wake_for_due(now).min(TICK);
        if wait < AWAKE {
            glommio::executor().yield_task_queue_now().await;
        } else {
            sleep(wait - AWAKE / 2).await;
        }
    }
}

impl Core {
    /// What a connection that is free does at `now`.
    pub fn turn(&self, now: Instant) -> Turn {
        if self.is_stopped() {
            return Turn::End;
        }
        let mut schedule = self.schedule.borrow_mut();
        let Some(schedule) = &mut *schedule else {
            return Turn::Wait;
        };
        match schedule.next(now) {
            Due::Now { number, intended } => Turn::Begin(self.message(number, intended, now)),
            Due::At(_) => Turn::Wait,
            Due::Over => {
                self.is_over.set(true);
                Turn::End
            }
        }
    }

    fn message(&self, number: u64, intended: Instant, now: Instant) -> Message {
        let contents = &self.task.contents;
        let content = contents.choose(&mut self.random.borrow_mut());
        if self.task.plan.rate.is_some() {
            let tally = &mut *self.tally.borrow_mut();
            if tally.window.is_some_and(|window| window.contains(intended)) {
                let lag = now.saturating_duration_since(intended);
                tally.figures.lag.saturating_record(nanoseconds(lag));
            }
        }
        Message {
            id: MessageId { run: self.task.run, number },
            content,
            size: contents.size(content),
            is_8bit: contents.is_8bit(content),
            intended,
        }
    }

    /// Whether nothing more is to begin.
    pub fn is_ending(&self) -> bool {
        self.is_over.get() || self.is_stopped()
    }

    fn is_stopped(&self) -> bool {
        self.task.control.is_stopped.load(Ordering::Relaxed)
    }

    /// Wakes `waker` when there may be something to do for a connection that is free.
    pub fn wait_for_turn(&self, waker: &Waker) {
        self.idle.borrow_mut().push(waker.clone());
    }

    /// Notes that a connection was greeted for the first time, or failed.
    pub fn arrived(&self) {
        self.task.control.arrived.fetch_add(1, Ordering::Relaxed);
    }

    fn handle_time(&self, now: Instant, index: usize, news: &NewsSender) {
        if self.schedule.borrow().is_none()
            && let Some(&begin) = self.task.control.begin.get()
        {
            let window = Window::new(&self.task.plan, begin);
            let plan = &self.task.plan;
            *self.schedule.borrow_mut() =
                Some(Schedule::new(plan, index, plan.cores.len(), window, &self.task.control.tickets));
            self.tally.borrow_mut().window = Some(window);
        }
        let tally = &mut *self.tally.borrow_mut();
        tally.handle_time(now, news);
        for deadline in &*self.deadlines.borrow() {
            if deadline.at.get().is_some_and(|at| now >= at)
                && let Some(waker) = deadline.waker.borrow_mut().take()
            {
                waker.wake();
            }
        }
    }

    /// Wakes a free connection for each message that is due; how long until the next.
    fn wake_for_due(&self, now: Instant) -> Duration {
        let mut idle = self.idle.borrow_mut();
        if self.is_ending() {
            idle.drain(..).for_each(Waker::wake);
            return TICK;
        }
        let schedule = self.schedule.borrow();
        match schedule.as_ref().map(|schedule| schedule.peek(now)) {
            Some(Due::At(at)) => at.saturating_duration_since(now),
            // No connection may be well enough to be told.
            Some(Due::Over) => {
                self.is_over.set(true);
                idle.drain(..).for_each(Waker::wake);
                TICK
            }
            Some(_) => {
                // In an open loop one is enough for each turn of this loop: the connection takes what is due, and
                // the next turn comes at once. In a closed loop all of them have something to do.
                match self.task.plan.rate {
                    Some(_) => idle.pop().into_iter().for_each(Waker::wake),
                    None => idle.drain(..).for_each(Waker::wake),
                }
                if idle.is_empty() { TICK } else { Duration::ZERO }
            }
            None => TICK,
        }
    }

    fn end(&self, news: &NewsSender) -> io::Result<()> {
        let mut tally = self.tally.borrow_mut();
        let now = Instant::now();
        if let Some(schedule) = &mut *self.schedule.borrow_mut()
            && !self.is_stopped()
        {
            let until = self.task.plan.rate.and(tally.window).and_then(|window| window.until);
            for due in schedule.never_begun() {
                // It waited at least until the window's end: to leave it out would hide the wait.
                let waited = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(due));
                tally.figures.never_begun += 1;
                tally.figures.lag.saturating_record(nanoseconds(waited));
                tally.figures.record(Phase::Transaction, waited);
            }
        }
        tally.handle_time(now, news);
        let interval = std::mem::replace(&mut tally.interval, Interval::new(usize::MAX));
        let _ = news.send(News::Interval(Box::new(interval)));
        let _ = news.send(News::Reached(now));
        let figures = std::mem::take(&mut tally.figures);
        let _ = news.send(News::Ended(Box::new(figures)));
        tally.ledger_fault.take().map_or(Ok(()), Err)
    }
}

impl Tally {
    /// Notes a failure of a connection.
    pub fn failed(&mut self, failure: Failure, words: &dyn std::fmt::Display) {
        self.figures.record_failure(failure, words);
        self.interval.failed += 1;
    }

    /// Whether octets sent and received now count.
    pub fn is_counting(&self, now: Instant) -> bool {
        self.window.is_some_and(|window| window.contains(now))
    }

    fn handle_time(&mut self, now: Instant, news: &NewsSender) {
        if let Some(ledger) = &mut self.ledger
            && let Err(error) = ledger.write()
        {
            self.ledger_fault.get_or_insert(error);
        }
        let Some(window) = self.window else { return };
        while now >= window.begin + INTERVAL * (self.interval.index as u32 + 1) {
            let next = Interval::new(self.interval.index + 1);
            let interval = std::mem::replace(&mut self.interval, next);
            let _ = news.send(News::Interval(Box::new(interval)));
        }
    }
}

impl Listener for Tally {
    fn replied(
        &mut self,
        phase: Phase,
        took: Duration,
        reply: &Reply<'_>,
        message: Option<&Message>,
        now: Instant,
    ) {
        if phase == Phase::EndOfData && reply.code == 250 {
            self.interval.end_of_data.saturating_record(nanoseconds(took));
        }
        // Connections are as a rule made before counting begins, and are told of whenever they are made.
        let counts =
            message.is_none_or(|message| self.window.is_some_and(|window| window.counts(message, now)));
        if counts {
            self.figures.record_reply(phase, reply.code, reply.octets);
            // How soon a server refuses says nothing about how soon it accepts.
            if reply.code < 400 {
                self.figures.record(phase, took);
            }
        }
    }

    fn ended(&mut self, message: &Message, outcome: Outcome, now: Instant) {
        let counts = self.window.is_some_and(|window| window.counts(message, now));
        let took = now.saturating_duration_since(message.intended);
        let Outcome::Accepted(recipients) = outcome else {
            self.interval.failed += 1;
            self.figures.failed += u64::from(counts);
            return;
        };
        if let (Some(ledger), Some(window)) = (&mut self.ledger, self.window) {
            let milliseconds = now.saturating_duration_since(window.begin).as_millis() as u64;
            ledger.note(message.id.number, Entry { content: message.content, recipients, milliseconds });
        }
        self.interval.accepted += 1;
        self.interval.content_octets += message.size as u64;
        self.interval.transaction.saturating_record(nanoseconds(took));
        if self.window.is_some_and(|window| window.is_answer(message, now)) {
            self.figures.answered += 1;
            self.figures.answered_octets += message.size as u64;
        }
        if counts {
            self.figures.accepted += 1;
            self.figures.recipients += recipients as u64;
            self.figures.content_octets += message.size as u64;
            self.figures.record(Phase::Transaction, took);
        }
    }
}
