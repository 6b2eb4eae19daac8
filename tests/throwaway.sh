# shellcheck shell=bash disable=SC2034 # throwaway_status is for the scripts that read this
# A throwaway folder with servers in it, for scripts that run a command
# against a server of its own.  Read with `.` by with-postgres and
# with-pgbouncer; throwaway-watchdog is its other half.
#
#       throwaway_open NAME             makes $throwaway_folder
#       throwaway_as_owner COMMAND...   runs a server's program from within it
#       throwaway_file NAME             writes standard input to a file in it
#       throwaway_run COMMAND...        runs the user's command, sets $throwaway_status
#       throwaway_close                 everything is gone when it returns
#
# States: none -> open -> (running -> open) -> closed.  The way from any of
# them to closed is the same however the script ends, because the clearing
# is not done here but by the watchdog, a process in a session of its own that
# reads a pipe of which this script alone holds the other end: exit, a signal
# and SIGKILL all end that pipe.
#
# What must hold:
# - Every process of a server has its working directory in the folder (hence
#   throwaway_as_owner changes to it): that is how the watchdog finds them,
#   also those that were started later, or have been forked by others.
# - Everything a server leaves behind is in the folder.
# - The descriptors of the watchdog's pipe are closed on exec; bash does so
#   with those of a coprocess.  A server that held one would keep the
#   watchdog waiting.

throwaway_folder=
throwaway_status=0

# Servers refuse to run as root: root's are run as `postgres`.  setpriv leaves no process of its own behind.
throwaway_owner=$(id -un)
throwaway_become=()
if [ "$(id -u)" = 0 ]; then
    throwaway_owner=postgres
    throwaway_become=(setpriv --reuid=postgres --regid=postgres --init-groups)
fi

# "Not here" is 77 to Automake: a skipped test, with the reason in its log.
throwaway_skip() {
    echo "${0##*/}: skipped: $*" >&2
    exit 77
}

# Anything that should have worked is 99 to Automake: not the command's fault.
throwaway_fail() {
    echo "${0##*/}: $*" >&2
    exit 99
}

throwaway_open() {
    id -u "$throwaway_owner" > /dev/null 2>&1 || throwaway_skip "there is no user $throwaway_owner to run a server as"
    [ -d /proc/self ] || throwaway_skip "no /proc to find a server's processes in"

    trap throwaway_close EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    coproc throwaway_watchdog {
        # Without the caller's environment: the watchdog looks for processes by it.
        exec env -i PATH="$PATH" TMPDIR="${TMPDIR:-/tmp}" \
            setsid "${BASH_SOURCE[0]%/*}/throwaway-watchdog" "$1" "$throwaway_owner" "${throwaway_become[@]}"
    }
    throwaway_watchdog_pid=$!
    # bash forgets the descriptors of a coprocess that has ended.
    read -r -t 30 throwaway_folder 2> /dev/null <&"${throwaway_watchdog[0]-}" ||
        throwaway_fail "cannot make a folder that $throwaway_owner can use"
}

throwaway_as_owner() (
    cd "$throwaway_folder" && exec "${throwaway_become[@]}" "$@"
)

# The servers' user owns what is in the folder.
throwaway_file() {
    throwaway_as_owner tee "$throwaway_folder/$1" > /dev/null
}

# A port that is free as far as a look can tell; only the server's own bind
# decides, and the caller tries another one when that fails.  Below 32768,
# where Linux takes the ports of outgoing connections from.  The first attempt
# is GUARD_TEST_PORT, if set: that is how a clash is tested.
throwaway_port() {
    if [ "$1" = 1 ] && [ -n "${GUARD_TEST_PORT-}" ]; then
        echo "$GUARD_TEST_PORT"
    else
        echo $((20000 + (RANDOM * 32768 + RANDOM) % 12000))
    fi
}

# Runs the command in the background, since bash runs a trap only between
# two foreground commands, but otherwise as if in the foreground: on the
# same standard input, and with SIGINT and SIGQUIT as they are by default (a
# background command of a shell without job control has them ignored).
throwaway_run() {
    local interrupted='' forwarded='' again
    { : <&0; } 2> /dev/null || exec < /dev/null
    env --default-signal=INT,QUIT -- "$@" <&0 &
    throwaway_command=$!
    # A command that was told to end may leave processes behind: the watchdog, not told that it has ended, stops them.
    trap 'interrupted=1; throwaway_forward HUP' HUP
    trap 'interrupted=1; throwaway_forward TERM' TERM
    trap 'interrupted=1; throwaway_at_terminal || throwaway_forward INT' INT
    wait "$throwaway_command"
    throwaway_status=$?
    while [ -n "$interrupted" ]; do
        interrupted=
        wait "$throwaway_command"
        again=$?
        # 127: it had already been waited for, and its status is known.
        [ "$again" = 127 ] || throwaway_status=$again
    done
    trap '' HUP INT TERM
    [ -n "$forwarded" ] || echo ended >&"${throwaway_watchdog[1]}"
}

# A terminal sends SIGINT to the command as well as to this script, and it
# is the command's to answer (psql cancels a query); a second one from here would
# be one too many.  True if this process group has the terminal.
throwaway_at_terminal() {
    local group terminal_group
    read -r _ _ _ _ group _ _ terminal_group _ < "/proc/$$/stat"
    [ "$group" = "$terminal_group" ]
}

throwaway_forward() {
    forwarded=1
    kill -s "$1" "$throwaway_command" 2> /dev/null
    throwaway_ends_within 10 "$throwaway_command" || kill -s KILL "$throwaway_command" 2> /dev/null
}

# True if the process ends within so many seconds.  A shell can only look again and again.
throwaway_ends_within() {
    local deadline=$((SECONDS + $1))
    while kill -0 "$2" 2> /dev/null; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.02
    done
}

# The watchdog bounds each of its steps, so that waiting for it is bounded too.
throwaway_close() {
    local status=$? pipe=${throwaway_watchdog[1]-}
    trap '' HUP INT TERM
    trap - EXIT
    [ -z "$pipe" ] || exec {pipe}>&-
    if ! wait "$throwaway_watchdog_pid"; then
        echo "${0##*/}: could not clear away ${throwaway_folder:-the folder}" >&2
        status=99
    fi
    exit "$status"
}
