#!/bin/bash
# Packs what a machine with a GPU and no network lacks: TVM, its ffi and XGBoost, for Python 3.12.
#
#     pack.sh FOLDER [SIZE]
#
# writes FOLDER/site.tar.xz.N, parts of SIZE (30M by default) that can travel one by one, and their
# sums. visit.sh puts them together. Takes some minutes, most of them for the compression.
set -euo pipefail

folder=$(realpath -m "$1")
size=${2:-30M}
checkout=$(realpath "$(dirname "$0")/../..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

platforms=()
for glibc in 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
cd "$checkout"
pins=$(python3 -c 'from tune.pins import PINS; print(*(f"{name}=={v}" for name, v in PINS.items()))')
# shellcheck disable=SC2086
python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
    --python-version 3.12 "${platforms[@]}" --dest "$work" $pins 'xgboost-cpu>=3.2,<4'

mkdir -p "$folder" "$work/site"
rm -f "$folder"/site.tar.xz.* "$folder/parts.sha256"
for wheel in "$work"/*.whl; do python3 -m zipfile -e "$wheel" "$work/site"; done
cd "$work/site"
rm -rf tvm/{3rdparty,web,src,include,cmake,lib64,lib/cmake} tvm_ffi/{include,3rdparty,src}
find . -name '*.so' -exec strip --strip-unneeded {} +

cd "$folder"
tar -C "$work/site" -c . | xz --x86 --lzma2=preset=9e | split --bytes="$size" -d -a 1 - site.tar.xz.
sha256sum site.tar.xz.* > parts.sha256
ls -l
