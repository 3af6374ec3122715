#!/bin/bash
# Stores every line of cities.txt in the database, and reads it back.
set -euo pipefail

exec 3<>"/dev/tcp/$1/$2"

expect() { # REQUEST ANSWER
    local answer
    echo "$1" >&3
    read -r -t 5 answer <&3
    if [ "$answer" != "$2" ]; then
        echo "FAIL  $1: expected '$2', got '$answer'"
        exit 1
    fi
    echo "ok    $1"
}

while IFS=: read -r country city; do
    expect "set $country $city" ok
done <"$(dirname "$0")/cities.txt"

while IFS=: read -r country city; do
    expect "get $country" "$city"
done <"$(dirname "$0")/cities.txt"

expect "get Atlantis" "not found"
