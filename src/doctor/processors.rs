//! Where the shards run: their cores, what else runs there, how far it is to memory, and what the clock costs.

use std::hint::black_box;
use std::path::Path;
use std::thread;
use std::time::Instant;

use super::cores::Cores;
use super::finding::Finding;
use super::reading::{self, Seen, Unseen};
use crate::config::{Config, Placement};

const CPU: &str = "/sys/devices/system/cpu";
const NODE: &str = "/sys/devices/system/node";

/// What was seen.
pub struct Processors {
    /// The shards' cores, one each; none: they are not pinned.
    pub pinned: Option<Cores>,
    pub shards: usize,
    /// They were named in the configuration.
    pub is_named: bool,
    pub online: Seen<Cores>,
    /// A thread of this process can be pinned there.
    pub allowed: Seen<Cores>,
    /// Nobody is scheduled there by himself (isolcpus).
    pub isolated: Seen<Cores>,
    /// The tick stops there (nohz_full).
    pub tickless: Seen<Cores>,
    /// Threads of each physical core, where there are several.
    pub siblings: Vec<Cores>,
    /// The cores of each node of memory.
    pub nodes: Vec<(usize, Cores)>,
    /// Of the shards' cores: governor and driver.
    pub governors: Seen<Vec<(String, String)>>,
    pub clock: Seen<String>,
    /// Nanoseconds that it takes to read it.
    pub clock_nanos: f64,
}

impl Processors {
    pub fn read(config: &Config, pinned: Option<Vec<u32>>) -> Self {
        let list = |path: &str| {
            let text = reading::text(path)?;
            Cores::from_list(&text).ok_or_else(|| Unseen(format!("{path} says {text:?}")))
        };
        let online = list(&format!("{CPU}/online"));
        let pinned: Option<Cores> = pinned.map(|cores| cores.into_iter().map(|core| core as usize).collect());
        let looked_at = pinned.clone().or(online.clone().ok()).unwrap_or_default();
        Processors {
            shards: config.cores.shards_count(),
            is_named: matches!(config.cores, Placement::Cores(_)),
            allowed: movable(&looked_at),
            isolated: list(&format!("{CPU}/isolated")),
            tickless: list(&format!("{CPU}/nohz_full")),
            siblings: siblings(&looked_at),
            nodes: nodes(),
            governors: governors(&looked_at),
            clock: reading::text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            clock_nanos: clock_nanos(),
            online,
            pinned,
        }
    }
}

/// Those that a thread can be pinned to. It is tried, for a mask says little: threads may leave their own, and isolated cores are in none.
fn movable(cores: &Cores) -> Seen<Cores> {
    /// The masks of the C library, and so of glommio, have so many.
    const CORES_MAX: usize = 1024;
    let move_to =
        |id: &usize| *id < CORES_MAX && core_affinity::set_for_current(core_affinity::CoreId { id: *id });
    let cores = cores.clone();
    let tried = thread::spawn(move || cores.0.into_iter().filter(move_to).collect()).join();
    tried.map_err(|_| Unseen::because("no thread can be moved"))
}

fn siblings(cores: &Cores) -> Vec<Cores> {
    let mut found: Vec<Cores> = Vec::new();
    for core in &cores.0 {
        let text =
            reading::text(format!("{CPU}/cpu{core}/topology/thread_siblings_list")).unwrap_or_default();
        let threads = Cores::from_list(&text).unwrap_or_default();
        if threads.0.len() > 1 && !found.contains(&threads) {
            found.push(threads);
        }
    }
    found
}

fn nodes() -> Vec<(usize, Cores)> {
    let node = |name: String| {
        let number = name.strip_prefix("node")?.parse().ok()?;
        let cores = Cores::from_list(&reading::text(Path::new(NODE).join(name).join("cpulist")).ok()?)?;
        Some((number, cores))
    };
    reading::names(NODE).into_iter().filter_map(node).collect()
}

