#!/usr/bin/env bash
# The whole flow on the embedded world, in the commands a user types. `make demo` sets everything up first.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-demo-out}

step() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

# Images from a server on loopback, fetched by img2dataset into tars, captions beside them.
step dialog-gen download shapes --out "$out/shapes" --limit 3072
# A LLaVA-1.5 of two million parameters asks and answers three questions about each image, on vLLM.
step dialog-gen run --model shapes-llava --images "$out/shapes/images" --out "$out/dialogues"
# Every byte again: checksums, counts, ids.
step dialog-gen verify "$out/dialogues"
# The scene graphs, which the pipeline never reads, say what is true.
step python -m dialog_gen.world.truth "$out/dialogues" "$out/shapes" --show 5
