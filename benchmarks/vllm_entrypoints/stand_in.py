"""A pytest plugin: vLLM's tests of its HTTP APIs, without vLLM, ask `engine serve`.

What they import of vLLM and of what else is missing are names without a meaning; `RemoteOpenAIServer`, the
tokenizer and the size of the vocabulary are those of an artifact, and `hf_runner` computes the checkpoint that
it was built from. Tests that ask no server are deselected. Told by the environment: ENTRYPOINTS, JSON with the
artifacts artifact, reasoning and smollm2, pooled (a folder with what `run.pooled` makes), skipped (patterns of test ids),
only (one, or null) and report (a file).
"""

import base64
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import anthropic
import openai
import pydantic
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from engine.artifacts import load_manifest
from engine.bench.engine_server import EngineServer

SETTINGS = json.loads(os.environ["ENTRYPOINTS"])
ARTIFACT = Path(SETTINGS["artifact"])
REASONING = Path(SETTINGS["reasoning"])
SMOLLM2 = Path(SETTINGS["smollm2"])
POOLED = Path(SETTINGS["pooled"])
SERVER = "RemoteOpenAIServer"
ABSENT = {"vllm", "openai_harmony", "schemathesis", "lm_eval", "pybase64"}
"""Top-level packages that are stood in for."""
FLAGS = {"--api-key": "--api-key", "--served-model-name": "--served-model-name", "--shutdown-timeout": "--drain-timeout"}
"""Flags of vLLM with one value, and those that mean the same here."""
EMBEDS = (
    "intfloat/multilingual-e5-small",
    "Snowflake/snowflake-arctic-embed-m-v1.5",
    "BAAI/bge-base-en-v1.5",
    "sentence-transformers/all-MiniLM-L12-v2",
)
LONGEST = 256
"""The context of what stands in their place."""
RANKS = ("BAAI/bge-reranker-base",)
"""Models of tests in whose place stands one that makes vectors, or scores."""


class _Absent(type):
    """A name without a meaning: base class, decorator, annotation or function, as the importing module likes."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(f"{cls.__name__}.{name}")

    def __call__(cls, *arguments: object, **named: object) -> Any:
        return absent(f"{cls.__name__}()")

    def __getitem__(cls, key: object) -> Any:
        return absent(f"{cls.__name__}[]")

    def __iter__(cls) -> Any:
        return iter(())


def absent(name: str) -> Any:
    return _Absent(name, (), {})


class _Platform:
    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: False


class _ModelConfig:
    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def get_vocab_size(self) -> int:
        return load_manifest(ARTIFACT).model.vocab_size


def _tokenizer(*arguments: object, **named: object) -> PreTrainedTokenizerFast:
    """That of the server which was started last."""
    folder = RemoteOpenAIServer.served / "tokenizer"
    special = json.loads((folder / "text.json").read_bytes())["special_tokens"]
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), chat_template=template, **special)


def _kind(model: str) -> str | None:
    return "embeds" if model in EMBEDS else "ranks" if model in RANKS else None


def _artifact(model: str, arguments: Sequence[str]) -> Path:
    """In which form a model writes calls and reasoning, its build has found."""
    if (kind := _kind(model)) is None:
        reasons = "--reasoning-parser" in arguments and "--tool-call-parser" not in arguments
        return REASONING if reasons else SMOLLM2 if model == "HuggingFaceTB/SmolLM2-135M-Instruct" else ARTIFACT
    length = min(int(arguments[arguments.index("--max-model-len") + 1]), LONGEST)
    return POOLED / f"{kind}-{length}"


class _Usage(pydantic.BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class _Datum(pydantic.BaseModel, extra="allow"):
    index: int


class _Answer(pydantic.BaseModel):
    """What is alike in the answers about texts."""

    id: str
    model: str
    usage: _Usage


class _ListAnswer(_Answer):
    object: str
    created: int
    data: list[_Datum]


class _RankedAnswer(_Answer):
    results: list[_Datum]


class RemoteOpenAIServer:
    """`engine serve` with an artifact, under the name of the model that a test wants."""

    DUMMY_API_KEY = "token-abc123"
    served = ARTIFACT

    def __init__(self, model: str, arguments: Sequence[str] = (), *, env_dict: dict[str, str] | None = None, **others: object) -> None:
        given = list(arguments)
        flags = [] if "--served-model-name" in given else ["--served-model-name", model]
        for flag, ours in FLAGS.items():
            if flag in given:
                flags += [ours, given[given.index(flag) + 1]]
        self._key = (env_dict or {}).get("VLLM_API_KEY", self.DUMMY_API_KEY)
        if "VLLM_API_KEY" in (env_dict or {}):
            flags += ["--api-key", self._key]
        RemoteOpenAIServer.served = _artifact(model, given)
        self._server = EngineServer(self.served, flags)

    def __enter__(self) -> "RemoteOpenAIServer":
        self._server.__enter__()
        self._server.wait_until_ready()
        return self

    def __exit__(self, *error: Any) -> None:
        self._server.__exit__(*error)

    @property
    def proc(self) -> subprocess.Popen[bytes]:
        return self._server.process

    def _get_process_termination_timeout(self) -> float:
        return 15.0

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def url_root(self) -> str:
        return self._server.url

    def url_for(self, *parts: str) -> str:
        return "/".join([self.url_root, *(part.strip("/") for part in parts)])

    def get_client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**self._client(options))

    def get_async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**self._client(options))

    def get_async_client_anthropic(self, **options: Any) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(**self._client(options) | {"base_url": self.url_root})

    def _client(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"base_url": self.url_for("v1"), "api_key": self._key, "max_retries": 0, "timeout": 60.0} | options


def _itself(*arguments: Any, **named: Any) -> Any:
    """A decorator that changes nothing, with arguments or without."""
    if len(arguments) == 1 and callable(arguments[0]):
        return arguments[0]
    return lambda function: function


class Reference:
    """Stands for vLLM's HfRunner: transformers, with the checkpoint of the artifact that is asked. Every text is computed by itself."""

    def __init__(self, model: str, **others: object) -> None:
        pass

    def __enter__(self) -> "Reference":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[list[float]]:
        """Means of the last hidden states, scaled to length 1, as all-MiniLM's files say."""
        tokenizer, model = _loaded("embeds", AutoModel)
        means = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
        return [torch.nn.functional.normalize(mean, dim=0).tolist() for mean in means]

    @torch.inference_mode()
    def predict(self, pairs: Sequence[Sequence[str]]) -> torch.Tensor:
        tokenizer, model = _loaded("ranks", AutoModelForSequenceClassification)
        logits = [model(**tokenizer(*pair, return_tensors="pt")).logits[0, 0] for pair in pairs]
        return torch.sigmoid(torch.stack(logits))


