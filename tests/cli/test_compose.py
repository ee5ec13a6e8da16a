"""Images named in Compose files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.config import compose
from mirror.config.compose import images_in
from tests.cli.test_export import checked
from tests.support.commands import Commands
from tests.support.scripted import Scripted


def write(folder: Path, *images: str) -> Path:
    file = folder / "compose.yaml"
    file.write_text("services:\n" + "".join(f"  s{number}:\n    image: {image}\n" for number, image in enumerate(images)))
    return file


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("redis:7", "redis:7"),
        ("${REGISTRY}/app:${TAG}", "ghcr.io/owner/app:2"),
        ("app:$TAG", "app:2"),
        ("app:${NONE:-latest}", "app:latest"),
        ("app:${NONE-latest}", "app:latest"),
        ("app:${EMPTY:-1}", "app:1"),
        ("app${EMPTY-x}:1", "app:1"),
        ("app:${TAG:?needed}", "app:2"),
        ("app:1${TAG:+-slim}", "app:1-slim"),
        ("app:${QUOTED}", "app:3"),
    ],
)
def test_variables_have_the_values_that_compose_gives_them(
    image: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the environment, then from .env beside the file, then the default."""
    monkeypatch.setenv("TAG", "2")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NONE", raising=False)
    (tmp_path / ".env").write_text("# comment\nREGISTRY=ghcr.io/owner # the lab's\nTAG=1\nexport QUOTED='3'\n")
    assert images_in(write(tmp_path, image, image)) == [expected]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("services:\n  web:\n    image: app:${NOWHERE_SET}\n", "services.web.image: the variable NOWHERE_SET is not set"),
        ("services:\n  web:\n    image: app:${NOWHERE_SET:?which}\n", "is not set: which"),
        ("services:\n  web:\n    image: app:$\n", "begins no variable"),
        ("services:\n  web:\n    image: App\n", "services.web.image: 'library/App'|services.web.image: 'App'"),
        ("services: [", "not YAML"),
        ("version: 3", "it has no services"),
        ("", "it has no services"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, words: str, tmp_path: Path) -> None:
    """The file, the service, the variable."""
    file = tmp_path / "compose.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        images_in(file)
    assert str(file) in str(error.value)


async def test_export_and_pull_take_a_compose_file(upstream: Scripted, tmp_path: Path) -> None:
    """Its services' images, each once, without those that are built."""
    for name in ("one", "two"):
        upstream.add_image(f"library/{name}", "1")
    file = tmp_path / "compose.yaml"
    file.write_text(
        "services:\n  a: {image: one:1}\n  b: {image: 'two:1'}\n  c: {image: one:1}\n  d: {image: own, build: .}\n  e: {build: .}\n"
    )
    commands = Commands(tmp_path / "cache", upstream)
    assert "2 images: 2 fetched" in await commands("pull", "--compose", str(file), "--platform", "linux/amd64")
    await commands("export", "--compose", str(file), "--offline", "--platform", "linux/amd64", "-o", str(tmp_path / "lab.tar"))
    _, described = checked(tmp_path / "lab.tar")
    assert [image["name"] for image in described["images"]] == ["docker.io/library/one:1", "docker.io/library/two:1"]


def test_a_file_that_is_too_large_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not cut off, so that no image is left out without a word: one character more than allowed is refused, by the file's name."""
    file = write(tmp_path, "redis:7", "postgres:16")
    monkeypatch.setattr(compose, "_LARGEST", len(file.read_text()))
    assert images_in(file) == ["redis:7", "postgres:16"]
    monkeypatch.setattr(compose, "_LARGEST", len(file.read_text()) - 1)
    with pytest.raises(ValueError, match=f"{file} cannot be read: it has more than {len(file.read_text()) - 1} bytes"):
        images_in(file)
