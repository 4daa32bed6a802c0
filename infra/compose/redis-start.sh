#!/bin/sh
# Starts Redis with the password in REDIS_PASSWORD, which so stands in no command line. What the queue asks of a Redis: no
# job may be evicted, and what was acknowledged is in the append-only file within a second (the sweep mends that second).
#   REDIS_PORT, REDIS_FOLDER, REDIS_CONFIG   for a start without a container
set -eu
config=${REDIS_CONFIG:-/tmp/redis.conf}
case "${REDIS_PASSWORD:?expected the password of the queue}" in
  *[!A-Za-z0-9_-]*) echo "REDIS_PASSWORD: expected letters, digits, - and _" >&2; exit 1 ;;
esac
umask 077
cat > "$config" <<END
requirepass $REDIS_PASSWORD
port ${REDIS_PORT:-6379}
dir ${REDIS_FOLDER:-/data}
maxmemory-policy noeviction
appendonly yes
appendfsync everysec
save ""
END
unset REDIS_PASSWORD
exec redis-server "$config"
