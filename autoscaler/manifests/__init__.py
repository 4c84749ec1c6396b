# SPDX-License-Identifier: Apache-2.0
"""Kubernetes manifests -> what is to be scaled. Pure: no API server, no file, no clock.

Read first: `targets.py` (`wanted`: one object in, every scale target and every problem out), then
`annotations.py` (how several speakers become one policy), `kserve.py` and `knative.py` (what is
read of theirs). `documents.py` finds the line of each place in a YAML file.
"""

from autoscaler.manifests.objects import ObjectRef, TargetRef, Wanted
from autoscaler.manifests.places import Place, Problem
from autoscaler.manifests.targets import wanted

__all__ = ["ObjectRef", "Place", "Problem", "TargetRef", "Wanted", "wanted"]
