"""The inspector as people use it, in a headless Chromium: filters, keys, numbers, themes, hostile texts."""

import json
import math

import pytest

from src.wings.reporting.inspector.section import InspectedRun, section, standalone_page
from tests.wings.reporting.inspector.samples import (
    CALL,
    HOSTILE,
    episode,
    episode_record,
    group,
    old_record,
    record,
    run_folder,
)

pytestmark = pytest.mark.browser

FIELDS = {
    "weight": "weights",
    "entropy": "entropies",
    "rollout_logprob": "rollout_logprobs",
    "old_logprob": "old_logprobs",
    "contribution": "loss_terms",
}


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page of runs; nothing may have gone wrong on it by the end."""
    problems, pages = [], []

    def open_page(runs, width=1400):
        path = tmp_path / "page.html"
        path.write_text(standalone_page(section(runs)), encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: problems.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert problems == []


def one_run(folder, records, name="a"):
    return InspectedRun(name, run_folder(folder / name, records), "rest")


def status(page):
    return page.locator('[data-ri="status"]').inner_text()


def readout(page, field):
    return page.locator(f'[data-field="{field}"]').inner_text()


def token(page, completion, index):
    return page.locator(".ri-tokens").nth(completion).locator(".ri-token").nth(index)


def check_numbers(page, source, index):
    """What is read out of a token is what its line of rollouts.jsonl says."""
    for field, name in FIELDS.items():
        assert float(readout(page, field)) == source[name][index], name
    assert readout(page, "region") == source["regions"][index].replace("_", " ")
    ratio = math.exp(source["old_logprobs"][index] - source["rollout_logprobs"][index])
    assert float(readout(page, "ratio")) == pytest.approx(ratio, rel=1e-5)
    assert float(readout(page, "advantage")) == pytest.approx(source["advantage"], rel=1e-5)


def test_a_trained_runs_numbers_on_hover_and_focus(opened, trained_run):
    sources = [json.loads(line) for line in (trained_run / "rollouts.jsonl").read_text().splitlines()]
    page = opened([InspectedRun("trained", trained_run, "rest")])
    for source in sources:
        for index in {0, len(source["tokens"]) // 2, len(source["tokens"]) - 1}:
            token(page, source["completion"], index).hover()
            check_numbers(page, source, index)
    token(page, 0, 0).focus()
    for index in range(len(sources[0]["tokens"])):
        check_numbers(page, sources[0], index)
        label = token(page, 0, index).get_attribute("aria-label")
        assert f"weight {readout(page, 'weight')}" in label and f"loss term {readout(page, 'contribution')}" in label
        page.keyboard.press("ArrowRight")


def test_filters(opened, tmp_path):
    right = {"text": CALL % "Oslo", "exact_match": 1.0, "reward": 4.0}
    runs = [
        one_run(
            tmp_path, [*group(0), *group(5, "rlla/1", prompt="Snow in Bergen?"), *group(10, "rlla/2", **right)], "a"
        ),
        one_run(tmp_path, [*group(5, reward=-3.0)], "b"),
    ]
    page = opened(runs)
    form = page.locator("form")

    def expect(count):
        page.wait_for_function(
            "(text) => document.querySelector('[data-ri=status]').textContent.startsWith(text)",
            arg=f"{count} of 4 groups match",
        )
        assert page.locator('[data-ri="groups"] option').count() == count

    def reset():
        form.locator('button[type="reset"]').click()
        expect(4)

    expect(4)
    for name, value, count in [("run", "b", 1), ("source", "rlla", 2), ("kind", "correct", 1)]:
        form.locator(f'[name="{name}"]').select_option(label=value)
        expect(count)
        reset()
    for name, value, count in [
        ("fromStep", "5", 3),
        ("toStep", "5", 3),
        ("fromReward", "3.5", 1),
        ("toReward", "-2", 1),
        ("text", "BERGEN", 1),
        ("text", "no such text", 0),
    ]:
        form.locator(f'[name="{name}"]').fill(value)
        expect(count)
        if count == 0:
            assert "No group matches" in page.locator(".ri-empty").inner_text()
        reset()
    form.locator('[name="source"]').select_option(label="rlla")
    form.locator('[name="toStep"]').fill("5")
    expect(1)
    assert "Step 5 of a (rest), rlla/1" in page.locator("#inspector h3").inner_text()
    assert "number 1 is shown" in status(page)


def test_keys_move_between_tokens_completions_and_groups(opened, tmp_path):
    page = opened([one_run(tmp_path, [*group(0), *group(5)])])
    assert page.locator(".ri-card").count() == 2
    token(page, 0, 0).focus()

    def focused():
        return page.evaluate(
            "[document.activeElement.parentElement.dataset.position, document.activeElement.dataset.index].join()"
        )

    for key, expected in [
        ("ArrowRight", "0,1"),
        ("ArrowDown", "1,1"),
        ("End", "1,3"),
        ("ArrowRight", "1,3"),
        ("ArrowUp", "0,3"),
        ("ArrowLeft", "0,2"),
        ("Home", "0,0"),
        ("PageDown", "0,0"),
    ]:
        page.keyboard.press(key)
        assert focused() == expected, key
    assert "number 2 is shown" in status(page)
    page.locator('[data-ri="groups"]').focus()
    page.keyboard.press("ArrowUp")
    assert "number 1 is shown" in status(page)
    page.locator('[data-ri="next"]').click()
    assert "number 2 is shown" in status(page) and page.locator('[data-ri="next"]').is_disabled()


def test_reward_and_gold_call_are_beside_the_completion(opened, tmp_path):
    page = opened([one_run(tmp_path, group(0))])
    card = page.locator(".ri-card").first
    assert card.locator(".ri-kind").inner_text() == "wrong values"
    assert card.locator('[data-part="reward"] dd').inner_text() == "1.5"
    assert card.locator('[data-part="parameter_values"] dd').inner_text() == "0"
    row = card.locator('tr[data-state="differs"]')
    assert row.locator("code").all_inner_texts() == ['"Rome"', '"Oslo"'] and "differs" in row.locator("th").inner_text()
    page.locator("summary", has_text="Prompt").click()
    assert page.locator(".ri-block pre").first.inner_text() == "system\nWeather in Oslo?"


def test_an_episode_is_shown_turn_by_turn(opened, tmp_path):
    told = episode(result="fog")
    page = opened([one_run(tmp_path, [episode_record(episode=told), episode_record(1, episode=told)])])
    card = page.locator(".ri-card").first
    assert card.locator("h5").all_inner_texts() == ["Turn 1", "Turn 2"]
    assert card.locator(".ri-earned").all_inner_texts() == [
        "earned 0.25, advantage -0.5, 3 tokens",
        "earned 0.5, advantage 1.5, 2 tokens",
    ]
    assert card.locator(".ri-speaker").all_inner_texts() == ["user", "policy", "result of sky", "policy"]
    assert card.locator(".ri-turn > pre").all_inner_texts() == ["Weather in Oslo?", "fog"]
    assert card.locator(".ri-made li").all_inner_texts() == ['sky {"city": "Oslo"}']
    parts = card.locator("[data-part]").evaluate_all(
        "nodes => Object.fromEntries(nodes.map(node => Array.from(node.children, child => child.textContent)))"
    )
    assert parts["state"] == "1" and parts["ended"] == "done" and parts["rewritten histories"] == "1"
    assert parts["malformed"] == "2" and "name" not in parts and "advantage" not in parts
    page.locator('[name="text"]').fill("FOG")
    page.wait_for_function("document.querySelector('[data-ri=status]').textContent.startsWith('1 of 1')")


def test_a_turn_s_tokens_have_their_own_numbers(opened, tmp_path):
    source = episode_record()
    page = opened([one_run(tmp_path, [source, episode_record(1)])])
    token(page, 1, 0).hover()  # the second turn's first
    assert readout(page, "token") == "Rain." and readout(page, "advantage") == "1.5"
    assert float(readout(page, "weight")) == source["weights"][3]
    token(page, 0, 0).focus()
    for key, advantage in (("ArrowRight", "-0.5"), ("ArrowDown", "1.5"), ("ArrowDown", "-0.5"), ("ArrowUp", "1.5")):
        page.keyboard.press(key)
        assert readout(page, "advantage") == advantage, key
    page.locator('[data-ri="shade"]').select_option(value="weights")
    assert token(page, 1, 0).evaluate("node => node.style.getPropertyValue('--shade')") == "0.800"  # 1.0 of 1.25


def test_what_an_episode_observed_does_nothing(opened, tmp_path):
    hostile = [text for text in HOSTILE.values() if "\ud800" not in text]
    page = opened(
        [one_run(tmp_path, [episode_record(step=i, episode=episode(result=hostile[i])) for i in range(len(hostile))])]
    )
    for index, text in enumerate(hostile):
        assert page.locator(".ri-turn > pre").nth(1).evaluate("node => node.textContent") == text
        if index + 1 < len(hostile):
            page.locator('[data-ri="next"]').click()
    assert page.evaluate("window.pwned") is None


def test_shades(opened, tmp_path):
    page = opened([one_run(tmp_path, group(0))])
    for name, largest in [("weights", "1.25"), ("entropies", "1.22054"), ("loss_terms", "0.03125")]:
        page.locator('[data-ri="shade"]').select_option(value=name)
        assert page.locator('[data-ri="largest"]').inner_text() == largest
    assert token(page, 0, 0).evaluate("node => node.style.getPropertyValue('--shade')") == "1.000"
    assert token(page, 0, 1).evaluate("node => [node.style.getPropertyValue('--shade'), node.dataset.sign].join()") == (
        "0.400,down"
    )


def test_regions_differ_without_colour(opened, tmp_path):
    page = opened([one_run(tmp_path, group(0))])
    styles = page.locator('[data-ri="regions"] .ri-token').evaluate_all(
        "nodes => nodes.map(node => { const s = getComputedStyle(node);"
        " return [s.textDecorationLine, s.textDecorationStyle, s.textDecorationThickness].join(); })"
    )
    assert len(set(styles)) == 6


def test_hostile_texts_do_nothing(opened, tmp_path):
    hostile = [text for text in HOSTILE.values() if "\ud800" not in text]
    records = [
        record(
            example=f"{text}/1",
            prompt=text,
            target=text,
            text=CALL % json.dumps(text)[1:-1],
            tokens=[text] * 4,
            gold_calls=[{"name": text, "parameters": {text: text}}],
        )
        for text in hostile
    ]
    page = opened([one_run(tmp_path, records)])
    for index, text in enumerate(hostile):
        assert token(page, 0, 0).evaluate("node => node.textContent").replace("↵", "") == text
        assert (
            page.locator(".ri-card *").evaluate_all(
                "nodes => nodes.filter(node => /^(script|img|style|b|i|a)$/i.test(node.tagName)).length"
            )
            == 0
        )
        if index + 1 < len(hostile):
            page.locator('[data-ri="next"]').click()
    assert page.evaluate("window.pwned") is None


def test_runs_of_older_versions(opened, tmp_path):
    page = opened([one_run(tmp_path, [old_record()])])
    token(page, 0, 1).hover()
    assert readout(page, "weight") == "0.5"
    assert {readout(page, name) for name in ("old_logprob", "ratio", "contribution")} == {"not logged"}
    page.locator('[data-ri="shade"]').select_option(value="loss_terms")
    assert page.locator('[data-ri="lacking"]').is_visible() and page.locator('[data-ri="range"]').is_hidden()


@pytest.mark.parametrize("width", [390, 1400])
def test_only_the_completions_scroll_sideways(opened, tmp_path, width):
    page = opened([one_run(tmp_path, group(0, size=8))], width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".ri-cards").evaluate("node => node.scrollWidth > node.clientWidth")


def test_themes(opened, tmp_path):
    page = opened([one_run(tmp_path, group(0))])

    def ink():
        return page.locator("#inspector").evaluate("node => getComputedStyle(node).color")

    page.emulate_media(color_scheme="light")
    light = ink()
    page.emulate_media(color_scheme="dark")
    dark = ink()
    assert light != dark
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    assert ink() == light
    page.emulate_media(color_scheme="light")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert ink() == dark
