"""nbdkit python plugin: a disk with a volatile write cache, faults on request, and a power cut.

usage: nbdkit -U SOCK -P PID python vdisk.py file=IMAGE ctrl=DIR [seed=N]      (disk-up does this)
Switches are files in DIR, looked at on every request:
  flush_eio   flush and FUA fail with EIO             write_eio   every write fails with EIO
  flush_eio_once and write_eio_once: the next one fails, and the switch is gone
  write_enospc every write fails with ENOSPC          lie         flush says yes and does nothing
  poweroff    from now on everything fails; at the first request after it the cache is decided:
              default: all unflushed 512-octet sectors are lost
              torn:    each unflushed sector is kept with even odds (reordering and tearing); needs file DIR/torn
  stall_flush flushes wait until the switch is gone, and everything behind them
  trace       completed requests are appended to DIR/trace with the monotonic nanoseconds at which they began and ended:
              `W begin end marker…` for a write (FUA: a flush follows), with every `<<…>>` of its octets, and `F begin end`
              for a flush, which takes at least 2 ms then, so that nobody can be ahead of it by chance
"""
import errno, os, random, re, time
import nbdkit

API_VERSION = 2
cache, cut, opt = {}, False, {'seed': '1'}


def config(k, v): opt[k] = v
def thread_model(): return nbdkit.THREAD_MODEL_SERIALIZE_REQUESTS
def open(readonly): return os.open(opt['file'], os.O_RDWR)
def get_size(h): return os.fstat(h).st_size
def can_flush(h): return True
def can_fua(h): return nbdkit.FUA_NATIVE
def can_multi_conn(h): return True
def on(name): return os.path.exists(os.path.join(opt['ctrl'], name))


def once(name):
    if on(name):
        os.unlink(os.path.join(opt['ctrl'], name))
        return True
    return False


def fail(e):
    nbdkit.set_error(e)
    raise OSError(e, os.strerror(e))


MARKER = re.compile(rb'<<[0-9a-z-]{1,40}>>')


def trace(kind, begin, words=()):
    if on('trace'):
        line = ' '.join([kind, str(begin), str(time.monotonic_ns()), *words]) + '\n'
        fd = os.open(os.path.join(opt['ctrl'], 'trace'), os.O_WRONLY | os.O_APPEND)
        os.write(fd, line.encode())
        os.close(fd)


def power(h):
    global cut
    if on('poweroff'):
        if not cut:
            cut = True
            rnd = random.Random(int(opt['seed']))
            for s in sorted(cache):
                if on('torn') and rnd.random() < 0.5:
                    os.pwrite(h, cache[s], s * 512)
            cache.clear()
        fail(errno.EIO)


def keep(h):
    for s in sorted(cache):
        os.pwrite(h, cache[s], s * 512)
    cache.clear()


def pread(h, buf, off, flags):
    power(h)
    d = bytearray(os.pread(h, len(buf), off))
    for s in range(off // 512, (off + len(buf)) // 512):
        if s in cache:
            d[s * 512 - off:(s + 1) * 512 - off] = cache[s]
    buf[:] = d


def pwrite(h, buf, off, flags):
    begin = time.monotonic_ns()
    power(h)
    if on('write_eio') or once('write_eio_once'):
        fail(errno.EIO)
    if on('write_enospc'):
        fail(errno.ENOSPC)
    for i in range(0, len(buf), 512):
        cache[(off + i) // 512] = bytes(buf[i:i + 512])
    if on('trace'):
        trace('W', begin, sorted({marker.decode() for marker in MARKER.findall(buf)}))
    if flags & nbdkit.FLAG_FUA:
        flush(h, 0)


def flush(h, flags):
    begin = time.monotonic_ns()
    power(h)
    while on('stall_flush') and not on('poweroff'):
        time.sleep(0.005)
    power(h)
    if on('trace'):
        time.sleep(0.002)
    if on('flush_eio') or once('flush_eio_once'):
        fail(errno.EIO)
    if not on('lie'):
        keep(h)
    trace('F', begin)
