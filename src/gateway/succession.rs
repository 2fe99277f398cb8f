//! One process takes over from another, and no connection is refused: the old one starts the new one, which takes its listening sockets
//! and, when the old one has ended, its logs.
//!
//! They speak over a socket that is the new one's standard input:
//!
//! ```text
//! old                                               new (the same command line, from the same path)
//!  │ starts it ──────────────────────────────────────▶ reads its configuration, and checks what it names
//!  │ ◀──────────────────────────────────────── checked ┤
//!  │ accepts no more; finishes its greylists;          │
//!  │ ends its admin API and what sends dead letters    │
//!  ├ the lock of the data, the listening sockets ─────▶│ starts its shards, with logs of their own
//!  │ ◀──────────────────────────────────────── serving ┤
//!  │ sessions finish, attempts end                     │ takes mail
//!  ╳ ends ────────────────────────────── end of file ─▶│ adopts the logs of the old one, and delivers what is in them
//! ```
//!
//! Connections that come between the two wait in the sockets' queues, which both processes share. The lock is never free: it is one
//! open file in both. If the new one ends before it serves, the old one goes on as if nothing had been.
//!
//! Invariant: a log is written by one process at a time. The new one opens those of the old one only when that has ended, which the end
//! of the file says, whatever it died of.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::systemd;

/// Says to a process that its standard input is the socket of the one that it succeeds.
const VARIABLE: &str = "_INCOMING_SUCCEEDS";
/// How long the new one may take to check its configuration, and then to serve: its logs are empty.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// Descriptors in one message (the kernel takes 253).
const DESCRIPTORS_MAX: usize = 64;
const CHECKED: u8 = b'c';
const SERVING: u8 = b's';
/// With descriptors: more come.
const MORE: u8 = b'm';
/// With the last of them.
const LAST: u8 = b'l';
/// The same, of a process whose queue is in memory.
const LAST_IN_MEMORY: u8 = b'L';

/// Where this program was when it started: whoever upgrades puts the new one in its place.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Remembers where this program is. To be called before anybody may replace it.
pub fn remember_program() {
    if let Ok(path) = std::env::current_exe() {
        let _ = PROGRAM.set(path);
    }
}

/// The old process's end.
pub struct Successor {
    child: Child,
    stream: UnixStream,
}

impl Successor {
    /// Starts the program that is now where this one was, with the same arguments.
    pub fn start() -> io::Result<Self> {
        let program =
            PROGRAM.get().ok_or_else(|| io::Error::other("it is not known where this program is"))?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(STEP_TIMEOUT))?;
        ours.set_write_timeout(Some(STEP_TIMEOUT))?;
        let mut command = Command::new(program);
        command
            .args(std::env::args_os().skip(1))
            .env(VARIABLE, "1")
            .stdin(Stdio::from(OwnedFd::from(theirs)));
        for own in systemd::OWN_VARIABLES {
            command.env_remove(own);
        }
        let child = command.spawn()?;
        Ok(Successor { child, stream: ours })
    }

    /// Waits until its configuration is checked.
    pub fn wait_until_checked(&mut self) -> Result<(), String> {
        self.wait_for(CHECKED, "it had checked its configuration")
    }

    /// Gives it the lock and the sockets, and waits until it serves.
    pub fn hand_over<'a>(
        &mut self,
        lock: &File,
        is_in_memory: bool,
        sockets: impl Iterator<Item = &'a TcpListener>,
    ) -> Result<(), String> {
        let descriptors: Vec<_> =
            std::iter::once(lock.as_fd()).chain(sockets.map(|socket| socket.as_fd())).collect();
        let mut groups = descriptors.chunks(DESCRIPTORS_MAX).peekable();
        while let Some(group) = groups.next() {
            let word = [match (groups.peek(), is_in_memory) {
                (Some(_), _) => MORE,
                (None, false) => LAST,
                (None, true) => LAST_IN_MEMORY,
            }];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(group)), "there is room for a group");
            sendmsg(&self.stream, &[IoSlice::new(&word)], &mut ancillary, SendFlags::NOSIGNAL)
                .map_err(|e| format!("the sockets could not be handed over: {e}"))?;
        }
        self.wait_for(SERVING, "it served")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// It serves: it goes on for itself, and learns of our end by the end of this stream, which is open until then.
    pub fn release(self) {
        std::mem::forget(self.stream);
    }

    /// It is not wanted any more.
    pub fn end(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn wait_for(&mut self, word: u8, what: &str) -> Result<(), String> {
        let mut octet = [0];
        match self.stream.read(&mut octet) {
            Ok(1) if octet[0] == word => Ok(()),
            Ok(0) => {
                let ended = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
                Err(format!("the new process ended before {what} ({ended}); its words are in the log"))
            }
            Ok(_) => Err("the new process speaks otherwise: it is of another version".into()),
            Err(e) => Err(format!("the new process did not say in time that {what}: {e}")),
        }
    }
}

/// The new process's end.
pub struct Predecessor {
    stream: UnixStream,
    is_in_memory: bool,
}

/// This thread takes signals again. The process was started by a thread that takes none, and such a thing is inherited.
fn take_signals() {
    // SAFETY: the set is owned by this frame and filled before it is read.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

impl Predecessor {
    /// Whom this process is to succeed, if anybody.
    pub fn of_this_process() -> io::Result<Option<Self>> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        take_signals();
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        // It is to know at once when we end, and what we start is not to keep it from that.
        let nothing = File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&nothing)?;
        Ok(Some(Predecessor { stream, is_in_memory: false }))
    }

    /// The configuration is good: takes the lock and the sockets.
    pub fn take_over(&mut self) -> io::Result<(File, Vec<TcpListener>)> {
        self.stream.write_all(&[CHECKED])?;
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        loop {
            let mut word = [0];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = recvmsg(&self.stream, &mut [IoSliceMut::new(&mut word)], &mut ancillary, flags)?;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            if received.flags.contains(ReturnFlags::CTRUNC) {
                return Err(io::Error::other(
                    "this process may not have as many open files as are handed over",
                ));
            }
            match (received.bytes, word[0]) {
                (1, MORE) => {}
                (1, LAST) => break,
                (1, LAST_IN_MEMORY) => {
                    self.is_in_memory = true;
                    break;
                }
                (0, _) => {
                    return Err(io::Error::other("the process that was to be succeeded goes on by itself"));
                }
                _ => return Err(io::Error::other("the process that is to be succeeded speaks otherwise")),
            }
        }
        let mut descriptors = descriptors.into_iter();
        let lock = descriptors.next().ok_or_else(|| io::Error::other("no lock was handed over"))?;
        Ok((lock.into(), descriptors.map(TcpListener::from).collect()))
    }

    /// Whether its queue is in memory; known when it was taken over.
    pub fn is_in_memory(&self) -> bool {
        self.is_in_memory
    }

    /// Mail is taken.
    pub fn tell_serving(&mut self) -> io::Result<()> {
        self.stream.write_all(&[SERVING])
    }

    /// Waits until the other process has ended.
    pub fn wait_for_end(mut self) {
        let mut octets = [0; 16];
        loop {
            match self.stream.read(&mut octets) {
                Ok(0) => return,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Its end is gone.
                Err(_) => return,
            }
        }
    }
}
