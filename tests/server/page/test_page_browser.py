"""The page in a browser, by real clicks and keys."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_server import Loaded, Watched, held_of, page_serving
from running import CONTEXT, SECONDS, Running

from glassgpt import GPTConfig, Tokenizer, train
from glassgpt.cli import main
from glassgpt.explain import attention_maps
from glassgpt.generation.inspection import Place, drawn_at, read_place
from glassgpt.generation.options import Generation, Sampling
from glassgpt.generation.sampling import candidates
from glassgpt.server.engine import Engine
from glassgpt.training.log import RunLog

Open = Callable[..., Watched]
PROMPT = "To be, or not"


@pytest.fixture
def expect(browser: Any) -> Any:
    """Playwright's own, which waits until something holds."""
    from playwright.sync_api import expect as waits

    waits.set_options(timeout=1000 * SECONDS)
    return waits


def written(page: Any, expect: Any, n: int = 8, **options: Any) -> Any:
    """Have the page write `n` tokens after `PROMPT`; its tokens."""
    page.locator("#prompt").fill(PROMPT)
    for name, value in {"max_tokens": n, **options}.items():
        page.locator(f"#{name}").fill(str(value))
    page.locator("#generate").click()
    expect(page.locator("#continue")).to_be_visible()
    return page.locator("[data-pane='0'] .token")


def choose(page: Any, expect: Any, token: Any) -> None:
    """Click a token and wait for its place."""
    token.click()
    expect(token).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#choice")).to_be_visible()
    expect(page.locator("#attention")).to_be_visible()


# ---- writing ----------------------------------------


def test_a_text_is_written_stopped_and_continued(
    two_models: Running, page_models: dict[str, Loaded], watched: Open, expect: Any
) -> None:
    page = watched().page
    page.goto(two_models.address)
    expect(page.locator("#model-0 option")).to_have_text(["first", "second"])
    held = held_of(two_models, "first")
    held.allow(4)
    page.locator("#prompt").fill(PROMPT)
    page.locator("#generate").click()
    new = page.locator(".token.from-model")
    expect(new).to_have_count(5)  # one from reading the prompt, and one from each step
    assert page.locator(".token.from-prompt").all_inner_texts() == [
        page_models["first"][2].decode([i]) for i in page_models["first"][2].encode(PROMPT)
    ]
    expect(page.locator("[data-pane='0'] .rate")).to_contain_text("tokens/s")
    assert all(re.search(r"\bp[0-4]\b", token.get_attribute("class")) for token in new.all())
    assert all(re.search(r"\d %", token.get_attribute("aria-label")) for token in new.all())
    page.locator("#stop").click()
    expect(page.locator("[data-pane='0'] .rate")).to_contain_text("stopped")
    held.allow(None)
    expect(page.locator("#generate")).to_be_focused()
    assert new.count() == 5
    engine = two_models.models["first"].engine
    page.locator("#max_tokens").fill("3")
    page.locator("#continue").click()
    expect(new).to_have_count(8)
    expect(page.locator("#generate")).to_be_visible()
    assert engine.n_open == 0


def test_what_the_server_refuses_is_told(two_models: Running, watched: Open, expect: Any) -> None:
    one = watched()
    page = one.page
    page.goto(two_models.address)
    expect(page.locator("#model-0 option")).to_have_count(2)
    page.locator("#prompt").fill("zq" * CONTEXT)
    page.locator("#generate").click()
    expect(page.locator("#wrong")).to_contain_text(f"context of first, {CONTEXT} tokens")
    page.locator("#prompt").fill("word " * 99 * CONTEXT)
    page.locator("#generate").click()
    expect(page.locator("#wrong")).to_contain_text("characters")
    assert one.said.pop().startswith("Failed to load resource: the server responded with a status of 400")


def test_by_keyboard_alone(two_models: Running, watched: Open, expect: Any) -> None:
    page = watched().page
    page.goto(two_models.address)
    expect(page.locator("#model-0 option")).to_have_count(2)
    page.locator("#max_tokens").fill("6")
    page.locator("#prompt").focus()
    page.keyboard.type(PROMPT)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#continue")).to_be_visible()
    page.locator(".token").first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator(".token").nth(3)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#choice")).to_be_visible()
    assert page.evaluate("document.querySelectorAll('.text [tabindex=\"0\"]').length") == 1
    page.locator("#heads button").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    picked = page.locator("#heads [aria-checked='true']")
    expect(picked).to_have_attribute("aria-label", re.compile("^layer 1, head 1:"))
    page.locator(".candidate").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator(".branches li")).to_have_count(2)
    expect(page.locator(".token").nth(3)).to_be_focused()


