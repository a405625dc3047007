# The GPU set in a container. What runs it and what is mounted: docs/scale.md, "Containers and clouds".
#
# The base holds no CUDA: the locked wheels bring the CUDA 13 runtime, its compiler and its libraries, and a second copy
# from nvidia/cuda would take gigabytes and never be loaded. From the host comes the driver alone (580 or newer).

# Another supported Python: --build-arg PYTHON_VERSION=3.13.11
ARG PYTHON_VERSION=3.11.14
FROM python:${PYTHON_VERSION}-slim-bookworm AS base

# gcc: triton and torch compile small programs while they run. Debian keeps one version of a package, so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*

# Files written into a mounted folder belong to this user: --build-arg UID=$(id -u)
ARG UID=1000
RUN useradd --create-home --uid "${UID}" gpg \
    && install --directory --owner=gpg /home/gpg/companion /home/gpg/companion/results /home/gpg/hf
USER ${UID}
WORKDIR /home/gpg/companion


FROM base AS gpu

# No GPU is visible while an image is built, and a container may be started without one: the set is said, not found out.
ENV DEVICE=gpu \
    HF_HOME=/home/gpg/hf \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# First what the installation is made of, so that a change of the code does not install again.
COPY --chown=gpg Makefile pyproject.toml README.md LICENSE ./
COPY --chown=gpg requirements requirements
COPY --chown=gpg scripts scripts
COPY --chown=gpg results/paper results/paper
RUN --mount=type=cache,target=/pip-cache,mode=0777 PIP_CACHE_DIR=/pip-cache make install

COPY --chown=gpg . .
ENV PATH=/home/gpg/companion/.venv/bin:$PATH

VOLUME ["/home/gpg/companion/results", "/home/gpg/hf"]
CMD ["make"]
