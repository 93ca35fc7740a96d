"""`python -m engine.runtime.logits`, on a machine that may lack AMX.

The check of the processor is told that AMX is there, as it is where an emulator stands in. Prints the
tile products of the process, if the emulator counted them.
"""

import sys
from functools import partial

from amx import FLAGS, counted_products

from engine.artifacts import check_machine, this_machine_flags
from engine.runtime import executor, logits

if __name__ == "__main__":
    executor.check_machine = partial(check_machine, flags=this_machine_flags() | FLAGS)
    status = logits.main()
    print(next(counted_products()))
    sys.exit(status)
