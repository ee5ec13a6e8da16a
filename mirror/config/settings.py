"""Settings: a TOML file, the environment (``MIRROR_…``) and flags, in rising precedence.

All faults are reported at once, each with its key, the form expected and the value found; secrets are never shown.
"""

from __future__ import annotations

import difflib
import importlib.util
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from mirror.config.access import ANYONE, Access, Oidc
from mirror.config.cache import Cache
from mirror.config.errors import describe
from mirror.config.fleet import Fleet, Parent
from mirror.config.guards import Conditions, Guard, Identity, Signed
from mirror.config.hosted import Hosted, Keep
from mirror.config.rates import RateHours
from mirror.config.registries import (
    ALIASES,
    DEFAULT_ENDPOINTS,
    DEFAULT_SEARCH,
    DEFAULT_TAG_DETAILS,
    KNOWN_ENDPOINTS,
    Endpoint,
    Registry,
    check_different,
)
from mirror.config.scans import Scan
from mirror.config.server import Server
from mirror.config.sources import ConfigError, from_environment, from_file, merge
from mirror.config.tables import Table
from mirror.config.upstream import Upstream
from mirror.config.warm import Warm
from mirror.config.webhooks import Webhook
from mirror.local_hosts import is_loopback
from mirror.names import is_registry_name


class Log(Table):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="`debug`, `info`, `warning` or `error`")
    format: Literal["text", "json"] = Field("text", description="`text` or `json`, on standard error")


