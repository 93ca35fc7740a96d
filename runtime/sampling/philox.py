"""The random number at an index: a function of seed and index alone, so that nothing needs to be remembered.

Philox4x64-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
Written out here because one number costs microseconds, and importing numpy.random costs 15 ms of start-up.
"""

_MASK = (1 << 64) - 1
_MULTIPLIER_0 = 0xD2E7470EE14C6C93
_MULTIPLIER_1 = 0xCA5A826395121157
_WEYL_0 = 0x9E3779B97F4A7C15
_WEYL_1 = 0xBB67AE8584CAA73B


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) with 53 random bits; equals `numpy.random.Generator(Philox(key=seed, counter=index)).random()`.

    seed is taken modulo 2**64; index is in [0, 2**64 - 1).
    """
    key_0, key_1 = seed & _MASK, 0
    c0, c1, c2, c3 = index + 1, 0, 0, 0
    for _ in range(10):
        product_0 = _MULTIPLIER_0 * c0
        product_1 = _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (product_1 >> 64) ^ c1 ^ key_0, product_1 & _MASK, (product_0 >> 64) ^ c3 ^ key_1, product_0 & _MASK
        key_0 = (key_0 + _WEYL_0) & _MASK
        key_1 = (key_1 + _WEYL_1) & _MASK
    return (c0 >> 11) * 2.0**-53
