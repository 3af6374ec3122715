# What infra/quickstart and tests/run share: an engine, the base image, ours.
# Sourced by bash scripts that run under `set -euo pipefail`; leaves nothing set
# but the functions below and $repository_root.

# shellcheck shell=bash
repository_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

base_image=debian:trixie-slim

say() {
    if [ -t 1 ]; then printf '\033[1m==> %s\033[0m\n' "$*"; else printf '==> %s\n' "$*"; fi
}

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# need COMMAND WHY: ends the script when COMMAND is not there.
need() { command -v "$1" >/dev/null || die "$1 is missing: $2"; }

# apt_install PACKAGE…: installs those that are not installed yet.
apt_install() {
    local package missing=()
    for package; do
        dpkg-query --show --showformat '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' \
            || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    command -v apt-get >/dev/null \
        || die "${missing[*]} must be installed, and this is no Debian: there is no apt-get"
    [ "$(id -u)" = 0 ] || die "${missing[*]} must be installed: run this as root, or install them first"
    say "installing ${missing[*]}"
    apt-get update --quiet=2
    DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --quiet=2 --no-install-recommends "${missing[@]}"
}

# Where cargo puts what it builds: outside the checkout, so that a fresh clone
# finds what another one compiled.
cargo_target_dir() {
    echo "${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/compose-ci/target}"
}

# Makes `docker` speak to an engine: the one that answers already, or Debian's,
# installed and started.
ensure_engine() {
    if engine_answers; then return 0; fi
    if [ -n "${DOCKER_HOST:-}" ]; then die "no engine answers at DOCKER_HOST=$DOCKER_HOST"; fi

    apt_install docker.io iptables
    # From Debian 13 on the client is a package of its own.
    command -v docker >/dev/null || apt_install docker-cli
    # The package may have started the engine.
    if engine_answers; then return 0; fi

    [ "$(id -u)" = 0 ] || die "the Docker engine is not running: start it, or run this as root"
    if [ -d /run/systemd/system ]; then
        say "starting the Docker engine (systemctl stop docker ends it)"
        systemctl start docker
    else
        local log=/var/log/dockerd.log
        say "starting the Docker engine in the background: there is no systemd here (log: $log; kill \$(cat /var/run/docker.pid) ends it)"
        remove_stale_pid_files
        setsid dockerd >"$log" 2>&1 </dev/null &
    fi
    wait_until 30 engine_answers \
        || die "the Docker engine did not start within 30 s${log:+: $(tail -n 1 "$log")}"
}

# An engine that was killed leaves its process id behind, and the next one does not
# start if that id belongs to somebody else by now.
remove_stale_pid_files() {
    local file
    for file in /var/run/docker.pid /var/run/docker/containerd/containerd.pid; do
        [ -e "$file" ] || continue
        grep -qE '^(dockerd|containerd)$' "/proc/$(cat "$file")/comm" 2>/dev/null || rm -f "$file"
    done
}

engine_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# wait_until SECONDS COMMAND…: runs COMMAND until it succeeds; fails after SECONDS.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.2
    done
}

# Makes sure that the engine has $base_image: as it is, pulled, or, where no
# registry can be reached, made by debootstrap from Debian's packages.
ensure_base_image() {
    if docker image inspect "$base_image" >/dev/null 2>&1; then return 0; fi
    say "pulling $base_image"
    if timeout 120 docker pull --quiet "$base_image"; then return 0; fi
    say "no registry can be reached: making a stand-in for $base_image with debootstrap"
    debootstrap_base_image
}

