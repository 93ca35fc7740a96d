"""Steps written down by hand."""

from engine.artifacts.step_arrays import Piece, step_arrays, whole_prompts
from engine.artifacts.step_inputs import step_inputs


def test_a_step_of_two_sequences_over_two_groups() -> None:
    pieces = [
        Piece([10, 11, 12, 13, 14], 3, {"full": [7, 2], "window": [1, 0]}),
        Piece([20, 21], 0, {"full": [4], "window": [3]}, wanted=[0, 1]),
    ]
    arrays = step_arrays(pieces, {"full": 4, "window": 4})
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "tokens": [13, 14, 20, 21],
        "positions": [3, 4, 0, 1],
        "cu_seqlens": [0, 2, 4],
        "seq_lens": [5, 2],
        "logit_rows": [1, 2, 3],
        "token_types": [0, 0, 0, 0],
        "block_table.full": [[7, 2], [4, 0]],
        "slot_mapping.full": [31, 8, 16, 17],
        "block_table.window": [[1, 0], [3, 0]],
        "slot_mapping.window": [7, 0, 12, 13],
    }


def test_they_are_the_inputs_of_a_step() -> None:
    sizes = {"full": 16, "window": 32}
    arrays = step_arrays(whole_prompts([[1] * 40, [2] * 3], sizes), sizes)
    infos = step_inputs(sizes, token_types=True)
    assert list(arrays) == [info.name for info in infos]
    assert all((array.dtype.name, array.ndim) == (info.dtype, len(info.dims)) for info, array in zip(infos, arrays.values(), strict=True))


def test_the_second_text_of_a_pair_is_of_another_type() -> None:
    pieces = [Piece([1, 2, 3, 4], 0, {}, [0], 2), Piece([5, 6], 0, {}, [0])]
    arrays = step_arrays(pieces, {})
    assert arrays["token_types"].tolist() == [0, 0, 1, 1, 0, 0]
    assert arrays["logit_rows"].tolist() == [0, 4]


def test_whole_prompts_lie_in_blocks_of_their_own() -> None:
    pieces = whole_prompts([[1] * 40, [2] * 3], {"full": 16, "window": 32})
    assert [{group: list(blocks) for group, blocks in piece.blocks.items()} for piece in pieces] == [
        {"full": [0, 1, 2], "window": [0, 1]},
        {"full": [3], "window": [2]},
    ]
