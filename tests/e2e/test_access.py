"""Real clients that log in, and that are refused; and a classic dockerd in front of the open address, which must send nobody's password."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from mirror.access.tokens import add_token
from mirror.access.users import set_password
from tests.e2e.test_bundles import Buildkitd
from tests.e2e.test_containerd import Containerd
from tests.e2e.test_dockerd import Dockerd
from tests.support.images import make_image, push
from tests.support.mirrors import MirrorProcess
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.programs import DockerRegistry, require, require_root
from tests.support.recording import Recorder

PASSWORD = "correct horse battery"


EACH_DOCKERD = pytest.mark.parametrize("dockerd", ["dockerd", "dockerd-29"], indirect=True)


@dataclass
class Office:
    """A mirror whose docker.io/private/** is for alice, with an address for logging in."""

    mirror: MirrorProcess
    login: str
    """Host and port."""
    folder: Path
    secrets: dict[str, str] = field(default_factory=dict)
    """What alice may log in with, and what nobody may."""
    pushing: str = ""
    """alice's token for pushing."""

    @property
    def image(self) -> str:
        return f"{self.login}/private/app:1"


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("office")
    registry = DockerRegistry(folder / "registry")
    for name in ("private/app", "library/public"):
        push(registry.url, name, "1", make_image(7, "docker"))
    port, config = free_port(), folder / "mirror.toml"
    config.write_text(
        f'[server]\nlogin_listen = "127.0.0.1:{port}"\nusers_file = "{folder}/users"\naudit_log = "{folder}/audit.log"\n'
        '[hosted]\nrepositories = ["team/**", "private/charts/**"]\n[[access]]\nwho = ["alice"]\nmay = ["pull", "push"]\n[[access]]\nwho = ["anyone"]\nmay = []\nrepositories = ["private/**"]\n[[access]]\nwho = ["anyone"]\n'
    )
    for user in ("alice", "bob"):
        set_password(folder / "users", user, f"{PASSWORD} of {user}")
    tokens = folder / "cache" / "access" / "tokens"
    secrets = {
        "password": f"{PASSWORD} of alice",
        "token": add_token(tokens, "laptop", "alice", ("pull",), None),
        "wrong password": "wrong",
        "token that is over": add_token(tokens, "old", "alice", (), 1.0),
        "token for another repository": add_token(tokens, "other", "alice", ("pull:library/*",), None),
    }
    with MirrorProcess(folder / "cache", {"docker.io": registry.url}, "--config", str(config)) as mirror:
        pushing = add_token(tokens, "ci", "alice", ("pull", "push:team/**"), None)
        yield Office(mirror, f"127.0.0.1:{port}", folder, secrets, pushing)
        for secret in (*secrets.values(), pushing, f"{PASSWORD} of bob"):
            if len(secret) > 8:
                assert secret not in mirror.log
                assert secret not in (folder / "audit.log").read_text()
        assert "Traceback" not in mirror.log
    registry.stop()


def _basic(user: str, secret: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{secret}'.encode()).decode()}"


def succeeds(*command: str, **environment: str) -> bool:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, **environment}
    )
    print(command, done.returncode, done.stdout[-500:], done.stderr[-1000:])
    return done.returncode == 0


def with_skopeo(office: Office, user: str, secret: str | None, image: str) -> bool:
    given = ["--no-creds"] if secret is None else ["--creds", f"{user}:{secret}"]
    return succeeds("skopeo", "inspect", "--raw", "--tls-verify=false", *given, f"docker://{image}")


def with_podman(office: Office, user: str, secret: str | None, image: str) -> bool:
    folder = Path(tempfile.mkdtemp(prefix="podman-"))
    policy = folder / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    auth = str(folder / "auth.json")
    Path(auth).write_text("{}")
    options = f"--root {folder}/storage --runroot {folder}/run --storage-driver vfs --cgroup-manager cgroupfs".split()
    login = ["login", "--tls-verify=false", "--authfile", auth, "-u", user, "-p", secret or "", office.login]
    if secret is not None and not succeeds("podman", *options, *login):
        return False
    pull = ["pull", "-q", "--tls-verify=false", "--authfile", auth, "--signature-policy", str(policy), image]
    return succeeds("podman", *options, *pull)


def with_crane(office: Office, user: str, secret: str | None, image: str) -> bool:
    folder = tempfile.mkdtemp(prefix="crane-")
    if secret is not None:
        assert succeeds("crane", "auth", "login", office.login, "-u", user, "-p", secret, DOCKER_CONFIG=folder)
    return succeeds("crane", "pull", "--insecure", image, f"{folder}/image.tar", DOCKER_CONFIG=folder)


def with_oras(office: Office, user: str, secret: str | None, image: str) -> bool:
    folder = tempfile.mkdtemp(prefix="oras-")
    login = ["login", "--plain-http", "--registry-config", f"{folder}/auth.json", "-u", user, "-p", secret or "", office.login]
    if secret is not None and not succeeds("oras", *login):
        return False
    given = ["--from-plain-http", "--from-registry-config", f"{folder}/auth.json"]
    return succeeds("oras", "copy", *given, image, "--to-oci-layout", f"{folder}/layout:x")


def with_buildah(office: Office, user: str, secret: str | None, image: str) -> bool:
    folder = Path(tempfile.mkdtemp(prefix="buildah-"))
    policy = folder / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    options = [f"--root={folder}/storage", f"--runroot={folder}/run", "--storage-driver=vfs"]
    given = [] if secret is None else ["--creds", f"{user}:{secret}"]
    pull = ["pull", "-q", "--tls-verify=false", f"--signature-policy={policy}", *given, image]
    pulled = succeeds("buildah", *options, *pull, HOME=str(folder))
    shutil.rmtree(folder, ignore_errors=True)
    return pulled


def with_wharfie(office: Office, user: str, secret: str | None, image: str) -> bool:
    """As k3s and RKE2 read registries.yaml."""
    folder = Path(tempfile.mkdtemp(prefix="wharfie-"))
    auth = {"configs": {office.login: {"auth": {"username": user, "password": secret}}}} if secret is not None else {}
    file = folder / "registries.yaml"
    file.write_text(json.dumps({"mirrors": {office.login: {"endpoint": [f"http://{office.login}"]}}, **auth}))  # JSON is YAML
    return succeeds("wharfie", "--private-registry", str(file), "--arch", "amd64", image, f"{folder}/image")


CLIENTS: dict[str, Callable[[Office, str, str | None, str], bool]] = {
    "oras": with_oras,
    "skopeo": with_skopeo,
    "podman": with_podman,
    "crane": with_crane,
    "buildah": with_buildah,
    "wharfie": with_wharfie,
}


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_log_in_and_pull_or_are_refused(office: Office, client: str) -> None:
    """With the user's password and with a token they get the private image; with nothing, a wrong one, one that is over or for something else, or as another user,
    they do not; and all get the public image."""
    require(client)
    if client in ("podman", "buildah"):
        require_root(f"{client}, as it is run here,")
    pull = CLIENTS[client]
    for name, secret in office.secrets.items():
        assert pull(office, "alice", secret, office.image) is (name in ("password", "token")), name
    assert not pull(office, "bob", f"{PASSWORD} of bob", office.image)
    assert not pull(office, "alice", None, office.image)
    public = f"{office.login}/library/public:1"
    assert pull(office, "alice", None, public)
    assert pull(office, "bob", f"{PASSWORD} of bob", public)


@pytest.fixture(scope="module")
def recorder(office: Office) -> Iterator[Recorder]:
    found = Recorder(int(office.mirror.url.rpartition(":")[2]))
    yield found
    found.close()


@pytest.fixture(scope="module")
def dockerd(recorder: Recorder, request: pytest.FixtureRequest) -> Iterator[Dockerd]:
    daemon = Dockerd(recorder.url, program=getattr(request, "param", "dockerd"))
    yield daemon
    daemon.stop()


@EACH_DOCKERD
def test_docker_logs_in_and_pulls_or_is_refused(office: Office, dockerd: Dockerd) -> None:
    """``docker login`` at the login address takes the password and the token, says no to a wrong one, and then pulls the private image by name."""
    public = f"{office.login}/library/public:1"
    dockerd.docker("pull", public)
    for name, secret in office.secrets.items():
        logged_in = dockerd.succeeds("login", office.login, "-u", "alice", "-p", secret)
        assert logged_in is (name in ("password", "token", "token for another repository")), name
        assert dockerd.succeeds("pull", office.image) is (name in ("password", "token")), name
        dockerd.docker("logout", office.login)
        dockerd.succeeds("rmi", office.image)
    assert dockerd.succeeds("login", office.login, "-u", "bob", "-p", f"{PASSWORD} of bob")
    assert not dockerd.succeeds("pull", office.image)
    dockerd.docker("logout", office.login)


def test_classic_dockerd_sends_no_password_to_the_open_address(office: Office, dockerd: Dockerd, recorder: Recorder) -> None:
    """As a mirror of Docker Hub, with a user who has logged in there: not for a public image, nor for one that is refused. In front of the address for logging in the
    same dockerd does send it, so this test would see it."""
    hub = base64.b64encode(b"hubuser:hub secret").decode()
    dockerd.log_in_by_file({"https://index.docker.io/v1/": {"auth": hub}})
    before = len(recorder.received)
    dockerd.docker("pull", "public:1")
    dockerd.succeeds("pull", "private/app:1")
    sent = bytes(recorder.received[before:]).decode("latin-1")
    assert "/v2/library/public/manifests/" in sent
    assert "/v2/private/app/manifests/1" in sent
    assert "authorization" not in sent.lower()
    for secret in (hub, "hubuser", "hub secret"):
        assert secret not in sent
    challenging = Recorder(int(office.login.rpartition(":")[2]))
    other = Dockerd(challenging.url)
    try:
        other.log_in_by_file({"https://index.docker.io/v1/": {"auth": hub}})
        other.succeeds("pull", "public:1")
        assert hub in challenging.received.decode("latin-1")
    finally:
        other.stop()
        challenging.close()


def test_docker_29_sends_a_token_by_a_secret_path_and_no_password(office: Office, recorder: Recorder) -> None:
    """As a mirror of Docker Hub: the private image comes by the path, not without it, and what the user logs in to Docker Hub with stays with him."""
    hub = base64.b64encode(b"hubuser:hub secret").decode()
    before = len(recorder.received)
    for path, may in ((f"/t/{office.secrets['token']}", True), ("", False)):
        daemon = Dockerd(f"{recorder.url}{path}", program="dockerd-29")
        try:
            daemon.log_in_by_file({"https://index.docker.io/v1/": {"auth": hub}})
            assert daemon.succeeds("pull", "private/app:1") is may
            daemon.docker("pull", "public:1")
        finally:
            daemon.stop()
    sent = bytes(recorder.received[before:]).decode("latin-1")
    assert "/v2/private/app/manifests/1" in sent
    for secret in ("authorization", hub, "hubuser", "hub secret"):
        assert secret not in sent.lower()


def push_with_skopeo(office: Office, user: str, secret: str | None, name: str) -> bool:
    given = (
        ["--src-no-creds", "--dest-no-creds"]
        if secret is None
        else ["--src-creds", f"{user}:{secret}", "--dest-creds", f"{user}:{secret}"]
    )
    plain = ["--src-tls-verify=false", "--dest-tls-verify=false", "--insecure-policy"]
    return succeeds(
        "skopeo", *plain[2:], "copy", *plain[:2], *given, f"docker://{office.login}/library/public:1", f"docker://{name}"
    )


def push_with_crane(office: Office, user: str, secret: str | None, name: str) -> bool:
    folder = tempfile.mkdtemp(prefix="crane-")
    if secret is not None:
        assert succeeds("crane", "auth", "login", office.login, "-u", user, "-p", secret, DOCKER_CONFIG=folder)
    return succeeds("crane", "copy", "--insecure", f"{office.login}/library/public:1", name, DOCKER_CONFIG=folder)


def push_with_oras(office: Office, user: str, secret: str | None, name: str) -> bool:
    folder = tempfile.mkdtemp(prefix="oras-")
    (Path(folder) / "notes.txt").write_text("notes")
    given = [] if secret is None else ["-u", user, "-p", secret]
    notes = f"{folder}/notes.txt:text/plain"
    return succeeds("oras", "push", "--plain-http", "--disable-path-validation", *given, name, notes, DOCKER_CONFIG=folder)


def _push_with(program: str, office: Office, user: str, secret: str | None, name: str) -> bool:
    """With podman or buildah, which have the same commands: pulls an image that all may have, and pushes it under the other name."""
    require_root(f"{program}, as it is run here,")
    folder = Path(tempfile.mkdtemp(prefix=f"{program}-"))
    policy = folder / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    options = [f"--root={folder}/storage", f"--runroot={folder}/run", "--storage-driver=vfs"]
    signatures = [f"--signature-policy={policy}"]
    given = [] if secret is None else ["--creds", f"{user}:{secret}"]
    image = f"{office.login}/library/public:1"
    assert succeeds(program, *options, "pull", "-q", "--tls-verify=false", *signatures, *given, image)
    pushed = succeeds(program, *options, "push", "--tls-verify=false", *signatures, *given, image, name)
    shutil.rmtree(folder, ignore_errors=True)
    return pushed


def push_with_helm(office: Office, user: str, secret: str | None, name: str) -> bool:
    folder = tempfile.mkdtemp(prefix="helm-")
    known = ["--registry-config", f"{folder}/registry.json"]
    assert succeeds("helm", "create", f"{folder}/app")
    assert succeeds("helm", "package", f"{folder}/app", "-d", folder)
    if secret is not None:
        login = ["registry", "login", office.login, "--plain-http", *known, "-u", user, "-p", secret]
        if not succeeds("helm", *login):
            return False
    return succeeds("helm", "push", f"{folder}/app-0.1.0.tgz", f"oci://{name.partition(':1')[0]}", "--plain-http", *known)


PUSHES: dict[str, Callable[[Office, str, str | None, str], bool]] = {
    "skopeo": push_with_skopeo,
    "crane": push_with_crane,
    "oras": push_with_oras,
    "podman": partial(_push_with, "podman"),
    "buildah": partial(_push_with, "buildah"),
    "helm": push_with_helm,
}


@pytest.mark.parametrize("client", PUSHES)
def test_clients_push_or_are_refused(office: Office, client: str) -> None:
    """alice pushes to team/** with her password, and with her token for that; her token that is good for pulling does not, nor does bob, nor does nobody; and bob pulls
    what she pushed."""
    require(client)
    push_image = PUSHES[client]
    name = f"{office.login}/team/{client}:1"
    assert not push_image(office, "alice", office.secrets["token"], name)
    assert not push_image(office, "bob", f"{PASSWORD} of bob", name)
    assert not push_image(office, "bob", None, name)
    assert push_image(office, "alice", office.secrets["password"], name)
    assert push_image(office, "alice", office.pushing, f"{office.login}/team/{client}-token:1")
    if client in CLIENTS:
        assert CLIENTS[client](office, "bob", f"{PASSWORD} of bob", name)


def test_cosign_signs_where_it_may_push(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With alice's password; not with her token for pulling, nor as bob, nor as nobody. Signing pushes a signature."""
    require("cosign", "crane")
    monkeypatch.setenv("COSIGN_PASSWORD", "")
    assert push_with_crane(office, "alice", office.secrets["password"], f"{office.login}/team/signed:1")
    assert succeeds("cosign", "generate-key-pair", f"--output-key-prefix={tmp_path}/key")
    image = f"{office.login}/team/signed@{make_image(7, 'docker').digest}"
    options = ["--yes", "--allow-http-registry", "--tlog-upload=false", "--use-signing-config=false", f"--key={tmp_path}/key.key"]

    def signs(user: str, secret: str | None) -> bool:
        given = [] if secret is None else [f"--registry-username={user}", f"--registry-password={secret}"]
        return succeeds("cosign", "sign", *options, *given, image, DOCKER_CONFIG=str(tmp_path))

    assert not signs("alice", office.secrets["token"])
    assert not signs("bob", f"{PASSWORD} of bob")
    assert not signs("nobody", None)
    assert signs("alice", office.secrets["password"])
    verify = ["verify", "--allow-http-registry", "--insecure-ignore-tlog=true", f"--key={tmp_path}/key.pub"]
    creds = ["--registry-username=bob", f"--registry-password={PASSWORD} of bob"]
    assert succeeds("cosign", *verify, *creds, image, DOCKER_CONFIG=str(tmp_path))


@EACH_DOCKERD
def test_docker_pushes_or_is_refused(office: Office, dockerd: Dockerd) -> None:
    """The same with ``docker push`` at the address for logging in."""
    name = f"{office.login}/team/docker:1"
    dockerd.docker("pull", f"{office.login}/library/public:1")
    dockerd.docker("tag", f"{office.login}/library/public:1", name)
    assert not dockerd.succeeds("push", name)
    for user, secret, may in (
        ("bob", f"{PASSWORD} of bob", False),
        ("alice", office.secrets["token"], False),
        ("alice", office.secrets["password"], True),
        ("alice", office.pushing, True),
    ):
        dockerd.docker("login", office.login, "-u", user, "-p", secret)
        assert dockerd.succeeds("push", name) is may, user
        dockerd.docker("logout", office.login)


def test_buildkit_pulls_and_pushes_or_is_refused(office: Office, tmp_path: Path) -> None:
    """A build on the private image, pushed with its cache (``--push``, ``--cache-to``): with alice's password and with her token for that. Her token for pulling does not
    push; bob does not even get the image that it is built on."""
    pulls, refused = office.secrets["token"], "insufficient_scope|denied|403"
    cases = [
        # Each builder remembers whom it has asked as.
        [("bob", f"{PASSWORD} of bob", "app:1: not found")],
        [("alice", pulls, refused), ("alice", office.secrets["password"], ""), ("alice", office.pushing, "")],
    ]
    for number, logins in enumerate(cases):
        (folder := tmp_path / str(number)).mkdir()
        builder = Buildkitd(folder, office.login)
        try:
            for user, secret, error in logins:
                auth = {"auth": base64.b64encode(f"{user}:{secret}".encode()).decode()}
                (folder / "config.json").write_text(json.dumps({"auths": {office.login: auth}}))
                target = f"{office.login}/team/buildkit-{len(secret)}"
                output = ["--output", f"type=image,name={target}:1,push=true"]
                cache = ["--export-cache", f"type=registry,ref={target}:cache,mode=max"]
                dockerfile = f"FROM {office.image}\nCOPY Dockerfile /{len(secret)}\n"
                if error:
                    with pytest.raises(AssertionError, match=error):
                        builder.build(dockerfile, *output, *cache, DOCKER_CONFIG=str(folder))
                else:
                    builder.build(dockerfile, *output, *cache, DOCKER_CONFIG=str(folder))
                    assert with_crane(office, "bob", f"{PASSWORD} of bob", f"{target}:1")
        finally:
            builder.stop()


def test_helm_pulls_a_chart_or_is_refused(office: Office) -> None:
    """One that is private: with alice's password and token, not as bob, nor as nobody."""
    require("helm")
    name = f"{office.login}/private/charts:1"
    assert push_with_helm(office, "alice", office.secrets["password"], name)
    for user, secret, may in (
        ("alice", office.secrets["password"], True),
        ("alice", office.secrets["token"], True),
        ("alice", office.secrets["token that is over"], False),
        ("bob", f"{PASSWORD} of bob", False),
        ("", "", False),
    ):
        folder = tempfile.mkdtemp(prefix="helm-")
        given = ["--username", user, "--password", secret] if user else []
        pull = ["pull", f"oci://{office.login}/private/charts/app", "--plain-http", "-d", folder, *given]
        assert succeeds("helm", *pull, "--registry-config", f"{folder}/registry.json") is may, user


def test_containerd_pulls_by_a_secret_path_or_is_refused(office: Office, tmp_path: Path) -> None:
    """hosts.toml with the token in the mirror's URL, at the open address; without it, and with one that is over, the private image is not to be had. Or with a header
    there that has user and password, or a token."""
    containerd = Containerd(tmp_path / "c", office.mirror.url)
    headers = {
        "alice": (_basic("alice", office.secrets["password"]), True),
        "bob": (_basic("bob", f"{PASSWORD} of bob"), False),
        "token": (f"Bearer {office.secrets['token']}", True),
    }
    try:
        for number, (header, may) in enumerate(headers.values()):
            folder = tmp_path / f"header-{number}" / "docker.io"
            folder.mkdir(parents=True)
            (folder / "hosts.toml").write_text(
                f'server = "http://127.0.0.1:1"\n[host."{office.mirror.url}"]\ncapabilities = ["pull", "resolve"]\n'
                f'[host."{office.mirror.url}".header]\nauthorization = "{header}"\n'
            )
            if may:
                containerd.pull("docker.io/private/app:1", folder.parent)
            else:
                with pytest.raises(AssertionError):
                    containerd.pull("docker.io/private/app:1", folder.parent)
            containerd.wipe()
        for number, (name, secret) in enumerate({"no token": "", **office.secrets}.items()):
            if "password" in name:
                continue
            folder = tmp_path / str(number) / "docker.io"
            folder.mkdir(parents=True)
            mirror = f"{office.mirror.url}{f'/t/{secret}' if secret else ''}"
            (folder / "hosts.toml").write_text(
                f'server = "http://127.0.0.1:1"\n[host."{mirror}"]\ncapabilities = ["pull", "resolve"]\n'
            )
            if name == "token":
                containerd.pull("docker.io/private/app:1", folder.parent)
            else:
                with pytest.raises(AssertionError):
                    containerd.pull("docker.io/private/app:1", folder.parent)
            containerd.wipe()
            if name in ("no token", "token for another repository"):
                containerd.pull("docker.io/library/public:1", folder.parent)
                containerd.wipe()
    finally:
        containerd.stop()


def test_who_pulled_is_in_the_audit_log(office: Office) -> None:
    """Each pull with the digest, the user and the token; each refusal with its reason. ``mirror who`` finds them by image and by digest."""
    image = f"{office.login}/private/app:1"
    assert with_skopeo(office, "alice", office.secrets["token"], image)
    assert not with_skopeo(office, "bob", f"{PASSWORD} of bob", image)
    digest = make_image(7, "docker").digest

    def told() -> list[dict[str, str]]:
        lines = (office.folder / "audit.log").read_text().splitlines()
        return [json.loads(line) for line in lines]

    deadline = time.monotonic() + PATIENCE
    while not any(one.get("user") == "bob" and one["verdict"] == "denied" for one in told()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pulled = next(one for one in told() if one.get("token") == "laptop" and one["verdict"] == "allowed" and one.get("digest"))
    assert pulled["user"] == "alice"
    assert pulled["repository"] == "docker.io/private/app"
    assert pulled["digest"] == digest
    refused = next(one for one in told() if one.get("user") == "bob" and one["verdict"] == "denied")
    assert "table 2" in refused["reason"]
    command = [sys.executable, "-m", "mirror", "who", "--config", str(office.folder / "mirror.toml"), "--json"]
    for name in ("private/app:1", digest, "private/app"):
        found = json.loads(subprocess.run([*command, name], capture_output=True, text=True, check=True, timeout=PATIENCE).stdout)
        assert any(one.get("user") == "alice" for one in found), name