# ---- looking inside ----------------------------------------


def shown_candidates(page: Any) -> dict[int, str]:
    """What the page says of each candidate, by its id."""
    rows = page.locator(".candidate").all()
    return {int(row.get_attribute("data-id")): row.get_attribute("aria-label") for row in rows}


def near(shown: str, probability: float) -> bool:
    """Whether the page's number is the probability, up to the digits it shows and the bins of the rest."""
    if shown.startswith("<"):
        return probability < 1.1e-4
    return abs(float(shown) / 100 - probability) < 6e-4 + 2e-3 * probability


def test_a_token_shows_its_candidates_and_they_move_with_the_sliders(
    two_models: Running, page_models: dict[str, Loaded], watched: Open, expect: Any
) -> None:
    page = watched().page
    page.goto(two_models.address)
    tokens = written(page, expect, seed=5, temperature=1)
    _, model, tokenizer = page_models["first"]
    prompt = tokenizer.encode(PROMPT)
    i = len(prompt) + 3
    choose(page, expect, tokens.nth(i))
    ids = [*prompt, *ids_written(two_models, prompt, 3, seed=5, temperature=1.0)]
    place = read_place(model, ids)
    check_candidates(page, place, tokenizer, Sampling())
    expect(page.locator("#removed")).to_contain_text("No filter removed any")
    drawn = drawn_at(place, tokenizer, ids, 3, Generation(seed=5))
    expect(page.locator(f".candidate[data-id='{drawn}'] .why")).to_have_text("here, seed")

    page.locator("#temperature").fill("0.6")
    page.locator("#top_k").fill("40")
    page.locator("#top_p").fill("0.8")
    check_candidates(page, place, tokenizer, Sampling(temperature=0.6, top_k=40, top_p=0.8))
    expect(page.locator("#removed li").first).to_contain_text(f"top-k removed {tokenizer.n_vocab - 40} of")
    page.locator("#min_p").fill("0.4")
    check_candidates(page, place, tokenizer, Sampling(temperature=0.6, top_k=40, top_p=0.8, min_p=0.4))
    page.locator("#temperature").fill("0")
    check_candidates(page, place, tokenizer, Sampling(temperature=0, top_k=40, top_p=0.8, min_p=0.4))
    for name in ("top_k", "min_p"):
        page.locator(f"#{name}").fill("0")
    page.locator("#top_p").fill("1")
    page.locator("#temperature").fill("1")
    other = next(s for s in range(100) if drawn_at(place, tokenizer, ids, 3, Generation(seed=s)) != drawn)
    page.locator("#seed").fill(str(other))
    drawn = drawn_at(place, tokenizer, ids, 3, Generation(seed=other))
    expect(page.locator(f".candidate[data-id='{drawn}'] .why")).to_contain_text("seed")


def ids_written(running: Running, prompt: list[int], n: int, **options: Any) -> list[int]:
    """What the server writes, asked without a browser."""
    import httpx

    body = {"model": "first", "prompt": prompt, "max_tokens": n, "return_token_ids": True, **options}
    answer = httpx.post(f"{running.address}/v1/completions", json=body, trust_env=False, timeout=60)
    found: list[int] = answer.json()["choices"][0]["token_ids"]
    return found


def check_candidates(page: Any, place: Place, tokenizer: Tokenizer, sampling: Sampling) -> None:
    scores = place.scores[: tokenizer.n_vocab].astype(np.float64)
    own = np.exp(scores - scores.max())
    own /= own.sum()
    ids, probabilities = candidates(sampling, place.scores[: tokenizer.n_vocab])
    final = dict(zip(ids.tolist(), probabilities.tolist(), strict=True))
    shown = shown_candidates(page)
    assert set(np.argsort(-scores)[:12].tolist()) <= set(shown)
    for i, label in shown.items():
        found = re.search(r"(<? ?[\d.]+) % by the model, (?:removed by \S|(<? ?[\d.]+) % now)", label)
        assert found and near(found[1], own[i]), (label, own[i])
        assert (found[2] is None) == (i not in final), (label, final.get(i))
        assert found[2] is None or near(found[2], final[i]), (label, final[i])


