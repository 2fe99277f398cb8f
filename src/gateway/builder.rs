//! The gateway in other people's programs: what they say ([`Builder`]), what is made of it ([`Gateway`]), and what runs ([`Handle`]).
//!
//! Nothing happens before it is run or started: building reads the configuration and finds what is wrong with it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread;

use super::running::{Live, Running};
use super::sentinel::Guarded;
use super::{Ended, Error, Extensions, Reread};
use crate::admin::{DrainOrder, Operations, Reloaded, Stage};
use crate::config::{Brought, Config, ConfigError, Program, Queue, Sources, System};
use crate::delivery::{BlockingDelivery, Delivery, Means};
use crate::policy::Policy;
use crate::telemetry::Observer;

/// Attempts at a time of a transport, where nothing is said: of one that waits, and of one that has a thread for each.
const CONCURRENCY: usize = 32;
const CONCURRENCY_BLOCKING: usize = 8;

/// A gateway that has a good configuration, and has not been started.
///
/// ```no_run
/// use incoming::Gateway;
///
/// let gateway = Gateway::builder().listen("127.0.0.1:2525").data("/var/lib/mail").accept(["example.com"]).build()?;
/// gateway.run()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Gateway {
    config: Config,
    sayings: Arc<Sayings>,
    extensions: Extensions,
}

/// What a [`Gateway`] is to be.
///
/// Of one setting, what stands further down in this list counts:
/// 1. the default (`docs/CONFIGURATION.md` has each);
/// 2. a file ([`Builder::sources`]), or a [`Config`] of the program's own instead of it ([`Builder::config`]);
/// 3. environment and command line, where the sources have them;
/// 4. what the program says with [`Builder::set`], and the methods that are short for it.
#[derive(Default)]
pub struct Builder {
    sources: Sources,
    program: Program,
    extensions: Extensions,
}

/// Where the configuration comes from, each time it is read.
struct Sayings(Mutex<(Sources, Program)>);

impl Sayings {
    fn read(&self) -> Result<Config, ConfigError> {
        let (sources, program) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Config::load_for(program, sources, &System::here())
    }
}

impl Gateway {
    /// Of which nothing is said yet: it would listen on 127.0.0.1:2525, take mail for every domain from this machine, and deliver it to
    /// a Maildir below the folder `incoming-data`.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The configuration, every default included.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Reads the files that the configuration names, as a start would, and says what is wrong with them.
    pub fn check(&self) -> Result<(), Error> {
        super::check_files(&self.config)
    }

    /// Takes mail until SIGTERM, SIGINT or an operator's order says to stop, and finishes what was begun: the whole of a program. Says
    /// on standard error where it listens, and that it is ready.
    ///
    /// The process is its own from then on: it handles SIGTERM, SIGINT (a second one ends at once) and SIGHUP (the configuration is
    /// read anew), ends the process on a panic of any thread, takes sockets from systemd and tells it how it is, and takes part in
    /// upgrades, which start the program at the same path with the same arguments.
    pub fn run(self) -> Result<Ended, Error> {
        let (config, reread, extensions) = self.into_parts();
        super::run(config, reread, extensions)
    }

    /// Starts taking mail beside whatever else the program does. When this returns it listens, and accepts.
    ///
    /// No signal is handled and no panic hook is set; standard error is left alone. A shard never dies alone all the same: where a
    /// panic ends the thread of one, for instance in a [`Policy`], and where an [`Observer`] panics on whatever thread, the process is
    /// aborted, for a gateway that is half alive would keep taking connections for nobody; nothing acknowledged is lost by that. A
    /// panic of a [`Delivery`] defers its message.
    ///
    /// Several may run in one process, each with a data folder of its own; unless told otherwise ([`Builder::set`]: `shards`, `cores`) each
    /// takes all cores.
    pub fn start(self) -> Result<Handle, Error> {
        let (sayings, end) = (self.sayings.clone(), Arc::<End>::default());
        let is_in_memory = self.config.spool.queue == Queue::Memory;
        let (config, reread, extensions) = self.into_parts();
        // First, so that nothing runs if there is no thread to be had for its end.
        let (give, given) = crossbeam_channel::bounded::<Running>(1);
        let told = end.clone();
        let serve = move || {
            let Ok(running) = given.recv() else { return };
            let ended = running.serve_orders();
            if let Ok(ended) = ended {
                super::tell_end(ended, is_in_memory);
            }
            told.tell(ended);
        };
        let thread = thread::Builder::new().name("gateway".into()).spawn(serve);
        thread.map_err(|e| Error(format!("cannot start the gateway's thread: {e}")))?;
        let running = super::start(config, reread, extensions)?;
        let live = Arc::downgrade(running.live());
        let addresses = running.live().config().listeners.iter().map(|listener| listener.address).collect();
        give.send(running).expect("the thread waits for it");
        Ok(Handle { live, end, sayings, addresses })
    }

