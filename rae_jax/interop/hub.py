"""Weights by their place on the Hugging Face Hub: `hf://OWNER/NAME/PATH`, or `hf://OWNER/NAME@REVISION/PATH`.

Files go through the cache of `huggingface_hub`, an optional package, and obey its variables: `HF_HOME` is where the
cache is, `HF_TOKEN` opens gated repositories, `HF_HUB_OFFLINE=1` uses what is in the cache and asks nobody.
"""

import functools
import re
from pathlib import Path

SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<path>.+))?")


def local(source: str | Path) -> str | Path:
    """`source`, or if it is an address on the Hub, where its file or folder is on this machine, fetched if need be.

    Raises:
      ValueError: it is no whole address, `huggingface_hub` is not installed, or there is no such file.
    """
    return fetched(str(source)) if str(source).startswith(SCHEME) else source


@functools.cache  # a run looks its weights up many times, and each time the Hub would be asked
def fetched(source: str) -> str:
    """`local` of an address, once in a process."""
    found = _ADDRESS.fullmatch(source)
    if not found:
        raise ValueError(
            f"{source} is no address on the Hub: those are hf://OWNER/NAME/PATH, hf://OWNER/NAME@REVISION/PATH"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ValueError(f"{source}: this needs huggingface_hub (pip install huggingface_hub)") from error
    path = (found["path"] or "").rstrip("/")
    try:
        folder = Path(
            snapshot_download(
                found["repository"],
                revision=found["revision"],
                allow_patterns=[path, f"{path}/*"] if path else None,
            )
        )
    except LocalEntryNotFoundError as error:
        raise ValueError(f"{source} is not in the cache, and the Hub cannot be asked: there is no network") from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(f"{source}: {str(error).strip().splitlines()[0]}") from error
    if not (folder / path).exists():
        there = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        raise ValueError(
            f"{source}: no {path} in {found['repository']}; of it, here are {', '.join(there[:5]) or 'none'}"
        )
    return str(folder / path)
