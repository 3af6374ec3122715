# What the rows of tests/bench/run share: the service and its stand-ins, rounds
# that take turns, medians, the table. Sourced after infra/lib.sh, under
# `set -euo pipefail`.

# shellcheck shell=bash

# The compiled programs.
bin=${BIN_DIR:-$(cargo_target_dir)/release}
image=${BUILD_IMAGE:-compose-ci:local}

token=the-token-of-the-benchmark
secret=the-secret-of-the-benchmark
repository=bench/app

# Commits that the stand-in for GitHub makes up: so many files of so many bytes.
empty=0000000000000000000000000000000000000e00
files_2000=0000000000000000000000000000000000002000
mib_2=0000000000000000000000000000000000000002
mib_400=0000000000000000000000000000000000000400

# A directory, and the end of all that is started. It is on a disk: what is durable in
# memory costs nothing.
make_work() {
    work=$(mktemp -d /var/tmp/compose-ci-bench.XXXXXX)
    touch "$work/pids" "$work/table"
    trap stop_all EXIT
}

start_github() {
    start github "$bin/stand-in" --token "$token" \
        --commit "$repository@$empty=0x0" \
        --commit "$repository@$files_2000=2000x4096" \
        --commit "$repository@$mib_2=2x1048576" \
        --commit "$repository@$mib_400=400x1048576"
    github_url=http://$(address_of github)
}

# start_service VARIABLE=VALUE…: the service on a new DATA_DIR and a free port. Sets
# $service_url, $service_pid and $data_dir. $pin is a command before it, if set.
start_service() {
    data_dir=$(mktemp -d "$work/data.XXXXXX")
    # shellcheck disable=SC2086 # $pin is several words
    start service env -i PATH="$PATH" ${DOCKER_HOST:+DOCKER_HOST="$DOCKER_HOST"} BIND=127.0.0.1 PORT=0 DATA_DIR="$data_dir" \
        GITHUB_API_URL="$github_url" GITHUB_TOKEN="$token" GITHUB_REPO="$repository" \
        WEBHOOK_SECRET="$secret" BUILD_IMAGE="$image" HOOK=true \
        "$@" ${pin:-} "$bin/compose-ci" serve
    service_pid=$started
    service_url=http://$(address_of service)/
    wait_until 60 curl --fail --silent --output /dev/null "${service_url}healthz" \
        || die "the service does not answer: $(tail -n 3 "$work/service.log")"
}

stop_service() {
    stop "$service_pid"
    rm -rf "$data_dir"
}

# start NAME COMMAND…: until `stop` or the end, its output in $work/NAME.log. Waits until
# it says where it listens; sets $started to its process.
start() {
    local name=$1
    shift
    : >"$work/$name.log"
    "$@" >"$work/$name.log" 2>&1 &
    started=$!
    echo "$started" >>"$work/pids"
    wait_until 20 grep -q 'listening on ' "$work/$name.log" \
        || die "$name did not start: $(cat "$work/$name.log")"
}

address_of() { sed -nE 's|.*listening on ([a-z]+://)?([0-9.:]+).*|\2|p' "$work/$1.log"; }

stop() {
    kill "$1"
    wait "$1" 2>/dev/null || true
    sed -i "/^$1\$/d" "$work/pids"
}

stop_all() {
    # shellcheck disable=SC2046
    kill $(cat "$work/pids") 2>/dev/null || true
    rm -rf "$work"
}

# build COMMIT [OPTION…]: pushes and waits until it is settled; prints what tests/harness's
# bench tells.
build() {
    local commit=$1
    shift
    "$bin/bench" build --service "$service_url" --data-dir "$data_dir" --secret "$secret" \
        --repo "$repository" --commit "$commit" "$@"
}

# milliseconds SHELL_COMMAND: how long it takes, without its shell.
milliseconds() {
    hyperfine --style none --runs 1 --export-json "$work/hyperfine.json" "$1" >/dev/null 2>&1 \
        || die "this failed: $1"
    jq '.results[0].times[0] * 1000' "$work/hyperfine.json"
}

# peak_rss_kib PID, rss_kib PID
peak_rss_kib() { awk '/^VmHWM:/ { print $2 }' "/proc/$1/status"; }
rss_kib() { awk '/^VmRSS:/ { print $2 }' "/proc/$1/status"; }

# take_turns NAME ROUNDS OURS PEER: calls both in each round; what they print, one line of
# numbers, is kept in $work/NAME.ours and $work/NAME.peer. The first round warms up.
take_turns() {
    local name=$1 rounds=${ROUNDS:-$2} ours=$3 peer=$4 round our_line peer_line
    for ((round = 0; round <= rounds; round++)); do
        # What one side leaves to be written must not slow the other one down.
        sync
        our_line=$("$ours")
        sync
        peer_line=$("$peer")
        echo "$name, round $round of $rounds: $our_line, $peer_line" >&2
        [ "$round" -gt 0 ] || continue
        echo "$our_line" >>"$work/$name.ours"
        echo "$peer_line" >>"$work/$name.peer"
    done
}

median() { sort -g | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int((NR + 2) / 2)]) / 2 }'; }

# The medians of one column of what take_turns kept: of ours, of the peer, and of the
# rounds' ratios and differences.
ours() { cut -d' ' -f"${2:-1}" "$work/$1.ours" | median; }
peer() { cut -d' ' -f"${2:-1}" "$work/$1.peer" | median; }
ratio() { in_pairs "$@" | awk '{ print $1 / $2 }' | median; }
difference() { in_pairs "$@" | awk '{ print $1 - $2 }' | median; }
in_pairs() {
    paste -d' ' <(cut -d' ' -f"${2:-1}" "$work/$1.ours") <(cut -d' ' -f"${2:-1}" "$work/$1.peer")
}

# tell WHAT OURS PEER VALUE UNIT COMPARISON GOAL: a line of the table, - for what there is not.
# No figure fails the script: machines differ.
tell() {
    awk -v what="$1" -v ours="$2" -v peer="$3" -v value="$4" -v unit="$5" \
        -v comparison="$6" -v goal="$7" '
        function short(number) {
            if (number == "-") return number
            return sprintf(number + 0 < 10 ? "%.2f" : number + 0 < 100 ? "%.1f" : "%.0f", number)
        }
        BEGIN {
            met = comparison == "≥" ? value + 0 >= goal + 0 : value + 0 <= goal + 0
            printf "%s\t%s\t%s\t%s %s\t%s %s %s\t%s\n", what, short(ours), short(peer),
                short(value), unit, comparison, goal, unit, met ? "met" : "missed"
        }' >>"$work/table"
}

print_table() {
    { printf 'row\tours\tpeer\tfigure\tgoal\t\n' && cat "$work/table"; } | column -t -s $'\t'
}
