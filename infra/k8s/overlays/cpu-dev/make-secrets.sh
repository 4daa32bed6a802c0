#!/bin/sh
# Prints the Secrets of this overlay with new random values, for `kubectl apply -f -`. Once: the stores keep the first ones.
set -eu
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
redis=$(secret)
owner=$(secret)
s3_root=$(secret)
users=""

# name, then KEY=value …
print_secret() {
  echo "---"
  echo "apiVersion: v1"
  echo "kind: Secret"
  echo "metadata: { name: $1, namespace: dream-engine }"
  echo "stringData:"
  shift
  for pair in "$@"; do echo "  ${pair%%=*}: \"${pair#*=}\""; done
}

cat <<END
apiVersion: v1
kind: Namespace
metadata: { name: dream-engine }
END
passwords=""
for process in gateway scheduler settlement runner notifier worker; do
  password=$(secret)
  key=$(secret)
  database="DATABASE_URL=postgres://dream_$process:$password@dream-postgres:5432/dream"
  set -- "AWS_ACCESS_KEY_ID=dream-$process" "AWS_SECRET_ACCESS_KEY=$key"
  case $process in
    gateway) set -- "$database" "OPERATOR_TOKEN=$(secret)" "$@" ;;
    settlement) set -- "$database" ;;
    worker) ;;
    *) set -- "$database" "$@" ;;
  esac
  [ $process = settlement ] || users="$users${users:+ }dream-$process:$key"
  [ $process = worker ] || passwords="$passwords $(echo $process | tr a-z A-Z)_DB_PASSWORD=$password"
  print_secret dream-$process "$@"
done
# shellcheck disable=SC2086 # one word a password
print_secret dream-setup "DATABASE_URL=postgres://dream_owner:$owner@dream-postgres:5432/dream" $passwords
print_secret dream-queue "REDIS_URL=redis://:$redis@dream-redis:6379/0"
print_secret dream-scaling "SCALING_TOKEN=$(secret)"
print_secret dream-stores "POSTGRES_PASSWORD=$owner" "REDIS_PASSWORD=$redis" "S3_ROOT_SECRET=$s3_root" "S3_USERS=$users"
