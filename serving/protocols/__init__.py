# SPDX-License-Identifier: Apache-2.0
"""HTTP in the words of KServe V1 and the Open Inference Protocol V2.

Read first: `http.py` (request, answer, status of an error), `routes.py` (the table of paths), then
`v2.py`; `elements.py` turns JSON and bytes into arrays and back.
"""
