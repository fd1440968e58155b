"""Panels: the picture belongs to the controls, or the panel says in words why it does not."""

import asyncio
import base64
import functools
import json
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import ipywidgets as widgets
import pytest
import torch
from PIL import Image

import riba
from riba import METHODS, progress
from riba.compare import methods, trust
from riba.method import network, relevance, rules
from riba.method.bottleneck import InformationBottleneck
from riba.method.explicit import explicit
from riba.show import panels, plots
from riba.show.panels import controls, samples, saving
from riba.show.panels import panel as panel_module
from riba.show.panels.allocation import MOST
from riba.show.panels.bottleneck import Optimisation, with_noise
from riba.show.panels.descent import DEPTHS
from riba.show.panels.explorer import Explanation, explorer_view
from riba.show.panels.paint import SHOWN, Bars, View, paint
from riba.show.panels.randomise import randomise_view
from riba.show.panels.rule_bench import PARAMETERS, PIXELS, formula, tuned, upper_half
from riba.storage import Memory
from riba.testbed import networks, segmentation

EXPLORER, RANDOMISE = (sys.modules[f"riba.show.panels.{x}"] for x in ("explorer", "randomise"))
pytestmark = pytest.mark.filterwarnings("ignore:feature statistics from")
PANELS = {
    name: getattr(panels, name)
    for name in (
        *("bottleneck", "resolution", "rule_bench", "descent"),
        *("allocation", "randomise", "explorer"),
    )
}


