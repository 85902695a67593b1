#!/bin/sh
# Says in one line how to save gigabytes, where there is no NVIDIA GPU and pip ($1 -m pip) knows the default index only.

[ "$(uname -s)" = Linux ] || exit 0
if command -v nvidia-smi >/dev/null 2>&1; then exit 0; fi
if "$1" -m pip config list 2>/dev/null | grep -q -E '(index-url|find-links|no-index)='; then exit 0; fi
if env | grep -q -E '^PIP_(INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX)='; then exit 0; fi
echo "No NVIDIA GPU here: with PyTorch's CPU index in PIP_EXTRA_INDEX_URL its small CPU build is installed instead of CUDA's."
