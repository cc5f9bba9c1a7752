"""The default text embedding, of 32 floats."""

import hashlib
import math
import re

DIMENSION = 32


def compute_embedding(text):
    text = text or ""
    bow = [0.0] * 64
    for token in re.split("[^a-z0-9]+", text.lower()):
        if token:
            bow[int(hashlib.sha1(token.encode("utf-8")).hexdigest()[:8], 16) % 64] += 1.0
    norm = _norm(bow)
    digest = hashlib.sha1(text.encode("utf-8", "surrogatepass")).digest()
    noise = [byte / 255.0 for byte in (digest + digest)[:DIMENSION]]
    mix = [0.9 * (bow[place] / norm) + 0.1 * noise[place] for place in range(DIMENSION)]
    norm = _norm(mix)
    return [value / norm for value in mix]


def cosine_similarity(first, second):
    dot = sum(x * y for x, y in zip(first, second, strict=False))
    first_norm = math.sqrt(sum(x * x for x in first))
    second_norm = math.sqrt(sum(y * y for y in second))
    if first_norm == 0.0 or second_norm == 0.0:
        return 0.0
    return dot / (first_norm * second_norm)


def _norm(values):
    squares = 0.0
    for value in values:
        squares += value * value
    return math.sqrt(squares) or 1.0
