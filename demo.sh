#!/usr/bin/env bash
# The whole flow on the embedded world, in the commands a user types. `make demo` sets everything up first.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-demo-out}

bold= plain=
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
step() { printf '\n%s$ %s%s\n' "$bold" "$*" "$plain"; "$@"; }

# Images from a server on loopback, fetched by img2dataset into tars, captions beside them.
step dialog-gen download shapes --out "$out/shapes" --limit 3072
# A LLaVA-1.5 of two million parameters asks and answers three questions about each image, on vLLM. Then gates mark what
# is doubtful: self-consistency asks each question again, four times, on its own.
step dialog-gen run --model shapes-llava --images "$out/shapes/images" --out "$out/dialogues" \
  --gates length,leak,near_duplicate,yes_bias,logprob,self_consistency
# Every byte again: checksums, counts, ids.
step dialog-gen verify "$out/dialogues"
# The scene graphs, which the pipeline never reads, say what is true, and what of it the gates keep.
step python -m dialog_gen.shapes.truth "$out/dialogues" "$out/shapes" --show 5

# DRAFT tunes a CLIP's text tower on the dialogues and captions; the control takes as many steps on captions alone.
draft() { step dialog-train draft --config draft-shapes --resume auto \
  --set data.dialogues="$out/dialogues" --set data.work="$out/draft-data" "$@"; }
draft --set out="$out/draft"
draft --set out="$out/captions-only" --set caption_only=true

# Both against the CLIP they started from, on scenes that neither saw, alone and blended with it.
step dialog-gen download shapes --split test --out "$out/test" --limit 1000
evaluate() { step dialog-eval sweep --baseline shapes-clip --images "$out/test/images" \
  --captions "$out/test/retrieval/captions_shapes_test.json" \
  --questions "$out/test/vqa/MultipleChoice_shapes_test_questions.json" \
  --annotations "$out/test/vqa/shapes_test_annotations.json" \
  --train-annotations "$out/shapes/vqa/shapes_train_annotations.json" "$@"; }
evaluate --checkpoint "$out/draft/model" --label DRAFT --betas 0.9,0.8,0.6 --out "$out/results/draft.json"
evaluate --checkpoint "$out/captions-only/model" --label "captions only" --betas 1,0 --out "$out/results/captions-only.json"
step dialog-eval table "$out/results/draft.json" "$out/results/captions-only.json" --out "$out/results.html" --plot "$out/sweep.png"
# Last, so that it is what the terminal ends with: a page to look through the dataset.
step dialog-gen report "$out/dialogues" --out "$out/report.html"
printf '\nOpen %s (the dataset) and %s (the models).\n' "$out/report.html" "$out/results.html"
