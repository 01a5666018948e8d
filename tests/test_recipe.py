from __future__ import annotations

import fnmatch
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dtkd_edge import recipe_page, recipe_reader
from dtkd_edge.errors import RecipeError

SMALL = {"name": "small", "student": {"model": "tsm_tiny"}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.mark.parametrize("name", recipe_reader.shipped())
def test_every_shipped_recipe_parses_and_comes_back(name: str, tmp_path: Path) -> None:
    loaded = recipe_reader.load(name)
    again = tmp_path / "again.yaml"
    again.write_text(loaded.to_yaml(), encoding="utf-8")
    assert recipe_reader.load(again) == loaded
    assert recipe_reader.load(name, ["seed=7"]).seed == 7


@pytest.mark.parametrize("name", recipe_reader.shipped())
def test_every_shipped_recipe_names_models_that_exist(name: str) -> None:
    models = pytest.importorskip("dtkd_edge.models", reason="needs torch")
    loaded = recipe_reader.load(name)
    teachers = [t for t in (loaded.teachers.cnn, loaded.teachers.vit) if t]
    for model in [loaded.student, *teachers]:
        assert any(fnmatch.fnmatchcase(model.model, known) for known in models.list_models())  # a family is 'tsm_*'


SLOWFAST = ["student.model=slowfast_r50_4x16", "teachers.cnn.model=slowfast_r50_8x8"]  # as the recipes' comments say
LIGHTEST = ["student.model=tsm_mobilenetv2_100", "student.stride=8"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [*((name, []) for name in recipe_reader.shipped()), ("hmdb51", SLOWFAST), ("epic100", SLOWFAST), ("hmdb51", LIGHTEST)],
)
def test_every_shipped_recipe_builds(name: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phases = pytest.importorskip("dtkd_edge.train.phases", reason="needs torch")
    assert all(override in recipe_reader.text_of(name) for override in more)
    loaded = recipe_reader.load(name, more)
    published = []
    for model in (loaded.student, loaded.teachers.cnn, loaded.teachers.vit):
        if model is not None and model.weights != "none":  # where they lie needs a network; that they are known does not
            published.append((model.model, model.weights))
    monkeypatch.setattr(phases, "load_weights", lambda model, source: None)
    assert phases.check_models(loaded, tmp_path) == [], "every model in a role that it is listed for"
    for model_name, weights in published:
        assert weights in phases.create_model(model_name, 2).sources()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sead", "1", "unknown key sead"),
        ("data.clip", "100", "unknown key data.clip"),
        ("train.lr.x", "1", "train.lr"),
        ("seed", "-1", "seed: Input should be greater than or equal to 0 (given: -1)"),
        ("seed", "one", "seed: Input should be a valid integer"),
        ("train.lr", "0", "train.lr: Input should be greater than 0"),
        ("train.lr", ".nan", "train.lr"),
        ("distill.kd", ".inf", "distill.kd: Input should be a finite number"),
        ("train.optimizer", "adam", "train.optimizer: Input should be 'adamw' or 'sgd' (given: 'adam')"),
        ("augment.scale", "[0.9, 0.2]", "augment: scale: expected 0.05 <= low <= high <= 1"),
        ("augment.flip", "maybe", "augment.flip: Input should be a valid boolean"),
        ("name", "../evil", "name: names a folder: leave out /, "),
        ("name", "a\\b", "name: names a folder: leave out /, "),
        ("name", '"a\\nb"', "name: names a folder: leave out /, "),
        ("name", '"\\ud800"', "name: names a folder: leave out /, "),
        ("name", ".hidden", "name: names a folder: it begins with no dot"),
        ("name", "-h", "name: names a folder: it begins with no dot"),
        ("name", "'a '", "name: names a folder: it begins with no dot, dash or space, and ends with no space"),
        ("name", "é" * 101, "name: names a folder: it is too long"),
        ("name", "", "name: Input should be a valid string"),
        ("student", "tsm_tiny", "student: Input should be a valid dictionary"),
        ("data.sampling", "every", "data.sampling: Input should be 'uniform' or 'dense'"),
        ("train.epochs", "1.5", "train.epochs: Input should be a valid integer"),
        ("teachers.cnn.train.epochs", "0", "teachers.cnn.train.epochs"),
    ],
)
def test_a_wrong_value_is_named(path: Path, key: str, value: str, said: str) -> None:
    base = ["teachers.cnn.model=tsm_tiny"] if key.startswith("teachers") else []
    with pytest.raises(RecipeError) as caught:
        recipe_reader.load(path, [*base, f"{key}={value}"])
    assert said in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["my gestures", "Gebärden 2", "手势", "a.b_c-d"])
