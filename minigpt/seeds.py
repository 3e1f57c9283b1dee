"""One seed, many independent streams of random numbers.

The order of batches, the dropout of a step and sample number i each draw from a stream of their own, made from the
run's seed and a few numbers. Nothing has to be saved to continue a stream, which is what makes a resume exact.
"""

from hashlib import blake2b


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all `parts` and on nothing else (neither the process nor the machine)."""
    digest = blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
