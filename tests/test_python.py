"""Results in a session: one line each, a table with its figure, rows, the page; words of other tools."""

import ast
import inspect
import sys
from dataclasses import replace

import pytest
from docs_blocks import DOCS, blocks

import gpc
from gpc.commands import api
from gpc.errors import InputError
from gpc.policy.load import load_policy
from gpc.weights.searches import FromDemonstrations

LONGEST = 120
NAME = "a long name\x1b[2J <b>&" * 9
QUICK = {"sampler": gpc.Sampling(steps=2), "engine": gpc.Engine(workers=1)}


@pytest.fixture(scope="module")
def policies():
    return [load_policy("pusht-flow"), load_policy("pusht-diffusion")]


@pytest.fixture(scope="module")
def env():
    return gpc.EnvSpec("pusht", max_steps=8)


@pytest.fixture(scope="module")
def found(env):
    settings = {"search": gpc.Grid(step=0.5, episodes=1), "report_episodes": 2}
    return gpc.search(["pusht-flow", "pusht-diffusion"], env, verbose=False, **settings, **QUICK)


@pytest.fixture(scope="module")
def compared(policies, env):
    named = replace(policies[0], name=NAME)
    return gpc.compare(named, policies[1], env, episodes=2, verbose=False, **QUICK)


@pytest.fixture(scope="module")
def diagnosed(policies, env):
    return gpc.diagnose(policies, env, chunks=1, verbose=False, sampler=gpc.Sampling(steps=2))


def test_policies_and_settings_are_one_line(policies):
    named = [replace(policy, name=f"{NAME}{i}") for i, policy in enumerate(policies)]
    both = gpc.compose(named, [0.25, 0.75])
    sampling = gpc.Sampling(gpc.Teleport(2.0, method=gpc.Langevin(3)), 16, 50.0, 0.02, best_of=gpc.BestOf(4, sum))
    things = [*policies, *named, both, gpc.compose(policies, [[0.5, 0.5]] * 99), gpc.AveragedChunks(policies)]
    things += [gpc.steer(policies[0], "smoothness"), sampling, gpc.Grid().start(2), gpc.Racing().start(3)]
    things += [FromDemonstrations(), gpc.Engine(), gpc.Device(), gpc.EnvSpec("pusht")]
    for text in map(repr, things):
        assert len(text) < LONGEST
        assert text.isprintable()
    assert (
        repr(gpc.compose(policies, [0.25, 0.75])) == "ComposedPolicy(pusht-flow + pusht-diffusion: Convex [0.25, 0.75])"
    )
    assert repr(policies[0]) == "BundledPolicy(pusht-flow: 16 x 2 actions from keypoints, agent_pos)"
    assert repr(gpc.Sampling("ancestral", steps=16)) == "Sampling(method='ancestral', steps=16)"


@pytest.mark.parametrize("kind", ["found", "compared", "diagnosed"])
def test_a_result_shows_itself(kind, request):
    result = request.getfixturevalue(kind)
    text, html = repr(result), result._repr_html_()
    assert len(text) < LONGEST
    assert text.isprintable()
    assert "<table>" in html
    assert html.count("data:image/png;base64,") == 1
    assert "<html" not in html and "<title>" not in html  # noqa: PT018
    assert len(result.to_pandas()) == (len(result.rows) if kind != "diagnosed" else 2)
    assert result.plot().axes
    assert result.verdict in html.replace("&#39;", "'") or kind == "compared"


def test_names_from_outside_are_escaped_in_a_notebook(compared):
    html = compared._repr_html_()
    assert "&lt;b&gt;&amp;" in html
    assert "<b>" not in html
    assert "\x1b" not in html


def test_a_search_has_its_winner_and_its_folder_while_it_lives(policies, env):
    result = gpc.evaluate(policies[0], env, episodes=1, verbose=False, **QUICK)
    page = result.report(show=False)
    assert page.read_text().startswith("<!doctype html>")
    assert page.parent == result.folder
    del result
    assert not page.exists()


