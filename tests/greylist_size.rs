//! What a greylist of a million triples takes: memory, disk, and the time to have them again.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use incoming::mail::{ForwardPath, ReversePath};
use incoming::policy::{Answer, Facts, Greylist, GreylistSettings, Phase, Policy, Verdict};

const COUNT: u32 = 1_000_000;
/// What an entry may take in memory, with the room that its tables have grown by.
const ENTRY_SIZE_MAX: u64 = 180;

fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn a_million_triples_take_little_and_are_soon_there_again() {
    let settings = GreylistSettings {
        delay: Duration::from_secs(300),
        retry_window: Duration::from_hours(24),
        pass_lifetime: Duration::from_hours(35 * 24),
        network_passes_after: 5,
        entries_max: COUNT as usize,
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("greylist");
    let (from, to) = (ReversePath::parse("a@s.example", false), ForwardPath::parse("b@r.example", false));
    let (from, to) = (from.unwrap(), to.unwrap());
    let open = || Greylist::open("greylist", settings.clone(), &file, Instant::now(), unix_now()).unwrap();
    let is_deferred = |greylist: &Greylist, n: u32, now: Instant| {
        // Each in a network of its own.
        let peer = SocketAddr::new(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n * 256)), 25);
        let facts = Facts {
            reverse_path: Some(&from),
            recipient: Some(&to),
            ..Facts::of_peer(peer, now, unix_now())
        };
        match greylist.check(Phase::Recipient, &facts) {
            Answer::Now(Ok(Verdict::Accept)) => false,
            Answer::Now(Ok(Verdict::Refuse(_))) => true,
            other => panic!("{other:?}"),
        }
    };

    let before = memory();
    let greylist = open();
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for n in 0..COUNT {
        let at = Instant::now();
        assert!(is_deferred(&greylist, n, at));
        slowest = slowest.max(at.elapsed());
    }
    let asked = began.elapsed() / COUNT;
    let entry_size = memory().saturating_sub(before) / u64::from(COUNT);
    let began = Instant::now();
    greylist.finish();
    let finished = began.elapsed();
    drop(greylist);
    let file_size = fs::metadata(&file).unwrap().len();

    let began = Instant::now();
    let greylist = open();
    let loaded = began.elapsed();
    let soon = Instant::now() + Duration::from_secs(301);
    let known = (0..COUNT).step_by(1000).filter(|n| !is_deferred(&greylist, *n, soon)).count();
    println!(
        "{COUNT} triples: {entry_size} octets of memory each, {} of the file; asked {asked:?} each, the slowest {slowest:?}; finished in \
         {finished:?}, loaded in {loaded:?}",
        file_size / u64::from(COUNT)
    );
    assert!(entry_size <= ENTRY_SIZE_MAX, "{entry_size} octets an entry");
    assert!(file_size <= 2 * 33 * u64::from(COUNT), "{file_size} octets");
    // The stripes of the table are not full to the last place each: a few were pushed out.
    assert!(known >= 950, "{known} of 1000 are known again");
    assert!(loaded < Duration::from_secs(30), "{loaded:?}");
}
