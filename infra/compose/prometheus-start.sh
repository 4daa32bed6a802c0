#!/bin/sh
# Starts Prometheus with the operator's token, which gateways want for /metrics, in a file in memory: Prometheus reads no
# environment, and Compose cannot put a secret from .env into a container whose file system is read-only.
set -eu
umask 077
printf '%s' "${OPERATOR_TOKEN:?expected the token of the operator}" > /tmp/operator-token
unset OPERATOR_TOKEN
exec prometheus --config.file=/etc/prometheus/prometheus.yml --storage.tsdb.path=/prometheus \
  "--storage.tsdb.retention.time=${PROMETHEUS_RETENTION:-30d}"
