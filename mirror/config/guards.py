"""Settings of what may be pulled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from mirror.config.tables import Duration, Size, Table, readable


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


class Signed(Table):
    keys: tuple[Path, ...] = Field(
        min_length=1, description="files with a public key in PEM, as `cosign public-key` writes it; one must have signed"
    )

    _pems: tuple[bytes, ...] = PrivateAttr(())

    @field_validator("keys")
    @classmethod
    def _keys(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(file.expanduser().absolute() for file in value)

    @model_validator(mode="after")
    def _read(self) -> Signed:
        try:
            from cryptography.hazmat.primitives.serialization import load_pem_public_key
        except ImportError:
            raise ValueError("signed needs the extra `sign`: pip install 'registry-mirror[sign]'") from None
        self._pems = tuple(map(readable, self.keys))
        for file, pem in zip(self.keys, self._pems, strict=True):
            try:
                load_pem_public_key(pem)
            except (ValueError, TypeError) as error:
                raise ValueError(f"the file {file} is no public key in PEM, as `cosign public-key` writes it: {error}") from None
        return self

    @property
    def pems(self) -> tuple[bytes, ...]:
        """The keys, as they were when the settings were read."""
        return self._pems


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
        description="files and URLs with a digest and a reason in each line; files are looked at each second, URLs asked each minute",
    )
    deny: bool | Conditions = Field(
        False, description="refuse these images: `true`, or a table of conditions that must all be met"
    )
    allow: bool | Conditions = Field(
        False, description="let these images pass, whatever later tables deny: `true`, or a table of conditions"
    )
    immutable: bool = Field(False, description="a tag goes on meaning the first image that was served for it")
    refuse_older: bool = Field(False, description="a tag does not move to an image that was built earlier")

    signed: Signed | None = Field(
        None, description="what a tag means must be signed with cosign by one of these keys; needs the extra `sign`"
    )

    @field_validator("blocklist")
    @classmethod
    def _sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for source in value:
            if "://" in source and not source.startswith(("http://", "https://")):
                raise ValueError(f"a file is expected, or a URL of https or http; found {source!r}")
        return tuple(source if "://" in source else str(Path(source).expanduser().absolute()) for source in value)

    @field_validator("images")
    @classmethod
    def _images(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            if not pattern.strip() or "@" in pattern or "://" in pattern or any(character.isspace() for character in pattern):
                raise ValueError(f'a pattern such as "library/*" or "ghcr.io/owner/app:v*" is expected; found {pattern!r}')
        return value

    @model_validator(mode="after")
    def _whole(self) -> Guard:
        checks = (self.cooldown, self.blocklist, self.deny, self.allow, self.immutable, self.refuse_older, self.signed)
        if not any(checks):
            raise ValueError("a check is expected: cooldown, blocklist, deny, allow, immutable, refuse_older or signed")
        if self.cooldown is None and (self.strict or self.new_tags == "hold"):
            raise ValueError("strict and new_tags belong to cooldown: set it too")
        if self.deny and self.allow:
            raise ValueError("deny and allow exclude each other: write two tables, of which the first that fits counts")
        if self.mode == "observe" and self.allow:
            raise ValueError("allow refuses nothing, so there is nothing to observe")
        return self
