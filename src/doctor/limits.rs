//! Limits: of the process, of its control group, of the machine; and what the configuration would take.

use super::finding::Finding;
use super::reading::{self, Seen, Unseen, octets};
use crate::config::transports::TransportKind;
use crate::config::{Config, Queue};
use crate::gateway::LOCKED_MEMORY_MIN;
use crate::limits::{Deliveries, GIB, KIB, RING_MEMORY_SIZE, descriptors_for, sessions_max_for};
use crate::smtp::TlsMode;

/// What the configuration would take.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub sessions: u64,
    pub shards: u64,
    pub deliveries: Deliveries,
    /// The largest backlog of a listener.
    pub backlog: u32,
    /// All bounds of memory together, octets.
    pub memory: u64,
    /// Threads, about.
    pub threads: u64,
}

impl Wanted {
    pub fn of(config: &Config) -> Self {
        /// What a session takes while it is idle, octets: measured, and rounded up.
        const SESSION_SIZE: u64 = 2 * KIB;
        const TLS_SESSION_SIZE: u64 = 12 * KIB;
        /// What a message in the queue takes, octets.
        const ENTRY_SIZE: u64 = 150;
        let shards = config.cores.shards_count() as u64;
        let concurrency =
            |transport: &crate::config::transports::Transport| transport.limits.concurrency as u64;
        let has_tls = config.listeners.iter().any(|listener| listener.tls != TlsMode::Disabled);
        let sessions = config.sessions_max as u64;
        let spool = &config.spool;
        let memory = [
            spool.cache_size,
            spool.memory_max.saturating_mul(shards),
            RING_MEMORY_SIZE as u64 * shards,
            sessions * if has_tls { TLS_SESSION_SIZE } else { SESSION_SIZE },
            spool.depth_max.saturating_mul(ENTRY_SIZE),
            if spool.queue == Queue::Memory { spool.memory_queue_size } else { 0 },
        ];
        let has_threads =
            |kind: &TransportKind| matches!(kind, TransportKind::Maildir(_) | TransportKind::Pipe(_));
        let of_transports =
            config.transports.values().filter(|transport| has_threads(&transport.kind)).map(concurrency);
        Wanted {
            sessions,
            shards,
            deliveries: Deliveries {
                workers: config.delivery.workers as u64,
                attempts: config.transports.values().map(concurrency).sum(),
            },
            backlog: config.listeners.iter().map(|listener| listener.backlog).max().unwrap_or(0),
            memory: memory.into_iter().fold(0, u64::saturating_add),
            // A shard and its blocking thread, workers and theirs, and those that there is one of.
            threads: 2 * shards + 9 * config.delivery.workers as u64 + of_transports.sum::<u64>() + 32,
        }
    }
}

/// What there is.
pub struct Limits {
    /// Of whom the first ones are.
    pub whose: String,
    /// Open files; `u64::MAX`: as many as one likes.
    pub descriptors: Seen<u64>,
    /// Memory that may be locked, octets.
    pub locked: Seen<u64>,
    /// That limit does not hold for this process (CAP_IPC_LOCK).
    pub locks_freely: bool,
    pub file_max: Seen<u64>,
    pub somaxconn: Seen<u32>,
    pub syn_backlog: Seen<u32>,
    pub syn_cookies: Seen<u32>,
    /// Octets.
    pub memory: Seen<u64>,
    pub group: Group,
}

/// What control groups allow; nothing where none bounds it, or none can be seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// Octets.
    pub memory: Option<u64>,
    /// Processors' worth of time.
    pub processors: Option<f64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
}

