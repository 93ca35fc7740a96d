"""Rules about many tokens are kept once, however many sequences have them: all choices of a request do."""

import hashlib
from weakref import WeakValueDictionary

import msgspec

from ...protocol import SamplingParams, TokenRules


class SharedRules:
    """Those of all sequences that there are."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[bytes, TokenRules] = WeakValueDictionary()

    def share(self, params: SamplingParams) -> SamplingParams:
        """The same, with the rules of another sequence if they are equal."""
        if params.token_rules is None:
            return params
        key = hashlib.sha256(msgspec.msgpack.encode(params.token_rules)).digest()
        return msgspec.structs.replace(params, token_rules=self._known.setdefault(key, params.token_rules))
