//! The network cards that mail comes by: their queues, and the cores that their packets arrive on.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use super::cores::Cores;
use super::finding::Finding;
use super::reading::{self, Seen, Unseen};
use crate::config::Config;

const NET: &str = "/sys/class/net";

/// The shards, as the network sees them.
pub struct Shards {
    /// Their cores, where they are pinned.
    pub pinned: Option<Cores>,
    pub count: usize,
    /// A listener is steered.
    pub is_steered: bool,
}

impl Shards {
    pub fn new(config: &Config, pinned: Option<Vec<u32>>) -> Self {
        Shards {
            pinned: pinned.map(|cores| cores.into_iter().map(|core| core as usize).collect()),
            count: config.cores.shards_count(),
            is_steered: config.listeners.iter().any(|listener| listener.steering),
        }
    }
}

/// What was seen.
pub struct Network {
    /// Every listener is on loopback.
    pub is_local: bool,
    /// Those that a listener's address is on; where one listens everywhere, all.
    pub cards: Seen<Vec<Card>>,
    /// A process of that name runs: it moves interrupts.
    pub has_irqbalance: bool,
}

/// One card.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    pub name: String,
    pub queues: usize,
    /// Of each queue, where its packets are passed on to (RPS); empty: nowhere.
    pub passed_to: Vec<Cores>,
    /// Where its interrupts for receiving go.
    pub interrupts: Seen<Cores>,
    /// Its node of memory, where it has one.
    pub node: Option<usize>,
}

impl Card {
    /// The cores that its packets arrive on.
    fn arrives_on(&self) -> Seen<Cores> {
        let mut cores = Cores::default();
        if self.passed_to.iter().any(Cores::is_empty) || self.passed_to.is_empty() {
            cores.add(self.interrupts.as_ref().map_err(Clone::clone)?);
        }
        self.passed_to.iter().for_each(|passed_to| cores.add(passed_to));
        Ok(cores)
    }
}

impl Network {
    pub fn read(config: &Config) -> Self {
        let addresses: Vec<_> =
            config.listeners.iter().map(|listener| listener.address.ip().to_canonical()).collect();
        let is_local = config.listeners.iter().all(|listener| listener.is_loopback());
        Network {
            is_local,
            cards: if is_local { Ok(Vec::new()) } else { cards(&addresses) },
            has_irqbalance: !is_local && runs("irqbalance"),
        }
    }
}

fn runs(program: &str) -> bool {
    let processes =
        reading::names("/proc").into_iter().filter(|name| name.bytes().all(|c| c.is_ascii_digit()));
    processes
        .into_iter()
        .any(|id| reading::text(format!("/proc/{id}/comm")).is_ok_and(|name| name == program))
}

fn cards(addresses: &[IpAddr]) -> Seen<Vec<Card>> {
    let everywhere = addresses.iter().any(IpAddr::is_unspecified);
    let interfaces: BTreeSet<String> = match everywhere {
        true => reading::names(NET).into_iter().collect(),
        false => {
            interfaces()?.into_iter().filter(|(_, ip)| addresses.contains(ip)).map(|(name, _)| name).collect()
        }
    };
    let mut found = BTreeSet::new();
    interfaces.iter().for_each(|name| beneath(name, 0, &mut found));
    match found.is_empty() {
        true => Err(Unseen::because(
            "no network card is beneath the listeners' addresses: a container or a virtual interface has its packets from elsewhere",
        )),
        false => Ok(found.into_iter().map(card).collect()),
    }
}

