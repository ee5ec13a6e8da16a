"""Translates error messages to Chinese: common ones by their words, the rest by the error's class.

A message may come from upstream, from another process or from a log, so often only its words are known.
"""

from __future__ import annotations

import re

_MESSAGES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), text)
    for pattern, text in (
        # this mirror's own
        (r"there were many wrong ones", "管理员令牌不正确，且此地址错误次数较多，请稍候再试"),
        (r"^that is not the admin token", "管理员令牌不正确"),
        (r"too many wrong passwords or tokens", "错误的密码或令牌过多，请稍候再试"),
        (r"^changing anything needs", "更改需要管理员令牌：请先登录"),
        (r"^the settings are shown to", "查看设置需要管理员令牌：请先登录"),
        (r"^this form is of another session", "此表单属于另一次登录：请重新载入页面"),
        (r"^this was sent from another site", "此请求来自其他网站；若镜像站前有代理，代理须原样传递 Host 头"),
        (r"^select between 1 and (\d+) images", r"请选择 1 到 \1 个镜像"),
        (r"^(\d+) of (\d+) images were changed", r"\2 个镜像中只有 \1 个已更改"),
        (r"^select between 1 and (\d+) platforms", r"请选择 1 到 \1 个平台"),
        (r"^search for a term of 1 to (\d+)", r"请输入 1 到 \1 个可显示的字符，例如 redis"),
        (r"^(\S+) has no search", r"\1 没有可用的搜索：请输入完整的仓库名"),
        (r"^(?:the search of )?(\S+) (?:did not list its tags|did not answer) in time", r"\1 未在限定时间内应答"),
        (r"^(\S+) cannot list its tags now", r"\1 目前无法列出标签"),
        (r"^(\d+) images are being fetched already", r"已有 \1 个镜像正在拉取，请等待其中之一完成"),
        (r"^the archive is cut off|is damaged or cut off|the upload has ended", "tar 文件不完整，或上传中断"),
        (r"^this is no (?:tar|archive of images)|less than one header", "这不是镜像的 tar 文件"),
        (r"is not what its name says|is not the layer that", "tar 文件中的内容与摘要不符"),
        (r"does not fit into the cache", "缓存空间不足，请调大 cache.max_size 或清理缓存"),
        (r"^has no name in the archive", "tar 中没有镜像名称，请填写名称后重新上传"),
        (r"^is not complete: (.+) (?:is|are) missing", r"不完整，缺少 \1"),
        (r"\bis refused by the guard '(.+?)'", r"被规则 \1 拒绝"),
        (r"\bis held back, and what it meant before", "该标签被暂缓，而其先前所指的内容缓存和上游都没有"),
        (r"archives are being uploaded already", "同时上传的文件过多，请等待其中之一完成"),
        (r"^it means (\S+) at its registry now", r"该标签在上游已改指 \1：请重新载入页面后再决定"),
        (r"^nothing is cached of ([^\s,]+)", r"缓存中没有 \1"),
        (r"^(\S+) is in the list (.+) of \[\[warm\]\]", r"\1 在 [[warm]] 列表 \2 中，请先从列表中移除"),
        (r"^signatures and the like may be missing", "签名等附属内容可能不完整"),
        (r"^(\d+) of its blobs (?:is|are) not kept", r"有 \1 个数据块未能保留在缓存中"),
        (r"(\S+) names no image", r"\1 中没有镜像名称"),
        (r"^(?:the file )?(/.+?) cannot be read", r"无法读取 \1"),
        (r"^(\S+) is pinned", r"\1 已固定，请先取消固定"),
        (r"^(\S+) is not for (\S+), but for (.+)", r"\1 没有适用于 \2 的版本，仅有 \3"),
        (r"^this mirror does not serve ([^\s:]+)", r"本镜像站不提供 \1"),
        (
            r"^the disk of \S+ has (.+) free of .+ that cache\.min_free leaves",
            r"磁盘可用空间只剩 \1，低于 cache.min_free 要求保留的空间：放不下的内容照常提供，但不缓存",
        ),
        (r"own certificate \S+ expires on (.+): renew it", r"镜像站自己的证书将于 \1 到期，请更新"),
        (r"^cache\.max_size is (.+), for which", r"cache.max_size 设为 \1，会清除一半以上的缓存：暂不清除，沿用之前的上限"),
        (r"^this mirror is offline", "镜像站处于离线模式，不访问上游"),
        (r"\boffline \(upstream\.offline\), and", "镜像站处于离线模式，不访问上游，而缓存中没有此内容"),
        (r"no room for|more than the whole cache|disk (?:refuses|did not keep|is full)|No space left", "磁盘空间不足"),
        (r"catalog could not be", "无法读写缓存目录"),
        (r"the mirror is being stopped", "镜像站正在停止，请稍后再试"),
        (r"given up by another process", "另一进程放弃了此下载"),
        (r"^there is nothing here", "此处没有内容"),
        # what goes wrong on the way to upstream
        (r"^none of (\S+)'s endpoints gave it", r"\1 的各个上游地址都没有提供此内容"),
        (r"Connection refused", "上游拒绝连接"),
        (r"Connection reset|broke off|ended the blob at", "连接中断，上游没有发送完"),
        (r"cannot be resolved|Name or service not known|No address associated|name resolution", "无法解析上游的域名，请检查 DNS"),
        (r"Network is unreachable|No route to host", "无法到达上游，请检查网络"),
        (r"certificate verify failed|certificate has expired|self.signed certificate", "上游的证书不可信"),
        (r"no TLS connection", "无法与上游建立 TLS 连接"),
        (r"proxy", "代理无法连接上游"),
        (r"did not answer in time|timed? ?out|in time$", "上游未在限定时间内应答"),
        (r"sent nothing for ([\d.]+) s", r"上游 \1 秒内没有发送任何数据"),
        # what upstream answers
        (r"answered (429|503).*?asked again .*?(\d+) s", r"上游限制了请求频率（\1），\2 秒后再试"),
        (r"\b429\b|toomanyrequests|too many requests|rate limit", "上游限制了请求频率或拉取次数（429），请稍后再试或设置账号"),
        (r"does not let|needs credentials|not allowed|\b40[13]\b|denied|unauthorized", "上游拒绝访问：需要账号，或该仓库不存在"),
        (r"paused for .*?after failures: (.+)", "上游多次失败，暂停访问"),
        (r"token service|token realm|usable token|not a token|instead of a token", "上游的令牌服务出错"),
        (
            r"not what their digest says|with the digest|another blob or range|another range|ignored a Range",
            "上游发送的内容与摘要不符",
        ),
        (r"manifest unknown|\b404\b|not found|does not exist|has no ", "上游没有该镜像或标签"),
        (r"answered (5\d\d)", r"上游服务器出错（\1）"),
        (r"which is not public|from https to http|redirects|points to", "上游的重定向不可接受"),
        (r"no connection with", "无法连接上游"),
    )
)
_CLASSES = {
    "AdminNeeded": "管理员令牌不正确，或尚未登录",
    "NotAllowed": "没有权限",
    "LoginWrong": "用户名、密码或令牌不正确",
    "LoginNeeded": "请先登录",
    "QuotaReached": "本月流量额度已用完，下月初恢复",
    "LimitReached": "请求或流量超出限制，请稍后再试",
    "TooManyGuesses": "错误的令牌过多，请稍候再试",
    "Refused": "请求未被接受，请重新载入页面",
    "Pinned": "该镜像已固定，请先取消固定",
    "ArchiveInvalid": "tar 文件有误",
    "Unknown": "未找到",
    "Invalid": "请求无效",
    "Unsupported": "不支持此操作",
    "Guarded": "被规则拒绝",
    "Denied": "上游拒绝访问",
    "CatalogFailed": "无法读写缓存目录",
    "StorageFull": "磁盘空间不足",
    "UpstreamLimited": "上游限制了请求频率，请稍后再试",
    "UpstreamTimeout": "上游未在限定时间内应答",
    "UpstreamUnreachable": "无法连接上游",
    "UpstreamInvalid": "上游的应答有误",
    "UpstreamError": "上游未能应答",
    "MirrorError": "出错",
}


def in_chinese(message: str, error: Exception | None = None) -> str:
    """Returns the Chinese for a message; the message itself if it is unknown."""
    for pattern, text in _MESSAGES:
        if (match := pattern.search(message)) is not None:
            return match.expand(text)
    names = (kind.__name__ for kind in type(error).__mro__)
    return next((_CLASSES[name] for name in names if name in _CLASSES), message)
