#!/usr/bin/python3
"""A FUSE file system that passes SOURCE through to MOUNT, direct I/O, with faults on request.

usage: passfs.py SOURCE MOUNT CTRL      (foreground; end it with fusermount3 -u MOUNT)
Switches are files in CTRL, looked at on every call:
  short      writes store only half, rounded to 512 octets, and say so     enospc     writes fail with ENOSPC
  eio        writes fail with EIO                                          fsync_eio  fsync fails with EIO
  short_read reads return half                                             rename_eio rename fails with EIO
Needs the packages python3-fusepy and libfuse2.
"""
import errno, os, sys

if len(sys.argv) != 4:
    sys.exit(__doc__)
from fusepy import FUSE, FuseOSError, Operations

STAT = ('st_atime', 'st_ctime', 'st_gid', 'st_mode', 'st_mtime', 'st_nlink', 'st_size', 'st_uid')
VFS = ('f_bavail', 'f_bfree', 'f_blocks', 'f_bsize', 'f_favail', 'f_ffree', 'f_files', 'f_flag', 'f_frsize', 'f_namemax')


class Pass(Operations):
    def __init__(self, root, ctrl):
        self.root, self.ctrl = root, ctrl

    def p(self, path): return self.root + path
    def on(self, name): return os.path.exists(os.path.join(self.ctrl, name))

    def check(self, **faults):
        for name, e in faults.items():
            if self.on(name):
                raise FuseOSError(e)

    def half(self, n): return max(512, n // 2 // 512 * 512)

    def getattr(self, path, fh=None):
        st = os.lstat(self.p(path))
        return {k: getattr(st, k) for k in STAT}

    def statfs(self, path):
        v = os.statvfs(self.root)
        return {k: getattr(v, k) for k in VFS}

    def readdir(self, path, fh): return ['.', '..'] + os.listdir(self.p(path))
    def create(self, path, mode, fi=None): return os.open(self.p(path), os.O_CREAT | os.O_RDWR, mode)
    def open(self, path, flags): return os.open(self.p(path), os.O_RDWR if os.access(self.p(path), os.W_OK) else os.O_RDONLY)
    def release(self, path, fh): os.close(fh)
    def flush(self, path, fh): pass
    def read(self, path, n, off, fh): return os.pread(fh, self.half(n) if self.on('short_read') else n, off)

    def write(self, path, data, off, fh):
        self.check(enospc=errno.ENOSPC, eio=errno.EIO)
        return os.pwrite(fh, data[:self.half(len(data))] if self.on('short') else data, off)

    def fsync(self, path, datasync, fh):
        self.check(fsync_eio=errno.EIO)
        os.fsync(fh)

    def fsyncdir(self, path, datasync, fh): self.check(fsync_eio=errno.EIO)
    def truncate(self, path, n, fh=None): os.truncate(self.p(path), n)
    def unlink(self, path): os.unlink(self.p(path))
    def mkdir(self, path, mode): os.mkdir(self.p(path), mode)
    def rmdir(self, path): os.rmdir(self.p(path))
    def link(self, new, old): os.link(self.p(old), self.p(new))
    def chmod(self, path, mode): os.chmod(self.p(path), mode)
    def chown(self, path, uid, gid): os.chown(self.p(path), uid, gid)
    def utimens(self, path, times=None): os.utime(self.p(path), times)

    def rename(self, old, new):
        self.check(rename_eio=errno.EIO)
        os.rename(self.p(old), self.p(new))


FUSE(Pass(os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[3])), sys.argv[2], foreground=True, nothreads=True,
     direct_io=True, big_writes=True, max_write=131072)
