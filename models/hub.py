"""Fetching a checkpoint from the Hugging Face hub, into the hub library's own cache."""

from pathlib import Path

from ..errors import CheckpointError

FILES = [
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
]


def download(model: str) -> Path:
    """The local directory of the hub's `organization/name`, fetched if it is not cached.

    Honours the hub library's settings: HF_HOME, HF_HUB_OFFLINE, HF_TOKEN. Raises CheckpointError if the model does
    not exist, may not be read or cannot be reached.
    """
    # The library takes a good part of a second to import, and most builds read local files.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=FILES, ignore_patterns=["*/*", "consolidated*"]))
    except GatedRepoError as error:
        raise CheckpointError(
            f"the hub gives {model} only to people who accepted its terms", hint="accept them on its page, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"neither a local path nor the hub has {model}", hint="check the spelling; for a private model, run `hf auth login`"
        ) from error
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            hint = "HF_HUB_OFFLINE is set: unset it, or fetch the model where there is a network and share the cache"
        else:
            hint = "check the network, or fetch the model elsewhere and give its directory"
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        message = f"{model} is neither a local path nor in the hub's cache, and the hub did not give it: {reason}"
        raise CheckpointError(message, hint=hint) from error
    except Exception as error:  # the library lets the errors of its HTTP and storage backends through
        raise CheckpointError(f"{model} could not be fetched from the hub: {error}", hint="try again, or give a local directory") from error
