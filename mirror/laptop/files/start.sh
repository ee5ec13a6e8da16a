#!/bin/sh
# Serves the images of the bundles in this folder. Written by mirror export --laptop.
case $0 in
    */*) here=${0%/*} ;;
    *) here=. ;;
esac
for python in python3 python; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1; then
        exec "$python" -I "$here/mirror.pyz" "$@"
    fi
done
echo 'Python 3.8 or newer is needed, and was not found: install python3.' >&2
exit 1
