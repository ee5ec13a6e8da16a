"""containerd with a P2P daemon in front of the mirror, by the hosts.toml files of docs/scale.md. The daemons are no Go modules that can be had, so one stands in for them."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import REPOSITORY
from tests.e2e.test_containerd import Containerd
from tests.support.images import make_image, push
from tests.support.mirrors import MirrorProcess
from tests.support.patience import PATIENCE, patiently
from tests.support.programs import DockerRegistry

SCALE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()


class Daemon(BaseHTTPRequestHandler):
    """Gives what a node has finished. The rest, Dragonfly's asks the address in the header for, with path and query as they came (make_registry_mirror_request in
    dragonfly-client/src/proxy/mod.rs), and spegel's does not find (mirrorHandler in pkg/registry/registry.go)."""

    finished: dict[str, bytes]
    """By path."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        address = self.headers.get("X-Dragonfly-Registry")
        status, headers, body = 404, {}, b""
        if path in self.finished:
            status, body = 200, self.finished[path]
        elif address is not None:
            sent = {name: value for name, value in self.headers.items() if name in ("Accept", "User-Agent")}
            request = urllib.request.Request(address + self.path, headers=sent, method=self.command)
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                status, headers, body = answer.status, dict(answer.headers), answer.read()
            if "/blobs/" in path:
                self.finished[path] = body
        self.send_response(status)
        for name in ("Content-Type", "Docker-Content-Digest"):
            if name in headers:
                self.send_header(name, headers[name])
        self.send_header("Content-Length", headers.get("Content-Length", str(len(body))))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""


@pytest.mark.parametrize("system", ["Dragonfly", "Spegel"])
def test_nodes_ask_the_mirror_for_what_no_node_has_and_for_all_while_their_daemon_is_down(system: str, tmp_path: Path) -> None:
    """Each blob once for two nodes, one after the other, of a registry that only ``ns`` names; the mirror asks that registry once, also for the third node."""
    described = re.search(rf"\*\*{system}\*\*.*?```toml\n(.*?)```", SCALE, re.DOTALL)
    assert described is not None
    image = make_image(1)
    finished: dict[str, bytes] = {}
    daemon = ThreadingHTTPServer(("127.0.0.1", 0), type("Node", (Daemon,), {"finished": finished}))
    with ExitStack() as stack:
        registry = DockerRegistry(tmp_path / "registry")
        stack.callback(registry.stop)
        push(registry.url, REPOSITORY, "1", image)
        thread = threading.Thread(target=daemon.serve_forever)
        thread.start()
        stack.callback(thread.join, PATIENCE)
        stack.callback(daemon.server_close)
        stack.callback(daemon.shutdown)
        mirror = stack.enter_context(MirrorProcess(tmp_path / "cache", {"ghcr.io": registry.url}))
        hosts = described[1].replace("http://mirror.lan:5000", mirror.url)
        hosts = re.sub(r"http://[\d.]+:(4001|30020)", f"http://127.0.0.1:{daemon.server_port}", hosts)
        hosts = hosts.replace("https://registry-1.docker.io", "http://127.0.0.1:1")
        (tmp_path / "hosts" / "_default").mkdir(parents=True)
        (tmp_path / "hosts" / "_default" / "hosts.toml").write_text(hosts)
        containerd = Containerd(tmp_path / "containerd", "http://127.0.0.1:1")
        stack.callback(containerd.stop)

        def asked() -> dict[str, tuple[int, int]]:
            """How often the mirror and the registry were asked for each blob."""
            lines = [json.loads(line)["reference"] for line in mirror.log.splitlines() if '"method":"GET"' in line]
            return {digest: (lines.count(digest), registry.asked("GET", f"/blobs/{digest}")) for digest in image.blobs}

        for node, times in enumerate((1, 1, 2)):
            if node == 2:
                daemon.shutdown()
                daemon.server_close()
            containerd.pull(f"ghcr.io/{REPOSITORY}:1", tmp_path / "hosts")
            for digest, data in image.blobs.items():
                assert containerd.content(digest) == data
            # Both note a request once it is over.
            for _ in patiently():
                if set(asked().values()) == {(times, 1)}:
                    break
                time.sleep(0.05)
            finished |= {f"/v2/{REPOSITORY}/blobs/{digest}": data for digest, data in image.blobs.items()}
            containerd.wipe()
