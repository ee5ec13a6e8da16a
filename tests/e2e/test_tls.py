"""A real client over TLS, which trusts the authority that signed the mirror's certificate, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.test_podman import policy
from tests.support.certificates import Authority
from tests.support.images import make_image, push
from tests.support.mirrors import MirrorProcess
from tests.support.programs import DockerRegistry, require, run


@pytest.mark.parametrize("workers", ["1", "2"])
def test_skopeo_pulls_over_tls(tmp_path: Path, workers: str) -> None:
    """Every byte, cold and warm, from one process and from two workers; upstream sees each blob once. Without the authority's certificate it refuses."""
    require("skopeo")
    authority = Authority(tmp_path / "tls")
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    shutil.copy(authority.ca, trusted)
    registry = DockerRegistry(tmp_path / "registry")
    image = make_image(1, layers=6, size=3_000_000)
    push(registry.url, "library/app", "latest", image)
    tls = {"SERVER__TLS_CERTIFICATE": str(authority.certificate), "SERVER__TLS_KEY": str(authority.key)}
    with MirrorProcess(tmp_path / "cache", {"docker.io": registry.url}, SERVER__WORKERS=workers, **tls) as mirror:
        source = f"docker://{mirror.url.removeprefix('https://')}/library/app:latest"
        skopeo = ["skopeo", "--policy", str(policy(tmp_path)), "copy", "--preserve-digests"]
        with pytest.raises(AssertionError, match="certificate signed by unknown authority"):
            run(*skopeo, source, f"dir:{tmp_path / 'copy'}")
        for _ in ("cold", "warm"):
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            run(*skopeo, "--src-cert-dir", str(trusted), source, f"dir:{tmp_path / 'copy'}")
            for digest, data in image.blobs.items():
                assert (tmp_path / "copy" / digest.removeprefix("sha256:")).read_bytes() == data
            assert (tmp_path / "copy" / "manifest.json").read_bytes() == image.manifests[-1][1]
        for digest in image.blobs:
            assert registry.asked("GET", f"/blobs/{digest}") == 1
        assert "Traceback" not in mirror.log
        assert mirror.terminate() == 0
    registry.stop()
