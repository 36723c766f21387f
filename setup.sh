# Sourced by run_all.sh and run_tests.sh: makes .venv with everything in pyproject.toml at the versions of constraints.txt, once.
wanted=$(cat pyproject.toml constraints.txt setup.sh | cksum)
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
  echo "Installing into .venv (several GB the first time) …"
  python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' ||
    { echo "Python 3.11 or 3.12 is needed (CompressAI has no wheels for others), this is $(python3 --version)" >&2; exit 2; }
  [ -x .venv/bin/pip ] || python3 -m venv --clear .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
  echo "$wanted" >.venv/installed
fi
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" YOLO_CONFIG_DIR="$PWD/.venv"
unset MPLBACKEND # Agg would make inline figures vanish from executed notebooks
