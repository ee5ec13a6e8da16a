"""Every text of the pages, in each language. ``{name}`` is filled in; of texts with a ``|``, the first is for one, the second for any other number `n`."""

from __future__ import annotations

LANGUAGES = {"en": "English", "zh": "简体中文"}
"""By the code under which texts, cookie and links know them; the first is for whoever asks for none of them."""
TAGS = {"en": "en", "zh": "zh-Hans"}
"""As HTML names them (BCP 47)."""

_TEXTS: dict[str, tuple[str, str]] = {
    # the frame
    "skip": ("Skip to the content", "跳到内容"),
    "overview": ("Overview", "概览"),
    "setup": ("Set up a client", "配置客户端"),
    "log_in": ("Log in", "登录"),
    "log_out": ("Log out", "退出"),
    "admin": ("Admin", "管理员"),
    "language": ("Language", "语言"),
    "theme": ("Theme", "主题"),
    "theme_auto": ("Auto", "自动"),
    "theme_light": ("Light", "浅色"),
    "theme_dark": ("Dark", "深色"),
    "tagline": ("Container images, fetched once.", "容器镜像，只拉取一次。"),
    "copy": ("Copy", "复制"),
    "copied": ("Copied", "已复制"),
    "more": ("and {n} more", "另有 {n} 个"),
    "back": ("Back to the overview", "返回概览"),
    # connection of the live part
    "live": ("live", "实时"),
    "live_lost": ("reconnecting…", "正在重新连接…"),
    "live_off": ("This part moves by itself where JavaScript is on.", "启用 JavaScript 后，此部分会自动刷新。"),
    # figures
    "figures": ("At a glance", "总览"),
    "hit_ratio": ("Hit ratio", "命中率"),
    "hits_of": ("{hits} of {requests} requests answered from the cache", "{requests} 次请求中有 {hits} 次由缓存应答"),
    "nothing_asked": ("Nobody has asked for anything yet", "尚无任何请求"),
    "saved": ("Saved", "节省流量"),
    "saved_of": ("{sent} sent to clients, {fetched} fetched from upstream", "向客户端发送 {sent}，从上游拉取 {fetched}"),
    "cache": ("Cache", "缓存"),
    "cache_of": ("of {limit}", "共 {limit}"),
    "cache_label": ("{size} of {limit} in use", "已用 {size}，共 {limit}"),
    "unfinished": ("{size} in unfinished downloads", "{size} 为未完成的下载"),
    "trend": ("Size of the cache lately: {first} on {since}, {last} now", "近期缓存大小：{since} 为 {first}，现在 {last}"),
    "trend_later": ("The trend shows here after an hour.", "一小时后在此显示趋势。"),
    "images": ("Images", "镜像"),
    "in_repositories": ("in {n} repository|in {n} repositories", "位于 {n} 个仓库"),
    "pinned_count": ("{n} pinned", "已固定 {n} 个"),
    "blobs_count": ("{n} blob|{n} blobs", "{n} 个数据块"),
    "traffic": ("Sent to clients, by day", "每日发送流量"),
    "traffic_from_cache": ("from the cache", "来自缓存"),
    "traffic_from_upstream": ("fetched from upstream", "从上游拉取"),
    "traffic_day": (
        "{date}: {sent} sent, {fetched} fetched, {ratio} of requests hit",
        "{date}：发送 {sent}，拉取 {fetched}，请求命中率 {ratio}",
    ),
    "traffic_label": (
        "The last 30 days: {sent} sent to clients, {fetched} fetched from upstream",
        "最近 30 天：向客户端发送 {sent}，从上游拉取 {fetched}",
    ),
    "traffic_none": ("No traffic in the last 30 days.", "最近 30 天没有流量。"),
    # downloads
    "downloads": ("Downloads", "正在下载"),
    "downloads_none": (
        "Nothing is being downloaded. What clients ask for and the cache lacks appears here.",
        "目前没有下载。客户端请求而缓存中没有的内容会显示在这里。",
    ),
    "download_of": ("{have} of {size}", "{have} / {size}"),
    "download_unsized": ("{have}, length unknown", "{have}，总长未知"),
    "download_asking": ("asking upstream", "正在询问上游"),
    "download_done": ("done", "已完成"),
    "download_failed": ("failed: {error}", "失败：{error}"),
    "download_label": ("Progress of {digest}", "{digest} 的进度"),
    "readers": ("{n} reader|{n} readers", "{n} 个读取者"),
    "left": ("{time} left", "剩余 {time}"),
    # upstreams
    "upstreams": ("Upstreams", "上游"),
    "state_unknown": ("not asked", "未询问"),
    "state_ok": ("healthy", "正常"),
    "state_failing": ("failing", "出错"),
    "state_open": ("down", "不可用"),
    "state_wrong": ("untrusted", "不可信"),
    "latency": ("first byte after {time}", "首字节 {time}"),
    "throughput": ("{rate} a connection", "每连接 {rate}"),
    "pulls_left": ("{left} of {limit} pulls left", "剩余拉取次数 {left} / {limit}"),
    "answered": ("answered {ago}", "{ago}有应答"),
    # images
    "search": ("Search", "搜索"),
    "search_label": ("Repository, tag or digest", "仓库、标签或摘要"),
    "sort": ("Sort by", "排序"),
    "sort_name": ("name", "名称"),
    "sort_pulled": ("last pulled", "最近拉取"),
    "sort_fetched": ("fetched", "获取时间"),
    "sort_size": ("size", "大小"),
    "column_image": ("Image", "镜像"),
    "column_platforms": ("Platforms", "平台"),
    "column_size": ("Size", "大小"),
    "column_fetched": ("Fetched", "获取时间"),
    "column_pulled": ("Last pulled", "最近拉取"),
    "column_state": ("State", "状态"),
    "column_pull": ("Pull", "拉取"),
    "shared_size": ("{size} shared", "共享 {size}"),
    "missing": ("{n} blob not cached|{n} blobs not cached", "{n} 个数据块未缓存"),
    "fresh": ("fresh", "新鲜"),
    "fresh_why": ("upstream was asked {when}", "{when}询问过上游"),
    "stale": ("stale", "待更新"),
    "stale_why": ("upstream was asked {when}; it is asked again at the next pull", "{when}询问过上游；下次拉取时会再次询问"),
    "untagged": ("untagged", "无标签"),
    "untagged_why": ("by its digest, which always means the same", "按摘要，其含义永远不变"),
    "pinned": ("pinned", "已固定"),
    "never": ("never", "从未"),
    "pulls": ("{n} time|{n} times", "{n} 次"),
    "copy_pull": ("Copy the pull command for {image}", "复制 {image} 的拉取命令"),
    "images_none": ("Nothing is cached yet.", "缓存为空。"),
    "images_none_why": (
        "Point a client at this mirror and pull something: it appears here.",
        "让客户端通过本镜像站拉取，镜像就会显示在这里。",
    ),
    "images_not_found": ("No image fits “{search}”.", "没有匹配“{search}”的镜像。"),
    "images_all": ("Show all", "显示全部"),
    "images_found": ("{n} image|{n} images", "{n} 个镜像"),
    "page_of": ("Page {page} of {pages}", "第 {page} 页，共 {pages} 页"),
    "previous": ("Previous", "上一页"),
    "next": ("Next", "下一页"),
    "pager": ("Pages", "分页"),
    # an image
    "pull_command": ("Pull it", "拉取"),
    "digest": ("Digest", "摘要"),
    "media_type": ("Type", "类型"),
    "cached_size": ("Cached", "已缓存"),
    "fetched": ("Fetched", "获取时间"),
    "last_pulled": ("Last pulled", "最近拉取"),
    "pulled_times": ("Pulled", "拉取次数"),
    "platforms": ("Platforms", "平台"),
    "platform_none": ("for no platform", "无平台"),
    "complete": ("complete", "完整"),
    "incomplete": ("partly cached", "部分缓存"),
    "not_cached": ("not cached", "未缓存"),
    "layer": ("Layer", "层"),
    "layer_kind": ("Type", "类型"),
    "layer_shared": ("In images", "所属镜像"),
    "layer_cached": ("Cached", "已缓存"),
    "yes": ("yes", "是"),
    "no": ("no", "否"),
    "config": ("Configuration", "配置"),
    "layers_none": ("It has no layers.", "没有层。"),
    "neighbours": ("Shares layers with", "与以下镜像共享层"),
    "neighbours_none": ("It shares nothing with another cached image.", "未与其他已缓存的镜像共享内容。"),
    "manage": ("Manage", "管理"),
    "pin": ("Pin", "固定"),
    "unpin": ("Unpin", "取消固定"),
    "pin_why": ("A pinned image is never evicted.", "固定的镜像不会被清除。"),
    "refresh": ("Refresh", "刷新"),
    "refresh_why": ("Asks upstream now what the tag means.", "立即向上游询问该标签的含义。"),
    "delete": ("Delete", "删除"),
    "delete_sure": (
        "Delete it from the cache? What other images share stays, and the next pull fetches it again.",
        "从缓存中删除？与其他镜像共享的内容会保留，下次拉取时会重新获取。",
    ),
    "delete_now": ("Yes, delete it", "确认删除"),
    "manage_login": ("to pin, refresh or delete it.", "后可固定、刷新或删除。"),
    # what was done
    "done_pinned": ("Pinned: it stays until it is unpinned.", "已固定：取消固定之前会一直保留。"),
    "done_unpinned": ("No longer pinned.", "已取消固定。"),
    "done_refreshed": ("Upstream says that it is still the same.", "上游确认内容未变。"),
    "done_changed": ("Upstream has another one now: the tag was moved to it.", "上游已更新：标签已指向新内容。"),
    "done_deleted": ("Deleted from the cache.", "已从缓存删除。"),
    # logging in
    "login_title": ("Log in to change things", "登录后可进行更改"),
    "login_why": (
        "Looking needs no password. The admin token was printed when the mirror was first started, and is in the file admin-token of its cache directory, unless it was set as server.admin_token.",
        "查看无需密码。管理员令牌在镜像站首次启动时显示过，保存在缓存目录的 admin-token 文件中，除非已通过 server.admin_token 设置。",
    ),
    "token": ("Admin token", "管理员令牌"),
    # setting up
    "setup_intro": (
        "Choose what pulls your images. Everything below has this mirror's address filled in: {address}",
        "选择用来拉取镜像的程序。以下内容均已填入本镜像站的地址：{address}",
    ),
    "setup_client": ("Client", "客户端"),
    "setup_serves_docker": (
        "Docker Hub's images; others by name, through the mirror",
        "Docker Hub 的镜像；其他镜像可通过本站按名称拉取",
    ),
    "setup_serves": ("all registries that the mirror serves", "本站所服务的全部镜像仓库"),
    "setup_for": ("Works for", "适用于"),
    "setup_script": ("By script", "使用脚本"),
    "setup_script_why": (
        "It keeps what is there, says what it changes, makes a backup, and takes it back with --undo.",
        "脚本会保留已有配置、说明所做的更改并备份，使用 --undo 可恢复原状。",
    ),
    "setup_undo": ("To take it back:", "恢复原状："),
    "setup_look": ("Read the script", "查看脚本"),
    "setup_hand": ("By hand", "手动配置"),
    "setup_hand_why": ("Add this to each file, or make it:", "将以下内容加入各文件（没有则新建）："),
    "setup_then": ("Then", "然后"),
    "setup_then_none": (
        "It counts from the next pull on; for cri-o after systemctl reload crio.",
        "下次拉取即生效；cri-o 需执行 systemctl reload crio。",
    ),
    "setup_each": ("The same for each other registry:", "其他镜像仓库同理："),
    "setup_no_address": (
        "The address in this request is not one that could be put into a configuration.",
        "此请求中的地址无法写入配置。",
    ),
    "setup_loopback": (
        "This address is for clients on the mirror's own machine. Open this page by the mirror's name for others.",
        "此地址仅适用于镜像站本机。若为其他机器配置，请使用镜像站的主机名打开本页。",
    ),
    # errors
    "error": ("This did not work", "未能完成"),
    # by the error's class (mirror/errors), or the nearest above it: its message is English
    "fault_MirrorError": ("{message}", "出错（{message}）"),
    "fault_AdminNeeded": ("{message}", "管理员令牌不正确，或尚未登录（{message}）"),
    "fault_TooManyGuesses": ("{message}", "错误的令牌过多，请稍候再试（{message}）"),
    "fault_Refused": ("{message}", "请求未被接受，请重新载入页面（{message}）"),
    "fault_Pinned": ("{message}", "该镜像已固定，请先取消固定（{message}）"),
    "fault_Unknown": ("{message}", "未找到（{message}）"),
    "fault_Invalid": ("{message}", "请求无效（{message}）"),
    "fault_Unsupported": ("{message}", "不支持此操作（{message}）"),
    "fault_CatalogFailed": ("{message}", "无法读写缓存目录（{message}）"),
    "fault_UpstreamError": ("{message}", "上游未能应答（{message}）"),
}


def text(language: str, key: str, **values: object) -> str:
    """A text, filled in. Raises KeyError for one that there is not."""
    found = _TEXTS[key][list(LANGUAGES).index(language)]
    if "|" in found:
        one, other = found.split("|")
        found = one if values.get("n") == 1 else other
    return found.format(**{name: f"{value:,}" if isinstance(value, int) else value for name, value in values.items()})


def keys() -> frozenset[str]:
    return frozenset(_TEXTS)


def preferred(accept: str) -> str:
    """The language that an Accept-Language likes best (RFC 9110, section 12.5.4)."""
    best, weight = next(iter(LANGUAGES)), 0.0
    for member in accept[:1000].split(","):
        name, _, parameter = member.partition(";")
        language = name.strip().lower().partition("-")[0]
        quality = parameter.strip().removeprefix("q=") if parameter else "1"
        try:
            value = float(quality)
        except ValueError:
            continue
        if language in LANGUAGES and value > weight:
            best, weight = language, value
    return best
