"""A real Prometheus reads the metrics."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

from tests.e2e.conftest import REPOSITORY, Stage
from tests.support.programs import Program, answers, free_port, require


def test_prometheus_scrapes_and_answers_the_dashboards_queries(stage: Stage, tmp_path: Path) -> None:
    """The exposition is well-formed by promtool, and after pulls the traffic can be queried."""
    require("prometheus", "promtool")
    for _ in range(2):
        for digest in stage.images["oci"].blobs:
            urllib.request.urlopen(f"{stage.mirror.url}/v2/{REPOSITORY}/blobs/{digest}").close()
            landed = stage.mirror.directory / "blobs" / digest.replace(":", "/")
            while not landed.exists():  # bounded by the test's timeout
                time.sleep(0.01)
    exposition = urllib.request.urlopen(f"{stage.mirror.url}/metrics").read()
    checked = subprocess.run(["promtool", "check", "metrics"], input=exposition, capture_output=True, check=False)
    assert checked.returncode in (0, 3), checked.stderr.decode()  # 3: advice on names only
    assert b"error" not in checked.stderr.lower()
    config = tmp_path / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: 200ms}}\nscrape_configs: [{{job_name: mirror, static_configs: [{{targets: ['{stage.address}']}}]}}]\n"
    )
    port = free_port()
    arguments = [f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/tsdb", f"--web.listen-address=127.0.0.1:{port}"]
    prometheus = Program(["prometheus", *arguments], tmp_path / "prometheus.log")
    try:
        prometheus.wait_until(lambda: answers(f"http://127.0.0.1:{port}/-/ready"))
        wanted = {"registry_proxy_requests_total": 2.0, "registry_proxy_hits_total": 1.0, "registry_proxy_misses_total": 1.0}
        blobs = len(stage.images["oci"].blobs)
        for metric, count in wanted.items():
            assert query(port, f'{metric}{{upstream_host="docker.io",type="blob"}}') == count * blobs
        dashboard = json.loads((Path(__file__).parents[2] / "grafana" / "mirror.json").read_text())
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                query(port, target["expr"], needed=False)
    finally:
        prometheus.stop()


def query(port: int, expression: str, needed: bool = True) -> float:
    """The first value of a query's answer; waits for it to appear. The query itself must be well-formed."""
    deadline = time.monotonic() + 20
    while True:
        url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url) as response:
            result = json.load(response)["data"]["result"]
        if result:
            return float(result[0]["value"][1])
        if not needed:
            return 0.0
        assert time.monotonic() < deadline, expression
        time.sleep(0.1)