/// Each interface's addresses.
fn interfaces() -> Seen<Vec<(String, IpAddr)>> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: on success it fills `first` with a list that is ours until it is freed below.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(Unseen(format!("getifaddrs: {}", std::io::Error::last_os_error())));
    }
    let mut found = Vec::new();
    let mut next = first;
    // SAFETY: the list's entries, names and addresses are valid until it is freed; an address is read as what its family says it is.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        let ip = unsafe {
            match entry.ifa_addr.as_ref().map(|address| i32::from(address.sa_family)) {
                Some(libc::AF_INET) => {
                    let address = &*entry.ifa_addr.cast::<libc::sockaddr_in>();
                    IpAddr::V4(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)))
                }
                Some(libc::AF_INET6) => {
                    let address = &*entry.ifa_addr.cast::<libc::sockaddr_in6>();
                    IpAddr::V6(Ipv6Addr::from(address.sin6_addr.s6_addr))
                }
                _ => continue,
            }
        };
        // SAFETY: as above; it ends with a null.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) };
        found.push((name.to_string_lossy().into_owned(), ip));
    }
    // SAFETY: it is the list of above, freed once.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

/// The cards beneath an interface: itself, or those that a bond, a bridge or a VLAN is made of.
fn beneath(name: &str, depth: usize, found: &mut BTreeSet<String>) {
    let folder = Path::new(NET).join(name);
    if folder.join("device").exists() {
        found.insert(name.to_string());
    } else if depth < 4 {
        let lower = reading::names(&folder).into_iter();
        lower
            .filter_map(|entry| entry.strip_prefix("lower_").map(str::to_string))
            .for_each(|name| beneath(&name, depth + 1, found));
    }
}

fn card(name: String) -> Card {
    let folder = Path::new(NET).join(&name);
    let queues: Vec<_> =
        reading::names(folder.join("queues")).into_iter().filter(|queue| queue.starts_with("rx-")).collect();
    let passed_to = |queue: &String| {
        let mask = reading::text(folder.join("queues").join(queue).join("rps_cpus")).unwrap_or_default();
        Cores::from_mask(&mask).unwrap_or_default()
    };
    let device = folder.join("device").canonicalize().unwrap_or_default();
    // Virtual cards are a layer above the device that has the interrupts.
    let places: [PathBuf; 2] = [device.clone(), device.parent().unwrap_or(&device).to_path_buf()];
    let node = places.iter().find_map(|place| reading::number::<i64>(place.join("numa_node")).ok());
    Card {
        queues: queues.len(),
        passed_to: queues.iter().map(passed_to).collect(),
        interrupts: interrupts(&places),
        node: node.and_then(|node| usize::try_from(node).ok()),
        name,
    }
}

fn interrupts(places: &[PathBuf]) -> Seen<Cores> {
    let numbers =
        places.iter().map(|place| reading::names(place.join("msi_irqs"))).find(|numbers| !numbers.is_empty());
    let Some(numbers) = numbers else { return Err(Unseen::because("the card does not show its interrupts")) };
    let named = reading::text("/proc/interrupts").unwrap_or_default();
    let mut cores = Cores::default();
    for number in receiving(&named, &numbers) {
        let folder = Path::new("/proc/irq").join(&number);
        let text = reading::text(folder.join("effective_affinity_list"))
            .ok()
            .filter(|text| !text.is_empty())
            .map_or_else(|| reading::text(folder.join("smp_affinity_list")), Ok)?;
        cores.add(
            &Cores::from_list(&text).ok_or_else(|| Unseen(format!("/proc/irq/{number} says {text:?}")))?,
        );
    }
    match cores.is_empty() {
        true => Err(Unseen::because("the interrupts of the card have no cores")),
        false => Ok(cores),
    }
}

/// Those interrupts that are not by their names for something else than receiving.
fn receiving(named: &str, numbers: &[String]) -> Vec<String> {
    const OTHERS: [&str; 8] = ["config", "output", "tx", "async", "mgmt", "admin", "event", "ctrl"];
    let name = |number: &str| {
        let line =
            named.lines().find_map(|line| line.trim_start().strip_prefix(number)?.strip_prefix(':'))?;
        line.split_ascii_whitespace().last().map(str::to_ascii_lowercase)
    };
    let is_other = |number: &&String| {
        // A queue for both directions is often called TxRx.
        name(number)
            .is_some_and(|name| OTHERS.iter().any(|other| name.contains(other)) && !name.contains("rx"))
    };
    let rest: Vec<_> = numbers.iter().filter(|number| !is_other(number)).cloned().collect();
    if rest.is_empty() { numbers.to_vec() } else { rest }
}

