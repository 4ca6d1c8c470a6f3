import csv
import io

import pytest
from hypothesis import given, settings, strategies as st

from fmi_jax.data.labels import Label
from fmi_jax.data.raw import aptos2019, class_folders, csv_table
from fmi_jax.data.raw.table import read_table
from fmi_jax.errors import UserError
from fmi_jax.tasks.registry import suitable


@pytest.fixture
def table(tmp_path):
    def write(content):
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    "content",
    [
        "path,label\na.png,1\nb.png,0\n",
        "path,label\r\na.png,1\r\nb.png,0",
        "\ufeffpath,label\na.png,1\nb.png,0\n",
        "path , label\n\n a.png , 1\n\nb.png,0\n\n",
        '"path","label"\n"a.png","1"\n"b.png","0"\n',
    ],
)
def test_a_table_reads_the_same_however_it_was_saved(table, content):
    columns, rows = read_table(table(content), ("path", "label"))
    assert columns == ["path", "label"]
    assert [row.fields for row in rows] == [
        {"path": "a.png", "label": "1"},
        {"path": "b.png", "label": "0"},
    ]


def test_rows_know_their_line(table):
    _, rows = read_table(table('path,label\n\n"a\nb",1\nc,2\n'), ("path",))
    assert [row.line for row in rows] == [4, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; expected a header line with 'path', 'label'"),
        ("\n\n", "is empty"),
        ("path,label\n", "header but no rows"),
        ("path,lable\na,1\n", "no column 'label'; its columns are 'path', 'lable'"),
        ("path;label\na;1\n", "no column 'path', 'label'; its columns are 'path;label'"),
        ("path,label,label\na,1,1\n", "the column 'label' more than once"),
        ("path,label\na\nb,1,2\n", r"2 fields \(2\): row 2 has 1; row 3 has 3"),
        ('path,label\n"a,1\n', "not valid CSV"),
        ("path,label\n\xe9,1\n".encode("latin-1"), "not UTF-8 text .*byte 11 is 0xe9"),
        ("path,label\na,1\n".encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(table, content, message):
    with pytest.raises(UserError, match=message):
        read_table(table(content), ("path", "label"))


def test_a_missing_table_names_those_that_are_there(table, tmp_path):
    table("path,label\n")
    with pytest.raises(UserError, match=r"train\.csv is not a file.* holds table\.csv"):
        read_table(tmp_path / "train.csv", ("path",))
    with pytest.raises(UserError, match=r"folder .*gone does not exist"):
        read_table(tmp_path / "gone" / "train.csv", ("path",))


def test_a_table_that_may_not_be_read_is_named(table, monkeypatch):
    path = table("path,label\n")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(UserError, match=r"table\.csv cannot be read \(Permission denied\)"):
        read_table(path, ("path",))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("tables") / "table.csv"


_FIELD = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(_FIELD, _FIELD), min_size=1, max_size=6),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["utf-8", "utf-8-sig"]),
    st.sampled_from(["", "\r\n", "\n\n"]),
)
def test_any_text_survives(scratch, rows, quoting, encoding, end):
    text = io.StringIO(newline="")
    csv.writer(text, quoting=quoting).writerows([("path", "label"), *rows])
    scratch.write_bytes((text.getvalue() + end).encode(encoding))
    _, read = read_table(scratch, ("path", "label"))
    assert [tuple(row.fields.values()) for row in read] == [(a.strip(), b.strip()) for a, b in rows]


@settings(max_examples=200)
@given(
    st.one_of(
        st.binary(max_size=40),
        st.text(max_size=40).map(lambda text: text.encode(errors="surrogatepass")),
        st.text(',\n\r" a\0\ufeff', max_size=40).map(str.encode),
    )
)
def test_any_bytes_are_whole_rows_or_a_message(scratch, content):
    scratch.write_bytes(content)
    try:
        columns, rows = read_table(scratch, ())
    except UserError:
        return
    assert rows
    assert all(set(row.fields) == set(columns) for row in rows)
    lines = [row.line for row in rows]
    assert lines == sorted(set(lines))


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=60), st.text(',\n\r" |ab01.-é\0\ufeff').map(str.encode)))
def test_no_bytes_whatever_give_anything_but_rows_or_a_message(scratch, content):
    scratch.write_bytes(b"path,label\n" + content)
    try:
        raw = csv_table.read(scratch)
    except UserError:
        return
    assert raw.examples
    assert len(raw.classes) >= 2


