#!/usr/bin/env bash
# Starts vLLM on this result. PORT and HOST may be set; TIGHTFIT_ENGINE names the Python that has vLLM, where it is not the one
# on PATH. Extra arguments go to vLLM's server.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export VLLM_CPU_OMP_THREADS_BIND="${VLLM_CPU_OMP_THREADS_BIND:-auto}"
if [ -n "${TIGHTFIT_ENGINE:-}" ]; then
  export PATH="$(dirname "$TIGHTFIT_ENGINE"):$PATH"
fi
# Looks first whether this machine holds it now, where tightfit is installed; TIGHTFIT_CHECK=0 skips that.
[ "${TIGHTFIT_CHECK:-1}" = 0 ] || ! command -v optimize > /dev/null || optimize check --live . >&2 || [ $? != 3 ] || exit 3
exec python -m vllm.entrypoints.openai.api_server --config launch/vllm.yaml --host "${HOST:-127.0.0.1}" --port "${PORT:-8000}" "$@"
