"""ONNX Runtime GenAI, one batch after another, behind answering.py.

python -m peers.runners.onnxruntime_runner MODEL_DIRECTORY THREADS

Its engine with requests that come and go needs paged attention, which it has for GPUs only.
"""

import json
import sys

import numpy as np
import onnxruntime_genai as genai  # type: ignore[import-not-found]

from .answering import Answer, Job, serve


class _Batcher:
    def __init__(self, model: str, threads: int) -> None:
        genai.disable_telemetry_events()
        config = genai.Config(model)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self._model = genai.Model(config)
        self._tokenizer = genai.Tokenizer(self._model)

    def text_of(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(np.array(token_ids, dtype=np.int32)))

    def do(self, job: Job) -> None:
        """A batch starts when the one before it is complete."""
        for first in range(0, len(job.answers), job.concurrency):
            if not job.over():
                self._batch(job.answers[first : first + job.concurrency], job)

    def _batch(self, answers: list[Answer], job: Job) -> None:
        for answer in answers:
            answer.start()
            answer.prompt_tokens = len(self._tokenizer.encode(answer.prompt))
        tokens = self._tokenizer.encode_batch([answer.prompt for answer in answers]).as_numpy()
        length = tokens.shape[1] + max(answer.wanted_tokens for answer in answers)
        parameters = genai.GeneratorParams(self._model)
        shortest = length if job.exact else 0
        parameters.set_search_options(max_length=length, min_length=shortest, batch_size=len(answers), do_sample=False)
        generator = genai.Generator(self._model, parameters)
        generator.append_tokens(tokens)
        while not (generator.is_done() or job.over()):
            generator.generate_next_token()
            for answer, token in zip(answers, generator.get_next_tokens(), strict=True):
                answer.take([int(token)])
        if generator.is_done():
            for answer in answers:
                answer.finish()


def main() -> None:
    batcher = _Batcher(sys.argv[1], int(sys.argv[2]))
    serve(batcher.do, batcher.text_of)


if __name__ == "__main__":
    main()
