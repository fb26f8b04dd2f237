# The mesh of configs/docker.yaml in one container. `docker-compose up --build` starts it.
FROM python:3.11-slim-bookworm AS build

# PyPI's torch for Linux is the CUDA build, several gigabytes of it; this index has the CPU build.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN python3 -m venv /opt/baton
WORKDIR /source

# The dependencies first and alone: this layer stays while only the code changes.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir -p runtime actors protos/batonmesh configs && /opt/baton/bin/pip install --no-cache-dir .
COPY . .
RUN /opt/baton/bin/pip install --no-cache-dir --no-deps --force-reinstall .


FROM python:3.11-slim-bookworm

COPY --from=build /opt/baton /opt/baton
COPY configs /etc/baton
RUN useradd --create-home --uid 1000 baton
USER baton
# Made here, so that a volume mounted on it belongs to its user.
RUN mkdir -p /home/baton/.local/state
WORKDIR /home/baton
ENV PATH=/opt/baton/bin:$PATH PYTHONUNBUFFERED=1

EXPOSE 8000 50051 8265
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["baton"]
CMD ["up", "--config", "/etc/baton/docker.yaml"]