def test_a_diagnosis_writes_its_page_and_pictures(diagnosed):
    page = diagnosed.report(show=False)
    assert page.name == "report.html"
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html", "diagnosis.json", "disagreement.png", "chunks.png",
    }  # fmt: skip


def test_the_page_is_opened_where_there_is_a_screen(found, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    page = found.report()
    assert opened == [page.as_uri()]


def test_without_pandas_there_is_a_line(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"to_pandas needs pandas: .*\[notebook\]"):
        found.to_pandas()


@pytest.mark.parametrize(
    ("command", "word", "line"),
    [
        (gpc.evaluate, "n_episodes", "gpc.evaluate takes no n_episodes=; did you mean 'episodes'?"),
        (gpc.evaluate, "num_rollouts", "write episodes=..."),
        (gpc.evaluate, "sampling", "write sampler=..."),
        (gpc.evaluate, "n_envs", "write engine=gpc.Engine(lanes=N)"),
        (gpc.evaluate, "weights", "write gpc.compose(policies, WEIGHTS)"),
        (gpc.evaluate, "nonsense", "choose one of"),
        (gpc.search, "n_episodes", "write report_episodes, or search=gpc.Grid(episodes=N)"),
        (gpc.search, "seed", "write search=gpc.Racing(seed=N), or report_seed"),
        (gpc.search, "method", "write search=..."),
        (gpc.compare, "output_dir", "write run_dir=..."),
        (gpc.diagnose, "horizon", "write env=gpc.EnvSpec(NAME, max_steps=N)"),
    ],
)
def test_a_word_of_another_tool_gets_ours(command, word, line):
    with pytest.raises(InputError) as error:
        command("nothing", **{word: 1})
    assert line in str(error.value)


def test_the_calls_that_pages_print_have_arguments_that_exist():
    pages = ["../README.md", *(page.name for page in DOCS.glob("*.md"))]
    trees = [ast.parse(block) for page in pages for block in blocks(page)]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls = [(ast.unparse(node.func).removeprefix("gpc."), node) for node in nodes]
    checked = [(name, node) for name, node in calls if name in ("evaluate", "search", "compare", "diagnose", "compose")]
    assert {name for name, _ in checked} == {"evaluate", "search", "compare", "diagnose", "compose"}
    for name, node in checked:
        inspect.signature(getattr(gpc, name)).bind(*node.args, **{word.arg: word for word in node.keywords if word.arg})


def test_names_are_checked():
    with pytest.raises(InputError, match="unknown sampler 'ancestrul'; did you mean 'ancestral'"):
        gpc.evaluate("pusht-flow", sampler="ancestrul")
    with pytest.raises(InputError, match=r"sampler=3: give a gpc.Sampling, or one of ancestral"):
        gpc.evaluate("pusht-flow", sampler=3)
    with pytest.raises(InputError, match="unknown search 'gird'; did you mean 'grid'"):
        gpc.search(["pusht-flow", "pusht-diffusion"], search="gird")
    with pytest.raises(InputError, match=r"policies='pusht-flow' must be a list, as in \['pusht-flow'\]"):
        gpc.search("pusht-flow")
    with pytest.raises(InputError, match=r"2 policies where one is expected; gpc.compose makes one of several"):
        gpc.evaluate(["pusht-flow", "pusht-diffusion"])


def test_names_have_the_settings_of_the_command_line():
    assert api.sampler_named("ancestral") == gpc.Sampling("ancestral", 16)
    assert api.sampler_named("native") == "native"
    assert api.search_named("grid") == gpc.Grid()


def test_progress_and_notes_are_on_stderr_and_can_be_turned_off(policies, env, capsys, monkeypatch):
    monkeypatch.setattr("gpc.commands.progress.EVERY", 0.0)
    gpc.evaluate(policies[0], env, episodes=1, **QUICK)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[:1] == ["n_action_steps=8, as pusht-flow has it"]
    assert "evaluate: 1 of 1 episodes, 0% success" in output.err
    gpc.evaluate(policies[0], env, episodes=1, verbose=False, **QUICK)
    assert capsys.readouterr() == ("", "")
