"""riba: Relevance-IBA, information-bottleneck attribution handed down to the pixels by LRP."""

from riba import (
    checks,
    datasets,
    evaluation,
    metrics,
    models,
    network,
    photos,
    relevance,
    rules,
    scenes,
    segmentation,
    trust,
)
from riba.bottleneck import Information, InformationBottleneck
from riba.evaluation import evaluate
from riba.input_iba import InputIBA, InputInformation
from riba.joint import JointBottlenecks
from riba.methods import METHODS
from riba.readout import ReadoutBottleneck
from riba.relevance import Ledger, RelevanceIBA
from riba.statistics import FeatureStatistics
from riba.workbench import Workbench, load

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "FeatureStatistics",
    "Information",
    "InformationBottleneck",
    "InputIBA",
    "InputInformation",
    "JointBottlenecks",
    "Ledger",
    "ReadoutBottleneck",
    "RelevanceIBA",
    "Workbench",
    "checks",
    "datasets",
    "evaluate",
    "evaluation",
    "load",
    "metrics",
    "models",
    "network",
    "photos",
    "relevance",
    "rules",
    "scenes",
    "segmentation",
    "trust",
]
