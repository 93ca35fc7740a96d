"""A pytest plugin: vLLM's tests of its OpenAI API, without vLLM, ask `engine serve`.

What they import of vLLM and of what else is missing are names without a meaning; `RemoteOpenAIServer`, the
tokenizer and the size of the vocabulary are those of an artifact. Tests that ask no server are deselected.
Told by the environment: ENTRYPOINTS, JSON with artifact, calling (the artifact for servers with tools), skipped
(patterns of test ids), only (one, or null) and report (a file).
"""

import importlib.abc
import importlib.machinery
import inspect
import json
import os
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import anthropic
import openai
import pytest
from transformers import PreTrainedTokenizerFast

from engine.artifacts import load_manifest
from engine.bench.engine_server import EngineServer

SETTINGS = json.loads(os.environ["ENTRYPOINTS"])
ARTIFACT = Path(SETTINGS["artifact"])
CALLING = Path(SETTINGS["calling"])
SERVER = "RemoteOpenAIServer"
ABSENT = {"vllm", "openai_harmony", "schemathesis", "lm_eval", "pybase64"}
"""Top-level packages that are stood in for."""
FLAGS = ("--api-key", "--served-model-name")
"""Flags of vLLM with one value that mean the same here."""
PARSERS = {"--tool-call-parser", "--reasoning-parser"}
"""With one of these, a server gets the artifact that calls tools; its build found in which form."""


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
    folder = ARTIFACT / "tokenizer"
    special = json.loads((folder / "text.json").read_bytes())["special_tokens"]
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), chat_template=template, **special)


class RemoteOpenAIServer:
    """`engine serve` with the artifact, under the name of the model that a test wants."""

    DUMMY_API_KEY = "token-abc123"

    def __init__(self, model: str, arguments: Sequence[str] = (), *, env_dict: dict[str, str] | None = None, **others: object) -> None:
        given = list(arguments)
        flags = [] if "--served-model-name" in given else ["--served-model-name", model]
        for flag in FLAGS:
            if flag in given:
                flags += [flag, given[given.index(flag) + 1]]
        self._key = (env_dict or {}).get("VLLM_API_KEY", self.DUMMY_API_KEY)
        if "VLLM_API_KEY" in (env_dict or {}):
            flags += ["--api-key", self._key]
        artifact = CALLING if any(flag in given for flag in PARSERS) else ARTIFACT
        self._server = EngineServer(artifact, flags)

    def __enter__(self) -> "RemoteOpenAIServer":
        self._server.__enter__()
        self._server.wait_until_ready()
        return self

    def __exit__(self, *error: Any) -> None:
        self._server.__exit__(*error)

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def url_root(self) -> str:
        return self._server.url

    def url_for(self, *parts: str) -> str:
        return "/".join([self.url_root, *parts])

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


KNOWN: dict[str, dict[str, Any]] = {
    "vllm.platforms": {"current_platform": _Platform()},
    "vllm.config": {"ModelConfig": _ModelConfig},
    "vllm.tokenizers": {"get_tokenizer": _tokenizer},
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


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in ABSENT or fullname == "tests.utils":
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
        if report.failed:
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


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Outcomes())
