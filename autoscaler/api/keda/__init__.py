# SPDX-License-Identifier: Apache-2.0
r"""The external scaler that KEDA asks by gRPC: what it wants to know, told by the loop's records.

Read `trigger.py` (what a ScaledObject may say), `answers.py` (what it is told, and when nothing),
then `scaler.py`, which speaks gRPC. `externalscaler.proto` is KEDA's interface; the two files made
of it are written anew, from the repository's root, by

    python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. \
        autoscaler/api/keda/externalscaler.proto
"""
