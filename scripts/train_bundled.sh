#!/usr/bin/env bash
# The recipe of the bundled checkpoint, three hours on one core of a CPU:
#
#   scripts/train_bundled.sh SOUNDS TEACHER.tflite SOUNDFONT.sf2 [runs/bundled]
#
# SOUNDS has clips.csv and its recordings (see scripts/bundled_clips.py); TEACHER is a tagger of waveforms
# such as YAMNet, from which training learns what sounds are like: nothing of it is kept (it needs the extra
# `teacher`). SOUNDFONT (FluidR3_GM) plays songs of which Music is learnt, too; that needs FluidSynth.
# Fold 4 is held out: it chooses the thresholds, and the report says what the checkpoint is worth on it.
# Recordings of talk and of music in the folders $TALK and $MUSIC choose them as well, if they are given; nothing
# is trained on these. Every step resumes where it was stopped. The checkpoint is in model/checkpoint, its figures
# in report/.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 SOUNDS TEACHER.tflite SOUNDFONT.sf2 [FOLDER]" >&2
    exit 2
fi
sounds=$1 teacher=$2 soundfont=$3 out=${4:-runs/bundled}
bin=${BIN:-.venv/bin}
steps=${STEPS:-12500} second_steps=${SECOND_STEPS:-6000}
fold=4

# minutes of talk, music and sounds of no class that thresholds are chosen by, and hours of generated ones
talk_minutes=${TALK_MINUTES:-120}
music_minutes=${MUSIC_MINUTES:-85}
unknown_minutes=${UNKNOWN_MINUTES:-25}
negative_hours=${NEGATIVE_HOURS:-1}
# of each class in these hours; what finds too little then is off by default
budget=(--budget "${BUDGET:-0.1/h}" --budget rain=0.2/h --budget sneeze=0.2/h --budget tick_tock=0.2/h
    --budget music=0.2/h --among "${AMONG:-4/h}" --off-below 0.5)

mkdir -p "$out"
export OMP_WAIT_POLICY=passive
clips=$out/clips.csv
if [ ! -f "$out/songs/songs.csv" ]; then
    "$bin/python" scripts/render_music.py "$out/songs" --soundfont "$soundfont" --songs "${SONGS:-200}"
fi
"$bin/python" scripts/bundled_clips.py "$sounds/clips.csv" "$clips" --songs "$out/songs/songs.csv"

train() { # FOLDER STEPS [OPTION ...]
    local folder=$1 n=$2
    shift 2
    "$bin/ast-stream" train "$clips" --preset small --out "$folder" --test-fold "$fold" --steps "$n" \
        --frames --waveform-teacher "$teacher" --generated 150 --generated-backgrounds 600 --negative-hours 0 \
        --device cpu --licence CC-BY-4.0 "$@"
}
train "$out/first" "$steps"
train "$out/model" "$second_steps" --start "$out/first/checkpoint" --learning-rate 7e-4 --seed 1

stream() { # NAME LABEL SECONDS-BETWEEN MINUTES TELEPHONE [FOLDER]
    if [ ! -f "$out/$1.wav" ]; then
        "$bin/python" scripts/negative_stream.py "$out/$1.part.wav" ${6:+"$6"} --table "$clips" --label "$2" \
            --fold "$fold" --gap "$3" --minutes "$4" --telephone "$5"
        mv "$out/$1.part.wav" "$out/$1.wav"
    fi
}
stream talk Speech 0.3..4 "$talk_minutes" 0.5 "${TALK:-}"
stream music Music 0.5..3 "$music_minutes" 0.2 "${MUSIC:-}"
stream unknown - 1..6 "$unknown_minutes" 0
negatives=(
    --negatives "Speech=$out/talk.wav"
    --negatives "Music=$out/music.wav"
    --negatives "$out/unknown.wav"
)

"$bin/ast-stream" calibrate "$out/model/checkpoint" --data "$clips" --test-fold "$fold" "${budget[@]}" \
    "${negatives[@]}" --negative-hours "$negative_hours" --in-place
# generated noise sounds like surf: that class hears more of it
"$bin/ast-stream" calibrate "$out/model/checkpoint" --data "$clips" --test-fold "$fold" --class waves_surf \
    --budget "${BUDGET:-0.1/h}" --among "${AMONG:-4/h}" "${negatives[@]}" \
    --negative-hours "${SURF_HOURS:-6}" --in-place
"$bin/ast-stream" evaluate "$clips" --test-fold "$fold" --model "$out/model/checkpoint" --report "$out/report"
echo "$out/model/checkpoint: the checkpoint; $out/report: what it is worth"
