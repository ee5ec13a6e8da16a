"""Settings of what may be pulled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from mirror.config.tables import Duration, Size, Table, readable
from mirror.redaction import redacted


class Conditions(Table):
    platforms: tuple[str, ...] = Field(
        (), description="patterns such as `windows/*`: one of the image's platforms fits one of them"
    )
    media_types: tuple[str, ...] = Field((), description="patterns of media types of manifests and indexes")
    labels: Mapping[str, str] = Field(
        default_factory=dict, description="labels of the configuration, with a pattern for the value of each"
    )
    larger_than: Size | None = Field(None, description="the configuration and layers of one platform together")
    older_than: Duration | None = Field(None, description="since `created`, which is the word of who built the image")
    younger_than: Duration | None = Field(None, description="since `created`, which is the word of who built the image")


class Identity(Table):
    issuer: str = Field(
        min_length=1,
        description="a pattern of the OpenID Connect issuer's URL, as cosign's `--certificate-oidc-issuer`, such as `https://accounts.google.com`",
    )
    subject: str = Field(
        min_length=1,
        description="a pattern of the address or URI that the certificate is for, as cosign's `--certificate-identity`; `*` matches slashes too",
    )


class Signed(Table):
    keys: tuple[Path, ...] = Field(
        (), description="files with a public key in PEM, as `cosign public-key` writes it; needs the extra `sign`"
    )
    identities: tuple[Identity, ...] = Field(
        (), description="who may have signed keyless: tables with the settings below; needs the extra `keyless`"
    )
    trusted_root: Path | None = Field(
        None,
        description="a file whose certificates and logs count for `identities`, as `cosign trusted-root create` writes it: `trusted_root.json`",
    )

    _pems: tuple[bytes, ...] = PrivateAttr(())
    _root: bytes = PrivateAttr(b"")

    @field_validator("keys")
    @classmethod
    def _keys(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(file.expanduser().absolute() for file in value)

    @field_validator("trusted_root")
    @classmethod
    def _file(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @model_validator(mode="after")
    def _read(self) -> Signed:
        if not self.keys and not self.identities:
            raise ValueError("keys or identities are expected: who has to have signed")
        if bool(self.identities) != (self.trusted_root is not None):
            raise ValueError("identities and trusted_root belong together: set both")
        if self.keys:
            self._read_keys()
        if self.trusted_root is not None:
            self._read_trusted_root(self.trusted_root)
        return self

    def _read_keys(self) -> None:
        try:
            from cryptography.hazmat.primitives.serialization import load_pem_public_key
        except ImportError:
            raise ValueError("keys need the extra `sign`: pip install 'registry-mirror[sign]'") from None
        self._pems = tuple(map(readable, self.keys))
        for file, pem in zip(self.keys, self._pems, strict=True):
            try:
                load_pem_public_key(pem)
            except (ValueError, TypeError) as error:
                raise ValueError(f"the file {file} is no public key in PEM, as `cosign public-key` writes it: {error}") from None

    def _read_trusted_root(self, file: Path) -> None:
        try:
            from sigstore.errors import Error
            from sigstore.models import TrustedRoot
            from sigstore.verify import Verifier
            from sigstore_models.trustroot.v1 import TrustedRoot as Document
        except ImportError:
            raise ValueError("identities need the extra `keyless`: pip install 'registry-mirror[keyless]'") from None
        self._root = readable(file)
        try:
            document = Document.from_json(self._root)
            Verifier(trusted_root=TrustedRoot(document))
        except (ValueError, Error) as error:
            fault = _first(error) if isinstance(error, ValidationError) else error
            raise ValueError(f"the file {file} is no trusted root, as `cosign trusted-root create` writes it: {fault}") from None
        if not document.ctlogs:
            raise ValueError(f"the trusted root {file} has no `ctlogs`: without the word of one no certificate counts")

    @property
    def pems(self) -> tuple[bytes, ...]:
        """The keys, as they were when the settings were read."""
        return self._pems

    @property
    def root(self) -> bytes:
        """The trusted root, as it was when the settings were read; empty if there is none."""
        return self._root


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ")


def check_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Returns patterns of images. Raises ValueError."""
    for pattern in patterns:
        if not pattern.strip() or "@" in pattern or "://" in pattern or any(character.isspace() for character in pattern):
            raise ValueError(f'a pattern such as "library/*" or "ghcr.io/owner/app:v*" is expected; found {redacted(pattern)!r}')
    return patterns


class Guard(Table):
    name: str = Field(
        "", max_length=40, pattern=r"^[ -~]*$", description="for headers, logs and metrics; by default the table's number"
    )
    images: tuple[str, ...] = Field(
        (),
        description="patterns such as `library/*`, `ghcr.io/owner/*` or `alpine:3.*`; without a tag, all tags are meant; default all images",
    )
    mode: Literal["enforce", "observe"] = Field(
        "enforce", description="`observe` changes nothing: headers, log and metrics say what would have been done"
    )
    reason: str = Field("", max_length=500, description="what a client is told; by default what happened")
    cooldown: Duration | None = Field(None, gt=0, description="how long a tag that moved keeps its old image")
    new_tags: Literal["allow", "hold"] = Field(
        "allow", description="whether a tag that was never seen has to wait for `cooldown` too"
    )
    strict: bool = Field(False, description="what `cooldown` holds back cannot be had by its digest either")
    blocklist: tuple[str, ...] = Field(
        (),
        description="files and URLs with a digest and a reason in each line, or with advisories in OSV form; files are looked at each second, URLs asked each minute",
    )
    deny: bool | Conditions = Field(
        False, description="refuse these images: `true`, or a table of conditions that must all be met"
    )
    allow: bool | Conditions = Field(
        False, description="let these images pass, whatever later tables deny: `true`, or a table of conditions"
    )
    immutable: bool = Field(False, description="a tag goes on meaning the first image that was served for it")
    refuse_older: bool = Field(False, description="a tag does not move to an image that was built earlier")

    max_severity: Literal["none", "low", "medium", "high"] | None = Field(
        None, description="refuse images in which a scanner of a `[[scan]]` table has found something worse"
    )
    signed: Signed | None = Field(
        None, description="what a tag means must be signed with cosign by one of these keys or identities"
    )

    @field_validator("blocklist")
    @classmethod
    def _sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for source in value:
            if "://" in source and not source.startswith(("http://", "https://")):
                raise ValueError(f"a file is expected, or a URL of https or http; found {redacted(source)!r}")
            if "://" in source and "@" in urlsplit(source).netloc:
                raise ValueError("a URL without user and password is expected: none are sent")
        return tuple(source if "://" in source else str(Path(source).expanduser().absolute()) for source in value)

    @field_validator("images")
    @classmethod
    def _images(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_patterns(value)

    @model_validator(mode="after")
    def _whole(self) -> Guard:
        checks = (
            self.cooldown,
            self.blocklist,
            self.deny,
            self.allow,
            self.immutable,
            self.refuse_older,
            self.signed,
            self.max_severity,
        )
        if not any(checks):
            raise ValueError(
                "a check is expected: cooldown, blocklist, deny, allow, immutable, refuse_older, signed or max_severity"
            )
        if self.cooldown is None and (self.strict or self.new_tags == "hold"):
            raise ValueError("strict and new_tags belong to cooldown: set it too")
        if self.deny and self.allow:
            raise ValueError("deny and allow exclude each other: write two tables, of which the first that fits counts")
        if self.mode == "observe" and self.allow:
            raise ValueError("allow refuses nothing, so there is nothing to observe")
        return self
