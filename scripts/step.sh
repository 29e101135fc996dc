#!/usr/bin/env bash
# Runs one step of the set-up quietly: a line with its name and time, and how far it is.
#
#   scripts/step.sh NAME LOG COMMAND...
#
# What the command prints goes to LOG; its end is shown when the command fails. Steps of under two seconds print nothing.
set -u
name=$1 log=$2
shift 2
mkdir -p "$(dirname "$log")"
"$@" >"$log" 2>&1 &
command=$!
trap 'kill "$command" 2>/dev/null; wait "$command" 2>/dev/null; echo; exit 130' INT TERM

# Parts done, as ninja counts them: "120/360", or nothing.
progress() { grep -o '^\[[0-9]*/[0-9]*\]' "$log" | tail -n 1 | tr -d '[]'; }

shown=0 quarter=0
while kill -0 "$command" 2>/dev/null; do
    sleep 0.2
    [ "$SECONDS" -ge 2 ] || continue
    done_of=$(progress)
    if [ -t 1 ]; then
        printf '\r%s ... %s %d s ' "$name" "$done_of" "$SECONDS"
        shown=1
        continue
    fi
    [ "$shown" = 1 ] || echo "$name ..."
    shown=1
    if [ -n "$done_of" ] && [ $((4 * ${done_of%/*} / ${done_of#*/})) -gt "$quarter" ]; then
        quarter=$((4 * ${done_of%/*} / ${done_of#*/}))
        echo "$name ... $done_of, $SECONDS s"
    fi
done
wait "$command"
code=$?
if [ "$code" -ne 0 ]; then
    [ "$shown" = 0 ] || echo
    echo "$name failed after $SECONDS s. The end of $log:" >&2
    tail -n 30 "$log" >&2
elif [ "$shown" = 1 ]; then
    [ ! -t 1 ] || printf '\r\033[K'
    echo "$name: $SECONDS s"
fi
exit "$code"
