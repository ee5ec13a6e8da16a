"""Real clients that show a certificate, and what that lets them do. Not dockerd: it shows none to a mirror on 127.0.0.0/8 (docker 20.10, registry/registry.go)."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.test_bundles import Buildkitd
from tests.e2e.test_containerd import Containerd
from tests.e2e.test_podman import policy
from tests.support.certificates import Authority
from tests.support.images import make_image, push
from tests.support.mirrors import MirrorProcess
from tests.support.patience import PATIENCE
from tests.support.programs import DockerRegistry, require, require_root


@dataclass
class Office:
    """A mirror with TLS whose docker.io/private/** and team/** are for the laptop's certificate."""

    address: str
    folder: Path
    authority: Authority

    def folder_for(self, name: str) -> Path:
        """A folder as clients expect it (containers-certs.d(5)): the authority's certificate, and with a `name` the client's own."""
        found = self.folder / f"certs-{name or 'nobody'}"
        if not found.exists():
            found.mkdir()
            shutil.copy(self.authority.ca, found / "ca.crt")
            if name:
                certificate, key = self.authority.issue_to(name)
                shutil.copy(certificate, found / "client.cert")
                shutil.copy(key, found / "client.key")
        return found


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("office")
    registry = DockerRegistry(folder / "registry")
    push(registry.url, "private/app", "1", make_image(7, "docker"))
    authority = Authority(folder / "tls")
    config = folder / "mirror.toml"
    config.write_text(
        f'[server]\ntls_certificate = "{authority.certificate}"\ntls_key = "{authority.key}"\ntls_client_ca = "{authority.ca}"\n'
        '[hosted]\nrepositories = ["team/**"]\n[[access]]\nwho = ["cert:laptop"]\nmay = ["pull", "push"]\n'
        '[[access]]\nwho = ["anyone"]\nmay = []\nrepositories = ["private/**"]\n[[access]]\nwho = ["anyone"]\n'
    )
    with MirrorProcess(folder / "cache", {"docker.io": registry.url}, "--config", str(config)) as mirror:
        yield Office(mirror.url.partition("://")[2], folder, authority)
        assert "Traceback" not in mirror.log
    registry.stop()


def succeeds(*command: str) -> bool:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    print(command, done.returncode, done.stdout[-300:], done.stderr[-800:])
    return done.returncode == 0


CLIENTS = [("laptop", True), ("other", False), ("", False)]
"""Names in certificates, none for a client without one, and whether it may."""


@pytest.mark.parametrize(("name", "may"), CLIENTS, ids=["laptop", "other", "none"])
def test_skopeo_pulls_and_pushes(office: Office, name: str, may: bool) -> None:
    """With the certificate that a table names; not with another of the same authority, nor without."""
    require("skopeo")
    certificates = str(office.folder_for(name))
    image = f"docker://{office.address}/private/app:1"
    assert succeeds("skopeo", "inspect", "--raw", "--cert-dir", certificates, image) is may
    known = str(office.folder_for("laptop"))
    target = f"docker://{office.address}/team/skopeo-{name or 'none'}:1"
    copy = ["copy", "--src-cert-dir", known, "--dest-cert-dir", certificates, image, target]
    assert succeeds("skopeo", "--insecure-policy", *copy) is may


@pytest.mark.parametrize(("name", "may"), CLIENTS, ids=["laptop", "other", "none"])
def test_oras_pulls_and_pushes(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, may: bool) -> None:
    """The same with oras."""
    require("oras")
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("notes")
    folder = office.folder_for(name)
    given = ["--ca-file", f"{folder}/ca.crt"]
    given += ["--cert-file", f"{folder}/client.cert", "--key-file", f"{folder}/client.key"] if name else []
    assert succeeds("oras", "manifest", "fetch", *given, f"{office.address}/private/app:1") is may
    assert succeeds("oras", "push", *given, f"{office.address}/team/oras-{name or 'none'}:1", "notes.txt:text/plain") is may


@pytest.mark.parametrize(("name", "may"), CLIENTS, ids=["laptop", "other", "none"])
def test_helm_pushes_and_pulls(office: Office, tmp_path: Path, name: str, may: bool) -> None:
    """The same with charts of helm."""
    require("helm")
    folder = office.folder_for(name)
    given = ["--ca-file", f"{folder}/ca.crt"]
    given += ["--cert-file", f"{folder}/client.cert", "--key-file", f"{folder}/client.key"] if name else []
    chart = f"chart-{name or 'none'}"
    assert succeeds("helm", "create", f"{tmp_path}/{chart}")
    assert succeeds("helm", "package", f"{tmp_path}/{chart}", "-d", str(tmp_path))
    place = f"oci://{office.address}/team/charts"
    assert succeeds("helm", "push", f"{tmp_path}/{chart}-0.1.0.tgz", place, *given) is may
    if may:
        (tmp_path / "pulled").mkdir()
        assert succeeds("helm", "pull", f"{place}/{chart}", "--version", "0.1.0", "-d", str(tmp_path / "pulled"), *given)


@pytest.mark.parametrize(("name", "may"), CLIENTS, ids=["laptop", "other", "none"])
def test_cosign_signs(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, may: bool) -> None:
    """The same with cosign, which pushes a signature; what is signed is there already."""
    require("cosign", "skopeo")
    monkeypatch.setenv("COSIGN_PASSWORD", "")
    known, folder, image = office.folder_for("laptop"), office.folder_for(name), f"{office.address}/team/signed:1"
    source = f"docker://{office.address}/private/app:1"
    certificates = ["--src-cert-dir", str(known), "--dest-cert-dir", str(known)]
    assert succeeds("skopeo", "--insecure-policy", "copy", *certificates, source, f"docker://{image}")
    assert succeeds("cosign", "generate-key-pair", f"--output-key-prefix={tmp_path}/key")
    given = [f"--registry-cacert={folder}/ca.crt"]
    given += [f"--registry-client-cert={folder}/client.cert", f"--registry-client-key={folder}/client.key"] if name else []
    offline = ["--tlog-upload=false", "--use-signing-config=false", "--new-bundle-format=false"]
    assert succeeds("cosign", "sign", "--yes", *offline, f"--key={tmp_path}/key.key", *given, image) is may


@pytest.mark.parametrize(("name", "may"), CLIENTS[::2], ids=["laptop", "none"])
def test_buildkit_pulls_and_pushes(office: Office, tmp_path: Path, name: str, may: bool) -> None:
    """The same with BuildKit's ``keypair``: an image that is built on the private one."""
    folder = office.folder_for(name)
    settings = f'http = false\nca = ["{folder}/ca.crt"]\n'
    if name:
        settings += f'[[registry."{office.address}".keypair]]\nkey = "{folder}/client.key"\ncert = "{folder}/client.cert"\n'
    builder = Buildkitd(tmp_path, office.address, settings)
    dockerfile = f"FROM {office.address}/private/app:1\nCOPY Dockerfile /one\n"
    output = ["--output", f"type=image,name={office.address}/team/buildkit:1,push=true"]
    try:
        if may:
            builder.build(dockerfile, *output)
        else:
            with pytest.raises(AssertionError, match="app:1: not found"):
                builder.build(dockerfile, *output)
    finally:
        builder.stop()


@pytest.mark.parametrize(("name", "may"), CLIENTS, ids=["laptop", "other", "none"])
def test_podman_pulls(office: Office, tmp_path: Path, name: str, may: bool) -> None:
    """The same with podman."""
    require("podman")
    require_root("podman, as it is run here,")
    run_root = tempfile.mkdtemp(prefix="podman-")
    options = f"--root {tmp_path}/storage --runroot {run_root} --storage-driver vfs --cgroup-manager cgroupfs".split()
    pull = ["pull", "-q", "--cert-dir", str(office.folder_for(name)), "--signature-policy", str(policy(tmp_path))]
    assert succeeds("podman", *options, *pull, f"{office.address}/private/app:1") is may
    shutil.rmtree(run_root, ignore_errors=True)


@pytest.mark.parametrize(("name", "may"), CLIENTS, ids=["laptop", "other", "none"])
def test_containerd_pulls_by_hosts_toml(office: Office, tmp_path: Path, name: str, may: bool) -> None:
    """The same with ``ca`` and ``client`` in hosts.toml."""
    certificates = office.folder_for(name)
    hosts = tmp_path / "certs.d" / "docker.io"
    hosts.mkdir(parents=True)
    client = f'client = [["{certificates}/client.cert", "{certificates}/client.key"]]\n' if name else ""
    (hosts / "hosts.toml").write_text(
        f'server = "http://127.0.0.1:1"\n[host."https://{office.address}"]\ncapabilities = ["pull", "resolve"]\nca = "{certificates}/ca.crt"\n{client}'
    )
    containerd = Containerd(tmp_path / "c", f"https://{office.address}")
    try:
        if may:
            containerd.pull("docker.io/private/app:1", hosts.parent)
        else:
            with pytest.raises(AssertionError):
                containerd.pull("docker.io/private/app:1", hosts.parent)
    finally:
        containerd.stop()
