# SPDX-License-Identifier: Apache-2.0
# The image that charts/tidegate runs. With the worker's engines: --build-arg EXTRAS='[worker]'.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY autoscaler ./autoscaler
COPY scheduler_extender ./scheduler_extender
COPY serving ./serving
COPY simulations ./simulations
RUN python -m venv /opt/tidegate \
    && /opt/tidegate/bin/pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS}"

FROM python:${PYTHON}-slim
COPY --from=build /opt/tidegate /opt/tidegate
ENV PATH="/opt/tidegate/bin:${PATH}"
USER 65532:65532
ENTRYPOINT ["tidegate"]
