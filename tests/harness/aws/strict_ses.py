"""An SES in the sandbox that refuses what Amazon's refuses, and shows what it was sent.

moto takes messages of any size, and recipients whom nobody has verified. What is refused here, and
how, follows the SES API reference and Developer Guide.

`POST /control/ses/sent/<count>` is answered with all messages, as JSON, once there are so many.
`POST /control/ses/refuse/<status>/<code>` with a text: the next message is refused with these.
"""

import collections
import functools
import json
import threading
from xml.sax.saxutils import escape

# A megabyte may also be more than this; who stays below is on the safe side.
MESSAGE_MAX_BYTES = 10_000_000
RECIPIENTS_MAX = 50
# By RFC 5321, with the line's end.
LINE_MAX_BYTES = 1000

PATIENCE_SECONDS = 30

sent = []
arrived = threading.Condition()
refusals = collections.deque()


def with_control(aws):
    """The application `aws`, and the requests that control its SES."""

    def application(environ, start_response):
        match environ["PATH_INFO"].split("/"):
            case ["", "control", "ses", "sent", count]:
                return answer_sent(int(count), start_response)
            case ["", "control", "ses", "refuse", status, code]:
                refusals.append((status, code, read(environ)))
                start_response("204 Done", [])
                return []
        if "/ses/aws4_request" in environ.get("HTTP_AUTHORIZATION", ""):
            install()
            if refusals:
                read(environ)
                return refuse(*refusals.popleft(), start_response)
        return aws(environ, start_response)

    return application


def answer_sent(count, start_response):
    with arrived:
        done = arrived.wait_for(lambda: len(sent) >= count, PATIENCE_SECONDS)
        body = json.dumps(sent).encode()
    # Without a length it would be chunked.
    start_response("200 OK" if done else "504 Too late", [("Content-Length", str(len(body)))])
    return [body]


def refuse(status, code, message, start_response):
    start_response(f"{status} Refused", [("Content-Type", "text/xml")])
    error = f"<Type>Sender</Type><Code>{code}</Code><Message>{escape(message)}</Message>"
    namespace = "http://ses.amazonaws.com/doc/2010-12-01/"
    return [f'<ErrorResponse xmlns="{namespace}"><Error>{error}</Error></ErrorResponse>'.encode()]


def read(environ):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    return environ["wsgi.input"].read(length).decode()


@functools.cache
def install():
    """Not before it is used: loading takes time."""
    from moto.ses import exceptions, models

    def send_raw_email(backend, source, destinations, raw_data):
        refuse_malformed(destinations, raw_data, exceptions)
        unverified = [
            address
            for address in [source, *destinations]
            if not backend._is_verified_address(address)
        ]
        if unverified:
            raise exceptions.MessageRejectedError(
                "Email address is not verified. The following identities failed the check in "
                f"region {backend.region_name.upper()}: {', '.join(unverified)}"
            )
        message = models.RawMessage(models.get_random_message_id(), source, destinations, raw_data)
        with arrived:
            sent.append({"source": source, "destinations": destinations, "message": raw_data})
            arrived.notify_all()
        return message

    models.SESBackend.send_raw_email = send_raw_email


def refuse_malformed(destinations, raw_data, exceptions):
    message = raw_data.encode()
    if len(message) > MESSAGE_MAX_BYTES:
        raise exceptions.InvalidParameterValue(
            f"Message length is more than {MESSAGE_MAX_BYTES} bytes long: '{len(message)}'."
        )
    if any(len(line) > LINE_MAX_BYTES for line in message.splitlines(keepends=True)):
        raise exceptions.InvalidParameterValue("A line of the message is too long.")
    if not 1 <= len(destinations) <= RECIPIENTS_MAX:
        raise exceptions.InvalidParameterValue(f"Recipient count is {len(destinations)}.")
