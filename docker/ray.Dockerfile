# posemux with Ray, for the nodes of a cluster: docs/cluster.md.
#   docker build --tag posemux .
#   docker build --tag posemux:ray --file docker/ray.Dockerfile .
ARG BASE=posemux
FROM ${BASE}
USER 0:0
# KubeRay asks a node for its health by wget.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,source=pyproject.toml,target=/src/pyproject.toml \
    --mount=type=bind,source=constraints.txt,target=/src/constraints.txt \
    python -c "import tomllib; print(*tomllib.load(open('/src/pyproject.toml', 'rb'))['project']['optional-dependencies']['ray'], sep='\n')" > /tmp/ray.txt \
    && /opt/posemux/bin/pip install --no-cache-dir --constraint /src/constraints.txt --requirement /tmp/ray.txt \
    && rm /tmp/ray.txt
# Where the cluster has GPUs each replica gets one, else CPUs.
ENV POSE_DEVICE=auto \
    RAY_USAGE_STATS_ENABLED=0
# A node's health is Ray's to ask.
HEALTHCHECK NONE
USER 1000:1000
