//! CPU time and memory of a process and everything below it, as the kernel accounts for them.

use std::collections::HashMap;
use std::fs;
use std::io;

use serde::Serialize;

/// Clock ticks a second of `/proc/PID/stat`: `USER_HZ`, which Linux fixes at 100 for user space.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a tree of processes has used, and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    /// User and system time, of processes that have ended and were waited for as well.
    pub cpu_seconds: f64,
    /// Memory: the proportional set size where it can be read, else the resident set size.
    pub memory_octets: u64,
    /// Processes.
    pub processes: usize,
}

struct Process {
    parent: u32,
    own_ticks: u64,
    /// With those of children that have ended.
    ticks: u64,
    resident_pages: u64,
}

impl Usage {
    /// Of the process `root` and its descendants.
    ///
    /// # Errors
    /// Where there is no such process.
    pub fn of_tree(root: u32) -> io::Result<Self> {
        let processes = processes()?;
        if !processes.contains_key(&root) {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no process {root}")));
        }
        let mut usage = Usage::default();
        for (&pid, process) in &processes {
            if is_below(pid, root, &processes) {
                usage.cpu_seconds += process.ticks as f64 / TICKS_PER_SECOND;
                usage.memory_octets += proportional_size(pid)
                    .unwrap_or(process.resident_pages * rustix::param::page_size() as u64);
                usage.processes += 1;
            }
        }
        Ok(usage)
    }
}

/// CPU time of this process and nothing below it, seconds.
///
/// # Errors
/// Where `/proc` is not there.
pub fn own_cpu_seconds() -> io::Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let process = parse(&stat).ok_or_else(|| io::Error::other(format!("/proc/self/stat: {stat}")))?;
    Ok(process.own_ticks as f64 / TICKS_PER_SECOND)
}

fn is_below(pid: u32, root: u32, processes: &HashMap<u32, Process>) -> bool {
    let mut at = pid;
    // A process that ended between two looks breaks the chain, nothing else: parents are older than their children.
    while at != root {
        match processes.get(&at) {
            Some(process) if process.parent != 0 => at = process.parent,
            _ => return false,
        }
    }
    true
}

fn processes() -> io::Result<HashMap<u32, Process>> {
    let mut processes = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        let stat =
            pid.and_then(|pid: u32| Some((pid, fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)));
        if let Some((pid, stat)) = stat
            && let Some(process) = parse(&stat)
        {
            processes.insert(pid, process);
        }
    }
    Ok(processes)
}

fn parse(stat: &str) -> Option<Process> {
    // The name, in parentheses, may contain anything; fields are counted from behind it, where the third stands.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Process {
        parent: field(4)? as u32,
        own_ticks: field(14)? + field(15)?,
        ticks: field(14)? + field(15)? + field(16)? + field(17)?,
        resident_pages: field(24)?,
    })
}

fn proportional_size(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_tree_has_the_time_of_children_that_run_and_of_those_that_have_ended() {
        let mut shell = Command::new("sh")
            .args(["-c", "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'; echo done; read x"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 5];
        io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut line).unwrap();
        let usage = Usage::of_tree(shell.id()).unwrap();
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert_eq!(usage.processes, 1);
        assert!(usage.cpu_seconds > 0.0, "{usage:?}");
        assert!(usage.memory_octets > 0);
        assert!(Usage::of_tree(u32::MAX).is_err());
    }
}
