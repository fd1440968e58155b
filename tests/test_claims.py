"""What README and notebooks claim of the committed evaluation is what its tables say."""

import pandas as pd
import pytest

from riba import storage
from riba.compare import evaluation

BEST = "relevance-iba-cascade"
SEVERAL = {
    "relevance-iba-detail": "capacity-product-squared",
    "relevance-iba-detail-separate": "capacity-product-squared-separate",
}
"""Forms with the detail of the class's evidence, and the same information without LRP."""
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


def test_the_detail_beats_its_control_where_the_border_is_left_out(compared):
    for metric, gain in (("allocation_area", 0.003), ("rank_accuracy", 0.009),
                         ("two_object_contrast", 0.010)):  # fmt: skip
        row = compared.loc[("relevance-iba-detail", metric, "banded", "capacity-product-squared")]
        assert -row["difference"] == pytest.approx(gain, abs=0.0006)
        assert row["p_holm"] < 0.01
    row = compared.loc[("relevance-iba-detail", "allocation_area", "strict",
                        "capacity-product-squared")]  # fmt: skip
    assert row["difference"] == pytest.approx(0.004, abs=0.0006)


def test_with_the_calibrated_beta_aim_is_better_and_contrast_worse():
    summary = pd.read_csv(storage.DATA / "evaluation.csv").set_index(["metric", "mask", "method"])
    means = summary["mean"]
    for name in ("iba", "relevance-iba"):
        for metric, sign in (("allocation_area", 1), ("two_object_contrast", -1)):
            values = means[metric, "banded"]
            assert sign * (values[f"{name}-calibrated"] - values[name]) > 0.005


def test_gradients_lose_by_their_grain_and_reach_the_area_of_several_depths(compared):
    summary = pd.read_csv(storage.DATA / "evaluation.csv").set_index(["metric", "mask", "method"])
    area = summary["mean"]["allocation_area", "banded"]
    for name, plain, blurred in (("integrated-gradients", 0.62, 0.93), ("deeplift", 0.51, 0.88)):
        assert area[name] == pytest.approx(plain, abs=0.006)
        assert area[f"{name}, smoothed 8 px"] == pytest.approx(blurred, abs=0.006)
        assert area[f"{name}, smoothed 8 px"] > max(area["iba"], area["relevance-iba"])
    for against in (BEST, "relevance-iba-detail"):
        rows = compared.loc[against].xs("banded", level="mask")["p_holm"]
        assert rows["allocation_area", "integrated-gradients, smoothed 8 px"] > 0.05
    mass = summary["mean"]["mass_accuracy", "banded"]
    assert mass["integrated-gradients, smoothed 8 px"] == pytest.approx(0.46, abs=0.006)
    assert mass[BEST] > 0.9


@pytest.mark.parametrize("metric", ["insertion", "degradation"])
def test_the_cascade_is_as_faithful_as_iba(values, metric):
    rows = values[(values["metric"] == metric) & values["method"].isin(["iba", BEST])]
    (row,) = evaluation.compare(rows, against="iba").itertuples()
    assert row.n >= 100
    assert row.difference > -0.02


def test_the_cascade_tells_classes_apart(compared, values):
    summary = pd.read_csv(storage.DATA / "evaluation.csv").set_index(["method", "metric", "mask"])
    contrast = summary["mean"].xs(("two_object_contrast", "banded"), level=("metric", "mask"))
    assert contrast[BEST] >= 0.85
    assert contrast[BEST] >= contrast["iba"] - 0.02


# --- photographs, and whose detail a map shows ---------------------------------------------------

LOW = {"scenenet": "features.6", "efficientnet-lite0": "blocks.1"}


@pytest.fixture(scope="module")
def detail():
    table = pd.read_csv(storage.DATA.parent / "benchmarks" / "detail.csv")
    return table.set_index(["network", "metric", "method"])