    fn into_parts(self) -> (Config, Reread, Extensions) {
        let sayings = self.sayings;
        (self.config, Box::new(move || sayings.read()), self.extensions)
    }
}

impl Builder {
    /// Reads the configuration as the program `incoming` does: from a file, the environment and a command line. All of it is read again
    /// on a reload.
    pub fn sources(mut self, sources: Sources) -> Self {
        self.sources = sources;
        self
    }

    /// Has this configuration, instead of that of a file.
    pub fn config(mut self, config: &Config) -> Self {
        self.program.text = Some(config.to_toml());
        self
    }

    /// Any setting: its key, as `spool.queue`, and its value, as in the environment; the items of a list with commas between them.
    ///
    /// ```
    /// # use incoming::Gateway;
    /// let gateway = Gateway::builder().set("smtp.message_size_max", "10 MiB").set("shards", "1").build()?;
    /// assert_eq!(gateway.config().smtp.message_size_max, 10 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.program.settings.push((key.into(), value.into()));
        self
    }

    /// The gateway's name, to be seen in its greeting: `hostname`. Without it, the system's.
    pub fn hostname(self, name: impl Into<String>) -> Self {
        self.set("hostname", name)
    }

    /// Listens at this address and port, instead of where the configuration says; each time it is called, at one more. Port 0: the
    /// system chooses one ([`Handle::addresses`]).
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.program.listen.push(address.into());
        self
    }

    /// The folder of its own files, the spool among them: `data`. It is made if need be, and is one gateway's at a time.
    pub fn data(self, folder: impl AsRef<Path>) -> Self {
        self.set("data", folder.as_ref().to_string_lossy())
    }

    /// Takes mail for these domains: `accept.domains`. Where nothing is said, mail for every domain is taken, if only this machine can
    /// reach the listeners; otherwise [`Builder::build`] fails.
    pub fn accept<D: Into<String>>(self, domains: impl IntoIterator<Item = D>) -> Self {
        let domains: Vec<String> = domains.into_iter().map(Into::into).collect();
        self.set("accept.domains", domains.join(","))
    }

    /// Asks `policy` too, behind those of the configuration, in the order given.
    pub fn policy(mut self, policy: impl Policy + 'static) -> Self {
        self.extensions.policies.push(Arc::new(Guarded(policy)));
        self
    }

    /// Brings a transport along, which configuration and routes know by this name; in a file it is
    ///
    /// ```toml
    /// [transport.name]
    /// type = "embedded"
    /// ```
    ///
    /// and need not be there, unless something else is to be said of it (`concurrency`, `rate`, `breaker_failures`, `breaker_interval`).
    /// Where the configuration has no other transport, the first that is brought along gets all mail; otherwise those that
    /// `delivery.transport` and the routes name get theirs.
    pub fn delivery(self, name: impl Into<String>, delivery: impl Delivery + 'static) -> Self {
        self.bring(name.into(), Means::Async(Arc::new(delivery)), CONCURRENCY)
    }

    /// The same of a transport that blocks: as many threads are its own as it makes attempts at a time, 8 unless `concurrency` says
    /// otherwise.
    pub fn blocking_delivery(
        self,
        name: impl Into<String>,
        delivery: impl BlockingDelivery + 'static,
    ) -> Self {
        self.bring(name.into(), Means::Blocking(Arc::new(delivery)), CONCURRENCY_BLOCKING)
    }

    fn bring(mut self, name: String, means: Means, concurrency: usize) -> Self {
        self.extensions.deliveries.insert(name.clone(), means);
        self.program.transports.push(Brought { name, concurrency });
        self
    }

    /// Tells `observer` what happens; the last that is given.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.extensions.observer = Some(Arc::new(Guarded(observer)));
        self
    }

    /// Reads the configuration, and says what is wrong with it, and where. Files that it names, as certificates, are not read yet, and
    /// nothing is bound: [`Gateway::start`] and [`Gateway::run`] do that, all of it or nothing.
    pub fn build(self) -> Result<Gateway, ConfigError> {
        let Builder { sources, program, extensions } = self;
        let mut names = BTreeSet::new();
        if let Some(twice) = program.transports.iter().find(|brought| !names.insert(&brought.name)) {
            let name = &twice.name;
            return Err(ConfigError::of_program(
                format!("delivery {name:?}"),
                "a transport of this name is brought along twice".into(),
            ));
        }
        let sayings = Arc::new(Sayings(Mutex::new((sources, program))));
        Ok(Gateway { config: sayings.read()?, sayings, extensions })
    }
}

