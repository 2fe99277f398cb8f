//! Where the data folder is: its file system, the devices beneath, and what a sync does there.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::finding::Finding;
use super::reading::{self, Seen, Unseen, octets};
use super::trial::{self, NoTrial, Trial, quantile};
use crate::config::{Config, Durability, Queue};

/// What the gateway wants of the disk.
pub struct Purpose {
    /// Accepted mail is kept there until it is delivered.
    pub keeps_queue: bool,
    /// A 250 promises that it survives a loss of power.
    pub is_durable: bool,
    /// Two segments for each shard, octets: the one that is appended to, and the next.
    pub room_min: u64,
}

impl Purpose {
    pub fn of(config: &Config) -> Self {
        let shards = config.cores.shards_count();
        let keeps_queue = config.spool.queue == Queue::Disk;
        Purpose {
            keeps_queue,
            is_durable: keeps_queue && config.spool.durability == Durability::Sync,
            room_min: 2 * config.spool.segment_size_on(shards) * shards as u64,
        }
    }
}

/// What was seen of it.
pub struct Storage {
    pub folder: PathBuf,
    /// The folder, or where it would be made.
    pub existing: PathBuf,
    /// Who has locked it: 0 where somebody has, and his number cannot be seen.
    pub holder: Option<u32>,
    pub mount: Seen<Mount>,
    /// Whether its ext4 has a journal.
    pub has_journal: Seen<bool>,
    pub devices: Seen<Vec<Device>>,
    pub trial: Result<Trial, NoTrial>,
    /// Flushes that the devices were sent during the trial, by us and by others; of those that count them all.
    pub flushes: Seen<u64>,
    /// Octets that this user may still write.
    pub room: Seen<u64>,
    /// What devices say of themselves is what a host has them say.
    pub is_virtual: bool,
}

/// A line of `mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub point: PathBuf,
    pub kind: String,
    /// As `253:0`.
    pub device: String,
    /// Of the mount and of the file system.
    pub options: Vec<String>,
}

/// A device at the bottom: a whole disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    /// As `queue/write_cache` has it.
    pub write_cache: Seen<String>,
    pub has_fua: Option<bool>,
    pub is_rotating: Option<bool>,
    /// The scheduler in use, or none.
    pub scheduler: Option<String>,
    /// The file of a loop device.
    pub backing_file: Option<String>,
    /// It counts its flushes.
    pub is_counting: bool,
}

impl Device {
    fn is_caching(&self) -> bool {
        self.write_cache.as_deref() == Ok("write back")
    }
}

impl Storage {
    pub fn read(config: &Config, is_virtual: bool) -> Self {
        let folder = config.data.clone();
        let existing = existing(&folder);
        let mount = reading::text("/proc/self/mountinfo").and_then(|text| {
            mount_of(&text, &existing).ok_or_else(|| Unseen::because("no mount has the data folder"))
        });
        let devices = mount.clone().and_then(|mount| devices(&mount));
        let has_journal = mount.clone().and_then(|mount| has_journal(&mount));
        let before = flushes(&devices);
        let trial = trial::try_disk(&existing);
        let after = flushes(&devices);
        Storage {
            holder: holder(&folder),
            mount,
            has_journal,
            trial,
            flushes: before.and_then(|before| Ok(after?.saturating_sub(before))),
            devices,
            room: room(&existing),
            is_virtual,
            folder,
            existing,
        }
    }
}

/// The folder, or the nearest above it that there is.
fn existing(folder: &Path) -> PathBuf {
    let whole = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    let found = whole.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    found.canonicalize().unwrap_or_else(|_| found.to_path_buf())
}

/// Whoever has locked the data folder.
fn holder(folder: &Path) -> Option<u32> {
    let inode = fs::metadata(folder.join("lock")).ok()?.ino();
    crate::shard::is_locked(folder).ok().filter(|is_locked| *is_locked)?;
    let locks = reading::text("/proc/locks").unwrap_or_default();
    Some(lock_holder(&locks, inode).unwrap_or(0))
}

