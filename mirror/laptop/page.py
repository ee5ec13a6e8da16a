"""The page for people: which images there are, and what to type."""

from __future__ import annotations

from html import escape

from mirror.laptop.library import Image, Library
from mirror.laptop.names import is_digest, short

_TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "title": "Images on this computer",
        "image": "Image",
        "platforms": "Platforms",
        "size": "Size",
        "seen": "As of",
        "command": "Command",
        "incomplete": "incomplete: {n} layers are in none of the bundles here",
        "once": "Once, before the first pull",
        "docker": "Docker: put this into /etc/docker/daemon.json (Docker Desktop: Settings, Docker Engine), and restart Docker. Images of Docker Hub can then be pulled by their short names.",
        "podman": "Podman needs nothing: add --tls-verify=false to the command.",
        "containerd": "containerd: write this to /etc/containerd/certs.d/_default/hosts.toml.",
    },
    "zh": {
        "title": "本机提供的镜像",
        "image": "镜像",
        "platforms": "平台",
        "size": "大小",
        "seen": "版本日期",
        "command": "命令",
        "incomplete": "不完整：有 {n} 个层不在这里的任何文件中",
        "once": "首次拉取之前的设置",
        "docker": "Docker：把以下内容写入 /etc/docker/daemon.json（Docker Desktop：Settings → Docker Engine），然后重启 Docker。之后 Docker Hub 的镜像可以直接用短名称拉取。",
        "podman": "Podman 无需设置：在命令中加上 --tls-verify=false。",
        "containerd": "containerd：把以下内容写入 /etc/containerd/certs.d/_default/hosts.toml。",
    },
}
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b2430;background:#fff}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.4rem .8rem .4rem 0;border-bottom:1px solid #d8dee6;vertical-align:top}"
    "code,pre{font:14px/1.5 ui-monospace,monospace;background:#f1f4f8;border-radius:4px;padding:.15rem .4rem;user-select:all;overflow-wrap:anywhere}"
    "pre{padding:.6rem .8rem;white-space:pre-wrap}small{color:#a33}"
    "@media(prefers-color-scheme:dark){body{color:#dde4ec;background:#12171d}code,pre{background:#1f2730}th,td{border-color:#333d48}small{color:#f99}}"
)


def page(library: Library, host: str, accept_language: str) -> str:
    """Returns the page as HTML. `host` is this server's address as the client knows it; in Chinese for browsers whose first language it is, else in English."""
    language = "zh" if accept_language.strip().lower().startswith("zh") else "en"
    text = _TEXTS[language]
    rows = "".join(_row(image, host, text) for image in library.images)
    head = "".join(f'<th scope="col">{text[key]}</th>' for key in ("image", "platforms", "seen", "size", "command"))
    daemon = f'{{\n  "registry-mirrors": ["http://{host}"],\n  "insecure-registries": ["{host}"]\n}}'
    hosts = f'[host."http://{host}"]\n  capabilities = ["pull", "resolve"]'
    problems = "".join(f"<p><small>{escape(problem)}</small></p>" for problem in library.problems)
    return (
        f'<!doctype html><html lang="{language}"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{text['title']}</title><style>{_STYLE}</style><h1>{text['title']}</h1>{problems}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<h2>{text['once']}</h2><p>{escape(text['docker'])}</p><pre>{escape(daemon)}</pre>"
        f"<p>{escape(text['podman'])}</p><p>{escape(text['containerd'])}</p><pre>{escape(hosts)}</pre></html>\n"
    )


def _row(image: Image, host: str, text: dict[str, str]) -> str:
    at = "@" if is_digest(image.reference) else ":"
    name = f"{image.repository}{at}{image.reference}"
    note = f"<br><small>{escape(text['incomplete'].format(n=image.missing))}</small>" if image.missing else ""
    return (
        f"<tr><td>{escape(short(image.repository))}{at}{escape(image.reference)}{note}</td><td>{escape(', '.join(image.platforms))}</td>"
        f"<td>{escape(image.seen[:10])}</td><td>{size_text(image.size)}</td><td><code>docker pull {escape(host)}/{escape(name)}</code></td></tr>"
    )


def size_text(count: float) -> str:
    """Bytes as people write them."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
