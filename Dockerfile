# Two images of one pipeline, `--target cpu` and `--target cuda` (docs/docker.md). What is installed is pinned by constraints.txt.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 HF_HOME=/cache/huggingface
RUN useradd --create-home --uid 1000 distill && install --directory --owner distill /cache /work
WORKDIR /opt/distill
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY manifests manifests
COPY stages stages
COPY pipeline pipeline

FROM base AS cpu
ARG EXTRAS=
RUN pip install --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu ".${EXTRAS:+[$EXTRAS]}"
WORKDIR /work
USER distill
ENTRYPOINT ["python", "-m"]
CMD ["pipeline.label", "--help"]

# The wheels of PyTorch bring CUDA's libraries; the driver is the host's, through the NVIDIA Container Toolkit.
FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG EXTRAS=
RUN pip install --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}"
WORKDIR /work
USER distill
ENTRYPOINT ["python", "-m"]
CMD ["pipeline.label", "--help"]
