"""The image and the compose file, by docker and docker-compose themselves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mirror.config import load
from mirror.names import Digest
from mirror.upstream.objects import blob_key, manifest_key
from tests.e2e.conftest import REPOSITORY
from tests.e2e.test_dockerd import Dockerd
from tests.support.base_image import write_base_image
from tests.support.images import make_image, push
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.programs import DockerRegistry, answers, require, run

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture
def dockerd() -> Iterator[Dockerd]:
    daemon = Dockerd("http://127.0.0.1:1")
    yield daemon
    daemon.stop()


@pytest.mark.timeout(900)
def test_the_image_builds_runs_without_root_and_stops_in_time(dockerd: Dockerd, tmp_path: Path) -> None:
    """A real build on a base that is made here; the container serves and is healthy with a read-only root and no capabilities, as nobody in particular.

    With ``deploy/fleet.yaml``, three of them and a bucket are a fleet: after all their disks are lost, the first one to start serves what they had cached, with the
    registry gone. One test for both, since a build takes half a minute.
    """
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
    runs_without_root_and_stops_in_time(dockerd)
    bridge = f"mirror{os.getpid()}"
    try:
        a_fleet_outlives_its_disks(dockerd, bridge, tmp_path)
    finally:
        # dockerd leaves the bridges of its networks behind.
        subprocess.run(["ip", "link", "del", bridge], check=False)


def runs_without_root_and_stops_in_time(dockerd: Dockerd) -> None:
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


def a_fleet_outlives_its_disks(dockerd: Dockerd, bridge: str, tmp_path: Path) -> None:
    """The compose file as it is, but for free ports, an upstream of the test's own, and images that are made here."""
    require("docker-compose", "versitygw")
    dockerd.docker("network", "create", "-o", f"com.docker.network.bridge.name={bridge}", "fleet")
    gateway = json.loads(dockerd.docker("network", "inspect", "fleet"))[0]["IPAM"]["Config"][0]["Gateway"]
    registry = DockerRegistry(tmp_path / "registry", host=gateway)
    image = make_image(1)
    push(registry.url, REPOSITORY, "1", image)
    config = compose_config("fleet.yaml", BUCKET_SECRET="a-secret-of-the-bucket")
    mirrors = {name: free_port() for name in config["services"] if name != "bucket"}
    for name, port in mirrors.items():
        settings = config["services"][name]
        dockerd.docker("tag", "mirror", settings["image"])
        settings |= {"ports": [f"127.0.0.1:{port}:5000"], "command": ["serve", "--upstream", f"docker.io={registry.url}"]}
        del settings["build"]
    with tarfile.open(tmp_path / "bucket.tar", "w") as tar:
        tar.add(str(shutil.which("versitygw")), "versitygw")
    entrypoint = 'ENTRYPOINT ["/versitygw"]'
    dockerd.docker("import", "--change", entrypoint, str(tmp_path / "bucket.tar"), config["services"]["bucket"]["image"])
    config["secrets"]["fleet-token"]["file"] = str(tmp_path / "token")
    (tmp_path / "token").write_text("a-token-of-the-fleet")
    config["networks"] = {"default": {"external": True, "name": "fleet"}}
    file = tmp_path / "compose.json"
    file.write_text(json.dumps(config))

    def compose(*arguments: str) -> str:
        command = ["docker-compose", "-p", "fleet", "-f", str(file), *arguments]
        return run(*command, environment={"DOCKER_HOST": dockerd.host}, seconds=300)

    def pull(port: int) -> None:
        """By this very daemon, which afterwards does not have it."""
        until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), lambda: compose("logs"))
        name = f"127.0.0.1:{port}/{REPOSITORY}"
        dockerd.docker("pull", f"{name}:1")
        assert json.loads(dockerd.docker("image", "inspect", f"{name}:1"))[0]["RepoDigests"] == [f"{name}@{image.digest}"]
        dockerd.docker("rmi", f"{name}:1")

    bucket = "{{.Mountpoint}}"
    compose("up", "-d")
    pull(mirrors["mirror-a"])
    objects = Path(dockerd.docker("volume", "inspect", "-f", bucket, "fleet_bucket").strip())
    wanted = [blob_key(Digest.parse(digest)) for digest in image.blobs]
    wanted += [manifest_key(Digest.parse(image.digest)), f"tags/docker.io/{REPOSITORY}/1.json"]
    until(lambda: all((objects / key).exists() for key in wanted), lambda: compose("logs"))
    compose("rm", "--stop", "--force", *mirrors)
    dockerd.docker("volume", "rm", *(f"fleet_cache-{name[-1]}" for name in mirrors))
    for digest in image.blobs:
        assert registry.asked("GET", f"/blobs/{digest}") == 1
    registry.stop()
    compose("up", "-d", "mirror-b")
    pull(mirrors["mirror-b"])


def compose_config(name: str, **environment: str) -> dict[str, Any]:
    """A compose file as docker-compose understands it."""
    require("docker-compose")
    text = run("docker-compose", "-f", str(DEPLOY / name), "config", environment=environment)
    config: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    return config


def until(condition: Callable[[], bool], log: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, log()
        time.sleep(0.2)


def test_the_compose_file_is_valid_and_every_file_that_it_mounts_is_there() -> None:
    """By docker-compose's own judgement; the dashboard, the rules and the data source find each other."""
    config = compose_config("compose.yaml")
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
    """By docker-compose's own judgement. Each service but the bucket is one mirror of the same list, reached under its own name, with a cache of its own; the program takes the
    settings, and has the extra that the bucket needs. The bucket's secret is nowhere in the file: without it, docker-compose says where it is to be."""
    services = compose_config("fleet.yaml", BUCKET_SECRET="a-secret-of-the-bucket")["services"]
    with pytest.raises(AssertionError, match=r"is in deploy/\.env"):
        compose_config("fleet.yaml", BUCKET_SECRET="")
    bucket = services.pop("bucket")
    assert bucket["environment"]["ROOT_SECRET_ACCESS_KEY"] == "a-secret-of-the-bucket"
    assert (bucket["cap_drop"], bucket["read_only"]) == (["ALL"], True)
    (tmp_path / "token").write_text("a-token-of-the-fleet")
    for name, service in services.items():
        environment = {**service["environment"], "MIRROR_FLEET__TOKEN_FILE": str(tmp_path / "token")}
        settings = load(None, environment, {})
        assert settings.fleet.own == f"http://{name}:5000"
        assert settings.fleet.mirrors == tuple(f"http://{other}:5000" for other in services)
        assert settings.fleet.bucket_endpoint == f"http://bucket{bucket['command'][1]}"
        assert bucket["volumes"] == [f"bucket:{bucket['command'][-1]}/{str(settings.fleet.bucket).removeprefix('s3://')}:rw"]
        assert environment["AWS_SECRET_ACCESS_KEY"] == bucket["environment"]["ROOT_SECRET_ACCESS_KEY"]
        assert environment["AWS_ACCESS_KEY_ID"] == bucket["environment"]["ROOT_ACCESS_KEY_ID"]
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
