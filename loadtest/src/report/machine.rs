//! The machine that the harness runs on, as Linux describes it.

use std::fs;

use serde::Serialize;

/// Where a run was made. Nothing of it is needed for a run, so what cannot be read is empty.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Machine {
    /// The kernel's name and release.
    pub kernel: String,
    /// What the processor calls itself; its architecture where it does not.
    pub processor: String,
    /// Processors that are online, hyper-threads counted.
    pub core_count: usize,
    /// Main memory, octets.
    pub memory_octets: u64,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let kernel = format!("{} {}", read("/proc/sys/kernel/ostype"), read("/proc/sys/kernel/osrelease"));
        Machine {
            kernel: kernel.split_whitespace().collect::<Vec<_>>().join(" "),
            memory_octets: memory(&read("/proc/meminfo")),
            ..processors(&read("/proc/cpuinfo"))
        }
    }
}

fn processors(cpuinfo: &str) -> Machine {
    let values = |name: &'static str| {
        let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        lines.filter(move |(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
    };
    // x86 says `model name`; most others say nothing of the kind for every processor.
    let name = values("model name").chain(values("Hardware")).find(|name| !name.is_empty());
    Machine {
        processor: name.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        core_count: values("processor").count(),
        ..Machine::default()
    }
}

fn memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_and_memory_are_read_as_linux_writes_them() {
        let cpuinfo =
            "processor\t: 0\nmodel name\t: Fast CPU @ 3.00GHz\n\nprocessor\t: 1\nmodel name\t: Fast CPU\n";
        let machine = processors(cpuinfo);
        assert_eq!((machine.processor.as_str(), machine.core_count), ("Fast CPU @ 3.00GHz", 2));
        assert_eq!(processors("").processor, std::env::consts::ARCH);
        assert_eq!(memory("MemTotal:       16384 kB\nMemFree:  1 kB\n"), 16 << 20);
        assert_eq!(memory(""), 0);
    }
}
