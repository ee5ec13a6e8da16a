"""nginx and HAProxy in front of the mirror, with TLS, set up as deploy/office.md says: real clients log in, push and pull through them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.access.users import set_password
from tests.support.certificates import Authority
from tests.support.images import make_image, push
from tests.support.mirrors import MirrorProcess
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.programs import DockerRegistry, Program, require

PASSWORD = "correct horse battery"


def nginx(folder: Path, port: int, mirror: int, authority: Authority) -> list[str]:
    """The command of an nginx that keeps no answer and no upload of its own."""
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; error_log stderr info; pid {folder}/nginx.pid; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
        f"server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {authority.certificate}; ssl_certificate_key {authority.key}; client_max_body_size 0;\n"
        f"location / {{ proxy_pass http://127.0.0.1:{mirror}; proxy_http_version 1.1; proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 300s;\n"
        "proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; } } }\n"
    )
    return ["nginx", "-c", str(config), "-e", "stderr"]


def haproxy(folder: Path, port: int, mirror: int, authority: Authority) -> list[str]:
    """The command of an HAProxy that ends TLS and says for whom it asks."""
    both = folder / "both.pem"
    both.write_bytes(authority.certificate.read_bytes() + authority.key.read_bytes())
    config = folder / "haproxy.cfg"
    config.write_text(
        "defaults\n mode http\n timeout connect 5s\n timeout client 300s\n timeout server 300s\n option forwardfor\n"
        f"frontend tls\n bind 127.0.0.1:{port} ssl crt {both}\n http-request set-header X-Forwarded-Proto https\n default_backend mirror\n"
        f"backend mirror\n server one 127.0.0.1:{mirror}\n"
    )
    return ["haproxy", "-db", "-f", str(config)]


PROXIES: dict[str, Callable[[Path, int, int, Authority], list[str]]] = {"nginx": nginx, "haproxy": haproxy}


@dataclass
class Front:
    """A mirror behind a proxy."""

    address: str
    """The proxy's host and port."""
    authority: Authority
    folder: Path

    def skopeo(self, *arguments: str) -> bool:
        """Whether a command of skopeo, which trusts the proxy's certificate, succeeds."""
        done = subprocess.run(
            ["skopeo", "--insecure-policy", *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        print(arguments, done.returncode, done.stdout[-300:], done.stderr[-800:])
        return done.returncode == 0

    def copy(self, user: str | None, source: str, target: str) -> bool:
        """Whether an image is copied from one name behind the proxy to another."""
        given = [] if user is None else ["--src-creds", f"{user}:{PASSWORD}", "--dest-creds", f"{user}:{PASSWORD}"]
        certificates = ["--src-cert-dir", str(self.authority.ca.parent), "--dest-cert-dir", str(self.authority.ca.parent)]
        names = [f"docker://{self.address}/{name}" for name in (source, target)]
        return self.skopeo("copy", *certificates, *given, *names)

    def audited(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.folder / "audit.log").read_text().splitlines()]


@pytest.fixture(params=PROXIES)
def front(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Front]:
    require(request.param, "skopeo", "curl")
    registry = DockerRegistry(tmp_path / "registry")
    push(registry.url, "library/public", "1", make_image(7, "docker"))
    authority = Authority(tmp_path / "tls")
    for file in (authority.certificate, authority.key):
        # Beside a ca.crt, clients would take them for their own.
        file.rename(file.with_suffix(".pem" if file == authority.key else ".chain"))
    authority.certificate, authority.key = authority.certificate.with_suffix(".chain"), authority.key.with_suffix(".pem")
    outside, login, config = free_port(), free_port(), tmp_path / "mirror.toml"
    config.write_text(
        f'[server]\nlogin_listen = "127.0.0.1:{login}"\npublic_url = "https://127.0.0.1:{outside}"\ntrusted_proxies = ["127.0.0.1/32"]\n'
        f'users_file = "{tmp_path}/users"\naudit_log = "{tmp_path}/audit.log"\n[hosted]\nrepositories = ["team/**"]\n'
        '[[access]]\nwho = ["alice"]\nmay = ["pull", "push"]\n[[access]]\nwho = ["anyone"]\n'
    )
    for user in ("alice", "bob"):
        set_password(tmp_path / "users", user, PASSWORD)
    with MirrorProcess(tmp_path / "cache", {"docker.io": registry.url}, "--config", str(config)) as mirror:
        proxy = Program(PROXIES[request.param](tmp_path, outside, login, authority), tmp_path / "proxy.log")
        address = f"127.0.0.1:{outside}"
        proxy.wait_until(
            lambda: subprocess.run(["curl", "-sk", "-o", "/dev/null", f"https://{address}/v2/"], check=False).returncode == 0
        )
        yield Front(address, authority, tmp_path)
        proxy.stop()
        assert "Traceback" not in mirror.log
    registry.stop()


def test_clients_log_in_push_and_pull_through_a_proxy_with_tls(front: Front) -> None:
    """Whoever may push does, through every Location of an upload; others, and nobody, do not; all pull what was pushed."""
    assert not front.copy("bob", "library/public:1", "team/app:1")
    assert not front.copy(None, "library/public:1", "team/app:1")
    assert front.copy("alice", "library/public:1", "team/app:1")
    inspect = ["inspect", "--raw", "--cert-dir", str(front.authority.ca.parent), f"docker://{front.address}/team/app:1"]
    assert front.skopeo(*inspect, "--creds", f"bob:{PASSWORD}")


def test_the_client_behind_a_proxy_is_known_and_is_not_this_machine(front: Front) -> None:
    """Its address is in the audit log, the proxy's is not; with the name of this machine in its request it may push as little as any other."""
    upload = f"https://{front.address}/v2/team/app/blobs/uploads/"
    curl = [
        "curl",
        "-s",
        "--cacert",
        str(front.authority.ca),
        "--interface",
        "127.0.0.9",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
    ]
    for host in ((), ("-H", "Host: localhost")):
        done = subprocess.run([*curl, *host, "-X", "POST", upload], capture_output=True, text=True, timeout=PATIENCE, check=True)
        assert done.stdout == "401"
    assert (
        subprocess.run(
            [*curl, "-u", f"alice:{PASSWORD}", "-X", "POST", upload], capture_output=True, text=True, timeout=PATIENCE, check=True
        ).stdout
        == "202"
    )
    deadline = time.monotonic() + PATIENCE
    while not any(one["verdict"] == "allowed" and one.get("user") == "alice" for one in front.audited()):
        assert time.monotonic() < deadline, front.audited()
        time.sleep(0.05)
    assert {one["address"] for one in front.audited()} == {"127.0.0.9"}
