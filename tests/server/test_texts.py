"""Vectors, rankings and scores over a real connection: what goes to the worker, and how its answers are written."""

import base64
import math
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from artifact_stand_in import BOS, EOS, MAX_CONTEXT, MODEL, byte_level_tokenizer, token_id, write_artifact
from serving_process import WORKER, ServingProcess

from engine.artifacts import PooledInfo
from engine.errors import RequestError
from engine.server.llm import LLM

TOKENIZER = byte_level_tokenizer()
FIRST, LAST = token_id(TOKENIZER, BOS), token_id(TOKENIZER, EOS)
PROMPTS = {"query": "find: ", "document": ""}
EMBEDS = PooledInfo(task="embed", size=8, pooling="mean", prompts=PROMPTS)
SCORES = PooledInfo(task="score", size=1, pooling="cls", activation="sigmoid")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    with ServingProcess(write_artifact(tmp_path_factory.mktemp("embedder") / "artifact", pooled=EMBEDS)) as server:
        yield server.ready()


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    with ServingProcess(write_artifact(tmp_path_factory.mktemp("scorer") / "artifact", pooled=SCORES)) as server:
        yield server.ready()


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    with ServingProcess(write_artifact(tmp_path_factory.mktemp("generator") / "artifact")) as server:
        yield server.ready()


def ids(text: str, *, limit: int = MAX_CONTEXT) -> list[int]:
    return [FIRST, *TOKENIZER.encode(text).ids[: limit - 2], LAST]


def vector(tokens: list[int], pair_start: int = 0) -> list[float]:
    """What the scripted worker gives."""
    values = [len(tokens), pair_start, sum(tokens), *tokens[:5], *[0] * 5]
    return [float(value) for value in values[:8]]


def cosine(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True)) / math.hypot(*first) / math.hypot(*second)


