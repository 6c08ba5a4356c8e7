# docker build -t graftwork .
#
# Runs on the CPU unless a GPU is handed in. Which build of torch goes in, the index decides:
#   --build-arg TORCH_INDEX=<address of PyTorch's index for the CPU>     a smaller image, CPU only
#   --build-arg TORCH_INDEX=<address of its index for a CUDA version>    for that driver
# Without the argument it is pip's own index, whose build for Linux serves both and is large.

ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
ARG TORCH_INDEX=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/graftwork
WORKDIR /src
# Torch changes less often than the code and has a layer of its own. Of one version pip takes the
# build with a suffix, so the variant's index wins over the default one.
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/graftwork/bin/pip install --constraint constraints.txt \
      ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY adapters adapters
COPY server server
COPY trainer trainer
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/graftwork/bin/pip install --constraint constraints.txt '.[server,train]'

FROM python:${PYTHON_VERSION}-slim
# The CPU kernels are compiled at the first start, for the very processor they then run on, and
# kept in the cache volume.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 graftwork \
    && install --directory --owner graftwork --group graftwork /var/lib/graftwork /var/cache/graftwork
COPY --from=build /opt/graftwork /opt/graftwork
ENV PATH=/opt/graftwork/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HF_HOME=/var/cache/graftwork/huggingface \
    GRAFTWORK_CACHE_DIR=/var/cache/graftwork \
    GRAFTWORK_DATA_DIR=/var/lib/graftwork \
    GRAFTWORK_GRPC__HOST=0.0.0.0 \
    GRAFTWORK_METRICS__HOST=0.0.0.0
USER graftwork
WORKDIR /var/lib/graftwork
VOLUME ["/var/lib/graftwork", "/var/cache/graftwork"]
EXPOSE 50051 9095
# The first start downloads and converts the default model and compiles the kernels.
HEALTHCHECK --interval=10s --timeout=6s --start-period=180s --retries=3 \
    CMD ["python", "-m", "graftwork_server.probe"]
ENTRYPOINT ["graftwork"]
CMD ["serve"]
