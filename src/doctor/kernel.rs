//! The kernel: whether it gives us the ring that everything runs on, and what it runs on itself.

use rustix::io_uring::{IoringOp, IoringRegisterOp, io_uring_params, io_uring_register, io_uring_setup};

use super::finding::Finding;
use super::reading::{self, Seen};

/// The operations that glommio asks the kernel for before it starts (its list), by their names.
const OPERATIONS: [(&str, IoringOp); 23] = [
    ("nop", IoringOp::Nop),
    ("readv", IoringOp::Readv),
    ("writev", IoringOp::Writev),
    ("fsync", IoringOp::Fsync),
    ("read_fixed", IoringOp::ReadFixed),
    ("write_fixed", IoringOp::WriteFixed),
    ("poll_add", IoringOp::PollAdd),
    ("poll_remove", IoringOp::PollRemove),
    ("sendmsg", IoringOp::Sendmsg),
    ("recvmsg", IoringOp::Recvmsg),
    ("timeout", IoringOp::Timeout),
    ("timeout_remove", IoringOp::TimeoutRemove),
    ("accept", IoringOp::Accept),
    ("link_timeout", IoringOp::LinkTimeout),
    ("connect", IoringOp::Connect),
    ("fallocate", IoringOp::Fallocate),
    ("openat", IoringOp::Openat),
    ("close", IoringOp::Close),
    ("statx", IoringOp::Statx),
    ("read", IoringOp::Read),
    ("write", IoringOp::Write),
    ("send", IoringOp::Send),
    ("recv", IoringOp::Recv),
];

/// What became of an attempt to make a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ring {
    /// It was made; these operations are missing.
    Made(Vec<&'static str>),
    /// The kernel refused, with this error.
    Refused(i32),
}

/// What there is to know of the kernel.
pub struct Kernel {
    pub release: Seen<String>,
    pub ring: Ring,
    /// `kernel.io_uring_disabled`.
    pub disabled: Seen<u32>,
    /// Who else is between it and the machine.
    pub beneath: Beneath,
}

/// Signs of a machine that is not one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beneath {
    /// The processor says that it is virtual.
    pub is_virtual: bool,
    /// A container's manager has left its mark.
    pub is_container: bool,
}

impl Kernel {
    pub fn read() -> Self {
        let exists = |path: &str| std::path::Path::new(path).exists();
        let processors = reading::text("/proc/cpuinfo").unwrap_or_default();
        let flags = processors.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        Kernel {
            release: reading::text("/proc/sys/kernel/osrelease"),
            ring: try_ring(),
            disabled: reading::number("/proc/sys/kernel/io_uring_disabled"),
            beneath: Beneath {
                is_virtual: flags.split_ascii_whitespace().any(|flag| flag == "hypervisor")
                    || exists("/sys/hypervisor/type"),
                is_container: ["/run/systemd/container", "/run/.containerenv", "/.dockerenv"]
                    .into_iter()
                    .any(exists),
            },
        }
    }
}

/// Makes a ring, asks it what it can do, and lets it go.
fn try_ring() -> Ring {
    /// A probe: 16 octets of header, whose second is a count, and 8 for each operation: its number, and in the third its flags.
    const HEADER_SIZE: usize = 16;
    const ENTRY_SIZE: usize = 8;
    const ENTRIES: usize = 256;
    const IS_SUPPORTED: u8 = 1;
    let mut params = io_uring_params::default();
    // SAFETY: a new ring's descriptor is owned by what is returned and closed with it; nothing is mapped or submitted.
    let ring = match unsafe { io_uring_setup(8, &mut params) } {
        Ok(ring) => ring,
        Err(error) => return Ring::Refused(error.raw_os_error()),
    };
    // Words, for the kernel wants them aligned.
    let mut probe = [0_u64; (HEADER_SIZE + ENTRY_SIZE * ENTRIES) / 8];
    // SAFETY: the kernel writes at most a header and so many entries, which is what there is.
    let asked = unsafe {
        io_uring_register(&ring, IoringRegisterOp::RegisterProbe, probe.as_mut_ptr().cast(), ENTRIES as u32)
    };
    if let Err(error) = asked {
        return Ring::Refused(error.raw_os_error());
    }
    let octets: Vec<u8> = probe.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let is_there = |operation: IoringOp| {
        let number = operation as usize;
        let entry = &octets[HEADER_SIZE + number * ENTRY_SIZE..][..ENTRY_SIZE];
        number < usize::from(octets[1]) && entry[2] & IS_SUPPORTED != 0
    };
    Ring::Made(
        OPERATIONS.iter().filter(|(_, operation)| !is_there(*operation)).map(|(name, _)| *name).collect(),
    )
}

