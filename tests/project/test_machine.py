"""Machines that lack something: disk space, permission, shared memory, network, cores, UTF-8.

The commands run in a mount namespace of their own. In it the folders `full`, `small` and
`read_only` are disks of that kind, and /dev/shm is read-only. Nothing of it is seen outside.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, street, write_tiny_kitti
from PIL import Image

from roilib.codecs import roic

DISKS = """
mount -t tmpfs -o size=8k tmpfs "$1/full" &&
  head -c 8192 /dev/zero >"$1/full/there" &&
  mount -t tmpfs -o size=400k tmpfs "$1/small" &&
  mount -t tmpfs -o ro tmpfs "$1/read_only" &&
  mount -t tmpfs -o ro tmpfs /dev/shm || exit 77
shift
exec setpriv --bounding-set=-dac_override,-dac_read_search \
  --inh-caps=-dac_override,-dac_read_search "$@"
"""
DRIVER = """
import contextlib, io, json, os, pathlib, sys

import prepare
from roilib import cli

def call(command, *words):
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        sys.argv = [command, *words]
        code = prepare.main() if command == "prepare" else cli.main([command, *words])
    return code, streams[1].buffer.getvalue().decode()

root, cases = pathlib.Path(sys.argv[1]), json.load(sys.stdin)
done = [call(*case) for case in cases]
left = [
    str(path.relative_to(root))
    for path in root.rglob("*")
    if not os.access(path.parent, os.X_OK) or path.is_file()
]
json.dump([done, sorted(left)], sys.stdout)
"""
TRAIN = (
    "--which=hyperprior --device=cpu --batch_size=2 --num_workers=0 --max_steps=3 --precision=32 "
    "--N=8 --M=12 --compr_img_size=64 --obj_det_img_size=64 --train_size_p1=0.67 "
    "--checkpoint_seconds=0 --data_root={root}/kitti --logdir="
)
FULL = "cannot be written (No space left on device)"
READ_ONLY = "cannot be written (Read-only file system)"
RUN = "hyperprior-HASH"
TABLE = {  # words → the line after the command's name; all end with exit code 2
    "encode {root}/a.png {root}/full/a.roic": f"{{root}}/full/a.roic: {FULL}",
    "encode {root}/a.png {root}/read_only/a.roic": f"{{root}}/read_only/a.roic: {READ_ONLY}",
    "encode {root}/a.png {root}/closed/a.roic": (
        "{root}/closed/a.roic: cannot be written (Permission denied)"
    ),
    "encode {root}/secret.png {root}/a.roic": (
        "{root}/secret.png: not a readable picture ([Errno 13]"
    ),
    "decode {root}/street.roic {root}/full/a.png": f"{{root}}/full/a.png: {FULL}",
    "decode {root}/street.roic {root}/read_only/a.png": f"{{root}}/read_only/a.png: {READ_ONLY}",
    f"train {TRAIN}{{root}}/full/runs": (
        f"{{root}}/full/runs/{RUN}: {FULL}; make room or choose another logdir"
    ),
    f"train {TRAIN}{{root}}/read_only": (
        f"{{root}}/read_only/{RUN}: {READ_ONLY}; make room or choose another logdir"
    ),
    f"train {TRAIN}{{root}}/a.png": f"{{root}}/a.png/{RUN}: cannot be written (Not a directory)",
    f"train {TRAIN}{{root}}/small": (
        f"{{root}}/small/{RUN}/checkpoints/step-00000002.pt: {FULL}; make room"
    ),
    f"train {TRAIN}{{root}}/w --num_workers=2": (
        "the 2 processes that load pictures cannot work ([Errno 30] Read-only file system): "
        "they need"
    ),
    f"train {TRAIN}{{root}}/w --data_root={{root}}/closed_kitti": (
        "{root}/closed_kitti/training/image_2: Permission denied"
    ),
    "prepare {root}/read_only/drive --drive 1": (
        "{root}/read_only/drive: cannot be made (Read-only file system)"
    ),
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """Make a folder, whose name has an umlaut, with the commands' inputs."""
    root = tmp_path_factory.mktemp("Gerät")
    for name in ("full", "small", "read_only", "closed"):
        (root / name).mkdir()
    Image.fromarray(street(0)).save(root / "a.png")
    (root / "street.roic").write_bytes(roic.encode(street(0)))
    shutil.copy(root / "a.png", root / "secret.png")
    write_tiny_kitti(root / "kitti")
    write_tiny_kitti(root / "closed_kitti", pictures=1)
    closed = {
        root / "secret.png": 0,
        root / "closed": 0o555,
        root / "closed_kitti" / "training" / "image_2": 0,
    }
    for path, mode in closed.items():
        path.chmod(mode)
    yield root
    for path in closed:
        path.chmod(0o755)


