"""OpenVINO GenAI with continuous batching, behind answering.py.

python -m peers.runners.openvino_runner MODEL_DIRECTORY THREADS SEQUENCES TOKENS_EACH
"""

import sys
from typing import Any

import openvino_genai as genai  # type: ignore[import-not-found]

from .answering import Answer, Job, serve

_BLOCK = 32
"""Tokens in a block of its KV cache on CPU."""
_STEP_TOKENS = 512


class _Batcher:
    def __init__(self, model: str, threads: int, sequences: int, tokens_each: int) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs = sequences
        scheduler.max_num_batched_tokens = max(_STEP_TOKENS, sequences)
        scheduler.num_kv_blocks = sequences * (tokens_each // _BLOCK + 1)
        self._pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})
        self._tokenizer = self._pipeline.get_tokenizer()
        self._number = 0

    def text_of(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids))

    def do(self, job: Job) -> None:
        """As in a server: the next request enters when one has left."""
        waiting = list(reversed(job.answers))
        running: list[tuple[Answer, Any]] = []
        while (waiting or running) and not job.over():
            while waiting and len(running) < job.concurrency:
                answer = waiting.pop()
                running.append((answer, self._add(answer, job.exact)))
            self._pipeline.step()
            running = [(answer, handle) for answer, handle in running if not self._read(answer, handle)]
        for _, handle in running:
            handle.cancel()

    def _add(self, answer: Answer, exact: bool) -> Any:
        answer.start()
        config = genai.GenerationConfig()
        config.max_new_tokens = answer.wanted_tokens
        config.ignore_eos = exact
        config.do_sample = False
        config.set_eos_token_id(self._tokenizer.get_eos_token_id())
        tokens = self._tokenizer.encode(answer.prompt, add_special_tokens=False).input_ids
        answer.prompt_tokens = tokens.shape[1]
        self._number += 1
        return self._pipeline.add_request(self._number, tokens, config)

    @staticmethod
    def _read(answer: Answer, handle: Any) -> bool:
        """Take what the last step made. Returns whether the answer is complete."""
        if handle.can_read():
            (made,) = handle.read().values()
            answer.take(made.generated_ids)
        status = handle.get_status()
        if status == genai.GenerationStatus.RUNNING:
            return False
        if status != genai.GenerationStatus.FINISHED:
            raise RuntimeError(f"a request ended as {status}")
        answer.finish()
        return True


def main() -> None:
    batcher = _Batcher(sys.argv[1], *map(int, sys.argv[2:]))
    serve(batcher.do, batcher.text_of)


if __name__ == "__main__":
    main()
