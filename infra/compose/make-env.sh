#!/bin/sh
# Writes what docker-compose.yml must be given into .env: a random value for each secret that is not in it yet. What is
# there stays, so it can be run again after an upgrade. Usage: infra/compose/make-env.sh [file]
set -eu
file=${1:-.env}
umask 077
touch "$file"
chmod 600 "$file"
# A last line without its end would take the first new one in.
if [ -n "$(tail -c 1 "$file")" ]; then echo >> "$file"; fi
for name in \
  POSTGRES_PASSWORD \
  GATEWAY_DB_PASSWORD SETTLEMENT_DB_PASSWORD SCHEDULER_DB_PASSWORD RUNNER_DB_PASSWORD NOTIFIER_DB_PASSWORD \
  REDIS_PASSWORD \
  S3_ROOT_SECRET S3_GATEWAY_SECRET S3_SCHEDULER_SECRET S3_RUNNER_SECRET S3_NOTIFIER_SECRET S3_WORKER_SECRET S3_OPERATOR_SECRET \
  OPERATOR_TOKEN GRAFANA_PASSWORD; do
  if grep -q "^$name=." "$file"; then continue; fi
  # 24 bytes as hexadecimal digits: nothing that a URL, a shell or a configuration file would read otherwise.
  value=$(od -An -v -tx1 -N24 /dev/urandom | tr -d ' \n')
  printf '%s=%s\n' "$name" "$value" >> "$file"
  echo "$file: made $name" >&2
done