def test_on_photographs_the_published_form_loses_by_its_grain(detail):
    area = detail["mean"].xs(("efficientnet-lite0", "allocation_area"))
    iba, plain = area["IBA, blocks.4"], area["nats, z+, from blocks.4"]
    assert plain < iba - 0.05
    assert area["nats, z+, from blocks.4 | smoothed 4 px"] > (plain + iba) / 2
    together = area["blob"], area["relevance-iba-cascade"]
    assert min(together) > max(iba, area["nats, z+, from blocks.1"], area["lrp-epsilon-gamma-box"])


@pytest.mark.parametrize("network", LOW)
def test_the_detail_of_propagated_nats_is_no_images_own(detail, network):
    for metric in ("insertion", "deletion"):
        row = detail.loc[(network, metric, f"nats, z+, from {LOW[network]} | own detail")]
        assert abs(row["difference"]) < 0.005


@pytest.mark.parametrize("network", LOW)
def test_that_of_the_classs_relevance_times_nats_is(detail, network):
    name = f"logit × nats, z+, from {LOW[network]} | own detail"
    assert detail.loc[(network, "insertion", name)]["difference_low"] > 0
    assert detail.loc[(network, "deletion", name)]["difference"] <= 0


@pytest.mark.parametrize("network", LOW)
def test_the_own_detail_of_depths_times_detail_beats_another_images_on_test_pictures(
    detail, network
):
    name, split = "product × √detail | own detail", f"{network}, test"
    inserted, deleted = (detail.loc[(split, m, name)] for m in ("insertion", "deletion"))
    assert min(inserted["n"], deleted["n"]) >= 200
    assert inserted["difference_low"] > 0
    assert inserted["p"] < 0.01
    assert deleted["difference_low"] < 0  # and no difference shown
    assert deleted["p"] > 0.05


def test_white_noise_does_as_well_in_depths_times_detail_on_photographs(detail):
    test = detail["mean"].xs(("efficientnet-lite0, test", "insertion"))
    own, noise = (test[f"product × √detail | {form}"] for form in ("own detail", "white noise"))
    assert noise > own - 0.01


def test_white_noise_does_as_well_on_photographs_and_not_on_scenes(detail):
    for network, as_well in (("scenenet", False), ("efficientnet-lite0", True)):
        own, noise = (
            [
                detail.loc[(network, m, f"{n} | own detail")]["mean"]
                for m in ("insertion", "deletion")
            ]
            for n in (f"logit × nats, z+, from {LOW[network]}", "random")
        )
        assert (noise[0] > own[0] - 0.01 and noise[1] < own[1] + 0.01) == as_well


# --- other networks ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks():
    table = pd.read_csv(storage.DATA.parent / "benchmarks" / "networks.csv")
    table = table[table["mask"] == "banded"]
    return table.pivot_table(["mean", "difference", "p_holm"], ["network", "metric"], "method")


@pytest.mark.parametrize(
    ("ours", "control"),
    [
        ("relevance-iba-detail-separate", "capacity-product-squared-separate"),
        ("relevance-iba-cascade", "capacity-product-squared"),
    ],
)
def test_on_every_network_our_forms_have_the_mass_and_so_have_their_controls(
    networks, ours, control
):
    mass = networks["mean"].xs("mass_accuracy", level="metric")
    assert len(mass) == 3
    assert (mass[ours] > mass[["iba", "relevance-iba"]].max(axis=1) + 0.1).all()
    assert (mass[control] > mass[ours] - 0.02).all()


def test_on_other_networks_one_lead_in_area_is_sure_and_the_published_form_is_level(networks):
    area = networks.xs("allocation_area", level="metric")
    lead, p = area["difference"], area["p_holm"]
    assert (lead["relevance-iba-detail-separate"] > 0).all()
    for name in ("relevance-iba-detail-separate", "iba-joint"):
        assert [*p.index[p[name] < 0.01]] == ["scenenet, seed 2"]
        assert lead.loc["scenenet, seed 2", name] > 0
    assert p["relevance-iba"].min() > 0.01


