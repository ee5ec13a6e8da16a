"""Docker's several ways of being installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.clients import CLIENTS, Address
from mirror.clients.docker import installed_here

LAN = Address.parse("http://mirror.lan:5000")


@pytest.mark.parametrize(
    ("present", "uid", "path", "then"),
    [
        ((), 0, "/etc/docker/daemon.json", "systemctl reload docker"),
        ((), 1000, "/etc/docker/daemon.json", "systemctl reload docker"),
        (("run/user/1000/docker.sock",), 1000, "/home/u/.config/docker/daemon.json", "systemctl --user reload docker"),
        (
            ("home/u/.config/systemd/user/docker.service",),
            1000,
            "/home/u/.config/docker/daemon.json",
            "systemctl --user reload docker",
        ),
        (("run/user/1000/docker.sock",), 0, "/etc/docker/daemon.json", "systemctl reload docker"),
        (("var/snap/docker/current/x",), 0, "/var/snap/docker/current/config/daemon.json", "snap restart docker"),
        (("var/snap/docker/current/x", "usr/bin/dockerd"), 0, "/etc/docker/daemon.json", "systemctl reload docker"),
        (("home/u/.docker/desktop/x",), 1000, "/home/u/.docker/daemon.json", "restart Docker Desktop"),
    ],
)
def test_each_installation_has_its_own_file_and_command(
    present: tuple[str, ...], uid: int, path: str, then: str, tmp_path: Path
) -> None:
    """By what is on the disk and who asks; root's own Docker is never a user's rootless one."""
    for name in present:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    client = installed_here(tmp_path, tmp_path / "home/u", uid)
    (file,) = client.plan([LAN], ["docker.io"])
    assert (file.path, client.then) == (path, then)
    assert "mirror.lan" in file.text
    assert client.next_step().startswith(f"Now: {then}")
    if "Desktop" in client.title:
        assert "host.docker.internal" in client.next_step()


def test_what_is_said_afterwards_is_true_for_each_client() -> None:
    """A reload leaves the mirror in a running dockerd; cri-o is a matter of podman's files alone; not every machine has systemd."""
    docker = CLIENTS["docker"]
    assert docker.next_step(undone=True).startswith("Now: systemctl restart docker.")
    assert '"registry-mirrors": []' in docker.next_step(undone=True)
    assert "kill -HUP $(cat /var/run/docker.pid)" in docker.next_step()
    for name, client in CLIENTS.items():
        for undone in (False, True):
            assert ("crio" in client.next_step(undone)) == (name == "podman")
    assert CLIENTS["containerd"].next_step() == CLIENTS["containerd"].next_step(undone=True)


def test_a_machine_without_systemd_gets_no_systemctl() -> None:
    """The command that works there, or what to do by hand; where the machine is not known, both."""
    for client in CLIENTS.values():
        for undone in (False, True):
            assert "systemctl re" not in client.command(undone, systemd=False), client.name
    docker, containerd = CLIENTS["docker"], CLIENTS["containerd"]
    assert docker.command(systemd=False) == "kill -HUP $(cat /var/run/docker.pid)"
    assert docker.command(undone=True, systemd=False) == "restart docker (by hand: systemd does not run here)"
    assert containerd.next_step(systemd=False) == "Now: restart containerd (by hand: systemd does not run here)."
    assert "systemctl reload docker (without systemd: kill -HUP" in docker.next_step()
    assert "without systemd" not in docker.next_step(systemd=True)
