#!/usr/bin/env bash
# The scaled bundle from nothing: checks, data, autoencoder, network, export, TeaCache, evaluation.
# Run from the repository root, in a Python 3.11 environment with models/training/requirements.txt installed.
# Each step resumes or is skipped where its result lies in $WORKDIR already.
set -euo pipefail
WORKDIR=${WORKDIR:-models/scaled/runs}
BUNDLE=${BUNDLE:-bench/bundles/dreamdojo-scaled}
PYTHON=${PYTHON:-python3}
COMMIT=${COMMIT:-$(git rev-parse HEAD 2>/dev/null || true)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

$PYTHON -m models.scaled.selfcheck
$PYTHON -m models.scaled.data --workdir "$WORKDIR" --episodes 400
$PYTHON -m models.scaled.autoencoder --workdir "$WORKDIR" --steps 1500
$PYTHON -m models.scaled.train --workdir "$WORKDIR"
$PYTHON -m models.scaled.export --workdir "$WORKDIR" --bundle "$BUNDLE" --commit "$COMMIT"
$PYTHON -m models.scaled.teacache --bundle "$BUNDLE"
$PYTHON -m models.scaled.evaluate --bundle "$BUNDLE"