# --- what notebook 06 says of the committed tables -----------------------------------------------

PROPAGATED = ("relevance-iba", "lrp-epsilon-plus", "guided-grad-cam", "integrated-gradients")


@pytest.fixture(scope="module")
def photographs():
    table = pd.read_csv(storage.DATA / "photos_evaluation.csv")
    return table.set_index(["metric", "mask", "method"]).sort_index()


def test_on_photographs_smoothing_helps_whatever_was_propagated(photographs):
    area = photographs["mean"]["allocation_area", "banded"]
    for method in PROPAGATED:
        assert area[f"{method}, smoothed 8 px"] > area[method] + 0.1
    for several in ("relevance-iba-detail", "relevance-iba-detail-separate"):
        assert area[f"{several}, smoothed 8 px"] < area[several]


def test_hard_edges_change_no_clear_order_and_a_piece_of_background_draws_relevance():
    path = storage.DATA.parent / "benchmarks" / "seams.csv"
    table = pd.read_csv(path, index_col="method")
    assert (table["hard"] - table["soft"]).abs().max() < 0.01
    first = table.sort_values("soft", ascending=False)[:8]
    for method, (soft, hard) in first[["soft", "hard"]].iterrows():
        clearly_behind = first[first["soft"] < soft - 0.003]
        assert (clearly_behind["hard"] < hard).all(), method
    drawn = table["null"] / table["area of the paste"]
    assert drawn["random"] == pytest.approx(1, abs=0.02)
    several = ["relevance-iba-detail-separate", "relevance-iba-cascade"]
    assert 1.8 < drawn["iba"] < 2.2 < drawn[several].min()


def test_on_photographs_several_depths_tell_two_objects_apart_with_or_without_lrp(photographs):
    assert photographs["n"]["two_object_contrast", "banded", "iba"] >= 100
    for metric, least in (("two_object_contrast", 0.85), ("object_scene_contrast", 0.65)):
        mean = photographs["mean"][metric, "banded"]
        for method in (*SEVERAL, *SEVERAL.values()):
            assert mean[method] >= least
            assert mean[method] > mean["iba"] > mean["relevance-iba"] > mean["lrp-epsilon-plus"]


@pytest.mark.parametrize("several", SEVERAL)
def test_lrp_adds_little_on_scenes_and_less_than_nothing_on_photographs(
    compared, photographs, several
):
    key = (several, "allocation_area", "banded", SEVERAL[several])
    assert -0.01 < compared.loc[key]["difference"] < 0
    area = photographs["mean"]["allocation_area", "banded"]
    assert area[several] < area[SEVERAL[several]]


def test_a_bottleneck_by_itself_at_each_depth_aims_well_on_both(photographs):
    scenes = pd.read_csv(storage.DATA / "evaluation.csv").set_index(["metric", "mask", "method"])
    ours = "relevance-iba-detail-separate"
    for world in (scenes["mean"], photographs["mean"]):
        area, mass = (world[name, "banded"] for name in ("allocation_area", "mass_accuracy"))
        assert area[ours] > area["iba"] - 0.01
        assert mass[ours] > mass["iba"] + 0.2


def test_smoothed_integrated_gradients_pass_depths_times_detail_on_drawn_scenes(compared):
    ours, smoothed = "relevance-iba-detail-separate", "integrated-gradients, smoothed 8 px"
    row = compared.loc[(ours, "allocation_area", "banded", smoothed)]
    assert (row["difference"] > 0) & (row["p_holm"] < 0.01)


def test_scattered_pixels_bring_the_class_back_sooner_than_a_compact_patch_on_scenes(values):
    rows = values[values["metric"] == "insertion"].groupby("method", observed=True)["value"].mean()
    assert min(rows["deeplift"], rows["guided-backprop"]) > rows["iba"]


# --- what notebook 07 says of the tests of trust -------------------------------------------------

