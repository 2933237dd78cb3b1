#!/usr/bin/env bash
# Makes .venv and installs everything; `make setup` calls it with PYTHON and EXTRAS.
#
# PyTorch for CPUs comes from PyTorch's own index where that answers: without CUDA's libraries, which are half of a setup.
# Elsewhere it is the ordinary build, which runs on CPUs, too. UV_TORCH_BACKEND, uv's own variable, chooses instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
PYTHON=${PYTHON:-python3} EXTRAS=${EXTRAS:?name the extras}

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

if [ ! -x .venv/bin/python ]; then
    command -v "$PYTHON" > /dev/null ||
        fail "no $PYTHON found. Install Python 3.11 or newer, or name one: make setup PYTHON=python3.12"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$PYTHON" --version 2>&1) is too old, 3.11 or newer is needed. Name another: make setup PYTHON=python3.12"
    "$PYTHON" -c 'import ensurepip, venv' 2> /dev/null ||
        fail "$PYTHON lacks venv or pip. On Debian and Ubuntu: apt install python3-venv"
    say "making .venv"
    "$PYTHON" -m venv .venv
fi
printf '%s\n' "$EXTRAS" > .venv/.extras
# With bytecode wherever PYTHONDONTWRITEBYTECODE is set: without it, each process compiles vLLM anew and starts 10 s later.
.venv/bin/python -m pip install --quiet -c constraints/constraints.txt uv

uv() { .venv/bin/uv pip install --python .venv/bin/python -c constraints/constraints.txt "$@"; }
project=(-e ".[$EXTRAS]")
case ",$EXTRAS," in
*,cpu,*)
    # See constraints/overrides.txt; vLLM for GPUs needs none.
    project+=(--override constraints/overrides.txt)
    if [ -z "${UV_TORCH_BACKEND:-}" ]; then
        # Asked for one package, it answers within seconds or not at all; then whether it has all that is needed.
        if UV_HTTP_TIMEOUT=5 UV_HTTP_CONNECT_TIMEOUT=5 UV_HTTP_RETRIES=0 \
            uv --quiet --dry-run --no-deps --reinstall-package torch --torch-backend cpu torch 2> /dev/null &&
            uv --quiet --dry-run --torch-backend cpu "${project[@]}" 2> /dev/null; then
            export UV_TORCH_BACKEND=cpu
        fi
    fi
    ;;
esac
if [ "${UV_TORCH_BACKEND:-}" = cpu ]; then
    say "PyTorch comes from its own index for CPUs; .venv will take less than 3 GB"
else
    say "PyTorch is the ordinary build, with CUDA; .venv will take 7 to 12 GB"
fi

say "installing; this takes 2 to 10 minutes, the last of them compiles bytecode"
if [ -t 2 ]; then
    uv --compile-bytecode "${project[@]}" # draws bars
else
    uv --compile-bytecode "${project[@]}" &
    installing=$!
    trap 'kill "$installing" 2> /dev/null' EXIT
    while sleep "${SETUP_EVERY_S:-15}" && kill -0 "$installing" 2> /dev/null; do
        say "$SECONDS s, .venv has $(du -sh .venv 2> /dev/null | cut -f1)"
    done
    wait "$installing"
    trap - EXIT
fi
case ",$EXTRAS," in
*,cpu,*)
    .venv/bin/python -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2> /dev/null ||
        echo "setup: warning: vLLM on CPU needs the system library libnuma.so.1. On Debian and Ubuntu: apt install libnuma1" >&2
    ;;
esac
say "done in $SECONDS s: .venv takes $(du -sh .venv | cut -f1)"