impl Limits {
    /// Those of the gateway that runs as `holder`, or of this process, which is what a gateway that is started here would have.
    pub fn read(holder: Option<u32>) -> Self {
        let running = holder
            .filter(|id| *id != 0)
            .and_then(|id| Some((id, reading::text(format!("/proc/{id}/limits")).ok()?)));
        let (whose, process, limits) = match running {
            Some((id, limits)) => {
                (format!("of the running gateway, process {id}"), id.to_string(), Ok(limits))
            }
            None => {
                let whose = "of this process: a unit's may differ".to_string();
                (whose, "self".to_string(), reading::text("/proc/self/limits"))
            }
        };
        let limit = |name: &str| {
            let limits = limits.as_ref().map_err(Clone::clone)?;
            hard_limit(limits, name).ok_or_else(|| Unseen(format!("no {name:?} in /proc/{process}/limits")))
        };
        let status = reading::text(format!("/proc/{process}/status")).unwrap_or_default();
        let network = |name: &str| reading::number(format!("/proc/sys/net/{name}"));
        Limits {
            descriptors: limit("Max open files"),
            locked: limit("Max locked memory"),
            locks_freely: has_capability(&status, IPC_LOCK),
            whose,
            file_max: reading::number("/proc/sys/fs/file-max"),
            somaxconn: network("core/somaxconn"),
            syn_backlog: network("ipv4/tcp_max_syn_backlog"),
            syn_cookies: network("ipv4/tcp_syncookies"),
            memory: reading::text("/proc/meminfo").and_then(|text| {
                let kib = reading::field(&text, "MemTotal")
                    .and_then(|size| size.strip_suffix("kB")?.trim().parse::<u64>().ok());
                kib.map(|kib| kib * KIB).ok_or_else(|| Unseen::because("/proc/meminfo has no MemTotal"))
            }),
            group: Group::read(&reading::text(format!("/proc/{process}/cgroup")).unwrap_or_default()),
        }
    }
}

/// The hard limit: the gateway raises the soft one to it.
fn hard_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_ascii_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// CAP_IPC_LOCK.
const IPC_LOCK: u32 = 14;

fn has_capability(status: &str, number: u32) -> bool {
    let mask = reading::field(status, "CapEff").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    mask.is_some_and(|mask| mask >> number & 1 == 1)
}

impl Group {
    /// The smallest bounds of the groups that `/proc/self/cgroup` names and of those above them, in either version.
    fn read(groups: &str) -> Self {
        let mut found = Group::default();
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            // Whatever leads out of the folder of groups leads nowhere.
            let path = path.trim_start_matches('/');
            if path.split('/').any(|part| part == "..") {
                continue;
            }
            let roots = match controllers {
                "" => vec!["/sys/fs/cgroup".to_string(), "/sys/fs/cgroup/unified".to_string()],
                names => names.split(',').map(|name| format!("/sys/fs/cgroup/{name}")).collect(),
            };
            for root in roots {
                for group in std::path::Path::new(path).ancestors() {
                    let file =
                        |name: &str| reading::text(std::path::Path::new(&root).join(group).join(name)).ok();
                    found.narrow(&Group::of(file));
                }
            }
        }
        found
    }

    /// What the files of one group say; `file` gives the text of one.
    fn of(file: impl Fn(&str) -> Option<String>) -> Self {
        /// Version 1 writes what is not bounded as nearly the largest number.
        const UNBOUNDED: u64 = 1 << 60;
        let number = |name: &str| file(name)?.parse::<u64>().ok().filter(|number| *number < UNBOUNDED);
        let quota = || {
            let (quota, period) = match file("cpu.max") {
                Some(text) => {
                    let (quota, period) = text.split_once(' ')?;
                    (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
                }
                None => (file("cpu.cfs_quota_us")?.parse().ok()?, file("cpu.cfs_period_us")?.parse().ok()?),
            };
            (quota > 0.0 && period > 0.0).then_some(quota / period)
        };
        let memory = [number("memory.max"), number("memory.high"), number("memory.limit_in_bytes")];
        Group { memory: memory.into_iter().flatten().min(), processors: quota(), tasks: number("pids.max") }
    }

    fn narrow(&mut self, other: &Group) {
        let least = |one: Option<u64>, other: Option<u64>| one.into_iter().chain(other).min();
        self.memory = least(self.memory, other.memory);
        self.tasks = least(self.tasks, other.tasks);
        self.processors = self.processors.into_iter().chain(other.processors).min_by(f64::total_cmp);
    }
}

/// What it means.
pub fn judge(limits: &Limits, wanted: &Wanted) -> Vec<Finding> {
    let mut findings = vec![
        open_files(limits, wanted),
        locked_memory(limits, wanted),
        file_max(limits, wanted),
        backlog(limits, wanted),
        half_open(limits, wanted),
        memory(limits, wanted),
    ];
    findings.extend(group(&limits.group, wanted));
    findings
}

