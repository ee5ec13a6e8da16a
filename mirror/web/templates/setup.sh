#!/bin/sh
# Makes {{ plan.client.title }} on this machine pull through the mirror at {{ plan.address.url }}. Run it as root:
#
#   sh {{ plan.client.name }}.sh          adds the mirror to each file; the old file is kept as FILE.before-mirror
#   sh {{ plan.client.name }}.sh --undo   restores the files
#   --root DIR                            looks for the files under DIR
#
# It keeps the same records as "mirror configure {{ plan.client.name }}": either can undo what the other did.
# Exit status: 0 done, 1 failed, 2 wrong use.
set -eu
umask 022

root='' undo=no
while [ $# -gt 0 ]; do
  case $1 in
    --undo) undo=yes ;;
    --root)
      [ $# -gt 1 ] || { echo "mirror: --root needs a folder" >&2; exit 2; }
      root=${2%/}
      shift
      ;;
    *) echo "mirror: only --undo and --root DIR are known" >&2; exit 2 ;;
  esac
  shift
done

fail() {
  printf 'mirror: %s\n' "$*" >&2
  exit 1
}

say_done() {
  printf 'Done. %s\n' "$(cat)"
}
{% if plan.client.name == "docker" %}

if [ -z "$root" ]; then
  if [ -d /var/snap/docker/current ] && [ ! -e /usr/bin/dockerd ]; then
    fail "this Docker is a snap: its file is /var/snap/docker/current/config/daemon.json, then: snap restart docker. Run: mirror configure docker --mirror {{ plan.address.url }} --write"
  fi
  if [ -d "$HOME/.docker/desktop" ]; then
    fail "this is Docker Desktop: add \"registry-mirrors\": [\"{{ plan.address.url }}\"] at Settings, Docker Engine; a mirror on this machine is http://host.docker.internal:PORT there"
  fi
  if [ "$(id -u)" != 0 ]; then
    fail "root is needed for /etc/docker/daemon.json; rootless Docker reads ~/.config/docker/daemon.json, then: systemctl --user reload docker. Run: mirror configure docker --mirror {{ plan.address.url }} --write"
  fi
fi
{% endif %}

command -v sha256sum >/dev/null || fail "sha256sum is needed (coreutils)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$work/faults"
: >"$work/paths"

ours() { # FILE: true if it is as this script, or mirror configure, wrote it
  [ -f "$1" ] && [ -f "$1.mirror-undo" ] && grep -q "\"written\": \"$(sha256sum <"$1" | cut -d ' ' -f 1)\"" "$1.mirror-undo"
}

# ---------------------------------------------------------------- undo

restore() { # FILE
  if grep -q '"existed": true' "$1.mirror-undo"; then
    cp -p "$1.before-mirror" "$1.mirror-new"
    mv -f "$1.mirror-new" "$(readlink -f "$1")"
    rm -f "$1.before-mirror"
  else
    rm -f "$1"
  fi
  # The record has no newline at its end.
  { sed -n 's/.*"folders": \[\(.*\)\].*/\1/p' "$1.mirror-undo" | sed 's/", "/\n/g; s/"//g' && echo; } >>"$work/folders"
  rm -f "$1.mirror-undo"
  if [ -e "$1" ]; then echo "restored $1"; else echo "deleted $1"; fi
}

collect() { # RECORD…: adds the file of each to $work/paths
  for record in "$@"; do
    [ -f "$record" ] || continue
    file=${record%.mirror-undo}
    ours "$file" || fail "$file has been changed since: compare it with its .before-mirror and restore it by hand"
    printf '%s\n' "$file" >>"$work/paths"
  done
}

if [ "$undo" = yes ]; then
  : >"$work/folders"
{% for pattern in plan.patterns %}
  collect "$root"{{ pattern }}.mirror-undo
{% endfor %}
  [ -s "$work/paths" ] || fail "nothing was changed here: there is nothing to undo"
  while IFS= read -r file; do restore "$file"; done <"$work/paths"
  # The innermost first; folders that hold other files stay.
  sort -ru "$work/folders" | while IFS= read -r folder; do rmdir "$folder" 2>/dev/null || true; done
  say_done <<'MIRROR_END'
{{ plan.client.next_step(true) }}
MIRROR_END
  exit 0
fi

# ---------------------------------------------------------------- merging: each prints the merged file; false if it cannot be merged safely

new_only() { # NEW BEFORE
  false
}
{% if plan.files | selectattr("merge", "equalto", "at_the_end") | list %}

at_the_end() { # NEW BEFORE
  ! grep -q registry "$2" && cat "$2" && echo && cat "$1"
}
{% endif %}
{% if plan.tables %}

