#!/usr/bin/env bash
# Run the whole workbook headless, install it, or open it in JupyterLab.
set -euo pipefail

usage() {
  cat <<'TEXT'
Run the whole workbook headless:
  ./run_all.sh [--profile NAME] [--data-root DIR] [--second-detector FILE] [--cores N]
               [-- Snakemake arguments]
Only install:
  ./run_all.sh --setup
Open the notebooks in JupyterLab:
  ./run_all.sh --lab [-- JupyterLab arguments]

NAME is a file of params/ without its ending: sample (default), paper_small, kitti, coco, …
TEXT
}

fail() {
  echo "run_all.sh: $1" >&2
  exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
profile=sample
data_root=''
second_detector=''
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) # which obeys these variables
action=run
while [ $# -gt 0 ]; do
  case $1 in
    --profile | --data-root | --second-detector | --cores)
      [ $# -gt 1 ] || fail "$1 needs a value"
      ;;&
    --profile) profile=$2; shift 2 ;;
    --data-root)
      [ -d "$2" ] || fail "--data-root $2: no such folder"
      data_root=$(realpath --relative-to="$here" -- "$2")
      shift 2
      ;;
    --second-detector)
      [ -f "$2" ] || fail "--second-detector $2: no such file"
      second_detector=$(realpath --relative-to="$here" -- "$2")
      shift 2
      ;;
    --cores)
      [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "--cores $2: not a number of cores"
      cores=$2
      shift 2
      ;;
    --setup) action=setup; shift ;;
    --lab) action=lab; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "run_all.sh: unknown argument $1" >&2; usage >&2; exit 2 ;;
  esac
done
cd "$here"
[[ $profile != */* ]] || fail "--profile $profile: a name such as sample is needed, not a path"
[ -f "params/$profile.yaml" ] || fail "no profile params/$profile.yaml"

. ./setup.sh
case $action in
  setup) exit 0 ;;
  lab) exec jupyter lab --LabApp.default_url=/lab/tree/notebooks "$@" ;;
esac

command -v flock >/dev/null || fail "flock is needed (package util-linux)"
{ mkdir -p runs && exec 9>runs/lock; } 2>/dev/null ||
  fail "$here/runs: nothing can be written there"
flock -n 9 || fail "another run_all.sh is at work here"

# Snakemake reads --config values as YAML, which changes paths such as 2011_09_26: a file does not.
python - "$profile" "$data_root" "$second_detector" >runs/config.json <<'PYTHON'
import json
import sys

names = ("profile", "data_root", "second_detector")
json.dump({name: value for name, value in zip(names, sys.argv[1:]) if value}, sys.stdout)
PYTHON

# A killed run leaves its lock. This first call also says what is wrong with a profile.
if ! said=$(snakemake --unlock --cores 1 --configfile runs/config.json 2>&1); then
  reason=$(sed -e 1d -e '/^  File "/,$d' <<<"$said" | xargs -d '\n' | tr -s ' ')
  fail "params/$profile.yaml: ${reason:-$said}"
fi

gpus=$(python -c 'from roilib.utils.notebooks import gpus_here; print(len(gpus_here()))')
echo "run_all.sh: profile $profile, $cores cores, $gpus GPUs; done steps are not repeated"
# Without GPUs each training counts as one, so that as many run at once as there are cores.
snakemake --cores "$cores" --resources gpu="$((gpus ? gpus : cores))" --keep-going \
  --rerun-incomplete --rerun-triggers mtime params input --quiet host reason "$@" \
  --configfile runs/config.json || {
  echo "run_all.sh: a step failed. Its executed notebook is named as 'log' above." >&2
  echo "run_all.sh: the results of the other steps stay; the same command goes on." >&2
  exit 1
}

newest_training=$(ls -t "runs/$profile"/*/notebook.ipynb 2>/dev/null | head -n 1 || true)
made=()
for file in report/report.pdf "report/figures/$profile/roi_comparison.png" \
  "report/figures/$profile/rate_psnr.png" "$newest_training" \
  "runs/$profile/05_evaluation/05_evaluation.ipynb"; do
  # This run wrote config.json first. Older files are of earlier runs or of other profiles.
  [ ! "$file" -nt runs/config.json ] || made+=("$file")
done
[ ${#made[@]} -gt 0 ] || exit 0 # a dry run, or everything was done
echo
echo "Made by profile $profile. Open first:"
printf '  %s\n' "${made[@]}"
echo "All else is in runs/$profile, report/results/$profile and report/figures/$profile."
