"""An SQS that refuses what Amazon's refuses.

moto takes a receipt handle for as long as its message lives, and characters and sizes that
Amazon's does not; two receives at once may get the same message. What is refused here, and how,
follows the SQS API reference.
"""

import collections
import re
import select
import socket
import threading
import time

import flask
from moto.sqs import models
from moto.sqs.exceptions import (
    InvalidParameterValue,
    MissingParameter,
    SQSException,
    TooManyEntriesInBatchRequest,
)

MESSAGE_MAX_BYTES = 1 << 20
HIDDEN_MAX_SECONDS = 12 * 60 * 60
BATCH_MAX = 10
DEDUPLICATION_SECONDS = 300

# All characters that XML 1.0 lacks.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# What a group and a deduplication id are made of.
IDENTIFIER = re.compile(r"[A-Za-z0-9!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]{1,128}")

# One request at a time, except for waits: moto's own queues are not made for threads.
lock = threading.RLock()
turn = threading.Condition(lock)
# Told when a receive begins to wait: those that wait for messages need not look again.
wait_began = threading.Condition(lock)
stopped_clocks = {}
# How many receives wait for a message, by family.
waiting = collections.Counter()

PATIENCE_SECONDS = 30


class Current(threading.local):
    """The family of the queue that this thread's request is about."""

    family = None


current = Current()


def advance(family, seconds):
    """Moves the stopped clock of a family of queues; stops it first if it still goes."""
    with turn:
        stopped_clocks[family] = stopped_clocks.get(family, time.time()) + seconds
        turn.notify_all()


def receive_waits(family):
    """True once a receive waits for a message; False if none does."""
    with wait_began:
        return wait_began.wait_for(lambda: waiting[family] > 0, PATIENCE_SECONDS)


def now():
    return stopped_clocks.get(current.family, time.time())


def install():
    models.unix_time = lambda *_: now()
    models.unix_time_millis = lambda *_: now() * 1000.0
    # At the very end of its time as well.
    models.Message.visible = property(lambda message: now() * 1000.0 >= message.visible_at)
    for replacement in (
        send_message,
        receive_message,
        change_message_visibility,
        delete_message,
        get_queue_attributes,
        send_message_batch,
        change_message_visibility_batch,
        delete_message_batch,
    ):
        replace(replacement)


def replace(replacement):
    """Puts a function of this file into moto's place, which it gets as its first argument."""
    original = getattr(models.SQSBackend, replacement.__name__)

    def method(backend, queue_name, *args, **kwargs):
        current.family = queue_name.split("-")[0]
        # The lock is one that a thread may take twice: moto's methods call each other.
        with turn:
            result = replacement(original, backend, queue_name, *args, **kwargs)
            turn.notify_all()
            return result

    setattr(models.SQSBackend, replacement.__name__, method)


def send_message(original, backend, queue_name, message_body, **parameters):
    queue = backend.get_queue(queue_name)
    attributes = parameters.get("message_attributes") or {}
    check_content(queue, message_body, attributes)
    deduplication_id = parameters.get("deduplication_id")
    for name, value in (
        ("MessageGroupId", parameters.get("group_id")),
        ("MessageDeduplicationId", deduplication_id),
    ):
        if value is not None and not IDENTIFIER.fullmatch(value):
            raise InvalidParameterValue(f"Value {value} for parameter {name} is invalid.")
    # Remembered also when the message is gone.
    remembered = vars(queue).setdefault("remembered", {})
    if queue.fifo_queue and deduplication_id in remembered:
        earlier, sent = remembered[deduplication_id]
        if now() - sent < DEDUPLICATION_SECONDS:
            return earlier
    message = original(backend, queue_name, message_body, **parameters)
    if queue.fifo_queue:
        remembered[deduplication_id] = (message, now())
    return message


def check_content(queue, body, attributes):
    if not body:
        raise MissingParameter("MessageBody")
    texts = [body]
    for name, attribute in attributes.items():
        value = attribute.get("StringValue")
        if not value:
            raise InvalidParameterValue(f"Message attribute '{name}' must have a value.")
        texts += [name, attribute["DataType"], value]
    if len(attributes) > 10:
        raise InvalidParameterValue("Number of message attributes exceeds the allowed maximum [10].")
    if any(FORBIDDEN.search(text) for text in texts):
        raise SQSException("InvalidMessageContents", "Invalid characters found.")
    size = sum(len(text.encode()) for text in texts)
    limit = min(MESSAGE_MAX_BYTES, int(queue.maximum_message_size))
    if size > limit:
        raise InvalidParameterValue(
            f"One or more parameters are invalid. Reason: Message must be shorter than {limit} bytes."
        )


