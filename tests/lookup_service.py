"""A service that knows who exists: lookup_service.py FOLDER [PORT [CERTIFICATE]]

GET /NAME?... answers by the name. Each request is a line in FOLDER/requests; the port is in FOLDER/port. Whoever asks for a name that
begins with "slow" waits until there is FOLDER/gate.
"""

import http.server
import os
import ssl
import sys
import time
import urllib.parse

folder = sys.argv[1]
ANSWERS = {
    "nobody": (404, None, b""),
    "gone": (410, None, b""),
    "closed": (403, None, b""),
    "moved": (302, None, b""),
    "broken": (500, None, b""),
    "page": (200, "text/html", b"<p>yes</p>"),
    "vip": (200, "application/json", b'{"tag": "vip"}'),
    "info": (200, "application/json; charset=utf-8", b'{"targets": ["alice@x.example", "bob@elsewhere.example"]}'),
    "left": (200, "application/json", b'{"verdict": "reject", "reply": "Left us\\r\\n250 in May"}'),
    "full": (200, "application/json", b'{"verdict": "defer", "reply": "Mailbox is full"}'),
    "mad": (200, "application/json", b'{"verdict": '),
    "huge": (200, "application/json", b'{"x": "' + b"x" * 100000 + b'"}'),
}


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path[1:])
        with open(os.path.join(folder, "requests"), "a") as requests:
            requests.write(f"{self.path} {self.headers.get('Authorization')}\n")
        while name.startswith("slow") and not os.path.exists(os.path.join(folder, "gate")):
            time.sleep(0.01)
        status, kind, body = ANSWERS.get(name, (204, None, b""))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/alice")
        if kind:
            self.send_header("Content-Type", kind)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
server = Server(("127.0.0.1", port), Service)
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[3])
    server.socket = context.wrap_socket(server.socket, server_side=True)
path = os.path.join(folder, "port")
with open(path + ".new", "w") as file:
    file.write(str(server.server_address[1]))
os.rename(path + ".new", path)
server.serve_forever()