def _labels(raw):
    return [example.label for example in raw.examples]


@pytest.mark.parametrize(
    ("labels", "classes", "expected", "names"),
    [
        (["cat", "ape", "cat"], (), [1, 0, 1], ("ape", "cat")),
        (["10", "9", "10"], (), [1, 0, 1], ("9", "10")),
        (["cat", "ape", "cat"], ("cat", "bee", "ape"), [0, 2, 0], ("cat", "bee", "ape")),
        (["0", "2", "0"], ("cat", "bee", "ape"), [0, 2, 0], ("cat", "bee", "ape")),
        (["2", "1", "2"], ("2", "1"), [0, 1, 0], ("2", "1")),
    ],
)
def test_labels_are_names_or_numbers(table, labels, classes, expected, names):
    rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels))
    raw = csv_table.read(table("path,label\n" + rows), classes=classes)
    assert (_labels(raw), raw.classes) == (expected, names)
    assert suitable(raw.label, raw.classes).name == ("binary" if len(names) == 2 else "multiclass")


def test_several_classes_of_one_image(table):
    raw = csv_table.read(table("path,label\na.png,x|z\nb.png,\nc.png, y \n"))
    assert suitable(raw.label, raw.classes).name == "multilabel"
    assert raw.classes == ("x", "y", "z")
    assert _labels(raw) == [(1.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)]


def test_one_column_per_class(table):
    path = table("path,x,y,other\na.png,1,0,7\nb.png,0,0.25,8\n")
    raw = csv_table.read(path, label_columns=("y", "x"))
    assert suitable(raw.label, raw.classes).name == "multilabel"
    assert raw.classes == ("y", "x")
    assert _labels(raw) == [(0.0, 1.0), (0.25, 0.0)]


def test_optional_columns(table, tmp_path):
    raw = csv_table.read(
        table("path,label,id,split,group\na/b.png,1,one,train,p1\nc.png,0,two,,\n")
    )
    first, second = raw.examples
    assert (first.id, first.path, first.split, first.group) == ("one", "a/b.png", "train", "p1")
    assert (second.split, second.group) == (None, None)
    assert raw.image_root == tmp_path
    assert csv_table.read(table("path,label\na.png,1\nb.png,0\n")).examples[0].id == "a.png"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a.png,0\nb.png,3\nc.png,-1\n", {"classes": ("x", "y")},
         r"0 to 1 or x, y \(2\): row 3 \('b.png'\): '3'; row 4"),
        ("a.png,x\nb.png,\nc.png,y\n", {}, r"outside the classes.* row 3 \('b.png'\): ''"),
        ("a.png,x\nb.png,w|q\n", {"classes": ("x", "y")}, "some of x, y .*'w'; .*'q'"),
        ("a.png,x\nb.png,nan\nc.png,y\n", {}, "the label 'nan' stands for a missing value"),
        ("a.png,caf\u00e9\nb.png,cafe\u0301\n", {}, r"look alike .*'cafe\\u0301', 'caf\\xe9'"),
        ("a.png,x\nb.png,x\n", {}, "two or more classes, found only 'x'"),
        ("a.png,2\nb.png,nan\n", {"label_columns": ("path", "label")}, "outside 0 to 1"),
        ("a.png,1\nb.png,0\n", {"label_columns": ("label", "mass")}, "no column 'mass'"),
        ("a.png,1\nb.png,0\n", {"classes": ("x", "x")}, "named twice"),
    ],
)  # fmt: skip
def test_labels_outside_the_classes_are_named(table, content, options, message):
    with pytest.raises(UserError, match=message):
        csv_table.read(table("path,label\n" + content), **options)