def test_a_name_may_be_words_of_any_language(path: Path, name: str) -> None:
    loaded = recipe_reader.load(path, [f"name={name}"])
    assert loaded.name == name
    path.write_text(loaded.to_yaml(), encoding="utf-8")
    assert recipe_reader.load(path) == loaded


def test_values_that_exclude_each_other_are_said_once(path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_reader.load(path, ["teachers.views=2", "augment.mixup=0.2"])
    told = "augment.mixup and augment.cutmix make new pictures in every step: leave teachers.views out"
    assert caught.value.message == f"{path}: {told}"


@pytest.mark.parametrize(
    ("text", "said", "meant"),
    [
        ("name: a\nstudnet: {model: x}\n", "unknown key studnet", "did you mean student? known keys there: augment,"),
        ("name: a\nstudent: {modle: x}\n", "unknown key student.modle", "did you mean student.model? known keys"),
        ("name: a\nstudent: {model: x}\ntrain: {epoch: 3, lr: no}\n", "unknown key train.epoch", "did you mean train.epochs? "),
        ("name: a\nstudent: {model: x}\nzzz: 1\n", "unknown key zzz", "known keys there: augment,"),
    ],
)
def test_a_mistyped_key_is_named_before_what_it_leaves_out(path: Path, text: str, said: str, meant: str) -> None:
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        recipe_reader.load(path)
    assert caught.value.message.endswith(said) and caught.value.hint.startswith(meant)


def test_an_unknown_key_lists_the_known_ones(path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_reader.load(path, ["data.frames=8"])
    assert "frame_size" in caught.value.hint
    with pytest.raises(RecipeError) as caught:
        recipe_reader.load(path, ["teachers.cnn.model=x", "teachers.cnn.trane.epochs=8"])
    assert caught.value.message.endswith("unknown key teachers.cnn.trane")
    assert "weights" in caught.value.hint


def test_set_reads_yaml_values_and_goes_deep(path: Path) -> None:
    loaded = recipe_reader.load(
        path,
        [
            "train.lr=1e-3",
            "data.root=/data/set",
            "augment.scale=[0.5, 1]",
            "student.options={width: 2}",
            "teachers.cnn.model=tsm_tiny",
        ],
    )
    assert loaded.train.lr == 1e-3
    assert loaded.data.root == Path("/data/set")
    assert loaded.augment.scale == (0.5, 1.0)
    assert loaded.student.options == {"width": 2}
    assert loaded.teachers.cnn is not None
    assert loaded.teachers.cnn.model == "tsm_tiny"
    assert recipe_reader.load(path, ["data.root=null"]).data.root is None
    assert recipe_reader.load(path, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    "override", ["seed", "=1", "seed.a=1", "seed=[", "seed={1: ", "seed=2024-13-45", "seed=0x_", "", "=", "a..b=1"]
)
def test_a_malformed_override_is_named(path: Path, override: str) -> None:
    with pytest.raises(RecipeError):
        recipe_reader.load(path, ["seed=0", override])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected keys and values"),
        ("- a\n- b\n", "expected keys and values"),
        ("name: [", "not YAML"),
        ("name: a\n\tstudent: b\n", "not YAML"),
        ("name: 2024-13-45", "not YAML"),
        ("a: !!python/object/apply:os.system ['true']", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("&a {name: *a}", "recipe"),
        ("student: {model: x}", "name: Field required"),
        ("1: 2", "recipe"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said) as caught:
        recipe_reader.load(path)
    assert str(path) in caught.value.message


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe file"):
        recipe_reader.load(tmp_path / "nowhere.yaml")
    with pytest.raises(RecipeError, match="no recipe of that name"):
        recipe_reader.load("nowhere")
    with pytest.raises(RecipeError, match=r"fodler: no recipe of that name \(did you mean folder\? shipped recipes: "):
        recipe_reader.load("fodler")
    (tmp_path / "video.yaml").write_bytes(b"\x00\xff\xfe")
    with pytest.raises(RecipeError, match="not readable"):
        recipe_reader.load(tmp_path / "video.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(RecipeError, match="no such recipe file"):
        recipe_reader.load(tmp_path / "folder.yaml")


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@,. \n\t0123456789x_eé\x00", max_size=60))
def test_any_text_is_read_or_refused_clearly(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text(text, encoding="utf-8")
        try:
            recipe_reader.load(path)
        except RecipeError as error:
            assert "\n" not in error.message


@given(key=st.text(min_size=1, max_size=12), value=st.text(max_size=20))
def test_any_override_is_applied_or_refused_clearly(key: str, value: str) -> None:
    raw = {"name": "small", "student": {"model": "tsm_tiny"}}
    try:
        recipe_reader.set_value(raw, f"{key}={value}")
        recipe_reader.parse(raw)
    except RecipeError:
        pass


def test_another_model_does_not_inherit_the_options_of_the_recipes_own() -> None:
    own = recipe_reader.load("folder")
    assert own.student.options and own.teachers.cnn is not None and own.teachers.cnn.options
    silent = recipe_reader.load("folder", [f"student.model={own.student.model}"], tell=pytest.fail)
    assert silent == own
    told: list[str] = []
    other = recipe_reader.load("folder", ["student.model=x3d_s", "student.options.dropout=0.2"], tell=told.append)
    assert len(told) == 1 and "student.options of tsm_mobilenetv2_035" in told[0] and "mean: 0.5" in told[0]
    assert other.student.options == {"dropout": 0.2} and other.teachers == own.teachers
    teacher = recipe_reader.load("folder", ["teachers.cnn.model=x3d_m"]).teachers.cnn
    assert teacher is not None and teacher.options == {} and teacher.train == own.teachers.cnn.train


def test_preprocess_follows_the_recipe(path: Path) -> None:
    loaded = recipe_reader.load(path, ["data.eval_crop=0.875", "data.sampling=dense"])
    wanted = loaded.preprocess(frames=16, size=112, stride=4)
    assert (wanted.resize_short, wanted.crop) == (128, 112)
    assert (wanted.sampling.kind, wanted.sampling.frames, wanted.sampling.stride) == ("dense", 16, 4)


PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"


def test_the_page_in_docs_names_every_key() -> None:
    page = recipe_page.to_markdown()
    assert PAGE.read_text(encoding="utf-8") == page, "run: dtkd-edge recipes --markdown > docs/recipes.md"
    assert "| `lr` | number > 0, ≤ 100 | 0.002 |" in page and "| `optimizer` | adamw or sgd | adamw |" in page
    assert "## teachers.cnn.train, teachers.vit.train, train\n" in page

    def keys(section: dict[str, object]) -> set[str]:
        inner = [keys(value) for value in section.values() if isinstance(value, dict)]
        return set(section).union(*inner)

    known = keys(recipe_reader.load("folder").model_dump()) - set(recipe_reader.load("folder").student.options)
    own = set(recipe_reader.load("folder").teachers.cnn.options)  # type: ignore[union-attr]
    opened = {part for path, _ in recipe_page.sections() for place in path.split(", ") for part in place.split(".")}
    assert all(f"| `{key}` |" in page for key in known - own - opened)


def test_a_recipe_can_be_taken_from_the_command_line_and_changed(
    dtkd_edge: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = dtkd_edge("recipes", "folder")
    assert done.returncode == 0 and done.stdout.startswith("# Your own clips")
    (tmp_path / "mine.yaml").write_text(done.stdout, encoding="utf-8")
    assert recipe_reader.load(tmp_path / "mine.yaml") == recipe_reader.load("folder")
    table = dtkd_edge("recipes").stdout
    assert all(name in table for name in recipe_reader.shipped())
    wrong = dtkd_edge("recipes", "foldr")
    assert wrong.returncode == 3 and "no recipe of that name" in wrong.stderr and "folder" in wrong.stderr
