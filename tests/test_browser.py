"""The page of a search in a browser: hover, click, sort, filter; nothing is loaded from outside, and nothing on it acts."""

import json
import time

import pytest
from browser import chromium
from hostile import NAMES
from made_up import random_search

from gpc.commands.cli import main
from gpc.results.run_folder import read_rows

HOSTILE = ["<img src=x onerror=alert(1)>", "$$a$$ @seed {{ 7 }} </script>" + NAMES[0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = random_search(tmp_path_factory.mktemp("runs") / "a run", HOSTILE, lambda _: 6, 20, step=0.25)
    assert main(["report", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def page(folder):
    with chromium() as browser:
        browser.get((folder / "report.html").as_uri())
        wait(browser, "return document.documentElement.dataset.ready")
        yield browser


def wait(browser, script, *arguments):
    until = time.monotonic() + 20
    while not (value := browser.execute_script(script, *arguments)):
        assert time.monotonic() < until, script
        time.sleep(0.02)
    return value


PLACE = """
const [name, x, y] = arguments
const chart = document.querySelector(`.chart[aria-label="${name}"]`)
chart.scrollIntoView({block: "center"})
const plot = Bokeh.documents[[...document.querySelectorAll(".chart")].indexOf(chart)].roots()[0]
const view = Bokeh.index.get(plot)
const box = view.canvas_view.el.getBoundingClientRect()
return [box.x + view.frame.x_scale.compute(x), box.y + view.frame.y_scale.compute(y)]
"""


def point(page, chart, x, y, click=False):
    """Move the mouse to a place in the coordinates of a chart."""
    left, top = page.execute_script(PLACE, chart, x, y)
    for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
        more = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        page.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, "x": left, "y": top, **more})


DEEP = """
const all = root => [...root.querySelectorAll("*")].flatMap(item => [item, ...(item.shadowRoot ? all(item.shadowRoot) : [])])
"""
TOOLTIP = (
    DEEP
    + "return all(document).filter(item => item.matches('.bk-Tooltip')).map(item => item.shadowRoot.textContent).join()"
)


def test_a_point_shows_k_of_n_and_the_interval(page, folder):
    figures = json.loads((folder / "summary.json").read_text())["candidates"]
    chosen = next(c for c in figures if c["weights"] == [0.75, 0.25])
    point(page, "success over the weights", 0.75, chosen["pc_success"])
    text = wait(page, TOOLTIP)
    assert f"{chosen['n_success']} of {chosen['n_episodes']}" in text
    low, high = chosen["pc_success_ci95"]
    assert f"{low:.1f} to {high:.1f} %" in text


def shown(page):
    return wait(page, "const box = document.getElementById('shown'); return !box.hidden && box.innerText")


def test_a_click_on_a_cell_shows_the_episode_and_its_replay_command(page, folder):
    point(page, "outcome of every report seed", 0, 0, click=True)  # the winner on the first seed
    text = shown(page)
    rows, winner = read_rows(folder / "episodes.jsonl"), json.loads((folder / "summary.json").read_text())["winner"]
    episode = int(text.split("--episode ")[1].split()[0])
    assert rows[episode].phase == "report"
    assert list(rows[episode].weights) == winner["weights"]
    assert f"seed {rows[episode].seed}" in text
    assert f"gpc replay '{folder}' --episode {episode}" in text
    page.execute_script("document.querySelector('#shown button').click()")


CELLS = (
    DEEP
    + "return all(document).filter(item => item.matches('.slick-row')).map(row => [...row.children].map(c => c.innerText))"
)
SORT = (
    DEEP + "const head = all(document).find(item => item.matches('.slick-header-column') && item.innerText == 'seed');"
)
CHOOSE = """
const [column, value] = arguments
const input = document.querySelector(`.filters [data-column=${column}]`)
input.value = value
input.dispatchEvent(new Event("input"))
"""


def test_episodes_are_sorted_and_filtered_failures_first(page, folder):
    rows = read_rows(folder / "episodes.jsonl")
    cells = wait(page, CELLS)
    assert {row[4] for row in cells} == {"lost"}
    page.execute_script(SORT + "head.click(); head.click()")
    seeds = sorted((row.seed for row in rows), reverse=True)
    assert [int(row[3]) for row in page.execute_script(CELLS)] == seeds[: len(cells)]
    won = [row for row in rows if row.success]
    page.execute_script(CHOOSE, "result", "won")
    assert wait(page, "return document.querySelector('.filters output').value") == f"{len(won)} of {len(rows)} episodes"
    page.execute_script(CHOOSE, "seed", str(won[0].seed))
    same = {row.seed for row in won if row.seed == won[0].seed}
    assert {int(row[3]) for row in page.execute_script(CELLS)} == same


def test_names_are_text_and_nothing_is_loaded(page):
    page.execute_script(CHOOSE, "seed", "")
    page.execute_script(CHOOSE, "policy", HOSTILE[0])
    assert {row[1] for row in page.execute_script(CELLS)} == {HOSTILE[0]}
    assert page.execute_script(DEEP + "return all(document).filter(item => item.matches('img, [onerror]')).length") == 0
    sent = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [item["params"]["request"]["url"] for item in sent if item["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    wait(page, "return document.documentElement.scrollWidth <= 390")
