"""The dashboard: pages for people, rendered here, with a little script and style of their own and nothing from another host.

Looking is open to whoever may pull; changing anything needs the admin token (admin.py). What is shown comes from the cache's inventory and board; nothing of it
is trusted: every text goes through the templates' escaping, and the Content-Security-Policy allows no script or style but the two files in ``static/``.
"""
