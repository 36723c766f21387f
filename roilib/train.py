"""Train or test one model from the command line: `python -m roilib.train --which=hyperprior --lmbda=0.013 …`.

Every parameter of `roilib.parameters` is a `--name=value`. The same run is what notebooks 03 and 04 start.
"""

import sys

from roilib import engine
from roilib.datasets import load_splits
from roilib.parameters import Parameters
from roilib.runs import open_run


def main(arguments: list[str] | None = None) -> int:
    """Run, print the folder and the result; 0, or 2 with one line on stderr."""
    try:
        p = Parameters.parse_arguments(sys.argv[1:] if arguments is None else arguments)
        run = open_run(p)
        train_data, test_data = load_splits(p)
        metrics = engine.train(run, train_data, test_data) if p.what == "train" else engine.test(run, test_data)
    except ValueError as error:
        print(f"roilib.train: {error}", file=sys.stderr)
        return 2
    print(f"{run.folder}: {engine.summary({k: metrics[k] for k in ('train', 'test') if metrics[k]})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
