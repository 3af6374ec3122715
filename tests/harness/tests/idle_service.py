#!/usr/bin/python3
"""A service that takes every push and builds nothing. Its log begins with $SAYS."""

import http.server
import os
import sys
import uuid


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(202)
        self.end_headers()
        self.wfile.write(f"{uuid.uuid4()}\n".encode())


server = http.server.HTTPServer((os.environ["BIND"], int(os.environ["PORT"])), Handler)
print(os.environ.get("SAYS", ""), "INFO listening on {}:{}".format(*server.server_address), file=sys.stderr, flush=True)
server.serve_forever()
