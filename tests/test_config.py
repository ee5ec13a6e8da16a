"""Settings: sources, precedence, and faults that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.config import DEFAULT_ENDPOINTS, ConfigError, Expire, Registry, load
from mirror.config.settings import Settings
from mirror.disk_room import default_limit
from mirror.manifests import this_platform
from mirror.names import image_name
from mirror.units import format_size, parse_duration, parse_size


def urls(registry: Registry) -> list[str]:
    """Its endpoints, as messages name them."""
    return [str(endpoint) for endpoint in registry.endpoints]


def test_no_settings_at_all() -> None:
    """The defaults serve docker.io and the other default registries on loopback."""
    settings = load(None, {}, {})
    assert settings.server.address == ("127.0.0.1", 5000)
    assert settings.cache.max_size == default_limit(settings.cache.dir)
    assert settings.cache.tag_ttl == 300
    assert {name: urls(registry) for name, registry in settings.registries.items()} == {
        k: [v] for k, v in DEFAULT_ENDPOINTS.items()
    }


def test_flags_win_over_environment_over_file_key_by_key(tmp_path: Path) -> None:
    """What one source does not mention is kept from the one below."""
    file = tmp_path / "m.toml"
    file.write_text(
        '[server]\nlisten = "1.1.1.1:1"\ndrain_timeout = "5s"\n[cache]\nmax_size = "1GiB"\ntag_ttl = "1m"\n[registries."docker.io"]\n'
        'endpoints = ["https://a"]\nusername = "u"\npassword = "p"\n[registries."lan:5001"]\nendpoints = ["http://lan:5001/base/"]\n'
    )
    environment = {"MIRROR_SERVER__LISTEN": "2.2.2.2:2", "MIRROR_CACHE__MAX_SIZE": "2GiB", "PATH": "/bin"}
    flags = {"cache": {"max_size": "3GiB"}, "registries": {"docker.io": {"endpoints": ["http://b", "http://c"]}}}
    settings = load(file, environment, flags)
    assert settings.server.address == ("2.2.2.2", 2)
    assert settings.server.drain_timeout == 5
    assert (settings.cache.max_size, settings.cache.tag_ttl) == (3 * 1024**3, 60)
    assert urls(settings.registries["docker.io"]) == ["http://b", "http://c"]
    assert settings.registries["docker.io"].account() == ("u", "p")
    assert urls(settings.registries["lan:5001"]) == ["http://lan:5001/base"]
    assert urls(settings.registries["ghcr.io"]) == ["https://ghcr.io"]


def test_a_folder_is_where_it_would_be_for_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` is the user's home, in a file too, and a relative folder stays where it was when the mirror began."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load(None, {}, {"cache": {"dir": "~/mirror"}}).cache.dir == Path("/home/somebody/mirror")
    assert load(None, {}, {"cache": {"dir": "mirror"}}).cache.dir == Path.cwd() / "mirror"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as any number: not an exception, but the flag that helps."""

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(ConfigError, match="--cache-dir"):
        load(None, {}, {})
    assert load(None, {}, {"cache": {"dir": "/srv/mirror"}}).cache.dir == Path("/srv/mirror")


def test_a_table_without_endpoints_keeps_the_default_ones() -> None:
    """Credentials for Docker Hub need not repeat its URL."""
    settings = load(None, {}, {"registries": {"docker.io": {"username": "u", "password": "p"}}})
    assert urls(settings.registries["docker.io"]) == ["https://registry-1.docker.io"]