class Settings(Table):
    server: Server = Server()
    cache: Cache = Field(default_factory=Cache)
    upstream: Upstream = Upstream()
    log: Log = Log()
    registries: Mapping[str, Registry] = Field(default_factory=dict)
    warm: tuple[Warm, ...] = ()
    access: tuple[Access, ...] | None = None
    """None where there is no table; then pulling is open to all."""
    oidc: tuple[Oidc, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    hosted: Hosted = Hosted()
    fleet: Fleet = Fleet()
    guard: tuple[Guard, ...] = ()
    webhook: tuple[Webhook, ...] = ()
    scan: tuple[Scan, ...] = ()

    @field_validator("warm", "access", "oidc", "guard", "webhook", "scan", mode="before")
    @classmethod
    def _tables(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, Mapping):
            raise ValueError(f"a list of tables is expected, each under [[{info.field_name}]], with two brackets")
        return value

    @model_validator(mode="after")
    def _groups(self) -> Settings:
        named = {group for table in self.access or () for group in table.groups}
        for group in sorted(named - set(self.groups) - {"users"}):
            raise ValueError(f'access: there is no group {group!r}: add {group} = ["alice"] to a table [groups]')
        for number, table in enumerate((self.access or ())[:-1], 1):
            if ANYONE in table.who and "**" in table.repositories:
                raise ValueError(
                    f"access: table {number} is about anyone and all repositories, so the tables after it would never count: move it to the end"
                )
        issuers = {issuer for table in self.access or () for issuer in table.issuers}
        for issuer in sorted(issuers - {one.name for one in self.oidc}):
            raise ValueError(f"access: there is no issuer {issuer!r}: add a table [[oidc]] with that name")
        return self

    @model_validator(mode="after")
    def _open_pushes(self) -> Settings:
        if self.hosted.repositories and self.server.is_public:
            for number, table in enumerate(self.access or (), 1):
                if table.is_for_everybody and {"push", "delete"} & set(table.may):
                    raise ValueError(
                        f"access: table {number} would let everybody who reaches this mirror push or delete, which may be the whole Internet: name whom it is for,"
                        " such as @users or 10.0.0.0/8, or listen on a private address"
                    )
        return self

    @field_validator("guard")
    @classmethod
    def _numbered(cls, value: tuple[Guard, ...]) -> tuple[Guard, ...]:
        named = tuple(one if one.name else one.model_copy(update={"name": str(number)}) for number, one in enumerate(value, 1))
        for number, one in enumerate(named):
            if one.name == "by hand" or one.name in (other.name for other in named[:number]):
                raise ValueError(f"the name {one.name!r} is taken")
        return named

    @field_validator("warm")
    @classmethod
    def _named(cls, value: tuple[Warm, ...]) -> tuple[Warm, ...]:
        named = tuple(one if one.name else one.model_copy(update={"name": str(number)}) for number, one in enumerate(value, 1))
        for number, one in enumerate(named):
            if one.name in (other.name for other in named[:number]):
                raise ValueError(f"two lists have the name {one.name!r}")
        return named

    @field_validator("webhook")
    @classmethod
    def _webhooks(cls, value: tuple[Webhook, ...]) -> tuple[Webhook, ...]:
        named = tuple(one if one.name else one.model_copy(update={"name": str(number)}) for number, one in enumerate(value, 1))
        for number, one in enumerate(named):
            if one.name in (other.name for other in named[:number]):
                raise ValueError(f"two webhooks have the name {one.name!r}")
        return named

    @field_validator("scan")
    @classmethod
    def _scanners(cls, value: tuple[Scan, ...]) -> tuple[Scan, ...]:
        named = tuple(one if one.name else one.model_copy(update={"name": str(number)}) for number, one in enumerate(value, 1))
        for number, one in enumerate(named):
            if one.name in (other.name for other in named[:number]):
                raise ValueError(f"two scanners have the name {one.name!r}")
        return named

    @field_validator("registries")
    @classmethod
    def _registries(cls, value: Mapping[str, Registry]) -> Mapping[str, Registry]:
        for name, registry in value.items():
            if not is_registry_name(name):
                raise ValueError(f"{name!r} is not a registry's name: a lower-case host such as ghcr.io or registry.lan:5000")
            if not registry.endpoints and name not in DEFAULT_ENDPOINTS | KNOWN_ENDPOINTS:
                raise ValueError(f'{name} needs endpoints = ["https://…"]')
        known = {name: Registry(endpoints=(Endpoint(url=url),)) for name, url in DEFAULT_ENDPOINTS.items()}
        for name, registry in value.items():
            endpoints = registry.endpoints or (Endpoint(url=(DEFAULT_ENDPOINTS | KNOWN_ENDPOINTS)[name]),)
            known[name] = registry.model_copy(update={"endpoints": endpoints})
        for name, registry in known.items():
            search = DEFAULT_SEARCH.get(name) if registry.search is None else registry.search
            details = DEFAULT_TAG_DETAILS.get(name) if registry.tag_details is None else registry.tag_details
            known[name] = registry.model_copy(update={"search": search, "tag_details": details})
        return types.MappingProxyType(known)

    @model_validator(mode="after")
    def _fleet(self) -> Settings:
        if self.access is not None and self.fleet.mirrors and self.fleet.token_file is None:
            raise ValueError(
                "fleet.token_file: set it, since there are [[access]] tables, and other mirrors could pull nothing from here"
            )
        return self

    @model_validator(mode="after")
    def _endpoints(self) -> Settings:
        for name, registry in self.registries.items():
            try:
                check_different(registry.endpoints, registry.proxy or self.upstream.proxy or "environment")
            except ValueError as error:
                raise ValueError(f'registries."{name}".endpoints: {error}') from None
        return self

    @model_validator(mode="after")
    def _clients(self) -> Settings:
        anywhere = [name for name, registry in self.client_registries.items() if not registry.client_hosts]
        if len(anywhere) > 1:
            raise ValueError(
                f'registries."{anywhere[0]}".credentials: nobody could say whether a password is for this registry or for {anywhere[1]}: give one of them client_hosts'
            )
        hosts = [host.lower() for host in self.server.login_hosts]
        for name, registry in self.client_registries.items():
            hosts += [host.lower() for host in registry.client_hosts]
            if (problem := self._problem_of_clients(registry)) is not None:
                raise ValueError(f'registries."{name}".credentials: {problem}')
        if twice := [host for host in hosts if hosts.count(host) > 1]:
            raise ValueError(f"{twice[0]} is expected once, in server.login_hosts or in the client_hosts of one registry")
        return self

    def _problem_of_clients(self, registry: Registry) -> str | None:
        """Returns why clients cannot log in to a registry; None if they can."""
        server = self.server
        for endpoint in registry.endpoints:
            url = urlsplit(endpoint.url)
            if url.scheme != "https" and not is_loopback(url.hostname):
                return f"{endpoint.url} would get clients' passwords unencrypted: use https"
        if not server.login_addresses and not server.login_hosts and not registry.client_hosts:
            return "clients log in at an address or a host name that is for it: set server.login_listen, server.login_hosts or client_hosts (docs/access.md)"
        hosts = [host for host, _ in server.addresses]
        if server.tls_certificate is None and not server.trusted_proxies and not all(map(is_loopback, hosts)):
            return "clients would send their passwords unencrypted: set server.tls_certificate and server.tls_key, or server.trusted_proxies to a proxy that has them"
        if importlib.util.find_spec("cryptography") is None:
            return "this needs the package cryptography: pip install cryptography"
        return None

    @property
    def client_registries(self) -> dict[str, Registry]:
        """The registries whose clients log in to them themselves."""
        return {name: registry for name, registry in self.registries.items() if registry.credentials == "client"}

    @model_validator(mode="after")
    def _rates(self) -> Settings:
        mirrored = {*self.registries, *self.unlisted}
        for hours in self.upstream.rate:
            if hours.registry is not None and hours.registry not in mirrored:
                name = hours.registry.lower()
                meant = difflib.get_close_matches(ALIASES.get(name, name), mirrored, 1)
                cure = f"is {meant[0]!r} meant?" if meant else "give it a table of its own under registries"
                raise ValueError(f"upstream.rate: {hours.registry!r} is not mirrored; {cure}")
        return self

    @property
    def unlisted(self) -> dict[str, Registry]:
        """The registries that are mirrored without a table, beside those of `registries`."""
        if self.upstream.registries == "listed":
            return {}
        return {
            name: Registry(endpoints=(Endpoint(url=url),)) for name, url in KNOWN_ENDPOINTS.items() if name not in self.registries
        }


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
    faults = [
        f"{key}: is not read; two underscores stand between a table and its setting: {meant}"
        for key in environ
        if key.startswith("MIRROR_") and (meant := _with_two_underscores(key.upper())) is not None
    ]
    if faults:
        raise ConfigError(faults)
    return from_environment(environ, Settings.model_fields)


def _with_two_underscores(key: str) -> str | None:
    """The variable that was meant by ``MIRROR_CACHE_MAX_SIZE`` or ``MIRROR_MAX_SIZE``; None where no setting has such a name."""
    for table, fields in _TABLES.items():
        for field in () if table == "registries" else fields.model_fields:
            if key in (f"MIRROR_{table}_{field}".upper(), f"MIRROR_{field}".upper()) and key != "MIRROR_REGISTRIES":
                return f"MIRROR_{table}__{field}".upper()
    return None


_TABLES: dict[str, type[Table]] = {
    "server": Server,
    "cache": Cache,
    "upstream": Upstream,
    "log": Log,
    "registries": Registry,
    "hosted": Hosted,
    "fleet": Fleet,
}


def _known_keys(path: list[str]) -> list[str]:
    if len(path) == 1:
        return list(Settings.model_fields)
    if path[0] == "registries" and "endpoints" in path[2:-1]:
        return list(Endpoint.model_fields)
    if path[0] == "warm":
        return list(Warm.model_fields)
    if path[0] == "oidc":
        return list(Oidc.model_fields)
    if path[0] == "access":
        return list(Access.model_fields)
    if path[:2] == ["fleet", "parents"] and len(path) > 2:
        return list(Parent.model_fields)
    if path[:2] == ["hosted", "keep"] and len(path) > 2:
        return list(Keep.model_fields)
    if path[0] == "webhook":
        return list(Webhook.model_fields)
    if path[0] == "scan":
        return list(Scan.model_fields)
    if path[0] == "guard":
        nested: dict[str, type[Table]] = {"deny": Conditions, "allow": Conditions, "signed": Signed}
        if path[2:4] == ["signed", "identities"] and len(path) > 4:
            return list(Identity.model_fields)
        return list(nested.get(path[2] if len(path) > 3 else "", Guard).model_fields)
    if path[:2] == ["upstream", "rate"] and len(path) > 2:
        return [field.alias or name for name, field in RateHours.model_fields.items()]
    return list(_TABLES[path[0]].model_fields) if path[0] in _TABLES else []
