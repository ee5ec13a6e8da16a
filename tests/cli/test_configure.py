"""``mirror configure``: what is shown, written and taken back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mirror.cli import main
from mirror.clients import CLIENTS

BEFORE = {
    "docker": (b'{"data-root":\t"/x"}', "etc/docker/daemon.json"),
    "containerd": (b'# mine\r\nversion = 2\r\n[plugins."io.containerd.grpc.v1.cri"]\r\n', "etc/containerd/config.toml"),
    "podman": (b'[[registry]]\nlocation = "quay.io"\nblocked = true', "etc/containers/registries.conf.d/mirror.conf"),
    "buildkit": (b"debug=true # x\n\n\n", "etc/buildkit/buildkitd.toml"),
    "k3s": (b'mirrors: {quay.io: {endpoint: ["https://old"]}} # x\n', "etc/rancher/k3s/registries.yaml"),
}


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, ["configure", *arguments], env={"MIRROR_SERVER__LISTEN": None, **environment})


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file with its bytes, every folder with None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("present", [True, False], ids=["present", "absent"])
def test_showing_changes_nothing_writing_does_and_undoing_restores_every_byte(client: str, present: bool, tmp_path: Path) -> None:
    """Files, folders and modes are afterwards what they were; what was shown is what is written; a second write changes nothing."""
    content, name = BEFORE[client]
    if present:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o640)
    before = tree(tmp_path)
    shown = invoke(client, "--root", str(tmp_path))
    assert (shown.exit_code, tree(tmp_path)) == (0, before)
    assert "+" in shown.stdout and "run it again with --write" in shown.stdout
    written = invoke(client, "--root", str(tmp_path), "--write")
    assert written.exit_code == 0, written.output
    assert written.stdout.rpartition("Done")[0] == shown.stdout.rpartition("With these changes")[0]
    assert CLIENTS[client].then in written.stdout
    after = tree(tmp_path)
    assert b"127.0.0.1:5000" in b"".join(data or b"" for data in after.values())
    assert not present or (tmp_path / name).stat().st_mode & 0o777 == 0o640
    assert "already" in invoke(client, "--root", str(tmp_path), "--write").stdout
    assert tree(tmp_path) == after
    undone = invoke(client, "--root", str(tmp_path), "--undo")
    assert (undone.exit_code, tree(tmp_path)) == (0, before)
    assert not present or (tmp_path / name).stat().st_mode & 0o777 == 0o640
    again = invoke(client, "--root", str(tmp_path), "--undo")
    assert again.exit_code == 1
    assert "nothing to undo" in again.stderr


def test_another_mirror_replaces_the_first_and_undoing_still_restores_the_original(tmp_path: Path) -> None:
    """Nobody has to remember to undo before he writes again."""
    file = tmp_path / "daemon.json"
    file.write_text('{"registry-mirrors": ["http://own"]}')
    for mirror in ("http://one:5000", "http://two:5000"):
        assert invoke("docker", "--file", str(file), "--mirror", mirror, "--write").exit_code == 0
    assert json.loads(file.read_text()) == {
        "registry-mirrors": ["http://two:5000", "http://own"],
        "insecure-registries": ["two:5000"],
    }
    assert invoke("docker", "--file", str(file), "--undo").exit_code == 0
    assert tree(tmp_path) == {"daemon.json": b'{"registry-mirrors": ["http://own"]}'}


def test_what_somebody_else_changed_since_is_not_overwritten_by_undoing(tmp_path: Path) -> None:
    """The backup stays for him to compare with."""
    file = tmp_path / "daemon.json"
    file.write_text("{}")
    assert invoke("docker", "--file", str(file), "--write").exit_code == 0
    file.write_text('{"debug": true}')
    result = invoke("docker", "--file", str(file), "--undo")
    assert result.exit_code == 1
    assert "daemon.json.before-mirror" in result.stderr
    assert file.read_text() == '{"debug": true}'
    assert (tmp_path / "daemon.json.before-mirror").read_text() == "{}"


@pytest.mark.parametrize("content", [b'{"a": 1,}', b"[]", b'{"registry-mirrors": "http://x"}', b"\xff"])
def test_a_file_that_cannot_be_read_is_said_and_left_alone(content: bytes, tmp_path: Path) -> None:
    """Exit status 1, the file named, its bytes untouched."""
    file = tmp_path / "daemon.json"
    file.write_bytes(content)
    result = invoke("docker", "--file", str(file), "--write")
    assert result.exit_code == 1
    assert str(file) in result.stderr
    assert tree(tmp_path) == {"daemon.json": content}


def test_one_file_that_cannot_be_merged_keeps_all_from_being_written(tmp_path: Path) -> None:
    """containerd's hosts.toml files are of no use without its config.toml."""
    file = tmp_path / "etc/containerd/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/other"\n')
    before = tree(tmp_path)
    result = invoke("containerd", "--root", str(tmp_path), "--write")
    assert (result.exit_code, tree(tmp_path)) == (1, before)
    assert "/other" in result.stderr


