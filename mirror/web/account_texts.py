"""The texts of logging in and of the account, as `mirror.web.texts` has them."""

from __future__ import annotations

ACCOUNT_TEXTS: dict[str, tuple[str, str]] = {
    "user": ("User", "用户名"),
    "password": ("Password or token", "密码或令牌"),
    "login_users": (
        "With your user and password, or a token in its place. With the user admin, the admin token is the password.",
        "请输入用户名和密码（也可用令牌代替密码）。以 admin 为用户名时，密码为管理员令牌。",
    ),
    "login_by": ("Log in by {name}", "通过 {name} 登录"),
    "mine": ("Images for you", "您可用的镜像"),
    "mine_why": ("What is cached of the repositories that you may pull from.", "您有权拉取的仓库中已缓存的内容。"),
    "account": ("Account", "账户"),
    "month": ("Sent this month", "本月流量"),
    "month_who": ("To whom", "用户"),
    "month_of": ("Repositories", "仓库"),
    "month_sent": ("Sent", "已发送"),
    "month_most": ("Allowed", "额度"),
    "month_reached": ("used up", "已用完"),
    "month_none": ("Nothing that is limited by the month.", "没有按月限制的流量。"),
}
