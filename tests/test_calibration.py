"""β by rule: what the class keeps of its probability behind the bottleneck decides."""

import dataclasses

import pandas as pd
import pytest
import torch

import riba
from riba.compare import calibration
from riba.storage import DATA
from riba.testbed import networks
from riba.testbed.datasets import Chosen


@pytest.fixture(scope="module")
def wb(home):
    return riba.load()


def table_of(kept):
    return pd.DataFrame(
        [(beta, value) for beta, values in kept.items() for value in values],
        columns=["beta", "kept"],
    )


def test_the_largest_beta_at_which_half_keep_nine_tenths():
    kept = {0.1: [1, 1, 1], 1.0: [0.2, 0.91, 1], 10.0: [0.2, 0.89, 1], 100.0: [0, 0, 1]}
    assert calibration.calibrated(table_of(kept)) == 1.0


def test_no_such_beta_is_said():
    with pytest.raises(ValueError, match=r"at β 2 half of the samples keep 50%"):
        calibration.calibrated(table_of({2.0: [0.1, 0.5, 0.9], 5.0: [0, 0, 0]}))


def test_shares_are_those_of_the_bottleneck(wb):
    samples = Chosen([(wb.validation, index) for index in range(2)])
    table = calibration.shares_kept(wb, "features.14", samples, grid=(1.0, 10.0))
    sample = samples[1]
    found = riba.InformationBottleneck(wb.model, "features.14", wb.statistics, beta=10.0)(
        sample.image[None], [sample.label]
    )
    row = table[(table["beta"] == 10) & (table["sample"] == sample.name)].iloc[0]
    assert row["kept"] == pytest.approx((found.probability / found.open_probability).item())
    assert (table["layers"] == "features.14").all()
    together = calibration.shares_kept(wb, wb.depths, samples, grid=(2.0,))
    assert together["layers"].iloc[0] == " ".join(wb.depths)


def test_methods_take_the_calibrated_beta_where_they_are_asked_to(wb):
    sample = wb.validation[0]
    given = (sample.image[None], [sample.label])
    beta = wb.betas["features.14"]
    assert beta != 10.0
    calibrated, chosen, published = (
        riba.METHODS["iba"](wb, *given, beta=value) for value in ("calibrated", beta, 10.0)
    )
    assert torch.equal(calibrated, chosen)
    assert torch.equal(calibrated, riba.METHODS["iba-calibrated"](wb, *given))
    assert torch.equal(published, riba.METHODS["iba"](wb, *given))
    assert not torch.equal(calibrated, published)


def test_a_network_without_one_is_said(wb):
    sample = wb.validation[0]
    bare = dataclasses.replace(wb, betas={})
    with pytest.raises(ValueError, match=r"β is not calibrated for features\.14"):
        riba.METHODS["iba-calibrated"](bare, sample.image[None], [sample.label])


def test_other_weights_have_no_calibrated_beta(wb):
    assert riba.load(model=wb.model).betas == {}


def test_the_committed_betas_are_of_known_layers():
    table = pd.read_csv(DATA / "betas.csv")
    for row in table.itertuples():
        depths = networks.NETWORKS[row.network].depths
        assert row.layers in (*depths, " ".join(depths))
        assert row.beta in calibration.GRID
        assert row.kept >= calibration.KEPT
