# The operator, and the code that its engines get by an init container.
#   docker build -f images/operator.Dockerfile -t YOUR/reasonscale:TAG .
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/venv
COPY requirements/core.txt requirements/core.txt
RUN /opt/venv/bin/pip install --no-cache-dir --require-hashes -r requirements/core.txt
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
# Bytecode that holds wherever it is copied to: engines read it from a volume that they can't write.
RUN pip install --no-cache-dir --no-deps --no-compile --target /opt/reasonscale . \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/reasonscale
COPY examples/micro-reasoner /opt/reasonscale/models/micro-reasoner
RUN cd /opt/reasonscale/models/micro-reasoner && rm -f README.md eval.json train.log train.py

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --gid users --create-home reasonscale
COPY --from=build /opt /opt
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/opt/reasonscale
USER 10001
ENTRYPOINT ["/opt/venv/bin/python3", "-m", "reasonscale.cli.main"]
