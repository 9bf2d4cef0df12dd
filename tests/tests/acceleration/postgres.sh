# A PostgreSQL server on port $1 with its files below the working directory, for a lab that goes with all that is in it.
set -e
PATH="$PATH:$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)"
export LC_ALL=C
mkdir -p sql
chown postgres sql
cd sql
# By its path: busybox has another one of this name.
run() { /usr/bin/setpriv --reuid postgres --regid postgres --init-groups -- "$@"; }
run initdb -D . --no-sync -A trust -U postgres >/dev/null
echo 'host all all all trust' >>pg_hba.conf
exec /usr/bin/setpriv --reuid postgres --regid postgres --init-groups -- \
    postgres -D . -p "$1" -c listen_addresses='*' -c unix_socket_directories= -c fsync=off -c max_wal_size=1GB
