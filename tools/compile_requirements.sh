#!/usr/bin/env bash
# Writes requirements/{cpu,cuda,uv}.txt from pyproject.toml: pinned, with hashes, for Python 3.11 or newer, no index address.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=.venv/bin/uv
compile() {
    "$uv" pip compile pyproject.toml --extra "$1" --extra dev --override requirements/overrides.txt \
        --excludes requirements/excludes.txt --universal \
        --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet --output-file "requirements/$1.txt"
}
compile cpu
compile cuda
grep '"uv==' pyproject.toml | sed 's/.*"\(uv==[^"]*\)".*/\1/' | "$uv" pip compile - --universal --python-version 3.11 \
    --generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements/uv.txt
