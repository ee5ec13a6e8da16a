"""The command line: ``python3 mirror.pyz [--host ADDRESS] [--port PORT] [FILE…]``."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading

from mirror.laptop.archive import Archive, Unusable, find
from mirror.laptop.library import Damaged, Library
from mirror.laptop.page import size_text
from mirror.laptop.server import Server, say

_PORTS = range(5000, 5010)
"""Tried one after the other where no port is asked for: macOS has a service of its own on 5000."""


def main() -> int:
    """Serves until it is interrupted. Returns the exit status: 1 if nothing can be served."""
    parser = argparse.ArgumentParser(
        prog="mirror.pyz",
        description="Serves the images of bundles that `mirror export` made, straight from the tar. Nothing is written.",
    )
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="bundles, or first pieces of them; all in the folder of this program by default"
    )
    parser.add_argument("--host", default="", metavar="ADDRESS", help="address to listen on (default: all of this machine)")
    parser.add_argument(
        "--port", type=int, metavar="PORT", help="port to listen on (default: the first of 5000 to 5009 that is free)"
    )
    arguments = parser.parse_args()
    folder = os.path.dirname(os.path.abspath(sys.argv[0]))
    library = Library()
    library.add(_archives(arguments.files or find(folder), library))
    for problem in library.problems:
        say(problem)
    if not library.images:
        if not library.problems:
            say(f"there is no bundle in {folder}: put lab.tar beside this program, or name it")
        return 1
    server = _listen(arguments.host, arguments.port, library)
    if server is None:
        return 1
    for image in library.images:
        lacks = f", INCOMPLETE: {image.missing} layers are missing" if image.missing else ""
        print(f"  {image.repository}{'@' if ':' in image.reference else ':'}{image.reference}  {size_text(image.size)}{lacks}")
    print(f"\nServing at {_url(arguments.host, server.server_port)} which shows what to type. Ctrl-C ends it.\n", flush=True)
    threading.Thread(target=_verify_all, args=(server,), daemon=True).start()
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


def _archives(paths: list[str], library: Library) -> list[Archive]:
    found = []
    for path in paths:
        try:
            found.append(Archive(path))
        except Unusable as error:
            library.problems.append(str(error))
    return found


def _listen(host: str, port: int | None, library: Library) -> Server | None:
    ports = _PORTS if port is None else [port]
    for number in ports:
        try:
            return Server(host, number, library)
        except (OSError, OverflowError) as error:
            failure = error
    say(
        f"cannot listen on {host or 'this machine'}, port {ports[0]}: {getattr(failure, 'strerror', None) or failure}: choose another with --port"
    )
    return None


def _url(host: str, port: int) -> str:
    """Where others reach it: at the address that it listens on, or at this machine's if that is all of them."""
    if host in ("", "0.0.0.0", "::"):
        host = _own_address()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _own_address() -> str:
    """This machine's address in its network. No packet is sent for this; a route is looked up."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
    except OSError:
        return "localhost"


def _verify_all(server: Server) -> None:
    """Verifies blobs while nobody pulls, so that a bad copy is noticed before it is needed."""
    blobs = list(server.library.blobs.values())
    bad = 0
    for blob in blobs:
        server.quiet.wait()
        try:
            blob.verify()
        except (Damaged, OSError) as error:
            bad += 1
            say(str(error))
    if not bad:
        say(f"all {len(blobs)} blobs ({size_text(sum(blob.size for blob in blobs))}) are what their digests say")


if __name__ == "__main__":
    raise SystemExit(main())
