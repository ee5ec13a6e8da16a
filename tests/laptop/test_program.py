"""The program that `mirror export --laptop` writes: one file, for whatever Python there is."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.bundles.laptop import MARK, companions
from mirror.laptop.__main__ import _own_address, _url
from tests.laptop.conftest import Made, manifest
from tests.support.patience import PATIENCE
from tests.support.programs import require, run
from tests.test_structure import ROOT, imported

SOURCES = sorted((ROOT / "laptop").glob("*.py"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is on a stick: the program, and a bundle with one image."""
    made = Made()
    body, blobs = manifest([b"layer"])
    made.image("docker.io/library/app:1", body, *blobs)
    made.write(tmp_path / "lab.tar")
    for companion in companions():
        (tmp_path / companion.name).write_bytes(companion.content)
    return tmp_path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_it_is_python_3_8_and_the_standard_library(path: Path) -> None:
    """By its grammar, and by what it imports."""
    text = path.read_text()
    ast.parse(text, feature_version=(3, 8))
    names = {name.split(".")[0] for name in imported(path)}
    assert names <= {*sys.stdlib_module_names, "mirror"}
    assert "from __future__ import annotations" in text or path.name == "__init__.py"


def test_every_file_is_marked_as_its_own_and_always_the_same() -> None:
    """No time, no order of a folder, no version of zlib is in them."""
    assert companions() == companions()
    for companion in companions():
        assert MARK in companion.content
    by_name = {companion.name: companion for companion in companions()}
    assert b"\r\n" in by_name["start.bat"].content and b"\n" not in by_name["start.bat"].content.replace(b"\r\n", b"")
    assert [by_name[name].mode for name in ("start.sh", "start.command", "mirror.pyz")] == [0o755] * 3


def test_the_archive_holds_the_package_and_nothing_of_the_machine(folder: Path) -> None:
    """Members in a fixed order, of 1980, not compressed."""
    with zipfile.ZipFile(folder / "mirror.pyz") as archive:
        assert archive.namelist() == ["__main__.py", "mirror/__init__.py", *(f"mirror/laptop/{path.name}" for path in SOURCES)]
        for member in archive.infolist():
            assert (member.date_time, member.compress_type) == ((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED)


def test_the_start_scripts_are_sound(folder: Path) -> None:
    """By shellcheck; where no Python is found, they say what is needed."""
    require("shellcheck")
    run("shellcheck", str(folder / "start.sh"))
    done = subprocess.run(
        ["/bin/sh", "start.sh"], cwd=folder, env={"PATH": "/nowhere"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Python 3.8 or newer is needed, and was not found: install python3.\n"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_a_port_that_is_taken_is_said(folder: Path, taken: int) -> None:
    """With what to do, and status 1."""
    command = [sys.executable, "-I", str(folder / "mirror.pyz"), "--host", "127.0.0.1", "--port", str(taken)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1, port {taken}: Address already in use: choose another with --port" in done.stderr


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:5001/"),
        ("::1", "http://[::1]:5001/"),
        ("lab.lan", "http://lab.lan:5001/"),
        ("", None),
        ("0.0.0.0", None),
        ("::", None),
    ],
)
def test_the_address_that_is_printed_is_one_that_it_listens_on(host: str, url: str | None) -> None:
    """That of --host; this machine's where it listens on all."""
    assert _url(host, 5001) == (url or f"http://{_own_address()}:5001/")


def test_control_characters_of_a_bundle_do_not_reach_the_terminal(folder: Path) -> None:
    """A file's name may hold any."""
    os.rename(folder / "lab.tar", folder / "a\x1b[2Jb.tar")
    with open(folder / "a\x1b[2Jb.tar", "r+b") as file:
        file.truncate(2000)
    done = subprocess.run(
        [sys.executable, "-I", str(folder / "mirror.pyz")], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert "a\\x1b[2Jb.tar" in done.stderr and "\x1b" not in done.stderr
