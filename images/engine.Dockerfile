# Ray and vLLM, from a locked list: for engines on CPU by default.
#   docker build -f images/engine.Dockerfile -t YOUR/vllm-ray:cpu .
# With our code in it, `docker build --build-arg CODE=YOUR/reasonscale:TAG --target with-code`, no init container is needed to try it by hand.
ARG CODE=scratch
FROM debian:bookworm-slim AS base
# KubeRay's probes call bash and wget; vLLM calls a C compiler when an engine starts.
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 procps iproute2 wget ca-certificates gcc libc6-dev libnuma1 libstdc++6 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --gid users --create-home ray

FROM base AS build
ARG REQUIREMENTS=requirements/engine-cpu.txt
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv && python3 -m venv /opt/venv
COPY ${REQUIREMENTS} /tmp/requirements.txt
RUN /opt/venv/bin/pip install --no-cache-dir --require-hashes --no-deps -r /tmp/requirements.txt

FROM base AS engine
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/home/ray LANG=C.UTF-8 PYTHONUNBUFFERED=1
USER 1000:100

FROM ${CODE} AS code

FROM engine AS with-code
COPY --from=code /opt/reasonscale /opt/reasonscale
ENV PYTHONPATH=/opt/reasonscale

FROM engine
