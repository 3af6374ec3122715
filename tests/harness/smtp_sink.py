#!/usr/bin/python3
"""An SMTP server that keeps every mail as a file and delivers none.

Needs Debian's python3-aiosmtpd. The first line on standard output is
`listening on HOST:PORT`; afterwards there is one line for each message:
`mail DIR/<n>.eml from <sender> to <recipients>` or `refused <code and text>`,
and `wrong login` for each of those.
SIGTERM or SIGINT ends it.
"""

import argparse
import asyncio
import logging
import os
import signal
import ssl
import warnings

from aiosmtpd.smtp import SMTP, AuthResult

# aiosmtpd warns of what the tests ask for: a password without TLS.
warnings.filterwarnings("ignore", message="Requiring AUTH while not requiring TLS")
logging.disable(logging.WARNING)


class Sink:
    """Handles a message that was received in full."""

    def __init__(self, directory, refusals, unknown):
        self.directory = directory
        self.refusals = refusals
        self.unknown = unknown
        self.kept = 0

    async def handle_RCPT(self, _server, _session, envelope, address, _options):
        if address == self.unknown:
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server, _session, envelope):
        if self.refusals:
            answer = self.refusals.pop()
            say(f"refused {answer}")
            return answer
        self.kept += 1
        path = os.path.join(self.directory, f"{self.kept}.eml")
        recipients = ", ".join(envelope.rcpt_tos)
        head = f"X-Envelope-From: {envelope.mail_from}\r\nX-Envelope-To: {recipients}\r\n"
        write_whole(path, head.encode() + envelope.original_content)
        say(f"mail {path} from {envelope.mail_from} to {recipients}")
        return "250 OK"


def write_whole(path, content):
    """A reader sees the whole file or none: it is renamed into its place."""
    unfinished = path + ".part"
    with open(unfinished, "wb") as file:
        file.write(content)
    os.rename(unfinished, path)


def say(line):
    print(line, flush=True)


def authenticator(expected):
    """Accepts one user and password (AUTH PLAIN and AUTH LOGIN)."""

    def check(_server, _session, _envelope, _mechanism, auth):
        given = b":".join((auth.login, auth.password)).decode()
        if given != expected:
            say("wrong login")
        # handled=False lets aiosmtpd answer a wrong password with 535.
        return AuthResult(success=given == expected, handled=False)

    return check


def tls_context(files):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context


def host_and_port(text):
    host, _, port = text.rpartition(":")
    return host, int(port)


def refusals(text):
    count, _, answer = text.partition(":")
    return [answer] * int(count)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", type=host_and_port, default=("127.0.0.1", 0), metavar="HOST:PORT",
                        help="port 0 takes a free one (default: 127.0.0.1:0)")
    parser.add_argument("--dir", required=True, help="an existing directory for <n>.eml, counted from 1")
    parser.add_argument("--auth", metavar="USER:PASS", help="require this login")
    parser.add_argument("--fail", type=refusals, default=[], metavar="'N:CODE TEXT'",
                        help="refuse the first N messages, for example '2:451 try later'")
    parser.add_argument("--unknown", metavar="ADDRESS", help="refuse this recipient")
    tls = parser.add_mutually_exclusive_group()
    tls.add_argument("--starttls", nargs=2, metavar=("CERT", "KEY"), help="require STARTTLS")
    tls.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"), help="TLS from the first byte")
    return parser.parse_args()


async def serve(options):
    loop = asyncio.get_running_loop()
    sink = Sink(options.dir, options.fail, options.unknown)

    def session():
        return SMTP(
            sink,
            loop=loop,
            hostname="localhost",
            tls_context=tls_context(options.starttls) if options.starttls else None,
            require_starttls=options.starttls is not None,
            auth_required=options.auth is not None,
            # aiosmtpd knows of TLS only when STARTTLS began it.
            auth_require_tls=options.starttls is not None,
            authenticator=authenticator(options.auth),
        )

    implicit = tls_context(options.tls) if options.tls else None
    server = await loop.create_server(session, *options.listen, ssl=implicit)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    say("listening on {}:{}".format(*server.sockets[0].getsockname()[:2]))
    await ended.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(arguments()))
