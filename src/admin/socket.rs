//! The unix socket: its path, who may open it, and how one process takes it over from another.
//!
//! A socket is bound to a name beside the path, given to whom it is for, made to listen, and only then renamed to the path: whoever opens
//! the path finds either the one before or this one, never nobody and never one that others may open. What a dead gateway left behind
//! is replaced the same way. That two living ones do not take each other's is due to the lock of the data directory: the path is in it,
//! or configured for it.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::unistd::Group;
use socket2::{Domain, SockAddr, Socket, Type};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// What fits the address of a unix socket, in octets (`sun_path`), with the NUL behind it.
const PATH_SIZE_MAX: usize = 107;

/// A listening socket with its place among the files, which is removed with it, unless somebody else has taken it by then.
#[derive(Debug)]
pub struct Bound {
    path: PathBuf,
    /// Device and inode: who has the path is known by them.
    identity: (u64, u64),
}

/// Listens at `path`, which only this user may open, and the members of `group`.
pub fn bind(path: &Path, group: Option<&str>) -> io::Result<(UnixListener, Bound)> {
    let gid = group.map(gid_of).transpose()?;
    let name = path.file_name().ok_or_else(|| io::Error::other("it has no file name"))?;
    let beside = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    // Of an earlier process with this number.
    let _ = fs::remove_file(&beside);
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    reachable(&beside, |address| socket.bind(address))?;
    let listened = (|| {
        // Nobody can connect before it listens.
        if let Some(gid) = gid {
            std::os::unix::fs::chown(&beside, None, Some(gid))?;
        }
        let mode = if gid.is_some() { 0o660 } else { 0o600 };
        fs::set_permissions(&beside, fs::Permissions::from_mode(mode))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let metadata = fs::symlink_metadata(&beside)?;
        fs::rename(&beside, path)?;
        Ok((metadata.dev(), metadata.ino()))
    })();
    match listened {
        Ok(identity) => Ok((socket.into(), Bound { path: path.into(), identity })),
        Err(error) => {
            let _ = fs::remove_file(&beside);
            Err(error)
        }
    }
}

/// Connects to whoever listens at `path`.
pub fn connect(path: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    reachable(path, |address| socket.connect(address))?;
    Ok(socket.into())
}

/// Gives `then` an address of `path`, though it be longer than an address can say: then by way of its folder, which is open meanwhile.
fn reachable<T>(path: &Path, then: impl FnOnce(&SockAddr) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().len() <= PATH_SIZE_MAX {
        return then(&SockAddr::unix(path)?);
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().ok_or_else(|| io::Error::other("it has no file name"))?;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let folder = fs::OpenOptions::new().read(true).custom_flags(flags).open(folder)?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    then(&SockAddr::unix(short)?)
}

fn gid_of(group: &str) -> io::Result<u32> {
    match Group::from_name(group) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(io::Error::other(format!("there is no group {group:?}"))),
        Err(errno) => Err(errno.into()),
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let is_ours = |m: fs::Metadata| (m.dev(), m.ino()) == self.identity;
        // Somebody may take it between the look and the removal. Then that process has a socket without a path: it is the next one's
        // concern no more than it is ours, for processes that change places do it one after the other.
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn only_its_user_may_open_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (_listener, bound) = bind(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn the_members_of_a_group_may_open_it_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let own = nix::unistd::Group::from_gid(nix::unistd::getgid()).unwrap().unwrap();
        let (_listener, _bound) = bind(&path, Some(&own.name)).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, own.gid.as_raw()));
        let error = bind(&path, Some("no such group")).unwrap_err();
        assert!(error.to_string().contains("there is no group"), "{error}");
    }

    #[test]
    fn what_a_dead_process_left_is_replaced_and_what_the_next_took_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (listener, bound) = bind(&path, None).unwrap();
        drop(listener);
        std::mem::forget(bound);
        assert!(UnixStream::connect(&path).is_err());
        let (_first, first) = bind(&path, None).unwrap();
        UnixStream::connect(&path).unwrap();
        let (second, _second) = bind(&path, None).unwrap();
        drop(first);
        second.set_nonblocking(false).unwrap();
        UnixStream::connect(&path).unwrap();
        second.accept().expect("the path is the second's");
    }

    #[test]
    fn the_path_is_never_without_a_listener_while_it_changes_hands() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let mut held = vec![bind(&path, None).unwrap()];
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| {
                let mut calls = 0;
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) || calls < 100 {
                    match connect(&path) {
                        // Nobody accepts here: the kernel's queue is full at times.
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                        connected => drop(connected.unwrap()),
                    }
                    calls += 1;
                    std::thread::yield_now();
                }
            });
            // As a process that goes: it listens for some time after another has come.
            let serve = |held: &[(UnixListener, Bound)]| {
                held.iter().for_each(|(listener, _)| while listener.accept().is_ok() {})
            };
            for _ in 0..100 {
                serve(&held);
                held.push(bind(&path, None).unwrap());
            }
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            while !caller.is_finished() {
                serve(&held);
            }
        });
    }

    #[test]
    fn a_path_longer_than_an_address_is_reached_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(100)).join("e".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        let path = deep.join("admin.sock");
        let (listener, bound) = bind(&path, None).unwrap();
        listener.set_nonblocking(false).unwrap();
        connect(&path).unwrap();
        listener.accept().unwrap();
        drop(bound);
        assert!(!path.exists());
    }
}
