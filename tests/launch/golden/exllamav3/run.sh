#!/usr/bin/env bash
# Starts TabbyAPI on this result. TABBYAPI names its checkout, TIGHTFIT_ENGINE the Python that has it (default: the checkout's
# venv). PORT and HOST may be set. Extra arguments go to TabbyAPI.
set -euo pipefail
result="$(cd "$(dirname "$0")/.." && pwd)"
model="$result"
# Looks first whether this machine holds it now, where tightfit is installed; TIGHTFIT_CHECK=0 skips that.
[ "${TIGHTFIT_CHECK:-1}" = 0 ] || ! command -v optimize > /dev/null || optimize check --live "$result" >&2 || [ $? != 3 ] || exit 3
cd "${TABBYAPI:?set TABBYAPI to a checkout of TabbyAPI}"
exec "${TIGHTFIT_ENGINE:-venv/bin/python}" main.py --config "$result/launch/config.yml" \
  --model-dir "$(dirname "$model")" --model-name "$(basename "$model")" \
  --host "${HOST:-127.0.0.1}" --port "${PORT:-5000}" "$@"