/// What it means.
pub fn judge(network: &Network, shards: &Shards) -> Vec<Finding> {
    const CHECK: &str = "network card";
    let mut findings = Vec::new();
    if shards.is_steered && shards.pinned.is_none() {
        findings.push(
            Finding::warning("steering", "a listener is steered, and no shard is pinned")
                .costs("steering does nothing")
                .mend("as many shards as cores, or fewer"),
        );
    }
    if network.is_local {
        findings.push(Finding::ok(CHECK, "every listener is on loopback: no card takes part"));
        return findings;
    }
    match &network.cards {
        Ok(cards) => findings.extend(cards.iter().map(|card| judge_card(card, shards))),
        Err(why) => findings.push(Finding::unseen(CHECK, why)),
    }
    if network.has_irqbalance && shards.is_steered {
        findings.push(
            Finding::note("irqbalance", "it runs")
                .costs("it moves interrupts, and with them the connections of a steered listener, from core to core")
                .mend("systemctl disable --now irqbalance, or --banirq= for each interrupt of the card"),
        );
    }
    findings
}

fn judge_card(card: &Card, shards: &Shards) -> Finding {
    const CHECK: &str = "network card";
    let Card { name, queues, node, .. } = card;
    let s = if *queues == 1 { "" } else { "s" };
    let node = node.map(|node| format!(", node {node}")).unwrap_or_default();
    let arrives_on = match card.arrives_on() {
        Ok(cores) => cores,
        Err(Unseen(why)) => {
            let found = format!(
                "{name}: {queues} receive queue{s}{node}; where its packets arrive cannot be seen here: {why}"
            );
            return Finding::note(CHECK, found);
        }
    };
    let found = format!("{name}: {queues} receive queue{s}{node}; packets arrive on cores {arrives_on}");
    let more = format!(
        "ethtool -L {name} combined {count}, where the card has as many; else RPS: a mask of the shards' cores into \
         /sys/class/net/{name}/queues/rx-*/rps_cpus",
        count = shards.count
    );
    match &shards.pinned {
        Some(pinned) if shards.is_steered => match pinned.without(&arrives_on) {
            missing if missing.is_empty() => Finding::ok(CHECK, format!("{found}, which every shard has one of")),
            missing => Finding::warning(CHECK, format!("{found}, and none on {missing}"))
                .costs("with steering the shards there get no connections from this card")
                .mend(format!("{more}; and an interrupt for each core: echo CORE > /proc/irq/N/smp_affinity_list")),
        },
        _ if shards.count > 1 && arrives_on.0.len() == 1 => Finding::note(CHECK, found)
            .costs("one core does the kernel's work for the packets of all shards: it is full before the others are")
            .mend(more),
        _ => Finding::ok(CHECK, found),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn list(text: &str) -> Cores {
        Cores::from_list(text).unwrap()
    }

    #[test]
    fn interrupts_for_receiving_are_told_from_the_rest() {
        let named = "            CPU0  CPU1\n 35:  0  1  IO-APIC 5-edge  virtio1-config\n 38:  7  8  PCI-MSIX-0 1-edge  virtio1-input.0\n \
                     39:  7  8  PCI-MSIX-0 2-edge  virtio1-output.0\n 138:  7  8  PCI-MSIX-0 2-edge  eth1-TxRx-0\n 140: 1 1 x  mlx5_async0@pci\n\
                     NMI:  0  0  Non-maskable interrupts";
        let table: [(&[&str], &[&str]); 4] = [
            (&["35", "38", "39"], &["38"]),
            (&["138", "140"], &["138"]),
            (&["77"], &["77"]),
            // Better all than none.
            (&["35", "39"], &["35", "39"]),
        ];
        for (numbers, expected) in table {
            let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
            assert_eq!(receiving(named, &numbers), expected);
        }
    }

    fn card(queues: usize, interrupts: &str, passed_to: &str) -> Card {
        Card {
            name: "eth0".into(),
            queues,
            passed_to: vec![list(passed_to); queues],
            interrupts: Ok(list(interrupts)),
            node: Some(0),
        }
    }

    #[test]
    fn a_card_is_judged_by_where_its_packets_arrive() {
        let unseen = Card { interrupts: Err(Unseen::because("hidden")), ..card(2, "0", "") };
        let table = [
            // (card, cores, steering, level, words)
            (card(4, "0-3", ""), "0-3", true, Level::Ok, "every shard"),
            (card(4, "0-3", ""), "0-3", false, Level::Ok, "cores 0-3"),
            (card(2, "0-1", ""), "0-3", true, Level::Warning, "none on 2-3"),
            (card(2, "0-1", ""), "0-3", false, Level::Ok, "2 receive queues"),
            (card(1, "0", ""), "0-3", false, Level::Note, "ethtool -L eth0 combined 4"),
            (card(1, "0", ""), "0-3", true, Level::Warning, "rps_cpus"),
            (card(1, "0", ""), "0", false, Level::Ok, "1 receive queue,"),
            (card(1, "7", "0-3"), "0-3", true, Level::Ok, "cores 0-3"),
            (card(1, "7", "0-3"), "0-3", false, Level::Ok, "cores 0-3"),
            (unseen.clone(), "0-3", true, Level::Note, "hidden"),
            // Where all is passed on it does not matter where it came in.
            (Card { passed_to: vec![list("0-3"); 2], ..unseen }, "0-3", true, Level::Ok, "cores 0-3"),
        ];
        for (card, cores, is_steered, level, words) in table {
            let pinned = list(cores);
            let shards = Shards { count: pinned.0.len(), pinned: Some(pinned), is_steered };
            let finding = judge_card(&card, &shards);
            assert_eq!(finding.level, level, "{card:?}: {finding:?}");
            assert!(format!("{finding:?}").contains(words), "no {words} in {finding:?}");
        }
    }

    #[test]
    fn what_is_around_the_cards_is_told() {
        let shards =
            |pinned: Option<&str>, is_steered| Shards { pinned: pinned.map(list), count: 2, is_steered };
        let network =
            |has_irqbalance| Network { is_local: false, cards: Ok(vec![card(2, "0-1", "")]), has_irqbalance };
        let local = Network { is_local: true, cards: Ok(Vec::new()), has_irqbalance: false };
        let hidden = Network { cards: Err(Unseen::because("virtual")), ..network(false) };
        type Row<'a> = (Network, Shards, &'a [(&'a str, Level)]);
        let table: [Row; 6] = [
            (local, shards(Some("0-1"), false), &[("network card", Level::Ok)]),
            (network(true), shards(Some("0-1"), false), &[("network card", Level::Ok)]),
            (
                network(true),
                shards(Some("0-1"), true),
                &[("network card", Level::Ok), ("irqbalance", Level::Note)],
            ),
            (network(false), shards(Some("0-1"), true), &[("network card", Level::Ok)]),
            (
                network(false),
                shards(None, true),
                &[("steering", Level::Warning), ("network card", Level::Ok)],
            ),
            (hidden, shards(None, false), &[("network card", Level::Note)]),
        ];
        for (network, shards, expected) in table {
            let found: Vec<_> =
                judge(&network, &shards).iter().map(|finding| (finding.check, finding.level)).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn this_machine_has_a_loopback_interface() {
        let found = interfaces().unwrap();
        assert!(found.contains(&("lo".into(), IpAddr::V4(Ipv4Addr::LOCALHOST))), "{found:?}");
    }
}
