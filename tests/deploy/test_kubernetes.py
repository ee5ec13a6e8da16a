"""The Helm chart and the plain manifests, by Helm, by the schemas of Kubernetes, and by the program's own settings."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from mirror.config import load
from tests.support.programs import require, run

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "chart"
ALERTS = DEPLOY.parent / "grafana" / "alerts.yaml"
OLDEST, NEWEST = "1.25", "1.33"
"""Versions of Kubernetes; the oldest is the one that Chart.yaml asks for."""
EVERYTHING = (
    "--set=nodes.enabled=true",
    "--set=serviceMonitor.enabled=true",
    "--set=serviceMonitor.labels.release=prometheus",
    "--set=existingSecret=hub",
    "--set=imagePullSecrets[0].name=pull",
    "--set=persistence.storageClass=fast",
    "--set=env[0].name=HTTPS_PROXY,env[0].value=http://proxy.lan:3128",
    "--set=networkPolicy.from[0].ipBlock.cidr=192.168.0.0/16",
    "--set=nodeSelector.disk=ssd",
    "--set=tolerations[0].operator=Exists",
    "--set-string=settings.registries.docker\\.io.username=robot",
    "--set-string=settings.registries.docker\\.io.password_file=/etc/mirror/secrets/password",
)


FLEET = (
    "--set=replicas=3",
    "--set-string=settings.fleet.token_file=/etc/mirror/secrets/fleet",
    "--set-string=settings.fleet.bucket=s3://images",
    "--set-string=settings.fleet.bucket_endpoint=http://minio.lan:9000",
    "--set-string=settings.fleet.parents[0]=https://headquarters.lan:8443",
    "--set-string=settings.fleet.parents[1].url=http://campus.lan:5000",
    "--set=envSecret=bucket",
)


def template(*arguments: str, version: str = f"{NEWEST}.0") -> str:
    require("helm")
    return run("helm", "template", "mirror", str(CHART), "--namespace", "mirror", "--kube-version", version, *arguments)


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in YAML(typ="safe", pure=True).load_all(text) if document]


def by_kind(*arguments: str) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in documents(template(*arguments))}


def test_helm_finds_nothing_wrong_with_the_chart() -> None:
    """``helm lint --strict``, with what is the default and with everything switched on."""
    require("helm")
    for arguments in ((), EVERYTHING, (*EVERYTHING, *FLEET)):
        run("helm", "lint", "--strict", "--kube-version", NEWEST, str(CHART), *arguments)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("arguments", [(), EVERYTHING, (*EVERYTHING, *FLEET)], ids=["default", "everything", "fleet"])
def test_every_object_is_what_kubernetes_expects(version: str, arguments: tuple[str, ...]) -> None:
    """Validated strictly against the API's own schemas, for the oldest and a new version; ServiceMonitor is not Kubernetes' own."""
    rendered = documents(template(*arguments, version=f"{version}.0"))
    assert len(rendered) == {0: 4, len(EVERYTHING): 6}.get(len(arguments), 8)
    for document in rendered:
        assert document["metadata"]["namespace"] == "mirror"
        if document["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("name", ["mirror.yaml", "nodes.yaml"])
def test_the_plain_manifests_are_what_the_chart_renders(name: str) -> None:
    """Byte for byte; ``make manifests`` makes them anew."""
    arguments = ("--set", "nodes.enabled=true", "--show-only", "templates/nodes.yaml") if name == "nodes.yaml" else ()
    assert (DEPLOY / "kubernetes" / name).read_text() == template(*arguments, version="1.31.0")
    for document in documents((DEPLOY / "kubernetes" / name).read_text()):
        kubernetes_validate.validate(document, NEWEST, strict=True)


def test_with_tls_the_mirror_is_asked_by_https() -> None:
    """By probes and Prometheus; what would tell the nodes http is refused."""
    tls = [
        f"--set-string=settings.server.tls_{name}=/etc/mirror/secrets/tls.{end}"
        for name, end in (("certificate", "crt"), ("key", "key"))
    ]
    found = by_kind(*tls, "--set=existingSecret=tls", "--set=serviceMonitor.enabled=true")
    (container,) = found["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"
    assert found["ServiceMonitor"]["spec"]["endpoints"][0]["scheme"] == "https"
    with pytest.raises(AssertionError, match="without TLS"):
        template(*tls, "--set=nodes.enabled=true")


def test_what_selects_pods_selects_these_and_ports_have_the_names_that_are_asked_for() -> None:
    """Service, NetworkPolicy and ServiceMonitor find the mirror, none of them the pods that configure nodes; the job has the alerts' name."""
    found = by_kind(*EVERYTHING)
    pod = found["StatefulSet"]["spec"]["template"]
    other = found["DaemonSet"]["spec"]["template"]["metadata"]["labels"]
    service, policy, monitor = found["Service"], found["NetworkPolicy"], found["ServiceMonitor"]
    for selector in (
        service["spec"]["selector"],
        policy["spec"]["podSelector"]["matchLabels"],
        found["StatefulSet"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= pod["metadata"]["labels"].items()
        assert not selector.items() <= other.items()
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert f'up{{job="{service["metadata"]["labels"][monitor["spec"]["jobLabel"]]}"}}' in ALERTS.read_text()
    (port,) = pod["spec"]["containers"][0]["ports"]
    assert port["containerPort"] == 5000
    assert {
        service["spec"]["ports"][0]["targetPort"],
        monitor["spec"]["endpoints"][0]["port"],
        policy["spec"]["ingress"][0]["ports"][0]["port"],
    } == {"http"}
    assert monitor["spec"]["endpoints"][0]["path"] == "/metrics"


def test_the_pods_of_a_fleet_find_each_other(tmp_path: Path) -> None:
    """Each is one of the mirrors that all of them list, under the name that the headless Service gives it; they may talk to each other where others may not, and to
    their bucket, whose credentials come from a Secret; one at a time is taken away; on nodes of their own where there are enough."""
    rendered = documents(template(*EVERYTHING, *FLEET))
    (pods,) = (document for document in rendered if document["kind"] == "StatefulSet")
    peers = next(document for document in rendered if document["metadata"]["name"] == pods["spec"]["serviceName"])
    policy, budget = (
        next(document for document in rendered if document["kind"] == kind) for kind in ("NetworkPolicy", "PodDisruptionBudget")
    )
    labels = pods["spec"]["template"]["metadata"]["labels"]
    assert (peers["kind"], peers["spec"]["clusterIP"], peers["spec"]["publishNotReadyAddresses"]) == ("Service", "None", True)
    for selector in (
        peers["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
        policy["spec"]["ingress"][0]["from"][-1]["podSelector"]["matchLabels"],
        policy["spec"]["egress"][1]["to"][0]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert policy["spec"]["egress"][1]["ports"][0]["port"] == peers["spec"]["ports"][0]["targetPort"]
    assert {port["port"] for port in policy["spec"]["egress"][2]["ports"]} == {443, 80, 9000, 8443, 5000}
    (settings,) = (document["data"]["mirror.toml"] for document in rendered if document["kind"] == "ConfigMap")
    (container,) = pods["spec"]["template"]["spec"]["containers"]
    environment = {one["name"]: one.get("value", "") for one in container["env"]}
    for name in ("password", "fleet"):
        (tmp_path / name).write_text("a token of the fleet".replace(" ", "-"))
    file = tmp_path / "mirror.toml"
    file.write_text(settings.replace("/etc/mirror/secrets", str(tmp_path)))
    for number in range(3):
        own = environment["MIRROR_FLEET__OWN"].replace("$(POD_NAME)", f"{pods['metadata']['name']}-{number}")
        fleet = load(file, {"MIRROR_FLEET__OWN": own}, {}).fleet
        assert fleet.own == f"http://mirror-{number}.mirror-peers.mirror.svc:5000"
        assert (len(fleet.mirrors), fleet.token()) == (3, "a-token-of-the-fleet")
        assert (fleet.bucket, fleet.bucket_endpoint) == ("s3://images", "http://minio.lan:9000")
    assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    assert pods["spec"]["replicas"] == 3
    assert "podAntiAffinity" in pods["spec"]["template"]["spec"]["affinity"]


def test_mirrors_of_other_releases_are_reached_too() -> None:
    """One of each cluster, say: the NetworkPolicy opens the ports of all in the list."""
    mirrors = "--set=settings.fleet.mirrors={http://a.lan:5000,https://b.lan,https://c.lan:8443}"
    rules = by_kind(mirrors, "--set-string=settings.fleet.own=http://a.lan:5000")["NetworkPolicy"]["spec"]["egress"]
    assert [port["port"] for port in rules[-1]["ports"]] == [443, 80, 5000, 8443]


def test_hosted_repositories_are_refused_where_any_of_several_may_be_asked() -> None:
    """A push would reach one mirror with one request and another one with the next."""
    hosted = "--set=settings.hosted.repositories={docker.io/team/**}"
    assert "team" in template(hosted)
    with pytest.raises(AssertionError, match="a release of their own"):
        template(hosted, "--set=replicas=2")


def test_the_mirror_has_a_volume_probes_and_no_more_rights_than_it_needs() -> None:
    """Restricted as the Pod Security Standards mean it; the cache survives the pod."""
    spec = by_kind()["StatefulSet"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    (segment,) = spec["volumeClaimTemplates"]
    assert {"name": segment["metadata"]["name"], "mountPath": "/var/lib/mirror"} in container["volumeMounts"]
    paths = {name: container[name]["httpGet"]["path"] for name in ("livenessProbe", "readinessProbe", "startupProbe")}
    assert paths == {"livenessProbe": "/healthz", "readinessProbe": "/readyz", "startupProbe": "/healthz"}
    assert pod["terminationGracePeriodSeconds"] > load(None, {}, {}).server.drain_timeout


def test_the_settings_are_settings_that_the_program_takes(tmp_path: Path) -> None:
    """Those of values.yaml and others, credentials too."""
    for arguments in ((), EVERYTHING):
        text = by_kind(*arguments)["ConfigMap"]["data"]["mirror.toml"]
        password = tmp_path / "password"
        password.write_text("x")
        file = tmp_path / "mirror.toml"
        file.write_text(text.replace("/etc/mirror/secrets/password", str(password)))
        settings = load(file, {}, {})
        assert settings.log.format == "json"
        assert settings.registries["docker.io"].username == ("robot" if arguments else None)


@pytest.mark.parametrize(
    "wrong",
    [
        "settings.cache.dir=/x",
        "settings.server.listen=:80",
        "settings.cache.max_szie=1GiB",
        "settings.cach.max_size=1GiB",
        "settings.log.level=loud",
        "settings.registries.lan.pasword=x",
        "persistence.size=50",
        "networkPolicy.egressPorts={x}",
        "nodes.enable=true",
        "replicas=0",
        "settings.fleet.mirrors={a.lan:5000}",
        "settings.fleet.bucket=images",
        "settings.fleet.bucket_endpoint=minio.lan:9000",
        "envSecret.name=bucket",
    ],
)
def test_wrong_values_are_refused(wrong: str) -> None:
    """By values.schema.json, before anything reaches a cluster."""
    require("helm")
    done = subprocess.run(["helm", "lint", str(CHART), "--set", wrong], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert wrong.split("=")[0].split(".")[0] in done.stdout + done.stderr


def test_the_nodes_are_configured_and_given_back(tmp_path: Path) -> None:
    """The DaemonSet's own script and settings, run here: it writes hosts.toml for every registry, and takes it back when it is told to end.

    It needs none of the files that the mirror has for its registries, such as passwords.
    """
    rendered = by_kind(*EVERYTHING, "--set=settings.registries.lan:5001.endpoints={http://lan:5001}")
    (container,) = rendered["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    (script,) = container["args"]
    root = tmp_path / "host"
    (root / "etc/containerd").mkdir(parents=True)
    mounted = next(mount for mount in container["volumeMounts"] if mount["name"] == "settings")
    settings = tmp_path / "nodes.toml"
    settings.write_text(rendered["ConfigMap"]["data"][mounted["subPath"]])
    program = textwrap.dedent(script).replace("/host", str(root)).replace(mounted["mountPath"], str(settings))
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    process = subprocess.Popen(
        ["sh", "-c", program], env={"PATH": path, "HOST_IP": "192.0.2.7"}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Done"):
                break
        hosts = root / "etc/containerd/certs.d/docker.io/hosts.toml"
        assert '[host."http://192.0.2.7:30500"]' in hosts.read_text()
        assert (root / "etc/containerd/certs.d/lan:5001/hosts.toml").exists()
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    assert list((root / "etc/containerd").iterdir()) == []