def test_of_many_faults_some_are_shown_and_all_are_counted(table):
    rows = "".join(f"{i}.png,{i}\n" for i in range(12))
    with pytest.raises(UserError, match=r"\(10\): row 4 .*row 8 \('6.png'\): '6'; and 5 more$"):
        csv_table.read(table("path,label\n" + rows), classes=("x", "y"))


def test_aptos2019_grades_are_0_to_4(tmp_path):
    (tmp_path / "train.csv").write_text("id_code,diagnosis\na,0\nb,5\nc,4\n")
    with pytest.raises(UserError, match=r"expected 0 to 4 or No DR, .*row 3 \('b'\): '5'"):
        aptos2019.read(tmp_path)
    (tmp_path / "train.csv").write_text("id_code,diagnosis\na,0\nc,4\n")
    raw = aptos2019.read(tmp_path)
    assert _labels(raw) == [0, 4]
    assert raw.examples[1].path == "c.png"
    assert raw.image_root == tmp_path / "train_images"


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_folders_are_classes(tmp_path):
    _touch(tmp_path, "10/a.png", "9/b.JPG", "9/deep/c.tif", "9/.hidden", ".git/x.png")
    raw = class_folders.read(tmp_path)
    assert raw.classes == ("9", "10")
    assert {e.id: e.label for e in raw.examples} == {"10/a.png": 1, "9/b.JPG": 0, "9/deep/c.tif": 0}


def test_folders_may_be_divided_into_splits(tmp_path):
    _touch(tmp_path, *(f"{split}/{c}/a.png" for split in ("train", "val", "test") for c in "xy"))
    raw = class_folders.read(tmp_path)
    assert raw.classes == ("x", "y")
    assert (raw.examples[0].id, raw.examples[0].split) == ("test/x/a.png", "test")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "two or more classes, found none"),
        (("x/a.png",), "found only 'x'"),
        (("x/a.png", "y/b.txt"), "not an image file .*y/b.txt.*\n.*Move them out"),
        (("x/a.png", "y/b.png", "c.png"), "beside the class folders .*c.png"),
        (("train/x/a.png", "test/y/b.png"), "has test, train but not all of"),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, names, message):
    _touch(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        class_folders.read(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        class_folders.read(tmp_path / "gone")


def test_folders_of_images_and_masks_are_twins_and_no_classes(tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    _touch(images, "a.jpg", "deep/b.png", "c.tif", "d_mask.png")
    _touch(masks, "a.png", "deep/b.gif", "d_mask.png", ".hidden")
    _touch(masks, *(f"c_mask{end}.png" for end in ("", "_1", "2")))
    raw = class_folders.read(tmp_path)
    assert (raw.classes, raw.label) == (("background", "foreground"), Label.MAP)
    assert {e.id.removeprefix("images/"): e.masks for e in raw.examples} == {
        "a.jpg": ("masks/a.png",),
        "c.tif": ("masks/c_mask.png", "masks/c_mask2.png", "masks/c_mask_1.png"),
        "d_mask.png": ("masks/d_mask.png",),
        "deep/b.png": ("masks/deep/b.gif",),
    }
    assert class_folders.read(tmp_path, classes=("none", "x", "y")).classes == ("none", "x", "y")
    _touch(tmp_path, "images/e.png", "masks/f.png", "masks/g.jpg")
    with pytest.raises(UserError) as refused:
        class_folders.read(tmp_path)
    for words in ("no mask of that name in masks/ (1): images/e.png", "masks/f.png", "masks/g.jpg"):
        assert words in str(refused.value)


def test_twin_folders_may_be_divided_into_splits(tmp_path):
    for split in ("train", "val", "test"):
        _touch(tmp_path, f"{split}/images/a.png", f"{split}/masks/a.png")
    raw = class_folders.read(tmp_path)
    assert [(e.id, e.split) for e in raw.examples] == [
        (f"{split}/images/a.png", split) for split in ("train", "val", "test")
    ]