def receive_message(original, backend, queue_name, count, wait_seconds, *parameters):
    """Waits here, not in moto: every change wakes it, and no message goes to who has gone."""
    until = now() + wait_seconds
    connection = flask.request.environ["werkzeug.socket"]
    while not has_gone(connection):
        received = original(backend, queue_name, count, 0, *parameters)
        if received or now() >= until:
            note_receives(backend.get_queue(queue_name), received)
            return received
        wait()
    return []


def wait():
    waiting[current.family] += 1
    wait_began.notify_all()
    # Real time passes unnoticed.
    turn.wait(0.2)
    waiting[current.family] -= 1


def has_gone(connection):
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return bool(readable) and not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def note_receives(queue, received):
    ids = {message.id for message in received}
    for message in queue._messages:
        if message.id in ids:
            message.received_at = now()


def change_message_visibility(_, backend, queue_name, receipt_handle, visibility_timeout):
    queue = backend.get_queue(queue_name)
    message = leased(queue, receipt_handle)
    if message is None:
        raise InvalidParameterValue(
            f"Value {receipt_handle} for parameter ReceiptHandle is invalid. Reason: "
            "Message does not exist or is not available for visibility timeout change."
        )
    if now() + int(visibility_timeout) - message.received_at > HIDDEN_MAX_SECONDS:
        raise InvalidParameterValue(
            f"Value {visibility_timeout} for parameter VisibilityTimeout is invalid. Reason: "
            f"Total VisibilityTimeout for the message is beyond the limit [{HIDDEN_MAX_SECONDS} seconds]"
        )
    message.change_visibility(visibility_timeout)
    if message.visible:
        queue.pending_messages.discard(message)


def delete_message(_, backend, queue_name, receipt_handle):
    queue = backend.get_queue(queue_name)
    settled = vars(queue).setdefault("settled", set())
    if receipt_handle in settled:
        return
    message = leased(queue, receipt_handle)
    if message is None and queue.fifo_queue:
        raise InvalidParameterValue(
            f"Value {receipt_handle} for parameter ReceiptHandle is invalid. Reason: "
            "The receipt handle has expired."
        )
    # A standard queue takes the newest handle though its time is over, and ignores older ones.
    message = message or newest(queue, receipt_handle)
    if message is not None:
        settled.add(receipt_handle)
        queue.pending_messages.discard(message)
        queue._messages.remove(message)


def newest(queue, receipt_handle):
    """The message that was last received with this handle."""
    for message in queue._messages:
        if message.receipt_handle == receipt_handle:
            return message
    return None


def leased(queue, receipt_handle):
    """The message that this handle still hides."""
    message = newest(queue, receipt_handle)
    return None if message is None or message.visible else message


def get_queue_attributes(original, *parameters):
    """Counts messages by the queue's clock."""
    return original(*parameters)


def send_message_batch(original, backend, queue_name, entries):
    check_batch(entries)
    return original(backend, queue_name, entries)


def change_message_visibility_batch(_, backend, queue_name, entries):
    def change(entry):
        timeout = entry["VisibilityTimeout"]
        backend.change_message_visibility(queue_name, entry["ReceiptHandle"], timeout)

    return one_by_one(change, entries)


def delete_message_batch(_, backend, queue_name, entries):
    return one_by_one(
        lambda entry: backend.delete_message(queue_name, entry["ReceiptHandle"]), entries
    )


def one_by_one(do, entries):
    check_batch(entries)
    successful, failed = [], []
    for entry in entries:
        try:
            do(entry)
            successful.append(entry["Id"])
        except SQSException as error:
            problem = {"SenderFault": True, "Code": error.code, "Message": error.message}
            failed.append({"Id": entry["Id"]} | problem)
    return successful, failed


def check_batch(entries):
    if len(entries) > BATCH_MAX:
        raise TooManyEntriesInBatchRequest(len(entries))
