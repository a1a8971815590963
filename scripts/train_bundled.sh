#!/usr/bin/env bash
# The recipe of the bundled checkpoint, in hours on a CPU:
#
#   scripts/train_bundled.sh clips.csv [runs/bundled]
#
# clips.csv has columns file, fold, audioset_label and licence, e.g. made from ESC-10. Five stages, and the
# mean of the last two, for all clips and for each fold held out; thresholds of each model come from folds
# that the others held out. Every step resumes where it was stopped. The checkpoint is in all/checkpoint,
# what it is worth in report/.
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: $0 CLIPS.csv [FOLDER]" >&2
    exit 2
fi
clips=("$1" --label-column audioset_label --where "licence=CC0,CC-BY")
out=${2:-runs/bundled}
ast_stream=${AST_STREAM:-.venv/bin/ast-stream}

read -ra steps <<<"${STEPS:-2600 1200 2000 2000 2800}" # of the five stages
rates=(8e-4 4e-4 6e-4 6e-4 6e-4)
seeds=(0 1 2 4 5)
backgrounds=(1000 1000 4000 4000 4000)
parts=(all 1 2 3 4) # held-out folds

# hours of audio without events, for the checkpoint itself and for those of the folds
negative_hours=${NEGATIVE_HOURS:-48}
fold_negative_hours=${FOLD_NEGATIVE_HOURS:-4}
# accepted false alarms of each class, without any sound and among others
budget=(
    --budget 0.03/h
    --budget siren=0.17/h
    --budget telephone_bell_ringing=0.05/h
    --budget smoke_detector_smoke_alarm=0.05/h
    --among 4/h
)

export OMP_WAIT_POLICY=passive

train() {
    "$ast_stream" train "${clips[@]}" --preset small --negative-hours 0 --device cpu \
        --licence CC-BY-4.0 "$@"
}

train_part() {
    local part=$1 held_out=() start=() mean=$out/$1/checkpoint
    if [ "$part" != all ]; then held_out=(--test-fold "$part"); fi
    for stage in {1..5}; do
        train --out "$out/$part/$stage" "${start[@]}" --steps "${steps[stage - 1]}" \
            --learning-rate "${rates[stage - 1]}" --seed "${seeds[stage - 1]}" \
            --generated-backgrounds "${backgrounds[stage - 1]}" "${held_out[@]}"
        start=(--start "$out/$part/$stage/checkpoint")
    done
    if [ ! -d "$mean" ]; then
        rm -rf "$mean.unfinished"
        "$ast_stream" model average "$out/$part"/{4,5}/checkpoint -o "$mean.unfinished"
        mv "$mean.unfinished" "$mean"
    fi
}

calibrate_part() {
    local part=$1 others=() hours=$fold_negative_hours
    if [ "$part" = all ]; then hours=$negative_hours; fi
    for fold in 1 2 3 4; do
        if [ "$fold" != "$part" ]; then others+=(--fold-checkpoint "$out/$fold/checkpoint"); fi
    done
    "$ast_stream" calibrate "$out/$part/checkpoint" --data "${clips[@]}" "${others[@]}" \
        "${budget[@]}" --negative-hours "$hours" --in-place
}

for part in "${parts[@]}"; do train_part "$part"; done
for part in 1 2 3 4 all; do calibrate_part "$part"; done
models=()
for fold in 1 2 3 4; do models+=(--model "$out/$fold/checkpoint"); done
"$ast_stream" evaluate "${clips[@]}" --cross-validate "${models[@]}" --report "$out/report"
echo "$out/all/checkpoint: the checkpoint; $out/report: what it is worth"