PRODUCTS = ["cascade", "joint, no LRP", "depths × detail", "no LRP"]


@pytest.fixture(scope="module")
def trust_rows():
    table = pd.read_csv(storage.DATA.parent / "benchmarks" / "trust.csv")
    return table.set_index(["network", "method", "test"])


def trust_means(rows, network, least):
    rows = rows.loc[network]
    assert rows["n"].min() >= least
    return rows["mean"].unstack("method")


@pytest.fixture(scope="module")
def trusted(trust_rows):
    return trust_means(trust_rows, "scenenet", 25)  # mosaics, of four scenes; 100 of all else


@pytest.fixture(scope="module")
def trusted_on_photographs(trust_rows):
    return trust_means(trust_rows, "efficientnet-lite0", 100)


def test_what_the_cascade_passes_its_control_without_lrp_passes(trusted, trusted_on_photographs):
    good = {"grid pointing": 1, "cheating network: share in the mark": 1, "other class": -1}
    for test, sign in {**good, "randomised: above the bottleneck": -1}.items():
        assert sign * (trusted.loc[test, "cascade"] - trusted.loc[test, "joint, no LRP"]) < 0.02
    lead = trusted_on_photographs["cascade"] - trusted_on_photographs["joint, no LRP"]
    assert lead.drop("absent class: total left").abs().max() < 0.01


def test_on_photographs_the_form_from_the_logit_changes_most_but_between_two_objects(
    trusted_on_photographs,
):
    least = trusted_on_photographs.idxmin(axis=1)
    upper = ["randomised: logits", "randomised: above the bottleneck"]
    assert (least[[*upper, "absent class: correlation"]] == "depths × detail").all()
    assert least["other class"] == "IBA"
    as_much = trusted_on_photographs.loc["randomised: above the bottleneck"]
    assert abs(as_much["IBA"] - as_much["depths × detail"]) < 0.05
    left = trusted_on_photographs.loc["absent class: total left"]
    assert left["LRP"] < 0.01 < 0.9 < left[["IBA", "Relevance-IBA", "joint", "cascade"]].min()


def test_in_grid_pointing_the_form_from_the_class_logit_is_level_with_its_control_and_lrp(
    trust_rows,
):
    rows, test = trust_rows.loc["scenenet"], "grid pointing"
    ours = rows.loc["depths × detail"]
    assert ours.loc[test, "against"] == "no LRP"
    assert ours.loc[test, "p"] > 0.05
    assert abs(ours.loc[test, "mean"] - rows.loc[("LRP", test), "mean"]) < 0.01
    mark = ours.loc["cheating network: share in the mark"]
    assert (mark["p"] < 0.01) & (0.005 < mark["difference"] < 0.015)


def test_the_form_from_the_class_logit_changes_most(trusted):
    for test in ("other class", "absent class: correlation", "randomised: above the bottleneck"):
        assert trusted.loc[test].idxmin() == "depths × detail"
    for test in ("grid pointing", "cheating network: share in the mark"):
        assert 0 < trusted.loc[test, "depths × detail"] - trusted.loc[test, "no LRP"] < 0.05


def test_what_an_absent_class_takes_from_the_products_on_drawn_scenes(trusted):
    own, absent = (trusted.loc[f"{x} class: area on the object"] for x in ("own", "absent"))
    lost = 1 - absent / own
    assert (lost[["cascade", "joint, no LRP"]] - 1 / 3).abs().max() < 0.03
    assert 0.25 < lost["depths × detail"] < 0.31
    assert abs(lost["no LRP"] - 1 / 7) < 0.03
    left = trusted.loc["absent class: total left"]
    assert left[["joint, no LRP", "depths × detail", "no LRP"]].max() < 0.5 < left["cascade"]


