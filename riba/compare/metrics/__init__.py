"""Measures of a map: localisation against masks, and faithfulness to the network."""

from riba.compare.metrics.faithfulness import (  # noqa: F401
    FAITHFULNESS,
    degradation,
    deletion,
    insertion,
    sensitivity_n,
)
from riba.compare.metrics.localisation import (  # noqa: F401
    LOCALISATION,
    allocation_area,
    allocation_curve,
    auroc,
    average_precision,
    best_at_stride,
    border_band,
    bounding_box_ratio,
    boxes,
    effective_heat_ratio,
    energy_pointing_game,
    iou_at_k,
    mass_accuracy,
    pointing_game,
    rank_accuracy,
    rank_skill,
    two_object_contrast,
)