def test_attention_is_the_models_and_is_drawn_over_the_text(
    two_models: Running, page_models: dict[str, Loaded], watched: Open, expect: Any
) -> None:
    page = watched().page
    page.goto(two_models.address)
    tokens = written(page, expect, n=4)
    _, model, tokenizer = page_models["first"]
    ids = tokenizer.encode(PROMPT)
    i = len(ids)  # the first token that was written
    choose(page, expect, tokens.nth(i))
    rows = attention_maps(model, ids)[:, :, -1].numpy()
    expect(page.locator("#heads button")).to_have_count(rows.shape[0] * rows.shape[1])
    page.locator("#heads button").nth(5).click()
    row = rows[1, 2]
    expect(page.locator("#heads button").nth(5)).to_have_attribute("aria-checked", "true")
    expect(page.locator("#looked")).to_contain_text(f"Layer 1, head 2 looked at “{shown_text(tokenizer, ids, row)}”")
    assert [title_weight(token) for token in tokens.all()[:i]] == pytest.approx(row.tolist(), abs=6e-4)
    shades = [float(t.evaluate("t => t.style.getPropertyValue('--weight')")) for t in tokens.all()]
    assert shades[:i] == pytest.approx((row / row.max()).tolist(), abs=1e-3)
    assert set(shades[i:]) == {0.0}
    expect(page.locator("#legend")).to_contain_text("attention")
    page.locator("#mean").click()
    mean = rows.mean(axis=(0, 1))
    assert [title_weight(token) for token in tokens.all()[:i]] == pytest.approx(mean.tolist(), abs=6e-4)
    page.locator("#by-probability").click()
    expect(page.locator("#legend")).to_contain_text("How probable")
    assert page.locator(".attended").count() == 0


def title_weight(token: Any) -> float:
    text = token.get_attribute("title")
    return 0.0 if text.startswith("<") else float(text.removesuffix(" %")) / 100


def shown_text(tokenizer: Tokenizer, ids: list[int], row: Any) -> str:
    text = tokenizer.decode([ids[int(row.argmax())]])
    return text.replace(" ", "␣")


# ---- branches ----------------------------------------


def test_another_token_begins_a_branch_and_the_first_text_can_be_gone_back_to(
    two_models: Running, watched: Open, expect: Any
) -> None:
    page = watched().page
    page.goto(two_models.address)
    tokens = written(page, expect)
    first = tokens.all_inner_texts()
    i = 8
    choose(page, expect, tokens.nth(i))
    other = page.locator(".candidate:not(.here)").first
    other_id = other.get_attribute("data-id")
    other.click()
    branches = page.locator(".branches button")
    expect(branches).to_have_count(2)
    expect(page.locator("#continue")).to_be_visible()
    second = tokens.all_inner_texts()
    assert second[:i] == first[:i] and second[i] != first[i]
    assert "from-you" in tokens.nth(i).get_attribute("class")
    choose(page, expect, tokens.nth(i))
    expect(page.locator(f".candidate[data-id='{other_id}']")).to_have_class(re.compile("here"))

    choose(page, expect, tokens.nth(4))
    page.locator("#edit").fill("the end")
    page.locator("#edit-form button").click()
    expect(branches).to_have_count(3)
    expect(page.locator("#continue")).to_be_visible()
    third = tokens.all_inner_texts()
    assert "".join(third).startswith("".join(first[:4]) + "the end")
    assert page.locator(".from-you").count() >= 2

    branches.first.click()
    expect(branches.first).to_have_attribute("aria-current", "true")
    assert tokens.all_inner_texts() == first
    branches.nth(1).click()
    assert tokens.all_inner_texts() == second


def test_a_branch_may_begin_while_the_text_is_written(two_models: Running, watched: Open, expect: Any) -> None:
    page = watched().page
    page.goto(two_models.address)
    expect(page.locator("#generate")).to_be_enabled()
    held_of(two_models, "first").allow(4)
    page.locator("#prompt").fill(PROMPT)
    page.locator("#max_tokens").fill("20")
    page.locator("#generate").click()
    expect(page.locator(".token.from-model")).to_have_count(5)
    choose(page, expect, page.locator(".token").nth(6))
    page.locator(".candidate:not(.here)").first.click()
    held_of(two_models, "first").allow(None)
    expect(page.locator(".branches button")).to_have_count(2)
    expect(page.locator("#continue")).to_be_visible()
    expect(page.locator(".branches [aria-current]")).to_contain_text("from token 7")


