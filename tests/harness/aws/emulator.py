"""AWS for tests: moto, with an SQS, an SES and an S3 as strict as Amazon's, a clock that tests can
move, and a CloudFormation that knows all that our templates use.

Run it with the interpreter that `install` prints. The first line on standard output is
`listening on HOST:PORT`; it ends with the process that started it.

`POST /control/advance/<family>/<seconds>` stops the clock of all queues whose name begins with
`<family>-`, at the first call, and moves it. All other queues live in real time.
`POST /control/waiting/<family>` is answered once somebody waits for a message of such a queue.
`POST /control/resources` is answered with all that the emulator holds.
"""

import functools
import json
import logging
import os
import sys
import threading

import boto3
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

import resources
import strict_s3
import strict_ses
import strict_sqs

# One line for each request would drown what a test says.
logging.getLogger("werkzeug").setLevel(logging.ERROR)

# As in src/aws.rs.
REGION = "eu-west-1"


def with_control(aws):
    """The application `aws`, and the requests that control its queues."""

    def application(environ, start_response):
        match environ["PATH_INFO"].split("/"):
            case ["", "control", "advance", family, seconds]:
                strict_sqs.advance(family, float(seconds))
                done = True
            case ["", "control", "waiting", family]:
                done = strict_sqs.receive_waits(family)
            case ["", "control", "resources"]:
                held = json.dumps(resources.resources(own_client)).encode()
                start_response("200 OK", [("content-length", str(len(held)))])
                return [held]
            case _:
                if "/cloudformation/aws4_request" in environ.get("HTTP_AUTHORIZATION", ""):
                    extend_cloudformation()
                return aws(environ, start_response)
        start_response("204 Done" if done else "504 Too late", [])
        return []

    return application


def own_client(service):
    """A client of this emulator itself."""
    return boto3.client(
        service,
        region_name=REGION,
        endpoint_url=f"http://127.0.0.1:{os.environ['MOTO_PORT']}",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
    )


@functools.cache
def extend_cloudformation():
    """Not before it is used: it loads most of moto, and that takes a second."""
    import cloudformation

    cloudformation.install(own_client)


def end_with(parent):
    while os.getppid() == parent:
        threading.Event().wait(0.5)
    os._exit(0)


def main():
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    strict_sqs.install()
    aws = strict_ses.with_control(DomainDispatcherApplication(create_backend_app))
    aws = strict_s3.with_control(aws)
    application = with_control(aws)
    handler = MotoRequestHandler
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=handler)
    # Many tests connect at once.
    server.socket.listen(128)
    # moto puts its address into the URLs of queues.
    os.environ["MOTO_PORT"] = str(server.port)
    print(f"listening on 127.0.0.1:{server.port}", flush=True)
    server.serve_forever()


sys.exit(main())
