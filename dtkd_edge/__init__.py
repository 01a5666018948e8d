"""dtkd-edge: light action-recognition CNNs taught by a ViT and a CNN, exported, measured and run live.

Importing this package is cheap: torch, the runtimes and the decoder load when something first needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Classifier", "__version__", "load"]

if TYPE_CHECKING:
    from dtkd_edge.deploy.classifier import Classifier, load


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "annotations"})


def __getattr__(name: str) -> Any:
    if name in ("Classifier", "load"):
        from dtkd_edge.deploy import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
