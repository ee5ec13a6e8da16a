"""The setting `endpoints`: URLs and tables. What cannot be used is an error that names its place, what is expected and what was found, and shows no secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from yarl import URL

from mirror.config import ConfigError, load
from mirror.upstream.urls import is_own

_HOST = "name or the address of a host"
_PORT = "port is a number from 1 to 65535"
_ODD = "without spaces, backslashes and control characters"


@pytest.mark.parametrize(
    ("value", "place", "expected"),
    [
        ("[]", "endpoints", "at least one endpoint"),
        ('"https://a"', "endpoints", "a list is expected"),
        ("5", "endpoints", "a list is expected"),
        ('{ url = "https://a" }', "endpoints", "a list is expected"),
        ('["https://a", 5]', "endpoints.1", "a URL or a table is expected"),
        ("[true]", "endpoints.0", "a URL or a table is expected"),
        ('[["https://a"]]', "endpoints.0", "a URL or a table is expected"),
        ("[{}]", "endpoints.0", "the setting url"),
        ('[{ path = "x" }]', "endpoints.0", "the setting url"),
        ("[{ url = 5 }]", "endpoints.0.url", "a valid string"),
        ('[{ url = "https://a", pth = "x" }]', "endpoints.0.pth", "is 'path' meant?"),
        ('[{ url = "https://a", password = "hunter2" }]', "endpoints.0.password", "no such setting"),
        *(
            (
                f'["https://b", {{ url = "https://a", path = "{path}" }}]',
                "endpoints.1.path",
                "the beginning of a repository's name",
            )
            for path in ("../x", "a/../x", "a//b", "A", "a b", "a?b=c", "a#b", "a:b", "%2e%2e", "." * 3, "ä")
        ),
        ('[{ url = "https://a", path = 5 }]', "endpoints.0.path", "a valid string"),
        ('[{ url = "https://a", path = "/v2/x" }]', "endpoints.0.path", "without v2/"),
        *(
            (f'["https://c", "{url}"]', "endpoints.1.url", expected)
            for url, expected in (
                ("https://a?x=1", "without query"),
                ("https://a?", "without query"),
                ("https://a/#", "without query"),
                ("https://u:hunter2@a", "without user and password"),
                ("https://hunter2@a", "without user and password"),
                ("https://u:hunter2/x@a", _PORT),
                ("https://a/v2", "the setting path"),
                ("https://a/v2/x", "the setting path"),
                ("https://a/x/v2/", "the setting path"),
                ("https://a/../b", "without . and .."),
                ("https://a/%2e%2E/b", "without . and .."),
                ("ftp://a", "a URL such as"),
                ("a:5000", "a URL such as"),
                ("", "a URL such as"),
                ("https://", "a URL such as"),
                ("https:///x", "a URL such as"),
                ("http://[::1", "in brackets"),
                ("http://[zz]", "in brackets"),
                ("http://::1:5000", "a URL such as"),
                ("http://fe80::1:5000", "in brackets"),
                ("https://a:0", _PORT),
                ("https://a:70000", _PORT),
                ("https://a:-1", _PORT),
                ("https://a:x", _PORT),
                (r"https://a:\uff15", _PORT),
                ("https://a b", _ODD),
                (" https://a", _ODD),
                (r"https://a\nb", _ODD),
                (r"https://a\u0000b", _ODD),
                (r"https://a\u001b[31mb", _ODD),
                (r"https://a\u202eb", _ODD),
                (r"https://a\\b", _ODD),
                ("https://-a", _HOST),
                ("https://a..b", _HOST),
                ("https://.a", _HOST),
                ("https://%61", _HOST),
                ("https://a<script>", _HOST),
                ("https://999.999.999.999", _HOST),
                ("https://256", _HOST),
                ("https://" + "a" * 64, _HOST),
                ("https://" + "a." * 200, _HOST),
            )
        ),
        ('["https://a", "https://b", "https://A:443/"]', "endpoints", "https://A:443 is listed again"),
        (
            '[{ url = "https://a/x", proxy = "none" }, { url = "https://a/x/", proxy = "none" }]',
            "endpoints",
            "https://a/x (proxy none) is listed again",
        ),
        (
            '[{ url = "https://a", path = "x" }, { url = "https://a/", path = "/x/" }]',
            "endpoints",
            "https://a/v2/x is listed again",
        ),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, value: str, place: str, expected: str) -> None:
    """By its place, with what was found and what is expected."""
    file = tmp_path / "m.toml"
    file.write_text(f'[registries."docker.io"]\nendpoints = {value}\n')
    with pytest.raises(ConfigError) as caught:
        load(file, {}, {})
    (fault,) = caught.value.faults
    assert fault.startswith(f'registries."docker.io".{place} (in {file}): '), fault
    assert expected in fault
    assert "hunter2" not in fault
    assert fault.isprintable(), fault


@pytest.mark.parametrize(
    "value",
    [
        ["https://a", {"url": "https://a", "path": "x"}, {"url": "https://a", "path": "y"}],
        ["https://a", "http://a", "https://a:444", "https://a/x"],
        ["http://[::1]:5000", "http://[fe80::1%eth0]:5000", "https://127.0.0.1", "https://[::ffff:1.2.3.4]"],
        [
            "https://bücher.example",
            "https://xn--bcher-kva.example.",
            "https://例え.jp",
            "https://registry_1.lan",
            "HTTPS://B.example",
        ],
    ],
)
def test_what_can_be_used_is_taken(value: list[object]) -> None:
    """Several projects of one host, addresses, and names that are not ASCII."""
    settings = load(None, {}, {"registries": {"docker.io": {"endpoints": value}}})
    urls = [URL(endpoint.url) for endpoint in settings.registries["docker.io"].endpoints]
    assert all(url.host and url.port for url in urls)


@pytest.mark.parametrize("url", ["https://bücher.example", "https://xn--bcher-kva.example/", "https://BÜCHER.example:443"])
def test_a_registry_whose_name_is_not_ascii_has_an_endpoint_of_its_own(url: str) -> None:
    """Its name in the settings is in ASCII (RFC 5891); its credentials go there, and its word counts."""
    assert is_own("xn--bcher-kva.example", URL(url))
    assert not is_own("xn--bcher-kva.example", URL("https://bucher.example"))
