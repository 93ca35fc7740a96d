"""How the workers of one server share its machine. Standard library only: it is read before the workers are started."""

from dataclasses import replace

from ...cpus import shares_of, usable_cpus
from ...errors import UsageError
from ..options import ServeOptions, WorkerOptions


def options_of_replicas(options: ServeOptions) -> list[WorkerOptions]:
    """What each replica is started with: neighbouring CPUs, and its part of --threads and --kv-memory.

    Raises UsageError where there is too little of something for each to have a part.
    """
    count = options.replicas
    if count == 1:
        return [options]
    cpus = usable_cpus()
    there_are = {"CPUs that may be used": len(cpus), "--threads": options.threads, "bytes of --kv-memory": options.kv_memory}
    for name, number in there_are.items():
        if number is not None and number < count:
            raise UsageError(f"--replicas is {count}, more than the {name} ({number})", hint="ask for fewer replicas")
    return [
        replace(
            options,
            workers=count,
            cpus=",".join(map(str, share)),
            threads=None if options.threads is None else options.threads // count,
            kv_memory=None if options.kv_memory is None else options.kv_memory // count,
        )
        for share in shares_of(cpus, count)
    ]
