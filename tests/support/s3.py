"""A real S3 server, versitygw, with one bucket in a folder."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from mirror.names import Digest
from mirror.upstream.objects import blob_key, manifest_key
from tests.support.ports import free_port
from tests.support.programs import Program, answers, require

KEY, SECRET = "mirror-key", "mirror-secret-of-the-bucket"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}


class S3:
    """Runs from its beginning on."""

    def __init__(self, folder: Path) -> None:
        require("versitygw")
        self._folder = folder
        self.objects = folder / "data" / "images"
        self.objects.mkdir(parents=True)
        self.port = free_port()
        self.url = ""
        self._program: Program | None = None
        self.start()

    @property
    def settings(self) -> dict[str, Any]:
        """The table `fleet` of a mirror with this bucket."""
        return {"bucket": "s3://images", "bucket_endpoint": self.url}

    def start(self, *options: str) -> None:
        """With options of versitygw, such as ``--readonly``."""
        self.url = f"{'https' if '--cert' in options else 'http'}://127.0.0.1:{self.port}"
        command = ["versitygw", *options, "--port", f"127.0.0.1:{self.port}", "posix", str(self._folder / "data")]
        environment = {"ROOT_ACCESS_KEY_ID": KEY, "ROOT_SECRET_ACCESS_KEY": SECRET}
        self._program = Program(command, self._folder / "versitygw.log", environment)
        self._program.wait_until(lambda: answers(f"{self.url}/"))

    def signal(self, number: signal.Signals) -> None:
        """Returns once it has that effect."""
        assert self._program is not None
        os.killpg(self._program.pid, number)
        effects = {signal.SIGSTOP: os.WSTOPPED, signal.SIGKILL: os.WEXITED}
        if number in effects:
            os.waitid(os.P_PID, self._program.pid, effects[number] | os.WNOWAIT)

    def stop(self) -> None:
        """SIGKILL, also of one that SIGSTOP has stopped."""
        if self._program is not None:
            self.signal(signal.SIGKILL)
            self._program.stop()
            self._program = None

    def blob(self, digest: Digest) -> Path:
        return self.objects / blob_key(digest)

    def manifest(self, digest: Digest) -> Path:
        return self.objects / manifest_key(digest)

    def tag(self, repository: str, tag: str) -> dict[str, Any] | None:
        """What it has for a tag of docker.io; None if nothing."""
        path = self.objects / "tags" / "docker.io" / repository / f"{tag}.json"
        found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        return found

    def requests(self, method: str, fragment: str = "") -> int:
        """How many requests it has got, by its log."""
        lines = (self._folder / "versitygw.log").read_text(errors="replace").splitlines()
        return sum(f"| {method} " in line.replace("\t", " ") and fragment in line for line in lines)
