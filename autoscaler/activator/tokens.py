# SPDX-License-Identifier: Apache-2.0
"""What a request for generated text will cost in tokens, told from its path and its first bytes.

An estimate for deciding early, made without parsing JSON, and only for the paths named here:

- The prompt: a quarter of the body's bytes, which is what English takes in common vocabularies.
  JSON around it and code make it too large by a third or so, Chinese or Japanese too small by as
  much; an image or sound within the body makes it wrong by orders of magnitude.
- The output: what the client allows at most, where it says so. Most answers are far shorter. More
  than one choice (`n`) is not seen; nor is a number beyond the first 64 KiB of the body, one that
  is cut in two between two reads, or one whose key is written with escapes.
"""

import re
from typing import Final

BYTES_PER_TOKEN: Final = 4
LOOK_BYTES: Final = 64 * 1024
# Who allows more than this says "no limit" rather than how much is expected.
MOST_OUTPUT_TOKENS: Final = 4096
# Keys that begin like those looked for. So many without a number are no request but an attack.
MOST_KEYS: Final = 64

_NAME: Final = r"[^/:]+"
# OpenAI's (with and without KServe's prefix) and Anthropic's paths, TGI's, SGLang's, KServe V2's.
_GENERATIVE: Final = re.compile(
    rf"(/openai)?/v1/(completions|chat/completions|responses|messages)/?"
    rf"|(/v2/models/{_NAME}(/versions/{_NAME})?)?/(generate|generate_stream)/?"
)
_KEY: Final = b'"max_'
# Within a JSON string a quote is written with a backslash before it, so a quote without one begins
# or ends a string; and only a key has a colon after it.
_LIMIT: Final = re.compile(
    rb'"max_(?:completion_|new_|output_)?tokens"[ \t\r\n]{0,8}:[ \t\r\n]{0,8}(\d++)(?=[ \t\r\n,}])'
)
_BACKSLASH: Final = ord("\\")


def generates(method: str, path: str) -> bool:
    """Whether a request like this asks a model for text."""
    return method == "POST" and _GENERATIVE.fullmatch(path) is not None


def asked_output_tokens(data: bytes, start: int, end: int) -> int | None:
    """The most tokens that the body in `data[start:end]` allows its answer; None: it does not say.

    At most `MOST_OUTPUT_TOKENS`; of several limits the last. Any bytes will do; at most the first
    `LOOK_BYTES` of them are looked at.
    """
    at = end = min(end, start + LOOK_BYTES)
    for _ in range(MOST_KEYS):
        # From the end: most clients write what they allow after the prompt.
        at = data.rfind(_KEY, start, at)
        if at < 0:
            return None
        found = _LIMIT.match(data, at, end)
        if found is not None and (at == start or data[at - 1] != _BACKSLASH):
            digits = found.group(1)
            # int() refuses the longest ones.
            return min(int(digits), MOST_OUTPUT_TOKENS) if len(digits) < 16 else MOST_OUTPUT_TOKENS
    return None
