"""The `roilib` command; `python -m roilib …` is the same.

Exit code 0, or 2 with one line on stderr that says which command failed, on which file, and why;
1 when a notebook fails while it runs, 130 after Ctrl-C.
Each command imports heavy modules itself, so that `roilib info` and `--help` stay fast.
"""

import importlib.metadata
import importlib.util
import inspect
import json as json_format
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from roilib.apps import commands
from roilib.apps import files as io
from roilib.apps.console import fail, note, show
from roilib.apps.drive.plan import Many, Plan
from roilib.utils.files import read_json

Word = Annotated[str, Parameter(allow_leading_hyphen=True)]

app = App(
    name="roilib",
    help="ROI-aware neural image codec and its workbook.",
    version=lambda: importlib.metadata.version("roilib"),
    help_format="markdown",
    default_parameter=Parameter(negative=(), show_default=False),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for command, words in (
    (commands.encode, "encode IMAGE… OUT [OPTIONS]"),
    (commands.decode, "decode STREAM… OUT [OPTIONS]"),
    (commands.info, "info STREAM…"),
    (commands.compare, "compare PICTURE [OPTIONS]"),
):
    app.command(command, usage=f"Usage: roilib {words}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code."""
    words = [home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    if "" in words:
        return fail("roilib", "an empty word among the arguments, as of a variable without a value")
    name = f"roilib {words[0]}" if words and words[0] in app else "roilib"
    warnings.formatwarning = lambda message, *_, **__: f"{name}: {message}\n"
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="replace")  # "?" for what a locale other than UTF-8 lacks
    try:
        return app(words, exit_on_error=False, print_error=False) or 0
    except CycloptsError as error:
        return fail(name, f"{str(error).rstrip('., ')}; see {name} --help")
    except BrokenPipeError:  # the reader, as `head`, has seen enough
        io.silence_stdout()
        return 0
    except ValueError as error:
        return fail(name, error)
    except OSError as error:
        return fail(name, f"{error.filename or 'a file'}: {error.strerror or error}")
    except KeyboardInterrupt as interrupt:
        return fail(name, str(interrupt) or "interrupted", 130)
    except (MemoryError, RuntimeError) as error:
        from roilib.utils.device import out_of_memory

        if not out_of_memory(error):
            raise
        return fail(name, "not enough memory for a picture of this size")


def home(word: str) -> str:
    """Expand ~ in --name=~/file, which no shell does, and in a quoted word."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + os.path.expanduser(value)


@app.command(help_flags=[], version_flags=[], usage="Usage: roilib train --name=value …")
def train(*words: Word) -> int:
    """Train or test a model: the run that notebooks 03 and 04 start.

    On a machine with several GPUs it starts one process on each. On several machines, start on each
    `torchrun --nnodes=2 --nproc-per-node=8 --rdzv-endpoint=HOST:PORT -m roilib train --name=value`.

    Example: `roilib train --which=hyperprior --N=64 --M=96 --batch_size=8 --max_steps=1000`

    The profiles in params/ hold values that suit each model.

    Args:
        words: the parameters, which `roilib train --help` lists
    """
    from roilib.parameters import Parameters, parameter_help

    if {"-h", "--help"} & set(words):
        show(f"{inspect.getdoc(train).partition('Args:')[0]}{parameter_help()}")
        return 0
    parameters = Parameters.parse_arguments(list(words))

    from roilib.engines.distributed import rank
    from roilib.engines.meters import summary
    from roilib.engines.train import run

    finished = parameters.resume and (parameters.folder / "metrics.json").exists()
    trained, metrics = run(parameters)
    if rank() == 0:
        if finished:
            note("train", f"{trained.folder} was finished; resume=false trains it again")
        measured = {part: metrics[part] for part in ("train", "test") if metrics[part]}
        show(f"{trained.folder}: {summary(measured)}")
    return 0


@app.command(usage="Usage: roilib evaluate PICTURES [OPTIONS]")
def evaluate(
    pictures: Path,
    /,
    *,
    weights: Many[str] = ("shipped",),
    lmbda: Many[float] = (),
    alpha: Many[float] = (),
    codecs: Path | None = None,
    detectors: Many[str] = (),
    boxes: str = "labels",
    out: Path = Path("runs/evaluate"),
    device: str = "auto",
    workers: int | None = None,
    force: bool = False,
) -> int:
    """Measure weights, conventional codecs and detectors on pictures with labels.

    Prints rates and qualities; the records and tables go to a folder.

    Example: `roilib evaluate photos --lmbda 0.003 0.012 --alpha 0.5 0.9 --detectors shipped`

    Args:
        pictures: a folder of pictures and label files, or a KITTI root, whose test split is taken
        weights: weights.safetensors of trainings; shipped: the pretrained roi_vbr, the default;
            shipped_yuv: the one tuned for YUV
        lmbda: qualities of roi_vbr, each measured with every alpha; default: that of its training
        alpha: ROI strengths of roi_vbr; default: that of its training
        codecs: YAML file of conventional codecs and their settings, such as params/codecs/all.yaml
        detectors: YOLOv8 files to run on the decoded pictures; shipped: the pretrained one
        boxes: what encoders get: labels, detector (what the pretrained one finds) or a folder of
            box files; default labels. Quality is measured in the labels where there are any
        out: folder for records and tables; default runs/evaluate
        device: torch device, such as cpu or cuda; default: cuda where there is one
        workers: processes; default: one per core, or a single one on a GPU
        force: overwrite files that roilib did not make
    """
    from roilib.apps import measure

    if out.resolve() == pictures.resolve():
        raise ValueError(f"{out}: holds the pictures; the results need another folder")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is 1 or more, not {workers}")
    given = [*(Path(name) for name in (*weights, *detectors)), *([codecs] if codecs else [])]
    made = [out / name for name in measure.MADE]
    io.protect(made, given, force or made[0].exists())
    options = (weights, lmbda, alpha, codecs, detectors, boxes, device, workers)
    if made[0].exists():
        note("evaluate", f"replaces the earlier results in {out}")
    show(measure.text(*measure.measure(pictures, out, *options)))
    show(f"\nRecords and tables: {out}")
    return 0


@app.command(usage="Usage: roilib drive FRAMES [OPTIONS]")
def drive(
    frames: Path,
    /,
    *,
    plan: Plan = Plan(),  # noqa: B008 (immutable)
    boxes: Path | None = None,
    truth: Path | None = None,
    count: int | None = None,
    results: Path = Path("runs/drive"),
    figures: Path = Path("runs/drive"),
    force: bool = False,
) -> int:
    """Send the frames of a drive over a simulated thin link, with our codec and with others.

    Example: `roilib drive data/drive --mbit 1 --fps 10`

    Args:
        frames: a folder of pictures in natural order, a KITTI root, or a video file, of which
            --fps frames a second are taken
        boxes: folder of box files, or KITTI tracking labels, for the encoders; default: what the
            pretrained detector finds
        truth: the same, in which quality is measured; default: a KITTI root's labels, or those
            beside the frames, or else the boxes that encoders get
        count: number of frames to send, from the first; default: all
        results: folder for the records; default runs/drive
        figures: folder for figures and films; default runs/drive
        force: overwrite files that roilib did not make
    """
    from roilib.apps.drive.drive import run
    from roilib.apps.drive.frames import Drive
    from roilib.apps.drive.report import outputs, text
    from roilib.visualization.style import set_style

    set_style()
    pictures = Drive(frames, boxes, truth, count, plan.fps)
    try:
        given = [Path(file) for file in (plan.trace, plan.weights) if file]
        for made in outputs(results, figures):
            io.protect(made, [*pictures.inputs, *given], force or made[0].exists())
        show(text(*run(pictures, plan, results, figures), pictures.roi))
        show(f"\nFigures and films: {figures / 'drive.html'}. Records: {results}")
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"{error.filename or results}: cannot be written ({why})") from None
    return 0


@app.command(usage="Usage: roilib notebook IN OUT [OPTIONS]")
def notebook(
    source: Path,
    executed: Path,
    /,
    *,
    parameters: str = "{}",
    gpus: int | None = None,
    force: bool = False,
) -> int:
    """Run a notebook headless, with its parameters checked first.

    Example: `roilib notebook notebooks/04_roi_training.ipynb out.ipynb --parameters '{"N": 64}'`

    Args:
        source: the notebook
        executed: where the executed notebook goes
        parameters: its parameters, as a JSON object; a training notebook takes all of a run's
        gpus: number of GPUs to reserve for this run; default: use all without reserving any
        force: overwrite a file that is no executed notebook
    """
    io.protect([executed], [source], force)
    try:
        values = json_format.loads(parameters)
    except ValueError as error:
        raise ValueError(f"--parameters: not JSON ({error})") from None
    content = read_json(source)  # refused by name, which papermill does not say
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        raise ValueError(f"{source}: not a notebook (JSON without cells)")

    import logging
    import tempfile

    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from roilib.parameters import Parameters
    from roilib.utils.notebooks import claim_gpus, execute, gpus_here

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if gpus and (here := gpus_here()):
        claimed = claim_gpus(gpus, here, Path(tempfile.gettempdir()))
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claimed)
    try:
        execute(source, executed, values, Parameters.parse)
    except PapermillExecutionError as error:
        where = f"{source} failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
        return fail("roilib notebook", f"{where}; open {executed} to see it", 1)
    except DeadKernelError:
        where = f"{source}: its kernel died, perhaps for want of memory"
        return fail("roilib notebook", f"{where}; open {executed} to see in which cell", 1)
    return 0


@app.command(usage="Usage: roilib report RESULTS [OPTIONS]")
def report(
    results: Path,
    /,
    *,
    figures: Path | None = None,
    out: Path | None = None,
    compile_only: bool = False,
    force: bool = False,
) -> int:
    """Draw the figures of a results folder and compile the report, in a clone of the repository.

    Example: `roilib report report/results/reference/shipped --out report.pdf`

    Args:
        results: a folder with notebook 05's tables
        figures: its figures; default: the folder of the same name in report/figures
        out: the report; default report/report.pdf
        compile_only: do not draw the figures again
        force: overwrite a file that is no report
    """
    script = Path(__file__).parent.parent / "report" / "build.py"
    if not script.is_file():
        raise ValueError(f"{script}: not here; the report is made in a clone of the repository")
    spec = importlib.util.spec_from_file_location("build", script)
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    figures = figures or script.parent / "figures" / results.resolve().name
    out = out or builder.OUT
    io.protect([out], results.glob("*"), force)
    builder.check(results)
    if not compile_only:
        builder.draw(results, figures)
    for warning in builder.build(results, figures, out):
        note("report", warning)
    show(str(out))
    return 0