fn open_files(limits: &Limits, wanted: &Wanted) -> Finding {
    const CHECK: &str = "open files";
    /// Fewer sessions than this are soon taken.
    const FEW: u64 = 1000;
    let descriptors = match &limits.descriptors {
        Ok(descriptors) => *descriptors,
        Err(why) => return Finding::unseen(CHECK, why),
    };
    let needed = descriptors_for(wanted.sessions, wanted.shards, wanted.deliveries);
    let shown = match descriptors {
        u64::MAX => "unlimited".to_string(),
        count => count.to_string(),
    };
    let found = format!("{shown} ({}); {} sessions need {needed}", limits.whose, wanted.sessions);
    let mend = "LimitNOFILE= of the unit, or `ulimit -Hn`; and sysctl fs.nr_open where it bounds that";
    match () {
        _ if descriptors < needed => {
            let room = sessions_max_for(descriptors, wanted.shards, wanted.deliveries);
            Finding::warning(CHECK, found)
                .costs(format!(
                    "there is room for {room} sessions: the connections of more are answered 421, or wait"
                ))
                .mend(format!("{mend}; or lower sessions_max"))
        }
        _ if wanted.sessions < FEW => Finding::warning(CHECK, found)
            .costs("so few sessions are soon taken: the connections of more are answered 421")
            .mend(format!("{mend}; or sessions_max, where it is set")),
        _ => Finding::ok(CHECK, found),
    }
}

fn locked_memory(limits: &Limits, wanted: &Wanted) -> Finding {
    const CHECK: &str = "locked memory";
    /// A shard registers its memory with each of its three rings.
    const RINGS: u64 = 3;
    let locked = match &limits.locked {
        Ok(locked) => *locked,
        Err(why) => return Finding::unseen(CHECK, why),
    };
    let needed = RINGS * RING_MEMORY_SIZE as u64 * wanted.shards;
    let whose = &limits.whose;
    let shown = match locked {
        u64::MAX => "unlimited".to_string(),
        size => octets(size),
    };
    if locked < LOCKED_MEMORY_MIN {
        return Finding::fault(
            CHECK,
            format!("{shown} ({whose}), and {} are needed", octets(LOCKED_MEMORY_MIN)),
        )
        .costs("the gateway does not start")
        .mend("`ulimit -l 8192`, or LimitMEMLOCK=8M of the unit");
    }
    if locked >= needed || limits.locks_freely {
        let why = if locked < needed { ", which does not hold for who has CAP_IPC_LOCK" } else { "" };
        return Finding::ok(CHECK, format!("{shown} ({whose}){why}"));
    }
    Finding::note(CHECK, format!("{shown} ({whose}); to register the buffers of {} shards takes {}", wanted.shards, octets(needed)))
        .costs("they are used without: the kernel looks their pages up for each write, which takes some processor time")
        .mend(format!("LimitMEMLOCK={}M of the unit", needed.div_ceil(1 << 20)))
}

fn file_max(limits: &Limits, wanted: &Wanted) -> Finding {
    const CHECK: &str = "file-max";
    let all = match &limits.file_max {
        Ok(all) => *all,
        Err(why) => return Finding::unseen(CHECK, why),
    };
    let needed = descriptors_for(wanted.sessions, wanted.shards, wanted.deliveries);
    let found = format!("{all} open files on the whole machine (fs.file-max)");
    match all >= needed {
        true => Finding::ok(CHECK, found),
        false => Finding::warning(CHECK, format!("{found}, and the gateway alone may need {needed}"))
            .costs("nobody on the machine can open a file when they are used up")
            .mend(format!("sysctl fs.file-max={}", needed * 2)),
    }
}

fn backlog(limits: &Limits, wanted: &Wanted) -> Finding {
    const CHECK: &str = "somaxconn";
    let bound = match &limits.somaxconn {
        Ok(bound) => *bound,
        Err(why) => return Finding::unseen(CHECK, why),
    };
    let backlog = wanted.backlog;
    match bound >= backlog {
        true => Finding::ok(CHECK, format!("{bound}; listeners have a backlog of {backlog} for each shard")),
        false => Finding::warning(CHECK, format!("{bound} bounds the backlog of {backlog} that a listener has"))
            .costs("in a burst the first packets of connections are dropped, and their clients try again a second later")
            .mend(format!("sysctl net.core.somaxconn={backlog}")),
    }
}

