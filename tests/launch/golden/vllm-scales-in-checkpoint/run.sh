#!/usr/bin/env bash
# Starts vLLM on this result. PORT and HOST may be set; TIGHTFIT_ENGINE names the Python that has vLLM, where it is not the one
# on PATH. Extra arguments go to vLLM's server.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
if [ -n "${TIGHTFIT_ENGINE:-}" ]; then
  export PATH="$(dirname "$TIGHTFIT_ENGINE"):$PATH"
fi
exec vllm serve --config launch/vllm.yaml --host "${HOST:-127.0.0.1}" --port "${PORT:-8000}" "$@"
