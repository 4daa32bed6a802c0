#!/bin/sh
# Starts VersityGW with the users in S3_USERS, "name:secret" separated by spaces. They are written anew at each start, to
# memory: whoever changes a secret in the environment has changed it. What each may do, the bucket's policy says.
#   ROOT_ACCESS_KEY_ID, ROOT_SECRET_ACCESS_KEY   who makes the bucket and its policy
#   S3_PORT, S3_FOLDER, S3_USERS_FOLDER          for a start without a container
set -eu
users_folder=${S3_USERS_FOLDER:-/tmp/iam}
umask 077
mkdir -p "$users_folder"

accounts=""
for user in ${S3_USERS:?expected the users as "name:secret name:secret"}; do
  name=${user%%:*}
  secret=${user#*:}
  case "$name$secret" in
    *[!A-Za-z0-9_-]*) echo "S3_USERS: expected letters, digits, - and _ in names and secrets" >&2; exit 1 ;;
  esac
  if [ ${#secret} -lt 16 ]; then
    echo "S3_USERS: expected secrets of 16 characters or more, that of $name is shorter" >&2
    exit 1
  fi
  accounts="$accounts${accounts:+,}\"$name\":{\"access\":\"$name\",\"secret\":\"$secret\",\"role\":\"user\"}"
done
printf '{"accessAccounts":{%s}}\n' "$accounts" > "$users_folder/users.json"
unset S3_USERS

exec versitygw --port ":${S3_PORT:-7070}" --health /health --iam-dir "$users_folder" --disable-acl --quiet \
  posix "${S3_FOLDER:-/data}"
