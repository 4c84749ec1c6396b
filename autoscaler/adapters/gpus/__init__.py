# SPDX-License-Identifier: Apache-2.0
"""What GPUs do, as DCGM tells it of a cluster and NVML of one machine; both in the same words.

Read first: `devices.py` (what is known of one GPU or MIG instance). `dcgm.py` reads a page of the
DCGM exporter, `dcgm_source.py` asks the exporters; `nvml.py` reads the driver's own library, and
`nvml_source.py` tells which replica uses what.
"""