def test_all_faults_at_once_with_key_form_value_and_source(tmp_path: Path) -> None:
    """One start tells everything that is wrong."""
    file = tmp_path / "m.toml"
    file.write_text(
        '[cache]\nmax_sise = "1GiB"\ntag_ttl = "soon"\n[upstream]\nattempts = 0\n[registries."docker.io"]\nendpoints = ["ftp://x"]\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(file, {"MIRROR_SERVER__LISTEN": "nowhere"}, {"cache": {"max_size": "huge"}})
    faults = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 6
    for expected in (
        "cache.max_sise",
        "is 'max_size' meant?",
        "cache.tag_ttl",
        '"5m"',
        "'soon'",
        "in the environment",
        "'nowhere'",
        "on the command line",
        "'huge'",
        str(file),
        "upstream.attempts",
        "https://registry.example",
    ):
        assert expected in faults


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        ({"username": "u"}, "belong together"),
        ({"password": "hunter2"}, "belong together"),
        ({"username": "u", "password": "hunter2", "password_file": __file__}, "exclude each other"),
        ({"username": "u", "password_file": "/nonexistent"}, "cannot be read"),
        ({"ca_file": "/nonexistent"}, "cannot be read"),
        ({"ca_file": __file__}, "certificates in PEM form"),
        ({"endpoints": ["https://u:hunter2@h"]}, "without user and password"),
        ({"endpoints": ["https://h?x=1"]}, "without query"),
        ({"endpoints": ["h:1"]}, "a URL such as"),
        ({"endpoints": [{"url": "h:1"}]}, "a URL such as"),
        ({"endpoints": [{"path": "x"}]}, "url"),
        ({"endpoints": [{"url": "https://h", "pth": "x"}]}, "is 'path' meant?"),
        ({"endpoints": [{"url": "https://h", "path": "a//b"}]}, "the beginning of a repository's name"),
        ({"endpoints": [{"url": "https://h", "path": "../x"}]}, "the beginning of a repository's name"),
        ({"endpoints": ["https://h/v2/dockerhub"]}, "path"),
        ({"endpoints": [7]}, "endpoints"),
        ({"password": ["hunter2"], "username": "u"}, "password"),
    ],
)
def test_faults_of_a_registry(registry: dict[str, Any], expected: str) -> None:
    """Each says what is wrong; no secret is shown."""
    with pytest.raises(ConfigError) as caught:
        load(None, {}, {"registries": {"docker.io": registry}})
    assert expected in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '[[registries]]\nname = "docker.io"\npassword = "hunter2"\n',
        'registries = [["docker.io", {password = "hunter2"}]]\n',
        '[registries."docker.io"]\npasword = "hunter2"\n',
        '[registries."docker.io"]\nendpoints = "https://u:hunter2@h/x@y"\n',
        '[registries."docker.io".password]\nvalue = "hunter2"\n',
        '[registries."docker.io"]\npassword_file = {password = "hunter2"}\n',
    ],
)
def test_secrets_in_the_wrong_place_are_not_shown(tmp_path: Path, text: str) -> None:
    """Whatever shape the file has: a terminal is seen by many."""
    file = tmp_path / "m.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, {}, {})
    assert "registries" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"registries": {"Not A Host": {"endpoints": ["https://h"]}}}, "not a registry's name"),
        ({"registries": {"lan:5001": {}}}, "needs endpoints"),
        ({"serverr": {}}, "is 'server' meant?"),
        ({"server": {"listen": "1.2.3.4:99999"}}, "an address and a port"),
        ({"cache": {"tag_ttl": -1}}, "a duration between"),
        ({"cache": {"max_size": 0}}, "a size above 0"),
        ({"cache": {"dir": ""}}, "a folder is expected"),
        ({"cache": {"low_watermark": 0.99}}, "low_watermark is above high_watermark"),
        ({"cache": {"high_watermark": 1.5}}, "cache.high_watermark"),
        ({"cache": {"scrub_rate": "fast"}}, "bytes a second such as"),
        ({"cache": {"expire": {"repositories": "ci/*", "after": "7d"}}}, "under [[cache.expire]]"),
        ({"cache": {"expire": [{"repositories": "ci/*"}]}}, "cache.expire.0.after"),
        ({"cache": {"expire": [{"repositories": "ci/*", "after": "0s"}]}}, "greater than 0"),
        ({"warm": {"images": ["redis"]}}, "under [[warm]], with two brackets"),
        ({"warm": [{"every": "1h"}]}, "images are expected, or a file"),
        ({"warm": [{"images": ["redis"], "every": "1h", "at": "02:00"}]}, "every and at exclude each other"),
        ({"warm": [{"images": ["redis"], "every": 0}]}, "warm.0.every"),
        ({"warm": [{"images": ["redis"], "at": "24:00"}]}, "a time of day"),
        ({"warm": [{"images": ["redis"], "at": "2:00"}]}, "a time of day"),
        ({"warm": [{"images": ["Redis"]}]}, "is not a repository name"),
        ({"warm": [{"images": ["redis"], "platforms": ["linux/"]}]}, "a platform such as"),
        ({"warm": [{"images": ["redis"], "platforms": ["all", "amd64"]}]}, "stands alone"),
        ({"warm": [{"imagse": ["redis"]}]}, "is 'images' meant?"),
        ({"warm": [{"images": ["redis"], "name": "2"}, {"images": ["redis"]}]}, "two lists have the name '2'"),
        ({"log": {"level": "loud"}}, "log.level"),
    ],
)
def test_other_faults(flags: dict[str, Any], expected: str) -> None:
    """Names, addresses, numbers."""
    with pytest.raises(ConfigError) as caught:
        load(None, {}, flags)
    assert expected in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Absent, a folder, no TOML: the file is named, and the line."""
    bad = tmp_path / "bad.toml"
    bad.write_text("[server]\nlisten =\n")
    for file, expected in ((tmp_path / "absent", "cannot be read"), (tmp_path, "cannot be read"), (bad, "line 2")):
        with pytest.raises(ConfigError) as caught:
            load(file, {}, {})
        assert str(file) in str(caught.value)
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "key", "expected"),
    [
        ({"MIRROR_SERVER__HOSTS": '["a.lan", "b.lan"]'}, "server.hosts", ("a.lan", "b.lan")),
        ({"MIRROR_SERVER__LISTEN": "[::1]:5000"}, "server.listen", "[::1]:5000"),
        ({"mirror_server__listen": "1.1.1.1:1"}, "server.listen", "1.1.1.1:1"),
        ({"MIRROR_LOG": '{"level": "debug", "format": "json"}', "MIRROR_LOG__LEVEL": "error"}, "log.level", "error"),
        ({"MIRROR_LOG__LEVEL": "error", "MIRROR_LOG": '{"level": "debug", "format": "json"}'}, "log.format", "json"),
        (
            {"MIRROR_CACHE__EXPIRE": '[{"repositories": "ci/*", "after": "1d"}]'},
            "cache.expire",
            (Expire(repositories="ci/*", after=86400),),
        ),
        ({"MIRROR_SERVER__ACCESS_LOG": "false"}, "server.access_log", False),
        ({"MIRROR_UPSTREAM__ATTEMPTS": "7"}, "upstream.attempts", 7),
    ],
)
def test_the_environment_sets_tables_lists_and_single_settings(environment: dict[str, str], key: str, expected: object) -> None:
    """Lists and tables are JSON; a setting's own variable wins over that of its table, in whichever order they come; case does not count."""
    table, name = key.split(".")
    assert getattr(getattr(load(None, environment, {}), table), name) == expected


