import shutil

import pytest

from fmi_jax.data.raw.shenzhen import LISTS, SHENZHEN
from fmi_jax.data.raw.spec import SPLITS
from fmi_jax.data.raw.splits import assign
from fmi_jax.errors import UsageError, UserError
from fmi_jax.tasks.registry import suitable


@pytest.fixture
def raw(tmp_path):
    SHENZHEN.draw(tmp_path / "shenzhen")
    return tmp_path / "shenzhen"


@pytest.fixture
def images(raw):
    return raw / "ChinaSet_AllFiles" / "CXR_png"


def write_lists(raw, images):
    """As the benchmark has them: `name,label`, in an order of their own."""
    names = sorted(path.name for path in images.glob("*.png"))[::-1]
    lists = {name: names[k::3] for k, name in enumerate(SPLITS)}
    for split, members in lists.items():
        (raw / LISTS[split]).write_text("".join(f"{name},{name[-5]}\n" for name in members))
    return {split: sorted(members) for split, members in lists.items()}


def test_the_class_is_the_last_digit_of_the_name_and_other_files_do_not_count(raw, images):
    read = SHENZHEN.read(raw)
    assert (suitable(read.label, read.classes).name, read.classes) == (
        "binary",
        ("Normal", "Tuberculosis"),
    )
    assert {example.id: example.label for example in read.examples} == {
        path.name: int(path.stem[-1]) for path in images.glob("*.png")
    }
    assert (images / "Thumbs.db").exists()


def test_the_folder_of_the_archive_is_as_good_as_the_one_around_it(raw):
    assert SHENZHEN.read(raw / "ChinaSet_AllFiles").examples == SHENZHEN.read(raw).examples


def test_the_split_is_the_benchmark_s_where_its_lists_are_there(raw, images):
    assert assign(SHENZHEN, "", SHENZHEN.read(raw).examples)[0] == "stratified"
    lists = write_lists(raw, images)
    examples = SHENZHEN.read(raw).examples
    name, rows = assign(SHENZHEN, "", examples)
    assert name == "official"
    assert {name: [examples[i].id for i in rows[name]] for name in SPLITS} == lists


def test_a_row_that_no_list_names_and_a_listed_one_that_is_not_there(raw, images):
    lists = write_lists(raw, images)
    text = (raw / LISTS["val"]).read_text().splitlines(keepends=True)
    (raw / LISTS["val"]).write_text("".join(text[1:]))
    with pytest.raises(UsageError, match=rf"1 have something else: '{text[0].split(',')[0]}'"):
        assign(SHENZHEN, "", SHENZHEN.read(raw).examples)
    (images / lists["test"][0]).unlink()
    with pytest.raises(UserError, match=rf"_test_data\.txt line \d+ \('{lists['test'][0]}'\)"):
        SHENZHEN.read(raw)


def test_names_that_cannot_be_are_listed(raw, images):
    (images / "CHNCXR_0001_0.png").rename(images / "CHNCXR_0001_2.png")
    (images / "CHNCXR_0002_0.png").rename(images / "copy.png")
    match = r"not named CHNCXR_.* \(2\): CHNCXR_0001_2\.png; copy\.png"
    with pytest.raises(UserError, match=match):
        SHENZHEN.read(raw)


def test_a_folder_without_images_says_what_was_expected(raw, images, tmp_path):
    with pytest.raises(UserError, match=r"has no folder CXR_png; expected a folder with China"):
        SHENZHEN.read(tmp_path)
    shutil.rmtree(images)
    images.mkdir()
    with pytest.raises(UserError, match=r"holds no image; expected CHNCXR_0001_0\.png"):
        SHENZHEN.read(raw)