def test_the_settings_say_which_mirror_and_which_registries(tmp_path: Path) -> None:
    """From a file, flags and the environment; an address for all machines is loopback for this one."""
    config = tmp_path / "mirror.toml"
    config.write_text(
        '[server]\nlisten = "0.0.0.0:5555"\n[registries."registry.lan:5001"]\nendpoints = ["https://registry.lan:5001"]\n'
    )
    flags = ("--config", str(config), "--upstream", "second.lan=http://second.lan", "--cache-dir", "/x")
    report = json.loads(invoke("podman", "--root", str(tmp_path), *flags, "--json").stdout)
    assert report["mirrors"] == ["http://127.0.0.1:5555"]
    for registry in ("registry.lan:5001", "second.lan"):
        assert f'location = "127.0.0.1:5555/{registry}"' in report["files"][0]["diff"]
    assert report["done"] is True
    report = json.loads(invoke("docker", "--root", str(tmp_path), "--json", MIRROR_SERVER__LISTEN="[::1]:81").stdout)
    assert report["mirrors"] == ["http://[::1]:81"]


def test_undoing_finds_registries_that_are_no_longer_configured(tmp_path: Path) -> None:
    """A hosts.toml that was written is taken back, whatever the settings say now."""
    config = tmp_path / "mirror.toml"
    config.write_text('[registries."registry.lan:5001"]\nendpoints = ["https://registry.lan:5001"]\n')
    root = tmp_path / "root"
    root.mkdir()
    assert invoke("containerd", "--root", str(root), "--config", str(config), "--write").exit_code == 0
    assert (root / "etc/containerd/certs.d/registry.lan:5001/hosts.toml").exists()
    assert invoke("containerd", "--root", str(root), "--undo").exit_code == 0
    assert tree(root) == {}