def test_what_is_asked_twice_at_once_is_written_once(two_models: Running, watched: Open, expect: Any) -> None:
    page = watched().page
    page.goto(two_models.address)
    expect(page.locator("#model-0 option")).to_have_count(2)
    page.locator("#max_tokens").fill("6")
    page.locator("#prompt").fill(PROMPT)
    enter = "new KeyboardEvent('keydown', {key: 'Enter', ctrlKey: true})"
    page.evaluate(f"() => {{ for (const _ of [0, 1]) document.querySelector('#prompt').dispatchEvent({enter}); }}")
    expect(page.locator("#continue")).to_be_visible()
    new = page.locator(".token.from-model")
    expect(new).to_have_count(6)
    page.locator(".token").nth(3).click()
    page.locator(".candidate").nth(1).wait_for()
    page.evaluate("() => { const [, one] = document.querySelectorAll('.candidate'); one.click(); one.click(); }")
    expect(page.locator("#continue")).to_be_visible()
    expect(new).to_have_count(6)
    expect(page.locator(".token.from-prompt")).to_have_count(3)
    expect(page.locator(".token.from-you")).to_have_count(1)
    assert two_models.models["first"].engine.n_open == 0


def test_an_empty_prompt_begins_from_nothing(two_models: Running, watched: Open, expect: Any) -> None:
    page = watched().page
    page.goto(two_models.address)
    page.locator("#max_tokens").fill("3")
    page.locator("#generate").click()
    expect(page.locator("#continue")).to_be_visible()
    expect(page.locator(".token.from-prompt")).to_have_count(1)
    choose(page, expect, page.locator(".token.from-model").first)
    expect(page.locator(".candidate.here .why")).to_have_text("here, seed")


def test_two_models_side_by_side(two_models: Running, watched: Open, expect: Any) -> None:
    page = watched().page
    page.goto(two_models.address)
    page.locator("#compare").click()
    expect(page.locator("#model-1")).to_have_value("second")
    written(page, expect, temperature=0)
    panes = page.locator(".pane:visible")
    expect(panes).to_have_count(2)
    expect(panes.locator("h2")).to_have_text(["first", "second"])
    texts = [pane.locator(".token.from-model").all_inner_texts() for pane in panes.all()]
    assert len(texts[0]) == len(texts[1]) == 8
    assert texts[0] != texts[1]
    choose(page, expect, panes.nth(1).locator(".token").nth(5))
    choose(page, expect, panes.nth(0).locator(".token").nth(6))
    assert page.locator(".token[aria-pressed='true']").count() == 1


# ---- keys, and a server that goes ----------------------------------------


def test_a_key_is_asked_for_and_a_wrong_one_refused(page_models: dict[str, Loaded], watched: Open, expect: Any) -> None:
    with page_serving(page_models, api_key="secret") as running:
        one = watched()
        page = one.page
        page.goto(running.address)
        expect(page.locator("#key-form")).to_be_visible()
        page.locator("#key").fill("wrong")
        page.locator("#key-form button").click()
        expect(page.locator("#key-wrong")).to_have_text("The server does not accept this key.")
        page.locator("#key").fill("secret")
        page.locator("#key-form button").click()
        expect(page.locator("#key-form")).to_be_hidden()
        written(page, expect)
        page.reload()
        expect(page.locator("#model-0 option")).to_have_count(2)
        expect(page.locator("#key-form")).to_be_hidden()
        assert page.locator("#prompt").input_value() == PROMPT
        assert page.evaluate("Object.values(localStorage).join()").count("secret") == 0
    assert len(one.said) == 2 and all("401" in line for line in one.said)  # the browser's own lines
    one.said.clear()


