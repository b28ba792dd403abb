import re
from types import SimpleNamespace

import pytest

from brainq_torch.models import build_model
from brainq_torch.models.wiring import WiringError
from brainq_torch.run import load_run
from export.catalogue import CATALOGUE
from export.context import RecipeError
from export.recipes import RECIPES, check_network, default_recipes, float_model, resolve_recipes


def test_every_recipe_limits_every_file_it_makes():
    assert RECIPES.keys() == CATALOGUE.keys()
    for name, recipe in RECIPES.items():
        assert recipe.files == CATALOGUE[name].files
        assert set(CATALOGUE[name].needs) <= RECIPES.keys(), name
        assert all(file.endswith((".onnx", ".tflite")) for file in recipe.files), name
    files = [file for recipe in RECIPES.values() for file in recipe.files]
    assert len(files) == len(set(files))


def test_the_limits_are_the_designs():
    limits = {rung.artefact: rung.limits.to_json() for name in ("fp32", "fp16") for rung in RECIPES[name].rungs}
    assert limits == {
        "model_fp32.onnx": {"max_abs_diff": 1e-4},
        "model_fp32.tflite": {"max_abs_diff": 1e-4},
        "model_fp16.tflite": {"top1_agreement": 0.999},
    }


@pytest.mark.parametrize(
    ("asked", "made"),
    [(["fp16"], ["fp32", "fp16"]), (["fp16", "fp32"], ["fp32", "fp16"]), (["fp32", "fp32"], ["fp32"]), ([], [])],
)
def test_needed_recipes_come_first_and_once(asked, made):
    assert resolve_recipes(asked) == made


def test_an_unknown_recipe_names_those_allowed():
    with pytest.raises(RecipeError, match=r"unknown recipe fp8, int1; allowed are fp32, fp16"):
        resolve_recipes(["fp32", "int1", "fp8"])


def test_a_float_run_is_exported_as_fp32_fp16_and_int8(tiny_run):
    run = load_run(tiny_run)
    assert default_recipes(run) == ("fp32", "fp16", "int8")
    assert float_model(run) is run.model


def test_float_files_go_on_where_integers_cannot_carry_the_network(capsys):
    run = SimpleNamespace(model=build_model("tests.support.networks:Gated", 2), quantization=None)
    assert default_recipes(run) == ("fp32", "fp16")
    assert re.fullmatch(
        r"int8 is left out: integers cannot carry .*act \(SiLU\) exactly; .*\n", capsys.readouterr().err
    )
    for name in ("int8", "w4a8"):
        with pytest.raises(WiringError, match=r"--recipes fp32 fp16"):
            check_network(run, ["fp32", name])
    check_network(run, ["fp32", "fp16", "dynamic_int8"])
