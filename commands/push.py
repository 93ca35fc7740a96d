"""`engine push`: an artifact to a repository on the hub."""

from ..shipping.options import PushOptions
from .parser import Given, Parser, add_options

DESCRIPTION = (
    "Put an artifact into a repository on the Hugging Face hub, in one commit. What the hub has already is not sent again, "
    "so an interrupted push goes on. Needs: pip install 'engine-llm[hub]'."
)
EPILOG = """\
example:
  HF_TOKEN=... engine push smollm2 my-team/smollm2-cpu-v3 --private

A repository holds one artifact; several are branches: --revision sm90. HF_ENDPOINT names another hub than huggingface.co."""


def add_arguments(parser: Parser) -> None:
    add_options(parser, PushOptions)


def run(given: Given) -> int:
    """Push, and print what travelled. Returns the exit code."""
    from ..artifacts.describe import human_bytes
    from ..shipping.progress import TransferBar
    from ..shipping.push import push

    with TransferBar() as bar:
        done = push(PushOptions(**given), bar)
    print(f"{done.repo}@{done.commit[:12]}: {done.files} files, sent {done.sent_files}, {human_bytes(done.sent_bytes)}")
    return 0