/// A gateway that was started. Any thread may have it, and clones of it. Without it the gateway goes on.
///
/// Where the gateway has ended, by whosever order, there is nothing to be told: orders are not heard.
#[derive(Clone)]
#[must_use = "without it the gateway cannot be stopped"]
pub struct Handle {
    live: Weak<Live>,
    end: Arc<End>,
    sayings: Arc<Sayings>,
    addresses: Arc<[SocketAddr]>,
}

/// How it ended, once it has.
#[derive(Default)]
struct End {
    ended: Mutex<Option<Result<Ended, Error>>>,
    told: Condvar,
}

impl End {
    fn tell(&self, ended: Result<Ended, Error>) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
        self.told.notify_all();
    }

    fn wait(&self) -> Result<Ended, Error> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*ended {
                Some(ended) => return ended.clone(),
                None => ended = self.told.wait(ended).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Handle {
    /// Where it listens, in the configured order; with the ports that the system has chosen.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        match self.live.upgrade() {
            Some(live) => live.config().listeners.iter().map(|listener| listener.address).collect(),
            None => self.addresses.to_vec(),
        }
    }

    /// The configuration in force; none after the end.
    pub fn config(&self) -> Option<Arc<Config>> {
        self.live.upgrade().map(|live| live.config())
    }

    /// How far it is in its life; none after the end.
    pub fn stage(&self) -> Option<Stage> {
        self.live.upgrade().map(|live| live.stage())
    }

    /// Reads the configuration and the files that it names anew, and puts them in force without a session being dropped; or says what is
    /// wrong with them and changes nothing. Takes up to seconds.
    pub fn reload(&self) -> Result<Reloaded, Error> {
        self.live()?.reload().map_err(Error)
    }

    /// The same with another configuration, which stands in place of all that the builder was told, from now on. What the program has
    /// brought along stays.
    ///
    /// ```no_run
    /// # fn double(handle: incoming::Handle) -> Result<(), Box<dyn std::error::Error>> {
    /// if let Some(config) = handle.config() {
    ///     let mut config = incoming::config::Config::clone(&config);
    ///     config.smtp.message_size_max *= 2;
    ///     handle.reload_with(&config)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn reload_with(&self, config: &Config) -> Result<Reloaded, Error> {
        let live = self.live()?;
        let said = |sayings: &Sayings, next| {
            std::mem::replace(&mut *sayings.0.lock().unwrap_or_else(PoisonError::into_inner), next)
        };
        let transports = {
            let sayings = self.sayings.0.lock().unwrap_or_else(PoisonError::into_inner);
            sayings.1.transports.clone()
        };
        let program = Program { text: Some(config.to_toml()), transports, ..Program::default() };
        let before = said(&self.sayings, (Sources::default(), program));
        live.reload().map_err(|words| {
            said(&self.sayings, before);
            Error(words)
        })
    }

    /// Begins to stop: no new sessions; those that there are may finish, and, if that is ordered, what is queued is delivered. What is
    /// left then is delivered after the next start. Only the first order counts.
    pub fn drain(&self, order: DrainOrder) {
        if let Some(live) = self.live.upgrade() {
            live.drain(order);
        }
    }

    /// Waits for the end, and says how it ended. The folder and the ports are free then.
    pub fn wait(&self) -> Result<Ended, Error> {
        self.end.wait()
    }

    /// Drains as configured (`drain_timeout`), and waits for the end.
    pub fn stop(&self) -> Result<Ended, Error> {
        self.drain(DrainOrder::default());
        self.wait()
    }

    fn live(&self) -> Result<Arc<Live>, Error> {
        self.live.upgrade().ok_or_else(|| Error("the gateway has ended".into()))
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("config", &self.config).finish_non_exhaustive()
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("sources", &self.sources)
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}
