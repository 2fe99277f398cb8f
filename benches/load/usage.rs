//! CPU time and memory of a process, as the kernel accounts for them.

use std::fs;
use std::io;

/// Clock ticks a second of `/proc/PID/stat`: `USER_HZ`, which Linux fixes at 100 for user space on every architecture
/// that glommio runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time of a process with all its threads, in seconds.
pub fn cpu_seconds(pid: u32) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may contain anything; fields are counted from behind it.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let mut times = fields.split_whitespace().skip(11).map(|field| field.parse::<f64>().ok());
    match (times.next().flatten(), times.next().flatten()) {
        (Some(user), Some(system)) => Ok((user + system) / TICKS_PER_SECOND),
        _ => Err(io::Error::other(format!("/proc/{pid}/stat has no times: {stat}"))),
    }
}

/// A size of `/proc/PID/status` in bytes, as `VmRSS`, `VmHWM` (its peak) or `RssAnon`.
pub fn size(pid: u32, name: &str) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")).and_then(|n| n.parse::<u64>().ok());
    kib.map(|n| n * 1024).ok_or_else(|| io::Error::other(format!("no {name} in /proc/{pid}/status")))
}

/// Makes the peak of a process's memory start anew.
pub fn reset_peak(pid: u32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}