def test_the_environment_names_registries_with_dots() -> None:
    """By one variable for each setting, or all registries as one table, or both."""
    environment = {
        "MIRROR_REGISTRIES": '{"registry.lan:5000": {"endpoints": ["http://registry.lan:5000"]}}',
        "MIRROR_REGISTRIES__docker.io__ENDPOINTS": '["https://one.example", {"url": "https://two.example", "path": "hub"}]',
        "MIRROR_REGISTRIES__docker.io__SEARCH": "",
    }
    registries = load(None, environment, {}).registries
    assert [str(endpoint) for endpoint in registries["registry.lan:5000"].endpoints] == ["http://registry.lan:5000"]
    assert [str(endpoint) for endpoint in registries["docker.io"].endpoints] == [
        "https://one.example",
        "https://two.example/v2/hub",
    ]
    assert registries["docker.io"].search == ""


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("MIRROR_SERVER", "0.0.0.0:5000", "MIRROR_SERVER: a table given as one variable must be JSON"),
        ("MIRROR_CACHE", '{"max_size": ', "MIRROR_CACHE: a table"),
        ("MIRROR_REGISTRIES", '["docker.io"]', "MIRROR_REGISTRIES: a table"),
        ("MIRROR_SERVER__HOSTS", "a.lan", "server.hosts (in the environment)"),
        ("MIRROR_SERVER__HOSTS", "[" * 100_000, "server.hosts (in the environment)"),
        ("MIRROR_SERVER__LISTEN__PORT", "1", "server.listen (in the environment)"),
    ],
)
def test_what_the_environment_cannot_set(variable: str, value: str, told: str) -> None:
    """The fault names the variable, or the setting and its source."""
    with pytest.raises(ConfigError) as caught:
        load(None, {variable: value}, {})
    assert told in str(caught.value)


