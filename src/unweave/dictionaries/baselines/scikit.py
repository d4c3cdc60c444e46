"""The one door to scikit-learn, which only ICA and NMF need."""

from types import ModuleType

from unweave.errors import UserError


def decomposition(wanted_by: str) -> ModuleType:
    """`sklearn.decomposition`, or a `UserError` that says how to get it."""
    try:
        from sklearn import decomposition as module
    except ImportError as error:
        raise UserError(
            f"{wanted_by} needs scikit-learn; install it with: pip install 'unweave[baselines]'"
        ) from error
    return module
