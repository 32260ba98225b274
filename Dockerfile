# Two targets: `cuda`, which is the default, and `cpu`.
#   docker build --tag posemux .
#   docker build --tag posemux:cpu --target cpu .
#
# The wheels of torch carry CUDA, so a slim Python is base enough for a GPU host too: it needs the
# NVIDIA driver and its container toolkit, nothing more. For the same reason the targets share their
# layers, and `cpu` is several GB smaller only if torch comes from an index of CPU wheels:
#   docker build --target cpu --build-arg PIP_EXTRA_INDEX_URL=<that index> .

FROM python:3.12-slim AS dependencies
WORKDIR /src
RUN python -m venv /opt/posemux
ARG PIP_EXTRA_INDEX_URL
# Only what names the dependencies, so that a change of code does not install torch again.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*project['dependencies'], *project['optional-dependencies']['video'], sep='\n')" > requirements.txt \
    && /opt/posemux/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt \
    && /opt/posemux/bin/pip check

FROM python:3.12-slim AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.12-slim AS service
# OpenCV's libraries; ultralytics wants the build of OpenCV that has windows.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --no-create-home posemux \
    && install --directory --owner=posemux /weights
COPY --from=dependencies /opt/posemux /opt/posemux
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    /opt/posemux/bin/pip install --no-cache-dir --no-deps /dist/*.whl

# The root file system may be read-only: all that is ever written goes below /tmp, but for weights
# that `posemux models fetch` puts into the volume.
ENV PATH=/opt/posemux/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    HOME=/tmp \
    YOLO_CONFIG_DIR=/tmp \
    POSE_PORT=8000 \
    POSE_WEIGHTS_DIR=/weights

USER 1000:1000
WORKDIR /tmp
VOLUME /weights
EXPOSE 8000
# It then finishes what it has let in, for up to POSE_DRAIN_SECONDS. Docker kills after ten seconds if
# it is not told to wait longer: docker run --stop-timeout 30
STOPSIGNAL SIGTERM
# Ready is ready, however early: the start period only bounds how long large models may take to load.
# http.client, because urllib would take a proxy of the environment on its way to this very host.
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; service = http.client.HTTPConnection('127.0.0.1', int(os.environ['POSE_PORT']), timeout=2); service.request('GET', '/readyz'); sys.exit(service.getresponse().status != 200)"]
CMD ["posemux", "serve", "--host", "0.0.0.0"]

FROM service AS cpu
ENV POSE_DEVICE=cpu

# Last, and so the default. Without a GPU it does not start, rather than be slow.
FROM service AS cuda
ENV POSE_DEVICE=cuda \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
