"""What is to be in each client's files, whatever is there before."""

from __future__ import annotations

import json
import tomllib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from mirror.clients import CLIENTS, Address, Conflict, File, in_order_for

LAN = Address.parse("http://mirror.lan:5000")


def files(client: str, address: Address = LAN, registries: tuple[str, ...] = ("docker.io", "ghcr.io")) -> dict[str, File]:
    return {file.path: file for file in CLIENTS[client].plan([address], registries)}


def only(client: str, address: Address = LAN) -> File:
    (file,) = files(client, address).values()
    return file


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:5000", "http://mirror.lan:5000", "https://mirror.example", "http://[::1]:5000"]
)
def test_a_text_that_names_the_mirror_is_left_as_it_is(client: str, url: str) -> None:
    """What is made of nothing ends in a newline, names the mirror, and is not changed a second time."""
    address = Address.parse(url)
    for file in CLIENTS[client].plan([address], ["docker.io", "registry.lan:5001"]):
        assert file.text.endswith("\n")
        assert file.merge(file.text) == file.text
        assert address.authority in file.text or file.path.endswith("config.toml")


def test_docker_keeps_other_keys_and_other_mirrors_behind_ours() -> None:
    """And the file's indentation; no http host is trusted by name but ours."""
    before = '{\n    "data-root": "/x",\n    "registry-mirrors": ["http://other"],\n    "insecure-registries": ["a:1"]\n}'
    after = only("docker").merge(before)
    assert json.loads(after) == {
        "data-root": "/x",
        "registry-mirrors": ["http://mirror.lan:5000", "http://other"],
        "insecure-registries": ["a:1", "mirror.lan:5000"],
    }
    assert after.startswith('{\n    "data-root"')


@pytest.mark.parametrize("url", ["http://127.0.0.1:5000", "http://localhost:5000", "https://mirror.lan"])
def test_docker_needs_no_insecure_registry_for_loopback_and_tls(url: str) -> None:
    """dockerd trusts 127.0.0.0/8 anyway."""
    assert json.loads(only("docker", Address.parse(url)).text) == {"registry-mirrors": [url]}


def test_a_slash_at_the_end_is_the_same_mirror_to_docker() -> None:
    """dockerd itself adds one."""
    text = '{"registry-mirrors": ["http://127.0.0.1:5000/"]}'
    assert only("docker", Address.parse("http://127.0.0.1:5000")).merge(text) == text


def test_containerd_asks_the_mirror_before_the_hosts_that_were_there() -> None:
    """hosts.toml is asked in its order; comments and the `server` stay."""
    before = '# mine\nserver = "https://ghcr.io"\n\n[host."https://old"]\n  capabilities = ["pull"] # why\n'
    after = files("containerd")["/etc/containerd/certs.d/ghcr.io/hosts.toml"].merge(before)
    assert list(tomllib.loads(after)["host"]) == ["http://mirror.lan:5000", "https://old"]
    assert tomllib.loads(after)["server"] == "https://ghcr.io"
    assert "# mine" in after and "# why" in after


@pytest.mark.parametrize(
    ("before", "plugin"),
    [
        ("", "io.containerd.grpc.v1.cri"),
        ("version = 2\n", "io.containerd.grpc.v1.cri"),
        ('version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = ""\n', "io.containerd.grpc.v1.cri"),
        ("version = 3\n", "io.containerd.cri.v1.images"),
        (
            "version = 3\n[plugins]\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'x' # keep\n",
            "io.containerd.cri.v1.images",
        ),
    ],
)
def test_containerd_is_told_the_folder_in_both_versions_of_its_settings(before: str, plugin: str) -> None:
    """config_path stands under the plugin that the file's version knows, and what was there stays."""
    after = files("containerd")["/etc/containerd/config.toml"].merge(before)
    assert tomllib.loads(after)["plugins"][plugin]["registry"] == {"config_path": "/etc/containerd/certs.d"}
    assert ("# keep" in before) == ("# keep" in after)


@pytest.mark.parametrize(
    ("before", "advice"),
    [
        ('root = "/x"\n', "version"),
        ('version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/other"\n', "/other"),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\nendpoint = ["x"]\n',
            "registry.mirrors",
        ),
        ("version = 2\nplugins = 3\n", "expects"),
        ("version = ", "TOML"),
    ],
)
def test_containerds_settings_that_exclude_a_folder_are_said_not_broken(before: str, advice: str) -> None:
    """containerd would not start, or would not look there: the message says what to change."""
    with pytest.raises(Conflict, match=advice):
        files("containerd")["/etc/containerd/config.toml"].merge(before)


@pytest.mark.parametrize(
    "before",
    [
        'disabled_plugins = ["cri"]\n',
        'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/x:/etc/containerd/certs.d"\n',
    ],
)
def test_containerds_settings_are_left_alone_where_nothing_is_to_do(before: str) -> None:
    """Without CRI nobody reads config_path; a list that has the folder has it."""
    assert files("containerd")["/etc/containerd/config.toml"].merge(before) == before


def test_podman_asks_the_mirror_before_mirrors_that_were_there() -> None:
    """Known registries get a mirror more, unknown ones an entry; every entry keeps its other keys."""
    before = '[[registry]]\nprefix = "docker.io"\nlocation = "registry-1.docker.io"\n[[registry.mirror]]\nlocation = "old" # x\n'
    after = only("podman").merge(before)
    first, second = tomllib.loads(after)["registry"]
    ours = [{"location": f"mirror.lan:5000/{name}", "insecure": True} for name in ("docker.io", "ghcr.io")]
    assert first == {"prefix": "docker.io", "location": "registry-1.docker.io", "mirror": [ours[0], {"location": "old"}]}
    assert second == {"location": "ghcr.io", "mirror": [ours[1]]}
    assert "# x" in after
    assert "insecure" not in only("podman", Address.parse("https://mirror.lan")).text


