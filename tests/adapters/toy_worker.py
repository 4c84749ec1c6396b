# SPDX-License-Identifier: Apache-2.0
"""A worker for tests, with the standard library alone: it does what its arguments say and no more.

It listens on `PORT`; `GET /v2/health/ready` answers 200, or 503 while `--ready-file` is missing.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-file", type=Path, help="ready only while this file exists")
    parser.add_argument("--mute-file", type=Path, help="answer nothing while this file exists")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--exit", type=int, help="end at once with this code")
    parser.add_argument("--say", default="", help="a line for the log, before anything else")
    parser.add_argument("--env-file", type=Path, help="write the environment here, one a line")
    parser.add_argument("--child-pid-file", type=Path, help="start a child, write its pid here")
    parser.add_argument("--child-leaves", action="store_true", help="in a session of its own")
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "0")))
    return parser.parse_args()


def handler(args: argparse.Namespace) -> Callable[..., BaseHTTPRequestHandler]:
    class Toy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            while args.mute_file and args.mute_file.exists():
                time.sleep(0.02)
            ready = args.ready_file is None or args.ready_file.exists()
            self.send_response(200 if ready else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing, so that a log's last line is the one a test asked for."""

    return Toy


def start_child(args: argparse.Namespace) -> None:
    forever = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
    child = subprocess.Popen(forever, start_new_session=args.child_leaves)  # noqa: S603  its own
    whole = args.child_pid_file.with_suffix(".part")
    whole.write_text(str(child.pid))
    whole.rename(args.child_pid_file)


def main() -> None:
    args = arguments()
    if args.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if args.say:
        sys.stderr.write(args.say + "\n")
        sys.stderr.flush()
    if args.env_file:
        args.env_file.write_text("\n".join(f"{k}={v}" for k, v in os.environ.items()))
    if args.exit is not None:
        sys.exit(args.exit)
    if args.child_pid_file:
        start_child(args)
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer.allow_reuse_address = False
    ThreadingHTTPServer(
        (os.environ.get("HOST", "127.0.0.1"), args.port), handler(args)
    ).serve_forever()


if __name__ == "__main__":
    main()