/// The process that `/proc/locks` says holds a lock of the whole file with this inode.
fn lock_holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", process, file, ..] = words[..] else { return None };
        (file.rsplit(':').next()?.parse() == Ok(inode)).then(|| process.parse().ok())?
    })
}

/// The mount that has `path`: of those above it the deepest, and of several there the last.
fn mount_of(mountinfo: &str, path: &Path) -> Option<Mount> {
    mountinfo.lines().filter_map(mount).filter(|mount| path.starts_with(&mount.point)).fold(
        None,
        |best, mount| {
            let depth = |mount: &Mount| mount.point.components().count();
            match best {
                Some(best) if depth(&best) > depth(&mount) => Some(best),
                _ => Some(mount),
            }
        },
    )
}

/// `36 35 98:0 /root /point rw,noatime … - ext4 /dev/sda1 rw,errors=continue`
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let before: Vec<_> = before.split(' ').collect();
    let after: Vec<_> = after.split(' ').collect();
    let (device, point, own) = (before.get(2)?, before.get(4)?, before.get(5)?);
    let options = own.split(',').chain(after.get(2).copied().unwrap_or_default().split(','));
    Some(Mount {
        point: unescaped(point).into(),
        kind: after.first()?.to_string(),
        device: device.to_string(),
        options: options.map(str::to_string).collect(),
    })
}

/// Spaces and the like stand as three octal digits behind a backslash.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(text.to_string(), |text, (code, plain)| text.replace(code, plain))
}

/// The whole disks beneath a file system.
fn devices(mount: &Mount) -> Seen<Vec<Device>> {
    if mount.device.starts_with("0:") {
        return Err(Unseen(format!("{} does not say which devices it is on", mount.kind)));
    }
    let path = Path::new("/sys/dev/block").join(&mount.device);
    let mut found = Vec::new();
    bottom(&path, 0, &mut found)?;
    Ok(found)
}

