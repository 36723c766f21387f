# The workbook as a DAG of papermill runs: one job a notebook, and one training job for each point
# of the profile's sweep. Finished jobs are not repeated. ./run_all.sh starts it.
#
# Configuration: profile=NAME, data_root=DIR, second_detector=FILE (a YOLOv8 file that looks at the
# decoded pictures too).
import json
import time
from pathlib import Path

import yaml
from snakemake.logging import logger

from roilib.parameters import BASELINES, expand_sweep

PROFILE = config.get("profile", "sample")
LOGDIR = f"runs/{PROFILE}"
RESULTS = f"report/results/{PROFILE}"
FIGURES = f"report/figures/{PROFILE}"
SETTINGS = yaml.safe_load(Path(f"params/{PROFILE}.yaml").read_text())

OVERRIDES = {"logdir": LOGDIR}
if "data_root" in config:
    OVERRIDES["data_root"] = config["data_root"]
POINTS = {p.name: p for p in expand_sweep(SETTINGS, **OVERRIDES)}
FIRST = next(iter(POINTS.values()))
DATA = {
    "dataset": FIRST.dataset,
    "data_root": FIRST.data_root,
    "train_size_p1": FIRST.train_size_p1,
}
TRAINED = [f"{LOGDIR}/{name}/metrics.json" for name in POINTS]
STEPS = ["01_dataset_exploration", "02_detector_hooks", "07_playground"]

# Notebook 05's parameters: at which lmbda and alpha a roi_vbr is measured, and which conventional
# codecs (a file of params/codecs). `evaluate: false` leaves out notebooks 05, 06 and the report.
EVALUATE = SETTINGS.get("evaluate", {})
EVALUATION = dict(EVALUATE or {})
if "codecs" in EVALUATION:
    GRIDS = Path(f"params/codecs/{EVALUATION['codecs']}.yaml")
    EVALUATION["codecs"] = yaml.safe_load(GRIDS.read_text())
if "second_detector" in config:
    EVALUATION["detectors"] = ["shipped", config["second_detector"]]
REPORT = ["report/report.pdf"] if EVALUATE is not False else []

# Notebook 08's parameters, where a profile sends a drive.
DRIVE = SETTINGS.get("drive")
if DRIVE and "frames" not in DRIVE:
    raise ValueError("drive: frames, the number of frames to render, is missing")

if workflow.is_main_process:  # the others would import papermill for each job
    from roilib.utils.notebooks import checked_parameters

    for name, values in (("05_evaluation", EVALUATION), ("08_thin_link", DRIVE or {})):
        checked_parameters(Path(f"notebooks/{name}.ipynb"), values)


# A job takes as many of this machine's GPUs as its run has processes. The scheduler of a cluster
# counts its own.
resource_scopes:
    gpu="local",


def point(name):
    """A run's main parameters, for messages."""
    p = POINTS[name]
    hooks = [hook for hook in ("zero_hooks", "mask_hooks") if getattr(p, hook)]
    values = [f"{key}={getattr(p, key)}" for key in ("which", "lmbda", "alpha", "seed")]
    return " ".join(values + hooks)


# For the time left: on the sample set the evaluation takes about twice as long as all trainings.
WEIGHTS = {"train": 1, "sample_set": 1, "evaluate": 2 * len(POINTS), "all": 0}
OTHERS = 0.2  # of a training: every other step
SOME = 0.1  # of the whole; what is left is not guessed from less


class OneLineAStep:
    """Shorten Snakemake's messages: a line when a step starts, errors as they are."""

    def __init__(self, jobs):
        self.waiting = {job.jobid: WEIGHTS.get(job.rule.name, OTHERS) for job in jobs}
        self.steps = sum(weight > 0 for weight in self.waiting.values())
        self.total = sum(self.waiting.values())
        self.done, self.start = 0, time.monotonic()

    def time_left(self):
        """In words; none before some of the steps are done."""
        if self.done <= SOME * self.total:
            return ""
        left = (time.monotonic() - self.start) / self.done * sum(self.waiting.values())
        return f"about {left / 3600:.1f} h left" if left > 5400 else f"about {left / 60:.0f} min left"

    def filter(self, record):
        """Count what is done; say what starts; drop the rest of what is said of each step."""
        event = getattr(record, "event", None)
        if event == "job_finished":
            self.done += self.waiting.pop(record.job_id, 0)
        if event == "job_info" and record.rule_msg:
            done = self.steps - sum(weight > 0 for weight in self.waiting.values())
            words = [f"[{done} of {self.steps} done]", self.time_left(), record.rule_msg]
            record.msg, record.event = "  ".join(filter(None, words)), None
            return True
        dropped = event in ("job_finished", "job_started", "progress", "job_info")
        return not dropped and record.msg != "Select jobs to execute..."


onstart:
    logger.addFilter(OneLineAStep(workflow.dag.needrun_jobs()))


onerror:
    print("Not finished; the same command tries them again:")
    for name in POINTS:
        if not Path(f"{LOGDIR}/{name}/metrics.json").exists():
            print(f"  {LOGDIR}/{name}/notebook.ipynb  {point(name)}")


def training_notebook(wildcards):
    baseline = POINTS[wildcards.run].which in BASELINES
    return f"notebooks/{'03_baseline_training' if baseline else '04_roi_training'}.ipynb"


RUN = "python -m roilib notebook {input.notebook:q} {log:q} --parameters {params.values:q}"


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
        message:
            "Render the sample set into {params.root}"
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
    message:
        "Notebook {wildcards.step}"
    shell:
        RUN


if DRIVE:
    STREET = f"data/drive_{DRIVE['frames']}"

    rule render_drive:
        output:
            f"{LOGDIR}/drive.txt",
        threads: workflow.cores
        params:
            root=STREET,
            frames=DRIVE["frames"],
        message:
            "Render a drive of {params.frames} frames into {params.root}"
        shell:
            "python data/streets/prepare.py {params.root:q} --drive {params.frames}"
            " --seed 21 > {output}"

    rule thin_link:
        input:
            notebook="notebooks/08_thin_link.ipynb",
            drive=rules.render_drive.output,
        output:
            f"{LOGDIR}/08_thin_link/metrics.json",
        log:
            f"{LOGDIR}/08_thin_link/08_thin_link.ipynb",
        params:
            values=json.dumps(
                DRIVE | {"drive": STREET, "logdir": LOGDIR, "results": RESULTS, "figures": FIGURES}
            ),
        message:
            "Notebook 08_thin_link"
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
        point=lambda wildcards: point(wildcards.run),
    message:
        "Train {wildcards.run}: {params.point}"
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
        values=json.dumps(
            DATA | {"logdir": LOGDIR, "runs": list(POINTS), "results": RESULTS} | EVALUATION
        ),
    message:
        "Notebook 05_evaluation"
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
        values=json.dumps(DATA | {"logdir": LOGDIR, "results": RESULTS, "figures": FIGURES}),
    message:
        "Notebook 06_figures"
    shell:
        RUN


rule report:
    input:
        source=[
            "report/report.typ",
            "report/parts.typ",
            "report/diagram.typ",
            "report/references.yml",
        ],
        figures=rules.figures.output,
    output:
        "report/report.pdf",
    params:
        results=RESULTS,
        figures=FIGURES,
    message:
        "Report"
    shell:
        "python report/build.py {params.results:q} --figures {params.figures:q} --out {output:q}"
        " --compile-only"