def test_unknown_settings_in_the_environment_are_told() -> None:
    """A typing error there is as easily made as in a file."""
    with pytest.raises(ConfigError, match="max_sise"):
        load(None, {"MIRROR_CACHE__MAX_SISE": "1GiB"}, {})
    with pytest.raises(ConfigError, match="cach"):
        load(None, {"MIRROR_CACH__MAX_SIZE": "1GiB"}, {})


@given(st.integers(1, 10**6), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400), ("", 1)]))
def test_durations(number: int, unit: tuple[str, float]) -> None:
    """Numbers are seconds; units are what they look like; what is no duration is refused, never guessed."""
    if number * unit[1] <= 10 * 365 * 86400:
        assert parse_duration(f"{number}{unit[0]}") == pytest.approx(number * unit[1])
        assert parse_duration(number) == number
    for wrong in (f"{number}x", f"-{number}s", "", "s", True, None, [number]):
        with pytest.raises(ValueError):
            parse_duration(wrong)


@given(
    st.integers(1, 1000),
    st.sampled_from(
        [("B", 1), ("kB", 1000), ("KiB", 1024), ("MB", 10**6), ("GiB", 2**30), ("G", 10**9), ("TiB", 2**40), ("", 1)]
    ),
)
def test_sizes(number: int, unit: tuple[str, int]) -> None:
    """Decimal and binary units, and plain bytes."""
    assert parse_size(f"{number}{unit[0]}") == number * unit[1]
    assert parse_size(f"{number} {unit[0]}") == number * unit[1]
    for wrong in (f"{number}X", f"-{number}", "", "GiB", True, 0, 1.5):
        with pytest.raises(ValueError):
            parse_size(wrong)


def test_the_admin_token_is_long_enough_and_never_shown(tmp_path: Path) -> None:
    """From the settings or from a file, not from both; a fault about it does not tell it."""
    file = tmp_path / "token"
    file.write_text("a long token, in a file\n")
    assert load(None, {}, {"server": {"admin_token_file": str(file)}}).server.known_token() == "a long token, in a file"
    settings = load(None, {"MIRROR_SERVER__ADMIN_TOKEN": "a long token, plainly"}, {})
    assert settings.server.known_token() == "a long token, plainly"
    assert "plainly" not in repr(settings)
    assert load(None, {}, {}).server.known_token() is None
    (tmp_path / "short").write_text("too-short\n")
    for server, told in (
        ({"admin_token": "too-short"}, "at least 16 characters"),
        ({"admin_token": ""}, "at least 16 characters"),
        ({"admin_token": ["too-short"]}, "server.admin_token"),
        ({"admin_token_file": str(tmp_path / "short")}, "at least 16 characters"),
        ({"admin_token_file": str(tmp_path / "none")}, "cannot be read"),
        ({"admin_token_file": str(file), "admin_token": "too-short but long"}, "exclude each other"),
    ):
        with pytest.raises(ConfigError) as raised:
            load(None, {}, {"server": server})
        assert told in str(raised.value)
        assert "too-short" not in str(raised.value)


