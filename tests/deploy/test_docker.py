"""The image and the compose file, by docker and docker-compose themselves."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mirror.config import load
from tests.e2e.test_dockerd import Dockerd
from tests.support.base_image import write_base_image
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.programs import answers, require, run

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture
def dockerd() -> Iterator[Dockerd]:
    daemon = Dockerd("http://127.0.0.1:1")
    yield daemon
    daemon.stop()


@pytest.mark.timeout(600)
def test_the_image_builds_runs_without_root_and_stops_in_time(dockerd: Dockerd, tmp_path: Path) -> None:
    """A real build on a base that is made here; the container serves and is healthy with a read-only root and no capabilities, as nobody in particular."""
    write_base_image(tmp_path / "base.tar")
    dockerd.docker("import", str(tmp_path / "base.tar"), "base")
    build = f"build --network host --build-arg BASE=base --build-arg COMMIT=abc1234 -f {DEPLOY}/Dockerfile -t mirror {ROOT}"
    dockerd.docker(*build.split(), seconds=500)
    image, base = (json.loads(dockerd.docker("image", "inspect", name))[0] for name in ("mirror", "base"))
    assert image["Config"]["User"] == "10001:10001"
    assert image["Size"] - base["Size"] < 100_000_000
    assert "(commit abc1234)" in dockerd.docker("run", "--rm", "--network", "host", "mirror", "--version")
    assert (
        "pip" not in dockerd.docker("run", "--rm", "--network", "none", "--entrypoint", "ls", "mirror", "/opt/mirror/bin").split()
    )
    port = free_port()
    options = "--health-interval 1s --health-retries 1 --health-start-period 30s"
    options += f" --network host --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges:true -e MIRROR_SERVER__LISTEN=127.0.0.1:{port}"
    dockerd.docker("run", "-d", "--name", "mirror", *options.split(), "-v", "cache:/var/lib/mirror", "mirror")
    until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), lambda: dockerd.docker("logs", "mirror"))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as response:
        assert json.load(response)["degraded"] == []
    health = "{{.State.Health.Status}}"
    until(
        lambda: dockerd.docker("inspect", "-f", health, "mirror").strip() == "healthy",
        lambda: dockerd.docker("inspect", "mirror"),
    )
    assert dockerd.docker("exec", "mirror", "id", "-u").strip() == "10001"
    dockerd.docker("stop", "-t", "40", "mirror")
    assert json.loads(dockerd.docker("inspect", "mirror"))[0]["State"]["ExitCode"] == 0


def until(condition: Callable[[], bool], log: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, log()
        time.sleep(0.2)


def test_the_compose_file_is_valid_and_every_file_that_it_mounts_is_there() -> None:
    """By docker-compose's own judgement; the dashboard, the rules and the data source find each other."""
    require("docker-compose")
    config = YAML(typ="safe", pure=True).load(run("docker-compose", "-f", str(DEPLOY / "compose.yaml"), "config"))
    services = config["services"]
    assert set(services) == {"mirror", "prometheus", "grafana"}
    assert services["mirror"]["build"]["context"] == str(ROOT)
    assert (ROOT / services["mirror"]["build"]["dockerfile"]).exists()
    mounted = {}
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        for volume in service["volumes"]:
            source, target, *_ = volume.split(":")
            if source.startswith("/"):
                assert Path(source).is_file(), source
                mounted[target] = Path(source)
    prometheus = YAML(typ="safe", pure=True).load(mounted["/etc/prometheus/prometheus.yaml"].read_text())
    assert prometheus["rule_files"] == ["/etc/prometheus/alerts.yaml"]
    assert "/etc/prometheus/alerts.yaml" in mounted
    assert prometheus["scrape_configs"][0]["job_name"] == "mirror"
    dashboards = YAML(typ="safe", pure=True).load(mounted["/etc/grafana/provisioning/dashboards/mirror.yaml"].read_text())
    assert f"{dashboards['providers'][0]['options']['path']}/mirror.json" in mounted


def test_the_compose_file_of_a_fleet_is_one(tmp_path: Path) -> None:
    """By docker-compose's own judgement. Each service is one mirror of the same list, reached under its own name, with a cache of its own; the program takes the settings."""
    require("docker-compose")
    config = YAML(typ="safe", pure=True).load(run("docker-compose", "-f", str(DEPLOY / "fleet.yaml"), "config"))
    services = config["services"]
    (tmp_path / "token").write_text("a-token-of-the-fleet")
    for name, service in services.items():
        environment = {**service["environment"], "MIRROR_FLEET__TOKEN_FILE": str(tmp_path / "token")}
        settings = load(None, environment, {})
        assert settings.fleet.own == f"http://{name}:5000"
        assert settings.fleet.mirrors == tuple(f"http://{other}:5000" for other in services)
        assert service["environment"]["MIRROR_FLEET__TOKEN_FILE"] == "/run/secrets/fleet-token"
        assert (service["cap_drop"], service["read_only"], [secret["source"] for secret in service["secrets"]]) == (
            ["ALL"],
            True,
            ["fleet-token"],
        )
    assert (
        len({str(service["volumes"]) for service in services.values()})
        == len({str(service["ports"]) for service in services.values()})
        == 3
    )


def test_prometheus_takes_its_settings() -> None:
    """By promtool's judgement."""
    require("promtool")
    run("promtool", "check", "config", "--syntax-only", str(DEPLOY / "compose" / "prometheus.yaml"))
