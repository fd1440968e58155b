"""Panels: the picture belongs to the controls, or the panel says in words why it does not."""

import base64

import matplotlib as mpl

mpl.use("agg")

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pytest

import riba
from riba import METHODS, methods, models, panels, relevance, rules
from riba.bottleneck import InformationBottleneck

pytestmark = pytest.mark.filterwarnings("ignore:feature statistics from")
PANELS = {
    "bottleneck": panels.bottleneck,
    "resolution": panels.resolution,
    "rules": panels.rule_bench,
    "descent": panels.descent,
    "allocation": panels.allocation,
}


# --- the wiring, with a render of our own --------------------------------------------------------


def drawing(height, colour):
    """A cheap render."""
    if height < 0:
        raise ValueError("a <negative> height")
    figure, ax = plt.subplots(figsize=(1, 1))
    ax.bar([0], [height], color=colour)
    ax.set_ylim(0, 9)
    return figure


@pytest.fixture
def asked():
    """Grows by the settings that a picture was asked for."""
    return []


@pytest.fixture
def panel(asked):
    def render(**values):
        asked.append(tuple(values.values()))
        return drawing(**values)

    controls = {
        "height": widgets.IntSlider(value=3, min=-5, max=9),
        "colour": widgets.Dropdown(options=["red", "blue"], value="red"),
    }
    return panels.Panel(render, controls, width=321)


def test_a_new_panel_shows_its_first_settings(panel, asked):
    assert (panel.state, panel.message) == ("current", "")
    assert asked == [(3, "red")]
    assert panel.values == {"height": 3, "colour": "red"}
    assert bytes(panel.picture.value).startswith(b"\x89PNG")
    assert panel.picture.layout.width == "321px"
    assert "the picture shows these settings" in panel.badge.value
    assert not plt.get_fignums()  # or a notebook would show the figure once more


def test_a_control_that_is_moved_changes_the_picture_once(panel, asked):
    before = panel.picture.value
    panel.controls["height"].value = 6
    assert panel.picture.value != before
    panel.controls["colour"].value = "blue"
    assert asked == [(3, "red"), (6, "red"), (6, "blue")]
    panel.controls["height"].value, panel.controls["colour"].value = 3, "red"
    assert panel.picture.value == before  # the same settings, the same bytes


def test_the_panel_says_that_it_is_computing(panel):
    seen = []
    panel.render = lambda **values: (seen.append(panel.state), drawing(**values))[1]
    panel.refresh()
    assert seen == ["computing"]


def test_reset_goes_back_and_draws_once(panel, asked):
    first = panel.picture.value
    panel.controls["height"].value, panel.controls["colour"].value = 7, "blue"
    del asked[:]
    (button,) = (w for w in everything(panel.widget) if isinstance(w, widgets.Button))
    button.click()
    assert asked == [(3, "red")]
    assert panel.values == panel.initial
    assert (panel.state, panel.picture.value) == ("current", first)


def test_an_error_is_told_in_words_and_the_old_picture_fades(panel):
    before = panel.picture.value
    panel.controls["height"].value = -2
    assert panel.state == "failed"
    assert panel.message == "ValueError: a <negative> height"
    assert "failed: ValueError: a &lt;negative&gt; height" in panel.badge.value
    assert panel.picture.value == before
    assert float(panel.picture.layout.opacity) < 0.5
    panel.controls["height"].value = 4
    assert (panel.state, panel.message, panel.picture.layout.opacity) == ("current", "", "1")
    assert "negative" not in panel.badge.value


def test_an_error_at_the_start_is_told_too():
    panel = panels.Panel(drawing, {"height": widgets.IntText(-1), "colour": widgets.Text("red")})
    assert panel.state == "failed"
    assert "negative" in panel.badge.value


def test_a_still_picture_is_left_behind(panel):
    bundle = panel._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == panel.picture.value
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == panel.widget.model_id
    assert bundle["text/plain"]
    shown = list(everything(panel.widget))
    assert {panel.picture, panel.badge, *panel.controls.values()} <= set(shown)


