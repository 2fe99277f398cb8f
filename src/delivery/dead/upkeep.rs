//! The threads that look after the dead letters while the gateway runs.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use tracing::error;

use super::resend::Resender;
use super::retention::Keeper;
use super::{DeadLetters, Intake};
use crate::scheduling::yield_to_shards;

/// One thread that sends letters again, and one that removes old ones: neither waits for the other, whatever it waits for.
/// Like the workers they never pre-empt a shard.
pub struct Upkeep {
    threads: Vec<JoinHandle<()>>,
    /// Dropped to tell the threads to stop: nothing is ever sent.
    running: Sender<()>,
}

impl Upkeep {
    /// Starts them. Letters that were asked for go to `intake`; those older than `retention` are removed, none where it is zero.
    pub fn start(dead: Arc<DeadLetters>, intake: Box<dyn Intake>, retention: Duration) -> io::Result<Upkeep> {
        let (running, stop) = bounded(0);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.into()).spawn(move || {
                yield_to_shards();
                run();
            })
        };
        let mut resender = Resender::new(dead.clone(), intake, stop.clone());
        let mut threads = vec![spawn("dead-resend", Box::new(move || resender.run()))?];
        if !retention.is_zero() {
            let mut keeper = Keeper::new(dead, retention, stop);
            threads.push(spawn("dead-retention", Box::new(move || keeper.run()))?);
        }
        Ok(Upkeep { threads, running })
    }

    /// Ends both after the letter they have in hand, and waits for that.
    pub fn stop(self) {
        drop(self.running);
        for thread in self.threads {
            if thread.join().is_err() {
                error!("a thread that looks after the dead letters ended by a panic");
            }
        }
    }
}
