"""Settings: a TOML file, the environment (``MIRROR_…``) and flags, in rising precedence.

All faults are reported at once, each with its key, the form expected and the value found; secrets are never shown.
"""

from __future__ import annotations

import contextlib
import ssl
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from mirror import certificate
from mirror.disk_room import default_limit
from mirror.names import is_registry_name
from mirror.regular_files import LARGEST_SECRET, read_file
from mirror.setting_errors import describe
from mirror.setting_sources import ConfigError as ConfigError
from mirror.setting_sources import default_cache_dir, from_file, merge
from mirror.units import parse_cache_size, parse_duration, parse_endpoint, parse_listen, parse_rate, parse_workers

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

_SHORTEST_TOKEN = 16

Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_cache_size)]
Rate = Annotated[int, BeforeValidator(parse_rate)]
Workers = Annotated[int, BeforeValidator(parse_workers)]


def _readable(file: Path) -> bytes:
    """Returns a file's content. Raises ValueError if it cannot be read."""
    try:
        return read_file(file, LARGEST_SECRET, follow=True)
    except OSError as error:
        raise ValueError(f"the file {file} cannot be read: {error.strerror}") from None


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Server(_Table):
    listen: str = Field("127.0.0.1:5000", description="address and port to listen on; `0.0.0.0:5000` serves the whole network")
    workers: Workers = Field(1, description="worker processes; `auto` for one per CPU, eight at most")
    drain_timeout: Duration = Field(30.0, description="how long current requests may continue after SIGTERM")
    access_log: bool = Field(True, description="a JSON line on standard output for each request")
    admin_token: SecretStr | None = Field(
        None,
        description="token for changes on the dashboard, 16 characters or more; if none is set, one is generated and kept in the cache directory's `admin-token`",
    )
    admin_token_file: Path | None = Field(None, description="a file with the admin token")
    public_url: str | None = Field(
        None, description="URL under which clients reach the mirror by a name, such as `https://mirror.example.com` at a proxy"
    )
    hosts: tuple[str, ...] = Field(
        (), description="other host names that it answers to; its addresses and the machine's own name are always accepted"
    )
    tls_certificate: Path | None = Field(
        None, description="PEM, with intermediates; then https only. Read anew when it changes, or on SIGHUP"
    )
    tls_key: Path | None = Field(None, validate_default=True, description="the certificate's key, PEM, not encrypted")

    @field_validator("tls_key")
    @classmethod
    def _tls(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_certificate" in info.data:
            found: Path | None = info.data["tls_certificate"]
            if (found is None) != (value is None):
                raise ValueError("tls_certificate and tls_key belong together: set both, or none")
            if found is not None and value is not None:
                certificate.load(found, value)
        return value

    @field_validator("public_url")
    @classmethod
    def _public_url(cls, value: str | None) -> str | None:
        return None if value is None else parse_endpoint(value)

    @field_validator("admin_token_file")
    @classmethod
    def _token_file(cls, value: Path | None) -> Path | None:
        if value is not None:
            _readable(value)
        return value

    @model_validator(mode="after")
    def _token(self) -> Server:
        if self.admin_token is not None and self.admin_token_file is not None:
            raise ValueError("admin_token and admin_token_file exclude each other: keep one")
        token = self.known_token()
        if token is not None and len(token) < _SHORTEST_TOKEN:
            key = "admin_token" if self.admin_token_file is None else "admin_token_file"
            raise ValueError(f"the token of {key} is too easy to guess: at least {_SHORTEST_TOKEN} characters are expected")
        return self

    def known_token(self) -> str | None:
        """The admin token, a file read anew; None where none is set. Raises ValueError where the file cannot be read."""
        if self.admin_token_file is not None:
            return _readable(self.admin_token_file).decode(errors="replace").strip()
        return None if self.admin_token is None else self.admin_token.get_secret_value().strip()

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        parse_listen(value)
        return value

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `listen`; port 0 is any free one."""
        return parse_listen(self.listen)

    def url(self, host: str, port: int) -> str:
        """Returns the mirror's URL at a host name or address."""
        scheme = "http" if self.tls_certificate is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @property
    def own_url(self) -> str:
        """The mirror's URL on its own machine."""
        host, port = self.address
        return self.url("127.0.0.1" if host in ("0.0.0.0", "::") else host, port)


class Expire(_Table):
    repositories: str = Field(
        min_length=1, description="such as `ci/*` or `ghcr.io/owner/*`; of several tables the first one that fits counts"
    )
    after: Duration = Field(
        gt=0, description="an image unused for this long is deleted, with everything that no other image shares"
    )


class Cache(_Table):
    dir: Path = Field(
        default_factory=default_cache_dir,
        description="the cache directory; default `/var/lib/mirror` for root, else `~/.cache/mirror`",
    )
    max_size: Size = Field(
        default_factory=lambda found: default_limit(found.get("dir")),
        description="size that eviction keeps the cache within; default a quarter of the disk that `cache.dir` is on",
    )
    high_watermark: float = Field(0.95, gt=0, le=1, description="share of `max_size` above which eviction begins")
    low_watermark: float = Field(0.9, gt=0, le=1, description="share of `max_size` that eviction then goes down to")
    min_free: float = Field(
        0.05, ge=0, lt=1, description="share of the disk that the cache leaves free, whatever `max_size` says"
    )
    expire: tuple[Expire, ...] = Field((), description="age limits, each a table `[[cache.expire]]`; pinned images are exempt")
    scrub_rate: Rate = Field(
        10_000_000, description="bytes per second at which cached content is verified in the background; 0 for never"
    )
    scrub_interval: Duration = Field(30 * 86400.0, description="how long until it is verified again")
    tag_ttl: Duration = Field(300.0, description="how long a tag is served before upstream is asked again")
    negative_ttl: Duration = Field(10.0, description="how long a 404 is remembered")
    revalidate_timeout: Duration = Field(
        2.0, description="how long a tag's check may delay a client before the cached tag is served"
    )
    prefetch: bool = Field(True, description="download an image's other layers as soon as a client asks for the first")

    @field_validator("dir", mode="before")
    @classmethod
    def _dir(cls, value: Any) -> Any:
        if isinstance(value, str):
            if not value:
                raise ValueError("a folder is expected")
            with contextlib.suppress(RuntimeError):
                return Path(value).expanduser().absolute()
        return value

    @field_validator("expire", mode="before")
    @classmethod
    def _tables(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            raise ValueError("a list of tables is expected, each under [[cache.expire]], with two brackets")
        return value

    @model_validator(mode="after")
    def _watermarks(self) -> Cache:
        if self.low_watermark > self.high_watermark:
            raise ValueError("low_watermark is above high_watermark: eviction could never end")
        return self


class Upstream(_Table):
    connect_timeout: Duration = Field(5.0, description="time limit for connecting to an upstream")
    header_timeout: Duration = Field(
        20.0, description="time limit for an upstream's response headers; containerd gives up after 30 s"
    )
    stall_timeout: Duration = Field(
        15.0, description="time limit for the next bytes of a body, after which it is resumed on another connection"
    )
    attempts: int = Field(3, ge=1, le=10, description="attempts at each endpoint before an error")
    connections_per_blob: int = Field(
        16,
        ge=1,
        le=64,
        description="maximum number of parallel connections for one blob, used where that is faster; 1 for never more than one",
    )
    connections_per_endpoint: int = Field(
        32, ge=1, description="maximum number of connections to one endpoint; the first one of each blob is always allowed"
    )
    connections: int = Field(64, ge=1, description="the same over all endpoints, each of which has an equal share")


class Log(_Table):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="`debug`, `info`, `warning` or `error`")
    format: Literal["text", "json"] = Field("text", description="`text` or `json`, on standard error")


class Registry(_Table):
    endpoints: tuple[str, ...] = Field(
        (),
        description="URLs, tried in order: blobs from any, tags from the first that knows them; for a default registry, its own",
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

    @field_validator("endpoints")
    @classmethod
    def _endpoints(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse_endpoint(url) for url in value)

    @field_validator("password_file", "ca_file")
    @classmethod
    def _files(cls, value: Path | None) -> Path | None:
        if value is not None:
            _readable(value)
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
        return self

    def credentials(self) -> tuple[str, str] | None:
        """User and password, the file read anew; None where there are none. Raises OSError."""
        if self.username is None:
            return None
        if self.password_file is not None:
            return self.username, read_file(self.password_file, LARGEST_SECRET, follow=True).decode().rstrip("\r\n")
        assert self.password is not None
        return self.username, self.password.get_secret_value()


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, env_prefix="MIRROR_", env_nested_delimiter="__"
    )

    server: Server = Server()
    cache: Cache = Field(default_factory=Cache)
    upstream: Upstream = Upstream()
    log: Log = Log()
    registries: Mapping[str, Registry] = Field(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *args: Any, **kwargs: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load` merges the sources itself, so that an error can name the source.
        return (kwargs["init_settings"],)

    @field_validator("registries")
    @classmethod
    def _registries(cls, value: Mapping[str, Registry]) -> Mapping[str, Registry]:
        for name, registry in value.items():
            if not is_registry_name(name):
                raise ValueError(f"{name!r} is not a registry's name: a lower-case host such as ghcr.io or registry.lan:5000")
            if not registry.endpoints and name not in DEFAULT_ENDPOINTS:
                raise ValueError(f'{name} needs endpoints = ["https://…"]')
        known = {name: Registry(endpoints=(url,)) for name, url in DEFAULT_ENDPOINTS.items()}
        for name, registry in value.items():
            endpoints = registry.endpoints or known[name].endpoints
            known[name] = registry.model_copy(update={"endpoints": endpoints})
        return types.MappingProxyType(known)


def load(
    file: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any], running: Mapping[str, Any] | None = None
) -> Settings:
    """Reads the settings; `flags` is a tree like the file's, and so is what the `running` mirror uses. Raises ConfigError with every fault."""
    layers = [("in the environment", _from_environment(environ)), ("on the command line", dict(flags))]
    layers.insert(0, ("of the running mirror", dict(running or {})))
    if file is not None:
        layers.insert(0, (f"in {file}", from_file(file)))
    merged: dict[str, Any] = {}
    for _, layer in layers:
        merge(merged, layer)
    # A validator of `registries` adds the defaults, and runs only on what is there.
    merged.setdefault("registries", {})
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise ConfigError([describe(fault, layers, _known_keys) for fault in error.errors(include_url=False)]) from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    class Environment(EnvSettingsSource):
        def _load_env_vars(self) -> Mapping[str, str | None]:
            return {key.lower(): value for key, value in environ.items()}

    try:
        found: dict[str, Any] = Environment(Settings)()
    except Exception:
        raise ConfigError(["MIRROR_…: a table given as one variable must be JSON"]) from None
    faults = [
        f"{key}: is not read; two underscores stand between a table and its setting: {meant}"
        for key in environ
        if key.startswith("MIRROR_") and (meant := _with_two_underscores(key.upper())) is not None
    ]
    if faults:
        raise ConfigError(faults)
    tables = {name.upper() for name in Settings.model_fields}
    for key in environ:
        table = key.removeprefix("MIRROR_").partition("__")[0]
        if "__" in key and key.startswith("MIRROR_") and table.upper() not in tables:
            found[table.lower()] = {}
    return found


def _with_two_underscores(key: str) -> str | None:
    """The variable that was meant by ``MIRROR_CACHE_MAX_SIZE`` or ``MIRROR_MAX_SIZE``; None where no setting has such a name."""
    for table, fields in _TABLES.items():
        for field in () if table == "registries" else fields.model_fields:
            if key in (f"MIRROR_{table}_{field}".upper(), f"MIRROR_{field}".upper()):
                return f"MIRROR_{table}__{field}".upper()
    return None


_TABLES: dict[str, type[_Table]] = {"server": Server, "cache": Cache, "upstream": Upstream, "log": Log, "registries": Registry}


def _known_keys(path: list[str]) -> list[str]:
    if len(path) == 1:
        return list(Settings.model_fields)
    return list(_TABLES[path[0]].model_fields) if path[0] in _TABLES else []
