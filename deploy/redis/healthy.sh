#!/bin/sh
# Whether the broker answers, for its container's health check: exit status 0 or 1. Runs in the broker's folder.
#
# It also ends a script that holds the broker for longer than busy-reply-threshold. A script that has written cannot be
# ended alone: then the broker ends, by the second of two SIGINTs, and is started again (`restart: unless-stopped`). That
# loses nothing that was acknowledged: what it answered is in its append-only file, and of the script nothing is.
cli=$(command -v redis-cli || command -v valkey-cli) || exit 1
ask() { "$cli" --user health --pass any --no-auth-warning "$@" 2>&1; }

case $(ask ping) in
    PONG*) exit 0 ;;
    BUSY*) said=$(ask script kill) ;;
    *) exit 1 ;;
esac
echo "a script held the broker; ending it: $said"
case $said in
    UNKILLABLE*)
        kill -INT "$(cat broker.pid)"
        sleep 1
        kill -INT "$(cat broker.pid)"
        ;;
esac
exit 1
