# The workbook as a DAG of papermill runs: one job a notebook, one training job a point of the profile's sweep.
# ./run_all.sh starts it; --config profile=NAME and data_root=DIR choose what runs, second_detector=FILE who looks too. Done jobs are not repeated.
import json
from pathlib import Path

import yaml

from roilib.parameters import BASELINES, expand_sweep

PROFILE = config.get("profile", "sample")
LOGDIR, RESULTS = f"runs/{PROFILE}", f"report/results/{PROFILE}"
SETTINGS = yaml.safe_load(Path(f"params/{PROFILE}.yaml").read_text())
OVERRIDES = {"logdir": LOGDIR} | ({"data_root": config["data_root"]} if "data_root" in config else {})
POINTS = {p.name: p for p in expand_sweep(SETTINGS, **OVERRIDES)}
FIRST = next(iter(POINTS.values()))
DATA = {"dataset": FIRST.dataset, "data_root": FIRST.data_root, "train_size_p1": FIRST.train_size_p1}
TRAINED = [f"{LOGDIR}/{name}/metrics.json" for name in POINTS]
STEPS = ["01_dataset_exploration", "02_detector_hooks", "07_playground"]
EVALUATE = SETTINGS.get("evaluate", {})  # at which lmbda and alpha a roi_vbr is measured, and which peers (a file of params/peers); false: nothing is
PEERS = {"peers": yaml.safe_load(Path(f"params/peers/{EVALUATE['peers']}.yaml").read_text())} if EVALUATE and "peers" in EVALUATE else {}
DETECTORS = {"detectors": ["shipped", config["second_detector"]]} if "second_detector" in config else {}
DRIVE = SETTINGS.get("drive")  # notebook 08's parameters, in a profile that sends a drive over a thin link
REPORT = ["report/report.pdf"] if EVALUATE is not False else []



# A job takes as many of this machine's GPUs as its run has processes; a cluster's scheduler counts its own.
resource_scopes:
    gpu="local",


onerror:
    print("Not finished; the same command tries them again:")
    for name, p in POINTS.items():
        if not Path(f"{LOGDIR}/{name}/metrics.json").exists():
            print(f"  {LOGDIR}/{name}/notebook.ipynb  which={p.which} lmbda={p.lmbda} alpha={p.alpha} seed={p.seed}")


def training_notebook(wildcards):
    baseline = POINTS[wildcards.run].which in BASELINES
    return f"notebooks/{'03_baseline_training' if baseline else '04_roi_training'}.ipynb"


RUN = "python -m roilib.utils.notebooks {input.notebook:q} {log:q} --parameters {params.values:q}"


wildcard_constraints:
    run="(hyperprior|roi_vbr)[a-z_]*-[0-9a-f]+",


rule all:
    input:
        TRAINED,
        [f"{LOGDIR}/{step}/metrics.json" for step in STEPS],
        [f"{LOGDIR}/08_thin_link/metrics.json"] if DRIVE else [],
        REPORT,


if DATA["dataset"] == "sample":

    rule sample_set:
        output:
            f"{LOGDIR}/sample_set.txt",
        threads: workflow.cores
        params:
            root=DATA["data_root"],
        shell:
            "python data/streets/prepare.py {params.root:q} > {output}"

    DATA_READY = rules.sample_set.output
else:
    DATA_READY = []


rule explore:
    input:
        notebook="notebooks/{step}.ipynb",
        data=DATA_READY,
    output:
        f"{LOGDIR}/{{step}}/metrics.json",
    log:
        f"{LOGDIR}/{{step}}/{{step}}.ipynb",
    wildcard_constraints:
        step="0[127]_[a-z_]+",
    params:
        values=json.dumps(DATA | {"logdir": LOGDIR}),
    shell:
        RUN


if DRIVE:
    SEED = DRIVE.get("street", 21)
    STREET = f"data/drive_{DRIVE['frames']}" + ("" if SEED == 21 else f"_{SEED}")

    rule render_drive:
        output:
            f"{LOGDIR}/drive.txt",
        threads: workflow.cores
        params:
            root=STREET,
            frames=DRIVE["frames"],
            seed=SEED,
        shell:
            "python data/streets/prepare.py {params.root:q} --drive {params.frames} --seed {params.seed} > {output}"

    rule thin_link:
        input:
            notebook="notebooks/08_thin_link.ipynb",
            drive=rules.render_drive.output,
        output:
            f"{LOGDIR}/08_thin_link/metrics.json",
        log:
            f"{LOGDIR}/08_thin_link/08_thin_link.ipynb",
        params:
            values=json.dumps(DRIVE | {"drive": STREET, "logdir": LOGDIR, "results": RESULTS, "figures": f"report/figures/{PROFILE}"}),
        shell:
            RUN


rule train:
    input:
        notebook=training_notebook,
        data=DATA_READY,
    output:
        f"{LOGDIR}/{{run}}/metrics.json",
    log:
        f"{LOGDIR}/{{run}}/notebook.ipynb",
    resources:
        gpu=lambda wildcards: POINTS[wildcards.run].devices or 1,
    params:
        values=lambda wildcards: json.dumps(POINTS[wildcards.run].model_dump()),
    shell:
        RUN + " --gpus {resources.gpu}"


rule evaluate:
    input:
        notebook="notebooks/05_evaluation.ipynb",
        runs=TRAINED,
    output:
        f"{LOGDIR}/05_evaluation/metrics.json",
    log:
        f"{LOGDIR}/05_evaluation/05_evaluation.ipynb",
    threads: workflow.cores
    params:
        values=json.dumps(DATA | {"logdir": LOGDIR, "runs": list(POINTS), "results": RESULTS} | (EVALUATE or {}) | PEERS | DETECTORS),
    shell:
        RUN


rule figures:
    input:
        notebook="notebooks/06_figures.ipynb",
        evaluation=rules.evaluate.output,
    output:
        f"{LOGDIR}/06_figures/metrics.json",
    log:
        f"{LOGDIR}/06_figures/06_figures.ipynb",
    params:
        values=json.dumps(DATA | {"logdir": LOGDIR, "results": RESULTS, "figures": f"report/figures/{PROFILE}"}),
    shell:
        RUN


rule report:
    input:
        source=["report/report.typ", "report/parts.typ", "report/diagram.typ", "report/references.yml"],
        figures=rules.figures.output,
    output:
        "report/report.pdf",
    params:
        results=RESULTS,
        figures=f"report/figures/{PROFILE}",
    shell:
        "python report/build.py {params.results:q} --figures {params.figures:q} --out {output:q} --compile-only"
