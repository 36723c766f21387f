"""The `roilib` command; `python -m roilib …` is the same.

Exit code 0, or 2 with one line on stderr that says which command failed, on which file, and why.
Commands import what is heavy themselves, so that `roilib info` and `--help` stay fast.
"""

import importlib.metadata
import importlib.util
import inspect
import json as json_format
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from cyclopts import App, CycloptsError, Parameter

from roilib.apps import files as io
from roilib.apps.drive.plan import Plan
from roilib.apps.files import Job
from roilib.utils.files import read_json

Word = Annotated[str, Parameter(allow_leading_hyphen=True)]
Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], Parameter(consume_multiple=True)]
File = Annotated[Path, Parameter(allow_leading_hyphen=True)]  # "-" is standard input or output

app = App(
    name="roilib",
    help="ROI-aware neural image codec and its workbook.",
    version=lambda: importlib.metadata.version("roilib"),
    help_format="markdown",
    help_formatter="plain",
    default_parameter=Parameter(negative=(), show_default=False),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code."""
    words = [home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    if "" in words:
        return fail("roilib", "an empty word among the arguments, as of a variable without a value")
    name = f"roilib {words[0]}" if words and words[0] in app else "roilib"
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="replace")  # "?" for what a locale other than UTF-8 lacks
    try:
        return app(words, exit_on_error=False, print_error=False) or 0
    except CycloptsError as error:
        return fail(name, f"{str(error).rstrip('.')}; see {name} --help")
    except BrokenPipeError:  # the reader, as `head`, has seen enough
        silence_stdout()
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
    """Expand the ~ of --name=~/file, which no shell does, and of a word that was quoted."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + os.path.expanduser(value)


def fail(command: str, why: object, code: int = 2) -> int:
    """Say in one line on stderr why a command failed; returns the exit code."""
    print(f"{command}:", *str(why).splitlines(), file=sys.stderr)  # a file's name may have several
    return code


def note(command: str, text: str) -> None:
    """Say on stderr what a user may not expect."""
    print(f"roilib {command}: {text}", file=sys.stderr)


def show(text: str) -> None:
    """Print to standard output. Raises ValueError when it cannot be written."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        silence_stdout()
        raise ValueError(f"standard output: cannot be written ({error.strerror})") from None


def silence_stdout() -> None:
    """Send what Python still has to write at exit to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.command(usage="Usage: roilib encode IMAGE… OUT [OPTIONS]")
def encode(
    *files: File,
    boxes: Path | None = None,
    box_format: str | None = None,
    detect: bool = False,
    detector: Path | None = None,
    confidence: float | None = None,
    classes: str | None = None,
    lmbda: float | None = None,
    alpha: float | None = None,
    max_bytes: int | None = None,
    weights: Path | None = None,
    device: str = "cpu",
    precision: Literal["auto", "32", "bf16"] = "auto",
    depth: int | None = None,
    preview: Path | None = None,
    json: bool = False,
    force: bool = False,
) -> int:
    """Code pictures as .roic streams.

    One picture to one file, several or folders of them to a folder; - is standard input or output.
    Boxes are in the pixels that a file stores: EXIF's rotation is not applied.

    Example: `roilib encode street.png street.roic --boxes street.txt --max-bytes 20000`

    Args:
        files: pictures or folders of them, then the output
        boxes: regions of interest: KITTI label text, or JSON [[x0, y0, x1, y1(, importance)], …];
            of several pictures a folder of such files, or KITTI tracking labels
        box_format: kitti, yolo, xyxy, xywh, coco or labelme; default: recognised
        detect: regions of interest are what the pretrained detector finds
        detector: the same with another YOLOv8 file
        confidence: least confidence of a detection, 0 to 1; default 0.25
        classes: classes of detections that count, as Car,Pedestrian; default: all
        lmbda: 0.0004 (small) to 0.12 (good); default 0.012
        alpha: 0.5 treats all pixels alike, 1 gives all quality to the boxes; default 0.9
        max_bytes: at most so many bytes a picture, at the largest lmbda that fits
        weights: a trained model's weights.safetensors; default: the pretrained roi_vbr
        device: of the computation, as cpu or cuda
        precision: of the transforms; auto is bf16 where the processor has it
        depth: bits that grey pictures use of their 16, as 12
        preview: picture file to write of what a receiver will see
        json: print one JSON object a picture
        force: overwrite files that roilib did not make
    """
    from roilib.datasets.images import PICTURE_SUFFIXES, is_turned

    jobs = io.pair(paths(files), PICTURE_SUFFIXES, ".roic")
    if jobs[0].out.suffix.lower() in PICTURE_SUFFIXES:
        raise ValueError(f"{jobs[0].out}: is a picture's name, but a .roic stream is written")
    if preview and len(jobs) > 1:
        raise ValueError(f"--preview is of one picture, not of {len(jobs)}")
    if boxes and (detect or detector):
        raise ValueError("--boxes and --detect exclude each other")
    if json and jobs[0].out == io.STANDARD:
        raise ValueError("--json and the output - would both be standard output")
    inputs = [job.source for job in jobs] + [p for p in (boxes, weights, detector) if p]
    io.protect([job.out for job in jobs] + ([preview] if preview else []), inputs, force)
    seen = bool(boxes or detect or detector)
    if alpha is not None and not seen:
        note("encode", "--alpha has no effect without --boxes or --detect")
    if lmbda is not None and max_bytes is not None:
        note("encode", "--lmbda has no effect with --max-bytes")
    for name, value in (("confidence", confidence), ("classes", classes)):
        if value is not None and not (detect or detector):
            note("encode", f"--{name} has no effect without --detect")

    from roilib.apps import transcode
    from roilib.codecs.roic import DEFAULT_ALPHA, DEFAULT_LMBDA, load_codec

    sources = [job.source for job in jobs]
    regions = transcode.regions_of(
        sources, boxes, box_format, detect, detector, confidence, classes
    )
    codec = load_codec(weights, device, precision)
    setting = {
        "lmbda": DEFAULT_LMBDA if lmbda is None else lmbda,
        "alpha": DEFAULT_ALPHA if alpha is None else alpha,
        "max_bytes": max_bytes,
    }

    def work(job: Job) -> dict:
        record = transcode.encode(job, codec, regions, setting, depth, preview)
        if record["boxes"] and job.source != io.STANDARD and is_turned(job.source):
            note("encode", f"{job.source}: EXIF's rotation is not applied, nor to its boxes")
        if seen and not record["boxes"] and alpha is not None:
            note("encode", f"{record['source']}: no boxes, so --alpha has no effect")
        return record

    return each("encode", jobs, work, json)


@app.command(usage="Usage: roilib decode STREAM… OUT [OPTIONS]")
def decode(
    *files: File,
    weights: Path | None = None,
    device: str = "cpu",
    json: bool = False,
    force: bool = False,
) -> int:
    """Decode .roic streams to pictures.

    One stream to one file, several or folders of them to a folder; - is standard input or output.
    The suffix of a file's name chooses the format; all but JPEG keep every pixel.

    Example: `roilib decode street.roic street.png`

    Args:
        files: streams or folders of them, then the output
        weights: the weights that the streams were made with; default: the pretrained roi_vbr
        device: of the computation, as cpu or cuda
        json: print one JSON object a picture
        force: overwrite files that roilib did not make
    """
    jobs = io.pair(paths(files), io.STREAMS, ".png")
    if json and jobs[0].out == io.STANDARD:
        raise ValueError("--json and the output - would both be standard output")
    inputs = [job.source for job in jobs] + ([weights] if weights else [])
    io.protect([job.out for job in jobs], inputs, force)
    streams = {job: io.read_stream(job.source) for job in jobs[:1]}  # refused before torch loads
    if jobs[0].out != io.STANDARD and jobs[0].out.suffix.lower() not in io.PICTURES:
        raise ValueError(f"{jobs[0].out}: a picture's name ends in {', '.join(io.PICTURES)}")

    from roilib.apps import transcode
    from roilib.codecs.roic import load_codec

    codec = load_codec(weights, device)

    def work(job: Job) -> dict:
        stream, header = streams.pop(job, None) or io.read_stream(job.source)
        return transcode.decode(job, stream, header, codec)

    return each("decode", jobs, work, json)


@app.command(usage="Usage: roilib info STREAM…")
def info(*files: File) -> int:
    """Print what .roic streams say of themselves, as JSON.

    Example: `roilib info street.roic`

    Args:
        files: streams or folders of them; - is standard input
    """
    named = paths(files)
    if not named:
        raise ValueError("a stream is needed; see roilib info --help")
    found = io.expand(named, io.STREAMS)
    described = []
    for path in found:
        data, header = io.read_stream(path)
        described.append(io.describe(header, data))
    several = len(found) > 1
    rows = [{"source": io.name_of(p)} | d for p, d in zip(found, described, strict=True)]
    show(json_format.dumps(rows if several else described[0], indent=1))
    return 0


@app.command(usage="Usage: roilib compare PICTURE [OPTIONS]")
def compare(
    picture: Path,
    /,
    *,
    boxes: Path | None = None,
    box_format: str | None = None,
    detector: Path | None = None,
    confidence: float | None = None,
    classes: str | None = None,
    lmbda: float = 0.012,
    alpha: float = 0.9,
    max_bytes: int | None = None,
    weights: Path | None = None,
    device: str = "cpu",
    out: Path | None = None,
    json: bool = False,
    force: bool = False,
) -> int:
    """Code a picture by our codec and by x264, x265, AVIF and JPEG at no more bytes.

    Prints bytes and PSNRs inside and outside the boxes. Where even a codec's worst quality takes
    more bytes, that is shown. Without --boxes they are what the detector finds.

    Example: `roilib compare street.png --boxes street.txt --out compared.png`

    Args:
        picture: the picture
        boxes: regions of interest, as of encode
        box_format: as of encode
        detector: a YOLOv8 file instead of the pretrained detector
        confidence: least confidence of a detection, 0 to 1; default 0.25
        classes: classes of detections that count, as Car,Pedestrian; default: all
        lmbda: quality of our codec: 0.0004 (small) to 0.12 (good); default 0.012
        alpha: ROI strength: 0.5 treats all pixels alike, 1 gives all quality to the boxes;
            default 0.9
        max_bytes: at most so many bytes, whatever lmbda is
        weights: a trained model's weights.safetensors; default: the pretrained roi_vbr
        device: of the computation, as cpu or cuda
        out: picture file to write: the original and what each codec made, with an enlarged box
        json: print one JSON object a codec
        force: overwrite a file that roilib did not make
    """
    if out and out.suffix.lower() not in io.PICTURES:
        raise ValueError(f"{out}: a picture's name ends in {', '.join(io.PICTURES)}")
    io.protect([out] if out else [], [p for p in (picture, boxes, weights, detector) if p], force)

    from roilib.apps import compare as comparison
    from roilib.apps import transcode
    from roilib.apps.playground.coding import Coder
    from roilib.codecs.roic import load_codec

    options = (boxes, box_format, not boxes, detector, confidence, classes)
    regions = transcode.regions_of([picture], *options)
    coder, knobs = Coder(load_codec(weights, device)), {"lmbda": lmbda, "alpha": alpha}
    coded, rows = comparison.compare(picture, regions, coder, **knobs, max_bytes=max_bytes)
    if out:
        io.write_bytes(out, transcode.picture_bytes(out, rows))
    for c in coded if json else ():
        show(json_format.dumps(c.record()))
    if not json:
        show(comparison.table(coded))
    return 0


@app.command(help_flags=[], version_flags=[], usage="Usage: roilib train --name=value …")
def train(*words: Word) -> int:
    """Train or test a model: the run that notebooks 03 and 04 start.

    On a machine with several GPUs it starts one process on each. On several machines, start on each
    `torchrun --nnodes=2 --nproc-per-node=8 --rdzv-endpoint=HOST:PORT -m roilib train --name=value`.

    Example: `roilib train --which=roi_vbr --dataset=kitti --data_root=data/kitti`

    Args:
        words: the parameters, which `roilib train --help` lists
    """
    from roilib.parameters import Parameters, parameter_table

    if {"-h", "--help"} & set(words):
        show(f"{inspect.getdoc(train).partition('Args:')[0]}{parameter_table()}")
        return 0
    parameters = Parameters.parse_arguments(list(words))

    from roilib.engines.distributed import rank
    from roilib.engines.meters import summary
    from roilib.engines.train import run

    trained, metrics = run(parameters)
    if rank() == 0:
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
        weights: weights.safetensors of trainings; shipped: the pretrained roi_vbr, the default
        lmbda: qualities of roi_vbr, each with every alpha; default: its own
        alpha: ROI strengths of roi_vbr; default: its own
        codecs: YAML file of conventional codecs and their settings, as params/codecs/all.yaml
        detectors: YOLOv8 files that look at the decoded pictures; shipped: the pretrained one
        out: folder for records and tables; default runs/evaluate
        device: of the computation, as cpu or cuda; default: cuda where there is one
        workers: processes; default: one a core, or a single one on a GPU
        force: overwrite files that roilib did not make
    """
    from roilib.apps import measure

    given = [*(Path(name) for name in (*weights, *detectors)), *([codecs] if codecs else [])]
    made = [out / name for name in measure.MADE]
    io.protect(made, given, force or made[0].exists())
    options = (weights, lmbda, alpha, codecs, detectors, device, workers)
    show(measure.text(*measure.measure(pictures, out, *options)))
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
    """Send the frames of a drive over a thin link, by our codec and by conventional ones.

    Example: `roilib drive data/drive --mbit 1 --fps 10`

    Args:
        frames: a folder of pictures in natural order, or a KITTI root
        boxes: folder of box files that encoders get; default: what the pretrained detector finds
        truth: folder of box files of the ROI that is measured; default: a KITTI root's labels, or
            else the boxes that encoders get
        count: the first so many frames
        results: folder for the records; default runs/drive
        figures: folder for figures and films; default runs/drive
        force: overwrite files that roilib did not make
    """
    from roilib.apps.drive.drive import run
    from roilib.apps.drive.frames import Drive
    from roilib.apps.drive.report import outputs, text
    from roilib.visualization.style import set_style

    set_style()
    try:
        pictures = Drive(frames, boxes, truth, count)
        given = [Path(file) for file in (plan.trace, plan.weights) if file]
        for made in outputs(results, figures):
            io.protect(made, [*pictures.files, *given], force or made[0].exists())
        show(text(*run(pictures, plan, results, figures)))
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
        parameters: its parameters, as a JSON object; of a training notebook all of a run
        gpus: run on so many GPUs that no other job with this option has taken; default: all
        force: overwrite a file that is no executed notebook
    """
    io.protect([executed], [source], force)
    try:
        values = json_format.loads(parameters)
    except ValueError as error:
        raise ValueError(f"--parameters: not JSON ({error})") from None
    read_json(source)  # refused by name, which papermill does not say

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

    Example: `roilib report report/results/reference/kitti --out report.pdf`

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
    if not compile_only:
        builder.draw(results, figures)
    for warning in builder.build(results, figures, out):
        note("report", warning)
    show(str(out))
    return 0


def paths(words: Sequence[Path]) -> list[Path]:
    """Return the names of files; raises ValueError for a word that can only be an option."""
    for word in map(str, words):
        if word.startswith("-") and word != "-":
            raise ValueError(f"unknown option {word}")
    return list(words)


def each(command: str, jobs: Sequence[Job], work: Callable[[Job], dict], json: bool) -> int:
    """Do all jobs, say what came of each or of all, and return the exit code.

    A job that fails is said in a line; the others are done all the same.
    """
    records, failed = [], 0
    for job in progress(jobs):
        try:
            record = work(job)
        except ValueError as error:
            failed += 1
            fail(f"roilib {command}", error)
            continue
        records.append(record)
        if json:
            show(json_format.dumps(record))
    if jobs[0].out != io.STANDARD and not json and records:
        show(io.summary_line(records))
    if failed and len(jobs) > 1:
        note(command, f"{failed} of {len(jobs)} files failed")
    return 2 if failed else 0


def progress(jobs: Sequence[Job]) -> Iterator[Job]:
    """Iterate over jobs with a progress bar, where there are several and a person looks on."""
    if len(jobs) == 1:
        return iter(jobs)
    from tqdm import tqdm

    return tqdm(jobs, unit="picture", disable=not sys.stderr.isatty())
