"""The table of methods: unknown names, switched-off terms, and which teachers are read."""

import subprocess
import sys

import pytest

from dtkd_edge.distill.methods import METHODS, needed_teachers, require_teachers, resolve, term_weights
from dtkd_edge.errors import RecipeError
from dtkd_edge.recipe import DistillConfig

NAMES = "ce kd-vit kd-cnn kd-mean ebkd ca-mkd dkd dist rkd ofa fitnet-vit fitnet-cnn kd-mean+fitnet-cnn dtkd"


def test_the_names_are_those_of_the_comparison():
    assert list(METHODS) == NAMES.split()


def test_every_weight_and_reference_is_a_field_of_the_config():
    for method in METHODS.values():
        assert {key for key in method.terms.values() if key} | set(method.reference) <= set(DistillConfig.model_fields)


def test_an_unknown_method_is_named_with_all_that_exist():
    with pytest.raises(RecipeError) as caught:
        term_weights(DistillConfig(method="dkdt"))
    assert "distill.method: dkdt" in caught.value.message
    assert all(name in caught.value.hint for name in NAMES.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"method": "ce"}, set()),
        ({"method": "kd-vit"}, {"vit"}),
        ({"method": "kd-cnn"}, {"cnn"}),
        ({"method": "fitnet-cnn"}, {"cnn"}),
        ({"method": "rkd"}, {"vit"}),
        ({"method": "rkd", "relation": {"source": "cnn"}}, {"cnn"}),
        ({"method": "ofa", "rivals": {"target": "vit"}}, {"vit"}),
        ({"method": "dist"}, {"cnn", "vit"}),
        ({"method": "kd-mean", "kd": 0}, set()),
        ({"method": "dtkd"}, {"cnn", "vit"}),
        ({"method": "dtkd", "kd": 0, "rkd": 0, "branch": {"target": "cnn"}}, {"cnn"}),
        ({"method": "dtkd", "kd": 0, "sdd": 0, "align": 0}, {"vit"}),
        ({"method": "dtkd", "kd": 0, "align": 0, "rkd": 0, "branch": {"target": "shuffled"}}, {"cnn", "vit"}),
    ],
)
def test_only_the_teachers_that_are_read_are_needed(options, expected):
    assert needed_teachers(DistillConfig.model_validate(options)) == expected


def test_a_missing_teacher_is_named_before_anything_is_trained():
    require_teachers(DistillConfig(method="ce"), [])
    require_teachers(DistillConfig(method="kd-vit"), ["vit"])
    with pytest.raises(RecipeError, match=r"dtkd needs teachers\.cnn and teachers\.vit"):
        require_teachers(DistillConfig(), [])


def test_a_weight_of_zero_switches_its_term_off_and_some_term_must_stay():
    assert set(term_weights(DistillConfig(sdd=0, rkd=0))) == {"ce", "kd", "align"}
    assert term_weights(DistillConfig(method="ce", ce=0.3)) == {"ce": 1.0}
    with pytest.raises(RecipeError, match=r"every weight is 0.*distill\.ce, distill\.kd"):
        term_weights(DistillConfig(method="dist", ce=0, kd=0))


def test_reference_weights_replace_the_recipe_only_when_asked():
    recipe = {"method": "kd-mean", "ce": 0.3, "kd": 0.7, "temperature": 2.0}
    assert term_weights(DistillConfig(**recipe)) == {"ce": 0.3, "kd": 0.7}
    asked = DistillConfig(**recipe, reference_weights=True)
    assert term_weights(asked) == {"ce": 0.1, "kd": 0.9} and resolve(asked).temperature == 4.0
    relations = resolve(DistillConfig(method="rkd", reference_weights=True))
    assert relations.kd * relations.relation.distance == 25 and relations.kd * relations.relation.angle == 50
    assert relations.warmup == 0
    assert resolve(DistillConfig(reference_weights=True)) == DistillConfig(reference_weights=True)  # dtkd has no other


def test_the_table_needs_no_torch():
    code = "import sys, dtkd_edge.distill.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