fn bottom(path: &Path, depth: usize, found: &mut Vec<Device>) -> Seen<()> {
    let path = path.canonicalize().map_err(|e| Unseen(format!("{}: {e}", path.display())))?;
    let path = match path.join("partition").exists() {
        true => path.parent().unwrap_or(&path).to_path_buf(),
        false => path,
    };
    let slaves = reading::names(path.join("slaves"));
    if !slaves.is_empty() && depth < 8 {
        return slaves.iter().try_for_each(|name| bottom(&path.join("slaves").join(name), depth + 1, found));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if found.iter().any(|device| device.name == name) {
        return Ok(());
    }
    let queue = |name: &str| reading::text(path.join("queue").join(name));
    let flag = |name: &str| queue(name).ok().map(|text| text != "0");
    let schedulers = queue("scheduler").unwrap_or_default();
    found.push(Device {
        write_cache: queue("write_cache"),
        has_fua: flag("fua"),
        is_rotating: flag("rotational"),
        scheduler: schedulers.split_once('[').and_then(|(_, rest)| Some(rest.split_once(']')?.0.to_string())),
        backing_file: reading::text(path.join("loop/backing_file")).ok(),
        // Devices without queues of their own pass flushes on, and count none.
        is_counting: path.join("mq").exists() && flag("iostats") == Some(true),
        name,
    });
    Ok(())
}

fn has_journal(mount: &Mount) -> Seen<bool> {
    let path = Path::new("/sys/dev/block").join(&mount.device);
    let path = path.canonicalize().map_err(|e| Unseen(format!("{}: {e}", path.display())))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let task = reading::text(Path::new("/sys/fs/ext4").join(name).join("journal_task"))?;
    Ok(task.parse::<u32>().is_ok())
}

/// Flushes that all of them have been sent since they are there.
fn flushes(devices: &Seen<Vec<Device>>) -> Seen<u64> {
    /// `stat` counts flushes in its sixteenth field.
    const FIELD: usize = 15;
    let devices = devices.as_ref().map_err(Clone::clone)?;
    devices.iter().try_fold(0, |sum, device| {
        let none = || Unseen(format!("{} does not count flushes", device.name));
        if !device.is_counting {
            return Err(none());
        }
        let stat = reading::text(Path::new("/sys/block").join(&device.name).join("stat"))?;
        let count: u64 =
            stat.split_ascii_whitespace().nth(FIELD).and_then(|text| text.parse().ok()).ok_or_else(none)?;
        Ok(sum + count)
    })
}

fn room(folder: &Path) -> Seen<u64> {
    let stat = rustix::fs::statvfs(folder)
        .map_err(|e| Unseen(format!("{}: {}", folder.display(), io::Error::from(e))))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What it means.
pub fn judge(storage: &Storage, purpose: &Purpose) -> Vec<Finding> {
    let mut findings = vec![data_folder(storage)];
    if !purpose.keeps_queue {
        findings.push(
            Finding::note("queue", "spool.queue is \"memory\": the disk keeps dead letters only")
                .costs("accepted mail does not survive the end of the process")
                .mend("spool.queue = \"disk\""),
        );
    } else if !purpose.is_durable {
        findings.push(
            Finding::note(
                "durability",
                "spool.durability is \"none\": nothing is synced before it is acknowledged",
            )
            .costs("a loss of power loses accepted mail")
            .mend("spool.durability = \"sync\""),
        );
    }
    match &storage.mount {
        Ok(mount) => {
            findings.push(file_system(mount, &storage.has_journal, purpose));
            findings.extend(mount_options(mount));
        }
        Err(why) => findings.push(Finding::unseen("file system", why)),
    }
    findings.push(room_left(storage, purpose));
    match &storage.devices {
        Ok(devices) => findings.extend(devices.iter().map(|one| device(one, storage.is_virtual))),
        Err(why) => findings.push(Finding::unseen("device", why)),
    }
    findings.extend(direct_io_and_sync(storage, purpose));
    findings
}

fn data_folder(storage: &Storage) -> Finding {
    const CHECK: &str = "data folder";
    let (folder, existing) = (storage.folder.display(), storage.existing.display());
    let is_there = storage.folder.canonicalize().is_ok_and(|folder| folder == storage.existing);
    match storage.holder {
        Some(0) => Finding::ok(
            CHECK,
            format!("{folder}, in use by a running gateway: the disk is measured beside its load"),
        ),
        Some(id) => Finding::ok(
            CHECK,
            format!("{folder}, in use by process {id}: the disk is measured beside its load"),
        ),
        None if is_there => Finding::ok(CHECK, format!("{folder}")),
        None => Finding::ok(CHECK, format!("{folder} is not there yet: what is said is of {existing}")),
    }
}

fn file_system(mount: &Mount, has_journal: &Seen<bool>, purpose: &Purpose) -> Finding {
    const CHECK: &str = "file system";
    const MOVE: &str = "put `data` on ext4 with a journal, or on xfs";
    let (kind, point) = (mount.kind.as_str(), mount.point.display());
    let found = format!("{kind} at {point}");
    // Where nothing is promised nothing is broken.
    let broken = |found: String| match purpose.is_durable {
        true => Finding::fault(CHECK, found),
        false => Finding::note(CHECK, found),
    };
    match kind {
        "tmpfs" | "ramfs" | "devtmpfs" => {
            broken(format!("{found} is in memory")).costs("nothing there survives a restart: the gateway does not start").mend(MOVE)
        }
        "ext4" => match has_journal {
            Ok(true) => Finding::ok(CHECK, format!("{found}, with a journal")),
            Ok(false) => broken(format!("{found} has no journal"))
                .costs("after a loss of power it is as consistent as luck has it, and files may be gone that were synced")
                .mend("unmount it and run `tune2fs -O has_journal DEVICE`, then `e2fsck -f DEVICE`; or put `data` elsewhere"),
            Err(why) => Finding::note(CHECK, format!("{found}; whether it has a journal cannot be seen here: {why}")),
        },
        "xfs" => Finding::ok(CHECK, found),
        "ext3" => Finding::note(CHECK, found).costs("nothing is known of it: ext4 and xfs are what is tested").mend(MOVE),
        "ext2" | "vfat" | "msdos" | "exfat" => broken(format!("{found} has no journal"))
            .costs("after a loss of power it is as consistent as luck has it, and files may be gone that were synced")
            .mend(MOVE),
        "btrfs" | "zfs" | "bcachefs" => Finding::warning(CHECK, format!("{found} copies on write"))
            .costs("a segment that is written again is not overwritten but laid out anew: each sync writes more than data")
            .mend(MOVE),
        "overlay" | "aufs" => Finding::warning(CHECK, format!("{found} is the layer of a container"))
            .costs("what is queued there goes with the container")
            .mend("mount a volume that is on ext4 or xfs there"),
        kind if kind.starts_with("nfs") || kind.starts_with("fuse") || NETWORKED.contains(&kind) => {
            Finding::warning(CHECK, format!("{found} is another program's or machine's: whether a sync reaches a disk there cannot be seen"))
                .costs("a 250 promises no more than that other side keeps")
                .mend("put `data` on a local disk, on ext4 or xfs")
        }
        _ => Finding::note(CHECK, found).costs("nothing is known of it: ext4 and xfs are what is tested").mend(MOVE),
    }
}

const NETWORKED: [&str; 8] = ["cifs", "smb3", "9p", "virtiofs", "ceph", "glusterfs", "lustre", "afs"];

fn mount_options(mount: &Mount) -> Vec<Finding> {
    const CHECK: &str = "mount options";
    let has = |option: &str| mount.options.iter().any(|one| one == option);
    let mut findings = Vec::new();
    if has("ro") {
        findings.push(Finding::fault(CHECK, "mounted read-only").costs("the gateway does not start").mend(
            format!(
                "mount -o remount,rw {}; where the file system did it itself, see dmesg first",
                mount.point.display()
            ),
        ));
    }
    if has("nobarrier") || has("barrier=0") {
        findings.push(
            Finding::fault(CHECK, "barriers are off: a sync does not make the device write its cache out")
                .costs("a loss of power loses what was acknowledged, and may break the file system")
                .mend(format!("mount -o remount,barrier=1 {}, and in /etc/fstab", mount.point.display())),
        );
    }
    if has("data=journal") {
        findings.push(
            Finding::warning(CHECK, "data=journal: content goes through the journal")
                .costs("all of it is written twice, and direct I/O is not direct")
                .mend("data=ordered, which is ext4's default"),
        );
    }
    if has("sync") || has("dirsync") {
        findings.push(
            Finding::warning(CHECK, "mounted with sync or dirsync")
                .costs("every change waits for the disk, also those that need not")
                .mend("without: the gateway syncs what must be synced"),
        );
    }
    if has("discard") {
        findings.push(
            Finding::note(CHECK, "discard: what is freed is discarded at once")
                .costs("the device does it while it should write; segments are used again, so there is little of it")
                .mend("without, and `systemctl enable --now fstrim.timer`"),
        );
    }
    findings
}

fn room_left(storage: &Storage, purpose: &Purpose) -> Finding {
    const CHECK: &str = "room";
    let room = match &storage.room {
        Ok(room) => *room,
        Err(why) => return Finding::unseen(CHECK, why),
    };
    let (free, wanted) = (octets(room), octets(purpose.room_min));
    // A running gateway has its segments already.
    if !purpose.keeps_queue || storage.holder.is_some() || room >= purpose.room_min {
        return Finding::ok(CHECK, format!("{free} free"));
    }
    let found = format!("{free} free, and the first two segments of each shard take {wanted}");
    let finding = match room >= purpose.room_min / 2 {
        true => Finding::warning(CHECK, found),
        false => Finding::fault(CHECK, found),
    };
    finding.costs("mail is answered 452 for want of room").mend("make room, or lower spool.segment_size")
}

fn device(device: &Device, is_virtual: bool) -> Finding {
    const CHECK: &str = "device";
    let Device { name, has_fua, is_rotating, scheduler, backing_file, .. } = device;
    let cache = match &device.write_cache {
        Err(why) => return Finding::unseen(CHECK, why),
        Ok(cache) => cache.as_str(),
    };
    let fua = match has_fua {
        Some(true) => ", FUA",
        Some(false) => ", no FUA",
        None => "",
    };
    let what = match cache {
        "write back" => format!(
            "{name}: has a volatile cache{fua}: each sync has it written out, at the cost measured below"
        ),
        _ => format!(
            "{name}: says that it has no volatile cache (write through){fua}: a sync sends it no flush"
        ),
    };
    if name.starts_with("ram") || name.starts_with("zram") || name.starts_with("brd") {
        return Finding::fault(CHECK, format!("{name} is memory"))
            .costs("nothing there survives a loss of power")
            .mend("put `data` on a disk");
    }
    if let Some(file) = backing_file {
        return Finding::note(
            CHECK,
            format!("{what}; it is the file {file}, and what that is on is not looked at"),
        )
        .costs("each write passes two file systems");
    }
    match is_rotating {
        Some(true) if is_virtual => {
            return Finding::note(
                CHECK,
                format!("{what}; it says that it rotates, as virtual devices do whatever they are"),
            )
            .costs("if it does, a sync takes some milliseconds: see below");
        }
        Some(true) => {
            return Finding::warning(CHECK, format!("{what}; it rotates"))
                .costs("a sync takes a turn of the platter or more, some milliseconds, and every message waits for one")
                .mend("a solid-state drive with power-loss protection");
        }
        _ => {}
    }
    match scheduler.as_deref() {
        Some(scheduler @ ("bfq" | "kyber" | "cfq")) => Finding::note(CHECK, format!("{what}; scheduler {scheduler}"))
            .costs("it orders requests for fairness, which costs processor time and may delay a sync behind others' reads")
            .mend(format!("echo none > /sys/block/{name}/queue/scheduler, or mq-deadline")),
        _ => Finding::ok(CHECK, what),
    }
}

/// A sync of a device that has something to write out takes longer than this. An assumption: a command to a drive and back takes more.
const SYNC_PLAUSIBLE: Duration = Duration::from_micros(8);
/// Above this peers notice.
const SYNC_SLOW: Duration = Duration::from_millis(10);
/// Above this it is no local solid-state drive.
const SYNC_MODERATE: Duration = Duration::from_millis(2);

fn direct_io_and_sync(storage: &Storage, purpose: &Purpose) -> Vec<Finding> {
    const DIRECT: &str = "direct I/O";
    let existing = storage.existing.display();
    let broken = |check, found: String| match purpose.keeps_queue {
        true => Finding::fault(check, found).costs("the gateway does not start, or takes no mail"),
        false => Finding::note(check, found),
    };
    let trial = match &storage.trial {
        Ok(trial) => trial,
        Err(NoTrial::NoDirectIo) => {
            return vec![
                broken(DIRECT, "the file system has no O_DIRECT".into()).mend("put `data` on ext4 or xfs"),
            ];
        }
        Err(NoTrial::Failed(what, errno)) => {
            let error = io::Error::from_raw_os_error(*errno);
            let finding = broken(DIRECT, format!("cannot {what} in {existing}: {error}"));
            return vec![finding.mend("run it as the gateway's user; give that user the right to write there, or name another folder with --data")];
        }
        Err(NoTrial::Hangs) => {
            return vec![
                broken("sync", "the disk has not finished a write and its sync in 20 s".into())
                    .mend("see dmesg"),
            ];
        }
        Err(NoTrial::Unseen(why)) => return vec![Finding::unseen("sync", why)],
    };
    vec![Finding::ok(DIRECT, "O_DIRECT works"), sync(trial, storage, purpose)]
}

fn sync(trial: &Trial, storage: &Storage, purpose: &Purpose) -> Finding {
    const CHECK: &str = "sync";
    let count = trial.syncs.len();
    let (half, most) = (quantile(&trial.syncs, 0.5), quantile(&trial.syncs, 0.99));
    let write = quantile(&trial.writes, 0.5);
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    let text = |duration: Duration| match duration < Duration::from_millis(1) {
        true => format!("{:.0} µs", micros(duration)),
        false => format!("{:.1} ms", micros(duration) / 1000.0),
    };
    let mut found = format!(
        "{count} writes of 4 KiB, each synced: a write takes {}, a sync {} (99 of 100: {})",
        text(write),
        text(half),
        text(most)
    );
    if let Ok(flushes) = storage.flushes {
        found += &format!("; the device was sent {flushes} flushes");
    }
    let devices = storage.devices.as_deref().unwrap_or_default();
    let is_caching = devices.iter().any(Device::is_caching);
    let lost = "a loss of power loses what was acknowledged";
    let finding = match &storage.flushes {
        // Others' flushes only add to them; and ours come one after another, so that no two are one.
        Ok(flushes) if is_caching && (*flushes as usize) < count / 2 => {
            let finding = match purpose.is_durable {
                true => Finding::fault(CHECK, format!("{found}, though it has a volatile cache: a sync does not reach it")),
                false => Finding::note(CHECK, format!("{found}, though it has a volatile cache")),
            };
            finding.costs(lost).mend("mount with barriers; where the file system is another program's, ask its documentation for fsync")
        }
        _ if is_caching && half < SYNC_PLAUSIBLE => {
            Finding::warning(CHECK, format!("{found}: too quick for a device with a volatile cache to have written it out"))
                .costs(format!("if the host or the controller answers flushes without doing them, {lost}"))
                .mend("the host's setting for this disk must not be one that ignores flushes (qemu: not cache=unsafe); see the controller's for its battery")
        }
        _ if !purpose.is_durable => Finding::ok(CHECK, found),
        _ if half > SYNC_SLOW => Finding::warning(CHECK, found)
            .costs("every reply to end-of-data waits for a write and a sync; many messages share one, so that a busy gateway is slowed less than a quiet one")
            .mend("a solid-state drive with power-loss protection, which need not write its cache out; a file system of the spool's own"),
        _ if half > SYNC_MODERATE => Finding::note(CHECK, found)
            .costs("every reply to end-of-data waits for a write and a sync")
            .mend("a solid-state drive with power-loss protection, which need not write its cache out; a file system of the spool's own"),
        _ => Finding::ok(CHECK, found),
    };
    finding
        .number("syncs", count as f64)
        .number("write_micros_median", micros(write))
        .number("sync_micros_median", micros(half))
        .number("sync_micros_99", micros(most))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    const MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard,errors=continue
40 27 7:0 / /var/spool rw,noatime - xfs /dev/loop0 rw,attr2,noquota
41 40 0:60 / /var/spool/with\\040space rw - tmpfs tmpfs rw,size=1m
42 27 8:1 / /twice ro - ext2 /dev/sda1 ro
43 27 8:2 / /twice rw - ext4 /dev/sda2 rw,nobarrier";

    #[test]
    fn the_mount_of_a_folder_is_the_deepest_and_the_last() {
        let table = [
            ("/var/lib/incoming", "/", "ext4", "254:0"),
            ("/var/spool", "/var/spool", "xfs", "7:0"),
            ("/var/spoolers", "/", "ext4", "254:0"),
            ("/var/spool/with space/data", "/var/spool/with space", "tmpfs", "0:60"),
            ("/twice/data", "/twice", "ext4", "8:2"),
        ];
        for (path, point, kind, device) in table {
            let mount = mount_of(MOUNTS, Path::new(path)).unwrap();
            assert_eq!(
                (mount.point.to_str().unwrap(), &*mount.kind, &*mount.device),
                (point, kind, device),
                "{path}"
            );
        }
        let root = mount_of(MOUNTS, Path::new("/x")).unwrap();
        assert!(["relatime", "discard"].iter().all(|one| root.options.iter().any(|option| option == one)));
        assert_eq!(mount_of("no such line", Path::new("/")), None);
    }

    #[test]
    fn whoever_holds_the_lock_is_found() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 fe:00:11 0 EOF\n2: FLOCK  ADVISORY  READ 8 fe:00:11 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 650 fe:00:11 0 EOF\n4: -> FLOCK ADVISORY WRITE 9 fe:00:12 0 EOF\n5:";
        assert_eq!(lock_holder(locks, 11), Some(650));
        assert_eq!(lock_holder(locks, 12), None);
        assert_eq!(lock_holder(locks, 1), None);
    }

    fn mounted(kind: &str, options: &str) -> Mount {
        let options = options.split(',').map(str::to_string).collect();
        Mount { point: "/data".into(), kind: kind.into(), device: "8:1".into(), options }
    }

    const DURABLE: Purpose = Purpose { keeps_queue: true, is_durable: true, room_min: 1000 };
    const PROMISES_NOTHING: Purpose = Purpose { keeps_queue: true, is_durable: false, room_min: 1000 };

    #[test]
    fn a_file_system_is_judged_by_what_survives_on_it() {
        let unseen = || Err(Unseen::because("not there"));
        let table = [
            // (file system, journal, level, level where nothing is promised)
            ("ext4", Ok(true), Level::Ok, Level::Ok),
            ("ext4", Ok(false), Level::Fault, Level::Note),
            ("ext4", unseen(), Level::Note, Level::Note),
            ("xfs", unseen(), Level::Ok, Level::Ok),
            ("tmpfs", unseen(), Level::Fault, Level::Note),
            ("ramfs", unseen(), Level::Fault, Level::Note),
            ("ext2", Ok(false), Level::Fault, Level::Note),
            ("vfat", unseen(), Level::Fault, Level::Note),
            ("btrfs", unseen(), Level::Warning, Level::Warning),
            ("zfs", unseen(), Level::Warning, Level::Warning),
            ("overlay", unseen(), Level::Warning, Level::Warning),
            ("nfs4", unseen(), Level::Warning, Level::Warning),
            ("fuse.sshfs", unseen(), Level::Warning, Level::Warning),
            ("9p", unseen(), Level::Warning, Level::Warning),
            ("f2fs", unseen(), Level::Note, Level::Note),
        ];
        for (kind, journal, durable, other) in table {
            for (purpose, level) in [(&DURABLE, durable), (&PROMISES_NOTHING, other)] {
                let finding = file_system(&mounted(kind, "rw"), &journal, purpose);
                assert_eq!(finding.level, level, "{kind} {journal:?}: {finding:?}");
                assert!(level == Level::Ok || finding.remedy.is_some() || journal.is_err(), "{finding:?}");
            }
        }
    }

    #[test]
    fn mount_options_that_cost_something_are_told() {
        let table: [(&str, &[Level]); 8] = [
            ("rw,relatime", &[]),
            ("rw,discard", &[Level::Note]),
            ("rw,nodiscard,data=ordered,barrier=1", &[]),
            ("rw,nobarrier", &[Level::Fault]),
            ("rw,barrier=0,discard", &[Level::Fault, Level::Note]),
            ("rw,data=journal", &[Level::Warning]),
            ("rw,dirsync", &[Level::Warning]),
            ("ro", &[Level::Fault]),
        ];
        for (options, levels) in table {
            let found: Vec<_> = mount_options(&mounted("ext4", options)).iter().map(|f| f.level).collect();
            assert_eq!(found, levels, "{options}");
        }
    }

    fn disk(write_cache: &str) -> Device {
        Device {
            name: "nvme0n1".into(),
            write_cache: Ok(write_cache.into()),
            has_fua: Some(true),
            is_rotating: Some(false),
            scheduler: Some("none".into()),
            backing_file: None,
            is_counting: true,
        }
    }

    #[test]
    fn a_device_is_judged_by_what_it_says_of_itself() {
        let good = || disk("write back");
        let table = [
            (good(), Level::Ok, "volatile cache, FUA"),
            (disk("write through"), Level::Ok, "no flush"),
            (Device { has_fua: Some(false), ..good() }, Level::Ok, "no FUA"),
            (Device { is_rotating: Some(true), ..good() }, Level::Warning, "rotates"),
            (Device { scheduler: Some("bfq".into()), ..good() }, Level::Note, "bfq"),
            (Device { name: "zram0".into(), ..good() }, Level::Fault, "memory"),
            (Device { backing_file: Some("/image".into()), ..good() }, Level::Note, "/image"),
            (
                Device { write_cache: Err(Unseen::because("hidden")), ..good() },
                Level::Note,
                "cannot be seen here: hidden",
            ),
        ];
        for (one, level, words) in table {
            let finding = device(&one, false);
            assert_eq!(finding.level, level, "{one:?}");
            assert!(finding.finding.contains(words), "{finding:?}");
        }
        let rotates = Device { is_rotating: Some(true), ..good() };
        assert_eq!(device(&rotates, true).level, Level::Note);
    }

    fn storage(micros: u64, write_cache: &str, flushes: Seen<u64>) -> Storage {
        let sync = Duration::from_micros(micros);
        Storage {
            folder: "/data".into(),
            existing: "/data".into(),
            holder: None,
            mount: Ok(mounted("xfs", "rw")),
            has_journal: Err(Unseen::because("xfs")),
            devices: Ok(vec![disk(write_cache)]),
            trial: Ok(Trial { writes: vec![Duration::from_micros(50); 200], syncs: vec![sync; 200] }),
            flushes,
            room: Ok(1 << 30),
            is_virtual: false,
        }
    }

    #[test]
    fn a_sync_is_judged_by_its_time_and_by_whether_it_reaches_the_device() {
        let unseen = || Err(Unseen::because("not counted"));
        let table = [
            // (microseconds, cache, flushes, level, words)
            (600, "write back", Ok(200), Level::Ok, "sent 200 flushes"),
            (600, "write back", Ok(5000), Level::Ok, "600 µs"),
            (600, "write back", Ok(3), Level::Fault, "does not reach it"),
            (600, "write back", unseen(), Level::Ok, "600 µs"),
            (4, "write back", unseen(), Level::Warning, "too quick"),
            (4, "write through", Ok(0), Level::Ok, "4 µs"),
            (3000, "write through", Ok(0), Level::Note, "3.0 ms"),
            (15_000, "write back", Ok(200), Level::Warning, "15.0 ms"),
        ];
        for (micros, cache, flushes, level, words) in table {
            let storage = storage(micros, cache, flushes.clone());
            let finding = direct_io_and_sync(&storage, &DURABLE).pop().unwrap();
            assert_eq!(finding.level, level, "{micros} {cache} {flushes:?}: {finding:?}");
            assert!(finding.finding.contains(words), "{finding:?}");
            assert_eq!(finding.numbers["sync_micros_median"], micros as f64);
        }
        // What promises nothing breaks nothing.
        let finding =
            direct_io_and_sync(&storage(600, "write back", Ok(0)), &PROMISES_NOTHING).pop().unwrap();
        assert_eq!(finding.level, Level::Note);
    }

    #[test]
    fn a_disk_that_cannot_be_tried_says_why() {
        let table = [
            (NoTrial::NoDirectIo, Level::Fault, "O_DIRECT"),
            (NoTrial::Failed("make a file", libc::EACCES), Level::Fault, "Permission denied"),
            (NoTrial::Failed("make a file", libc::EROFS), Level::Fault, "Read-only"),
            (NoTrial::Failed("write", libc::ENOSPC), Level::Fault, "cannot write in /data"),
            (NoTrial::Hangs, Level::Fault, "20 s"),
            (NoTrial::Unseen(Unseen::because("no thread")), Level::Note, "no thread"),
        ];
        for (why, level, words) in table {
            let storage = Storage { trial: Err(why.clone()), ..storage(1, "write back", Ok(0)) };
            let finding = direct_io_and_sync(&storage, &DURABLE).pop().unwrap();
            assert_eq!(finding.level, level, "{why:?}");
            assert!(finding.finding.contains(words), "{finding:?}");
        }
    }

    #[test]
    fn room_for_the_first_segments_is_asked_for_before_a_start() {
        let table = [
            (1000, None, Level::Ok),
            (999, None, Level::Warning),
            (499, None, Level::Fault),
            (499, Some(7), Level::Ok),
        ];
        for (room, holder, level) in table {
            let storage = Storage { room: Ok(room), holder, ..storage(1, "write back", Ok(0)) };
            assert_eq!(room_left(&storage, &DURABLE).level, level, "{room} {holder:?}");
        }
    }
}
