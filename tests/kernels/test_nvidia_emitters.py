"""The table of emitters: what it says of modules is what they have."""

from importlib import import_module
from pathlib import Path

import engine.kernels.nvidia as folder
from engine.kernels.nvidia.emitters import MODULES, emitter_of

WITH_EMITTERS = sorted(set(MODULES.values()))


def test_every_operator_is_in_the_module_that_the_table_names() -> None:
    emitters = {name: import_module(f"engine.kernels.nvidia.{name}").EMITTERS for name in WITH_EMITTERS}
    assert {operator: name for name, own in emitters.items() for operator in own} == MODULES
    assert all(emitter_of(operator) is emitters[name][operator] for operator, name in MODULES.items())


def test_no_module_is_left_out() -> None:
    (place,) = folder.__path__
    assert sorted(file.stem for file in Path(place).glob("*.py") if "\nEMITTERS: " in file.read_text()) == WITH_EMITTERS
