"""Speaks to the gateway with Python's smtplib over TLS.

usage: clients.py ADDR:PORT AUTHORITY session starttls|implicit    logs in, and sends with AUTH, SMTPUTF8 and BDAT
       clients.py ADDR:PORT AUTHORITY lmtp                         two messages to several recipients
Any reply other than the one expected ends it with a traceback.
"""
import smtplib
import ssl
import sys

SENDER, RECIPIENT = 'a@client.test', 'b@mx.test'


def connect(host, port, authority, way):
    context = ssl.create_default_context(cafile=authority)
    # Verified is the name that the certificate is for, whatever the address.
    wrap = context.wrap_socket
    context.wrap_socket = lambda sock, **kw: wrap(sock, **{**kw, 'server_hostname': 'mx.test'})
    if way == 'implicit':
        return smtplib.SMTP_SSL(host, port, local_hostname='client.test', timeout=60, context=context)
    client = smtplib.SMTP(host, port, local_hostname='client.test', timeout=60)
    client.ehlo()
    assert client.has_extn('starttls') and not client.has_extn('auth'), client.esmtp_features
    assert client.docmd('MAIL', f'FROM:<{SENDER}>')[0] == 530
    assert client.docmd('AUTH', 'PLAIN AGEAYg==')[0] in (530, 538)
    client.starttls(context=context)
    # RFC 3207 §4.2: what was known is forgotten.
    assert client.docmd('MAIL', f'FROM:<{SENDER}>')[0] == 503
    return client


def session(host, port, authority, way):
    with connect(host, port, authority, way) as client:
        client.ehlo()
        assert client.has_extn('auth') and not client.has_extn('starttls'), client.esmtp_features
        try:
            client.login('alice', 'wrong')
            raise AssertionError('a wrong password was accepted')
        except smtplib.SMTPAuthenticationError as e:
            assert e.smtp_code == 535, e
        plain(client, 'jürgen', 'geheim ü')
        assert client.docmd('AUTH', 'PLAIN AGEAYg==')[0] == 503
        client.sendmail(SENDER, [RECIPIENT], b'Subject: with a login\r\n\r\nx\r\n')
        client.sendmail('jürgen@client.test', [RECIPIENT], 'Subject: grüße\r\n\r\nñ\r\n'.encode(),
                        mail_options=['SMTPUTF8', 'BODY=8BITMIME'])
        chunks(client)
        assert client.quit()[0] == 221


def plain(client, user, password):
    """AUTH PLAIN in UTF-8, which smtplib itself cannot."""
    import base64
    response = base64.b64encode(f'\0{user}\0{password}'.encode()).decode()
    code, text = client.docmd('AUTH', f'PLAIN {response}')
    assert code == 235, (code, text)


def chunks(client):
    """A message in chunks, cut where it hurts, and all of it in one write."""
    content = b'Subject: chunks\r\n\r\n.\r\n..\r\nMAIL FROM:<x@y>\r\n'
    pieces = [content[:16], content[16:17], content[17:21], b'', content[21:]]
    group = f'MAIL FROM:<{SENDER}>\r\nRCPT TO:<{RECIPIENT}>\r\n'.encode()
    for i, piece in enumerate(pieces):
        group += b'BDAT %d%s\r\n' % (len(piece), b' LAST' if i + 1 == len(pieces) else b'') + piece
    client.sock.sendall(group)
    for _ in range(2 + len(pieces)):
        code, text = client.getreply()
        assert code == 250, (code, text)
    assert b'queued as' in text, text


def lmtp(host, port, authority):
    with smtplib.LMTP(host, port, local_hostname='client.test') as client:
        code, text = client.docmd('EHLO', 'client.test')
        assert code == 500, (code, text)
        client.ehlo()  # LHLO
        # sendmail reads one reply behind the content, so one recipient may be left.
        refused = client.sendmail(SENDER, ['x@elsewhere.test', 'b@mx.test'], b'Subject: one\r\n\r\nx\r\n')
        assert list(refused) == ['x@elsewhere.test'], refused
        recipients = [f'r{i}@mx.test' for i in range(5)]
        assert client.mail(SENDER)[0] == 250
        for recipient in recipients:
            assert client.rcpt(recipient)[0] == 250
        assert client.docmd('DATA')[0] == 354
        client.send(b'Subject: two\r\n\r\nx\r\n.\r\n')
        for recipient in recipients:
            code, text = client.getreply()
            assert code == 250, (recipient, code, text)
        assert client.noop()[0] == 250


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    host, port = sys.argv[1].rsplit(':', 1)
    {'session': session, 'lmtp': lmtp}[sys.argv[3]](host, int(port), sys.argv[2], *sys.argv[4:])


main()
