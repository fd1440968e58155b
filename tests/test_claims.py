"""What README and notebooks claim of the committed evaluation is what its tables say."""

import pandas as pd
import pytest

from riba import storage
from riba.compare import evaluation

BEST = "relevance-iba-cascade"
RIVALS = (
    *("iba", "input-iba", "lrp-epsilon-plus", "capacity-product", "capacity-product-separate"),
    *("deeplift", "integrated-gradients", "guided-backprop", "guided-grad-cam", "relevance-iba"),
)


@pytest.fixture(scope="module")
def compared():
    table = pd.read_csv(storage.DATA / "comparisons.csv")
    return table.set_index(["against", "metric", "mask", "method"])


@pytest.fixture(scope="module")
def values():
    return pd.read_parquet(storage.DATA / "evaluation.parquet")


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize(
    "measure",
    [("allocation_area", "banded"), ("mass_accuracy", "banded"), ("mass_accuracy", "strict")],
)
def test_the_cascade_beats_every_rival(compared, measure, rival):
    row = compared.loc[(BEST, *measure, rival)]
    assert row["difference"] < 0
    assert row["p_holm"] < 0.01


@pytest.mark.parametrize("control", ["iba-joint", "capacity-product-squared"])
def test_and_not_the_sharpest_controls_without_lrp(compared, control):
    assert compared.loc[(BEST, "allocation_area", "banded", control)]["difference"] > 0


@pytest.mark.parametrize("metric", ["insertion", "degradation"])
def test_the_cascade_is_as_faithful_as_iba(values, metric):
    rows = values[(values["metric"] == metric) & values["method"].isin(["iba", BEST])]
    (row,) = evaluation.compare(rows, against="iba").itertuples()
    assert row.n >= 200
    assert row.low > -0.02


def test_the_cascade_tells_classes_apart(compared, values):
    summary = pd.read_csv(storage.DATA / "evaluation.csv").set_index(["method", "metric", "mask"])
    contrast = summary["mean"].xs(("two_object_contrast", "banded"), level=("metric", "mask"))
    assert contrast[BEST] >= 0.85
    assert contrast[BEST] >= contrast["iba"] - 0.02
