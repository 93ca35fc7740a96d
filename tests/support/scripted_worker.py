"""A worker without a model: it says its prompt back, token by token, over the real protocol.

Token i of an answer is token i of the prompt, counted around; with a temperature above 0 it is the
prompt's token at a place drawn from the seed and i, which is never the end of text where there is
another: how long an answer gets does not depend on the draw. A prompt is scored a few tokens per step. So an answer
depends on the request alone, and a second worker goes on where the first one stopped. After the whole
prompt comes the end of text. The vector of a text says what the request was. A token's experts are told by `experts`.

--events PATH   a datagram socket that hears what happens here, one JSON object each
--gate PATH     a FIFO: wait for a byte before being ready, and one for each further worker
--step S        seconds a step takes
--fail / --crash / --refuse / --crash-after N (steps) / --poison TOKEN (in a prompt): ways to fail
"""

import argparse
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time

from engine.protocol import (
    HEADER_BYTES,
    Abort,
    Drain,
    Embed,
    Failed,
    Output,
    Phase,
    PromptLogprob,
    Ready,
    Stats,
    StepDone,
    Submit,
    TokenLogprob,
    body_length,
    decode_to_worker,
    encode,
)

CACHED = 2
SCORED_AT_ONCE = 3


class Events:
    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if path else None
        self._path = path

    def tell(self, kind, **values):
        if self._socket:
            self._socket.sendto(json.dumps({"event": kind, "pid": os.getpid(), **values}).encode(), self._path)


def score(token, count):
    return PromptLogprob(-1.5 - token, 7, [((token + 1 + k) % 256, -0.25 - k) for k in range(count)])


