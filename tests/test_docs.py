"""README, docs/, deployment files and code say the same."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from click import Context
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel

from mirror import config, metrics
from mirror.cli import main
from mirror.clients import CLIENTS, Address
from mirror.config import load
from mirror.locks import Lock
from tests.support.certificates import Authority
from tests.test_structure import MAY_IMPORT, SHARED

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
CLIENT_PAGE, SETTINGS, OPERATIONS, METRICS, DESIGN = (
    PAGES[name] for name in ("clients", "settings", "operations", "metrics", "design")
)
LINKED = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "deploy").glob("*.md"),
]
"""Every page whose links are looked at."""
TABLES: dict[str, type[BaseModel]] = {
    "server": config.Server,
    "cache": config.Cache,
    "cache.expire": config.Expire,
    "hosted": config.Hosted,
    "hosted.keep": config.Keep,
    "fleet": config.Fleet,
    "fleet.parents": config.Parent,
    "upstream": config.Upstream,
    "upstream.rate": config.RateHours,
    "access": config.Access,
    "oidc": config.Oidc,
    "warm": config.Warm,
    "guard": config.Guard,
    "guard.deny": config.Conditions,
    "guard.signed": config.Signed,
    "guard.signed.identities": config.Identity,
    "webhook": config.Webhook,
    "scan": config.Scan,
    "log": config.Log,
    'registries."NAME"': config.Registry,
    'registries."NAME".endpoints': config.Endpoint,
}
LISTED = (
    "cache.expire",
    "hosted.keep",
    "fleet.parents",
    "upstream.rate",
    "guard.deny",
    "guard.signed",
    "guard.signed.identities",
    'registries."NAME".endpoints',
)
"""Tables that stand in another table."""
_NAMES_COMMAND = re.compile(r"(?:`|[:;(→,] |\b(?:[Rr]un|try|see|with|by|use|or|after|as|of|what)[ \n])mirror ([a-z]+)\b")
"""Where a text names a command, and does not only speak of the mirror."""


def metric_rows() -> dict[str, tuple[str, str]]:
    """Labels and help of each metric, as the table in docs/metrics.md has them."""
    found = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
    return {
        metric._name + ("_total" if metric._type == "counter" else ""): (
            ", ".join(f"`{label}`" for label in metric._labelnames),
            metric._documentation,
        )
        for metric in found
    }


def metric_names() -> set[str]:
    return set(metric_rows())


def test_every_setting_is_documented_with_its_description() -> None:
    """Neither more nor less."""
    documented = dict(re.findall(r"^\| `([a-zA-Z\".]+\.[a-z_]+)` \| [^|]*\| (.*) \|$", SETTINGS, re.MULTILINE))
    existing = {
        f"{table}.{field.alias or name}": field.description
        for table, model in TABLES.items()
        for name, field in model.model_fields.items()
    }
    assert documented == existing


def test_the_documented_defaults_are_the_defaults() -> None:
    """Set to what the table says, the settings are what they are unset."""
    tree: dict[str, dict[str, str]] = {}
    for key, default in re.findall(
        r"^\| `((?:server|cache|hosted|upstream|log)\.[a-z_]+)` \| `([^`]+)` \|", SETTINGS, re.MULTILINE
    ):
        table, name = key.split(".")
        tree.setdefault(table, {})[name] = default
    assert len(tree) == 5
    assert load(None, {}, tree) == load(None, {}, {})


def test_every_metric_is_documented() -> None:
    """Neither more nor less, with its labels and its help."""
    rows = re.findall(r"^\| `((?:mirror|registry_proxy)_[a-z_]+)` \| (.*?) ?\| (.*) \|$", METRICS, re.MULTILINE)
    assert {name: (labels, told) for name, labels, told in rows} == metric_rows()


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    """And for all of them."""
    dashboard = json.loads((ROOT / "grafana" / "mirror.json").read_text())
    expressions = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()))
    asked = {name.removesuffix("_bucket") for name in re.findall(r"\b(?:mirror|registry_proxy)_[a-z_]+", expressions)}
    assert asked == metric_names()


@pytest.mark.parametrize("page", [README, *PAGES.values()], ids=["README", *PAGES])
def test_toml_and_json_can_be_copied(page: str) -> None:
    """Every block parses."""
    for snippet in re.findall(r"```toml\n(.*?)```", page, re.DOTALL):
        tomllib.loads(snippet)
    for snippet in re.findall(r"```json\n(.*?)```", page, re.DOTALL):
        json.loads(snippet)


def test_the_documented_files_of_clients_are_what_configure_writes() -> None:
    """Each file of each client, for Docker Hub's images: word for word, under its path."""
    for client in CLIENTS.values():
        for file in client.plan([Address.parse("http://mirror.lan:5000")], ["docker.io"]):
            assert f"```{file.path.rpartition('.')[2].replace('conf', 'toml')}\n{file.text}```" in CLIENT_PAGE, client.name
            assert f"`{file.path}`" in CLIENT_PAGE
        assert client.then in CLIENT_PAGE


