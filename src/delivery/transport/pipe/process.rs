//! One run of a command: started, watched, and ended with all that it has started.
//!
//! The process leads a group of its own. It is never left behind: it has ended, or its group is sent SIGTERM, and when it has had time for
//! that, SIGKILL, as it is itself if it has left the group. Its process id is not released before, so no signal hits a stranger. What does
//! not end even then (it waits for a disk that is gone, or has become a user whom we may not kill) is nobody's to wait for: a thread of
//! its own reaps it some day.
//!
//! It inherits three descriptors, the environment it is given and no blocked signals; the scheduling class of the thread that starts it,
//! and its limits, are those of the gateway.
//!
//! What left the group by itself is beyond reach, as is what a command that ended has left in the background.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

/// What is kept of a command's output, in octets; the rest is read and forgotten.
const OUTPUT_SIZE_MAX: usize = 4 << 10;
/// What is still read when the command has ended, in octets: as much as a pipe holds.
const LEFT_SIZE_MAX: usize = 64 << 10;
/// How long a group has between SIGTERM and SIGKILL.
const TERM_TIMEOUT: Duration = Duration::from_secs(2);
/// How long what was sent SIGKILL is waited for: what can end has ended long before.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a command that runs may go on when the gateway ends. With the two above, less than the gateway waits for deliveries.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// As whom a command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The only group.
    pub gid: u32,
}

/// Of util-linux: becomes another user, and then another program.
const SETPRIV: &str = "/usr/bin/setpriv";

/// A user, and how a process becomes it.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    user: User,
    by_setpriv: bool,
}

impl Identity {
    /// In a program of its own, where there is one that can: where std changes the user between `fork` and `exec`, a fifth of the
    /// messages per second were accepted and delivered. What a program of that name can do, and a sandbox lets it do, is seen by trying.
    pub fn of(user: User) -> Self {
        let with = Identity { user, by_setpriv: true };
        let mut trial = with.command("/bin/true");
        trial.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Identity { by_setpriv: trial.status().is_ok_and(|status| status.success()), ..with }
    }

    /// A command that runs `program` as this user, in no other group.
    fn command(self, program: &str) -> Command {
        let User { uid, gid } = self.user;
        if !self.by_setpriv {
            let mut command = Command::new(program);
            // Other groups are given up with this.
            command.gid(gid).uid(uid);
            return command;
        }
        let mut command = Command::new(SETPRIV);
        let (user, group) = (format!("--reuid={uid}"), format!("--regid={gid}"));
        command.args([&user, &group, "--clear-groups", "--", program]);
        command
    }
}

/// What is to be run.
pub struct Run<'a> {
    pub program: &'a str,
    pub arguments: &'a [OsString],
    pub environment: Vec<(&'a str, OsString)>,
    pub folder: &'a Path,
    pub identity: Option<Identity>,
    pub input: File,
}

/// How a run ended.
#[derive(Debug)]
pub enum Ended {
    /// By itself, or by somebody else's signal.
    Itself(ExitStatus),
    /// It took too long.
    TimedOut,
    /// The gateway ends.
    Stopped,
    /// It did not: it was killed, and goes on.
    Never,
}

impl Run<'_> {
    /// Runs it for at most `timeout`; `stop` is readable when no more time is to be lost. Gives the beginning of what it wrote, to
    /// standard output and standard error alike. An error means that it did not run, or was sent SIGKILL.
    pub fn run(self, timeout: Duration, stop: BorrowedFd<'_>) -> io::Result<(Ended, Vec<u8>)> {
        let deadline = Instant::now() + timeout;
        let (output, writer) = io::pipe()?;
        rustix::io::ioctl_fionbio(&output, true)?;
        let mut command = self
            .identity
            .map_or_else(|| Command::new(self.program), |identity| identity.command(self.program));
        command
            .args(self.arguments)
            .env_clear()
            .envs(self.environment)
            .current_dir(self.folder)
            .process_group(0)
            .stdin(self.input)
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let started = {
            let _unblocked = UnblockedSignals::unblock();
            command.spawn()
        };
        // With it goes our end of what the command writes to.
        drop(command);
        Watched::watch(started?, output)?.wait(deadline, stop)
    }
}

/// A command that runs.
struct Watched {
    child: Child,
    pidfd: OwnedFd,
    output: Output,
}

