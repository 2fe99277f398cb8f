"""An application that takes mail over HTTP: webhook_service.py FOLDER [PORT [CERTIFICATE]]

Each request is a line of JSON in FOLDER/requests: its path, its header fields, whether its signature is good, what it was answered. What
was answered 2xx is in FOLDER/new as a Maildir's file named by its key, once however often it came. The port is in FOLDER/port.

FOLDER/answer says how to answer, as JSON: "status", "headers", "body"; with "early" before the body is read, with "wait" not before
there is FOLDER/gate, with "for" only where that is a recipient. What it does not say is answered 204. FOLDER/secrets has the secrets of signatures, one a line: a request whose
signature is not good is answered 401. Signatures are verified by the text of Standard Webhooks alone.
"""

import base64
import hashlib
import hmac
import http.server
import json
import os
import ssl
import sys
import threading
import time
import urllib.parse

folder = sys.argv[1]
lock = threading.Lock()


def read(name):
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def is_signed(headers, body):
    """None where nobody asks."""
    secrets = read("secrets")
    if secrets is None:
        return None
    if abs(time.time() - int(headers["webhook-timestamp"])) > 300:
        return False
    given = headers.get("webhook-signature", "").split(" ")
    for secret in secrets.decode().split():
        key = base64.b64decode(secret.removeprefix("whsec_"))
        text = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
        digest = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
        if any(hmac.compare_digest("v1," + digest, one) for one in given):
            return True
    return False


def taken_apart(headers, body):
    """The reverse-path, the forward-paths and the content."""
    if headers["content-type"] == "application/json":
        message = json.loads(body)
        content = base64.b64decode(message.pop("content"), validate=True)
        assert len(content) == message["size"]
        envelope = message["envelope"]
        return envelope["reverse_path"], envelope["forward_paths"], content, message
    assert headers["content-type"] == "message/rfc822"
    paths = [urllib.parse.unquote(path) for path in headers["x-incoming-recipients"].split(", ")]
    return urllib.parse.unquote(headers["x-incoming-sender"]), paths, body, None


def store(key, sender, content):
    path = os.path.join(folder, "new", key)
    if os.path.exists(path):
        return False
    partial = os.path.join(folder, key + ".tmp")
    with open(partial, "wb") as file:
        file.write(b"Return-Path: <" + sender.encode() + b">\r\n" + content)
    os.rename(partial, path)
    return True


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        told = json.loads(read("answer") or "{}")
        size = int(headers["content-length"])
        body = b"" if told.get("early") else self.rfile.read(size)
        if not told.get("early") and len(body) < size:
            self.log(path=self.path, broken=len(body))
            self.close_connection = True
            return
        while told.get("wait") and not os.path.exists(os.path.join(folder, "gate")):
            time.sleep(0.01)
        entry = {"path": self.path, "headers": headers, "connection": self.client_address[1]}
        if told.get("early"):
            status = told["status"]
        else:
            signed = is_signed(headers, body)
            sender, paths, content, message = taken_apart(headers, body)
            if told.get("for", paths[0]) not in paths:
                told = {}
            status = 401 if signed is False else told.get("status", 204)
            entry |= {"signed": signed, "sender": sender, "paths": paths, "message": message, "size": len(body)}
            with lock:
                entry["is_new"] = 200 <= status < 300 and store(headers["webhook-id"], sender, content)
        self.log(status=status, **entry)
        said = told.get("body", "").encode()
        self.send_response(status)
        for name, value in told.get("headers", {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(said)))
        if told.get("early"):
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(said)

    def log(self, **entry):
        with lock, open(os.path.join(folder, "requests"), "a") as requests:
            requests.write(json.dumps(entry) + "\n")

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        if not isinstance(sys.exc_info()[1], (ConnectionError, ssl.SSLError)):
            super().handle_error(*_)


os.makedirs(os.path.join(folder, "new"), exist_ok=True)
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
