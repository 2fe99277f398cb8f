"""A policy service that answers as its recipients are named.

service.py ADDRESS TABLE LOG

ADDRESS is the path of a socket, or "tcp" for a port of the kernel's choice, which is written to standard output. TABLE is JSON: local
part of the recipient -> octets of the answer; who is not in it is answered DUNNO. Behind "!close" in an answer the connection is closed,
at "!hang" nothing happens any more. LOG gets a line of JSON for each request: the number of its connection, and its attributes.
"""

import json
import socket
import sys
import threading

address, table, log = sys.argv[1:]
table = json.loads(table)
log = open(log, "a", buffering=1)
lock = threading.Lock()


def serve(number, connection):
    lines = connection.makefile("rb")
    while True:
        attributes = {}
        for line in iter(lines.readline, b""):
            if line == b"\n":
                break
            name, _, value = line[:-1].decode().partition("=")
            attributes[name] = value
        else:
            return
        with lock:
            log.write(json.dumps([number, attributes]) + "\n")
        answer = table.get(attributes.get("recipient", "").partition("@")[0], "action=DUNNO\n\n")
        answer, _, deed = answer.partition("!")
        connection.sendall(answer.encode("latin-1"))
        if deed == "close":
            connection.shutdown(socket.SHUT_RDWR)
            return
        if deed == "hang":
            threading.Event().wait()


if address == "tcp":
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
else:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(100)
    print("bound", flush=True)
number = 0
while True:
    connection, _ = listener.accept()
    number += 1
    threading.Thread(target=serve, args=(number, connection), daemon=True).start()
