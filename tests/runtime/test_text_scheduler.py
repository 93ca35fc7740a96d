"""Which whole texts a step takes."""

from engine.protocol import Embed, SamplingParams
from engine.runtime.caches.caches import Caches
from engine.runtime.scheduler import Chunk
from engine.runtime.sequence import Sequence
from engine.runtime.text_scheduler import TextScheduler


def text(length: int, id: str) -> Sequence:
    tokens = [1] * length
    return Sequence(
        id=id,
        prompt=tokens,
        generated=[],
        params=SamplingParams(max_tokens=1),
        stop_ids=frozenset(),
        max_length=length + 1,
        block_size=0,
        held=[],
        embed=Embed(id, tokens),
    )


def scheduler(*lengths: int, max_num_seqs: int = 4, max_batch_tokens: int = 10) -> TextScheduler:
    """With texts of these lengths in line, named by their places."""
    made = TextScheduler(Caches([], {}), max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens)
    for place, length in enumerate(lengths):
        made.add(text(length, str(place)))
    return made


def names(chunks: list[Chunk]) -> list[str]:
    return [chunk.sequence.id for chunk in chunks]


def finish(scheduler: TextScheduler, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        scheduler.publish(chunk)
        scheduler.remove(chunk.sequence)


def test_a_step_takes_the_oldest_and_what_fits_beside_it_whole() -> None:
    line = scheduler(6, 5, 3, 1, 1)
    chunks = line.schedule()
    assert names(chunks) == ["0", "2", "3"]
    assert [(chunk.start, chunk.size, chunk.rows, chunk.chooses) for chunk in chunks] == [(0, 6, 1, True), (0, 3, 1, True), (0, 1, 1, True)]
    finish(line, chunks)
    assert names(line.schedule()) == ["1", "4"]
    assert line.prompt_tokens == 10


def test_a_text_that_is_longer_than_a_step_is_computed_by_itself() -> None:
    line = scheduler(3, 40, 3)
    finish(line, chunks := line.schedule())
    assert names(chunks) == ["0", "2"]
    assert names(line.schedule()) == ["1"]


def test_no_step_has_more_texts_than_run_together() -> None:
    line = scheduler(*[1] * 6)
    assert names(line.schedule()) == ["0", "1", "2", "3"]
    assert names(line.schedule(ahead=True)) == ["4", "5"]


def test_what_is_withdrawn_stands_in_line_where_it_stood() -> None:
    line = scheduler(6, 5, 3)
    first = line.schedule()
    line.withdraw(line.schedule(ahead=True))
    line.withdraw(first)
    assert [sequence.id for sequence in line.waiting] == ["0", "1", "2"]
    assert not line.running
    assert names(line.schedule()) == ["0", "2"]


def test_a_text_can_be_given_up_while_it_waits_and_while_it_is_computed() -> None:
    line = scheduler(6, 5)
    (chunk,) = line.schedule()
    line.remove(chunk.sequence)
    line.remove(line.waiting[0])
    assert not line.has_work