fn half_open(limits: &Limits, wanted: &Wanted) -> Finding {
    const CHECK: &str = "SYN backlog";
    let (bound, cookies) = match (&limits.syn_backlog, &limits.syn_cookies) {
        (Ok(bound), Ok(cookies)) => (*bound, *cookies != 0),
        (Err(why), _) | (_, Err(why)) => return Finding::unseen(CHECK, why),
    };
    let found = format!(
        "{bound} half-open connections (tcp_max_syn_backlog), cookies {}",
        if cookies { "on" } else { "off" }
    );
    match (bound >= wanted.backlog, cookies) {
        (true, true) => Finding::ok(CHECK, found),
        (false, true) => Finding::note(CHECK, found)
            .costs("in a burst connections are made by cookies, without window scaling where the client sends no timestamps")
            .mend(format!("sysctl net.ipv4.tcp_max_syn_backlog={}", wanted.backlog)),
        (_, false) => Finding::warning(CHECK, found)
            .costs("a flood of half-open connections keeps everybody out")
            .mend("sysctl net.ipv4.tcp_syncookies=1"),
    }
}

fn memory(limits: &Limits, wanted: &Wanted) -> Finding {
    const CHECK: &str = "memory";
    let all = match &limits.memory {
        Ok(all) => *all,
        Err(why) => return Finding::unseen(CHECK, why),
    };
    let (there, whose) = match limits.group.memory {
        Some(bound) if bound < all => (bound, " (of the control group)"),
        _ => (all, ""),
    };
    let found = format!(
        "{}{whose}; the configuration's bounds add up to about {}",
        octets(there),
        octets(wanted.memory)
    );
    // The system and the page cache want some too.
    match wanted.memory <= there.saturating_sub((there / 8).min(GIB)) {
        true => Finding::ok(CHECK, found),
        false => Finding::warning(CHECK, found)
            .costs("when all of them are reached the kernel may end the process; nothing acknowledged is lost by that")
            .mend("lower sessions_max, spool.memory_max, spool.cache_size or spool.depth_max, or give it more"),
    }
}

