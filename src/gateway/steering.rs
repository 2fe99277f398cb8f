//! Reuse-port steering: a connection goes to the shard of the core that its first packet arrived on.
//!
//! The sockets of a listener share its port, and the kernel chooses among them by a hash of the addresses. With `steering` a small program
//! chooses instead: the kernel runs it for the packet that opens a connection, and takes what it returns for the
//! number of a socket, in the order in which they began to listen. That is the order of the shards.
//!
//! Invariants:
//! - every answer is the number of a socket: a core without a shard is counted down to one of them;
//! - it is attached only where every shard stays on one core: a shard that wanders has no packets of its own.
//!
//! Does not know which cores packets arrive on: that is the network card's and its interrupts' business (`incoming doctor` shows it).
//! Where one socket of a group is closed before the others the kernel moves the last into its place; all of a gateway are closed together.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;

use glommio::Placement as Pin;
use libc::{
    BPF_A, BPF_ABS, BPF_ALU, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_MOD, BPF_RET, BPF_SUB,
    BPF_W,
};
use libc::{sock_filter, sock_fprog};

use super::running::placements;
use super::sockets::Sockets;
use crate::config::{Config, Listener};

/// Steers the connections of the listeners that want it, and those of no others; `sockets` are those of each shard, as they began to listen.
/// What cannot be done is logged: without it the kernel chooses, and everything works.
pub fn steer(config: &Config, sockets: &Sockets) {
    let (wanted, unwanted): (Vec<_>, Vec<_>) =
        config.listeners.iter().partition(|listener| listener.steering);
    unwanted.iter().filter_map(|listener| sockets.first_of(listener.address)).for_each(detach);
    if wanted.is_empty() {
        return;
    }
    let Some(cores) = pinned_cores(config) else {
        tracing::warn!(
            "listener.steering does nothing: there are more shards than cores, and none is pinned"
        );
        return;
    };
    let program = program(&cores);
    for Listener { address, .. } in wanted {
        let Some(socket) = sockets.first_of(*address) else { continue };
        match attach(socket, &program) {
            Ok(()) => tracing::debug!(%address, ?cores, "connections are steered to the core they arrive on"),
            Err(error) => {
                tracing::warn!(%address, %error, "cannot steer connections: the kernel spreads them over the shards");
            }
        }
    }
}

/// The core of each shard, in order; none if any of them is not pinned.
pub(crate) fn pinned_cores(config: &Config) -> Option<Vec<u32>> {
    let core = |pin| match pin {
        Pin::Fixed(core) => u32::try_from(core).ok(),
        _ => None,
    };
    placements(config).into_iter().map(core).collect()
}

/// Cores that follow each other, and so do their sockets.
struct Run {
    first: u32,
    last: u32,
    /// That of the first core.
    socket: u32,
}

/// The cores of the sockets, in runs.
fn runs(cores: &[u32]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (socket, core) in (0..).zip(cores.iter().copied()) {
        match runs.last_mut() {
            Some(run) if run.last + 1 == core => run.last = core,
            _ => runs.push(Run { first: core, last: core, socket }),
        }
    }
    runs
}

/// The program that leads each of `cores` to its place among them, and any other core to the place of its number modulo their count.
fn program(cores: &[u32]) -> Vec<sock_filter> {
    /// Where the kernel shows the core's number instead of the packet.
    const CPU: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_CPU) as u32;
    let step = |code: u32, k| sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump = |code, k, jt, jf| sock_filter { jt, jf, ..step(BPF_JMP | code | BPF_K, k) };
    let mut program = vec![step(BPF_LD | BPF_W | BPF_ABS, CPU)];
    for Run { first, last, socket } in runs(cores) {
        match first == last {
            true => program.extend([jump(BPF_JEQ, first, 0, 1), step(BPF_RET | BPF_K, socket)]),
            // Below or above: over the rest of these four.
            false => program.extend([
                jump(BPF_JGE, first, 0, 3),
                jump(BPF_JGT, last, 2, 0),
                step(BPF_ALU | BPF_SUB | BPF_K, first.wrapping_sub(socket)),
                step(BPF_RET | BPF_A, 0),
            ]),
        }
    }
    let count = u32::try_from(cores.len().max(1)).unwrap_or(u32::MAX);
    program.extend([step(BPF_ALU | BPF_MOD | BPF_K, count), step(BPF_RET | BPF_A, 0)]);
    program
}

/// Has the kernel choose again among the group of sockets that `socket` is in.
fn detach(socket: &TcpListener) {
    let nothing: libc::c_int = 0;
    // SAFETY: the kernel reads an integer that outlives the call. It fails where nothing is attached, which is as well.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_REUSEPORT_BPF,
            (&raw const nothing).cast(),
            size_of_val(&nothing) as libc::socklen_t,
        );
    }
}

