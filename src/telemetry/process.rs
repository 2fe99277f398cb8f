//! What the kernel says of this process.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};

/// What the kernel says; `None` where it cannot be read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    /// Processor time of all threads, seconds.
    pub cpu_seconds: Option<f64>,
    /// Memory in use, octets.
    pub resident_bytes: Option<u64>,
    /// Open descriptors.
    pub open_fds: Option<u64>,
    /// Descriptors that may be open.
    pub max_fds: Option<u64>,
    /// When it began, seconds since 1970.
    pub start_unix: Option<f64>,
    /// Threads.
    pub threads: Option<u64>,
}

impl Process {
    /// As it is now. Reads some files of /proc: some 50 us, and before Linux 6.2 much more with many descriptors open.
    pub fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // proc_pid_stat(5) counts from 1 and the name is the second.
        let field = |n: usize| fields.get(n - 3).and_then(|field| field.parse::<u64>().ok());
        let ticks = clock_ticks_per_second() as f64;
        let seconds = |count: u64| count as f64 / ticks;
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<f64>().ok());
        Process {
            cpu_seconds: field(14).zip(field(15)).map(|(user, system)| seconds(user + system)),
            resident_bytes: field(24).map(|pages| pages * page_size() as u64),
            open_fds: open_descriptors(),
            max_fds: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            start_unix: field(22).zip(boot).map(|(start, boot)| boot + seconds(start)),
            threads: field(20),
        }
    }
}

fn open_descriptors() -> Option<u64> {
    const FOLDER: &str = "/proc/self/fd";
    // Linux 6.2 and later give their number as the folder's size; others have each of them listed.
    match fs::metadata(FOLDER).map(|metadata| metadata.len()) {
        Ok(count) if count > 0 => Some(count),
        _ => fs::read_dir(FOLDER).ok().map(|all| all.count().saturating_sub(1) as u64),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_kernel_knows_this_process() {
        let process = Process::read();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - process.start_unix.unwrap();
        assert!((-2.0..Duration::from_secs(86_400).as_secs_f64()).contains(&age), "{process:?}");
        assert!(process.cpu_seconds.unwrap() >= 0.0);
        assert!(process.resident_bytes.unwrap() > 1 << 20);
        assert!((3..=process.max_fds.unwrap()).contains(&process.open_fds.unwrap()));
        assert!(process.threads.unwrap() >= 1);
    }
}