def experts(token):
    """Of eight, in two layers, two each."""
    return bytes((token % 8, (token + 1) % 8, token // 8 % 8, (token // 8 + 3) % 8))


class Sequence:
    def __init__(self, submit):
        self.submit = submit
        self.tokens = list(submit.generated)
        self.scored = submit.scored
        self.routed = None if submit.params.routed_from is None else submit.params.routed_from + submit.routed

    def routes(self):
        """Of all tokens so far that have not been told."""
        if self.routed is None:
            return []
        told = [experts(token) for token in [*self.submit.prompt, *self.tokens][self.routed :]]
        self.routed += len(told)
        return told

    def step(self, eos):
        params, prompt, i = self.submit.params, self.submit.prompt, len(self.tokens)
        if params.prompt_logprobs is not None and not self.tokens and self.scored < len(prompt) - 1:
            scored = prompt[1 + self.scored : 1 + self.scored + SCORED_AT_ONCE]
            self.scored += len(scored)
            return Output(
                self.submit.id, [], cached_tokens=CACHED, prompt_logprobs=[score(token, params.prompt_logprobs) for token in scored]
            )
        if params.max_tokens == 0:
            return Output(self.submit.id, [], finish_reason="length", cached_tokens=CACHED, routed_experts=self.routes())
        token = prompt[i % len(prompt)] if params.temperature == 0 else self.drawn(eos)
        if i >= len(prompt) and not params.ignore_eos and i >= params.min_tokens:
            token = eos
        routes = self.routes()
        self.tokens.append(token)
        ends = (token == eos and not params.ignore_eos) or token in params.stop_token_ids
        finish = "stop" if ends else "length" if len(self.tokens) >= params.max_tokens else None
        logprobs = []
        if params.logprobs is not None:
            others = [token, *params.logprob_token_ids] if params.logprob_token_ids else [(token + k) % 256 for k in range(params.logprobs)]
            logprobs = [TokenLogprob(-0.5, [(id, -0.5 - k) for k, id in enumerate(others)])]
        return Output(self.submit.id, [token], logprobs, finish, cached_tokens=CACHED, routed_experts=routes)

    def drawn(self, eos):
        choices = [token for token in self.submit.prompt if token != eos] or self.submit.prompt
        return random.Random(f"{self.submit.params.seed}:{len(self.tokens)}").choice(choices)


class Text:
    """Its vector says what was asked: how many tokens, where the second text begins, their sum, and the first tokens.

    Of a raw one, less than 0.
    """

    def __init__(self, embed):
        self.submit = embed

    def step(self, eos):
        prompt = self.submit.prompt
        values = [len(prompt), self.submit.pair_start, sum(prompt), *prompt[:5], *[0] * 5][:8]
        values = [-value if self.submit.raw else value for value in values[: self.submit.dimensions or 8]]
        return Output(self.submit.id, [], finish_reason="stop", vector=struct.pack(f"<{len(values)}f", *values))


class Worker:
    def __init__(self, args):
        self.args = args
        self.socket = socket.socket(fileno=args.fd)
        self.events = Events(args.events)
        self.buffer = bytearray()
        self.sequences = {}
        self.steps = self.prompt_tokens = self.generated = 0
        self.draining = False
        with open(os.path.join(args.artifacts, "tokenizer", "text.json")) as file:
            self.eos = json.load(file)["eos_token_ids"][0]

    def send(self, message):
        self.socket.sendall(encode(message))

    def run(self):
        self.events.tell("started", argv=sys.argv[1:])
        if self.args.crash:
            os._exit(3)
        if self.args.fail:
            self.send(Failed("MismatchError", "made for another machine", "build it here", 7))
            sys.exit(7)
        self.send(Phase("imports", 0.25))
        self.send(Phase("weights", 0.5))
        if self.args.gate:
            with open(self.args.gate, "rb") as gate:
                gate.read(1)
        self.send(Ready(num_blocks=self.args.blocks, max_tokens=self.args.blocks * 16, max_batch_tokens=512, max_num_seqs=4))
        while not (self.draining and not self.sequences):
            self.receive(wait=not self.sequences)
            if self.sequences:
                self.step()
        self.events.tell("drained")

    def receive(self, wait):
        while select.select([self.socket], [], [], None if wait else 0)[0]:
            data = self.socket.recv(1 << 20)
            if not data:
                sys.exit(0)
            self.buffer += data
            wait = False
            while len(self.buffer) >= HEADER_BYTES:
                end = HEADER_BYTES + body_length(bytes(self.buffer[:HEADER_BYTES]))
                if len(self.buffer) < end:
                    wait = True
                    break
                message = decode_to_worker(bytes(self.buffer[HEADER_BYTES:end]))
                del self.buffer[:end]
                self.handle(message)

    def handle(self, message):
        if isinstance(message, Submit):
            self.events.tell(
                "submit",
                id=message.id,
                prompt=len(message.prompt),
                generated=len(message.generated),
                scored=message.scored,
                prompt_logprobs=message.params.prompt_logprobs,
                routed=message.routed,
                routed_from=message.params.routed_from,
                grammar=message.params.grammar,
            )
            if self.args.refuse:
                self.send(StepDone([Output(message.id, [], finish_reason="abort", error="this worker refuses everything")], Stats()))
                return
            if self.args.poison in message.prompt:
                os._exit(5)
            self.sequences[message.id] = Sequence(message)
            self.prompt_tokens += len(message.prompt)
        elif isinstance(message, Embed):
            self.events.tell("embed", id=message.id, prompt=len(message.prompt), others=len(self.sequences))
            self.sequences[message.id] = Text(message)
        elif isinstance(message, Abort):
            self.events.tell("abort", id=message.id, known=message.id in self.sequences)
            self.sequences.pop(message.id, None)
        elif isinstance(message, Drain):
            self.draining = True

    def step(self):
        time.sleep(self.args.step)
        if self.args.crash_after is not None and self.steps >= self.args.crash_after:
            os._exit(4)
        outputs = [sequence.step(self.eos) for sequence in self.sequences.values()]
        for output in outputs:
            if output.finish_reason:
                del self.sequences[output.id]
        self.steps += 1
        self.generated += len(outputs)
        self.send(
            StepDone(
                outputs,
                Stats(
                    running=len(self.sequences),
                    blocks_used=len(self.sequences),
                    blocks_total=self.args.blocks,
                    prompt_tokens_total=self.prompt_tokens,
                    generation_tokens_total=self.generated,
                    steps_total=self.steps,
                ),
            )
        )


def main():
    parser = argparse.ArgumentParser()
    for flag, kind in (("--fd", int), ("--artifacts", str), ("--threads", int), ("--kv-memory", int), ("--max-num-seqs", int)):
        parser.add_argument(flag, type=kind)
    parser.add_argument("--max-batch-tokens", type=int)
    parser.add_argument("--scheduling")
    parser.add_argument("--digest")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--cpus")
    parser.add_argument("--verify-weights", action="store_true")
    parser.add_argument("--events")
    parser.add_argument("--gate")
    parser.add_argument("--step", type=float, default=0.0)
    parser.add_argument("--blocks", type=int, default=64)
    parser.add_argument("--crash-after", type=int)
    parser.add_argument("--poison", type=int)
    for flag in ("--fail", "--crash", "--refuse"):
        parser.add_argument(flag, action="store_true")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Worker(parser.parse_args()).run()


if __name__ == "__main__":
    main()