/// Attaches it to the group of sockets that `socket` is in.
fn attach(socket: &TcpListener, program: &[sock_filter]) -> io::Result<()> {
    let size = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = sock_fprog { len: size, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads the program, which outlives the call, and copies it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream};
    use std::thread;
    use std::time::Duration;

    use super::super::sockets::bind;
    use super::*;
    use crate::limits::SHARDS_MAX;

    /// What the program returns on this core, as the kernel's own interpreter would have it.
    fn run(program: &[sock_filter], core: u32) -> u32 {
        let (mut accumulator, mut at) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let jump = |is_so| usize::from(if is_so { jt } else { jf });
            at += 1;
            match u32::from(code) {
                code if code == BPF_LD | BPF_W | BPF_ABS => {
                    assert_eq!(k, (-0x1000_i32 + 36) as u32, "the core's number");
                    accumulator = core;
                }
                code if code == BPF_JMP | BPF_JEQ | BPF_K => at += jump(accumulator == k),
                code if code == BPF_JMP | BPF_JGE | BPF_K => at += jump(accumulator >= k),
                code if code == BPF_JMP | BPF_JGT | BPF_K => at += jump(accumulator > k),
                code if code == BPF_ALU | BPF_SUB | BPF_K => accumulator = accumulator.wrapping_sub(k),
                code if code == BPF_ALU | BPF_MOD | BPF_K => accumulator %= k,
                code if code == BPF_RET | BPF_A => return accumulator,
                code if code == BPF_RET | BPF_K => return k,
                code => panic!("an instruction of code {code:#x}"),
            }
        }
    }

    #[test]
    fn each_core_leads_to_its_shard_and_others_to_one_of_them() {
        let table: &[&[u32]] = &[
            &[0],
            &[5],
            &[0, 1],
            &[0, 1, 2, 3, 8],
            &[2, 3, 4, 5],
            &[1, 3, 5, 7],
            &[4, 5, 6, 7, 12, 13, 14, 15, 40],
            &[0, 2, 3, 4095],
            &[7, 0, 1, 3],
        ];
        for cores in table {
            let program = program(cores);
            for core in 0..5000 {
                let socket = run(&program, core);
                match cores.iter().position(|one| *one == core) {
                    Some(shard) => assert_eq!(socket, shard as u32, "{cores:?}, core {core}"),
                    None => assert_eq!(socket, core % cores.len() as u32, "{cores:?}, core {core}"),
                }
            }
        }
    }

    #[test]
    fn a_program_for_as_many_shards_as_there_may_be_is_one_the_kernel_reads() {
        const INSTRUCTIONS_MAX: usize = 4096;
        let every_second: Vec<u32> = (0..SHARDS_MAX as u32).map(|n| n * 2).collect();
        let pairs: Vec<u32> = (0..SHARDS_MAX as u32).map(|n| n + n / 2).collect();
        let in_a_row: Vec<u32> = (0..SHARDS_MAX as u32).collect();
        for (cores, size_max) in [(in_a_row, 7), (pairs, INSTRUCTIONS_MAX), (every_second, INSTRUCTIONS_MAX)]
        {
            let program = program(&cores);
            assert!(program.len() <= size_max, "{}", program.len());
        }
    }

    /// Stays on this core; false: it may not.
    fn move_to(core: usize) -> bool {
        core_affinity::set_for_current(core_affinity::CoreId { id: core })
    }

    /// The kernel itself: packets on loopback arrive on the core of whoever sends them.
    #[test]
    fn a_connection_arrives_at_the_shard_of_the_core_it_comes_from() {
        let cores: Vec<usize> =
            core_affinity::get_core_ids().unwrap_or_default().iter().map(|c| c.id).collect();
        assert!(!cores.is_empty(), "this process may run somewhere");
        let pinned: Vec<u32> = cores.iter().map(|core| *core as u32).collect();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let first = bind(any, Some(64)).unwrap();
        let address = first.local_addr().unwrap();
        let mut sockets = vec![first];
        sockets.extend(cores[1..].iter().map(|_| bind(address, Some(64)).unwrap()));
        attach(&sockets[0], &program(&pinned)).unwrap();
        for socket in &sockets {
            socket.set_nonblocking(true).unwrap();
        }
        for (shard, core) in cores.iter().copied().enumerate() {
            for round in 0..32 {
                let client = thread::spawn(move || {
                    assert!(move_to(core), "core {core}");
                    TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap()
                });
                let client = client.join().unwrap();
                let takers: Vec<_> = sockets
                    .iter()
                    .enumerate()
                    .filter_map(|(n, socket)| socket.accept().ok().map(|(_, peer)| (n, peer)))
                    .collect();
                assert_eq!(takers, [(shard, client.local_addr().unwrap())], "core {core}, round {round}");
            }
        }
    }
}
