"""Real clients that log in to a registry through the mirror, each with its own password: at a registry with a token service, and at one with htpasswd over TLS."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mirror.access.users import set_password
from tests.e2e.test_access import CLIENTS, Office
from tests.e2e.test_dockerd import Dockerd
from tests.support.certificates import Authority
from tests.support.images import Image, make_image, push
from tests.support.mirrors import MirrorProcess
from tests.support.ports import free_port
from tests.support.programs import DockerRegistry, require, require_root
from tests.support.tokens import TokenService

PASSWORDS = {"alice": "correct horse battery", "bob": "staple of bob's own"}
RIGHTS = {"alice": {"acme/a", "library/public"}, "bob": {"acme/b", "library/public"}, "": {"library/public"}}


@dataclass
class Lab:
    """A mirror of a registry that has an account for each user, as `registry` in the mirror's names."""

    office: Office
    registry: DockerRegistry
    name: str
    images: dict[str, Image]
    tokens: TokenService | None = None
    rights: dict[str, set[str]] = field(default_factory=dict)

    def image(self, repository: str) -> str:
        return f"{self.office.login}/{self.name}/{repository}:1"

    def may(self, user: str | None, repository: str) -> bool:
        return repository in self.rights[user or ""]

    def blobs_sent(self) -> dict[str, int]:
        """How often the registry has sent each blob."""
        return {digest: self.registry.asked("GET", f"blobs/{digest}") for image in self.images.values() for digest in image.blobs}


def make_lab(kind: str, folder: Path, name: str) -> Iterator[Lab]:
    """`kind` is how the registry knows its users: ``token`` or ``htpasswd``, which lets each of them pull everything, over TLS, as the mirror is then too."""
    images = {path: make_image(seed, "docker") for seed, path in enumerate(("acme/a", "acme/b", "library/public"))}
    filling = DockerRegistry(folder / "registry")
    for path, image in images.items():
        push(filling.url, path, "1", image)
    filling.stop()
    authority, tokens, more, tls = Authority(folder / "tls"), None, "", ""
    if kind == "token":
        tokens, rights = TokenService(folder / "tokens", dict(PASSWORDS), RIGHTS), RIGHTS
        registry = DockerRegistry(folder / "registry", tokens.settings)
    else:
        for user, password in PASSWORDS.items():
            set_password(folder / "htpasswd", user, password)
        registry = DockerRegistry(
            folder / "registry", htpasswd=folder / "htpasswd", certificate=(authority.certificate, authority.key)
        )
        rights = {"alice": set(images), "bob": set(images), "": set()}
        more = f'ca_file = "{authority.ca}"\n'
        tls = f'tls_certificate = "{authority.certificate}"\ntls_key = "{authority.key}"\n'
    port, config = free_port(), folder / "mirror.toml"
    config.write_text(
        f'[server]\nlogin_listen = "127.0.0.1:{port}"\naudit_log = "{folder}/audit.log"\n'
        f"{tls}"
        f'[registries."{name}"]\nendpoints = ["{registry.url}"]\ncredentials = "client"\n{more}'
    )
    with MirrorProcess(folder / "cache", {}, "--config", str(config)) as mirror:
        yield Lab(Office(mirror, f"127.0.0.1:{port}", folder), registry, name, images, tokens, rights)
        for password in PASSWORDS.values():
            basic = [base64.b64encode(f"{user}:{password}".encode()).decode() for user in PASSWORDS]
            for secret in (password, *basic):
                assert secret not in mirror.log
                assert secret not in (folder / "audit.log").read_text()
        assert "Traceback" not in mirror.log
    registry.stop()
    if tokens is not None:
        tokens.stop()