impl Watched {
    fn watch(child: Child, output: PipeReader) -> io::Result<Self> {
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => {
                Ok(Watched { child, pidfd, output: Output { pipe: Some(output), kept: Vec::new() } })
            }
            Err(e) => {
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                reap_some_day(child);
                Err(e.into())
            }
        }
    }

    fn wait(mut self, deadline: Instant, stop: BorrowedFd<'_>) -> io::Result<(Ended, Vec<u8>)> {
        let seen = self.wait_or_stop(deadline, stop);
        if let Ok(Seen::End) = seen {
            self.output.read(LEFT_SIZE_MAX);
            return Ok((Ended::Itself(self.child.wait()?), self.output.kept));
        }
        if seen.is_ok() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::TERM);
            // However it ends now: asked to end, it may say that all is well.
            let _ = self.wait_until(Instant::now() + TERM_TIMEOUT, None);
            self.output.read(LEFT_SIZE_MAX);
        }
        let kept = std::mem::take(&mut self.output.kept);
        let ended = match (self.kill(), seen?) {
            (false, _) => Ended::Never,
            (true, Seen::Stop) => Ended::Stopped,
            (true, Seen::Deadline | Seen::End) => Ended::TimedOut,
        };
        Ok((ended, kept))
    }

    /// Kills it and its group. Whether it has ended: otherwise it is reaped when it does.
    fn kill(mut self) -> bool {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        // It may have left the group.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        match self.wait_until(Instant::now() + KILL_TIMEOUT, None) {
            Ok(Seen::End) => self.child.wait().is_ok(),
            Ok(Seen::Deadline | Seen::Stop) | Err(_) => {
                reap_some_day(self.child);
                false
            }
        }
    }

    /// Where the gateway ends, a little longer: most need no more than that, and what is done need not be done again.
    fn wait_or_stop(&mut self, deadline: Instant, stop: BorrowedFd<'_>) -> io::Result<Seen> {
        match self.wait_until(deadline, Some(stop))? {
            Seen::Stop => match self.wait_until(deadline.min(Instant::now() + STOP_TIMEOUT), None)? {
                Seen::End => Ok(Seen::End),
                Seen::Deadline | Seen::Stop => Ok(Seen::Stop),
            },
            seen => Ok(seen),
        }
    }

    /// Reads what it writes until it ends, without reaping it.
    fn wait_until(&mut self, deadline: Instant, stop: Option<BorrowedFd<'_>>) -> io::Result<Seen> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Seen::Deadline);
            }
            let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
            fds.extend(stop.as_ref().map(|stop| PollFd::new(stop, PollFlags::IN)));
            fds.extend(self.output.pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            let is_ready = |at: usize| !fds[at].revents().is_empty();
            let is_end = is_ready(0);
            let is_stop = stop.is_some() && is_ready(1);
            let is_output = self.output.pipe.is_some() && is_ready(fds.len() - 1);
            if is_output {
                self.output.read(LEFT_SIZE_MAX);
            }
            if is_end {
                return Ok(Seen::End);
            }
            if is_stop {
                return Ok(Seen::Stop);
            }
        }
    }
}

/// Leaves a zombie where no thread is to be had.
fn reap_some_day(mut child: Child) {
    let _ = thread::Builder::new().name("reaper".into()).spawn(move || child.wait());
}

enum Seen {
    End,
    Deadline,
    Stop,
}

/// What a command writes.
struct Output {
    /// Nothing, when it has closed it.
    pipe: Option<PipeReader>,
    kept: Vec<u8>,
}

impl Output {
    /// Reads what is there, some `size` octets at most.
    fn read(&mut self, size: usize) {
        let mut buffer = [0; 4096];
        let mut left = size;
        while let Some(pipe) = &mut self.pipe
            && left > 0
        {
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(read) => {
                    let room = OUTPUT_SIZE_MAX - self.kept.len();
                    self.kept.extend_from_slice(&buffer[..read.min(room)]);
                    left = left.saturating_sub(read);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.pipe = None,
            }
        }
    }
}

/// Keeps what this process has open, but for the three, from those it starts. Its own descriptors are kept from them as they are opened; what
/// it has inherited itself is not. Linux before 5.11 cannot do it.
pub fn keep_descriptors() {
    // SAFETY: no descriptor is closed, and none is used here.
    unsafe {
        libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32);
    }
}

/// Threads of the gateway take no signals, and a process begins with the mask of the thread that started it: one that is blocked could not be
/// asked to end. The handlers that might run on this thread meanwhile only tell the one that waits for signals.
struct UnblockedSignals {
    before: libc::sigset_t,
}

impl UnblockedSignals {
    fn unblock() -> Self {
        // SAFETY: both sets are owned by this frame and filled by the calls before they are read.
        unsafe {
            let mut none = std::mem::zeroed();
            let mut before = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::pthread_sigmask(libc::SIG_SETMASK, &none, &mut before);
            UnblockedSignals { before }
        }
    }
}

impl Drop for UnblockedSignals {
    fn drop(&mut self) {
        // SAFETY: `before` was filled by the same call that unblocked.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut());
        }
    }
}

/// A descriptor that becomes readable once, for everybody who waits, and stays so.
pub struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        Ok(Bell(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub fn ring(&self) {
        // It fails only where it has rung already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub fn has_rung(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
