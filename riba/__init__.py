"""riba: Relevance-IBA, information-bottleneck attribution propagated to the pixels by LRP.

The rooms, each importing only from those before it: :mod:`riba.method` (the paper),
:mod:`riba.testbed` (networks, and pictures with masks), :mod:`riba.workbench` (both in one handle),
:mod:`riba.compare` (methods, metrics, evaluation, trust), :mod:`riba.show` (plots, panels). Names
below are imported when they are first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_ROOMS = {
    "method": ("explicit", "network", "relevance", "rules"),
    "testbed": ("datasets", "networks", "photos", "scenes", "segmentation"),
    "compare": ("calibration", "evaluation", "methods", "metrics", "trust"),
    "show": ("panels", "plots"),
}
_NAMES = {
    "method.bottleneck": ("Depths", "Information", "InformationBottleneck"),
    "method.input_iba": ("InputIBA", "InputInformation"),
    "method.readout": ("ReadoutBottleneck",),
    "method.relevance": ("Ledger", "RelevanceIBA"),
    "method.statistics": ("FeatureStatistics",),
    "workbench": ("Workbench", "load"),
    "compare.evaluation": ("evaluate",),
    "compare.methods": ("METHODS", "Method"),
}
_PLACES = {name: f"riba.{room}.{name}" for room, names in _ROOMS.items() for name in names}
_PLACES |= {name: f"riba.{name}" for name in ("checks", "storage", "progress", "workbench")}
_SOURCES = {name: f"riba.{module}" for module, names in _NAMES.items() for name in names}
__all__ = sorted(["checks", *_SOURCES, *(name for names in _ROOMS.values() for name in names)])


def __getattr__(name: str) -> object:
    """A public name, from the module that it lives in."""
    if name in _SOURCES:
        return getattr(import_module(_SOURCES[name]), name)
    if name in _PLACES:
        return import_module(_PLACES[name])
    raise AttributeError(f"module 'riba' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
