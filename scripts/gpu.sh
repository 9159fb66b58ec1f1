#!/usr/bin/env bash
# Run the GPU tests and scripts/bench_gpu.py on a bare machine: Python 3.12, torch and common packages, a card, no network.
#
#   scripts/gpu.sh pack        here: build .gpu/site.tar.xz, the packages that such a machine lacks (about 20 MiB)
#   scripts/gpu.sh run [OUT]   there, in a copy of this folder with .gpu/: all in 5 minutes; OUT (default .gpu/out) gets
#                              gpu.md, gpu.json, tests.txt and gpu.tar of the three
#
# The folder and .gpu/ together must stay under 64 MiB. robosuite does not fit: its part of the bench is left out with a line.
# PYTHON names the interpreter there (default python3), VERSION the one to pack for (default 3.12); QUICK=1 is a smoke test on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
SITE=.gpu/site
THERE=
LIMIT=$((64 * 1024 * 1024))
PACKAGES=(
  gym-pusht pymunk pygame shapely gymnasium farama-notifications cffi pycparser                   # env=pusht
  hydra-core omegaconf antlr4-python3-runtime msgspec cloudpickle safetensors                     # gpc
  zarr numcodecs donfig google-crc32c                                                              # run folders
  diffusers importlib-metadata dill praxis-robomimic termcolor mujoco pyopengl                           # checkpoints, pictures
  lerobot draccus mergedeep pyyaml-include toml typing-inspect mypy-extensions jsonlines deepdiff orderly-set pyserial
  datasets multiprocess num2words docopt
  transformers tokenizers huggingface-hub                                                          # LeRobot's versions
)

pack() {
  local uv=.venv/bin/uv
  [ -x $uv ] || uv=uv
  rm -rf $SITE && mkdir -p $SITE
  $uv pip install --quiet --link-mode copy --target $SITE --python-version "${VERSION:-3.12}" --python-platform x86_64-manylinux_2_28 \
    --no-deps -c "$([ "${VERSION:-3.12}" = 3.11 ] && echo constraints.txt || echo constraints-3.12.txt)" "${PACKAGES[@]}"
  cat >$SITE/av.py <<'PYTHON'
"""Stands in for PyAV, which is too large: LeRobot imports it for videos, of which there are none here."""

from unittest.mock import MagicMock


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock()
PYTHON
  rm -rf $SITE/{bin,share} $SITE/pygame/{docs,examples}
  find $SITE -depth \( -name __pycache__ -o -name tests \) -type d -exec rm -rf {} +
  find $SITE -name '*.so*' -exec strip --strip-unneeded {} + 2>/dev/null || true
  tar -C .gpu -cJf .gpu/site.tar.xz site
  rm -rf $SITE
  local size
  size=$(($(git ls-files -z | xargs -0 cat | wc -c) + $(wc -c <.gpu/site.tar.xz)))
  echo "$(($(wc -c <.gpu/site.tar.xz) / 1024 / 1024)) MiB in .gpu/site.tar.xz, $((size / 1024 / 1024)) MiB with this folder"
  [ $size -le $LIMIT ] || { echo "that is over $((LIMIT / 1024 / 1024)) MiB: leave packages out" >&2; exit 1; }
}

run() {
  local python=${PYTHON:-python3} out=${1:-.gpu/out} quick=()
  mkdir -p "$out" && THERE=$(mktemp -d)
  trap 'rm -rf "$THERE"' EXIT
  tar -C "$THERE" --strip-components=1 -xf .gpu/site.tar.xz
  export PYTHONPATH=$THERE PYTHONUNBUFFERED=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 HF_HUB_OFFLINE=1
  "$python" -m pip install --quiet --no-index --no-deps --no-build-isolation --no-cache-dir --target "$THERE" .
  [ -z "${QUICK:-}" ] || quick=(--quick --device cpu)
  # each part writes its figures as it ends, so that a limit on time costs the last ones alone
  timeout 240 "$python" -P scripts/bench_gpu.py "${quick[@]}" --out "$out/gpu.md" --json "$out/gpu.json" || true
  timeout "${TEST_SECONDS:-60}" "$python" -P -m pytest -p no:cacheprovider -q -rs tests/test_gpu.py \
    ${QUICK:--m gpu} ${QUICK:+-k bundled} 2>&1 | tee "$out/tests.txt" || true
  tar -C "$out" -cf "$out/gpu.tar" gpu.md gpu.json tests.txt
  echo "all of it: $out/gpu.tar"
}

case ${1:-} in
  pack) pack ;;
  run) run "${2:-}" ;;
  *) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
