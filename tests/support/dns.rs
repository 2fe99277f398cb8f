//! A real DNS server with zones of the test's own.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{tools, wait};

/// A DNS server on a port of its own; killed when it is dropped.
pub struct Unbound {
    child: Child,
    /// Where it answers.
    pub address: SocketAddr,
}

impl Unbound {
    /// With these zones, in lines of its configuration; what it needs is in `folder`.
    #[track_caller]
    pub fn start(folder: &Path, zones: &str) -> Self {
        for _ in 0..20 {
            // Free a moment ago; if somebody else has it by now unbound ends, and another is tried.
            let address =
                UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
            let config = folder.join("unbound.conf");
            let text = format!(
                "server:\n directory: {folder:?}\n chroot: \"\"\n username: \"\"\n pidfile: \"\"\n use-syslog: no\n \
                 interface: 127.0.0.1\n port: {}\n num-threads: 1\n module-config: \"iterator\"\n{zones}\n\
                 remote-control:\n control-enable: no\n",
                address.port()
            );
            std::fs::write(&config, text).expect("its configuration");
            let mut command = Command::new(tools::program("unbound"));
            command
                .arg("-dd")
                .arg("-c")
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let child = command.spawn().unwrap_or_else(|e| panic!("unbound: {e}"));
            let mut unbound = Unbound { child, address };
            if unbound.answers() {
                return unbound;
            }
        }
        panic!("unbound does not start");
    }

    /// Waits until it answers; not if it has ended.
    fn answers(&mut self) -> bool {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.connect(self.address).expect("a way to it");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        // A question for the root's addresses.
        let question = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1];
        let answered = wait::poll(wait::PATIENCE, || {
            if self.child.try_wait().expect("its status").is_some() {
                return Some(false);
            }
            let _ = socket.send(&question);
            socket.recv(&mut [0; 512]).is_ok().then_some(true)
        });
        answered.expect("unbound answers or ends")
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
