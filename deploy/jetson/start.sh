#!/bin/sh
# MODEL [options of dtkd-edge demo]: run a model live; an engine that was built for another GPU or TensorRT, or not yet, is built first.
set -eu
model=${1:?usage: start.sh MODEL [options of dtkd-edge demo]}
shift
if grep -q '"target": "tensorrt"' "$model/manifest.json" &&
    ! python3 -c 'import sys, dtkd_edge; dtkd_edge.load(sys.argv[1]).close()' "$model" 2>/dev/null; then
    dtkd-edge export "$model" --target tensorrt
fi
exec dtkd-edge demo "$model" "$@"