@pytest.fixture(autouse=True, scope="module")
def _few_references():
    """Fewer scenes for a randomised network's statistics, which no test here looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RANDOMISE, "REFERENCE", 16)
        yield


# --- the kit, with functions of our own ----------------------------------------------------------


def drawing(height, colour="red"):
    """A cheap view."""
    return View([(20, [Bars(rows={"it": [max(height, 0)]}, colours=[colour], limit=9.0)])])


class Counting(panels.Panel):
    """A panel that counts: ``asked`` grows by what it was asked to find, ``drawn`` by pictures."""

    def __init__(self, memory=None, **settings):
        self.asked = []
        self.drawn = 0
        self.pause = 0.0

        def find(height):
            self.asked.append(height)
            for _ in progress.track(range(20), "waiting"):
                time.sleep(self.pause / 20)
            if height < 0:
                raise ValueError("a <negative> height")
            return height

        def draw(_wb, found, colour):
            self.drawn += 1
            return drawing(found, colour)

        controls = {
            "height": widgets.IntSlider(value=3, min=-5, max=9),
            "colour": widgets.Dropdown(options=["red", "blue"], value="red"),
        }
        wb = SimpleNamespace(memory=memory or Memory())
        super().__init__(wb, "bars", find, draw, controls, settings, "Bars.")


@pytest.fixture
def panel():
    return Counting()


def button(panel, label):
    (found,) = (
        w
        for w in everything(panel.display.widget)
        if isinstance(w, widgets.Button) and w.description == label
    )
    return found


def everything(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from everything(child)


def test_a_new_panel_shows_its_first_settings(panel):
    assert (panel.state, panel.message) == ("current", "")
    assert panel.asked == [3]
    assert panel.values == {"height": 3, "colour": "red"}
    assert bytes(panel.display.picture.value).startswith(b"\x89PNG")
    assert panel.display.picture.layout.max_width == f"{SHOWN}px"
    assert "the picture shows these settings" in panel.display.badge.value


def test_a_control_that_is_moved_changes_the_picture_once(panel):
    before = panel.display.picture.value
    panel.controls["height"].value = 6
    assert panel.display.picture.value != before
    panel.controls["colour"].value = "blue"
    assert (panel.asked, panel.drawn) == ([3, 6], 3)  # a colour is drawn, not computed
    panel.controls["height"].value, panel.controls["colour"].value = 3, "red"
    assert panel.display.picture.value == before  # the same settings, the same bytes
    assert (panel.asked, panel.drawn) == ([3, 6], 4)  # one new pair; the last was kept


def test_what_was_used_longest_ago_is_forgotten_first():
    panel = Counting(Memory(4))  # two results with their pictures
    for height in (4, 3, 5, 3, 4):  # 5 drives out 4, not 3
        panel.controls["height"].value = height
    assert panel.asked == [3, 4, 5, 4]


def test_reset_goes_back_and_draws_once(panel):
    first = panel.display.picture.value
    panel.controls["height"].value, panel.controls["colour"].value = 7, "blue"
    drawn = panel.drawn
    button(panel, "Reset").click()
    assert panel.values == panel.initial
    assert (panel.state, panel.display.picture.value) == ("current", first)
    assert (panel.asked, panel.drawn) == ([3, 7], drawn)  # both were kept


def test_an_error_is_told_in_words_and_the_old_picture_fades(panel):
    before = panel.display.picture.value
    panel.controls["height"].value = -2
    assert panel.state == "failed"
    assert panel.message == "ValueError: a <negative> height"
    assert "failed: ValueError: a &lt;negative&gt; height" in panel.display.badge.value
    assert panel.display.picture.value == before
    assert "riba-faded" in panel.display.picture._dom_classes
    panel.controls["height"].value = 4
    assert (panel.state, panel.message) == ("current", "")
    assert "riba-faded" not in panel.display.picture._dom_classes
    assert "negative" not in panel.display.badge.value
    panel.controls["height"].value = -2
    assert panel.asked.count(-2) == 2  # a failure is not kept


def test_an_error_at_the_start_is_told_too():
    panel = Counting(height=-1)
    assert panel.state == "failed"
    assert "negative" in panel.display.badge.value
    assert "a panel that failed" in panel._repr_mimebundle_()["text/plain"]


def test_a_still_picture_is_left_behind(panel):
    bundle = panel._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == paint(
        drawing(3), scale=panel_module.STILL, effort=9
    )
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == panel.display.widget.model_id
    assert bundle["text/plain"]
    shown = list(everything(panel.display.widget))
    assert {panel.display.picture, panel.display.badge, *panel.controls.values()} <= set(shown)


def test_settings_come_first_and_reset_returns_to_them():
    panel = Counting(height=5)
    assert panel.asked == [5]
    panel.controls["height"].value = 6
    panel.reset()
    assert panel.values == {"height": 5, "colour": "red"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"heigth": 2}, "no control 'heigth'; near matches: height"), ({"colour": "pink"}, "pink")],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Counting(**settings)


def test_a_value_beyond_the_slider_is_refused_at_the_start_and_clamped_later(panel):
    with pytest.raises(ValueError, match="height cannot be 99: the nearest is 9"):
        Counting(height=99)
    panel.controls["height"].value = 99
    assert (panel.values["height"], panel.state) == (9, "current")


def test_the_code_names_what_was_changed(panel):
    assert panel.code == "from riba import panels\n\npanels.bars(wb)"
    panel.controls["colour"].value = "blue"
    assert panel.code == "from riba import panels\n\npanels.bars(wb, colour='blue')"
    button(panel, "Copy as code").click()
    (area,) = (w for w in everything(panel.display.widget) if isinstance(w, widgets.Textarea))
    assert area.value == panel.code
    assert area.layout.display != "none"


def test_code_from_settings_names_them_again():
    assert Counting(height=5).code.endswith("panels.bars(wb, height=5)")


def test_the_figure_is_saved_with_its_settings(panel, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FIGURES", tmp_path)
    panel.controls["height"].value = 8
    button(panel, "Save figure").click()
    (written,) = tmp_path.glob("panel_bars_*.json")
    note = json.loads(written.read_text())
    assert note["caption"] == "Bars."
    assert note["parameters"] == {"code": panel.code, "height": 8, "colour": "red"}
    picture = written.with_suffix(".png")
    assert picture.read_bytes() == paint(drawing(8), scale=saving.SCALE)
    assert picture.name in panel.display._note.value
    panel.controls["height"].value = 7
    assert panel.display._note.value == ""
    button(panel, "Save figure").click()
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_the_figure_is_not_saved_where_nothing_can_be(panel, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FIGURES", tmp_path / "none" / "such")
    button(panel, "Save figure").click()
    assert "not saved" in panel.display._note.value


def test_the_same_code_is_copied_twice(panel):
    sent = []
    panel.display._clipboard.observe(lambda change: sent.append(change["new"]), names="outputs")
    button(panel, "Copy as code").click()
    button(panel, "Copy as code").click()
    assert [bool(outputs) for outputs in sent][-3:] == [True, False, True]


def test_a_picture_that_failed_is_not_saved(panel, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FIGURES", tmp_path)
    panel.controls["height"].value = -1
    button(panel, "Save figure").click()
    assert not list(tmp_path.iterdir())
    assert "not saved" in panel.display._note.value


def test_controls_that_only_look_stand_apart(panel):
    columns = next(w for w in everything(panel.display.widget) if type(w) is widgets.Box)
    assert [column.children for column in columns.children] == [
        (panel.controls["height"],),
        (panel.controls["colour"],),
    ]


# --- in a kernel, where an event loop runs -------------------------------------------------------


def in_kernel(story):
    """Run a story as a kernel would, on a thread with an event loop."""
    asyncio.run(asyncio.wait_for(story(), 30))


async def until(panel, state):
    while panel.state != state:
        await asyncio.sleep(0.005)


def test_states_follow_each_other():
    async def story():
        panel = Counting()
        panel.pause = 0.2
        seen = []
        panel.display.badge.observe(lambda change: seen.append(panel.state), names="value")
        panel.controls["height"].value = 5
        assert panel.state == "stale"  # at once
        assert "riba-faded" in panel.display.picture._dom_classes
        await until(panel, "current")
        assert seen == ["stale", "computing", "current"]
        assert panel.asked == [3, 5]

    in_kernel(story)


def test_work_is_done_on_another_thread_and_drawn_on_this():
    async def story():
        panel, threads = Counting(), {}
        find, draw = panel._compute, panel._draw

        def watched_compute(height):
            threads["find"] = threading.current_thread()
            return find(height)

        def watched_draw(wb, found, colour):
            threads["draw"] = threading.current_thread()
            return draw(wb, found, colour)

        panel._compute, panel._draw = watched_compute, watched_draw
        thread = threading.Thread(target=setattr, args=(panel.controls["height"], "value", 5))
        thread.start()  # as callbacks of controls come, in newer kernels
        thread.join()
        await until(panel, "current")
        assert threads["draw"] is threading.current_thread()
        assert threads["find"] is not threading.current_thread()

    in_kernel(story)


def test_a_burst_is_computed_once_and_ends_on_the_last():
    async def story():
        panel = Counting()
        panel.pause = 0.1
        for height in (9, 8, 7, 6, 5, 4, 9, 8, 7, 2):
            panel.controls["height"].value = height
            await asyncio.sleep(0.01)
        await until(panel, "current")
        assert panel.asked == [3, 2]
        assert panel.display.picture.value == Counting(height=2).display.picture.value

    in_kernel(story)


def test_a_change_during_the_work_gives_it_up():
    async def story():
        panel = Counting()
        panel.pause = 2.0
        panel.controls["height"].value = 9
        await until(panel, "computing")
        await asyncio.sleep(0.1)
        began, panel.pause = time.monotonic(), 0.1
        panel.controls["height"].value = 4
        await until(panel, "current")
        assert time.monotonic() - began < 1.5
        assert panel.asked == [3, 9, 4]
        panel.controls["height"].value = 9  # half done is not done
        await until(panel, "current")
        assert panel.asked == [3, 9, 4, 9]

    in_kernel(story)


def test_cancel_stops_and_compute_takes_it_up_again():
    async def story():
        panel = Counting()
        before, panel.pause = panel.display.picture.value, 3.0
        panel.controls["height"].value = 9
        await until(panel, "computing")
        await asyncio.sleep(1.2)
        assert "riba-hidden" not in panel.display._progress._dom_classes  # the bar is out
        assert 0 < panel.display._progress.value < 1
        button(panel, "Cancel").click()
        await until(panel, "stale")
        assert panel.message == "cancelled"
        assert panel.display.picture.value == before
        assert "riba-hidden" in panel.display._progress._dom_classes
        panel.pause = 0.0
        button(panel, "Compute").click()
        await until(panel, "current")
        assert panel.asked == [3, 9, 9]

    in_kernel(story)


def test_panels_take_turns_and_one_in_the_queue_can_be_cancelled():
    async def story():
        one, two = Counting(), Counting()
        one.pause = two.pause = 1.0
        one.controls["height"].value = two.controls["height"].value = 8
        await until(one, "computing")
        await until(two, "computing")
        button(two, "Cancel").click()
        await until(one, "current")
        await until(two, "stale")
        assert (one.asked, two.asked) == ([3, 8], [3])

    in_kernel(story)


def test_an_error_in_the_background_is_told():
    async def story():
        panel = Counting()
        panel.controls["height"].value = -3
        await until(panel, "failed")
        assert panel.message == "ValueError: a <negative> height"
        panel.controls["height"].value = 3
        await until(panel, "current")

    in_kernel(story)


# --- the panels of the notebooks -----------------------------------------------------------------


@pytest.fixture(scope="module")
def wb(home):
    return riba.load()


@pytest.fixture
def runs(monkeypatch):
    """Grows by one with every optimisation of a bottleneck, which here takes two copies."""
    done = []
    make, call = InformationBottleneck.__init__, InformationBottleneck.optimise

    def counted(self, *given, **named):
        done.append(next(iter(self.statistics)))
        return call(self, *given, **named)

    def quick(self, *given, **named):
        make(self, *given, **({"steps": 2} | named | {"samples": 2}))

    monkeypatch.setattr(InformationBottleneck, "__init__", quick)
    monkeypatch.setattr(InformationBottleneck, "optimise", counted)
    return done


def choices(panel, name):
    """Values worth trying, none of them the present one."""
    control = panel.controls[name]
    if isinstance(control, widgets.Dropdown):
        return [value for _, value in control._options_full if value != control.value]
    if isinstance(control, widgets.Checkbox):
        return [not control.value]
    if isinstance(control, widgets.FloatLogSlider):
        return [control.base**control.max]
    if isinstance(control, widgets.SelectMultiple):
        return [("edges",), ("iba", "centre")]
    if isinstance(control, widgets.Text):
        return []
    return [control.min if control.value == control.max else control.max]


NEEDS = {
    "upper_strength": {"upper": "gamma"},
    "lower_strength": {"lower": "gamma"},
    "alone": {"count": 3},
    "seed": {"count": 3},
}
"""What must be set for a control to matter."""
SILENT = {("samples", 20), ("label", "fish"), ("rule", "epsilon-plus")}
"""Values that change nothing: here copies are always two, scene 3 shows a fish, and ε⁺ differs
from z⁺ in dense layers only, above the bottleneck."""


@pytest.mark.parametrize("name", PANELS)
def test_every_setting_gives_a_picture_of_its_own(wb, runs, name):
    panel = PANELS[name](wb)
    assert panel.state == "current", panel.message
    for control in panel.controls:
        panel.reset()
        for other, value in NEEDS.get(control, {}).items():
            panel.controls[other].value = value
        pictures = {bytes(panel.display.picture.value)}
        tried = [v for v in choices(panel, control) if (control, v) not in SILENT][:4]
        for value in tried:
            panel.controls[control].value = value
            assert panel.state == "current", f"{control} = {value}: {panel.message}"
            pictures.add(bytes(panel.display.picture.value))
        assert len(pictures) == 1 + len(tried), control


@pytest.fixture
def unpainted(monkeypatch):
    """Views are made but not painted."""
    monkeypatch.setattr(panel_module, "paint", lambda view: b"")


@pytest.mark.parametrize("name", PANELS)
def test_what_was_computed_once_is_not_computed_again(wb, runs, unpainted, name):
    panel = PANELS[name](wb)
    first = len(runs)
    assert 1 <= first <= (10 if name == "randomise" else 2)  # both networks, five bottlenecks
    panel.controls["scene"].value = 5
    second = len(runs)
    assert second > first
    panel.controls["scene"].value = 3
    panel.refresh()
    panel.reset()
    assert len(runs) == second
    assert panel.state == "current"


@pytest.mark.parametrize("name", PANELS)
def test_code_makes_the_same_picture_again(wb, runs, name):
    panel = PANELS[name](wb, scene=7)
    again = {}
    exec(panel.code.replace("panels.", "again = panels.", 1), {"wb": wb}, again)
    assert "scene=7" in panel.code
    assert again["again"].display.picture.value == panel.display.picture.value


@pytest.mark.parametrize("name", PANELS)
def test_controls_have_labels_and_are_few(wb, runs, unpainted, name):
    panel = PANELS[name](wb)
    assert all(control.description for control in panel.controls.values())
    for column in panel._columns():
        assert len(column) <= 6
    for control in panel.controls.values():
        assert not getattr(control, "continuous_update", False)


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_works_on_a_network_of_its_own(wb, runs, unpainted, name):
    before = [len(module._forward_hooks) for module in wb.model.modules()]
    PANELS[name](wb)
    assert [len(module._forward_hooks) for module in wb.model.modules()] == before
    own = samples.private_copy(wb)
    assert own.model is not wb.model
    assert network.fingerprint(own.model) == network.fingerprint(wb.model)


@pytest.mark.parametrize("name", PANELS)
def test_a_failing_bottleneck_is_told_in_the_panel(wb, monkeypatch, unpainted, name):
    def broken(*_given, **_named):
        raise ValueError("no such luck")

    with monkeypatch.context() as patch:
        patch.setattr(InformationBottleneck, "optimise", broken)
        panel = PANELS[name](wb)
    assert panel.state == "failed"
    assert "ValueError: no such luck" in panel.display.badge.value
    panel.refresh()  # a failure is not kept
    assert panel.state == "current"


def counted(function, calls):
    """The function, which adds to ``calls`` what it returns."""

    @functools.wraps(function)
    def call(*given, **named):
        calls.append(function(*given, **named))
        return calls[-1]

    return call


def test_looking_computes_nothing(wb, runs, unpainted):
    looks = {
        "bottleneck": {"step": 1},
        "descent": {"stairs": 4, "row": 3, "column": 100},
        "allocation": {"share": 0.5},
        "explorer": {"shared": True, "opacity": 0.4, "threshold": 0.2},
    }
    for name, moved in looks.items():
        panel, computed, drawn = PANELS[name](wb), [], []
        panel._compute, panel._draw = counted(panel._compute, computed), counted(panel._draw, drawn)
        for control, value in moved.items():
            panel.controls[control].value = value
            assert panel.state == "current", panel.message
        assert (len(computed), len(drawn)) == (0, len(moved)), name


def test_turning_a_rule_leaves_the_bottleneck_alone(wb, runs, unpainted):
    panel = panels.rule_bench(wb)
    for control, value in {
        "upper": "gamma", "upper_strength": 1.0, "lower": "flat", "pixels": "box", "bias": True,
    }.items():  # fmt: skip
        panel.controls[control].value = value
        assert panel.state == "current", panel.message
    assert len(runs) == 1
    panel = panels.descent(wb)
    for rule in rules.COMPOSITES:
        panel.controls["rule"].value = rule
    assert len(runs) == 2


def test_choices_are_all_there_is(wb, runs, unpainted):
    descent = panels.descent(wb)
    offered = [value for _, value in descent.controls["source"]._options_full]
    assert offered == [*relevance.SOURCES, *DEPTHS]
    assert set(choices(descent, "rule")) | {"z+"} == set(rules.COMPOSITES)
    assert set(choices(descent, "layer")) | {wb.layer} == set(wb.depths)
    assert set(PIXELS) == {*rules.PIXELS, "box"}
    assert set(controls.METHODS_OFFERED) < set(METHODS)


def test_layers_have_the_strides_they_are_called_by(wb):
    for name, layer in controls.strides(wb).items():
        features = network.run_until(wb.model, layer, wb.test[0].image[None])
        assert name == f"{layer}, stride {128 // features.shape[-1]}"


# --- what single panels compute ------------------------------------------------------------------


def test_the_last_step_is_what_the_bottleneck_found(wb):
    image, label = wb.test[3].image[None], wb.test[3].label
    iba = InformationBottleneck(wb.model, wb.layer, wb.statistics, steps=4, sigma=0.5, samples=3)
    information = iba(image, [label], keep_steps=True)
    _, tail = explicit(wb.model, [wb.layer], image).parts
    course = Optimisation(wb, image, information, tail, samples=3, sigma=0.5)
    lambda_, nats, through = course.at(4)
    assert lambda_.equal(information.lambda_)
    assert nats.equal(information.nats)
    assert through.sum().item() == pytest.approx(1, abs=1e-5)
    first = information.trace.information[0, 0].item()
    assert course.at(0)[1].sum().item() == pytest.approx(first, rel=1e-5)
    open_, shut = (course.at(step)[2][label] for step in (0, 4))
    assert open_.item() == pytest.approx(information.open_probability[0].item(), abs=0.05)
    assert shut < open_


def test_noise_covers_what_is_shut():
    rgb = torch.full((8, 8, 3), 0.5)
    lambda_ = torch.zeros(1, 2, 2, 2)
    lambda_[0, 1, :, 0] = 1.0
    noised = with_noise(rgb, lambda_)
    assert noised[:, 0].equal(rgb[:, 0])
    assert (noised[:, -1] - 0.5).abs().max() > 0.3


def test_the_bench_has_its_rules_where_it_says(wb):
    above = upper_half(wb.model, wb.layer)
    names = network.layer_names(wb.model)
    assert above == names[names.index(above[0]) : names.index(wb.layer) + 1]
    resnet = networks.small_resnet()
    inside = upper_half(resnet, "features.5")
    assert "features.5.conv2" in inside
    assert "features.3.conv1" not in inside
    image = wb.test[3].image[None]
    nats = network.run_until(wb.model, wb.layer, image).detach()
    gamma, plus = rules.gamma(gamma=0.7), rules.z_plus()
    mixed = rules.by_depth(plus, gamma, above)
    below = relevance.descend_all(wb.model, wb.layer, image, nats, mixed)
    split = above[0]
    by_gamma = relevance.descend_all(wb.model, wb.layer, image, nats, gamma)
    names = list(below)
    before = names[names.index(split) - len(names) + 1]
    assert below[before].allclose(by_gamma[before])
    rest = relevance.descend(wb.model, before, image, below[before], plus)
    assert rest.allclose(below["pixels"], atol=1e-6)
    assert not rest.allclose(by_gamma["pixels"], atol=1e-4)


@pytest.mark.parametrize(
    ("rule", "own"),
    [("gamma", {"gamma": 0.7}), ("epsilon", {"epsilon": 0.7}), ("alpha2-beta1", {"beta": 0.7})],
)
@pytest.mark.parametrize("bias", [False, True])
def test_the_strength_is_the_parameter_of_the_rule(wb, rule, own, bias):
    image = wb.test[3].image[None]
    start = network.run_until(wb.model, wb.layer, image).detach()
    below = relevance.descend(wb.model, wb.layer, image, start, tuned(rule, 0.7, "z+", bias))
    expected = rules.COMPOSITES[rule]("z+", bias=bias, **own)
    assert below.equal(relevance.descend(wb.model, wb.layer, image, start, expected))
    default = relevance.descend(wb.model, wb.layer, image, start, rules.COMPOSITES[rule]("z+"))
    assert not below.allclose(default)


@pytest.mark.parametrize("rule", [name for name in rules.COMPOSITES if name != "epsilon-plus"])
def test_every_rule_has_a_formula_with_its_strength(rule):
    assert (formula(rule, 0.31) != formula(rule, 0.57)) == (rule in PARAMETERS)


def test_a_slider_is_alive_only_where_its_rule_has_a_parameter(wb, runs, unpainted):
    panel = panels.rule_bench(wb)
    assert panel.controls["upper_strength"].disabled
    panel.controls["upper"].value = "epsilon"
    assert not panel.controls["upper_strength"].disabled
    assert panel.controls["lower_strength"].disabled


@pytest.mark.parametrize("source", [*relevance.SOURCES, *DEPTHS])
def test_the_descent_is_that_of_the_package(wb, source):
    panel = panels.descent(wb, source=source)
    found = panel._compute(3, source, wb.layer, "z+")
    image = wb.test[3].image[None]
    target = wb.predict(image).argmax(1)
    if source in relevance.SOURCES:
        attributor = riba.RelevanceIBA(wb.model, wb.layer, wb.statistics, source=source)
        _, expected = attributor(image, target)
        assert found.ledger.line(0) == attributor.ledger.line(0)
    else:
        joint = methods.information(wb, wb.depths, image, target)
        expected = {
            "joint": lambda: relevance.descend(
                wb.model, joint.shallowest.layer, image, joint.shallowest.nats
            ),
            "cascade": lambda: relevance.cascade(wb.model, image, joint),
        }[source]()
    assert torch.allclose(found.below["pixels"], expected, atol=1e-5)
    assert list(found.below)[-1] == "pixels"


def test_the_budget_names_how_many_to_choose(wb, runs, unpainted):
    panel = panels.allocation(wb)
    panel.controls["methods"].value = ()
    assert panel.message == f"ValueError: choose one to {MOST} methods, not 0"
    panel.controls["methods"].value = ("edges", "centre", "random", "gradient")
    assert "not 4" in panel.message


def test_randomised_weights_are_those_of_the_package(wb):
    panel = panels.randomise(wb)
    before, after, words = panel._compute(3, 2, False, 1)
    assert words == f"{trust.weighted_layers(wb.model)[1]} and all above"
    model = trust.randomised(wb.model, trust.weighted_layers(wb.model)[:2], seed=1)
    image, label = wb.test[3].image[None], torch.tensor([wb.test[3].label])
    assert after["LRP"].allclose(relevance.lrp(model, image, label).sum(1), atol=1e-6)
    assert before["LRP"].allclose(relevance.lrp(wb.model, image, label).sum(1), atol=1e-6)
    same = panel._compute(3, 0, False, 1)
    assert all(same[0][name] is same[1][name] for name in before)
    assert same[2] == "nothing"


def test_the_agreement_with_a_constant_map_is_undefined(wb):
    maps = {"one": torch.rand(1, 128, 128), "other": torch.rand(1, 128, 128)}
    after = maps | {"other": torch.zeros(1, 128, 128)}
    view = randomise_view(wb, (maps, after, "nothing"), scene=3)
    _, one, other = view.rows[1][1]
    assert (one.foot, other.foot) == ("1.00", "undefined")


# --- the explorer --------------------------------------------------------------------------------


def test_the_explorer_shows_what_methods_say(wb):
    panel = panels.explorer(wb, scene=4, two=True, label="cup", methods=("edges", "relevance-iba"))
    found = panel._compute(4, "", "cup", ("edges", "relevance-iba"), two=True)
    sample = riba.datasets.Scenes("test", 10, others=1)[4]
    assert found.image.equal(sample.image)
    assert found.label == wb.class_names.index("cup")
    images, targets = sample.image[None], [found.label]
    for name, (maps, ledger) in found.maps.items():
        assert maps.allclose(METHODS[name](wb, images, targets), atol=1e-5)
        if name == "relevance-iba":
            assert ledger.start.item() == pytest.approx(maps.sum().item(), rel=1e-3)
        else:
            assert ledger is None
    assert panel.state == "current", panel.message


@pytest.mark.parametrize(
    ("method", "unit"),
    [("iba-joint", "bits"), ("relevance-iba-gamma", "nats"), ("lrp-epsilon-plus", "logits"),
     ("readout-iba", "bits"), ("input-iba", ""), ("edges", "")],
)  # fmt: skip
def test_units_are_those_of_the_methods(method, unit):
    assert METHODS[method].unit == unit
    if unit:
        assert unit in METHODS[method].description.lower()


@pytest.mark.parametrize("make", [panels.allocation, panels.bottleneck, panels.descent,
    panels.explorer, panels.randomise, panels.resolution, panels.rule_bench])  # fmt: skip
def test_labels_of_controls_are_short_enough_to_be_seen(wb, runs, unpainted, make):
    panel = make(wb)
    for control in panel.controls.values():
        if not isinstance(control, widgets.Checkbox):
            assert len(control.description) <= 20, control.description


def test_a_thumbnail_chooses_its_scene(wb, runs, unpainted):
    panel = panels.explorer(wb, methods=("edges",))
    button(panel, "scene 5").click()
    assert panel.values["scene"] == 5
    assert panel.state == "current"
    names = {
        w.description for w in everything(panel.display.widget) if isinstance(w, widgets.Button)
    }
    button(panel, "Other scenes").click()
    others = {
        w.description for w in everything(panel.display.widget) if isinstance(w, widgets.Button)
    }
    assert len(names) == len(others)
    assert len(others - names) > 2


def test_the_explorer_and_the_others_take_photos_with_labels_of_their_own(wb, tmp_path):
    """Photos of a folder, whose label 1 stands for the network's classes 3 and 5."""
    for kind in ("photos", "masks"):
        (tmp_path / kind).mkdir()
    for place in range(2):
        scene = wb.test.scene(place)
        Image.fromarray(scene.image).save(tmp_path / "photos" / f"{place}.png")
        mask = Image.fromarray(255 * scene.masks[0].astype("uint8"))
        mask.save(tmp_path / "masks" / f"{place}.png")
    labels = {"0": 1, "1": 1}
    photos = riba.segmentation.folder(tmp_path / "photos", tmp_path / "masks", wb.prepare, labels)
    names = {"class_names": wb.class_names, "sets": [(), (3, 5)], "depths": wb.depths[1:]}
    bench = riba.Workbench.of(wb.model, wb.layer, photos, **names)
    panel = panels.explorer(bench, methods=("edges",))
    assert panel.state == "current", panel.message
    assert "two" not in panel.controls
    assert panel.controls["scene"].max == 1
    button(panel, "scene 0").click()
    assert panel.values["scene"] == 0
    button(panel, "Other scenes").click()
    targets = torch.zeros(1, 10, dtype=torch.bool)
    targets[0, [3, 5]] = True
    allocated = panels.allocation(bench, methods=("gradient",), scene=1)
    assert allocated.state == "current", allocated.message
    (values,) = allocated._compute(1, ("gradient",)).values()
    image = wb.prepare.image(wb.test.scene(1).image)[None]
    assert torch.allclose(values, METHODS["gradient"](wb, image, targets), atol=1e-6)
    assert "t = class 1" in samples.picture(bench, 1).title
    for make in (panels.bottleneck, panels.rule_bench, panels.descent, panels.resolution):
        other = make(bench)
        assert other.state == "current", other.message
    photos.entries[0].image.write_bytes(b"no picture")
    damaged = panels.explorer(bench, methods=("edges",), scene=1)
    assert damaged.state == "current", damaged.message
    button(damaged, "scene 0").click()
    assert damaged.state == "failed"
    assert "0.png is not a picture" in damaged.message


