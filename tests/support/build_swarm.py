"""Several builds at once, some of them killed at random moments."""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.artifacts.store.keys import Identity, identity
from engine.artifacts.store.store import Store
from engine.compiler.lower import Lowering, code_identities

FORMS = tuple(f"form {index}" for index in range(4))


def swarm(commands: Sequence[Sequence[str]], kills: int, within: float, seed: int) -> list[int]:
    """Runs all commands at once and kills the groups of `kills` of them at random moments; returns the exit codes of the others.

    within: the last moment for a kill, in seconds. Who has ended by then is not killed.
    """
    random_numbers = random.Random(seed)
    processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True) for command in commands
    ]
    start = time.monotonic()
    moments = sorted(random_numbers.uniform(0, within) for _ in range(kills))
    victims = random_numbers.sample(processes, kills)
    for moment, victim in zip(moments, victims, strict=True):
        while time.monotonic() < start + moment and any(process.poll() is None for process in processes):
            time.sleep(0.02)
        if victim.poll() is None:
            os.killpg(victim.pid, signal.SIGKILL)
    codes = []
    for process in processes:
        _, errors = process.communicate()
        if process not in victims:
            codes.append(process.returncode)
            if process.returncode:
                print(errors.decode(), file=sys.stderr)
    return codes


@dataclass(frozen=True, kw_only=True)
class Recipe:
    form: str


@dataclass(frozen=True, kw_only=True)
class UnrepeatableBackend:
    """Compiles in no time worth speaking of, and never twice to the same bytes; each compile leaves a file in `log`."""

    log: Path
    seconds: float
    size: int = 200_000
    suffix: str = ".so"

    def segment(self, form_text: str) -> Identity:
        return identity("segment", Recipe(form=form_text))

    def compile(self, form_text: str, output: Path, sources: Path | None) -> None:
        self.compile_library(output)
        output.with_name(f"{output.stem}.part").write_bytes(os.urandom(9))

    def parts(self, compiled: Path) -> Sequence[str]:
        return [f"{compiled.stem}.part"]

    def library(self) -> Identity:
        return identity("kernels", Recipe(form="library"))

    def compile_library(self, output: Path) -> None:
        output.with_name("started").touch()
        time.sleep(self.seconds)
        output.write_bytes(os.urandom(self.size))
        (self.log / f"{output.stem}-{os.getpid()}").touch()


def lower_all(store: Store, artifact: Path, log: Path, *, seconds: float = 0.0, seed: int = 0) -> Mapping[str, int]:
    """Lowers FORMS, in an order that the seed decides, into `artifact`. Returns how many things were compiled, reused and waited for."""
    artifact.mkdir(parents=True)
    backend = UnrepeatableBackend(log=log, seconds=seconds)
    counts = {"compiled": 0, "reused": 0, "waited": 0}

    def wait() -> None:
        counts["waited"] = 1

    with Lowering(backend=backend, store=store, jobs=1, artifact=artifact, debug_dump=None) as lowering:
        order = random.Random(seed).sample(FORMS, len(FORMS))
        done = lowering.run(code_identities(backend, order), lambda lowered: None, wait)
    counts["reused"] = sum(lowered.reused for lowered in done.values())
    return counts | {"compiled": len(done) - counts["reused"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("--seconds", type=float, default=0.3)
    given = parser.parse_args()
    lower_all(Store(given.store), given.artifact, given.log, seconds=given.seconds, seed=given.seed)
