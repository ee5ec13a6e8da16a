"""The texts of the dashboard in each language. ``{name}`` is replaced by a value; ``singular|plural`` is chosen by `n`.

Error messages are in English (mirror/errors.py); mirror/web/explanations.py translates them to Chinese.
"""

from __future__ import annotations

import re

from mirror.web.explanations import in_chinese

LANGUAGES = {"en": "English", "zh": "简体中文"}
"""Languages by the code that texts, cookies and links use. The first is the default."""
TAGS = {"en": "en", "zh": "zh-Hans"}
"""The values of the ``lang`` attribute (BCP 47)."""

_TEXTS: dict[str, tuple[str, str]] = {
    # the frame
    "skip": ("Skip to the content", "跳到内容"),
    "overview": ("Overview", "概览"),
    "setup": ("Set up a client", "配置客户端"),
    "setup_short": ("Set up", "配置"),
    "setup_rest": (" a client", "客户端"),
    "settings": ("Settings", "设置"),
    "comma": (", ", "、"),
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
    "live_off": ("With JavaScript, this part updates itself.", "启用 JavaScript 后，此部分会自动刷新。"),
    # without a network
    "offline": ("offline", "离线"),
    "offline_why": (
        "No registry is asked: what is cached is served however old it is, nothing expires, and what is not cached cannot be pulled.",
        "不访问任何上游仓库：缓存中的内容不论多旧都照常提供，也不会因长期未用而删除；不在缓存中的内容无法拉取。",
    ),
    # figures
    "figures": ("At a glance", "总览"),
    "hit_ratio": ("Hit ratio", "命中率"),
    "hits_of": ("{hits} of {requests} requests answered from the cache", "{requests} 次请求中有 {hits} 次命中缓存"),
    "nothing_asked": ("No requests yet", "尚无任何请求"),
    "saved": ("Saved", "节省流量"),
    "saved_of": ("{sent} sent to clients, {fetched} fetched for them", "向客户端发送 {sent}，为此从上游拉取 {fetched}"),
    "pulled_ahead": ("{size} pulled ahead", "另有 {size} 为提前拉取"),
    "cache": ("Cache", "缓存"),
    "cache_of": ("of {limit}", "上限 {limit}"),
    "cache_label": ("{size} of {limit} in use", "已用 {size}，上限 {limit}"),
    "unfinished": ("{size} in unfinished downloads", "未完成的下载占 {size}"),
    "trend": ("Size of the cache lately: {first} on {since}, {last} now", "近期缓存大小：{since} 为 {first}，现在 {last}"),
    "trend_later": ("The trend shows here after an hour.", "运行满一小时后显示趋势。"),
    "images": ("Images", "镜像"),
    "in_repositories": ("in {n} repository|in {n} repositories", "来自 {n} 个仓库"),
    "pinned_count": ("{n} pinned", "已固定 {n} 个"),
    "blobs_count": ("{n} blob|{n} blobs", "{n} 个数据块"),
    "traffic": ("Sent to clients, by day", "每日发送流量"),
    "traffic_from_cache": ("from the cache", "来自缓存"),
    "traffic_from_upstream": ("passed on from upstream", "由上游转发"),
    "traffic_ahead": ("fetched ahead", "提前拉取"),
    "traffic_day": (
        "{date}: {sent} sent, {cached} of it from the cache; {ahead} fetched ahead; {ratio} of requests hit",
        "{date}：发送 {sent}，其中 {cached} 来自缓存；提前拉取 {ahead}；请求命中率 {ratio}",
    ),
    "traffic_label": (
        "The last 30 days: {sent} sent to clients, {cached} of it from the cache; {ahead} fetched ahead",
        "最近 30 天：向客户端发送 {sent}，其中 {cached} 来自缓存；提前拉取 {ahead}",
    ),
    "traffic_sum": ("In 30 days {sent}, {ratio} of it from the cache.", "30 天共 {sent}，其中 {ratio} 来自缓存。"),
    "traffic_sum_ahead": (
        "In 30 days {sent}, {ratio} of it from the cache. {ahead} were fetched ahead of clients.",
        "30 天共 {sent}，其中 {ratio} 来自缓存；另提前拉取 {ahead}。",
    ),
    "today": ("today", "今天"),
    "traffic_none": ("No traffic in the last 30 days.", "最近 30 天没有流量。"),
    # downloads
    "downloads": ("Downloads", "正在下载"),
    "downloads_none": (
        "Nothing is being downloaded. Whatever clients pull that is not in the cache appears here.",
        "目前没有下载。客户端请求而缓存中没有的内容会显示在这里。",
    ),
    "download_of": ("{have} of {size}", "{have} / {size}"),
    "download_unsized": ("{have}, length unknown", "{have}，总长未知"),
    "download_asking": ("asking upstream", "正在请求上游"),
    "download_done": ("done", "已完成"),
    "download_failed": ("failed: {error}", "失败：{error}"),
    "download_label": ("Progress of {image}", "{image} 的进度"),
    "readers": ("{n} client reading|{n} clients reading", "{n} 个客户端正在读取"),
    "readers_none": ("ahead of clients", "提前拉取"),
    "left": ("{time} left", "剩余 {time}"),
    # upstreams
    "upstreams": ("Upstreams", "上游"),
    "state_unknown": ("not visited yet", "尚未访问"),
    "state_ok": ("healthy", "正常"),
    "degraded": ("degraded", "降级运行"),
    "state_failing": ("failing", "出错"),
    "state_down": ("down", "不可用"),
    "paused": ("paused for {time} after failures", "多次失败，{time}后再试"),
    "asked_next": ("asked again by the next request", "下次请求时再试"),
    "state_wrong": ("untrusted", "不可信"),
    "latency": ("first byte after {time}", "首字节延迟 {time}"),
    "throughput": ("{rate} a connection", "单连接 {rate}"),
    "pulls_left": ("{left} of {limit} pulls left", "剩余拉取次数 {left} / {limit}"),
    "answered": ("answered {ago}", "最近应答：{ago}"),
    # lists that are pulled by schedule
    "warm": ("Pulled by schedule", "定时拉取"),
    "warm_list": ("List {name}", "列表 {name}"),
    "warm_every": ("every {time}", "每隔 {time}"),
    "warm_at": ("daily at {time}", "每天 {time}"),
    "warm_pulled": ("{pulled} of {n} pulled", "{n} 个中已拉取 {pulled} 个"),
    "warm_last": ("last {ago}", "上次：{ago}"),
    "warm_never": ("not pulled yet", "尚未拉取"),
    "warm_next": ("next in {time}", "{time}后进行下一次"),
    "warm_now": ("due now", "即将或正在进行"),
    "warm_offline": ("waits until the mirror is online", "离线期间暂停"),
    "colon": (": ", "："),
    "listed": ("in a list", "列表内"),
    "listed_why": (
        "It is in a list that is pulled by schedule, and is not evicted while it is.",
        "该镜像在定时拉取的列表中，期间不会被清理。",
    ),
    # the most pulled
    "top": ("Most pulled", "最常拉取"),
    "top_none": ("Nothing has been pulled yet.", "尚无拉取记录。"),
    # images
    "view": ("View", "视图"),
    "view_repositories": ("Repositories", "按仓库"),
    "view_images": ("Images", "按镜像"),
    "search": ("Search", "搜索"),
    "search_label": ("Repository, tag or digest", "仓库、标签或摘要"),
    "search_hub": ("Search Docker Hub for “{search}”", "在 Docker Hub 中搜索“{search}”"),
    "search_cached": ("In the cache", "缓存中"),
    "search_upstream": ("On {registry}", "{registry} 上"),
    "search_old": ("These are earlier results.", "以下为先前的结果。"),
    "search_none": ("It has no repository that matches “{search}”.", "没有匹配“{search}”的仓库。"),
    "column_description": ("Description", "说明"),
    "column_stars": ("Stars", "星标"),
    "official": ("official", "官方"),
    "view_cached": ("Cached images", "已缓存的镜像"),
    "view_tags": ("All tags", "全部标签"),
    "column_tag": ("Tag", "标签"),
    "filter": ("Filter", "筛选"),
    "filter_label": ("Part of a tag, such as 7.2", "标签的一部分，如 7.2"),
    "tags_found": ("{n} tag|{n} tags", "{n} 个标签"),
    "tags_none": ("No tag contains “{filter}”.", "没有包含“{filter}”的标签。"),
    "tags_empty": ("It has no tags.", "没有标签。"),
    "tags_incomplete": ("Tags may be missing here.", "此处的标签可能不全。"),
    "fetch_platforms": ("Fetch for these platforms", "拉取以下平台"),
    "fetch_image": ("Fetch {image} into the cache", "拉取 {image} 到缓存"),
    "column_image": ("Image", "镜像"),
    "column_repository": ("Repository", "仓库"),
    "column_tags": ("Tags", "标签"),
    "column_platforms": ("Platforms", "平台"),
    "column_size": ("Size", "大小"),
    "column_fetched": ("Fetched", "缓存时间"),
    "column_pulled": ("Last pulled", "最近拉取"),
    "column_state": ("State", "状态"),
    "column_pull": ("Pull", "拉取"),
    "shared_size": ("{size} shared", "其中 {size} 与其他镜像共享"),
    "missing": ("{n} blob not cached|{n} blobs not cached", "{n} 个数据块未缓存"),
    "fresh": ("fresh", "最新"),
    "fresh_why": ("checked with upstream {when}", "{when}与上游核对过"),
    "checked": ("checked {when}", "{when}核对"),
    "stale_why": (
        "checked with upstream {when}; checked again at the next pull",
        "待核对：{when}与上游核对过，下次拉取时会再次核对",
    ),
    "untagged": ("untagged", "无标签"),
    "untagged_why": ("named by its digest, whose content never changes", "以摘要引用，内容永不改变"),
    "pinned": ("pinned", "已固定"),
    "never": ("never", "从未"),
    "pulls": ("{n} time|{n} times", "{n} 次"),
    "copy_pull": ("Copy the pull command for {image}", "复制 {image} 的拉取命令"),
    "images_none": ("Nothing is cached yet.", "缓存为空。"),
    "images_none_why": (
        "Set up a client and pull an image: it appears here.",
        "让客户端通过本镜像站拉取，镜像就会显示在这里。",
    ),
    "images_not_found": ("No image matches “{search}”.", "没有匹配“{search}”的镜像。"),
    "images_all": ("Show all", "显示全部"),
    "repositories_found": ("{n} repository|{n} repositories", "{n} 个仓库"),
    "select": ("Select {image}", "选择 {image}"),
    "select_all": ("Select all on this page", "选择本页全部"),
    "selected": ("With the selected images:", "对所选镜像："),
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
    "fetched": ("Fetched", "缓存时间"),
    "created": ("Built", "构建时间"),
    "last_pulled": ("Last pulled", "最近拉取"),
    "platforms": ("Platforms", "平台"),
    "platform_none": ("no platform", "未标明平台"),
    "complete": ("complete", "完整"),
    "incomplete": ("partly cached", "部分缓存"),
    "not_cached": ("not cached", "未缓存"),
    "layer": ("Layer", "层"),
    "layer_shared": ("In images", "被引用数"),
    "layer_cached": ("Cached", "已缓存"),
    "cached": ("cached", "已缓存"),
    "config": ("Configuration", "配置"),
    "layers_none": ("It has no layers.", "没有层。"),
    "neighbours": ("Shares layers with", "与以下镜像共享层"),
    "attestations": ("and {n} attestation|and {n} attestations", "另有 {n} 个证明"),
    "history": ("All {n} step of its history|All {n} steps of its history", "完整构建历史（{n} 步）"),
    "copy_digest": ("Copy the digest", "复制摘要"),
    "other_tags": ("Other tags", "其他标签"),
    "all_tags": (
        "All {n} cached image of this repository|All {n} cached images of this repository",
        "该仓库全部 {n} 个已缓存镜像",
    ),
    "way_docker": (
        "Where the client is set up for this mirror. Docker 28 and older ask it for Docker Hub only.",
        "适用于已配置本镜像站的客户端。Docker 28 及更早版本仅通过本站拉取 Docker Hub 镜像。",
    ),
    "way_set_up": ("Where the client is set up for this mirror.", "适用于已配置本镜像站的客户端。"),
    "way_build": ("By digest, so that every build uses the same image.", "以摘要引用，每次构建使用同一镜像。"),
    "way_by_address": ("Not set up", "未配置"),
    "way_address": (
        "From any client. Over plain http, all clients but Docker on the mirror's own machine need it as an insecure registry.",
        "适用于任何客户端。若使用 http，除本机的 Docker 外，需将其设为不安全的镜像仓库。",
    ),
    "export": ("Download as a tar", "下载为 tar 文件"),
    "export_tar": ("Tar", "tar 文件"),
    "export_all": ("All of these platforms", "以上所有平台"),
    "export_why": (
        "For machines without a network. docker load, ctr images import, podman load and skopeo read it; digests stay the same. An interrupted download can be resumed.",
        "供没有网络的机器使用。docker load、ctr images import、podman load 和 skopeo 均可导入，摘要保持不变。下载中断后可以继续。",
    ),
    "export_missing": ("Once a platform is cached whole, it can be downloaded here.", "某个平台完整缓存后，即可在此下载。"),
    "runs": ("How it runs", "运行配置"),
    "entrypoint": ("Entrypoint", "入口点"),
    "command": ("Command", "命令"),
    "user": ("User", "用户"),
    "working_dir": ("Directory", "工作目录"),
    "ports": ("Ports", "端口"),
    "volumes": ("Volumes", "卷"),
    "stop_signal": ("Stop signal", "停止信号"),
    "author": ("Author", "作者"),
    "environment": ("{n} environment variable|{n} environment variables", "{n} 个环境变量"),
    "labels": ("{n} label|{n} labels", "{n} 个元数据标签"),
    "fetch": ("Fetch it", "拉取到缓存"),
    "fetch_for": ("For", "平台"),
    "fetch_every": ("all platforms", "所有平台"),
    "fetch_login": ("to fetch it from upstream.", "后可从上游拉取。"),
    "not_here": ("Not in the cache", "不在缓存中"),
    "not_here_why": (
        "Nobody has pulled this image through the mirror yet, or it was evicted. It can be fetched now.",
        "尚未有人通过本镜像站拉取该镜像，或它已被清理。现在即可拉取。",
    ),
    "manage": ("Manage", "管理"),
    "pin": ("Pin", "固定"),
    "unpin": ("Unpin", "取消固定"),
    "pin_why": ("A pinned image is never evicted.", "已固定的镜像不会被自动清理。"),
    "refresh": ("Refresh", "刷新"),
    "refresh_why": ("Asks upstream now which image the tag points to.", "立即向上游查询该标签当前指向的版本。"),
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
    "done_refreshed": ("Checked with upstream: it is still the same.", "上游确认内容未变。"),
    "done_changed": ("Upstream has a newer image: the tag points to it now.", "上游已更新：标签已指向新内容。"),
    "done_deleted": ("Deleted from the cache.", "已从缓存删除。"),
    "done_fetched": ("All of it is in the cache now.", "已全部缓存。"),
    "done_fetching": ("It is being fetched: the list of downloads shows the progress.", "正在拉取，进度见下载列表。"),
    # an archive that is uploaded
    "import": ("Upload images", "上传镜像"),
    "import_why": (
        "Takes bundles of mirror export, OCI layouts and what docker save, podman save, skopeo, buildah and crane write, compressed or not. What is cached already is not stored again; an upload that was interrupted goes on when it is sent again.",
        "可上传 mirror export 的 tar 文件、OCI layout，以及 docker save、podman save、skopeo、buildah 和 crane 生成的文件，压缩与否均可。已缓存的内容不会重复保存；上传中断后重新上传即可继续。",
    ),
    "import_file": ("Tar", "tar 文件"),
    "import_as": ("Name, if the tar has none", "名称（tar 中没有名称时）"),
    "import_platform": ("Platform", "平台"),
    "import_every": ("all in the tar", "tar 中的全部"),
    "import_pin": ("Pin the images", "固定这些镜像"),
    "import_do": ("Upload", "上传"),
    "import_progress": ("Progress of the upload", "上传进度"),
    "import_broke_off": (
        "The connection broke off. Upload it again: what has come is kept.",
        "连接中断。请重新上传，已传输的内容会保留。",
    ),
    "import_curl": ("From a command line, also from a pipe with -T -:", "使用命令行，也可用 -T - 从管道上传："),
    "imported_title": ("{n} image, {size} new|{n} images, {size} new", "{n} 个镜像，新增 {size}"),
    "imported_new": ("New", "新增"),
    "import_imported": ("imported", "已导入"),
    "import_already_here": ("already here", "已存在"),
    "import_incomplete": ("incomplete", "不完整"),
    "import_not_imported": ("not imported", "未导入"),
    "import_rebuilt": (
        "{image}: its manifest was made here, since docker save had kept none. Its digest is not the registry's.",
        "{image}：docker save 未保留清单，因此在此重新生成，摘要与原仓库不同。",
    ),
    # logging in
    "login_title": ("Log in to manage images", "登录以管理镜像"),
    "login_why": (
        "Viewing needs no password. The admin token was printed when the mirror was first started, and is in the file admin-token of its cache directory, unless it was set as server.admin_token.",
        "浏览无需登录。管理员令牌在镜像站首次启动时显示过，保存在缓存目录的 admin-token 文件中，除非已通过 server.admin_token 设置。",
    ),
    "token": ("Admin token", "管理员令牌"),
    # setting up
    "setup_intro": (
        "Choose what pulls your images. Everything below has this mirror's address filled in: {address}",
        "选择用来拉取镜像的程序。以下内容均已填入本镜像站的地址：{address}",
    ),
    "setup_client": ("Client", "客户端"),
    "setup_serves_docker": (
        "Docker Hub; images of other registries are named through the mirror",
        "Docker Hub 的镜像；其他镜像可通过本站按名称拉取",
    ),
    "setup_serves": ("all registries that this mirror serves", "本站所服务的全部镜像仓库"),
    "setup_for": ("Works for", "适用于"),
    "setup_script": ("By script", "使用脚本"),
    "setup_script_why": (
        "The script keeps existing settings, shows what it changes and makes a backup; --undo restores it.",
        "脚本会保留已有配置、说明所做的更改并备份，使用 --undo 可恢复原状。",
    ),
    "setup_undo": ("To undo it:", "恢复原状："),
    "setup_read": ("Read the script", "查看脚本"),
    "setup_hand": ("By hand", "手动配置"),
    "setup_hand_why": ("Add this to each file; create a file that does not exist:", "将以下内容加入各文件（没有则新建）："),
    "setup_then": ("Then", "然后"),
    "setup_then_none": (
        "It takes effect at the next pull; for cri-o, after systemctl reload crio.",
        "下次拉取即生效；cri-o 需执行 systemctl reload crio。",
    ),
    "setup_docker_build": (
        "docker pull uses the mirror from then on. In Docker 20.10, docker build uses it only after a restart of Docker.",
        "此后 docker pull 即通过镜像站拉取。在 Docker 20.10 中，docker build 需重启 Docker 后才会使用镜像站。",
    ),
    "setup_docker_elsewhere": ("Other kinds of Docker", "其他形式的 Docker"),
    "setup_no_systemd": ("Without systemd", "没有 systemd"),
    "setup_rootless": ("Rootless", "Rootless 模式"),
    "setup_desktop": (
        "Settings, Docker Engine: add the lines above, then Apply & restart. Docker runs in a virtual machine there, for which this machine is host.docker.internal.",
        "设置（Settings）→ Docker Engine：加入以上内容，然后应用并重启。Docker 在虚拟机中运行，本机在其中的名称为 host.docker.internal。",
    ),
    "setup_each": ("The same for each other registry:", "其他镜像仓库同理："),
    "setup_no_address": (
        "The address in this request cannot be written into a configuration.",
        "此请求中的地址无法写入配置。",
    ),
    "setup_loopback": (
        "This address works only on the mirror's own machine. For other machines, open this page by the mirror's host name.",
        "此地址仅适用于镜像站本机。若为其他机器配置，请使用镜像站的主机名打开本页。",
    ),
    # settings
    "settings_why": (
        "The settings in force. Secrets are left out.",
        "当前生效的设置，不含密码等机密。",
    ),
    "certificate": ("Certificate", "证书"),
    "certificate_until": ("valid until {date}, for {time}", "有效期至 {date}，剩余 {time}"),
    "certificate_ended": ("ended on {date}", "已于 {date} 过期"),
    # errors
    "error": ("This did not work", "操作未完成"),
    "original": ("Message:", "原文："),
}


def text(language: str, key: str, **values: object) -> str:
    """Returns a text with its values. Raises KeyError for an unknown key."""
    found = _TEXTS[key][list(LANGUAGES).index(language)]
    if "|" in found:
        one, other = found.split("|")
        found = one if values.get("n") == 1 else other
    filled = found.format(**{name: f"{value:,}" if isinstance(value, int) else value for name, value in values.items()})
    # A no-break space joins a number and its measure word.
    return re.sub(r"(?<=\d) (?=[\u4e00-\u9fff])", "\u00a0", filled)


def explain(language: str, message: str, error: Exception | None = None) -> str:
    """Translates an error's message; see `in_chinese`."""
    return in_chinese(message, error) if language == "zh" else message


def keys() -> frozenset[str]:
    return frozenset(_TEXTS)


def preferred(accept: str) -> str:
    """Returns the language that an Accept-Language header prefers (RFC 9110, section 12.5.4)."""
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
