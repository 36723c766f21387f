# Sourced by run_all.sh and run_tests.sh. Makes .venv once, with everything that pyproject.toml
# names, at the versions of constraints.txt.
wanted=$(cat pyproject.toml constraints.txt setup.sh | cksum)
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
  ( # each step says what to do when it fails: a caller may not have set -e
    ! command -v flock >/dev/null || flock 8 # two at once
    [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ] || exit 0
    echo "Installing into .venv (several GB the first time) …"
    python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || {
      echo "Python 3.11 or 3.12 is needed (CompressAI has no wheels for others)," \
        "this is $(python3 --version)" >&2
      exit 2
    }
    [ -x .venv/bin/pip ] || python3 -m venv --clear .venv || exit 1
    rm -f .venv/installed
    # A package without RECORD was being installed when an earlier attempt was killed; pip would
    # take it for complete.
    find .venv/lib -name '*.dist-info' -prune ! -exec test -e {}/RECORD ';' -exec rm -r {} +
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
      -e '.[dev,streets]' && echo "$wanted" >.venv/installed || {
      echo "setup.sh: not all could be installed into $PWD/.venv, see above;" \
        "the same command goes on" >&2
      exit 1
    }
  ) 8<pyproject.toml || return
fi
export PATH="$PWD/.venv/bin:$PATH"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export YOLO_CONFIG_DIR="$PWD/.venv"
unset MPLBACKEND # Agg would make inline figures vanish from executed notebooks
