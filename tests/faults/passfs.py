#!/usr/bin/python3
"""A FUSE file system that passes SOURCE through to MOUNT, direct I/O, with faults on request.

usage: passfs.py SOURCE MOUNT CTRL [async]      (foreground, as root; end it with umount MOUNT)
Switches are files in CTRL, looked at on every call:
  short        writes to a file opened for reading and writing (a spool's file in use, not one being prepared) store half,
               rounded to blocks of 4096 octets and at least one, and say so
  short_once   the same, and the next request for the rest fails with EIO; see below
  short_sector as short_once in sectors of 512 octets: what is stored may be less than a block
  eio          writes fail with EIO               enospc     writes fail with ENOSPC
  fsync_eio    fsync fails with EIO               rename_eio rename fails with EIO
  hang         writes wait until the switch is gone

What becomes of a short direct write that was asked for through io_uring (Linux 6.18, fs/fuse/file.c and io_uring/rw.c):
- without FUSE_ASYNC_DIO in the handshake, as libfuse 2 has it: io_uring asks for the rest itself, but
  fuse_direct_write_iter has not moved the position on, so the rest is stored over the beginning, and the completion has the
  whole length. That is `short`: a medium that lies;
- where the request for the rest fails, the completion has the short count. That is `short_once` and `short_sector`;
- with FUSE_ASYNC_DIO (the word `async`), as libfuse 3 has it: the completion has EIO, never a count (fuse_get_res_by_io).
The protocol (fuse(4), linux/fuse.h, version 7.31) is spoken here, for no library leaves that flag to its user.
"""
import ctypes, errno, os, struct, sys, time

if len(sys.argv) not in (4, 5) or sys.argv[4:] not in ([], ['async']):
    sys.exit(__doc__)
SOURCE, MOUNT, CTRL = (os.path.abspath(path) for path in sys.argv[1:4])
ASYNC_READ, BIG_WRITES, ASYNC_DIO, MAX_PAGES = 1 << 0, 1 << 5, 1 << 15, 1 << 22
FLAGS = ASYNC_READ | BIG_WRITES | MAX_PAGES | (ASYNC_DIO if sys.argv[4:] else 0)
MAX_WRITE = 1 << 20  # larger than a page of the spool: what io_uring is asked for comes here as one request
FOPEN_DIRECT_IO = 1
ROOT = 1

paths = {ROOT: ''}  # node → path below SOURCE
nodes = {'': ROOT}
listings = {}  # handle of an open folder → its names
read_write = set()  # handles of files opened for reading and writing
rests = set()  # what short writes have left: handle, where the rest will be asked for, its size
numbers = iter(range(ROOT + 1, 1 << 62))


def on(name): return os.path.exists(os.path.join(CTRL, name))
def real(node): return SOURCE + paths[node]
def below(node, name): return paths[node] + '/' + os.fsdecode(name)
def text(octets): return octets.split(b'\0', 1)[0]


def check(**faults):
    for name, number in faults.items():
        if on(name):
            raise OSError(number, name)


