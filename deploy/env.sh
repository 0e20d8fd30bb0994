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
    case $(value_of "$name") in
        '' | *[!A-Za-z0-9._~-]*)
            echo "$name in .env: expected letters, digits and . _ ~ - only, since it becomes part of a URL" >&2
            exit 1
            ;;
    esac
done

# Comments and line breaks go: the broker wants a line a user.
acl=$(sed -e '/^#/d' -e '/^$/d' deploy/redis/users.acl.in | awk '
    /^user/ { if (line != "") print line; line = $0; next }
    { sub(/^ +/, ""); line = line " " $0 }
    END { print line }')
for name in $secrets; do
    acl=$(printf '%s\n' "$acl" | sed "s/@$name@/$(hash_of "$(value_of "$name")")/")
done
printf '%s\n' "$acl" >deploy/redis/users.acl
chmod 644 deploy/redis/users.acl # the broker's container reads it as another user; hashes of random words tell nothing
echo "wrote .env and deploy/redis/users.acl"