fn group(group: &Group, wanted: &Wanted) -> Vec<Finding> {
    const CHECK: &str = "control group";
    let mut findings = Vec::new();
    if let Some(processors) = group.processors {
        let found =
            format!("processor time of {processors:.2} cores (cpu.max); there are {} shards", wanted.shards);
        let costs = "who has used his part up stands still until the next period, up to a tenth of a second, with all its sessions";
        findings.push(match processors >= wanted.shards as f64 {
            true => Finding::note(CHECK, found).costs(costs),
            false => Finding::warning(CHECK, found)
                .costs(costs)
                .mend("fewer shards, or no CPUQuota= of the unit: pin to cores instead"),
        });
    }
    if let Some(tasks) = group.tasks {
        let found = format!("{tasks} threads (pids.max); about {} are started", wanted.threads);
        findings.push(match tasks >= wanted.threads {
            true => Finding::ok(CHECK, found),
            false => Finding::warning(CHECK, found)
                .costs("the gateway may not start, or deliveries wait for threads")
                .mend("TasksMax= of the unit"),
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no bound on processor time or threads that can be seen"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn limits() -> Limits {
        Limits {
            whose: "of a test".into(),
            descriptors: Ok(100_000),
            locked: Ok(u64::MAX),
            locks_freely: false,
            file_max: Ok(1_000_000),
            somaxconn: Ok(4096),
            syn_backlog: Ok(2048),
            syn_cookies: Ok(1),
            memory: Ok(16 * GIB),
            group: Group::default(),
        }
    }

    fn wanted() -> Wanted {
        Wanted {
            sessions: 10_000,
            shards: 2,
            deliveries: Deliveries { workers: 2, attempts: 8 },
            backlog: 1024,
            memory: GIB,
            threads: 60,
        }
    }

    fn unseen<T>() -> Seen<T> {
        Err(Unseen::because("hidden"))
    }

    #[test]
    fn each_limit_is_judged_by_what_the_configuration_wants() {
        let with = |change: fn(&mut Limits)| {
            let mut limits = limits();
            change(&mut limits);
            limits
        };
        let table = [
            // (the limits, check, level, words)
            (limits(), "open files", Level::Ok, "100000"),
            (with(|l| l.descriptors = Ok(u64::MAX)), "open files", Level::Ok, "unlimited"),
            (with(|l| l.descriptors = Ok(1024)), "open files", Level::Warning, "room for 792 sessions"),
            (with(|l| l.descriptors = unseen()), "open files", Level::Note, "hidden"),
            (limits(), "locked memory", Level::Ok, "unlimited"),
            (with(|l| l.locked = Ok(8 << 20)), "locked memory", Level::Note, "LimitMEMLOCK=63M"),
            (
                with(|l| (l.locked, l.locks_freely) = (Ok(8 << 20), true)),
                "locked memory",
                Level::Ok,
                "CAP_IPC_LOCK",
            ),
            (with(|l| l.locked = Ok(64 << 10)), "locked memory", Level::Fault, "ulimit -l"),
            (with(|l| l.file_max = Ok(10_000)), "file-max", Level::Warning, "fs.file-max="),
            (limits(), "file-max", Level::Ok, "1000000"),
            (limits(), "somaxconn", Level::Ok, "1024"),
            (with(|l| l.somaxconn = Ok(128)), "somaxconn", Level::Warning, "net.core.somaxconn=1024"),
            (limits(), "SYN backlog", Level::Ok, "cookies on"),
            (with(|l| l.syn_backlog = Ok(128)), "SYN backlog", Level::Note, "tcp_max_syn_backlog=1024"),
            (with(|l| l.syn_cookies = Ok(0)), "SYN backlog", Level::Warning, "tcp_syncookies=1"),
            (with(|l| l.syn_cookies = unseen()), "SYN backlog", Level::Note, "hidden"),
            (limits(), "memory", Level::Ok, "16.0 GiB"),
            (with(|l| l.memory = Ok(GIB)), "memory", Level::Warning, "spool.memory_max"),
            (with(|l| l.group.memory = Some(GIB)), "memory", Level::Warning, "control group"),
            (limits(), "control group", Level::Ok, "no bound"),
            (with(|l| l.group.processors = Some(1.5)), "control group", Level::Warning, "1.50 cores"),
            (with(|l| l.group.processors = Some(2.0)), "control group", Level::Note, "2.00 cores"),
            (with(|l| l.group.tasks = Some(59)), "control group", Level::Warning, "TasksMax"),
            (with(|l| l.group.tasks = Some(60)), "control group", Level::Ok, "60 threads"),
        ];
        for (limits, check, level, words) in table {
            let findings = judge(&limits, &wanted());
            let finding = findings.iter().find(|finding| finding.check == check).unwrap();
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(format!("{finding:?}").contains(words), "no {words} in {finding:?}");
        }
        let few = Wanted { sessions: 999, ..wanted() };
        assert_eq!(open_files(&limits(), &few).level, Level::Warning);
    }

    #[test]
    fn the_limits_of_a_process_are_read_as_the_kernel_writes_them() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max locked memory         8388608              unlimited            bytes     \n\
                    Max open files            1024                 20000                files     ";
        assert_eq!(hard_limit(text, "Max open files"), Some(20_000));
        assert_eq!(hard_limit(text, "Max locked memory"), Some(u64::MAX));
        assert_eq!(hard_limit(text, "Max of something"), None);
        assert!(has_capability("Name:\tx\nCapEff:\t0000000000004000\n", IPC_LOCK));
        assert!(!has_capability("CapEff:\t0000000000003fff", IPC_LOCK));
        assert!(!has_capability("", IPC_LOCK));
    }

    #[test]
    fn control_groups_of_both_versions_are_read() {
        let none = Group::default();
        let table: [(&[(&str, &str)], Group); 6] = [
            (&[], none.clone()),
            (&[("memory.max", "max"), ("cpu.max", "max 100000"), ("pids.max", "max")], none.clone()),
            (
                &[
                    ("memory.max", "2000"),
                    ("memory.high", "1000"),
                    ("cpu.max", "150000 100000"),
                    ("pids.max", "9"),
                ],
                Group { memory: Some(1000), processors: Some(1.5), tasks: Some(9) },
            ),
            (
                &[
                    ("memory.limit_in_bytes", "9223372036854771712"),
                    ("cpu.cfs_quota_us", "-1"),
                    ("cpu.cfs_period_us", "1"),
                ],
                none.clone(),
            ),
            (
                &[
                    ("memory.limit_in_bytes", "4096"),
                    ("cpu.cfs_quota_us", "50000"),
                    ("cpu.cfs_period_us", "100000"),
                ],
                Group { memory: Some(4096), processors: Some(0.5), tasks: None },
            ),
            (&[("cpu.max", "0 0"), ("memory.max", "-")], none),
        ];
        for (files, expected) in table {
            let file =
                |name: &str| files.iter().find(|(one, _)| *one == name).map(|(_, text)| text.to_string());
            assert_eq!(Group::of(file), expected, "{files:?}");
        }
        let mut group = Group { memory: Some(5), processors: None, tasks: Some(7) };
        group.narrow(&Group { memory: Some(6), processors: Some(2.0), tasks: Some(3) });
        assert_eq!(group, Group { memory: Some(5), processors: Some(2.0), tasks: Some(3) });
    }
}