as_containerd() { # NEW BEFORE
  if grep -q '^[[:space:]]*disabled_plugins.*"\(io\.containerd\.grpc\.v1\.\)\{0,1\}cri"' "$2" || grep -q 'config_path.*/etc/containerd/certs\.d' "$2"; then
    # The CRI plugin is disabled, or the folder is configured already.
    cat "$2"
    return 0
  fi
{% for table in plan.tables.values() %}
  # As "containerd config default" prints it: the table exists, with an empty config_path and nothing below it.
  awk -v table='{{ table.splitlines()[0] }}' '
    BEGIN { below = substr(table, 1, length(table) - 1) "." }
    { line = $0; gsub(/\047/, "\"", line); gsub(/^[ \t]+|[ \t]+$/, "", line) }
    line ~ /^\[/ { now = line; if (index(now, below) == 1 && now !~ /[.](auths|configs|headers|mirrors)\]$/) more = 1 }
    now == table && line == "config_path = \"\"" { sub(/""|\047\047/, "\"/etc/containerd/certs.d\""); found++ }
    index(now, below) == 1 && line !~ /^(\[.*|#.*)?$/ { more = 1 }
    { all = all $0 "\n" }
    END { if (found != 1 || more) exit 1; printf "%s", all }
  ' "$2" && return 0
{% endfor %}
  # The word in a value, such as an image's name, does not count.
  ! sed -e 's/#.*//' -e 's/^\([^=]*=\)[[:space:]]*"[^"]*"[[:space:]]*$/\1/' "$2" | grep -q registry || return 1
{% for version, table in plan.tables.items() %}
  if grep -q '^version *= *{{ version }}' "$2"; then
    cat "$2"
    cat <<'MIRROR_END'

{{ table }}
MIRROR_END
    return 0
  fi
{% endfor %}
  return 1
}
{% endif %}
{% if plan.files | selectattr("merge", "equalto", "as_json") | list %}

as_json() { # NEW BEFORE
  command -v python3 >/dev/null && python3 - "$2" 2>/dev/null <<'MIRROR_END'
import json, sys
with open(sys.argv[1]) as file:
    text = file.read()
tree = json.loads(text)
mirrors = tree.setdefault("registry-mirrors", [])
mirrors[:] = ["{{ plan.address.url }}"] + [mirror for mirror in mirrors if mirror.rstrip("/") != "{{ plan.address.url }}"]
{% if plan.insecure %}
insecure = tree.setdefault("insecure-registries", [])
if "{{ plan.address.authority }}" not in insecure:
    insecure.append("{{ plan.address.authority }}")
{% endif %}
print(json.dumps(tree, indent=2, ensure_ascii=False))
MIRROR_END
}
{% endif %}

want() { # PATH MERGE: standard input is the content of a file that does not exist yet
  file=$root$1 before=$root$1 place=$work/$(wc -l <"$work/paths")
  cat >"$place.new"
  # If this script has run before, it starts from the original file, so that no earlier mirror is kept.
  if ours "$file"; then before=$file.before-mirror; fi
  if ! grep -q '[^[:space:]]' "$before" 2>/dev/null; then
    cp "$place.new" "$place"
  elif ! "$2" "$place.new" "$before" >"$place"; then
    {
      echo "mirror: $file exists, and a script cannot merge it safely. Add this by hand, or use mirror configure {{ plan.client.name }}:"
      sed 's/^/    /' "$place.new"
    } >>"$work/faults"
  fi
  printf '%s\n' "$file" >>"$work/paths"
}

put() { # FILE NEW
  if [ -f "$1" ] && cmp -s "$1" "$2"; then return 0; fi
  folder=$(dirname "$1") made='' existed=false
  if ours "$1"; then
    made=$(sed -n 's/.*"folders": \[\(.*\)\].*/\1/p' "$1.mirror-undo")
    if grep -q '"existed": true' "$1.mirror-undo"; then existed=true; fi
  else
    above=$folder
    while [ ! -d "$above" ]; do
      made="\"$above\"${made:+, $made}"
      above=$(dirname "$above")
    done
    mkdir -p "$folder"
    if [ -e "$1" ]; then
      cp -p "$1" "$1.before-mirror"
      existed=true
    fi
  fi
  # The record is written before the file, so a crash between them can be undone.
  printf '{"existed": %s, "written": "%s", "folders": [%s]}' "$existed" "$(sha256sum <"$2" | cut -d ' ' -f 1)" "$made" >"$1.mirror-undo"
  if [ -e "$1" ]; then cp -p "$1" "$1.mirror-new"; fi
  cat "$2" >"$1.mirror-new"
  mv -f "$1.mirror-new" "$(readlink -f "$1" || echo "$1")"
  echo "wrote $1"
}

{% for file in plan.files %}
want {{ file.path }} {{ file.merge }} <<'MIRROR_END'
{{ file.text }}{{ "" if file.text.endswith("\n") else "\n" }}MIRROR_END
{% endfor %}

if [ -s "$work/faults" ]; then
  cat "$work/faults" >&2
  fail "nothing was written"
fi
number=0
while IFS= read -r file; do
  put "$file" "$work/$number"
  number=$((number + 1))
done <"$work/paths"
{% if plan.client.then.startswith("systemctl reload ") %}
if [ -z "$root" ] && command -v systemctl >/dev/null && systemctl is-active --quiet {{ plan.client.then.split()[-1] }}; then
  {{ plan.client.then }}
  say_done <<'MIRROR_END'
{{ plan.client.then.split()[-1] }} has read its settings again. {{ plan.client.note }}
MIRROR_END
  exit 0
fi
{% endif %}
say_done <<'MIRROR_END'
{{ plan.client.next_step() }}
MIRROR_END
