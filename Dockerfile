# The workbook with JupyterLab on port 8888 and TensorBoard on port 6006; it also runs headless.
# JupyterLab's address, with its token, is in the container's log. TensorBoard has no password.
# Both listen on every address of the container: publish them on 127.0.0.1 only, as below.
#
#   docker build -t roilib .
#   docker run --gpus all --shm-size 8g -v DATA:/workbook/data/kitti \
#     -p 127.0.0.1:8888:8888 -p 127.0.0.1:6006:6006 roilib
#   docker run --gpus all --shm-size 8g -v DATA:/workbook/data/kitti --name roilib-run roilib \
#     ./run_all.sh --profile kitti --data-root data/kitti
#   docker cp roilib-run:/workbook/report .
#
# torch's wheels bring the CUDA runtime; the base image tells the driver where its libraries go.
# A tag can be moved, a digest cannot. To pin the base image, pass --build-arg DIGEST=@sha256:…
# with what `docker buildx imagetools inspect` says of the tag. No digest is written here, since
# this file was never built against a registry.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
ARG DIGEST=
FROM ${BASE}${DIGEST}

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --no-install-recommends -y git libgl1 libglib2.0-0 python3 python3-venv \
  && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1001 researcher && install -d -o researcher /workbook
USER 1001
WORKDIR /workbook

# What the set-up reads, before everything else: a changed module does not install torch again.
COPY --chown=researcher pyproject.toml setup.py constraints.txt setup.sh run_all.sh \
  README.md LICENSE ./
COPY --chown=researcher roilib/__init__.py roilib/
COPY --chown=researcher data/weights/SHA256SUMS data/weights/
COPY --chown=researcher params params
RUN ./run_all.sh --setup
COPY --chown=researcher . .

EXPOSE 8888 6006
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD [ \
  ".venv/bin/python", "-c", \
  "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8888/api', timeout=5)"]
CMD ["bash", "-c", ". ./setup.sh && \
  (tensorboard --logdir runs --bind_all --port 6006 &) && \
  exec jupyter lab --ip=0.0.0.0 --port=8888 --no-browser notebooks"]
