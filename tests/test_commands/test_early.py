"""What the options, the files or a model's configuration alone decide is refused before torch is imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from neoscope.model.architectures import ARCHITECTURES
from neoscope.model.hooks import _named_modules
from neoscope.model.random_weights import published_config
from neoscope.model.shapes import LAYERS, POSITIONS, PUBLISHED_SHAPES, check_shape, gpt_neo_modules
from neoscope.spec import make_spec
from support.command import invoke
from support.fake_hub import serving

HEAVY = ("torch", "transformers", "datasets", "numba")
EACH = f"""
import json, sys
from neoscope.process import invoke
codes = [invoke(arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([codes, [name for name in {HEAVY} if name in sys.modules]]))
"""


def refusals(folder: Path, *cases: str, **environment: str) -> list[str]:
    """What is said of each `run` with these options, all of them in one process that stays light."""
    commands = [["run", str(folder / "place"), *case.split()] for case in cases]
    done = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**os.environ, **environment},
    )
    assert json.loads(done.stdout.splitlines()[-1])[1] == [], "imported to refuse"
    assert not list(folder.glob("place/*"))
    said = done.stderr.splitlines()
    assert len(said) == len(cases), done.stderr
    return said


def test_of_a_published_model_nothing_heavy_is_needed(tmp_path: Path) -> None:
    said = refusals(
        tmp_path,
        "--positions 4096",
        "--layers 0,12",
        "--hook transformer.h.*.mlp.c_fcc",
        "--hook transformer.h.*.attn.attention --layers 7,99",
        "--weights random --model gpt-neo-1.3B --layers 24",
        "--device cuda",
        CUDA_VISIBLE_DEVICES="",
    )
    words = [
        "--positions 4096 is longer than the model's 2048 positions",
        "transformer.h.*.mlp.c_fc has no layer 12; it has 0 to 11",
        "no module is called transformer.h.*.mlp.c_fcc; near are transformer.h.*.mlp.c_fc",
        "transformer.h.*.attn.attention has no layer 99",
        "transformer.h.*.mlp.c_fc has no layer 24; it has 0 to 23",
        "--device cuda: torch finds no GPU here",
    ]
    for line, word in zip(said, words, strict=True):
        assert word in line


def test_of_a_folder_its_config_json_is_enough(tmp_path: Path, small_model: Path) -> None:
    llama = tmp_path / "llama"
    llama.mkdir()
    shape = {"num_hidden_layers": 2, "max_position_embeddings": 32}
    (llama / "config.json").write_text(json.dumps({"model_type": "llama", **shape}))
    said = refusals(
        tmp_path,
        f"--model {small_model} --dataset sample --positions 65",
        f"--model {small_model} --dataset sample --positions 64 --layers 3",
        f"--model {small_model} --dataset sample --positions 64 --hook transformer.h.*.mlp.up",
        "--model llama --dataset sample --positions 33",
        "--model llama --dataset sample --positions 32 --layers 0-2",
    )
    words = ["the model's 64 positions", "has no layer 3", "no module is called"]
    words += ["the model's 32 positions", "model.layers.*.mlp.down_proj has no layer 2"]
    for line, word in zip(said, words, strict=True):
        assert word in line


def test_one_file_for_two_partitions(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "a few words"}\n')
    said = refusals(
        tmp_path,
        "--text a.jsonl --partitions 2",
        "--text a.jsonl --text b.jsonl --partitions 3",
        "--dataset sample --partitions 2",
    )
    assert "a.jsonl is one file; for 2 partitions split it and give 2 or more --text" in said[0]
    assert "the text is 2 files; for 3 partitions split it and give 3 or more" in said[1]
    assert "the sample is one file; for 2 partitions" in said[2]


def test_of_a_model_on_the_hub_one_small_file_is_enough(tmp_path: Path, small_model: Path) -> None:
    shutil.copytree(small_model, tmp_path / "hub" / "models" / "acme" / "tiny")
    with serving(tmp_path / "hub") as hub:
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        settings |= {"NO_PROXY": "127.0.0.1,localhost", "HF_HUB_DISABLE_TELEMETRY": "1"}
        said = refusals(
            tmp_path,
            "--model acme/tiny --dataset sample --positions 65",
            "--model EleutherAI/gpt-neo-125 --dataset sample",
            "--model eleutherai/gpt-neo-1.3 --dataset sample",
            "--model acme/absent --dataset sample",
            **settings,
        )
        assert hub.sent("models/acme/tiny", "model.safetensors") == 0
    assert "--positions 65 is longer than the model's 64 positions" in said[0]
    assert "is not on the Hub" in said[1]
    assert said[1].endswith("; did you mean EleutherAI/gpt-neo-125m?")
    assert said[2].endswith("; did you mean EleutherAI/gpt-neo-1.3B?")
    assert "is not on the Hub" in said[3]
    assert "did you mean" not in said[3]


def test_a_name_is_asked_for_where_no_hub_can_be_asked(tmp_path: Path) -> None:
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    (said,) = refusals(tmp_path, "--model gpt-neo-127m --dataset sample", **settings)
    assert "HF_HUB_OFFLINE is set" in said
    assert said.endswith("; did you mean gpt-neo-125m?")


def test_a_folder_of_nearly_that_name_is_what_was_meant(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_model, tmp_path / "gpt-neo-125")
    monkeypatch.chdir(tmp_path)
    size = ["--sequences", 4, "--positions", 16]
    done = invoke("run", "place", "--model", "gpt-neo-125", "--dataset", "sample", *size)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    "content",
    [
        "{ this is not JSON",
        "[]",
        '{"model_type": ["gpt_neo"]}',
        '{"model_type": "gpt_neo", "max_position_embeddings": "many", "num_layers": null}',
        '{"model_type": "t5", "max_position_embeddings": 8, "num_layers": 1}',
    ],
)
def test_what_a_configuration_does_not_tell_its_loading_does(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    check_shape(make_spec(model=str(tmp_path), dataset="sample", layers="0,5"))


# What is known beforehand is what transformers says


def test_the_modules_of_a_gpt_neo_are_transformers_own(small_model: Path) -> None:
    model = transformers.AutoModel.from_pretrained(small_model)
    assert sorted(gpt_neo_modules(3)) == sorted(_named_modules(model))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_names_in_a_configuration_are_transformers_own(model_type: str) -> None:
    names: dict[str, str] = transformers.AutoConfig.for_model(model_type).attribute_map
    for own, name in ((LAYERS, "num_hidden_layers"), (POSITIONS, "max_position_embeddings")):
        assert own.get(model_type, name) == names.get(name, name)


@pytest.mark.parametrize("name", PUBLISHED_SHAPES)
def test_a_published_shape_is_what_is_built(name: str) -> None:
    config = published_config(name)
    found: dict[str, Any] = {key: getattr(config, key) for key in PUBLISHED_SHAPES[name]}
    assert found == PUBLISHED_SHAPES[name]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_torch_finds_is_not_refused(small_run: list[str], tmp_path: Path) -> None:
    assert invoke("run", tmp_path / "run", *small_run, "--device", "cuda").code == 0
