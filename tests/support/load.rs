//! Many sessions at once that send numbered messages and write the ledger.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::client::Client;
use super::ledger::{self, Ledger};

/// Between two attempts to connect, or after a refusal: a client that hammers would measure itself.
const PAUSE: Duration = Duration::from_millis(5);

/// Sessions that send until they are told to stop. When the gateway goes away they try to come back.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `sessions` sessions.
    pub fn start(address: SocketAddr, ledger: &Arc<Ledger>, sessions: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..sessions)
            .map(|_| {
                let (stop, ledger) = (stop.clone(), ledger.clone());
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        // An error is the gateway's end or its refusal of the session; the loop asks again.
                        let _ = send_until(&stop, address, &ledger);
                        thread::sleep(PAUSE);
                    }
                })
            })
            .collect();
        Load { stop, threads }
    }

    /// Tells every session to stop and waits for it: each message has then its reply, or will never have one.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn send_until(stop: &AtomicBool, address: SocketAddr, ledger: &Ledger) -> io::Result<()> {
    let mut client = Client::try_greet(address)?;
    while !stop.load(Ordering::Relaxed) {
        let number = ledger.number();
        let reply = client.transact("load@client.test", &["inbox@mx.test"], &ledger::content(number))?;
        if reply.code == 250 {
            ledger.acknowledge(number);
        } else {
            ledger.refuse(&reply.line());
            client.send(b"RSET\r\n")?;
            client.reply()?;
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}