/// What it means.
pub fn judge(kernel: &Kernel) -> Vec<Finding> {
    vec![ring(kernel), machine(&kernel.beneath)]
}

fn ring(kernel: &Kernel) -> Finding {
    const CHECK: &str = "io_uring";
    const NO_START: &str = "the gateway does not start";
    let release = kernel.release.as_deref().unwrap_or("of unknown release");
    match &kernel.ring {
        Ring::Refused(errno) => {
            let error = std::io::Error::from_raw_os_error(*errno);
            let found = format!("kernel {release}: cannot make an io_uring: {error}");
            Finding::fault(CHECK, found).costs(NO_START).mend(crate::gateway::ring_remedy(&error))
        }
        Ring::Made(missing) if !missing.is_empty() => {
            let found = format!("kernel {release} lacks these operations: {}", missing.join(", "));
            Finding::fault(CHECK, found).costs(NO_START).mend("Linux 5.8 or later is needed")
        }
        // Ours was made because this user may.
        Ring::Made(_) => match kernel.disabled {
            Ok(1) => Finding::note(
                CHECK,
                format!("kernel {release}: only for the privileged (kernel.io_uring_disabled = 1)"),
            )
            .costs("this user may make rings; a gateway of another user may not start")
            .mend("sysctl kernel.io_uring_disabled=0, or put the gateway's group into kernel.io_uring_group"),
            _ => Finding::ok(
                CHECK,
                format!("kernel {release}, with all {} operations that are needed", OPERATIONS.len()),
            ),
        },
    }
}

fn machine(beneath: &Beneath) -> Finding {
    const CHECK: &str = "machine";
    let (is_virtual, is_container) = (beneath.is_virtual, beneath.is_container);
    let kind = match (is_virtual, is_container) {
        (false, false) => return Finding::ok(CHECK, "no sign of a virtual machine or a container"),
        (true, false) => "a virtual machine",
        (false, true) => "a container",
        (true, true) => "a container in a virtual machine",
    };
    let hidden = match is_virtual {
        true => {
            "what the host does with flushes, interrupts and cores cannot be seen from here: what follows is what it shows"
        }
        false => "limits and interrupts may be hidden by the container: what follows is what it shows",
    };
    Finding::note(CHECK, format!("{kind}: {hidden}"))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn kernel(ring: Ring, disabled: Seen<u32>) -> Kernel {
        Kernel { release: Ok("6.1.0-test".into()), ring, disabled, beneath: Beneath::default() }
    }

    #[test]
    fn without_a_ring_there_is_no_start_and_the_remedy_fits_the_refusal() {
        let unseen = || Err(reading::Unseen::because("no such file"));
        let table = [
            // (the ring, io_uring_disabled, level, words)
            (Ring::Made(vec![]), Ok(0), Level::Ok, "6.1.0-test"),
            (Ring::Made(vec![]), unseen(), Level::Ok, "operations"),
            (Ring::Made(vec![]), Ok(1), Level::Note, "io_uring_group"),
            (Ring::Made(vec!["statx", "send"]), Ok(0), Level::Fault, "statx, send"),
            (Ring::Refused(libc::EPERM), Ok(2), Level::Fault, "seccomp"),
            (Ring::Refused(libc::ENOSYS), unseen(), Level::Fault, "Linux 5.8"),
            (Ring::Refused(libc::ENOMEM), unseen(), Level::Fault, "ulimit -l"),
        ];
        for (made, disabled, level, words) in table {
            let finding = ring(&kernel(made.clone(), disabled));
            assert_eq!(finding.level, level, "{made:?}");
            let said = format!("{finding:?}");
            assert!(said.contains(words), "{made:?}: no {words} in {said}");
        }
    }

    #[test]
    fn this_kernel_is_seen_as_it_is() {
        // The tests run shards, so there is a ring.
        assert_eq!(try_ring(), Ring::Made(vec![]));
    }

    #[test]
    fn what_is_virtual_is_said_to_hide_something() {
        for (is_virtual, is_container, level) in [
            (false, false, Level::Ok),
            (true, false, Level::Note),
            (false, true, Level::Note),
            (true, true, Level::Note),
        ] {
            assert_eq!(machine(&Beneath { is_virtual, is_container }).level, level);
        }
    }
}
