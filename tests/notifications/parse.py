"""Reads messages from standard input, each with its size in octets on a line before it, and prints what Python's email package finds
in each, a line of JSON for each message."""

import email
import email.policy
import json
import sys


def fields(message):
    return [[name, str(value)] for name, value in message.raw_items()]


def blocks(part):
    """The groups of fields of the part for programs, which the package parses only where it knows the type."""
    if part.get_content_type() == "message/delivery-status":
        return [fields(block) for block in part.get_payload()]
    text = part.get_payload()[0].as_bytes(policy=email.policy.SMTPUTF8).decode()
    return [fields(email.message_from_string(block)) for block in text.strip().split("\r\n\r\n")]


while size := sys.stdin.buffer.readline():
    message = email.message_from_bytes(sys.stdin.buffer.read(int(size)), policy=email.policy.compat32)
    parts = message.get_payload()
    returned = parts[2]
    text = returned.get_content_type() == "text/rfc822-headers"
    print(json.dumps({
        "header": [name for name, _ in message.raw_items()],
        "type": message.get_content_type(),
        "report_type": message.get_param("report-type"),
        "types": [part.get_content_type() for part in parts],
        "defects": [str(defect) for part in message.walk() for defect in part.defects],
        "words": parts[0].get_payload(decode=True).decode(parts[0].get_content_charset()),
        "status": blocks(parts[1]),
        "returned": returned.get_payload(decode=True).hex() if text else "",
    }))
