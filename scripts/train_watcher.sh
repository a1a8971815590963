#!/usr/bin/env bash
# The recipe of a small model for `model.cascade`, twenty minutes on one core of a CPU:
#
#   scripts/train_watcher.sh SOUNDS [LARGE] [runs/watcher]
#
# SOUNDS has clips.csv and its recordings (see scripts/bundled_clips.py); LARGE is the checkpoint that the small one
# stands in front of and learns from (default: bundled). One of its windows takes an eleventh of the arithmetic of
# one of the bundled checkpoint. Fold 4 is held out, as it was from that: it chooses the thresholds, at which the
# small model may be wrong more often than a model that reports events. Every step resumes where it was stopped.
# The checkpoint is in model/checkpoint: name it in `model: {cascade: {checkpoint: ...}}`. What the cascade then
# loses and saves is measured by scripts/measure_cascade.py.
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: $0 SOUNDS [LARGE] [FOLDER]" >&2
    exit 2
fi
sounds=$1 large=${2:-bundled} out=${3:-runs/watcher}
bin=${BIN:-.venv/bin}
threads=${THREADS:-1}
fold=4
model=$out/model/checkpoint

mkdir -p "$out"
export OMP_WAIT_POLICY=passive
"$bin/python" scripts/bundled_clips.py "$sounds/clips.csv" "$out/clips.csv"
"$bin/ast-stream" train "$out/clips.csv" --preset small --out "$out/model" --test-fold "$fold" --windows \
    --width 64 --layers 4 --window 2.56 --steps "${STEPS:-1600}" --teacher "$large" \
    --generated "${GENERATED:-150}" --generated-backgrounds "${BACKGROUNDS:-600}" --negative-hours 0 \
    --device cpu --threads "$threads" --licence CC-BY-4.0
# of each class; the large model turns off what is false
"$bin/ast-stream" calibrate "$model" --data "$out/clips.csv" --test-fold "$fold" --budget "${BUDGET:-1/h}" \
    --among "${AMONG:-10/h}" --generated "${TAKES:-24}" --negative-hours "${NEGATIVE_HOURS:-1}" \
    --threads "$threads" --in-place
echo "$model: the checkpoint"