@pytest.mark.slow
def test_what_cannot_be_read_or_written_is_one_line_and_leaves_nothing(machine):
    cases = [words.format(root=machine).split() for words in TABLE]
    command = [
        "unshare",
        "--map-root-user",
        "--mount",
        "bash",
        "-c",
        DISKS,
        "disks",
        machine,
        sys.executable,
        "-c",
        DRIVER,
        machine,
    ]
    if not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("no unshare or setpriv (util-linux) on this machine")
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "data" / "streets")])
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": paths},
        input=json.dumps(cases),
        capture_output=True,
        text=True,
    )
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip(f"no mounts in a namespace on this machine ({done.stderr.strip()})")
    assert done.returncode == 0, done.stderr
    results, left = json.loads(done.stdout)
    for (words, line), (code, said) in zip(TABLE.items(), results, strict=True):
        before, _, after = line.format(root=machine).partition("HASH")
        assert code == 2, words
        assert len(said.splitlines()) == 1, (words, said)
        assert f": {before}" in said, words
        assert after in said, words
    assert not [name for name in left if ".tmp" in name or name.startswith("read_only")]
    assert [name for name in left if name.startswith("full/")] == ["full/there"]
    assert [name.rpartition("/")[2] for name in left if name.endswith(".pt")] == [
        "step-00000001.pt"
    ]


LIMIT = """
import re, resource, sys

import torch
from roilib import cli
from roilib.engines import train

size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_AS, ((size << 10) + (300 << 20),) * 2)
sys.exit(cli.main())
"""


def run(*words, **environment):
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_a_gpu_that_is_not_there_and_memory_that_does_not_suffice(machine):
    words = (TRAIN + "{root}/w").format(root=machine).split()
    done = run("roilib", "train", *words, "--device=cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "device cuda cannot be used: " in done.stderr
    assert "(device=cpu always can" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = subprocess.run(
        [sys.executable, "-c", LIMIT, "train", *words, "--N=512", "--M=4096"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    parameters = "device=cpu, batch_size=2, compr_img_size=64, N=512, M=4096"
    assert f"not enough memory for {parameters}; take a smaller batch_size" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_locales_that_are_not_utf8(machine):
    done = run("roilib", "encode", machine / "a.png", machine / "für.roic", LC_ALL="C")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "roilib encode: all pixels are alike; --detect or --boxes mark regions of interest"
    ]
    assert (machine / "für.roic").read_bytes() == (machine / "street.roic").read_bytes()
    assert run("roilib", "encode", "--help", PYTHONIOENCODING="ascii").returncode == 0
    done = run(
        "roilib",
        "train",
        *(TRAIN + "{root}/läufe").format(root=machine).split(),
        PYTHONIOENCODING="ascii",
        PYTHONUNBUFFERED="1",
    )
    assert done.returncode == 0, done.stderr  # its bar is of blocks


@pytest.mark.slow
def test_one_core_and_no_network_detect_and_encode_as_ever(machine):
    command = [
        "unshare",
        "--map-root-user",
        "--net",
        sys.executable,
        "-m",
        "roilib",
        "encode",
        "--detect",
        machine / "a.png",
        machine / "n.roic",
    ]
    if (
        not shutil.which("unshare")
        or subprocess.run([*command[:3], "true"], capture_output=True).returncode
    ):
        pytest.skip("no network namespaces on this machine")
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_run_all_says_where_nothing_can_be_written_and_that_another_is_at_work(tmp_path):
    clone = tmp_path / "Arbeit über Bilder"
    (clone / ".venv").mkdir(parents=True)
    for name in ("run_all.sh", "setup.sh", "pyproject.toml", "constraints.txt", "params"):
        shutil.copytree(REPOSITORY / name, clone / name) if name == "params" else shutil.copy(
            REPOSITORY / name, clone
        )
    sums = "cat pyproject.toml constraints.txt setup.sh | cksum >.venv/installed"
    subprocess.run(["bash", "-c", sums], cwd=clone, check=True)

    def run_all(*words):
        done = subprocess.run(["./run_all.sh", *words], cwd=clone, capture_output=True, text=True)
        return done.returncode, done.stderr

    (clone / "runs").write_text("a file where a folder belongs")
    assert run_all() == (2, f"run_all.sh: {clone}/runs: nothing can be written there\n")
    (clone / "runs").unlink()
    (clone / "runs").mkdir()
    with (clone / "runs" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_all() == (2, "run_all.sh: another run_all.sh is at work here\n")
    assert run_all("--cores", "many") == (2, "run_all.sh: --cores many: not a number of cores\n")
