"""An S3 whose conditional writes are atomic, as Amazon's are, and that tests can control.

moto looks whether a condition is met and then writes, and requests come in threads of their own.

`POST /control/s3/age/<bucket>/<seconds>` makes all objects of a bucket older.
`POST /control/s3/ignore/<bucket>/<header>` lets a bucket ignore this header of writes from now on.
`POST /control/s3/refuse/<bucket>/<status>/<code>` refuses the next write to a bucket.
`POST /control/s3/lose/<bucket>/<count>` does the next writes to a bucket and answers none of them.
`POST /control/s3/requests/<bucket>` is answered with the number of requests that came so far.
"""

import collections
import datetime
import socket
import threading

from moto.s3.models import s3_backends

lock = threading.RLock()
ignored = collections.defaultdict(set)
refused = collections.defaultdict(list)
# How many answers to writes are to be lost.
lost = collections.Counter()
requests = collections.Counter()


def with_control(aws):
    """The application `aws`, and the requests that control its buckets."""

    def application(environ, start_response):
        match environ["PATH_INFO"].split("/"):
            case ["", "control", "s3", "age", bucket, seconds]:
                make_older(bucket, datetime.timedelta(seconds=float(seconds)))
            case ["", "control", "s3", "ignore", bucket, header]:
                ignored[bucket].add("HTTP_" + header.upper().replace("-", "_"))
            case ["", "control", "s3", "refuse", bucket, status, code]:
                refused[bucket].append((status, code))
            case ["", "control", "s3", "lose", bucket, count]:
                lost[bucket] += int(count)
            case ["", "control", "s3", "requests", bucket]:
                count = str(requests[bucket]).encode()
                start_response("200 OK", [("content-length", str(len(count)))])
                return [count]
            case ["", bucket, *_] if is_of_s3(environ):
                with lock:
                    return answer(aws, bucket, environ, start_response)
            case _:
                return aws(environ, start_response)
        start_response("204 Done", [])
        return []

    return application


def is_of_s3(environ):
    return "/s3/aws4_request" in environ.get("HTTP_AUTHORIZATION", "")


def answer(aws, bucket, environ, start_response):
    requests[bucket] += 1
    if environ["REQUEST_METHOD"] != "PUT":
        return aws(environ, start_response)
    for header in ignored[bucket]:
        environ.pop(header, None)
    if refused[bucket]:
        status, code = refused[bucket].pop(0)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(f"{status} No", [("content-type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>as asked for</Message></Error>".encode()]
    answered = aws(environ, start_response)
    if lost[bucket] > 0:
        lost[bucket] -= 1
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return answered


def make_older(bucket, by):
    with lock:
        partition, account_id = s3_backends.bucket_accounts[bucket]
        objects = s3_backends[account_id][partition].get_bucket(bucket).keys
        for key in objects.values():
            key.last_modified -= by
