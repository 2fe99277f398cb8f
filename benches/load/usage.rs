//! Memory and CPU time of a process, as the kernel accounts for them.

use std::fs;
use std::io;
use std::time::Duration;

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

/// CPU time of the threads that a process has now, user and system, in nanoseconds and not in ticks.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path)?;
        let on_cpu = text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
        total += on_cpu.ok_or_else(|| io::Error::other(format!("{}: {text}", path.display())))?;
    }
    Ok(Duration::from_nanos(total))
}
