"""Overrides as typed in a shell: names of the field's files need no quotes of Hydra's."""

from pathlib import Path

import pytest

from gpc.commands.cli import main
from gpc.commands.config import load_config
from gpc.errors import InputError

FILES = [
    "data/outputs/epoch=0550-test_mean_score=0.969.ckpt",
    "exp/model_epoch_600_Lift_success_0.8.pth",
    "~/runs #2/[best] (1) {a}.ckpt",
    'Bob\'s "best".ckpt',
    "übung/模型_50%.ckpt",
    "a&b|c;d!e^f`g.ckpt",
    "back\\slash\\.ckpt",
]


def policies(*overrides):
    return list(load_config("evaluate", overrides).policies)


def run_dir(text):
    return load_config("evaluate", ["policies=[x]", f"run_dir={text}"]).run_dir


@pytest.mark.parametrize("file", FILES)
def test_a_file_name_is_the_source_of_a_policy_as_it_stands(file):
    assert policies(f"policies=[diffusion_policy:{file}]") == [f"diffusion_policy:{file}"]
    assert policies(f"policies=[{file}, robomimic:{file} ]") == [file, f"robomimic:{file}"]


@pytest.mark.parametrize("file", FILES)
def test_a_file_name_is_a_run_folder_as_it_stands(file):
    assert run_dir(file) == str(Path(file).expanduser())


@pytest.mark.parametrize(
    ("typed", "meant"), [("20240101", "20240101"), ("1.10", "1.10"), ("true", "true"), ("null", None)]
)
def test_a_number_is_a_name_where_text_is_due(typed, meant):
    assert run_dir(typed) == meant
    assert policies(f"policies=[{typed}]") == [typed]


def test_home_is_expanded_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config("diagnose", ["policies=[x]", "run_dir=~/a", "demonstrations=~/b"])
    assert (config.run_dir, config.demonstrations) == (f"{tmp_path}/a", f"{tmp_path}/b")
    assert load_config("serve", ["policies=[x]", "certificate=~/c.pem"]).certificate == f"{tmp_path}/c.pem"
    assert load_config("deploy", ["fps=10", "dataset=~/d"]).dataset == f"{tmp_path}/d"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("['a=b',\"c,d\"]", ["a=b", "c,d"]),
        (r"[a\,b,c\=d]", ["a,b", "c=d"]),
        (r"['it\'s',x]", ["it's", "x"]),
        ("[ a , b ]", ["a", "b"]),
        ("[]", []),
    ],
)
def test_input_that_was_valid_keeps_its_meaning(typed, meant):
    assert policies(f"policies={typed}") == meant


def test_interpolations_still_resolve():
    assert run_dir("runs/${episodes}") == "runs/50"


def test_a_comma_belongs_to_the_name_of_a_file_that_exists(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("lift, best.pth", "a,b,c.ckpt"):
        (tmp_path / name).touch()
    typed = "policies=[robomimic:lift, best.pth,diffusion_policy:a,b,c.ckpt,x,y]"
    assert policies(typed) == ["robomimic:lift, best.pth", "diffusion_policy:a,b,c.ckpt", "x", "y"]
    for name in ("pusht-flow", "my_policy:policy", "gone.pth"):  # no part of the loader of the next policy
        assert policies(f"policies=[{name},robomimic:a,b,c.ckpt]") == [name, "robomimic:a,b,c.ckpt"]
        assert policies(f"policies=[{name}, bundled:{tmp_path}]") == [name, f"bundled:{tmp_path}"]


def test_a_comma_that_can_be_read_in_two_ways_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "a,b"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"policies: both 'robomimic:a' and 'robomimic:a,b' exist; put .* in quotes"):
        policies("policies=[robomimic:a,b]")
    assert policies("policies=['robomimic:a',b]") == ["robomimic:a", "b"]
    assert policies("policies=['robomimic:a,b']") == ["robomimic:a,b"]


def test_an_instruction_and_a_token_are_text():
    assert (
        load_config("deploy", ["fps=1", "task=pick the cube, then stop = go"]).task == "pick the cube, then stop = go"
    )
    assert load_config("serve", ["policies=[x]", "token=123"]).token == "123"


def test_a_list_that_the_shell_has_split_is_named(capsys):
    assert main(["evaluate", "policies=[a,", "b]"]) == 2
    assert (
        "'policies=[a,' has no closing bracket; spaces need quotes, as in 'policies=[a, b]'" in capsys.readouterr().err
    )


def test_a_list_of_the_shell_without_brackets_is_named(capsys):
    assert main(["evaluate", "policies=robomimic:a=1.pth"]) == 2
    assert "must be a list, as in 'policies=[robomimic:a=1.pth]'" in capsys.readouterr().err


def test_a_word_without_a_key_is_named():
    with pytest.raises(InputError, match="'oops' is no KEY=VALUE"):
        load_config("evaluate", ["policies=[x]", "oops"])
