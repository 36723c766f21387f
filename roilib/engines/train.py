"""Train or test one model from the command line: `python -m roilib.engines.train --which=hyperprior --lmbda=0.013 …`.

Every parameter of `roilib.parameters` is a `--name=value`. The same run is what notebooks 03 and 04 start. On a machine with several GPUs it
starts torchrun on itself; on several machines, on each of them:

    torchrun --nnodes=2 --nproc-per-node=8 --rdzv-endpoint=HOST:PORT -m roilib.engines.train --name=value …
"""

import sys

from roilib.datasets.dataset import RoiDataset, load_splits
from roilib.engines import trainer
from roilib.engines.distributed import launch, process_count, rank, started_by_torchrun
from roilib.engines.runs import Run, open_run
from roilib.parameters import Parameters, parameter_table
from roilib.utils.device import out_of_memory


def train_or_test(run: Run, train_data: RoiDataset, test_data: RoiDataset) -> dict:
    """What `run.parameters.what` says, in this process or, with several devices, in one process a device; the run's metrics.

    Raises what `trainer.train` raises, and ValueError with advice when memory does not suffice.
    """
    p = run.parameters
    processes = 1 if started_by_torchrun() or run.metrics else process_count(p)
    if processes == 1:
        try:
            return (
                trainer.train(run, train_data, test_data)
                if p.what == "train"
                else trainer.test(run, test_data)
            )
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            settings = ", ".join(
                f"{name}={getattr(p, name)}"
                for name in ("device", "batch_size", "compr_img_size", "N", "M")
            )
            raise ValueError(
                f"{run.folder}: not enough memory for {settings}; take a smaller batch_size, or more devices"
            ) from None
    launch(p, processes)
    return run.metrics


def main(arguments: list[str] | None = None) -> int:
    """Run, print the folder and the result; 0, or with one line on stderr 2, and 130 when it was interrupted."""
    if sys.stdout:
        sys.stdout.reconfigure(
            errors="replace"
        )  # where the locale is not UTF-8, "?" for what it lacks
    words = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(words):
        print(f"{__doc__}\n{parameter_table()}")
        return 0
    try:
        p = Parameters.parse_arguments(words)
        data = load_splits(p)
        run = open_run(p) if rank() == 0 else Run(p.folder, p)
        metrics = train_or_test(run, *data)
    except ValueError as error:
        print(f"roilib.engines.train: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"roilib.engines.train: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"roilib.engines.train: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    if rank() == 0:
        print(
            f"{run.folder}: {trainer.summary({k: metrics[k] for k in ('train', 'test') if metrics[k]})}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
