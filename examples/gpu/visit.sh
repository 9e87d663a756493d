#!/bin/bash
# A visit to a machine with a GPU, nvcc, Python 3.12, PyTorch and Triton, but no network:
#
#     visit.sh PARTS [option of python -m tune harvest]…
#
# PARTS is a folder with one or more of the parts that pack.sh has made, and parts.sha256. They are
# put into $WORK, and while some are missing that is all. With the last one the harvest begins, and
# with every further call it goes on. However a call ends, what was found by then lies in $OUT:
# summary.md, and all records and results in harvest.tar.gz.N, of 15 MiB at most. On another machine
# the harvest goes on from these where they are among the PARTS.
set -eu

parts=$(realpath "$1")
shift
checkout=$(realpath "$(dirname "$0")/../..")
work=$(realpath -m "${WORK:-/tmp/septune-visit}")
out=$(realpath -m "${OUT:-visit}")
most_s=${MOST_S:-570} # a step that hangs ends the call then

mkdir -p "$work/parts" "$out"
cp "$parts"/* "$work/parts/"
cd "$work/parts"
if [ ! -e "$work/site/complete" ]; then
    if ! sha256sum --check --quiet --ignore-missing parts.sha256; then
        echo "$parts has a part that pack.sh has not made; expected the sums of parts.sha256;" \
            "copy it again" >&2
        exit 1
    fi
    if ! sha256sum --check --status parts.sha256 2> /dev/null; then
        echo "waiting for the other parts; there are" site.tar.xz.*
        exit 0
    fi
    cat site.tar.xz.* > "$work/site.tar.xz"
    python3 -m tarfile --filter data -e "$work/site.tar.xz" "$work/site"
    touch "$work/site/complete"
fi
if [ ! -e "$work/harvest" ] && [ -e harvest.tar.gz.0 ]; then
    cat harvest.tar.gz.* | tar -C "$work" -xz
fi
mkdir -p "$work/harvest"

leave() {
    status=$?
    set +e
    trap '' TERM INT
    kill "$harvest" 2> /dev/null && wait "$harvest"
    tar -C "$work" -cz --exclude='*.so' --exclude='*.pt' --exclude=inductor harvest |
        split --bytes=15M -d -a 1 - "$out/harvest.tar.gz."
    cp "$work/harvest/summary.md" "$out" 2> /dev/null
    exit "$status"
}

cd "$checkout"
command -v nvcc > /dev/null || PATH=/usr/local/cuda/bin:$PATH
export PATH PYTHONUNBUFFERED=1 PYTHONPATH="$work/site:$checkout"
timeout --kill-after=10 "$most_s" python3 -m tune harvest -o "$work/harvest" "$@" \
    > >(tee -a "$work/harvest/printed.txt") 2>&1 &
harvest=$!
trap leave EXIT
trap 'exit 143' TERM INT
wait "$harvest"
