"""The dashboard: pages rendered on the server, with one script and one style sheet of their own, and nothing from another host.

Every client that may pull can see the pages; changes need the admin token (admin.py). The pages show the cache's inventory and its active downloads. None of that is trusted: the
templates escape every text, and the Content-Security-Policy allows no script or style but the files in ``static/``.
"""
