# SPDX-License-Identifier: Apache-2.0
"""`tidegate demo`: the main job on one machine, with real processes and real requests.

Read first: `cli.py` (what happens, in order), `stage.py` (models, services, the controller's
process), `traffic.py` (who sends what, when), `view.py` (what the demo shows), `report.py` (what it
ends with). It knows the controller only by its command line and its status API, as any user does.
"""