@given(st.integers(1, 2**59))
def test_a_size_that_is_shown_can_be_set(size: int) -> None:
    """In three or four digits, never with an exponent, and no further off than they are."""
    shown = format_size(size)
    assert "e" not in shown
    assert abs(parse_size(shown.replace(" ", "")) - size) <= size * 0.01


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[registries.docker.io]\nusername = "u"\n', ["[registries.docker.io] (in {file}): a registry's name needs quotes"]),
        ("[registries.registry.k8s.io]\nendpoints = []\n", ['[registries."registry.k8s.io"]']),
        ("[registries.registry.lan:5000]\n", ["is not TOML", 'needs quotes: [registries."registry.lan:5000"]']),
        (
            '[log]\nlevel = "loud"\n',
            ["log.level (in {file}): 'debug', 'info', 'warning' or 'error' is expected; found 'loud'"],
        ),
        ('[server]\nadmin_token = "too-short"\n', ["server (in {file}): the token of admin_token is too easy to guess"]),
        ('[server]\nadmin_token_file = "/none"\n', ["server.admin_token_file (in {file}): the file /none cannot be read"]),
        ("[cache]\nmax_size = 200\n", ["cache.max_size (in {file})", "is 200GiB meant?"]),
        ('[cache]\nmax_size = "200"\n', ["cache.max_size (in {file})", "is 200GiB meant?"]),
    ],
)
def test_faults_say_where_and_what_to_do(tmp_path: Path, text: str, told: list[str]) -> None:
    """In plain words, with the source that holds the fault, though the same table is on the command line too; secrets stay out."""
    file = tmp_path / "m.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, {}, {"server": {"listen": "127.0.0.1:1"}, "cache": {"dir": "/x"}})
    (fault,) = caught.value.faults
    for expected in told:
        assert expected.format(file=file) in fault
    assert "pattern" not in fault and "too-short" not in fault and "command line" not in fault


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("MIRROR_CACHE_MAX_SIZE", "MIRROR_CACHE__MAX_SIZE"),
        ("MIRROR_MAX_SIZE", "MIRROR_CACHE__MAX_SIZE"),
        ("MIRROR_SERVER_LISTEN", "MIRROR_SERVER__LISTEN"),
        ("MIRROR_SERVICE_HOST", None),
        ("MIRROR_PORT_5000_TCP", None),
    ],
)
def test_a_variable_with_one_underscore_is_not_passed_over_in_silence(variable: str, meant: str | None) -> None:
    """It would be as if it had not been set. What Kubernetes sets for a service named mirror is no setting."""
    if meant is None:
        load(None, {variable: "1"}, {})
        return
    with pytest.raises(ConfigError) as caught:
        load(None, {variable: "1"}, {})
    assert variable in str(caught.value) and meant in str(caught.value)


def test_lists_of_images(tmp_path: Path) -> None:
    """Images with those of the file, each once, as ``mirror pull -f`` reads it; numbered unless named; every six hours, for this machine's platform, by default."""
    file = tmp_path / "names.txt"
    file.write_text("\ufeff# all of them\nredis:7  # one\n\nghcr.io/owner/app@sha256:" + "0" * 64 + "\n", encoding="utf-8")
    tables = [
        {"images": ["redis:7", "nginx"], "file": str(file)},
        {"name": "night", "images": ["redis"], "at": "23:59", "platforms": ["arm64", "linux/arm/v7"]},
        {"images": ["redis"], "every": "90m", "platforms": ["all"]},
    ]
    one, two, three = load(None, {"MIRROR_WARM": json.dumps(tables)}, {}).warm
    assert load(None, {}, {"warm": tables}).warm == (one, two, three)
    assert [image_name(*image) for image in one.read()] == [
        "docker.io/library/redis:7",
        "docker.io/library/nginx:latest",
        "ghcr.io/owner/app@sha256:" + "0" * 64,
    ]
    assert [(warm.name, warm.interval, warm.at) for warm in (one, two, three)] == [
        ("1", 21600.0, None),
        ("night", None, "23:59"),
        ("3", 5400.0, None),
    ]
    assert [warm.wanted for warm in (one, two, three)] == [(this_platform(),), ("linux/arm64", "linux/arm/v7"), None]
    for content, fault in ((b"redis\nno:no:no\n", "line 2: "), (b"\xff\xfe", "not UTF-8"), (None, "No such file")):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(ValueError, match=fault):
            one.read()