fn governors(cores: &Cores) -> Seen<Vec<(String, String)>> {
    let mut found = Vec::new();
    for core in &cores.0 {
        let folder = format!("{CPU}/cpu{core}/cpufreq");
        if !Path::new(&folder).exists() {
            return Err(Unseen::because(
                "the kernel does not set the processor's frequency; a host or the firmware may",
            ));
        }
        let pair = (
            reading::text(format!("{folder}/scaling_governor"))?,
            reading::text(format!("{folder}/scaling_driver")).unwrap_or_default(),
        );
        if !found.contains(&pair) {
            found.push(pair);
        }
    }
    Ok(found)
}

fn clock_nanos() -> f64 {
    const READINGS: u32 = 20_000;
    let begun = Instant::now();
    for _ in 0..READINGS {
        black_box(Instant::now());
    }
    begun.elapsed().as_nanos() as f64 / f64::from(READINGS)
}

/// What it means.
pub fn judge(seen: &Processors) -> Vec<Finding> {
    let mut findings = vec![placement(seen)];
    findings.extend(threads(seen));
    findings.extend([isolation(seen), memory_nodes(seen), governor(seen), clock(seen)]);
    findings
}

fn placement(seen: &Processors) -> Finding {
    const CHECK: &str = "cores";
    let shards = seen.shards;
    let Some(pinned) = &seen.pinned else {
        let allowed = seen.allowed.as_ref().map(|cores| cores.0.len().to_string()).unwrap_or("fewer".into());
        return Finding::warning(CHECK, format!("{shards} shards on {allowed} cores: none is pinned"))
            .costs(
                "they take turns, each with all of its sessions waiting meanwhile, and wander between caches",
            )
            .mend("as many shards as cores, which is the default");
    };
    let absent = |there: &Seen<Cores>| there.as_ref().map(|there| pinned.without(there)).unwrap_or_default();
    let (offline, forbidden) = (absent(&seen.online), absent(&seen.allowed));
    if !offline.is_empty() {
        return Finding::fault(CHECK, format!("cores {offline} are not there, or offline"))
            .costs("the gateway does not start")
            .mend("name others in `cores`");
    }
    if !forbidden.is_empty() {
        return Finding::fault(CHECK, format!("this process may not run on cores {forbidden}"))
            .costs("the gateway does not start")
            .mend("name others in `cores`; or see AllowedCPUs= of the unit, and the container's cpuset");
    }
    let rest = seen.online.as_ref().map(|online| online.without(pinned)).unwrap_or_default();
    let rest = match rest.is_empty() {
        true => "deliveries and the system share them".to_string(),
        false => format!("{rest} are left to deliveries and the system"),
    };
    let by = if seen.is_named { "" } else { ", the first that this process may use" };
    Finding::ok(CHECK, format!("{shards} shards pinned to {pinned}{by}; {rest}"))
}

/// Two shards on one physical core.
fn threads(seen: &Processors) -> Option<Finding> {
    let pinned = seen.pinned.as_ref()?;
    let shared: Vec<_> =
        seen.siblings.iter().map(|threads| threads.and(pinned)).filter(|both| both.0.len() > 1).collect();
    let first = shared.first()?;
    let found = format!(
        "shards on {first} share a physical core{}",
        match shared.len() {
            1 => String::new(),
            count => format!(", and so in {} more cases", count - 1),
        }
    );
    Some(
        Finding::note("core threads", found)
            .costs("each is slower than on a core of its own; together they usually do somewhat more than one")
            .mend("`cores` with one thread of each: see thread_siblings_list in /sys/devices/system/cpu/cpu*/topology"),
    )
}

fn isolation(seen: &Processors) -> Finding {
    const CHECK: &str = "isolation";
    let isolated = match &seen.isolated {
        Ok(isolated) => isolated,
        Err(why) => return Finding::unseen(CHECK, why),
    };
    let tickless = match seen.tickless.clone().unwrap_or_default() {
        cores if cores.is_empty() => String::new(),
        cores => format!("; the tick stops on {cores}"),
    };
    if isolated.is_empty() {
        return Finding::ok(CHECK, format!("no core is isolated, and none need be{tickless}"));
    }
    let found = format!("cores {isolated} are isolated{tickless}");
    match &seen.pinned {
        Some(pinned) if pinned.without(isolated).is_empty() => {
            Finding::ok(CHECK, format!("{found}, which all shards are on"))
        }
        Some(pinned) if pinned.and(isolated).is_empty() => {
            Finding::note(CHECK, format!("{found}, and no shard is on them"))
                .costs("nothing of the gateway runs there")
                .mend("`cores` names them, or they are not isolated")
        }
        Some(pinned) => {
            Finding::note(CHECK, format!("{found}; shards on {} have company", pinned.without(isolated)))
                .costs("shards are not equally quick")
                .mend("`cores` with isolated ones only")
        }
        None => Finding::note(CHECK, format!("{found}, and no shard is pinned"))
            .costs("nothing of the gateway runs there")
            .mend("`cores` names them"),
    }
}

