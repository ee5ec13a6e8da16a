"""The texts of the page about the fleet, as in texts.py."""

from __future__ import annotations

FLEET_TEXTS: dict[str, tuple[str, str]] = {
    "fleet": ("Fleet", "集群"),
    "fleet_why": (
        "Equal mirrors, each with a cache of its own: what one of them lacks it asks the others for, and what is changed by hand here is changed at all.",
        "彼此对等的镜像服务器，各有自己的缓存：自己没有的内容先向其他服务器索取；在此处手动所做的更改会应用到所有服务器。",
    ),
    "fleet_here_only": (
        "No fleet.token_file is set: what is changed here is changed here only.",
        "未设置 fleet.token_file：在此处所做的更改仅对本服务器生效。",
    ),
    "fleet_mirror": ("Mirror", "服务器"),
    "fleet_this": ("this one", "本机"),
    "fleet_state": ("State", "状态"),
    "fleet_alive": ("answers", "正常"),
    "fleet_silent": ("no answer", "无应答"),
    "fleet_untold": ("does not say how it is", "未说明状态"),
    "fleet_degraded": ("degraded", "性能下降"),
    "fleet_other_list": ("another list of mirrors", "服务器列表不同"),
    "fleet_differs": ("other: ", "不同："),
    "fleet_differs_access": ("[[access]] tables", "[[access]] 表"),
    "fleet_differs_guards": ("[[guard]] tables", "[[guard]] 表"),
    "fleet_differs_users": ("users or tokens", "用户或令牌"),
    "fleet_another": ("answers as {mirror}", "应答者自称 {mirror}"),
    "fleet_clock": ("clock differs by {time}", "时钟相差 {time}"),
    "fleet_version": ("Version", "版本"),
    "fleet_cache": ("Cache", "缓存"),
    "fleet_hits": ("Hits", "命中"),
    "fleet_sent": ("Sent", "已发送"),
    "fleet_fetched": ("Fetched", "已拉取"),
}