def attributes(node):
    s = os.lstat(real(node))
    times = [s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns]
    return struct.pack('<6Q10I', node, s.st_size, s.st_blocks, *(t // 10**9 for t in times), *(t % 10**9 for t in times),
                       s.st_mode, s.st_nlink, s.st_uid, s.st_gid, 0, 4096, 0)


def entry(path):
    os.lstat(SOURCE + path)
    if path not in nodes:
        nodes[path] = next(numbers)
        paths[nodes[path]] = path
    # Nothing is cached: what the source says is asked for every time.
    return struct.pack('<QQQQII', nodes[path], 0, 0, 0, 0, 0) + attributes(nodes[path])


def lookup(node, data): return entry(below(node, text(data)))
def getattr(node, data): return struct.pack('<QII', 0, 0, 0) + attributes(node)


def setattr(node, data):
    valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = struct.unpack('<II6Q8I', data[:88])
    if valid & 1:
        os.chmod(real(node), mode & 0o7777)
    if valid & 6:
        os.chown(real(node), uid if valid & 2 else -1, gid if valid & 4 else -1)
    if valid & 8:
        os.truncate(real(node), size)
    return getattr(node, data)


def mkdir(node, data):
    path = below(node, text(data[8:]))
    os.mkdir(SOURCE + path, struct.unpack('<I', data[:4])[0])
    return entry(path)


def forget_path(path):
    node = nodes.pop(path, None)
    if node:
        paths[node] = path + ' (removed)'


def unlink(node, data):
    os.unlink(SOURCE + below(node, text(data)))
    forget_path(below(node, text(data)))


def rmdir(node, data):
    os.rmdir(SOURCE + below(node, text(data)))
    forget_path(below(node, text(data)))


def renamed(node, target, names):
    check(rename_eio=errno.EIO)
    old, new = names.split(b'\0')[:2]
    old, new = below(node, old), below(target, new)
    os.rename(SOURCE + old, SOURCE + new)
    forget_path(new)
    for path in [p for p in nodes if p == old or p.startswith(old + '/')]:
        moved = nodes.pop(path)
        paths[moved] = new + path[len(old):]
        nodes[paths[moved]] = moved


def rename(node, data): renamed(node, struct.unpack('<Q', data[:8])[0], data[8:])
def rename2(node, data): renamed(node, struct.unpack('<Q', data[:8])[0], data[16:])


def link(node, data):
    path = below(node, text(data[8:]))
    os.link(real(struct.unpack('<Q', data[:8])[0]), SOURCE + path)
    return entry(path)


def opened(fd): return struct.pack('<QII', fd, FOPEN_DIRECT_IO, 0)


def open_file(node, data):
    flags = struct.unpack('<I', data[:4])[0] & (os.O_ACCMODE | os.O_TRUNC)
    fd = os.open(real(node), flags)
    if flags & os.O_ACCMODE == os.O_RDWR:
        read_write.add(fd)
    return opened(fd)


def create(node, data):
    flags, mode = struct.unpack('<II', data[:8])
    path = below(node, text(data[16:]))
    fd = os.open(SOURCE + path, flags & (os.O_ACCMODE | os.O_TRUNC | os.O_EXCL) | os.O_CREAT, mode)
    return entry(path) + opened(fd)


def read(node, data):
    fd, offset, size = struct.unpack('<QQI', data[:20])
    return os.pread(fd, size, offset)


def half(size, unit): return min(size, max(unit, size // 2 // unit * unit))


def write(node, data):
    fd, offset, size = struct.unpack('<QQI', data[:20])
    while on('hang'):
        time.sleep(0.01)
    check(enospc=errno.ENOSPC, eio=errno.EIO)
    taken = size
    unit = 512 if on('short_sector') else 4096 if on('short') or on('short_once') else 0
    if unit and fd in read_write:
        asked = [rest for rest in rests if rest[0] == fd and offset in rest[1] and rest[2] == size]
        if asked:
            rests.discard(asked[0])
            raise OSError(errno.EIO, 'the rest of a short write')
        taken = half(size, unit)
        if taken < size and not on('short'):
            rests.add((fd, (offset, offset + taken), size - taken))
    return struct.pack('<II', os.pwrite(fd, data[40:40 + taken], offset), 0)


def statfs(node, data):
    v = os.statvfs(SOURCE)
    return struct.pack('<5Q4I24x', v.f_blocks, v.f_bfree, v.f_bavail, v.f_files, v.f_ffree, v.f_bsize, v.f_namemax, v.f_frsize, 0)


def release(node, data):
    fd = struct.unpack('<Q', data[:8])[0]
    read_write.discard(fd)
    rests.difference_update([rest for rest in rests if rest[0] == fd])
    os.close(fd)


def fsync(node, data):
    check(fsync_eio=errno.EIO)
    os.fsync(struct.unpack('<Q', data[:8])[0])


def fsyncdir(node, data):
    check(fsync_eio=errno.EIO)
    fd = os.open(real(node), os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def opendir(node, data):
    handle = next(numbers)
    listings[handle] = ['.', '..'] + os.listdir(real(node))
    return struct.pack('<QII', handle, 0, 0)


def readdir(node, data):
    handle, offset, size = struct.unpack('<QQI', data[:20])
    out = b''
    for at, name in enumerate(map(os.fsencode, listings[handle])):
        if at >= offset:
            record = struct.pack('<QQII', next(numbers), at + 1, len(name), 0) + name
            record += bytes(-len(record) % 8)
            if len(out) + len(record) > size:
                break
            out += record
    return out


def releasedir(node, data): listings.pop(struct.unpack('<Q', data[:8])[0])


def init(node, data):
    read_ahead, offered = struct.unpack('<II', data[8:16])
    return struct.pack('<4IHHIIHHI28x', 7, 31, read_ahead, FLAGS & offered, 16, 12, MAX_WRITE, 1, MAX_WRITE // 4096, 0, 0)


def nothing(node, data): return b''


FORGET, BATCH_FORGET, INTERRUPT = 2, 42, 36
CALLS = {1: lookup, 3: getattr, 4: setattr, 9: mkdir, 10: unlink, 11: rmdir, 12: rename, 13: link, 14: open_file, 15: read,
         16: write, 17: statfs, 18: release, 20: fsync, 25: nothing, 26: init, 27: opendir, 28: readdir, 29: releasedir,
         30: fsyncdir, 34: nothing, 35: create, 38: nothing, 45: rename2}


def serve(device):
    while True:
        try:
            request = os.read(device, MAX_WRITE + 4096)
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                continue
            raise
        _, opcode, unique, node = struct.unpack('<IIQQ', request[:24])
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
            continue
        try:
            answer, failed = CALLS[opcode](node, request[40:]) or b'', 0
        except KeyError:
            answer, failed = b'', errno.ENOSYS
        except OSError as error:
            answer, failed = b'', error.errno or errno.EIO
        try:
            os.writev(device, [struct.pack('<IiQ', 16 + len(answer), -failed, unique), answer])
        except OSError as error:
            if error.errno != errno.ENOENT:  # whoever asked is gone
                raise


os.umask(0)
device = os.open('/dev/fuse', os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f'fd={device},rootmode=40000,user_id=0,group_id=0,allow_other'
if libc.mount(b'passfs', os.fsencode(MOUNT), b'fuse', 0, options.encode()):
    sys.exit(f'passfs.py: cannot mount {MOUNT}: {os.strerror(ctypes.get_errno())}')
serve(device)
