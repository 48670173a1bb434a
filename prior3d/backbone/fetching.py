"""Published weights of timm: from the network, or directly from the cache if the network cannot be reached."""

import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from socket import gaierror

import huggingface_hub
from huggingface_hub.constants import ENDPOINT
from timm.models import get_pretrained_cfg

from prior3d.errors import UserError
from prior3d.messages import first_line

_TIMEOUT = 5.0
"""Timeout of the hub in seconds; its own client tries six times, which takes most of a minute."""

_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weight files in a repository of the hub, in timm's order."""


class NotFetched(UserError):
    """Published timm weights are not in the cache and cannot be fetched."""


def weights_source(name: str) -> dict[str, object]:
    """Return the arguments of `timm.create_model` that load the weights timm publishes for a model.

    Args:
        name: timm model name, with or without a tag.

    Raises:
        NotFetched: the weights are not in the cache and cannot be fetched.
    """
    config = get_pretrained_cfg(name)
    problem = network_problem() if config is not None and config.hf_hub_id else None
    if problem is None:
        return {"pretrained": True}
    cached = _find_in_cache(config.hf_hub_id, config.hf_hub_filename)
    if cached is None:
        raise cannot_fetch(name, problem) from problem
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(cached)}}


def publishes_weights(name: str) -> bool:
    """Whether timm publishes weights for a model."""
    config = get_pretrained_cfg(name)
    return config is not None and bool(config.has_weights)


def cannot_fetch(name: str, error: Exception) -> NotFetched:
    """Return the error about weights that cannot be fetched, with a short cause."""
    return NotFetched(
        f"cannot fetch timm's weights of {name} ({first_line(error)}); set pretrained: false to start from random"
        " weights, or name a file that you have with weights",
        "pretrained",
    )


def network_problem() -> OSError | None:
    """Return why the hub cannot be reached; None if it sends any answer."""
    request = urllib.request.Request(ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT).close()
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        unreachable = isinstance(error.reason, gaierror | ConnectionError | TimeoutError)
        return OSError(f"{ENDPOINT} cannot be reached: {error.reason}") if unreachable else None
    except TimeoutError:
        return OSError(f"{ENDPOINT} does not answer")
    except (OSError, HTTPException):
        return None  # a proxy or certificate problem, which the hub's own client may handle
    return None


def _find_in_cache(repository: str, file: str | None) -> Path | None:
    for name in (file, *_FILES):
        found = huggingface_hub.try_to_load_from_cache(repository, name) if name else None
        if isinstance(found, str):
            return Path(found)
    return None