def test_buildkit_keeps_workers_and_other_mirrors() -> None:
    """Ours first; http is said once, for the mirror's own name."""
    before = 'debug = true\n[registry."docker.io"]\n  mirrors = ["old"] # x\n[worker.oci]\n  enabled = false\n'
    after = only("buildkit").merge(before)
    assert tomllib.loads(after) == {
        "debug": True,
        "registry": {
            "docker.io": {"mirrors": ["mirror.lan:5000", "old"]},
            "ghcr.io": {"mirrors": ["mirror.lan:5000"]},
            "mirror.lan:5000": {"http": True},
        },
        "worker": {"oci": {"enabled": False}},
    }
    assert "# x" in after


@pytest.mark.parametrize(
    "before",
    [
        "# mine\n",
        "mirrors:\n",
        'mirrors:\n  docker.io: # mine\n    endpoint:\n    - "https://old"\nconfigs:\n  old: {auth: {username: u}}\n',
    ],
)
def test_k3s_keeps_comments_credentials_and_other_endpoints(before: str) -> None:
    """Ours first."""
    after = only("k3s").merge(before)
    old, new = (YAML(typ="safe", pure=True).load(text) or {} for text in (before, after))
    endpoints = [table["endpoint"] for table in new["mirrors"].values()]
    assert [endpoint[0] for endpoint in endpoints] == ["http://mirror.lan:5000"] * 2
    assert endpoints[0][1:] == (["https://old"] if "old" in before else [])
    assert new.get("configs") == old.get("configs")
    assert ("# mine" in before) == ("# mine" in after)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[",
        "- a",
        "3",
        '"x',
        "a: b: c",
        "\x00",
        "mirrors: 3",
        '{"registry-mirrors": "x"}',
        "registry = 3",
        "host = 1\nversion = 3\nplugins = 1",
        "&a [*a]",
    ],
)
def test_a_file_that_cannot_be_merged_with_is_said_to_be_one(client: str, text: str) -> None:
    """Conflict, or a text that is stable: nothing else ever comes out of a merge."""
    stable(client, text)


@given(st.sampled_from(list(CLIENTS)), st.text(max_size=60) | st.text(alphabet='{}[]":=,.#\n ab1-&*', max_size=60))
def test_no_text_breaks_a_merge(client: str, text: str) -> None:
    """As above, for any text at all."""
    stable(client, text)


def stable(client: str, text: str) -> None:
    for file in files(client).values():
        try:
            merged = file.merge(text)
        except Conflict:
            continue
        assert file.merge(merged) == merged


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mirror.lan:5000",
        "ftp://x",
        "http://",
        "http://u:p@x",
        "http://x/path",
        "http://x?q",
        "http://x:99999",
        "http://a b",
        'http://x"y',
        "http://[::1",
    ],
)
def test_an_address_is_a_scheme_and_a_host(url: str) -> None:
    """What stands in files that other programs read is checked first."""
    with pytest.raises(ValueError, match="expected"):
        Address.parse(url)


FLEET = [Address.parse(f"http://{name}.lan:5000") for name in "abc"]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("before", [[], FLEET[2:], FLEET[:1], [*reversed(FLEET)]], ids=["none", "last", "first", "reversed"])
def test_several_mirrors_are_named_in_their_order(client: str, before: list[Address]) -> None:
    """Whichever of them the file named already, and in which order; a second time changes nothing."""
    for present, wanted in zip(
        CLIENTS[client].plan(before, ["docker.io", "ghcr.io"])
        if before
        else CLIENTS[client].plan(FLEET, ["docker.io", "ghcr.io"]),
        CLIENTS[client].plan(FLEET, ["docker.io", "ghcr.io"]),
        strict=True,
    ):
        after = wanted.merge(present.text if before else "")
        assert wanted.merge(after) == after
        if not wanted.path.endswith("config.toml"):
            places = [after.index(address.authority) for address in FLEET]
            assert places == sorted(places), after
            assert "&" not in after


def test_podman_keeps_what_its_table_says_of_a_mirror_that_moves_to_the_front() -> None:
    """Keys of the user's own, such as pull-from-mirror, move with it."""
    before = (
        '[[registry]]\nlocation = "docker.io"\n[[registry.mirror]]\nlocation = "other.lan"\n'
        '[[registry.mirror]]\nlocation = "mirror.lan:5000/docker.io"\ninsecure = true\npull-from-mirror = "digest-only"\n'
    )
    (file,) = CLIENTS["podman"].plan([LAN], ["docker.io"])
    (table,) = tomllib.loads(file.merge(before))["registry"]
    assert [mirror["location"] for mirror in table["mirror"]] == ["mirror.lan:5000/docker.io", "other.lan"]
    assert table["mirror"][0]["pull-from-mirror"] == "digest-only"


@given(st.text(min_size=1), st.permutations(FLEET))
def test_machines_ask_equal_mirrors_in_orders_of_their_own(machine: str, given_order: list[Address]) -> None:
    """The order depends on the machine only; a mirror that is taken away moves no other; each is named once."""
    order = in_order_for(machine, given_order)
    assert order == in_order_for(machine, [*FLEET, *FLEET])
    assert in_order_for(machine, [one for one in given_order if one != order[0]]) == order[1:]
    assert in_order_for("", given_order) == given_order


def test_machines_spread_over_equal_mirrors() -> None:
    """Of 600 machines each of the six orders has some, so those of a mirror that is down go to both others."""
    orders = Counter(tuple(address.authority for address in in_order_for(f"machine-{n}", FLEET)) for n in range(600))
    assert len(orders) == 6
    assert min(orders.values()) > 60