def everything(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from everything(child)


# --- the panels of the notebooks -----------------------------------------------------------------


@pytest.fixture(scope="module")
def wb(home):
    return riba.load()


@pytest.fixture(autouse=True)
def nothing_found():
    """What methods keep of their last bottlenecks is of another test."""
    methods._found.clear()


@pytest.fixture
def runs(monkeypatch):
    """Grows by one with every optimisation of a bottleneck, which here takes two steps."""
    done = []
    make, call = InformationBottleneck.__init__, InformationBottleneck.__call__

    def counted(self, *given, **named):
        done.append(self.layer)
        return call(self, *given, **named)

    monkeypatch.setattr(InformationBottleneck, "__init__", partial_init(make, steps=2, samples=2))
    monkeypatch.setattr(InformationBottleneck, "__call__", counted)
    return done


def partial_init(make, **fixed):
    return lambda self, *given, **named: make(self, *given, **(named | fixed))


def choices(panel, name):
    control = panel.controls[name]
    if isinstance(control, widgets.Dropdown):
        return [value for _, value in control._options_full]
    if isinstance(control, widgets.Checkbox):
        return [False, True]
    if isinstance(control, widgets.FloatLogSlider):
        return [control.value, control.base**control.max]
    return [control.value, control.max]


@pytest.mark.parametrize("name", PANELS)
def test_every_setting_gives_a_picture_of_its_own(wb, runs, name):
    panel = PANELS[name](wb)
    assert panel.state == "current", panel.message
    for control in panel.controls:
        if control == "rule":
            panel.reset()
        if control == "strength":
            panel.controls["rule"].value = "gamma"  # not every rule has a parameter
        first = panel.values[control]
        pictures = {first: bytes(panel.picture.value)}
        for value in choices(panel, control):
            if value != first:
                panel.controls[control].value = value
                assert panel.state == "current", f"{control} = {value}: {panel.message}"
                pictures[value] = bytes(panel.picture.value)
        if control == "rule":  # ε+ differs from z⁺ in dense layers only, above the bottleneck
            assert pictures.pop("epsilon-plus") == pictures["z+"]
        assert 1 < len(pictures) == len(set(pictures.values())), control
    assert not plt.get_fignums()


@pytest.fixture
def unpainted(monkeypatch):
    """Figures are made and closed, but not painted: most of the time goes there."""
    monkeypatch.setattr(panels, "_png", lambda figure: plt.close(figure) or b"")


@pytest.mark.parametrize("name", PANELS)
def test_what_was_computed_once_is_not_computed_again(wb, runs, unpainted, name):
    panel = PANELS[name](wb)
    assert len(runs) == 1
    panel.controls["scene"].value = 5
    assert len(runs) == 2
    panel.controls["scene"].value = 3
    panel.refresh()
    panel.reset()
    assert len(runs) == 2
    assert panel.state == "current"


def test_turning_the_rule_leaves_the_bottleneck_alone(wb, runs, unpainted):
    panel = panels.rule_bench(wb)
    for control, value in {"rule": "gamma", "strength": 1.0, "pixels": "z+", "bias": True}.items():
        panel.controls[control].value = value
        assert panel.state == "current"
    assert len(runs) == 1


@pytest.mark.parametrize("name", PANELS)
def test_a_failing_bottleneck_is_told_in_the_panel(wb, monkeypatch, unpainted, name):
    def broken(*_given, **_named):
        raise ValueError("no such luck")

    with monkeypatch.context() as patch:
        patch.setattr(InformationBottleneck, "__call__", broken)
        panel = PANELS[name](wb)
    assert panel.state == "failed"
    assert "ValueError: no such luck" in panel.badge.value
    panel.refresh()  # a failure is not cached
    assert panel.state == "current"


def test_choices_are_all_there_is(wb, runs, unpainted):
    bench, descent = panels.rule_bench(wb), panels.descent(wb)
    assert choices(bench, "rule") == choices(descent, "rule") == list(rules.COMPOSITES)
    assert choices(bench, "pixels") == list(rules.PIXELS)
    assert choices(descent, "source") == list(relevance.SOURCES)
    assert set(choices(descent, "layer")) <= set(models.layer_names(wb.model))
    assert set(panels.QUICK) < set(METHODS)


def test_layers_have_the_strides_they_are_called_by(wb):
    for name, layer in panels.DEPTHS.items():
        features = models.run_until(wb.model, layer, wb.test[0].image[None])
        assert name == f"stride {128 // features.shape[-1]}"


@pytest.mark.parametrize(
    ("rule", "own"),
    [("gamma", {"gamma": 0.7}), ("epsilon", {"epsilon": 0.7}), ("alpha2-beta1", {"beta": 0.7})],
)
@pytest.mark.parametrize("bias", [False, True])
def test_the_strength_is_the_parameter_of_the_rule(wb, rule, own, bias):
    image = wb.test[3].image[None]
    start = models.run_until(wb.model, wb.layer, image).detach()
    tuned = relevance.descend(wb.model, wb.layer, image, start, panels.tuned(rule, 0.7, "z+", bias))
    expected = rules.COMPOSITES[rule]("z+", bias=bias, **own)
    assert tuned.equal(relevance.descend(wb.model, wb.layer, image, start, expected))
    default = relevance.descend(wb.model, wb.layer, image, start, rules.COMPOSITES[rule]("z+"))
    assert not tuned.allclose(default)


@pytest.mark.parametrize("rule", rules.COMPOSITES)
def test_every_rule_has_a_formula_with_its_strength(rule):
    has_parameter = rule in ("gamma", "epsilon", "alpha2-beta1")
    assert (panels.formula(rule, 0.31) != panels.formula(rule, 0.57)) == has_parameter