def upload(panel, name, content):
    (control,) = (w for w in everything(panel.display.widget) if isinstance(w, widgets.FileUpload))
    file = {"name": name, "type": "", "size": len(content), "content": content}
    control.value = ({**file, "last_modified": datetime.now()},)


def test_a_photo_is_uploaded_and_found_again_by_its_code(wb, tmp_path, monkeypatch):
    monkeypatch.setattr(EXPLORER, "UPLOADS", tmp_path / "photos")
    path = tmp_path / "own.png"
    Image.new("RGB", (200, 150), (200, 40, 40)).save(path)
    panel = panels.explorer(wb, methods=("edges",))
    upload(panel, "../own.png", path.read_bytes())
    assert panel.state == "current", panel.message
    (kept,) = (tmp_path / "photos").iterdir()
    assert panel.values["photo"] == str(kept)
    assert f"photo={str(kept)!r}" in panel.code
    button(panel, "scene 2").click()
    assert (panel.values["photo"], panel.values["scene"]) == ("", 2)
    upload(panel, "../own.png", path.read_bytes())  # once more
    assert panel.values["photo"] == str(kept)
    again = panels.explorer(wb, methods=("edges",), photo=str(path), scene=2)
    assert again.display.picture.value == panel.display.picture.value
    panel.controls["scene"].value = 9
    assert (panel.values["photo"], panel.state) == ("", "current")


