"""What several test files share."""

from functools import partial

import pytest

from riba import workbench
from riba.method.statistics import FeatureStatistics
from riba.testbed import datasets


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Caches of our own, and statistics over few scenes: nothing touches ``data/cache``."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "DATA", folder)
        patch.setattr(workbench, "REFERENCE_IMAGES", 40)
        patch.setattr(FeatureStatistics, "cached", partial(FeatureStatistics.cached, folder=folder))
        yield folder