fn memory_nodes(seen: &Processors) -> Finding {
    const CHECK: &str = "NUMA";
    match &seen.nodes[..] {
        [] => Finding::unseen(CHECK, &Unseen::because("/sys/devices/system/node shows none")),
        [_] => Finding::ok(CHECK, "one node"),
        nodes => {
            let Some(pinned) = &seen.pinned else {
                return Finding::warning(
                    CHECK,
                    format!("{} nodes, and shards that are not pinned", nodes.len()),
                )
                .costs("a shard wanders away from its memory")
                .mend("as many shards as cores, or fewer");
            };
            let with_shards: Vec<_> =
                nodes.iter().filter(|(_, cores)| !cores.and(pinned).is_empty()).collect();
            match &with_shards[..] {
                [(number, _)] => {
                    Finding::ok(CHECK, format!("{} nodes, all shards on node {number}", nodes.len()))
                }
                several => {
                    let named: Vec<_> =
                        several.iter().map(|(n, cores)| format!("node {n}: {}", cores.and(pinned))).collect();
                    Finding::note(CHECK, format!("shards on {} nodes ({})", several.len(), named.join("; ")))
                        .costs("shards share nothing on the way of a message but the network card and the disk, which are near to one node only")
                        .mend("`cores` of the node of the card, where its cores are enough; or a gateway for each node")
                }
            }
        }
    }
}

fn governor(seen: &Processors) -> Finding {
    const CHECK: &str = "governor";
    let governors = match &seen.governors {
        Ok(governors) => governors,
        Err(why) => return Finding::unseen(CHECK, why),
    };
    // These choose frequencies by themselves, and their governor is a hint.
    let chooses = |driver: &str| driver.starts_with("intel_pstate") || driver.starts_with("amd-pstate-epp");
    let names: Vec<_> = governors.iter().map(|(governor, driver)| format!("{governor} ({driver})")).collect();
    let names = names.join(", ");
    let slow = |(governor, driver): &(String, String)| match governor.as_str() {
        "performance" => 0,
        "powersave" if chooses(driver) => 1,
        "powersave" => 2,
        _ => 1,
    };
    const MEND: &str = "cpupower frequency-set -g performance";
    match governors.iter().map(slow).max() {
        None | Some(0) => Finding::ok(CHECK, names),
        Some(1) => Finding::note(CHECK, names)
            .costs(
                "a core that has been idle answers its first messages slowly, until its frequency is raised",
            )
            .mend(MEND),
        Some(_) => {
            Finding::warning(CHECK, names).costs("the cores stay at their lowest frequency").mend(MEND)
        }
    }
}