def _loaded(name: str, kind: Any) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(POOLED / name), kind.from_pretrained(POOLED / name, dtype=torch.float32)


KNOWN: dict[str, dict[str, Any]] = {
    "pybase64": {name: value for name, value in vars(base64).items() if not name.startswith("_")},
    "vllm.platforms": {"current_platform": _Platform()},
    "vllm.config": {"ModelConfig": _ModelConfig},
    "vllm.tokenizers": {"get_tokenizer": _tokenizer},
    "vllm.entrypoints.pooling.embed.protocol": {"EmbeddingResponse": _ListAnswer},
    "vllm.entrypoints.pooling.scoring.protocol": {"ScoreResponse": _ListAnswer, "RerankResponse": _RankedAnswer},
    "tests.conftest": {"HfRunner": Reference},
    "tests.utils": {
        SERVER: RemoteOpenAIServer,
        "ROCM_EXTRA_ARGS": [],
        "ROCM_ENV_OVERRIDES": {},
        "VLLM_PATH": Path("/"),
        "multi_gpu_only": _itself,
        "requires_fp8": _itself,
        "create_new_process_for_each_test": _itself,
    },
}


STOOD_IN = {name for name in KNOWN if name.startswith("tests.")}


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in ABSENT or fullname in STOOD_IN:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(KNOWN.get(module.__name__, {}))


sys.meta_path.insert(0, _Finder())


def _asks_a_server(item: pytest.Function) -> bool:
    fixtures = [definition.func for name in item.fixturenames for definition in item._fixtureinfo.name2fixturedefs.get(name, ())]
    return any(SERVER in inspect.getsource(function) for function in (item.function, *fixtures))


class Outcomes:
    """What became of every test, and its last words."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, str]] = {}
        self.without_server: list[str] = []
        self.skipped: list[str] = []
        self.not_collected: dict[str, str] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        asking = [item for item in items if isinstance(item, pytest.Function) and _asks_a_server(item)]
        self.without_server = [item.nodeid for item in items if item not in asking]
        self.skipped = [item.nodeid for item in asking if any(fnmatch(item.nodeid, f"*{pattern}") for pattern in SETTINGS["skipped"])]
        only = f"*{SETTINGS['only'] or ''}*"
        items[:] = [item for item in asking if item.nodeid not in self.skipped and fnmatch(item.nodeid, only)]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and SERVER in Path(report.nodeid).read_text():
            self.not_collected[report.nodeid] = str(report.longrepr)[-600:]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        known = self.tests.setdefault(report.nodeid, {"outcome": "passed", "words": ""})
        if report.outcome != "passed" and known["outcome"] == "passed":
            known.update(outcome=report.outcome, words=str(report.longrepr)[-1500:])
        if report.when == "teardown":
            self._write()

    def _write(self) -> None:
        found = {"tests": self.tests, "skipped": self.skipped, "without_server": self.without_server, "not_collected": self.not_collected}
        Path(SETTINGS["report"]).write_text(json.dumps(found, indent=1))


@pytest.fixture(scope="session")
def hf_runner() -> Callable[..., Reference]:
    return lambda model, **others: Reference(model)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Outcomes())
