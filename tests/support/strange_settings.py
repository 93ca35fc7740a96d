"""Values that a setting of a damaged or edited configuration may have."""

STRANGE = [
    None,
    True,
    -1,
    0,
    1,
    3,
    0.5,
    -2.5,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "linear",
    [],
    [1],
    ["full_attention"] * 6,
    {},
    {"a": 1},
]