def test_without_training_images_a_network_is_randomised_above_its_bottleneck_alone(wb, unpainted):
    panel = panels.randomise(replace(wb, train=[]))
    assert panel.state == "current"
    panel.controls["count"].value = panel.controls["count"].max
    assert panel.message.startswith("ValueError: no training images for the feature statistics")


def test_a_network_is_chosen_above_the_panel(wb, runs):
    own = replace(wb, depths=wb.depths[:1])
    nothing = replace(wb, test=[])
    benches = {"first": wb, "own": own, "without pictures": nothing}
    several = panels.ByNetwork(panels.explorer, benches, methods=("edges",))
    first = several.panel
    assert list(several.panels) == ["first"]
    several.choice.value = "own"
    assert several.panel is not first
    assert several.panel.values["methods"] == ("edges",)
    assert several.widget.children[1] is several.panel.display.widget
    several.choice.value = "without pictures"
    assert "no photos to show" in several.widget.children[1].value
    assert "image/png" not in several._repr_mimebundle_()
    several.choice.value = "first"
    assert several.panel is first
    bundle = several._repr_mimebundle_()
    view = "application/vnd.jupyter.widget-view+json"
    assert bundle[view]["model_id"] == several.widget.model_id
    assert "image/png" in bundle


def test_an_empty_map_leaves_the_others_their_colours(wb):
    values = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    said = {"iba": (values[None], None), "grad-cam": (torch.zeros(1, 8, 8), None)}
    found = Explanation(torch.zeros(3, 8, 8), None, 0, torch.ones(10) / 10, said)
    view = explorer_view(wb, found, shared=True, opacity=1.0, threshold=0.0)
    full, empty = view.rows[0][1][1:3]
    assert full.scale.top == empty.scale.top
    assert full.scale.top == pytest.approx((values / values.sum()).max().item(), rel=0.1)


def test_a_file_that_is_no_photo_is_told_in_the_panel(wb, tmp_path, monkeypatch):
    monkeypatch.setattr(EXPLORER, "UPLOADS", tmp_path)
    panel = panels.explorer(wb, methods=("edges",))
    upload(panel, "holiday.jpg", b"dear diary")
    assert panel.state == "failed"
    assert "holiday.jpg is not a picture, whatever its name says" in panel.message
    panel.reset()
    assert panel.state == "current"


def test_photos_without_labels_and_masks(wb, tmp_path, unpainted):
    Image.fromarray(wb.test.scene(0).image).save(tmp_path / "photo.png")
    photos = segmentation.unmasked(tmp_path, wb.prepare, wb.class_names)
    bench = replace(wb, test=photos)
    for name in ("bottleneck", "descent", "explorer", "randomise", "rule_bench"):
        panel = getattr(panels, name)(bench)
        assert (panel.state, panel.message) == ("current", ""), name
    for name in ("allocation", "resolution"):
        panel = getattr(panels, name)(bench)
        assert panel.state == "failed"
        assert "this photo has no mask to hold a map against" in panel.message
