"""What `engine push` and `engine pull` are asked for. No imports beyond the standard library."""

from dataclasses import dataclass
from pathlib import Path

from ..options.option import option, positional, required
from ..options.values import DIRECTORY, OUTPUT


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """What to push and where to."""

    directory: Path = positional(**DIRECTORY)
    repo: str = positional("organization/name; made if there is none", metavar="REPO")
    revision: str | None = option(None, "the branch to push to, made if there is none (default: main)", metavar="BRANCH")
    private: bool = option(False, "a repository that is made can be read with a token of yours alone")


@dataclass(frozen=True, kw_only=True)
class PullOptions:
    """What to pull and where to."""

    repo: str = positional("organization/name", metavar="REPO")
    output: Path = required("where the artifact goes", **OUTPUT)
    revision: str | None = option(None, "a branch, tag or commit; only a commit is the same tomorrow (default: main)", metavar="REV")
    force: bool = option(False, "replace an artifact that is already at DIR; files that it shares stay here")
