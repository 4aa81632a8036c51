# shellcheck shell=bash
# Makes a machine ready to run this checkout. Sourced by deploy/run and tests/run.
#
# What is missing is found by trying it, not by asking for package names: a machine that has it from
# elsewhere gets no packages. Only Debian and its derivatives get packages at all.

PROGRAM=$0
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
BUILD=$ROOT/.build
LOG=$BUILD/setup.log
SYSTEM_PYTHON=/usr/bin/python3 # not the first in PATH: bcc is there for Debian's only
MISSING=()

say() {
    echo "$PROGRAM: $*" >&2
}

die() { # CODE TEXT; the codes are those of gpubpf
    local code=$1
    shift
    say "$@"
    exit "$code"
}

need_root() {
    [[ $EUID -eq 0 ]] || die 3 "must run as root (to load BPF programs): try sudo $PROGRAM"
}

# One set-up at a time: others wait. The lock ends with the process, or with `unlock`.
lock() {
    mkdir -p "$BUILD"
    exec 9>"$BUILD/setup.lock"
    flock 9
}

unlock() {
    exec 9>&-
}

# need PACKAGE COMMAND...: notes the Debian package unless the command succeeds
need() {
    "${@:2}" >/dev/null 2>&1 || MISSING+=("$1")
}

has_module() {
    "$SYSTEM_PYTHON" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec(sys.argv[1]))' "$1"
}

need_python() {
    need python3 "$SYSTEM_PYTHON" -c ''
    need python3-venv has_module ensurepip # which Debian splits off, unlike venv itself
    need python3-bpfcc has_module bcc
}

need_compiler() {
    need gcc gcc --version
    need make make --version
    need libc6-dev test -e /usr/include/stdio.h
}

# Installs what `need` noted, without starting any service that comes with it.
install_missing() {
    local policy=/usr/sbin/policy-rc.d mine=
    [[ ${#MISSING[@]} -gt 0 ]] || return 0
    command -v apt-get >/dev/null || die 1 \
        "this is not Debian: install what is in its packages ${MISSING[*]}, then run this again"
    say "installing ${MISSING[*]}"
    update_lists
    if [[ ! -e $policy ]]; then # services stay off while packages are set up
        mine=$policy
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        # shellcheck disable=SC2064
        trap "rm -f '$policy'" EXIT
    fi
    apt_get install --yes --no-install-recommends "${MISSING[@]}" ||
        die 1 "apt-get can't install ${MISSING[*]}: $(apt_error)"
    if [[ $mine ]]; then
        rm -f "$mine"
        trap - EXIT
    fi
    MISSING=()
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >"$LOG" 2>&1 9>&- </dev/null
}

update_lists() {
    # Not fatal by itself: one repository of many may be down, or the lists may be good enough.
    apt_get update || true
}

# The first error of the last apt-get, and where to read the rest
apt_error() {
    local error
    error=$(grep -m1 '^E: ' "$LOG" || tail -n1 "$LOG")
    echo "${error#E: } (is the network there? more in $LOG)"
}

need_new_python() {
    "$SYSTEM_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die 1 "gpubpf needs Python 3.11, $SYSTEM_PYTHON is $("$SYSTEM_PYTHON" -V): use Debian 12"
}

# install NAME EXTRAS ARGUMENT...: pip-installs the project (with those extras) and the arguments
# into .venv, unless just that was done before.
#
# The project is installed editable: the checkout is then what runs, so that an update of it needs
# no pip (and no network), and the tests test the very files.
install() {
    local name=$1 extras=$2 stamp file want
    shift 2
    stamp=$VENV/stamp-$name
    want=$("$SYSTEM_PYTHON" -V && echo "$VENV $extras $*" && cat "$ROOT/pyproject.toml" && {
        for file in "$@"; do
            [[ ! -f $file ]] || cat "$file"
        done
    })
    if [[ -e $stamp && $(<"$stamp") == "$want" ]] && venv_fits; then
        return
    fi
    need_new_python
    say "installing Python packages into .venv ($name)"
    rm -f "$stamp"
    local options=(--system-site-packages)
    venv_fits || options+=(--clear)
    "$SYSTEM_PYTHON" -m venv "${options[@]}" "$VENV" >"$LOG" 2>&1 ||
        die 1 "can't make $VENV: $(tail -n1 "$LOG")"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable "$ROOT$extras" "$@" >"$LOG" 2>&1 9>&- </dev/null ||
        die 1 "pip can't install the Python packages: $(pip_error)"
    echo "$want" >"$stamp"
}

# Whether .venv was made here, by the system's Python as it is now, and sees its packages.
venv_fits() {
    local which='import sys; print(sys.base_prefix, sys.version)'
    [[ -x $VENV/bin/python && $(head -n1 "$VENV/bin/pip" 2>/dev/null) == "#!$VENV/bin/"* ]] &&
        [[ $("$VENV/bin/python" -c "$which") == "$("$SYSTEM_PYTHON" -c "$which")" ]] &&
        "$VENV/bin/python" -c 'import importlib.util as u; assert u.find_spec("bcc")' 2>/dev/null
}

pip_error() {
    local error
    error=$(grep -m1 '^ *ERROR: ' "$LOG" || tail -n1 "$LOG")
    echo "${error#*ERROR: } (is the network there? more in $LOG)"
}
