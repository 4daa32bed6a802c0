#!/usr/bin/env bash
# Everything from nothing: data, three trainings, export, evaluation, golden tensors, example, contact sheet.
# Run from the repository root, in a Python 3.11 environment with models/training/requirements.txt installed.
# Training resumes from its checkpoints in $WORKDIR when run again.
set -euo pipefail
WORKDIR=${WORKDIR:-models/training/runs}
BUNDLE=${BUNDLE:-models/pusht-small}
PYTHON=${PYTHON:-python3}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

$PYTHON -m models.training.selfcheck
$PYTHON -m models.training.generate_data --workdir "$WORKDIR" --episodes 24000 --frames 24000
$PYTHON -m models.training.frame_encoder --workdir "$WORKDIR" --steps 2500
$PYTHON -m models.training.decoder --workdir "$WORKDIR" --steps 1500
$PYTHON -m models.training.train_dynamics --workdir "$WORKDIR" --steps 2000
$PYTHON -m models.export.export --workdir "$WORKDIR" --bundle "$BUNDLE"
$PYTHON -m models.training.evaluate --bundle "$BUNDLE" --episodes 48
$PYTHON -m models.training.example --bundle "$BUNDLE"
$PYTHON -m models.training.golden --workdir "$WORKDIR" --bundle "$BUNDLE"
$PYTHON -m models.training.contact_sheet --bundle "$BUNDLE"