fn clock(seen: &Processors) -> Finding {
    const CHECK: &str = "clock";
    /// Above this it was no reading of a register.
    const SLOW_NANOS: f64 = 300.0;
    let name = match &seen.clock {
        Ok(name) => name.as_str(),
        Err(_) => "its name cannot be seen here",
    };
    let found = format!("{name}, {:.0} ns a reading", seen.clock_nanos);
    let finding = match seen.clock_nanos > SLOW_NANOS || matches!(name, "hpet" | "acpi_pm" | "jiffies") {
        true => Finding::warning(CHECK, found)
            .costs("the time is read several times for each message, and each time the kernel is asked")
            .mend("tsc, or the hypervisor's: see available_clocksource beside it, and `dmesg | grep -i tsc` for why it was given up"),
        false => Finding::ok(CHECK, found),
    };
    finding.number("clock_nanos", seen.clock_nanos)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn list(text: &str) -> Cores {
        Cores::from_list(text).unwrap()
    }

    fn seen() -> Processors {
        Processors {
            pinned: Some(list("0-3")),
            shards: 4,
            is_named: true,
            online: Ok(list("0-7")),
            allowed: Ok(list("0-7")),
            isolated: Ok(Cores::default()),
            tickless: Err(Unseen::because("none")),
            siblings: Vec::new(),
            nodes: vec![(0, list("0-7"))],
            governors: Ok(vec![("performance".into(), "acpi-cpufreq".into())]),
            clock: Ok("tsc".into()),
            clock_nanos: 25.0,
        }
    }

    #[test]
    fn each_matter_of_cores_is_judged() {
        let with = |change: fn(&mut Processors)| {
            let mut seen = seen();
            change(&mut seen);
            seen
        };
        let governor = |name: &str, driver: &str| {
            let governors =
                Ok(vec![("performance".into(), "x".into()), (name.to_string(), driver.to_string())]);
            Processors { governors, ..seen() }
        };
        let table = [
            // (what was seen, check, level, words)
            (seen(), "cores", Level::Ok, "4-7 are left"),
            (with(|s| s.is_named = false), "cores", Level::Ok, "the first that"),
            (with(|s| s.online = Ok(list("0-3"))), "cores", Level::Ok, "share them"),
            (with(|s| s.pinned = None), "cores", Level::Warning, "none is pinned"),
            (with(|s| s.online = Ok(list("0-1"))), "cores", Level::Fault, "cores 2-3 are not there"),
            (with(|s| s.allowed = Ok(list("1-3"))), "cores", Level::Fault, "may not run on cores 0"),
            (
                with(|s| s.siblings = vec![list("0,2"), list("1,3")]),
                "core threads",
                Level::Note,
                "one more|1 more",
            ),
            (seen(), "isolation", Level::Ok, "none need be"),
            (with(|s| s.isolated = Ok(list("0-3"))), "isolation", Level::Ok, "all shards"),
            (with(|s| s.isolated = Ok(list("2-5"))), "isolation", Level::Note, "shards on 0-1 have company"),
            (with(|s| s.isolated = Ok(list("4-7"))), "isolation", Level::Note, "no shard is on them"),
            (
                with(|s| (s.isolated, s.tickless) = (Ok(list("0-3")), Ok(list("1")))),
                "isolation",
                Level::Ok,
                "stops on 1",
            ),
            (with(|s| s.isolated = Err(Unseen::because("hidden"))), "isolation", Level::Note, "hidden"),
            (seen(), "NUMA", Level::Ok, "one node"),
            (
                with(|s| s.nodes = vec![(0, list("0-3")), (1, list("4-7"))]),
                "NUMA",
                Level::Ok,
                "all shards on node 0",
            ),
            (
                with(|s| s.nodes = vec![(0, list("0-1")), (1, list("2-7"))]),
                "NUMA",
                Level::Note,
                "node 1: 2-3",
            ),
            (with(|s| s.nodes = Vec::new()), "NUMA", Level::Note, "cannot be seen"),
            (seen(), "governor", Level::Ok, "performance"),
            (governor("powersave", "intel_pstate"), "governor", Level::Note, "powersave"),
            (governor("powersave", "acpi-cpufreq"), "governor", Level::Warning, "lowest"),
            (governor("schedutil", "intel_cpufreq"), "governor", Level::Note, "schedutil"),
            (
                with(|s| s.governors = Err(Unseen::because("a host may"))),
                "governor",
                Level::Note,
                "a host may",
            ),
            (seen(), "clock", Level::Ok, "tsc, 25 ns"),
            (with(|s| s.clock = Ok("hpet".into())), "clock", Level::Warning, "available_clocksource"),
            (with(|s| s.clock_nanos = 900.0), "clock", Level::Warning, "900 ns"),
        ];
        for (seen, check, level, words) in table {
            let findings = judge(&seen);
            let finding = findings.iter().find(|finding| finding.check == check).unwrap();
            assert_eq!(finding.level, level, "{finding:?}");
            let said = format!("{finding:?}");
            assert!(words.split('|').any(|words| said.contains(words)), "no {words} in {said}");
        }
        // One thread of each core is as it should be.
        let apart = with(|s| s.siblings = vec![list("0,4"), list("1,5")]);
        assert!(judge(&apart).iter().all(|finding| finding.check != "core threads"));
    }
}
