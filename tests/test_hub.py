"""What a file names is neither fetched nor run."""

import json
import shutil
import sys

import pytest

pytest.importorskip("lerobot")
pytest.importorskip("transformers")

import numpy as np
from lerobot_checkpoints import save_smolvla

import gpc
from gpc.demonstrations import Demonstrations, read, write_lerobot
from gpc.errors import InputError


@pytest.fixture(scope="module")
def vla(tmp_path_factory):
    return save_smolvla(tmp_path_factory.mktemp("smolvla") / "vla")[0]


@pytest.fixture
def looked_up():
    """The hosts that this process looks up."""
    hosts, on = [], [True]

    def hook(event, args):
        if on[0] and event in ("socket.getaddrinfo", "socket.connect"):
            hosts.append(args)

    sys.addaudithook(hook)
    yield hosts
    on[0] = False


def named(folder, file, key, name):
    """The checkpoint with another name at every place of this key in a file."""

    def change(node):
        if isinstance(node, dict):
            return {k: name if k == key else change(v) for k, v in node.items()}
        return [change(item) for item in node] if isinstance(node, list) else node

    (folder / file).write_text(json.dumps(change(json.loads((folder / file).read_text()))))
    return f"lerobot:{folder}"


@pytest.mark.parametrize(
    ("file", "key"), [("config.json", "vlm_model_name"), ("policy_preprocessor.json", "tokenizer_name")]
)
@pytest.mark.parametrize("name", ["someone/vlm", "vlm"])
def test_a_name_in_a_checkpoint_is_not_asked_of_the_hub(vla, tmp_path, looked_up, file, key, name):
    source = named(shutil.copytree(vla, tmp_path / "vla"), file, key, name)
    with pytest.raises(InputError, match=rf"{file}.*{name}.*hf download") as caught:
        gpc.load_policy(source)
    assert "\n" not in str(caught.value)
    assert looked_up == []


def test_the_code_of_a_tokenizer_is_not_offered_to_be_run(vla, tmp_path, monkeypatch):
    mark, tokenizer = tmp_path / "mark", tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "theirs.py").write_text(f"open({str(mark)!r}, 'w')\nclass Theirs: pass\n")
    settings = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    (tokenizer / "config.json").write_text(json.dumps({"model_type": "theirs"}))
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "y")
    source = named(shutil.copytree(vla, tmp_path / "vla"), "policy_preprocessor.json", "tokenizer_name", str(tokenizer))
    with pytest.raises(InputError, match=r"policy_preprocessor\.json cannot be read"):
        gpc.load_policy(source)
    assert asked == []
    assert not mark.exists()


@pytest.mark.parametrize(
    "lost", ["meta/tasks.parquet", "meta/episodes", "meta/stats.json", "data/chunk-000/file-000.parquet"]
)
def test_a_dataset_that_lacks_a_file_is_not_looked_for_on_the_hub(tmp_path, looked_up, lost):
    folder = tmp_path / "dataset"
    steps = {"state": np.zeros((4, 2), np.float32)}
    write_lerobot(folder, Demonstrations(steps, np.zeros((4, 2), np.float32), np.array([4])), 10, "push")
    path = folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if path.exists() or not lost.endswith(("parquet", "episodes")):
        read(folder)
    else:
        with pytest.raises(InputError) as caught:
            read(folder)
        assert "\n" not in str(caught.value)
    assert looked_up == []
