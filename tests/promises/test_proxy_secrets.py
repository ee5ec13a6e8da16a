"""A proxy's user name and password go to the proxy and nowhere else, however they are set and whatever goes wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from yarl import URL

from mirror.config import ConfigError, load
from mirror.upstream import dialing
from mirror.upstream.proxies import Fixed, Proxies, way
from mirror.upstream.transport import Connections, Timeouts, Transport
from mirror.web.token import NAME
from tests.support.commands import mirror
from tests.support.dashboard import HTML, PAGES
from tests.support.mirrors import MirrorProcess
from tests.support.patience import PATIENCE
from tests.support.proxying import Answers, Closes, Kind, ScriptedProxy
from tests.support.scripted import Scripted

PLAIN = ("r0b0t-account", "hunter2-s3cret")
ODD = ("corp/r0b0t@lan", "p@ss/w:rd#50%+hunter2?")
"""What must be percent-encoded in a URL."""
ECHO = Answers(
    tuple(
        b"HTTP/1.1 407 %s\r\nX: %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % (2 * (":".join(one).encode(),))
        for one in (PLAIN,)
    ),
    close=True,
)


def forms(account: tuple[str, str]) -> list[str]:
    """What must not be seen: user and password, also percent-encoded, and both in base64."""
    pair = ":".join(account)
    found = {*account, *(quote(word, safe="") for word in account), *(quote(word) for word in account)}
    return [*found, base64.b64encode(pair.encode()).decode(), json.dumps(account[1])[1:-1]]


@dataclass(frozen=True)
class Setting:
    """Where a proxy and its credentials are set: in variables of the environment, or in a table of the settings."""

    kind: Kind
    account: tuple[str, str]
    table: str | None
    """None for the environment."""

    def write(self, proxy: ScriptedProxy, registry: str, folder: Path) -> tuple[Path, dict[str, str]]:
        """Returns the settings file, and variables of the environment."""
        file, credentials, bare = folder / "mirror.toml", folder / "account", proxy.url
        credentials.write_text(":".join(self.account) + "\n")
        lines = f'proxy = "{bare}"\nproxy_credentials_file = "{credentials}"\n'
        endpoint = f'"{registry}"'
        if self.table == "endpoint":
            endpoint = f'{{ url = "{registry}", {", ".join(lines.splitlines())} }}'
        file.write_text(
            f'[log]\nlevel = "debug"\nformat = "{"json" if self.table else "text"}"\n[cache]\nprefetch = false\n'
            "[upstream]\nattempts = 1\nconnect_timeout = 1\nheader_timeout = 3\n"
            f'registries = "listed"\n{lines if self.table == "upstream" else ""}'
            f'[registries."docker.io"]\nendpoints = [{endpoint}]\nsearch = "{registry}/v1/search"\n'
            f"{lines if self.table == 'registry' else ''}"
        )
        if self.table is not None:
            return file, {}
        user, password = (quote(word, safe="") for word in self.account)
        url = f"{self.kind}://{user}:{password}@127.0.0.1:{proxy.port}"
        return file, {"http_proxy": url, "https_proxy": url, "no_proxy": ""}


SETTINGS = [
    Setting("http", PLAIN, None),
    Setting("http", ODD, None),
    Setting("socks5h", ODD, None),
    Setting("http", PLAIN, "upstream"),
    Setting("socks5h", ODD, "registry"),
    Setting("http", ODD, "endpoint"),
]


async def get(session: aiohttp.ClientSession, path: str) -> str:
    """The head and body of an answer."""
    try:
        async with session.get(path, timeout=aiohttp.ClientTimeout(PATIENCE), headers=HTML) as response:
            return f"{path} {response.status} {dict(response.headers)} {await response.text(errors='replace')}"
    except aiohttp.ClientError as error:
        return f"{path} {error}"


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        *((setting, fault) for setting in SETTINGS for fault in (None, "wrong password")),
        (SETTINGS[0], ECHO),
        (SETTINGS[3], ECHO),
        (SETTINGS[4], Closes()),
    ],
    ids=lambda one: f"{one.kind}, {one.table or 'environment'}, {one.account[0]}" if isinstance(one, Setting) else str(one)[:14],
)
async def test_no_output_shows_them(
    setting: Setting, fault: Any, tmp_path: Path, upstream: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients' errors, metrics, states, pages, both logs at level debug, ``ps``, and what ``mirror doctor``, ``pull``, ``search`` and ``tags`` print."""
    image = upstream.add_image("library/app", "1")
    asked = ("other-account", "changed-s1nce") if fault == "wrong password" else setting.account
    async with ScriptedProxy(setting.kind, account=asked) as proxy:
        if isinstance(fault, Answers | Closes):
            proxy.fail(fault)
        file, environment = setting.write(proxy, f"http://registry.test:{upstream.port}", tmp_path)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        # Started as users do: `ps` is looked at.
        process = MirrorProcess(tmp_path / "cache", {}, "--config", str(file)).run_under("env")
        seen: list[str] = []
        await asyncio.to_thread(process.start)
        try:
            async with aiohttp.ClientSession(process.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
                token = (process.directory / NAME).read_text().strip()
                async with session.post("/login", data={"token": token, "to": "/"}, headers=HTML, allow_redirects=False) as login:
                    assert login.status == 303
                paths = ["manifests/1", f"blobs/{image.layers[0]}", "tags/list", f"referrers/{image.digest}"]
                for path in (
                    *(f"/v2/app/{path}" for path in paths),
                    "/v1/search?q=app",
                    "/readyz",
                    "/metrics",
                    "/settings",
                    *PAGES,
                ):
                    seen.append(await get(session, path))
            seen.append(await asyncio.to_thread(listed_processes, process.pid))
            flags = ["--config", str(file), "--cache-dir", str(tmp_path / "cache")]
            for command in (
                ["doctor", "--mirror", process.url],
                ["doctor", "--mirror", process.url, "--json"],
                ["pull", "app:1"],
                ["search", "app"],
                ["tags", "app"],
            ):
                done = await asyncio.to_thread(mirror, *command, *flags)
                seen += [done.stdout, done.stderr]
        finally:
            await asyncio.to_thread(process.terminate)
        seen.append(process.log)
        assert any("/settings 200" in one and "upstream.proxy" in one for one in seen)
        works = fault is None
        assert (f"/v2/app/manifests/1 {200 if works else 503}" in seen[0]) and proxy.connections > 0
        assert (upstream.asked != []) == works
        text = "\n".join(seen)
        assert "127.0.0.1" in text and str(proxy.port) in text, "the proxy itself is named"
        assert '"repository":"docker.io/library/app","reference":"1"' in process.log, "the access log is among it"
        for secret in (*forms(setting.account), *forms(asked)):
            places = [one[max(0, one.find(secret) - 200) : one.find(secret) + 100] for one in seen if secret in one]
            assert not places, places


def listed_processes(pid: int) -> str:
    """What ``ps`` shows of a process and its children."""
    return subprocess.run(
        ["ps", "-ww", "-o", "pid,args", "-p", str(pid), "--ppid", str(pid)], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    "value",
    [
        "http://robot:hunter2@proxy.lan:3128",
        "robot:hunter2@proxy.lan:3128",
        "robot:hunter2@proxy.lan",
        "socks4://robot:hunter2@proxy.lan",
        "http://robot:hun/ter2@proxy.lan",
        "http:robot:hunter2@proxy.lan",
        "http:/robot:hunter2@proxy.lan",
        "http://robot:hunter2@[::1",
        "http://robot:hunter2@proxy.lan:port",
        " http://robot:hunter2@proxy.lan",
    ],
)
@pytest.mark.parametrize("place", ["upstream", "registry", "endpoint", "variable"])
def test_a_setting_that_holds_them_is_refused_without_showing_them(value: str, place: str) -> None:
    """Wherever it stands and however it is mistyped; the error names the setting."""
    tree: dict[str, Any] = {}
    environment: dict[str, str] = {}
    match place:
        case "upstream":
            tree = {"upstream": {"proxy": value}}
        case "registry":
            tree = {"registries": {"ghcr.io": {"proxy": value}}}
        case "endpoint":
            tree = {"registries": {"ghcr.io": {"endpoints": [{"url": "https://ghcr.io", "proxy": value}]}}}
        case "variable":
            environment = {"MIRROR_UPSTREAM__PROXY": value}
    with pytest.raises(ConfigError) as raised:
        load(None, environment, tree)
    (fault,) = raised.value.faults
    assert "proxy" in fault
    for secret in ("robot", "hun/ter2", "hunter2", "ter2"):
        assert secret not in fault


@pytest.mark.parametrize(
    "value",
    [
        "http://robot:12/hunter2@proxy.lan:3128",
        "http://robot:12#hunter2@proxy.lan:3128",
        "http://robot:12?hunter2@proxy.lan:3128",
        "http://robot:hunter2@proxy.lan:port",
        "http://robot:hunter2@[::1",
        "ftp://robot:hunter2@proxy.lan",
        "robot:1/hunter2@proxy.lan",
    ],
)
def test_a_variable_that_cannot_be_used_is_refused_without_showing_them(value: str) -> None:
    """A password that was not percent-encoded must not become a part of the proxy's address, which errors show."""
    with pytest.raises(OSError, match="HTTPS_PROXY") as raised:
        Proxies({"HTTPS_PROXY": value})
    assert "robot" not in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("content", ["r\xf6bot:hunter2\n".encode("latin-1"), b"robot-hunter2\n", b"", b"x" * 100_000, None])
@pytest.mark.parametrize("scheme", ["http", "socks5h"])
async def test_a_file_that_holds_something_else_is_named_and_not_quoted(
    content: bytes | None, scheme: str, tmp_path: Path
) -> None:
    """Not even a byte of it, as Python's own errors do."""
    file = tmp_path / "account"
    if content is not None:
        file.write_bytes(content)
    out = way(f"{scheme}://127.0.0.1:1", file, Fixed(None), "upstream.proxy")
    transport = Transport(Timeouts(1, 2, 1, 1), Connections(1, 1, 1), out)
    try:
        with pytest.raises(Exception, match="its credentials cannot be read") as raised:
            await transport.request("GET", URL("http://registry.test/"), {})
    finally:
        await transport.aclose()
    for part in ("hunter2", "0xf6", "codec", "xxx"):
        assert part not in str(raised.value)


def test_objects_do_not_show_them(tmp_path: Path) -> None:
    """What a debugger, a log of asyncio or a traceback with its variables writes of a proxy and of the route through it."""
    file = tmp_path / "account"
    file.write_text(":".join(ODD))
    out = way("http://proxy.lan:3128", file, Fixed(None), "upstream.proxy")
    environment = Proxies({"HTTPS_PROXY": f"http://{quote(ODD[0], safe='')}:{quote(ODD[1], safe='')}@proxy.lan:3128"})
    for found in (out.of(URL("https://registry.test")), environment.of(URL("https://registry.test"))):
        assert found is not None
        assert found.credentials() == ODD
        route = dialing.proxied(URL("https://registry.test"), found, None, None, None, 1)  # type: ignore[arg-type]
        assert route.hop is not None and "Proxy-Authorization" in route.hop.headers
        text = repr((found, route, route.hop, found.name))
        assert not [secret for secret in forms(ODD) if secret in text]
