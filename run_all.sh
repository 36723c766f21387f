#!/usr/bin/env bash
# Run the whole workbook headless:  ./run_all.sh [--profile sample|kitti_small|kitti|coco] [--data-root DIR] [--second-detector FILE] [--cores N] [-- Snakemake arguments]
# Only install: --setup.  Open the notebooks in JupyterLab: --lab [-- JupyterLab arguments].
set -euo pipefail
usage() { sed -n '2,3s/^# //p' "$0"; }
here=$(cd "$(dirname "$0")" && pwd)
profile=sample data_root='' second_detector='' cores=$(nproc) action=run
while [ $# -gt 0 ]; do
  case $1 in
    --profile | --data-root | --second-detector | --cores) [ $# -gt 1 ] || { echo "run_all.sh: $1 needs a value" >&2; exit 2; } ;;&
    --profile) profile=$2; shift 2 ;;
    --data-root)
      [ -d "$2" ] || { echo "run_all.sh: --data-root $2: no such folder" >&2; exit 2; }
      data_root=$(realpath --relative-to="$here" "$2"); shift 2 ;;
    --second-detector)
      [ -f "$2" ] || { echo "run_all.sh: --second-detector $2: no such file" >&2; exit 2; }
      second_detector=$(realpath --relative-to="$here" "$2"); shift 2 ;;
    --cores)
      [[ $2 =~ ^[1-9][0-9]*$ ]] || { echo "run_all.sh: --cores $2: not a number of cores" >&2; exit 2; }
      cores=$2; shift 2 ;;
    --setup) action=setup; shift ;;
    --lab) action=lab; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "run_all.sh: unknown argument $1" >&2; usage >&2; exit 2 ;;
  esac
done
cd "$here"
[ -f "params/$profile.yaml" ] || { echo "run_all.sh: no profile params/$profile.yaml" >&2; exit 2; }

. ./setup.sh
case $action in
  setup) exit 0 ;;
  lab) exec jupyter lab notebooks "$@" ;;
esac

config=("profile=$profile")
[ -z "$data_root" ] || config+=("data_root=$data_root")
[ -z "$second_detector" ] || config+=("second_detector=$second_detector")
{ mkdir -p runs && exec 9>runs/lock; } 2>/dev/null || { echo "run_all.sh: $here/runs: nothing can be written there" >&2; exit 2; }
flock -n 9 || { echo "run_all.sh: another run_all.sh is at work here" >&2; exit 2; }
gpus=$(python -c 'from roilib.utils.notebooks import gpus_here; print(len(gpus_here()))')
snakemake --unlock --cores 1 --quiet all --config "${config[@]}" # a killed run leaves its lock
snakemake --cores "$cores" --resources gpu="$((gpus ? gpus : cores))" --keep-going --rerun-incomplete --rerun-triggers mtime params input --printshellcmds "$@" --config "${config[@]}" ||
  { echo "run_all.sh: a step failed; its executed notebook is named as 'log' above. The others' results stay." >&2; exit 1; }

echo
echo "Made by profile $profile:"
find "runs/$profile" -name '*.ipynb' -o -name weights.safetensors 2>/dev/null | sort || true # none of a dry run
find "report/results/$profile" "report/figures/$profile" report/report.pdf -type f 2>/dev/null | sort || true