debootstrap_base_image() (
    [ "$(id -u)" = 0 ] || die "debootstrap needs root"
    apt_install debootstrap ca-certificates
    tree=$(mktemp -d)
    trap 'rm -rf "$tree"' EXIT
    debootstrap --variant=minbase trixie "$tree" >"$tree.log" \
        || die "debootstrap failed: $(tail -n 1 "$tree.log") ($tree.log)"
    rm "$tree.log"

    # What the published image has as well: updates and security fixes …
    sed -E -i 's|^deb (\S+) trixie main$|&\ndeb \1 trixie-updates main\ndeb \1-security trixie-security main|' \
        "$tree/etc/apt/sources.list"
    # … and packages without their documentation.
    cat >"$tree/etc/dpkg/dpkg.cfg.d/docker" <<'END'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
END
    # A machine without a registry often stands behind a proxy with a certificate
    # of its own: what this machine trusts, the image trusts.
    mkdir -p "$tree/usr/local/share/ca-certificates" "$tree/etc/ssl/certs"
    cp -R /usr/local/share/ca-certificates/. "$tree/usr/local/share/ca-certificates"
    cp /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs"

    tar --create --directory "$tree" --one-file-system \
        --exclude './dev/*' --exclude './proc/*' --exclude './sys/*' \
        --exclude './var/cache/apt/*' --exclude './var/lib/apt/lists/*' \
        --exclude './usr/share/doc/*' --exclude './usr/share/info/*' \
        --exclude './usr/share/locale/*' --exclude './usr/share/man/*' . \
        | docker import --message "made by compose-ci with debootstrap" --change 'CMD ["bash"]' \
            - "$base_image" >/dev/null
)

rust_image=rust:1-trixie

# Makes sure that the engine has $rust_image: as it is, pulled, or, where no
# registry can be reached, made from this machine's own toolchain.
ensure_rust_image() {
    if docker image inspect "$rust_image" >/dev/null 2>&1; then return 0; fi
    say "pulling $rust_image"
    if timeout 300 docker pull --quiet "$rust_image"; then return 0; fi
    need rustc "without a registry, $rust_image is made from this machine's toolchain"
    ensure_base_image
    say "no registry can be reached: making a stand-in for $rust_image from this machine's toolchain"
    toolchain_context | docker build --quiet --force-rm --tag "$rust_image" - >/dev/null
}

# A Dockerfile and beside it the toolchain's bin and lib.
toolchain_context() (
    dockerfile=$(mktemp -d)
    trap 'rm -rf "$dockerfile"' EXIT
    cat >"$dockerfile/Dockerfile" <<END
FROM $base_image
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY bin /usr/local/bin
COPY lib /usr/local/lib
END
    tar --create --directory "$dockerfile" Dockerfile --directory "$(rustc --print sysroot)" bin lib
)

# build_image TAG [BINARY]: builds infra/docker/Dockerfile. With BINARY, which
# this machine's cargo compiled, nothing is compiled and no image with Rust in it
# is needed; without, the image's own first stage compiles the checkout.
build_image() {
    local tag=$1 binary=${2:-} replaced
    ensure_base_image
    replaced=$(docker image inspect --format '{{.Id}}' "$tag" 2>/dev/null || true)
    if [ -n "$binary" ]; then
        prebuilt_context "$binary" \
            | docker build --quiet --force-rm --tag "$tag" --file infra/docker/Dockerfile \
                --build-arg "BUILDER=$base_image" - >/dev/null
    else
        docker build --quiet --force-rm --tag "$tag" \
            --file "$repository_root/infra/docker/Dockerfile" "$repository_root" >/dev/null
    fi

    # The classic builder keeps every first stage, and the image that lost its tag.
    docker image prune --force --filter label=compose-ci.stage=binary >/dev/null
    [ -z "$replaced" ] || remove_untagged "$replaced"
}

# Removes an image that nobody can name any more; a container that still uses it keeps it.
remove_untagged() {
    if [ "$(docker image inspect --format '{{len .RepoTags}}' "$1" 2>/dev/null)" = 0 ]; then
        docker image rm "$1" >/dev/null 2>&1 || true
    fi
}

# The Dockerfile, the files beside it that the image takes, and at the root the binary.
prebuilt_context() {
    tar --create \
        --directory "$repository_root" infra/docker \
        --directory "$(dirname "$1")" "$(basename "$1")"
}

# Whether a program that is linked on this machine runs in the image: glibc only
# promises that older programs run on a newer library. Needs the base image.
links_for_the_image() {
    local here there
    command -v cargo >/dev/null || return 1
    here=$(getconf GNU_LIBC_VERSION 2>/dev/null) || return 1
    there=$(docker run --rm "$base_image" getconf GNU_LIBC_VERSION) \
        || die "a container of $base_image does not run"
    [ "$(uname -m)" = "$(docker info --format '{{.Architecture}}')" ] \
        && printf '%s\n' "$here" "$there" | sort --check --version-sort 2>/dev/null
}
