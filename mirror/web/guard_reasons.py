"""Translates to Chinese why guards hold back or refuse something. What a table or a list says itself stays as it was written."""

from __future__ import annotations

import re

from mirror.web.explanations import in_chinese

_DIGEST = r"sha\d+:[0-9a-f]+"
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), text)
    for pattern, text in (
        (r"it is denied", "规则禁止拉取"),
        (r"it is blocked: no reason is given", "已被封禁，未说明理由"),
        (r"it is blocked: (.*)", r"已被封禁：\1"),
        (rf"({_DIGEST}), which it names, is blocked: no reason is given", r"其中的 \1 已被封禁，未说明理由"),
        (rf"({_DIGEST}), which it names, is blocked: (.*)", r"其中的 \1 已被封禁：\2"),
        (r"a scanner found something of severity none in it", "扫描未发现问题"),
        (r"a scanner found something of severity low in it", "扫描发现低危问题"),
        (r"a scanner found something of severity medium in it", "扫描发现中危问题"),
        (r"a scanner found something of severity high in it", "扫描发现高危问题"),
        (r"a scanner found something of severity critical in it", "扫描发现严重问题"),
        (r"a tag moved to it, and it is held back", "标签移动到了此内容，暂缓提供"),
        (r"it has no signature by the keys or identities that are required", "没有所要求的密钥或身份的签名"),
        (r"the tag moved to it on (\S+); it is served from (\S+) on", r"标签于 \1 移动到此内容，自 \2 起提供"),
        (r"the tag was first seen on (\S+); it is served from (\S+) on", r"标签于 \1 首次出现，自 \2 起提供"),
        (rf"the tag must not move, and has meant ({_DIGEST}) since (\S+)", r"此标签不得移动，自 \2 起一直指向 \1"),
        (r"it was made on (\S+), what the tag meant before on (\S+)", r"它构建于 \1，早于标签先前所指的内容（\2）"),
        (
            r"its image for (.+) was made on (\S+), what the tag meant before on (\S+)",
            r"其中 \1 的镜像构建于 \2，早于标签先前所指的内容（\3）",
        ),
        (r"its image for no platform is denied", "规则禁止其中未注明平台的镜像"),
        (r"its image for (.+) is denied", r"规则禁止其中 \1 的镜像"),
        (r"it cannot be had", "无法取得"),
    )
)
_UNREAD = "its signatures cannot be read: "


def reason(language: str, text: str) -> str:
    """Returns a guard's reason in a language; a reason that somebody wrote as it is."""
    if language != "zh":
        return text
    if text.startswith(_UNREAD):
        return f"无法读取其签名：{in_chinese(text.removeprefix(_UNREAD))}"
    for pattern, chinese in _FORMS:
        if (match := pattern.fullmatch(text)) is not None:
            return match.expand(chinese)
    return text
