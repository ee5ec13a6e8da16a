"""Settings of a registry, and the registries that are known without any."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from mirror.config.tables import Duration, Rate, readable
from mirror.config.ways import WayOut
from mirror.names import is_repository_path
from mirror.regular_files import LARGEST_SECRET, read_file
from mirror.units import parse_endpoint

DEFAULT_REGISTRY = "docker.io"
"""The registry of names without one: dockerd uses ``registry-mirrors`` for docker.io only."""
ALIASES = dict.fromkeys(
    ("index.docker.io", "registry-1.docker.io", "registry.docker.io", "registry.hub.docker.com", "hub.docker.com"), "docker.io"
)
"""Other names of registries."""

DEFAULT_ENDPOINTS = {
    "docker.io": "https://registry-1.docker.io",
    "ghcr.io": "https://ghcr.io",
    "quay.io": "https://quay.io",
    "registry.k8s.io": "https://registry.k8s.io",
    "gcr.io": "https://gcr.io",
    "mcr.microsoft.com": "https://mcr.microsoft.com",
    "public.ecr.aws": "https://public.ecr.aws",
}

DEFAULT_SEARCH = {"docker.io": "https://index.docker.io/v1/search"}
DEFAULT_TAG_DETAILS = {"docker.io": "https://hub.docker.com/v2/repositories"}

KNOWN_ENDPOINTS = {
    name: f"https://{name}"
    for name in (
        "asia.gcr.io",
        "cgr.dev",
        "code.forgejo.org",
        "codeberg.org",
        "container-registry.oracle.com",
        "data.forgejo.org",
        "docker.elastic.co",
        "docker.n8n.io",
        "docker.redpanda.com",
        "eu.gcr.io",
        "gitea.com",
        "hf.co",
        "icr.io",
        "lscr.io",
        "nvcr.io",
        "registry.access.redhat.com",
        "registry.fedoraproject.org",
        "registry.gitlab.com",
        "registry.ollama.ai",
        "registry.opensuse.org",
        "registry.redhat.io",
        "registry.suse.com",
        "us.gcr.io",
        "us-docker.pkg.dev",
    )
}
"""Other public registries and their URLs: they are mirrored without a table if `upstream.registries` is ``known``. No other host is asked because a client names it."""


class Endpoint(WayOut):
    url: str = Field(description="its URL, without /v2")
    path: str = Field(
        "",
        description="put before each repository's name, such as `dockerhub` for a project of Harbor that mirrors Docker Hub",
    )

    @model_validator(mode="before")
    @classmethod
    def _table(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"url": value}
        if isinstance(value, Mapping) and "url" not in value:
            raise ValueError('a table with the setting url is expected: { url = "https://…" }')
        if not isinstance(value, Mapping | cls):
            raise ValueError('a URL or a table is expected: "https://…" or { url = "https://…", path = "dockerhub" }')
        return value

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        url = parse_endpoint(value)
        path = f"{urlsplit(url).path}/"
        if path.startswith("/v2/") or path.endswith("/v2/"):
            raise ValueError(
                'a URL without /v2 is expected; what follows it is the setting path: { url = "https://…", path = "dockerhub" }'
            )
        return url

    @field_validator("path")
    @classmethod
    def _path(cls, value: str) -> str:
        path = value.strip("/")
        if path and not is_repository_path(path):
            raise ValueError('the beginning of a repository\'s name is expected, such as "dockerhub" or "team/dockerhub"')
        if f"{path}/".startswith("v2/"):
            raise ValueError("a path without v2/ is expected: it is put in front of it")
        return path

    def __str__(self) -> str:
        way = f" (proxy {self.proxy})" if self.proxy else ""
        return f"{self.url}/v2/{self.path}{way}" if self.path else f"{self.url}{way}"

    def place(self, inherited: str | None) -> tuple[object, ...]:
        """Returns what is the same for two spellings of one endpoint; `inherited` is the proxy of one that names none."""
        url = urlsplit(self.url)
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        return url.scheme, url.hostname, port, url.path, self.path, self.proxy or inherited


def check_different(endpoints: Sequence[Endpoint], inherited: str | None) -> None:
    """Raises ValueError if an endpoint is listed twice; `inherited` is the proxy of those that name none."""
    places = [endpoint.place(inherited) for endpoint in endpoints]
    for number, endpoint in enumerate(endpoints):
        if places[number] in places[:number]:
            raise ValueError(
                f"each endpoint is expected once: {endpoint} is listed again; remove it, or give one of them another path or proxy"
            )


class Registry(WayOut):
    endpoints: tuple[Endpoint, ...] = Field(
        (),
        description="URLs, or tables with the settings below, tried in order: blobs from any, tags from the first that knows them;"
        " for a default registry, its own",
    )
    tags: Literal["first", "newest"] = Field(
        "first",
        description="whose word counts for a tag: `first`, that of the first endpoint that knows it; `newest`, the registry's own, or if that cannot be had the newest of all endpoints'",
    )
    max_rate: Rate = Field(
        0,
        description="bytes per second at which its content is downloaded, within `upstream.max_rate`; 0 for no limit of its own",
    )
    credentials: Literal["mirror", "client"] = Field(
        "mirror",
        description="whose user and password it is asked with: `mirror`, those below, if any; `client`, those with which each client has logged in, see [access](access.md)",
    )
    client_grace: Duration = Field(
        0.0,
        description="with `client`: how long its last word on a client counts while it cannot be asked; 0 for not at all",
    )
    client_hosts: tuple[str, ...] = Field(
        (),
        description="with `client`: host names under which clients log in to it, and to no other registry; the one registry that has none is meant wherever else clients log in",
    )
    username: str | None = Field(
        None,
        description="for the registry itself, where its own endpoint is in the list, otherwise for the first; the others are asked without",
    )
    password: SecretStr | None = Field(None, description="for upstream; better a `password_file`")
    password_file: Path | None = Field(None, description="a file with the password, read at each use")
    ca_file: Path | None = Field(
        None,
        description="certificates to trust for these endpoints beside the system's, PEM: roots, intermediates or a server's own",
    )
    search: str | None = Field(
        None,
        description="URL of a search like Docker Hub's `/v1/search`; empty for none; for docker.io, Docker Hub's own",
    )
    tag_details: str | None = Field(
        None,
        description="URL of details of tags like Docker Hub's `/v2/repositories`, for the dashboard; empty for none; for docker.io, Docker Hub's own",
    )

    @field_validator("endpoints", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError('a list is expected: ["https://…", …]')
        if not value:
            raise ValueError("a list of at least one endpoint is expected; leave the setting out for the registry's own")
        return value

    @field_validator("endpoints")
    @classmethod
    def _different(cls, value: tuple[Endpoint, ...], info: ValidationInfo) -> tuple[Endpoint, ...]:
        check_different(value, info.data.get("proxy"))
        return value

    @field_validator("search", "tag_details")
    @classmethod
    def _services(cls, value: str | None) -> str | None:
        return parse_endpoint(value) if value else value

    @field_validator("password_file", "ca_file")
    @classmethod
    def _files(cls, value: Path | None) -> Path | None:
        if value is not None:
            readable(value)
        return value

    @field_validator("ca_file")
    @classmethod
    def _certificates(cls, value: Path | None) -> Path | None:
        try:
            ssl.create_default_context(cafile=value)
        except ssl.SSLError:
            raise ValueError("a file of certificates in PEM form is expected") from None
        return value

    @model_validator(mode="after")
    def _credentials(self) -> Registry:
        if self.password is not None and self.password_file is not None:
            raise ValueError("password and password_file exclude each other: keep one")
        has_password = self.password is not None or self.password_file is not None
        if (self.username is None) == has_password:
            raise ValueError("username and a password (password or password_file) belong together")
        if self.credentials == "client" and self.username is not None:
            raise ValueError(
                'credentials = "client" and username exclude each other: each client has its own, so the mirror needs none'
            )
        return self

    def account(self) -> tuple[str, str] | None:
        """User and password, the file read anew; None where there are none. Raises OSError."""
        if self.username is None:
            return None
        if self.password_file is not None:
            return self.username, read_file(self.password_file, LARGEST_SECRET, follow=True).decode().rstrip("\r\n")
        assert self.password is not None
        return self.username, self.password.get_secret_value()
