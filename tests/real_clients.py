"""Sends mail with Python's smtplib.

usage: real_clients.py ADDR:PORT contents FOLDER    every file of FOLDER as a message, in one session
       real_clients.py ADDR:PORT extensions         the null reverse-path, SMTPUTF8, SIZE, and refusals
Any reply other than the one expected ends it with a traceback.
"""
import os
import smtplib
import sys

SENDER, RECIPIENT = 'a@client.test', 'b@mx.test'


def contents(session, folder):
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), 'rb') as f:
            refused = session.sendmail(SENDER, [RECIPIENT], f.read(), mail_options=['BODY=8BITMIME'])
        assert refused == {}, refused


def extensions(session):
    session.ehlo('client.test')
    for name in ('pipelining', 'size', '8bitmime', 'smtputf8', 'enhancedstatuscodes'):
        assert session.has_extn(name), f'{name} is not offered: {session.esmtp_features}'
    session.sendmail('', [RECIPIENT], b'Subject: a notification\r\n\r\nx\r\n')
    session.sendmail('jürgen@client.test', ['käthe@bücher.test'], 'Subject: grüße\r\n\r\nñ\r\n'.encode(),
                     mail_options=['SMTPUTF8', 'BODY=8BITMIME'])
    try:
        session.sendmail(SENDER, ['x@elsewhere.test'], b'Subject: refused\r\n\r\nx\r\n')
        raise AssertionError('a recipient elsewhere was accepted')
    except smtplib.SMTPRecipientsRefused as e:
        code, text = e.recipients['x@elsewhere.test']
        assert code == 550 and text.startswith(b'5.7.1'), (code, text)
    too_large = int(session.esmtp_features['size']) + 1
    code, text = session.docmd('MAIL', f'FROM:<{SENDER}> SIZE={too_large}')
    assert code == 552 and text.startswith(b'5.3.4'), (code, text)
    assert session.verify('someone')[0] == 252
    assert session.noop()[0] == 250
    assert session.help()


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    host, port = sys.argv[1].rsplit(':', 1)
    with smtplib.SMTP(host, int(port), local_hostname='client.test', timeout=120) as session:
        {'contents': contents, 'extensions': extensions}[sys.argv[2]](session, *sys.argv[3:])


main()
