"""Procedural scenes: objects of ten classes on patterned ground, with exact masks.

A class is visible in two ways, in its outline and in its surface pattern. Everything else (ground,
clutter, colours, pose, size, place) comes from random streams that do not depend on the label.
"""

from riba.testbed.scenes.drawing import CLASS_NAMES, SPLITS, Scene, contact_sheet, draw
from riba.testbed.scenes.surfaces import SIZE

__all__ = ["CLASS_NAMES", "SIZE", "SPLITS", "Scene", "contact_sheet", "draw"]
