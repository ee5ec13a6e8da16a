"""Images named in Kubernetes manifests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mirror.config.kubernetes import images_in_manifests
from tests.cli.test_export import checked
from tests.support.commands import Commands
from tests.support.scripted import Scripted

POD = """
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  initContainers:
  - {name: first, image: "app:init"}
  containers:
  - name: main
    image: app:1
  - name: again
    image: app:1
  ephemeralContainers:
  - {name: debug, image: app:debug}
  volumes:
  - name: model
    image: {reference: "app:volume", pullPolicy: IfNotPresent}
  - name: other
    emptyDir: {}
---
---
apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec: {containers: [{name: web, image: "ghcr.io/owner/web@sha256:%s"}]}
---
apiVersion: batch/v1
kind: CronJob
spec:
  jobTemplate:
    spec:
      template:
        spec:
          containers: [{name: job, image: "registry.lan:5000/job:2"}]
---
apiVersion: v1
kind: ConfigMap
data: {image: "not-an-image", config.yaml: "containers: [{image: neither}]"}
""" % ("0" * 64)


def test_every_kind_of_container_in_every_document(tmp_path: Path) -> None:
    """Pods, templates of Pods at any depth, init and ephemeral containers, image volumes; each image once, nothing else that is called image."""
    file = tmp_path / "all.yaml"
    file.write_text(POD)
    assert images_in_manifests(file) == [
        "app:init",
        "app:1",
        "app:debug",
        "app:volume",
        f"ghcr.io/owner/web@sha256:{'0' * 64}",
        "registry.lan:5000/job:2",
    ]


def test_folders_lists_and_json(tmp_path: Path) -> None:
    """A folder is read with all below it; ``kubectl get -o json`` writes a List; a container without an image counts for nothing."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "b.yml").write_text("spec: {containers: [{image: 'b:1'}, {name: none}, text]}")
    pod = {"kind": "Pod", "spec": {"containers": [{"image": "a:1"}]}}
    (tmp_path / "a.json").write_text(
        json.dumps({"kind": "List", "items": [pod, {"kind": "Service", "spec": {"containers": None}}]})
    )
    (tmp_path / "README.md").write_text("containers: [{image: 'c:1'}]")
    (tmp_path / "kustomization.yaml").write_text("resources: [a.json]\n")
    assert images_in_manifests(tmp_path) == ["a:1", "b:1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("containers: [", "all.yaml: not YAML"),
        ("containers: [{image: {{ .Values.image }}}]\n--- {", "helm template"),
        ("containers: [{image: App}]", "all.yaml, document 1: "),
        ("a: 1\n---\ncontainers: [{image: 'app:$TAG'}]", "all.yaml, document 2: "),
        ("kind: Service", "no container is in it"),
        ("", "no container is in it"),
        ("a: !!python/object:os.system {}", "not YAML"),
        ("a: " + "[" * 5000, "not YAML"),
        ("x: &a [1, *b]", "not YAML"),
        ("x: 2001-99-99", "not YAML"),
        ("a: &a {self: *a, containers: [{image: 'App'}]}", "document 1: "),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, words: str, tmp_path: Path) -> None:
    """The file and the document; YAML that would make objects, is nested without end or contains itself is no exception."""
    file = tmp_path / "all.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as raised:
        images_in_manifests(file)
    assert words in str(raised.value)


def test_aliases_do_not_multiply(tmp_path: Path) -> None:
    """Ten to the ninth nodes in a kilobyte (a "billion laughs") are read as the hundred that they are."""
    lines = ["a0: &a0 {containers: [{image: 'app:1'}]}"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 10)]
    file = tmp_path / "all.yaml"
    file.write_text("\n".join(lines))
    assert images_in_manifests(file) == ["app:1"]


def test_a_place_without_manifests(tmp_path: Path) -> None:
    """A missing file and an empty folder are errors with their name."""
    for place, words in ((tmp_path / "none.yaml", "cannot be read"), (tmp_path, "no .yaml")):
        with pytest.raises(ValueError, match=words):
            images_in_manifests(place)


async def test_pull_and_export_take_them(upstream: Scripted, tmp_path: Path) -> None:
    """``--kubernetes``: each image is fetched once, and is once in the bundle."""
    image = upstream.add_image("library/app", "1")
    (tmp_path / "k8s").mkdir()
    (tmp_path / "k8s" / "pod.yaml").write_text("kind: Pod\nspec: {containers: [{image: 'app:1'}, {image: 'app:1'}]}")
    commands = Commands(tmp_path / "cache", upstream)
    done = await commands.run("pull", "--kubernetes", str(tmp_path / "k8s"), "--all-platforms")
    assert done.returncode == 0, done.stderr
    assert "1 image: 1 fetched" in done.stdout
    for digest in (*image.layers, image.config):
        assert upstream.count("GET", f"/blobs/{digest}") == 1
    assert (await commands.run("pull")).returncode == 2
    await commands("export", "--kubernetes", str(tmp_path / "k8s"), "--offline", "-o", str(tmp_path / "lab.tar"))
    assert [one["name"] for one in checked(tmp_path / "lab.tar")[1]["images"]] == ["docker.io/library/app:1"]