def test_the_server_goes_in_the_middle_of_a_text_and_comes_back(
    page_models: dict[str, Loaded], watched: Open, expect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = watched()
    page = one.page
    closing, close = threading.Event(), Engine.close

    def closed(engine: Engine, *seconds: float) -> None:
        closing.set()
        close(engine, *seconds)

    monkeypatch.setattr(Engine, "close", closed)
    with page_serving(page_models) as running:
        port = int(running.address.rpartition(":")[2])
        page.goto(running.address)
        expect(page.locator("#model-0 option")).to_have_count(2)
        held_of(running, "first").allow(4)
        page.locator("#prompt").fill(PROMPT)
        page.locator("#generate").click()
        expect(page.locator(".token.from-model")).to_have_count(5)
        running.server.should_exit = True
        assert closing.wait(SECONDS)
        held_of(running, "first").allow(None)
    expect(page.locator("[data-pane='0'] .rate")).to_contain_text("broken off")
    page.locator("#generate").click()
    expect(page.locator("#gone")).to_be_visible()
    n = page.locator(".token").count()
    assert n > 5 and page.locator("#prompt").input_value() == PROMPT
    with page_serving(page_models, port=port):
        page.locator("#retry").click()
        expect(page.locator("#gone")).to_be_hidden()
        assert page.locator(".token").count() == n
        written(page, expect)
        expect(page.locator(".token.from-model")).to_have_count(8)
    assert all("ERR_" in line for line in one.said), one.said
    one.said.clear()


# ---- small screens, themes, a run, a file ----------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(two_models: Running, watched: Open, expect: Any, scheme: str) -> None:
    page = watched(viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True).page
    page.goto(two_models.address)
    page.locator("#compare").click()
    page.locator("#seed").fill("9" * 15)
    tokens = written(page, expect, n=40)
    choose(page, expect, tokens.nth(9))
    page.locator("#more").click()
    page.locator("#heads button").nth(3).click()
    for _ in range(3):
        wide = page.evaluate(
            "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > 360.5"
            " && getComputedStyle(e).position !== 'absolute' && !e.closest('.branches, .word')).map(e => e.outerHTML)"
        )
        assert wide == [] and page.evaluate("document.documentElement.scrollWidth") == 360
        page.locator("#theme").click()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (min(map(int, re.findall(r"\d+", background))) > 200) == (scheme == "light")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 251, 249)"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text("the cat sat on the mat and the dog on the log " * 60)
    shape = GPTConfig(vocab_size=257, context_length=CONTEXT, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.0)
    train(
        [folder / "text.txt"], folder / "run", shape=shape, tokenizer="byte", steps=4, batch_size=2, eval_every=2,
        eval_batches=1, dtype="float32", sample_prompt="the <b>", sample_tokens=4,
    )  # fmt: skip
    return folder / "run"


def test_a_run_in_training_is_shown_and_followed(run: Path, watched: Open, expect: Any) -> None:
    from glassgpt import load_model

    log = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(log[:-2]))  # as if it still went on
    model, tokenizer = load_model(run)
    with page_serving({"run": (run, model, tokenizer)}) as running:
        page = watched().page
        page.clock.install()
        page.goto(running.address)
        page.locator("#tab-training").click()
        expect(page.locator("#run-status")).to_contain_text("of 4")
        expect(page.locator("#run-chart > svg")).to_be_visible()
        expect(page.locator("#run-facts")).to_contain_text("bigram baseline")
        expect(page.locator("#run-samples dd").first).to_contain_text("the <b>")
        RunLog(run).evaluation(9, 2.125, 1.0, 1.0)
        page.clock.run_for(6000)
        expect(page.locator("#run-facts")).to_contain_text("2.1250")
        page.locator("#tab-write").click()
        expect(page.locator("#prompt")).to_be_visible()


def test_the_file_of_explain_needs_no_server(
    page_models: dict[str, Loaded], tmp_path: Path, watched: Open, expect: Any
) -> None:
    path, model, tokenizer = page_models["first"]
    file = tmp_path / "look.html"
    assert main(["explain", str(path), PROMPT, "--html", str(file), "--top-k", "5"]) == 0
    one = watched(viewport={"width": 360, "height": 740})
    page = one.page
    page.goto(file.as_uri())
    ids = tokenizer.encode(PROMPT)
    tokens = page.locator(".token")
    expect(tokens).to_have_count(len(ids) + 1)
    choose(page, expect, tokens.nth(4))
    expect(page.locator("#removed")).to_contain_text("top-k removed")
    check_candidates(page, read_place(model, ids[:4]), tokenizer, Sampling(top_k=5))
    page.locator("#temperature").fill("0.5")
    check_candidates(page, read_place(model, ids[:4]), tokenizer, Sampling(top_k=5, temperature=0.5))
    page.locator("#heads button").nth(2).click()
    row = attention_maps(model, ids[:4])[0, 2, -1].tolist()
    assert [title_weight(token) for token in tokens.all()[:4]] == pytest.approx(row, abs=6e-4)
    expect(page.locator("#prompt-form")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert one.requests == [file.as_uri()]
