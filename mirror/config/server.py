"""Settings of the listener and of the dashboard."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from mirror import certificate
from mirror.config.access import Network, network
from mirror.config.tables import Duration, Table, Workers, readable
from mirror.local_hosts import is_loopback, is_private_name
from mirror.units import parse_endpoint, parse_listen

_SHORTEST_TOKEN = 16


def _is_public(host: str) -> bool:
    found = network(host)
    if found is None:
        return host != "localhost"
    return found.network_address.is_unspecified or not found.network_address.is_private


class Server(Table):
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

    tls_client_ca: Path | None = Field(
        None,
        validate_default=True,
        description="PEM of the authorities whose certificates clients may log in with; `who` names them `cert:NAME` by their common name",
    )
    login_listen: str | None = Field(
        None,
        description="a second address and port where clients are asked to log in, for `docker login` and pushes; never in `registry-mirrors`",
    )
    login_hosts: tuple[str, ...] = Field(
        (), description="host names under which clients are asked to log in, as at `login_listen`; never in `registry-mirrors`"
    )
    users_file: Path | None = Field(
        None,
        description="users and passwords, as `htpasswd -B` writes them, read anew when it changes; default `access/users` in the cache directory",
    )
    trusted_proxies: tuple[str, ...] = Field(
        (), description="addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, such as `10.0.0.0/8`"
    )
    audit_log: Path | None = Field(
        None, description="a file that gets a JSON line for each decision about who may do what; `mirror who` reads it"
    )

    @field_validator("login_listen")
    @classmethod
    def _login_listen(cls, value: str | None) -> str | None:
        if value is not None and parse_listen(value)[1] == 0:
            raise ValueError("a port is expected: 0 would be another one at each start")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if network(one) is None:
                raise ValueError(f"{one!r} is not an address, or a range such as 10.0.0.0/8 in which the rest of the bits is 0")
        return value

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

    @field_validator("tls_client_ca")
    @classmethod
    def _client_ca(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        file, key = info.data.get("tls_certificate"), info.data.get("tls_key")
        if value is not None:
            if file is None or key is None:
                raise ValueError("tls_certificate and tls_key are needed too: clients send certificates over https only")
            certificate.load(file, key, value)
        return value

    @field_validator("public_url")
    @classmethod
    def _public_url(cls, value: str | None) -> str | None:
        return None if value is None else parse_endpoint(value)

    @field_validator("admin_token_file")
    @classmethod
    def _token_file(cls, value: Path | None) -> Path | None:
        if value is not None:
            readable(value)
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
            return readable(self.admin_token_file).decode(errors="replace").strip()
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

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Hosts and ports to listen on: `listen` comes first."""
        return self.address, *self.login_addresses

    @property
    def login_addresses(self) -> tuple[tuple[str, int], ...]:
        return () if self.login_listen is None else (parse_listen(self.login_listen),)

    @property
    def is_public(self) -> bool:
        """Whether it may be reached from outside of private networks, as far as the settings tell: by a host name, or a proxy, it may be."""
        hosts = [host for host, _ in self.addresses]
        if self.public_url is not None and not is_private_name(host := urlsplit(self.public_url).hostname or ""):
            hosts.append(host)
        return bool(self.trusted_proxies) or any(map(_is_public, hosts))

    @property
    def has_proxy(self) -> bool:
        """Whether a proxy passes on what clients ask for, as far as the settings tell: one is trusted, or clients reach the mirror by another URL than this machine's."""
        return bool(self.trusted_proxies) or (self.public_url is not None and not is_loopback(urlsplit(self.public_url).hostname))

    @property
    def proxies(self) -> tuple[Network, ...]:
        """`trusted_proxies` as ranges."""
        return tuple(found for one in self.trusted_proxies if (found := network(one)) is not None)

    def url(self, host: str, port: int) -> str:
        """Returns the mirror's URL at a host name or address."""
        scheme = "http" if self.tls_certificate is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @property
    def own_url(self) -> str:
        """The mirror's URL on its own machine."""
        host, port = self.address
        return self.url("127.0.0.1" if host in ("0.0.0.0", "::") else host, port)