def post(server: ServingProcess, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


def error(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()["error"]
    return found


def test_a_text_a_list_tokens_and_lists_of_tokens(embedder: ServingProcess) -> None:
    client = embedder.openai.embeddings
    inputs: list[tuple[Any, list[list[int]]]] = [
        ("the dog", [ids("the dog")]),
        (["the dog", "a fox"], [ids("the dog"), ids("a fox")]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ]
    for given, tokens in inputs:
        answer = client.create(model=MODEL, input=given, encoding_format="float")
        assert [entry.embedding for entry in answer.data] == [vector(each) for each in tokens]
        assert [entry.index for entry in answer.data] == list(range(len(tokens)))
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, tokens))
        assert (answer.object, answer.model, answer.data[0].object) == ("list", MODEL, "embedding")
        assert answer.model_dump()["id"].startswith("embd-")


def test_base64_is_the_same_numbers_and_what_clients_ask_for_by_themselves(embedder: ServingProcess) -> None:
    answer = post(embedder, "/v1/embeddings", input="the dog", encoding_format="base64").json()
    assert array("f", base64.b64decode(answer["data"][0]["embedding"])).tolist() == vector(ids("the dog"))
    assert embedder.openai.embeddings.create(model=MODEL, input="the dog").data[0].embedding == vector(ids("the dog"))


def test_dimensions_and_prompts(embedder: ServingProcess) -> None:
    answer = embedder.openai.embeddings.create(model=MODEL, input="the dog", dimensions=3)
    assert answer.data[0].embedding == vector(ids("the dog"))[:3]
    asked = post(embedder, "/v1/embeddings", input="the dog", prompt_name="query").json()
    assert asked["data"][0]["embedding"] == vector(ids("find: the dog"))
    assert error(post(embedder, "/v1/embeddings", input="x", dimensions=9))["param"] == "dimensions"
    assert "'query', 'document'" in error(post(embedder, "/v1/embeddings", input="x", prompt_name="other"))["message"]


def test_cohere_s_clients_get_vectors_in_the_types_that_they_ask_for(embedder: ServingProcess) -> None:
    kinds = ["float", "base64", "binary", "ubinary"]
    answer = post(embedder, "/v2/embed", texts=["the dog", "dog"], embedding_types=kinds, input_type="search_query").json()
    for index, text in enumerate(["find: the dog", "find: dog"]):
        wanted, packed = vector(ids(text)), np.packbits(np.array(vector(ids(text))) > 0)
        found = [answer["embeddings"][kind][index] for kind in kinds]
        assert found[0] == array("f", base64.b64decode(found[1])).tolist() == wanted
        assert found[3] == packed.tolist()
        assert found[2] == [byte - 128 for byte in packed.tolist()]
    assert answer["texts"] == ["the dog", "dog"]
    assert answer["meta"]["billed_units"]["input_tokens"] == len(ids("find: the dog")) + len(ids("find: dog"))
    plain = post(embedder, "/v2/embed", texts=["the dog"], output_dimension=3).json()
    assert plain["embeddings"] == {"float": [vector(ids("the dog"))[:3]]}


def test_cohere_s_clients_say_which_end_is_cut(embedder: ServingProcess) -> None:
    long = "a b c " * 400 + "the lazy dog"
    end, start = (post(embedder, "/v2/embed", texts=[long], truncate=side).json()["embeddings"]["float"][0] for side in ("END", "START"))
    assert end == vector(ids(long, limit=MAX_CONTEXT))
    assert start == vector([FIRST, *TOKENIZER.encode(long).ids[-(MAX_CONTEXT - 2) :], LAST])
    assert error(post(embedder, "/v2/embed", texts=[long], truncate="NONE"))["param"] == "texts"


@pytest.mark.parametrize(
    "wrong", [{}, {"texts": []}, {"texts": ["a"], "input_type": "other"}, {"texts": ["a"], "embedding_types": ["int8"]}]
)
def test_what_cohere_s_clients_cannot_have_is_refused(embedder: ServingProcess, wrong: dict[str, Any]) -> None:
    assert error(post(embedder, "/v2/embed", **wrong))["param"] is not None


def test_more_texts_than_the_queue_holds_are_sent_a_few_at_a_time(tmp_path: Path) -> None:
    with ServingProcess(write_artifact(tmp_path / "artifact", pooled=EMBEDS), max_queue=8) as server:
        server.ready()
        answer = server.openai.embeddings.create(model=MODEL, input=[[5] * count for count in range(1, 101)])
        assert [entry.embedding[0] for entry in answer.data] == list(range(1, 101))
        assert max(server.event("embed")["others"] for _ in range(100)) < 8


def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    with ServingProcess(write_artifact(tmp_path / "artifact", pooled=EMBEDS), "--crash-after", "3") as server:
        server.ready()
        answer = server.openai.embeddings.create(model=MODEL, input=[[5] * count for count in range(1, 21)])
        assert [entry.embedding[0] for entry in answer.data] == list(range(1, 21))


def test_texts_that_are_too_long_are_refused_or_cut(embedder: ServingProcess) -> None:
    long = "a b c " * 400
    refused = error(post(embedder, "/v1/embeddings", input=["x", long]))
    assert (refused["code"], refused["param"]) == ("context_length_exceeded", "input")
    assert "text 1" in refused["message"]
    for asked, limit in ((-1, MAX_CONTEXT), (10, 10)):
        answer = post(embedder, "/v1/embeddings", input=long, truncate_prompt_tokens=asked).json()
        assert answer["data"][0]["embedding"] == vector(ids(long, limit=limit))
    assert error(post(embedder, "/v1/embeddings", input="x", truncate_prompt_tokens=MAX_CONTEXT + 1))["param"] == "truncate_prompt_tokens"
    answer = post(embedder, "/v1/embeddings", input=[5, 6, 7, 8], truncate_prompt_tokens=3).json()
    assert (answer["data"][0]["embedding"], answer["usage"]["total_tokens"]) == (vector([5, 6, 7]), 3)


@pytest.mark.parametrize("given", ["", [], [[]], ["a", 5], [10_000], [5, -1]])
def test_inputs_that_cannot_be_are_refused(embedder: ServingProcess, given: Any) -> None:
    response = post(embedder, "/v1/embeddings", input=given)
    if given == "":  # special tokens are left
        assert response.json()["data"][0]["embedding"] == vector(ids(""))
    else:
        assert error(response)["param"] == "input"


def test_documents_are_ranked_by_the_cosine_of_vectors(embedder: ServingProcess) -> None:
    documents = ["the lazy dog", "a b c", "one two three four"]
    expected = [cosine(vector(ids("find: dog")), vector(ids(text))) for text in documents]
    answer = post(embedder, "/v1/rerank", query="dog", documents=[documents[0], {"text": documents[1]}, documents[2]]).json()
    order = sorted(range(3), key=lambda index: -expected[index])
    assert [result["index"] for result in answer["results"]] == order
    assert [result["document"]["text"] for result in answer["results"]] == [documents[index] for index in order]
    for result in answer["results"]:
        assert math.isclose(result["relevance_score"], expected[result["index"]], rel_tol=1e-6)
    assert answer["usage"]["total_tokens"] == len(ids("find: dog")) + sum(len(ids(text)) for text in documents)
    short = post(embedder, "/rerank", query="dog", documents=documents, top_n=1, return_documents=False).json()
    assert short["results"] == [{"index": order[0], "relevance_score": answer["results"][0]["relevance_score"]}]


def test_pairs_go_to_a_cross_encoder_together(scorer: ServingProcess) -> None:
    documents = ["the lazy dog", "a b c"]
    query = TOKENIZER.encode("dog").ids
    answer = post(scorer, "/v1/rerank", query="dog", documents=documents).json()
    sizes = {result["index"]: result["relevance_score"] for result in answer["results"]}  # the worker's first number is how many tokens
    assert sizes == {index: len(query) + len(TOKENIZER.encode(text).ids) + 3 for index, text in enumerate(documents)}
    embed = post(scorer, "/v1/embeddings", input="x")
    assert error(embed)["code"] == "task_not_supported"


def test_scores_of_one_text_with_many_and_of_many_with_many(embedder: ServingProcess, scorer: ServingProcess) -> None:
    one = post(embedder, "/v1/score", text_1="dog", text_2=["the dog", "dog"]).json()
    assert [entry["index"] for entry in one["data"]] == [0, 1]
    assert math.isclose(one["data"][1]["score"], 1, rel_tol=1e-6)
    many = post(scorer, "/v1/score", text_1=["dog", "fox"], text_2=["the dog", "dog"]).json()
    assert len(many["data"]) == 2
    assert error(post(scorer, "/v1/score", text_1=["a", "b"], text_2=["c"]))["param"] == "text_2"


def test_the_sides_of_a_score_have_several_names(scorer: ServingProcess) -> None:
    wanted = post(scorer, "/v1/score", text_1="dog", text_2=["the dog", "dog"]).json()["data"]
    for first, second in (("queries", "documents"), ("queries", "items"), ("data_1", "data_2")):
        assert post(scorer, "/score", **{first: "dog", second: ["the dog", "dog"]}).json()["data"] == wanted
    assert error(post(scorer, "/score", queries=["a", "b"], items=["c"]))["param"] == "items"
    for wrong in ({"text_1": "a"}, {"text_1": "a", "documents": "b"}, {"text_1": "a", "text_2": "b", "queries": "c"}, {}):
        refused = error(post(scorer, "/score", **wrong))
        assert (refused["param"], refused["code"]) == ("text_1", "missing_field")


def test_long_pairs_are_cut_and_the_shorter_text_stays(scorer: ServingProcess) -> None:
    assert error(post(scorer, "/v1/score", text_1="dog", text_2="a b c " * 400))["code"] == "context_length_exceeded"
    answer = post(scorer, "/v1/score", text_1="dog", text_2="a b c " * 400, truncate_prompt_tokens=-1).json()
    assert answer["data"][0]["score"] == answer["usage"]["total_tokens"] == MAX_CONTEXT


def test_a_document_is_cut_to_so_many_tokens(embedder: ServingProcess, scorer: ServingProcess) -> None:
    query, documents = TOKENIZER.encode("dog").ids, ["the lazy dog sleeps by the river", "a b"]
    sizes = [len(TOKENIZER.encode(text).ids) for text in documents]
    assert sizes[0] > 4 > sizes[1]
    for most, cut in ((4, [4, sizes[1]]), (0, sizes)):
        answer = post(scorer, "/v1/rerank", query="dog", documents=documents, max_tokens_per_doc=most).json()
        assert sorted(result["relevance_score"] for result in answer["results"]) == sorted(len(query) + size + 3 for size in cut)
        used = post(embedder, "/v1/rerank", query="dog", documents=documents, max_tokens_per_doc=most).json()["usage"]["total_tokens"]
        whole = post(embedder, "/v1/rerank", query="dog", documents=documents).json()["usage"]["total_tokens"]
        assert whole - used == sum(sizes) - sum(cut)
    assert error(post(scorer, "/v1/rerank", query="dog", documents=documents, max_tokens_per_doc=-5))["param"] == "max_tokens_per_doc"


def test_vectors_and_scores_as_the_model_gives_them(embedder: ServingProcess, scorer: ServingProcess) -> None:
    for wanted, sign in ((None, 1), (True, 1), (False, -1)):  # the worker's sign says that it was asked for a raw one
        answer = post(embedder, "/v1/embeddings", input="dog", use_activation=wanted).json()
        assert answer["data"][0]["embedding"] == [sign * value for value in vector(ids("dog"))]
        for path, body in (("/v1/rerank", {"query": "dog", "documents": ["fox"]}), ("/v1/score", {"text_1": "dog", "text_2": "fox"})):
            (found,) = next(
                iter(each for each in post(scorer, path, use_activation=wanted, **body).json().values() if isinstance(each, list))
            )
            assert (found.get("score") or found.get("relevance_score")) * sign > 0


def test_models_say_what_they_do_and_refuse_the_rest(embedder: ServingProcess, scorer: ServingProcess, generator: ServingProcess) -> None:
    tasks = [httpx.get(f"{server.url}/v1/models").json()["data"][0]["tasks"] for server in (embedder, scorer, generator)]
    assert tasks == [["embed", "rerank", "score"], ["rerank", "score"], ["generate"]]
    for server, path, body in (
        (embedder, "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        (scorer, "/v1/completions", {"prompt": "x"}),
        (generator, "/v1/embeddings", {"input": "x"}),
        (generator, "/v1/rerank", {"query": "x", "documents": ["y"]}),
    ):
        refused = error(post(server, path, **body))
        assert refused["code"] == "task_not_supported"
        assert "/v1/" in refused["message"]


def test_fields_that_are_not_known_are_refused_by_name(embedder: ServingProcess) -> None:
    with pytest.raises(openai.BadRequestError, match="unknown field 'pooling'"):
        embedder.openai.embeddings.create(model=MODEL, input="x", extra_body={"pooling": "max"})
    assert error(post(embedder, "/v1/embeddings", model="other", input="x"), 404)["code"] == "model_not_found"


def test_the_python_interface_embeds_as_the_server_does(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact", pooled=EMBEDS)
    with LLM(artifact, worker_command=(sys.executable, "-P", str(WORKER))) as llm:
        assert llm.embed(["the dog", "a fox"]) == [vector(ids("the dog")), vector(ids("a fox"))]
        assert llm.embed(["the dog"], dimensions=3, prompt_name="query") == [vector(ids("find: the dog"))[:3]]
        assert llm.embed(["a b c " * 400]) == [vector(ids("a b c " * 400, limit=MAX_CONTEXT))]
        assert llm.embed([]) == []
        with pytest.raises(RequestError, match="dimensions is 9"):
            llm.embed(["x"], dimensions=9)
        with pytest.raises(RequestError, match="generates none"):
            llm.generate(["x"])
