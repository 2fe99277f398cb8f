"""aiosmtpd with a handler that keeps every message in a file, synced with its folder before the 250.

usage: server.py FOLDER PORT
"""

import asyncio
import itertools
import json
import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import uvloop
from aiosmtpd.smtp import SMTP

MESSAGE_SIZE_MAX = 50 * 1024 * 1024
# Connections the kernel holds until they are accepted.
BACKLOG = 4096
# Messages written and synced at once: syncs that wait together share a commit of the file system's journal.
WRITERS = 64


class Store:
    """Writes a message, syncs the file, renames it, syncs the folder: its name appears with the whole content or not at all."""

    def __init__(self, folder):
        self.folder = folder
        self.folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.numbers = itertools.count()

    def keep(self, envelope):
        name = f"{os.getpid()}.{next(self.numbers)}"
        head = json.dumps({"from": envelope.mail_from, "to": envelope.rcpt_tos}).encode() + b"\n"
        file = os.open("." + name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.folder_fd)
        try:
            octets = memoryview(head + envelope.content)
            while octets:
                octets = octets[os.write(file, octets) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.rename("." + name, name, src_dir_fd=self.folder_fd, dst_dir_fd=self.folder_fd)
        os.fsync(self.folder_fd)


class Handler:
    def __init__(self, store, writers):
        self.store = store
        self.writers = writers

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        # True of aiosmtpd, which reads commands one after another from a buffer, though it does not say so by itself.
        session.host_name = hostname
        responses.insert(-1, "250-PIPELINING")
        return responses

    async def handle_RCPT(self, server, session, envelope, address, options):
        if not address.lower().endswith("@mx.test"):
            return "550 5.7.1 not here"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server, session, envelope):
        await asyncio.get_running_loop().run_in_executor(self.writers, self.store.keep, envelope)
        return "250 2.0.0 kept"


async def serve(folder, port):
    loop = asyncio.get_running_loop()
    handler = Handler(Store(folder), ThreadPoolExecutor(WRITERS))

    def session():
        return SMTP(handler, data_size_limit=MESSAGE_SIZE_MAX, hostname="mx.test", enable_SMTPUTF8=True, loop=loop)

    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(session, "127.0.0.1", port, backlog=BACKLOG)
    await stop.wait()
    server.close()


logging.disable(logging.ERROR)
uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
