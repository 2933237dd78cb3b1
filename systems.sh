#!/usr/bin/env bash
# docs/systems.md: every system in the embedded world, in one page. `make systems`: under half an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")"
page=${2:-docs/systems.md}
# The demo first: its images, dialogues, trainings and functions. What is there already is not made again.
source ./demo.sh "${1:-demo-out}"
# Models so small train fastest on one thread, and two are trained at a time.
export OMP_NUM_THREADS=1

train() {  # script, name of the folder, settings
  local script=$1 name=$2 setting settings=()
  shift 2
  for setting in "out=$out/runs/$name" "$@"; do settings+=(--set "$setting"); done
  step accelerate launch "train/$script.py" --config "train/recipes/${script//_/-}-shapes.toml" --resume auto "${settings[@]}"
}
classify() { step dialog-eval classify --baseline shapes-clip --images "$out/test/images" \
  --labels "$out/test/classification/labels_shapes_test.json" --classes "$out/test/classification/classes.txt" \
  --templates "$out/test/classification/templates.txt" "$@"; }
generate() { step dialog-eval generate --images "$out/test/images" \
  --captions "$out/test/retrieval/captions_shapes_test.json" \
  --questions "$out/test/vqa/OpenEnded_shapes_test_questions.json" \
  --annotations "$out/test/vqa/shapes_test_annotations.json" \
  --train-annotations "$out/shapes/vqa/shapes_train_annotations.json" "$@"; }
measure() {  # name of the results, options: retrieval, VQA and classification
  local name=$1
  shift
  evaluate "$@" --betas 1,0 --out "$out/systems/$name-retrieval-vqa.json"
  classify "$@" --out "$out/systems/$name-zero-shot.json"
}

tuned() {  # from shapes-clip, on dialogues; a soup is the mean of the three DRAFTs
  measure captions-only --checkpoint "$out/captions-only/model" --label "captions only"
  measure draft-0 --checkpoint "$out/draft/model" --label DRAFT
  local seed data=data.dialogues="$out/dialogues" work=data.work="$out"
  for seed in 1 2; do
    train draft draft-$seed "$data" "$work/draft-data" seed=$seed
    measure draft-$seed --checkpoint "$out/runs/draft-$seed/model" --label DRAFT
  done
  [ -e "$out/runs/soup" ] ||
    step python train/soup.py --checkpoints "$out/draft/model" "$out"/runs/draft-{1,2}/model --out "$out/runs/soup"
  measure soup --checkpoint "$out/runs/soup" --label "DRAFT, soup of 3"
  # Alone, and blended with the text tower that it started from: 0.6 was chosen on the val split.
  train third_tower third-tower "$data" "$work/draft-data"
  local third=(--checkpoint "$out/runs/third-tower/model" --label "third tower")
  evaluate "${third[@]}" --betas 0.6 --blend embedding --out "$out/systems/third-tower-retrieval-vqa.json"
  classify "${third[@]}" --beta 0 --out "$out/systems/third-tower-zero-shot-alone.json"
  classify "${third[@]}" --beta 0.6 --out "$out/systems/third-tower-zero-shot-blend.json"
  train multitask multitask "$data" "$work/multitask-data"
  measure multitask --checkpoint "$out/runs/multitask/model" --label "three stages"
  train close close "$data" "$work/close-data"
  generate --checkpoint "$out/runs/close/model" --label CLOSE --out "$out/systems/close-answers.json"
}

from_scratch() {  # on images with captions; the baseline is a plain CLIP that saw as much
  local data=(data.images="$out/shapes/images" data.work="$out/clip-data")
  local baseline=(--baseline "$out/runs/clip/model" --baseline-label "CLIP from scratch")
  train clip clip "${data[@]}"
  train clip siglip "${data[@]}" loss=siglip
  measure siglip --checkpoint "$out/runs/siglip/model" --label SigLIP "${baseline[@]}"
  train mult mult "${data[@]}"
  measure mult --checkpoint "$out/runs/mult/model" --label MulT "${baseline[@]}"
  train mammut mammut data.dialogues="$out/dialogues" data.work="$out/mammut-data"
  measure mammut --checkpoint "$out/runs/mammut/model" --label MaMMUT "${baseline[@]}"
  generate --checkpoint "$out/runs/mammut/model" --label MaMMUT --out "$out/systems/mammut-answers.json"
}

# The two at a time. In a process group of its own, so that what ends the script ends it, too.
set -m
from_scratch &> >(sed -u 's/^/| /') &
scratch=$!
set +m
trap 'kill -- -$scratch 2> /dev/null || true' EXIT
tuned
wait $scratch

files=()
for name in captions-only draft soup third-tower multitask close siglip mult mammut; do
  files+=("$out/systems/$name"-*.json)
done
step dialog-eval table "${files[@]}" --out "$out/systems.md"
{
  cat <<'TEXT'
# Every system in the embedded world

Made by `make systems` from the recipes in `train/recipes/*-shapes.toml`, whose settings were chosen on the val split.
Trained on 3,072 images of the train split, of which 3,031 differ, with web-like captions and three questions and
answers each from `shapes-llava`; measured on 1,000 images of the test split.

| System | Starts from | Learns from | Steps of 128 | Seeds |
| ------ | ----------- | ----------- | -----------: | ----: |
| captions only, DRAFT's control | shapes-clip | captions | 400 | 1 |
| DRAFT | shapes-clip | captions, dialogues | 400 | 3 |
| DRAFT, soup of 3 | the three above | | | 1 |
| third tower | shapes-clip | captions, dialogues | 200 | 1 |
| three stages | shapes-clip | captions, dialogues | 3 x 150 | 1 |
| CLOSE | shapes-clip, decoder from scratch | dialogues, no image | 400 | 1 |
| CLIP, SigLIP, MulT | scratch | images with captions | 600 | 1 |
| MaMMUT | scratch | images with captions, dialogues | 600 | 1 |

What was tuned from shapes-clip is compared with it; what started from scratch saw far less than that did, and is
compared with a CLIP of as many steps on the same images. Intervals tell how a figure would move with other images, not
with another training: text R@1 of three seeds, on the val split, has a standard deviation of 1.4 for that CLIP and of
4.5 for MulT.

Classification: the images with exactly one large object, whose color and shape are one of 24 classes; chance is 4.2 %.
Generated answers are free text, judged as people's are; every other VQA figure is of 18 choices.

TEXT
  tail -n +3 "$out/systems.md"
} > "$page"
printf '\nWritten: %s\n' "$page"