@pytest.fixture(scope="module", params=["token", "htpasswd"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from make_lab(request.param, tmp_path_factory.mktemp("lab"), "ghcr.io")


@pytest.mark.parametrize("client", ["skopeo", "podman", "crane"])
def test_each_user_pulls_what_the_registry_gives_it(lab: Lab, client: str) -> None:
    """With the right password, what the registry allows to that user; with a wrong one, or none, no private image. The registry sends each blob once, for all of
    them."""
    require(client)
    if client == "podman":
        require_root("podman, as it is run here,")
    pull = CLIENTS[client]
    for user, repository in itertools.product(PASSWORDS, ("acme/a", "acme/b")):
        expected = lab.may(user, repository)
        assert pull(lab.office, user, PASSWORDS[user], lab.image(repository)) is expected, (user, repository)
    assert not pull(lab.office, "alice", "wrong", lab.image("acme/a"))
    assert not pull(lab.office, "alice", None, lab.image("acme/a"))
    public = lab.image("library/public")
    assert pull(lab.office, "bob", PASSWORDS["bob"], public)
    assert pull(lab.office, "bob", None, public) is lab.may(None, "library/public")
    assert max(lab.blobs_sent().values()) <= 1


@pytest.fixture(scope="module")
def dockerd(lab: Lab) -> Iterator[Dockerd]:
    daemon = Dockerd(lab.office.mirror.url)
    yield daemon
    daemon.stop()


def test_docker_logs_in_and_pulls_or_is_refused(lab: Lab, dockerd: Dockerd) -> None:
    """``docker login`` takes the registry's password and refuses another; alice pulls her image, and on the same machine bob, once he has logged in, does not get what
    is not his from the mirror's cache."""
    host = lab.office.login
    assert not dockerd.succeeds("pull", lab.image("acme/a"))
    assert not dockerd.succeeds("login", host, "-u", "alice", "-p", "wrong")
    for user, repository in itertools.product(PASSWORDS, ("acme/a", "acme/b")):
        assert dockerd.succeeds("login", host, "-u", user, "-p", PASSWORDS[user])
        assert dockerd.succeeds("pull", lab.image(repository)) is lab.may(user, repository), (user, repository)
        dockerd.docker("logout", host)
        dockerd.succeeds("rmi", lab.image(repository))
    assert max(lab.blobs_sent().values()) <= 1


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from make_lab("token", tmp_path_factory.mktemp("hub"), "docker.io")


def test_a_password_that_was_changed(hub: Lab) -> None:
    """At the registry itself: a client logs in with the new one at once, and with no other."""
    require("skopeo")
    assert hub.tokens is not None
    login = ["skopeo", "login", "--tls-verify=false", "--authfile", str(hub.office.folder / "auth.json"), hub.office.login]

    def succeeds(password: str) -> bool:
        done = subprocess.run([*login, "-u", "carol", "-p", password], check=False, capture_output=True, timeout=60)
        return done.returncode == 0

    assert not succeeds("first")
    hub.tokens.accounts["carol"] = "second"
    assert succeeds("second")
    assert not succeeds("third")


def test_classic_dockerd_pulls_from_docker_hub_with_the_users_own_account(hub: Lab) -> None:
    """With ``credentials = "client"`` for docker.io and the address for logging in among its ``registry-mirrors``, dockerd sends what ``docker login`` has left for Docker
    Hub, and gets by a short name what Docker Hub gives that user; at the open address nothing but what is for all."""
    auth = base64.b64encode(f"alice:{PASSWORDS['alice']}".encode()).decode()
    for url, expected in ((f"http://{hub.office.login}", True), (hub.office.mirror.url, False)):
        config = hub.office.folder / "daemon.json"
        config.write_text(json.dumps({"registry-mirrors": [url], "insecure-registries": ["127.0.0.0/8"]}))
        daemon = Dockerd("", config)
        try:
            daemon.log_in_by_file({"https://index.docker.io/v1/": {"auth": auth}})
            assert daemon.succeeds("pull", "public:1")
            assert daemon.succeeds("pull", "acme/a:1") is expected
            assert not daemon.succeeds("pull", "acme/b:1")
        finally:
            daemon.stop()