@pytest.mark.parametrize("guide", ["home-lab.md", "office.md"])
def test_the_guides_fit_on_a_page_and_name_files_and_settings_that_exist(guide: str, tmp_path: Path) -> None:
    """Every path into the repository is there, every TOML is settings, every command of ours has its options, every page is a page."""
    authority = Authority(tmp_path)
    text = (ROOT / "deploy" / guide).read_text()
    assert len(text.split()) < 700
    for path in re.findall(r"\b((?:deploy|grafana)/[\w./-]+\w)", text):
        assert (ROOT / path).exists(), path
    for number, snippet in enumerate(re.findall(r"```toml\n(.*?)```", text, re.DOTALL)):
        usable = re.sub(r'"/etc/[^"]*\.pem"', f'"{authority.ca}"', snippet)
        usable = re.sub(r'"/[^"]*/tls\.crt"', f'"{authority.certificate}"', usable)
        usable = re.sub(r'"/[^"]*/tls\.key"', f'"{authority.key}"', usable)
        tree = tomllib.loads(re.sub(r'"/(?:etc|run)/[^"]*"', f'"{__file__}"', usable))
        assert load(None, {}, tree), number
    for line in re.findall(r"\bmirror (configure .*|doctor.*)", text):
        command, *arguments = shlex.split(re.split(r"[`|]|&&", line)[0])
        found = main.get_command(Context(main), command)
        assert found is not None, line
        known = {name for parameter in found.params for name in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= known, line


def test_every_command_is_documented() -> None:
    """And no other: `serve` has a section of its own."""
    listed = [
        name
        for line in re.findall(r"^\| (`mirror .*?) \|", OPERATIONS, re.MULTILINE)
        for name in re.findall(r"`(?:mirror )?(\w+)", line)
    ]
    assert sorted([*listed, "serve"]) == sorted(main.list_commands(Context(main)))


def test_every_command_says_in_one_line_what_it_does() -> None:
    """The help's list cuts off what is longer, with dots."""
    for name in main.list_commands(Context(main)):
        command = main.get_command(Context(main), name)
        assert command is not None
        assert command.short_help, name
        assert len(command.short_help) < 60, name


def test_every_command_takes_the_flags_of_serve_that_say_which_mirror_is_meant() -> None:
    """As docs/operations.md says of all of them; and what prints a table prints JSON too."""
    for name in main.list_commands(Context(main)):
        command = main.get_command(Context(main), name)
        assert command is not None
        known = {option for parameter in command.params for option in parameter.opts}
        wanted = {"--config", "--cache-dir", "--upstream"}
        if name != "man":
            assert wanted | (set() if name == "serve" else {"--json"}) <= known, name


def test_the_settings_that_are_shown_can_be_used(tmp_path: Path) -> None:
    """The example of docs/settings.md and the one in deploy/, their comments undone."""
    password = tmp_path / "password"
    password.write_text("x")
    authority = Authority(tmp_path)
    example = next(text for text in re.findall(r"```toml\n(.*?)```", SETTINGS, re.DOTALL) if "[server]" in text)
    deployed = re.sub(r"^# (?=[\[a-z])(?!All|Any|Cred)", "", (ROOT / "deploy" / "mirror.toml").read_text(), flags=re.MULTILINE)
    for number, text in enumerate((example, deployed)):
        file = tmp_path / f"{number}.toml"
        usable = text.replace("/etc/mirror/tls.crt", str(authority.certificate)).replace(
            "/etc/mirror/tls.key", str(authority.key)
        )
        usable = usable.replace("/etc/mirror/lan-ca.pem", str(authority.ca))
        file.write_text(re.sub(r'"/etc/mirror/[^"]*"', f'"{password}"', usable))
        settings = load(file, {}, {})
        assert "registry.lan:5001" in settings.registries
        assert settings.registries["docker.io"].username == "…"


def test_no_package_registry_is_named_in_any_file() -> None:
    """Where packages come from is the machine's affair."""
    hosts = ["py" + "pi.org", "python" + "hosted.org", "registry." + "npmjs", "proxy." + "golang", "crates" + ".io"]
    for path in ROOT.rglob("*"):
        if (
            path.is_file()
            and not {".git", ".venv"} & set(path.relative_to(ROOT).parts)
            and path.suffix in {".md", ".py", ".toml", ".yaml", ".json", ""}
        ):
            text = path.read_text(errors="ignore")
            assert not [host for host in hosts if host in text], path


def test_the_readme_is_short() -> None:
    """A newcomer reads it whole: 600 to 800 words, one picture."""
    assert 600 <= len(README.split()) <= 800
    assert len(re.findall(r"!\[|<img", README)) == 1


def test_every_page_is_linked_from_the_readme() -> None:
    """Nobody finds what is not linked."""
    assert {f"docs/{name}.md" for name in PAGES} <= set(re.findall(r"\]\(([^)#]+)", README))


@pytest.mark.parametrize("page", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To files that exist, and to headings that they have."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_the_design_names_files_that_exist_and_every_part() -> None:
    """Each path into mirror/ and tests/, and each part of the import graph with what it may import."""
    for path in re.findall(r"`((?:mirror|tests)/[\w./-]+)`", DESIGN):
        assert (ROOT / path).exists(), path
    for part, allowed in MAY_IMPORT.items():
        if part.startswith("__"):
            continue
        row = re.search(rf"^\| `{part}` \| (.*) \|$", DESIGN, re.MULTILINE)
        assert row is not None, part
        named = set(re.findall(r"`(\w+)`", row[1])) | (SHARED if "*shared*" in row[1] else set())
        assert named == allowed - {part, ""} - ({part} & SHARED), part


def test_the_design_has_the_order_of_locks() -> None:
    """As mirror/locks.py lists them."""
    section = DESIGN.partition("## Locks")[2].partition("\n## ")[0]
    assert re.findall(r"^\| ([A-Z]+) \|", section, re.MULTILINE) == [lock.name for lock in Lock]


def test_commands_in_the_pages_have_the_options_that_they_are_given() -> None:
    """Every `mirror …` in a block of shell commands."""
    for page in (README, *PAGES.values()):
        for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL):
            for line in re.findall(r"^(?:sudo )?(?:\.venv/bin/)?mirror (.*)$", block, re.MULTILINE):
                command, *arguments = shlex.split(line, comments=True)
                found = main.get_command(Context(main), command)
                assert found is not None, line
                known = {name for parameter in found.params for name in parameter.opts}
                assert {argument for argument in arguments if argument.startswith("-") and argument != "-"} <= known, line


def test_the_chart_knows_every_setting_and_no_other() -> None:
    """deploy/chart/values.schema.json lists them, but for those that belong to the image: a mistyped one is refused before it reaches a cluster."""
    tables = json.loads((ROOT / "deploy/chart/values.schema.json").read_text())["properties"]["settings"]["properties"]
    for name in ("warm", "access", "oidc", "guard", "webhook", "scan"):
        tables[name] = tables[name]["items"]
    del tables["groups"]  # whose keys are names
    tables |= {'registries."NAME"': tables.pop("registries")["additionalProperties"]}
    existing = {name: set(model.model_fields) for name, model in TABLES.items() if name not in LISTED}
    existing["server"] -= {"listen"}
    existing["cache"] -= {"dir"}
    assert {name: set(table["properties"]) for name, table in tables.items()} == existing
    assert not any(table["additionalProperties"] for table in tables.values())


def test_the_known_registries_are_listed() -> None:
    """docs/upstreams.md names exactly those that need no table."""
    text = (ROOT / "docs" / "upstreams.md").read_text().partition("under their own address:")[2].partition(".\n\n")[0]
    assert sorted(text.replace("\n", " ").replace(" ", "").split(",")) == sorted(config.KNOWN_ENDPOINTS)


def test_every_command_that_a_text_names_exists() -> None:
    """In alerts and panels, pages and guides, the dashboard's texts, and what the code says in messages and help."""
    known = set(main.list_commands(Context(main)))
    named: dict[str, set[str]] = {}
    for pattern in ("grafana/*", "docs/*.md", "deploy/**/*", "*.md", "mirror/**/*.py", "mirror/web/templates/*"):
        for path in ROOT.glob(pattern):
            # Of what the code is without its changes, CHANGELOG.md tells.
            if path.is_file() and path.name != "CHANGELOG.md" and path.suffix != ".png":
                for command in re.findall(_NAMES_COMMAND, path.read_text()):
                    named.setdefault(command, set()).add(str(path.relative_to(ROOT)))
    assert {command: files for command, files in named.items() if command not in known} == {}
    assert {"serve", "history", "release", "who"} <= named.keys()