def test_an_absent_class_does_not_dim_the_maps_of_a_bottleneck(trusted):
    left = trusted.loc["absent class: total left"]
    assert left[["IBA", "Relevance-IBA", "joint", "cascade"]].min() > 1
    assert left[["LRP", "joint, no LRP", "depths × detail", "no LRP"]].max() < 0.4
    own, absent = (trusted.loc[f"{x} class: area on the object"] for x in ("own", "absent"))
    assert (absent > 0.85 * own)[["IBA", "Relevance-IBA"]].all()
    assert (absent < 0.7 * own)[["LRP", "joint", "cascade", "joint, no LRP"]].all()
    assert (absent < 0.9 * own)[["depths × detail", "no LRP"]].all()


def test_the_products_find_the_mark_and_one_deep_layer_does_not(trusted):
    mark = trusted.loc["cheating network: share in the mark"]
    assert mark[PRODUCTS].min() > 0.8
    assert mark["IBA"] < 0.3
    assert trusted.loc["honest network: share in the mark"].max() < 0.1
    assert trusted.loc["grid pointing"].idxmin() == "joint"
    assert trusted.loc["randomised: above the bottleneck"].idxmax() == "LRP"


def allocation(world):
    """Mean, low and high of the allocation curves by budget (rows) and method."""
    table = pd.read_csv(storage.DATA / f"{world}evaluation.csv")
    table = table[(table["mask"] == "banded") & table["metric"].str.startswith("allocation@")]
    budget = table["metric"].str.removeprefix("allocation@").astype(float)
    return table.assign(budget=budget).pivot(index="budget", columns="method")


def test_joint_iba_leads_among_the_first_pixels_of_scenes_then_depths_times_detail():
    mean = allocation("")["mean"].loc[:0.2]
    assert (mean["iba-joint"] > mean["relevance-iba-detail-separate"]).all()
    assert (mean["relevance-iba-detail-separate"] > mean["iba"]).all()


def test_on_photographs_the_curves_of_depths_times_detail_and_iba_cannot_be_told_apart():
    table = allocation("photos_")
    for one, other in (
        ("iba", "relevance-iba-detail-separate"),
        ("relevance-iba-detail-separate", "iba"),
    ):
        assert (table["low"][one] < table["mean"][other]).all()
        assert (table["mean"][other] < table["high"][one]).all()


@pytest.mark.parametrize("world", ["", "photos_"])
def test_at_the_calibrated_beta_areas_are_nearly_the_same(world):
    summary = pd.read_csv(storage.DATA / f"{world}evaluation.csv")
    area = summary.set_index(["metric", "mask", "method"])["mean"]["allocation_area", "banded"]
    for name in ("iba", "relevance-iba"):
        assert abs(area[f"{name}-calibrated"] - area[name]) < 0.03


@pytest.mark.parametrize("network", LOW)
def test_half_the_detail_keeps_what_it_is_worth_and_costs_half_the_area(detail, network):
    own = detail.xs((network, "insertion")).loc["product × √detail | own detail"]
    assert own["difference_low"] > 0
    area = detail["mean"].xs((network, "allocation_area"))
    whole, half = (area[f"product × {name} | own detail"] for name in ("detail", "√detail"))
    assert half > whole - 0.001
    assert half > area["product"] - 0.006


def test_at_two_layers_of_the_bundled_network_ten_is_too_large_a_beta():
    betas = pd.read_csv(storage.DATA / "betas.csv").set_index(["network", "layers"])["beta"]
    single = betas["scenenet"].drop(index=[x for x in betas["scenenet"].index if " " in x])
    assert {*single[single < 10].index} == {"features.14", "features.9"}


def test_the_map_of_input_iba_hangs_on_its_noise():
    table = pd.read_csv(storage.DATA.parent / "benchmarks" / "fidelity.csv")
    row = table[(table["case"] == "scenenet InputIBA") & (table["copies"] == 10)].iloc[0]
    assert row["correlation_mean"] == pytest.approx(0.64, abs=0.005)
    assert row["reference_copies"] == 60
