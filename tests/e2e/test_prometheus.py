"""A real Prometheus reads the metrics, and answers what the Grafana dashboard asks."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.images import make_image, push
from tests.support.mirrors import MirrorProcess
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.programs import DockerRegistry, Program, answers, require

REPOSITORY = "library/app"
DASHBOARD = Path(__file__).parents[2] / "grafana" / "mirror.json"
VARIABLES = {"$__rate_interval": "1m", "$__range": "5m", "$registry": ".*"}
"""What Grafana puts in the place of its variables."""


class Hub:
    """A registry that limits pulls, as Docker Hub does: nginx adds the headers."""

    def __init__(self, folder: Path) -> None:
        require("nginx")
        self.registry = DockerRegistry(folder / "registry")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = folder / "nginx.conf"
        limits = 'add_header ratelimit-limit "100;w=21600"; add_header ratelimit-remaining "42;w=21600";'
        temporary = " ".join(
            f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(
            f"daemon off; pid {folder}/nginx.pid; error_log stderr; events {{}}\n"
            f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {self.registry.url}; proxy_set_header Host $http_host; {limits} }} }} }}\n"
        )
        self._nginx = Program(["nginx", "-c", str(config), "-p", str(folder)], folder / "nginx.log")
        self._nginx.wait_until(lambda: answers(self.url))

    def stop(self) -> None:
        self._nginx.stop()
        self.registry.stop()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    started = Hub(tmp_path)
    yield started
    started.stop()


def test_prometheus_scrapes_and_every_panel_of_the_dashboard_shows_data(hub: Hub, tmp_path: Path) -> None:
    """The exposition is well-formed by promtool, the counts are right, and after cold, warm and stale pulls every query has an answer that is a number."""
    require("prometheus", "promtool")
    image = make_image(1)
    push(hub.registry.url, REPOSITORY, "one", image)
    push(hub.registry.url, "library/listed", "one", make_image(2))
    port = free_port()
    # Without what is fetched ahead, so that it is known which requests miss.
    environment = {"CACHE__TAG_TTL": "0s", "CACHE__PREFETCH": "false", "UPSTREAM__CONNECT_TIMEOUT": "1s"}
    environment["WARM"] = json.dumps([{"images": ["listed:one"]}])
    environment["ACCESS"] = json.dumps([{"who": ["anyone"], "bytes_per_month": "1TB"}])
    environment["GUARD"] = json.dumps([{"name": "wait", "images": ["docker.io/library/listed"], "cooldown": "3d"}])
    environment["SCAN"] = json.dumps([{"command": ["true", "{layout}"], "images": ["nothing/*"]}])
    environment["WEBHOOK"] = json.dumps([{"url": f"http://127.0.0.1:{free_port()}/"}])
    with MirrorProcess(tmp_path / "cache", {"docker.io": hub.url}, **environment) as mirror:
        config = tmp_path / "prometheus.yml"
        target = mirror.url.removeprefix("http://")
        config.write_text(
            f"global: {{scrape_interval: 200ms}}\nscrape_configs: [{{job_name: mirror, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        arguments = [f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/tsdb", f"--web.listen-address=127.0.0.1:{port}"]
        prometheus = Program(["prometheus", *arguments], tmp_path / "prometheus.log")
        try:
            prometheus.wait_until(lambda: answers(f"http://127.0.0.1:{port}/-/ready"))
            for registry in ("docker.io", "ghcr.io"):
                # Counters begin at 0 for every registry, before anything was asked for: what comes first is an increase too.
                assert query(port, f'registry_proxy_requests_total{{upstream_host="{registry}",type="blob"}}') == 0
            query(port, 'mirror_warm_pulls_total{list="1",result="pulled"} == 1')
            pull(mirror, image.blobs)
            pull(mirror, image.blobs)
            exposition = urllib.request.urlopen(f"{mirror.url}/metrics").read()
            checked = subprocess.run(["promtool", "check", "metrics"], input=exposition, capture_output=True, check=False)
            assert checked.returncode in (0, 3), checked.stderr.decode()  # 3: advice on names only
            assert b"error" not in checked.stderr.lower()
            blobs, selector = len(image.blobs), '{upstream_host="docker.io",type="blob"}'
            wanted = {"requests": 2 * blobs, "hits": blobs, "misses": blobs}
            for name, count in wanted.items():
                query(port, f"registry_proxy_{name}_total{selector} == {count}")
            query(port, f'sum(mirror_request_seconds_count{{type="blob"}}) == {2 * blobs}')
            push(hub.registry.url, "library/listed", "one", make_image(3))
            urllib.request.urlopen(f"{mirror.url}/v2/library/listed/manifests/one").close()
            query(port, 'mirror_tag_moves_total{upstream_host="docker.io"} == 1')
            hub.stop()
            with pytest.raises(urllib.error.HTTPError) as failed:
                urllib.request.urlopen(f"{mirror.url}/v2/{REPOSITORY}/manifests/absent")
            failed.value.close()
            urllib.request.urlopen(f"{mirror.url}/v2/{REPOSITORY}/manifests/one").close()
            query(port, 'mirror_upstream_up{upstream_host="docker.io"} == 0')
            panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
            for panel in panels:
                for target in panel["targets"]:
                    expression = target["expr"]
                    if "mirror_certificate_" in expression:
                        # Where TLS is served; tests/api/test_tls.py sees to it.
                        assert query_now(port, expression) == []
                        continue
                    if "mirror_peer_" in expression:
                        # Where there are other mirrors; tests/e2e/test_fleet.py has them.
                        continue
                    if "mirror_bucket_" in expression:
                        # Where there is a bucket; tests/fleet/test_bucket.py has one.
                        continue
                    for name, value in VARIABLES.items():
                        expression = expression.replace(name, value)
                    shown = query(port, expression)
                    assert shown == shown, f"{panel['title']}: {expression} is not a number"
        finally:
            prometheus.stop()
        assert mirror.terminate() == 0


def pull(mirror: MirrorProcess, blobs: dict[str, bytes]) -> None:
    urllib.request.urlopen(f"{mirror.url}/v2/{REPOSITORY}/manifests/one").close()
    for digest in blobs:
        with urllib.request.urlopen(f"{mirror.url}/v2/{REPOSITORY}/blobs/{digest}") as response:
            assert response.read() == blobs[digest]
        completed = mirror.directory / "blobs" / digest.replace(":", "/")
        while not completed.exists():  # bounded by the test's timeout
            time.sleep(0.01)


def query(port: int, expression: str) -> float:
    """A value of a query's answer, a number where there is one; waits for it to appear. The query itself must be well-formed."""
    deadline = time.monotonic() + PATIENCE
    while True:
        values = query_now(port, expression)
        if values:
            return values[0]
        assert time.monotonic() < deadline, expression
        time.sleep(0.1)


def test_the_dashboard_is_laid_out_without_gaps_in_its_wiring() -> None:
    """Every panel has its own number and place, every query goes to the data source that is chosen at the top."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"


def query_now(port: int, expression: str) -> list[float]:
    """The values of a query's answer, numbers first."""
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url) as response:
        result = json.load(response)["data"]["result"]
    return sorted((float(series["value"][1]) for series in result), key=lambda value: value != value)
