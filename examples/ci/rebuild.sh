#!/bin/sh
# Rebuilds libraries from tuning logs and packages them, in a checkout of septune. Nothing is
# measured and no device is needed. Fails, with status 1 and every layer named, when a log no longer
# fits: a record is missing, or of another kernel, target or device.
#
#     sh examples/ci/rebuild.sh [FOLDER]
set -eu

out=${1:-build/rebuilt}
python=${PYTHON:-python3}
mkdir -p "$out"

rebuild() { # NAME, then what names machine and log
    name=$1
    shift
    "$python" -m tune build "$@" --require-tuned -o "$out/$name.so"
    "$python" -m tune build "$@" --require-tuned -o "$out/again/$name.so"
    cmp "$out/$name.so" "$out/again/$name.so"
    cmp "$out/$name.json" "$out/again/$name.json"
}

rebuild x86 --target x86 --device znver4 --threads 2 --from-log logs/x86/znver4.jsonl
# The committed log of this core holds estimates: executed instructions, counted under emulation.
rebuild arm64 --target arm64 --device cortex-a76 --threads 1 \
    --from-log logs/arm64/cortex-a76.jsonl --allow-estimates

rm -r "$out/again"
(cd "$out" && sha256sum ./*.so ./*.json >SHA256SUMS)
cat "$out/SHA256SUMS"