def _with_clients(server: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Settings of a registry with ``credentials = "client"``; `more` are further settings of it, or of other registries."""
    others = {name: value for name, value in more.items() if isinstance(value, dict)}
    own = {name: value for name, value in more.items() if name not in others}
    server = {"login_listen": "127.0.0.1:5443"} if server is None else server
    return {"server": server, "registries": {"ghcr.io": {"credentials": "client", **own}, **others}}


def test_clients_with_their_own_credentials() -> None:
    """With https, an address for logging in and nothing else it is taken; so are endpoints and addresses of this machine, as tests have them."""
    for tree in (_with_clients(), _with_clients(endpoints=["http://127.0.0.1:5001"], client_grace="10m")):
        settings = load(None, {}, tree)
        registry = settings.registries["ghcr.io"]
        assert settings.client_registries == {"ghcr.io": registry}
    assert load(None, {}, {}).client_registries == {}
    two = _with_clients(**{"quay.io": {"credentials": "client", "client_hosts": ["quay.lan"]}})
    assert set(load(None, {}, two).client_registries) == {"ghcr.io", "quay.io"}
    assert load(None, {}, _with_clients(server={}, client_hosts=["ghcr.lan"])).client_registries
    behind = {"listen": "0.0.0.0:5000", "login_hosts": ["login.lan"], "trusted_proxies": ["10.0.0.1"]}
    assert load(None, {}, _with_clients(server=behind)).client_registries


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"access": [{"who": ["anyone"]}, {"who": ["alice"], "may": ["push"]}]}, "would never count"),
        ({"access": [{"who": ["@staff"]}]}, "there is no group 'staff'"),
        ({"access": {"who": ["anyone"]}}, "two brackets"),
        ({"access": [{"who": []}]}, "who"),
        ({"access": [{"who": ["token:"]}]}, "names nobody"),
        ({"access": [{"who": ["10.0.0.1/8"]}]}, "range of addresses"),
        ({"access": [{"who": ["anyone"], "may": ["fly"]}]}, "may"),
        ({"access": [{"who": ["anyone"], "repositories": ["a//b"]}]}, "pattern"),
        ({"access": [{"who": ["anyone"], "whom": 1}]}, "who"),
        ({"server": {"trusted_proxies": ["proxy.lan"]}}, "address"),
        ({"server": {"login_listen": "127.0.0.1:0"}}, "a port is expected"),
        (_with_clients(server={}), "set server.login_listen, server.login_hosts or client_hosts"),
        (_with_clients(endpoints=["http://registry.lan:5001"]), "unencrypted: use https"),
        (_with_clients(username="robot", password="secret"), "exclude each other"),
        (_with_clients(server={"listen": "0.0.0.0:5000", "login_listen": "127.0.0.1:5443"}), "server.tls_certificate"),
        (_with_clients(**{"quay.io": {"credentials": "client"}}), "give one of them client_hosts"),
        (
            _with_clients(client_hosts=["a.lan"], **{"quay.io": {"credentials": "client", "client_hosts": ["A.lan"]}}),
            "expected once",
        ),
        (_with_clients(credentials="clients"), "mirror"),
        (_with_clients(client_grace="soon"), "client_grace"),
    ],
)
def test_tables_of_access_that_do_not_mean_what_they_say_are_refused(tree: dict[str, Any], told: str) -> None:
    """Each with what is wrong; nothing is let in, or kept out, by a slip."""
    with pytest.raises(ConfigError) as raised:
        load(None, {}, tree)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    "who",
    [
        "anyone",
        "0.0.0.0/0",
        "128.0.0.0/1",
        "::/0",
        "2000::/3",
        "::ffff:0:0/96",
        "::ffff:0:0/97",
        "@users",
        "10.0.0.0/8",
        "fc00::/7",
        "alice",
    ],
)
@pytest.mark.parametrize("may", ["push", "delete", "pull"])
@pytest.mark.parametrize(
    ("server", "public"),
    [
        ({}, False),
        ({"listen": "localhost:5000"}, False),
        ({"listen": "192.168.1.2:5000"}, False),
        ({"listen": "[fd00::1]:5000"}, False),
        ({"listen": "0.0.0.0:5000"}, True),
        ({"listen": "[::]:5000"}, True),
        ({"listen": "8.8.8.8:5000"}, True),
        ({"listen": "[::ffff:8.8.8.8]:5000"}, True),
        ({"listen": "mirror.example.com:5000"}, True),
        ({"login_listen": "0.0.0.0:5443"}, True),
        ({"trusted_proxies": ["127.0.0.1"]}, True),
        ({"public_url": "http://localhost:5000"}, False),
        ({"public_url": "http://192.168.1.2:5000"}, False),
        ({"public_url": "http://mirror.lan:5000"}, False),
        ({"public_url": "https://mirror.example.com"}, True),
        ({"public_url": "https://8.8.8.8"}, True),
        ({"public_url": "https://[2600::1]"}, True),
    ],
)
def test_a_start_that_would_let_the_whole_internet_push_says_no(server: dict[str, Any], public: bool, may: str, who: str) -> None:
    """With the table that would, for a half of it too, and what to write instead. Without hosted repositories there is nothing to push to."""
    tree = {"server": server, "access": [{"who": ["alice"]}, {"who": [who], "may": ["pull", may]}]}
    hosted = {**tree, "hosted": {"repositories": ["team/**"]}}
    load(None, {}, tree)
    if public and may != "pull" and who not in ("@users", "10.0.0.0/8", "fc00::/7", "alice"):
        with pytest.raises(ConfigError, match=r"table 2 .* the whole Internet: .*@users or 10\.0\.0\.0/8"):
            load(None, {}, hosted)
    else:
        load(None, {}, hosted)


def test_access_can_be_set_in_the_environment() -> None:
    """As JSON, like other lists of tables."""
    settings = load(
        None,
        {"MIRROR_ACCESS": '[{"who": ["anyone"], "repositories": ["library/*"]}]', "MIRROR_GROUPS": '{"staff": ["alice"]}'},
        {},
    )
    assert settings.access is not None
    assert settings.access[0].repositories == ("library/*",)
    assert settings.groups == {"staff": ("alice",)}
    assert load(None, {}, {}).access is None


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("warm", {"images": ["redis:7"]}),
        ("access", {"who": ["anyone"]}),
        ("oidc", {"name": "ci", "issuer": "https://ci.example.com", "audience": "mirror", "claims": {"sub": "repo:acme/app"}}),
        ("guard", {"name": "wait", "images": ["docker.io/*"], "cooldown": "3d"}),
        ("webhook", {"name": "ci", "url": "https://ci.example.com/hook", "events": ["push"]}),
        ("scan", {"name": "trivy", "command": ["trivy", "{layout}"]}),
    ],
)
def test_every_list_of_tables_can_be_set_in_the_environment(name: str, table: dict[str, object]) -> None:
    """As JSON; all of them are known here."""
    lists = {key for key, field in Settings.model_fields.items() if str(field.annotation).startswith("tuple[mirror.")} | {
        "access"
    }
    assert lists == {"warm", "access", "oidc", "guard", "webhook", "scan"}
    loaded = load(None, {f"MIRROR_{name.upper()}": json.dumps([table])}, {})
    assert getattr(loaded, name) == getattr(load(None, {}, {name: [table]}), name)
    assert len(getattr(loaded, name)) == 1