def test_secrets_of_the_file_are_not_shown(tmp_path: Path) -> None:
    """They stand beside what changes, and what is printed gets passed on."""
    file = tmp_path / "registries.yaml"
    file.write_text(
        'mirrors:\n  docker.io:\n    endpoint: ["https://old"]\nconfigs:\n  a: {auth: {username: u, password: hunter2}}\n'
    )
    for form in ((), ("--json",)):
        result = invoke("k3s", "--file", str(file), *form)
        assert result.exit_code == 0
        assert "hunter2" not in result.output
    assert invoke("k3s", "--file", str(file), "--write").exit_code == 0
    assert "hunter2" in file.read_text()


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    """Some distributions manage /etc by links."""
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "daemon.json").symlink_to("real.json")
    assert invoke("docker", "--file", str(tmp_path / "daemon.json"), "--write").exit_code == 0
    assert (tmp_path / "daemon.json").is_symlink()
    assert "registry-mirrors" in (tmp_path / "real.json").read_text()
    assert invoke("docker", "--file", str(tmp_path / "daemon.json"), "--undo").exit_code == 0
    assert (tmp_path / "daemon.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "{}"


def test_a_crash_between_record_and_file_can_be_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is not changed yet, what was laid beside it is cleared away."""
    file = tmp_path / "daemon.json"
    file.write_text("{}")
    replace = os.replace

    def crash(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        if Path(target) == file:
            raise OSError(5, "the lights went out")
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    assert invoke("docker", "--file", str(file), "--write").exit_code == 1
    monkeypatch.undo()
    assert file.read_text() == "{}"
    assert invoke("docker", "--file", str(file), "--undo").exit_code == 0
    assert tree(tmp_path) == {"daemon.json": b"{}"}


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nginx",),
        ("docker", "--write", "--undo"),
        ("docker", "--mirror", "mirror.lan"),
        ("containerd", "--file", "/x"),
        ("docker", "--file", "/x", "--root", "/y"),
        ("docker", "--config", "/does/not/exist"),
    ],
)
def test_wrong_use_ends_with_2(arguments: tuple[str, ...]) -> None:
    """And says what was wrong."""
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr


@pytest.mark.parametrize("client", CLIENTS)
def test_a_token_is_written_as_a_secret_path_where_a_client_takes_one(client: str, tmp_path: Path) -> None:
    """Every URL has it, and a second write changes nothing; other clients are told to log in instead; what is no token is refused."""
    token = "mirror_" + "x" * 43
    done = invoke(client, "--root", str(tmp_path), "--write", "--token", token)
    if client not in ("docker", "containerd", "k3s"):
        assert done.exit_code == 2
        assert "log in at the address" in done.stderr
        assert tree(tmp_path) == {}
        return
    assert done.exit_code == 0, done.output
    written = b"".join(data or b"" for name, data in tree(tmp_path).items() if name.endswith((".json", "hosts.toml", ".yaml")))
    urls = written.count(b"http://127.0.0.1:5000")
    assert urls == written.count(f"http://127.0.0.1:5000/t/{token}{'/v2' if client == 'k3s' else ''}".encode()) > 0
    assert "already" in invoke(client, "--root", str(tmp_path), "--write", "--token", token).stdout
    for wrong in ("", "short", "a/b" * 20, "x" * 20 + "\n"):
        assert invoke(client, "--root", str(tmp_path), "--token", wrong).exit_code == 2


def test_a_token_need_not_be_an_argument(tmp_path: Path) -> None:
    """It comes from a file, from standard input or from the environment, and the same is written; two ways at once, or a file that is not there, are refused."""
    token, wanted = "mirror_" + "x" * 43, "127.0.0.1:5000/t/mirror_" + "x" * 43
    (tmp_path / "token").write_text(f"{token}\n")

    def shown(*arguments: str, stdin: str | None = None, **environment: str) -> Result:
        command = ["configure", "docker", "--root", str(tmp_path / "root"), *arguments]
        return CliRunner().invoke(main, command, input=stdin, env={"MIRROR_SERVER__LISTEN": None, **environment})

    file = ("--token-file", str(tmp_path / "token"))
    for result in (shown(*file), shown("--token-stdin", stdin=f"{token}\r\n"), shown(MIRROR_TOKEN=token)):
        assert result.exit_code == 0, result.output
        assert wanted in result.stdout
    # What is said expressly counts.
    assert wanted in shown(*file, MIRROR_TOKEN="mirror_" + "y" * 43).stdout
    for wrong in ((*file, "--token-stdin"), (*file, "--token", token), ("--token-file", str(tmp_path / "nothing"))):
        assert shown(*wrong, stdin=token).exit_code == 2
    assert token not in shown("--token-stdin", stdin=f"{token}/x\n").output


@pytest.mark.parametrize("client", CLIENTS)
def test_several_mirrors_are_written_in_this_machine_s_own_order(client: str, tmp_path: Path) -> None:
    """Two machines of ten differ in it; on one, a second run changes nothing; an image without an id keeps the order that was given; undone as one."""
    urls = [f"http://{name}.lan:5000" for name in "abc"]
    mirrors = [word for url in urls for word in ("--mirror", url)]
    reports = []
    for number in range(10):
        root = tmp_path / str(number)
        (root / "etc").mkdir(parents=True)
        (root / "etc/machine-id").write_text(f"{number:032x}\n")
        report = json.loads(invoke(client, "--root", str(root), *mirrors, "--write", "--json").stdout)
        assert sorted(report["mirrors"]) == urls
        assert "already" in invoke(client, "--root", str(root), *mirrors).stdout
        reports.append(tuple(report["mirrors"]))
        assert invoke(client, "--root", str(root), *mirrors, "--undo").exit_code == 0
        assert tree(root) == {"etc": None, "etc/machine-id": f"{number:032x}\n".encode()}
    assert len(set(reports)) > 1
    (tmp_path / "image/etc").mkdir(parents=True)
    (tmp_path / "image/etc/machine-id").write_text("uninitialized\n")
    assert json.loads(invoke(client, "--root", str(tmp_path / "image"), *mirrors, "--json").stdout)["mirrors"] == urls
