#!/bin/sh
# What docker compose needs and no repository may hold: .env, with passwords drawn at random, and from them the broker's
# deploy/redis/users.acl. A value that .env already has stays as it is: run it again after a change.
set -eu
cd "$(dirname "$0")/.."
umask 077
secrets="REDIS_PASSWORD_API REDIS_PASSWORD_WORKER REDIS_PASSWORD_PRODUCER REDIS_PASSWORD_SUBSCRIBER REDIS_PASSWORD_MONITOR
    GRAFANA_PASSWORD"

hash_of() {
    if command -v sha256sum >/dev/null; then sum=$(printf %s "$1" | sha256sum); else sum=$(printf %s "$1" | shasum -a 256); fi
    printf %s "${sum%% *}"
}

value_of() {
    sed -n "s/^$1=//p" .env | tail -n 1
}

if [ ! -e .env ]; then
    echo "# Of docker compose, by \`make env\`. Never commit it; docs/deploy.md lists what else may stand here." >.env
    echo "COMPOSE_PROFILES=monitoring" >>.env
fi
for name in $secrets; do
    if ! grep -q "^$name=" .env; then
        echo "$name=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')" >>.env
    fi
    value=$(value_of "$name")
    case $value in
        '' | *[!A-Za-z0-9._~-]*)
            echo "$name in .env: expected letters, digits and . _ ~ - only, since it becomes part of a URL" >&2
            exit 1
            ;;
    esac
    if [ ${#value} -lt 32 ]; then
        echo "$name in .env is short: whoever reads users.acl can guess it. Delete its line, and a word is drawn." >&2
    fi
done

shards=$(value_of SHARDS)
case ${shards:=32} in
    *[!0-9]* | 0*)
        echo "SHARDS in .env: expected a whole number from 1" >&2
        exit 1
        ;;
esac

# Comments and line breaks go: the broker wants a line a user. A word with {*} becomes one for each pattern of shards:
# of 32 these are [0-9], [1-2][0-9] and 3[0-1].
acl=$(sed -e '/^#/d' -e '/^$/d' deploy/redis/users.acl.in | awk -v shards="$shards" '
    function any(digits,    text) { text = ""; while (digits-- > 0) text = text "[0-9]"; return text }
    BEGIN {
        last = shards - 1 ""; size = length(last)
        for (digits = 1; digits < size; digits++) patterns[++n] = digits == 1 ? "[0-9]" : "[1-9]" any(digits - 1)
        for (at = 1; at <= size; at++) {
            least = at == 1 && size > 1 ? 1 : 0; most = substr(last, at, 1) - (at < size)
            if (least <= most) patterns[++n] = substr(last, 1, at - 1) "[" least "-" most "]" any(size - at)
        }
    }
    /^user/ { if (line != "") print line; line = ""; }
    {
        for (word = 1; word <= NF; word++) {
            place = index($word, "{*}")
            if (!place) { line = line (line == "" ? "" : " ") $word; continue }
            for (i = 1; i <= n; i++) {
                head = substr($word, 1, place)
                if (i > 1) sub(/^\(/, "", head)
                line = line " " head patterns[i] substr($word, place + 2)
            }
        }
    }
    END { print line }')
for name in $secrets; do
    acl=$(printf '%s\n' "$acl" | sed "s/@$name@/$(hash_of "$(value_of "$name")")/")
done
printf '%s\n' "$acl" >deploy/redis/users.acl
# The broker's container reads it as user and group 999. Who may not give it to that group leaves it to be read by all:
# hashes of drawn words tell nothing.
if chgrp 999 deploy/redis/users.acl 2>/dev/null; then chmod 640 deploy/redis/users.acl; else chmod 644 deploy/redis/users.acl; fi
echo "wrote .env and deploy/redis/users.acl"
