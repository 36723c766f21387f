#!/usr/bin/env bash
# Lint and test:                   ./run_tests.sh [pytest arguments]
# Only the quick tests:            ./run_tests.sh -m "not slow"
# Only install:                    ./run_tests.sh --setup
set -euo pipefail
cd "$(dirname "$0")"
. ./setup.sh
[ "${1:-}" != --setup ] || exit 0
ruff check .
ruff format --check .
lint-imports --no-logo
exec python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
