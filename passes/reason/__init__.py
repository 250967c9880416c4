"""Errors and reasons under the name that programs outside import; they stand in `passes.errors`."""

from passes.errors import Reason, TightfitError

__all__ = ["Reason", "TightfitError"]
