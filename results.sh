#!/usr/bin/env bash
# docs/results.md: DRAFT and its controls in the embedded world, three seeds each. `make results`: about half an hour.
set -euo pipefail
cd "$(dirname "$0")"
# The demo first: its images, dialogues and functions. What is there already is not made again.
source ./demo.sh "${1:-demo-out}"

files=()
measure() {  # label, name of the folder, betas, settings
  local label=$1 name=$2 betas=$3 seed setting settings=()
  shift 3
  for setting in "$@"; do settings+=(--set "$setting"); done
  for seed in 0 1 2; do
    draft --set seed=$seed --set out="$out/runs/$name-$seed" "${settings[@]}"
    evaluate --checkpoint "$out/runs/$name-$seed/model" --label "$label" --betas "$betas" --out "$out/runs/$name-$seed.json"
    files+=("$out/runs/$name-$seed.json")
  done
}
measure "DRAFT" draft 0.95,0.9,0.8,0.6
measure "DRAFT without MMD" no-mmd 1,0 loss.mmd_weight=0
measure "captions only" captions-only 1,0 caption_only=true
step dialog-eval table "${files[@]}" --out docs/results.md --plot docs/sweep.png
