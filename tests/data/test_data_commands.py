import argparse
import threading

import pytest
from PIL import Image
from raw_sets import write_aptos, write_csv, write_image

from fmi_jax import cli
from fmi_jax.data.prepared import open_dataset
from fmi_jax.data.preparing import commands
from fmi_jax.data.raw.drawn.folder import MARKER, draw_once
from fmi_jax.errors import UsageError, UserError


def prepare(*arguments):
    parser = argparse.ArgumentParser()
    commands.add_prepare_arguments(parser)
    commands.run_prepare(parser.parse_args(list(map(str, arguments))))


def draw(*arguments):
    parser = argparse.ArgumentParser()
    commands.add_draw_arguments(parser)
    commands.run_draw(parser.parse_args(list(map(str, arguments))))


def check(*arguments):
    parser = argparse.ArgumentParser()
    commands.add_check_arguments(parser)
    commands.run_check(parser.parse_args(list(map(str, arguments))))


def test_prepare_prints_what_is_in_the_set(tmp_path, capsys):
    raw = write_aptos(tmp_path / "raw")
    prepare("aptos2019", "--source", raw, "--data-dir", tmp_path / "data", "--size", 13)
    lines = capsys.readouterr().out.splitlines()
    assert "aptos2019, multiclass, 13 x 13, 3 channel(s), split upstream" in lines[0]
    counts = {line[:18].strip(): line[18:].split() for line in lines[2:]}
    assert counts["images"] == ["22", "4", "5"]
    assert sum(map(int, counts["Mild"])) == 6


def test_drawn_data_are_prepared_at_several_sizes_each_with_a_card(tmp_path, capsys):
    raw, data = str(tmp_path / "raw"), str(tmp_path / "data")
    assert cli.main(["draw", "shenzhen", raw]) == 0
    assert f"fmi-jax prepare shenzhen --source {raw}" in capsys.readouterr().out
    arguments = ["prepare", "shenzhen", "--source", raw, "--data-dir", data]
    arguments += ["--size", "13", "17", "--limit", "4", "--processes", "1"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "smoke run, only the first 4 rows of every split" in out
    cards = sorted((tmp_path / "data").rglob("card.html"))
    assert [card.parent.name.partition("-")[0] for card in cards] == ["13", "17"]
    assert all(str(card) in out for card in cards)
    written = [card.stat().st_mtime_ns for card in cards]
    assert cli.main(arguments) == 0
    assert [card.stat().st_mtime_ns for card in cards] == written


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"csv cannot be drawn.*expected one of aptos2019,"):
        draw("csv", tmp_path / "raw")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        draw("aptos2019", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_of_two_that_draw_at_once_one_draws_and_the_other_waits(tmp_path):
    folder, drawn = tmp_path / "raw", []

    def write(place, count, seed):
        (place / "first").touch()
        drawn.append(threading.Thread(target=draw_it, args=(folder,)))
        drawn[-1].start()
        drawn[-1].join(0.5)
        assert drawn[-1].is_alive()
        (place / "second").touch()

    draw_it = draw_once("drawn", count=1)(write)
    (tmp_path / "raw.partial").mkdir()
    (tmp_path / "raw.partial" / "half").touch()  # by a process that was killed
    draw_it(folder)
    for thread in drawn:
        thread.join()
    assert len(drawn) == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted(["first", MARKER, "second"])
    assert list(tmp_path.iterdir()) == [folder]


def test_own_table_with_every_option(tmp_path, capsys):
    rows = [f"{i}.png,{i % 2},{i % 3 // 2},{i // 2}" for i in range(24)]
    table = write_csv(tmp_path / "images", "path,mass,calc,group", rows).rename(tmp_path / "t.csv")
    prepare(
        *("csv", "--name", "mine", "--source", table, "--image-root", tmp_path / "images"),
        *("--label-columns", "calc,mass", "--channels", 1, "--metric", "mAP"),
        *("--data-dir", tmp_path / "data", "--size", 13),
    )
    info = open_dataset(tmp_path / "data", "mine", 13).info
    assert (info.classes, info.task, info.metric) == (("calc", "mass"), "multilabel", "mAP")
    assert (info.channels, info.split) == (1, "grouped")


def test_own_folders_with_classes_in_order(tmp_path, capsys):
    for i in range(20):
        write_image(tmp_path / "raw" / ("healthy", "sick")[i % 2] / f"{i}.png", seed=i % 18)
    arguments = ("folder", "--name", "mine", "--source", tmp_path / "raw", "--size", 13)
    prepare(*arguments, "--classes", "sick,healthy", "--data-dir", tmp_path / "data")
    assert open_dataset(tmp_path / "data", "mine", 13).info.classes == ("sick", "healthy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("aptos2018",), "unknown data set 'aptos2018'. Did you mean 'aptos2019'"),
        (("rsna_pe",), "'rsna_pe' cannot be had: .* never released .* fmi-jax prepare csv --name"),
        (("aptos2019",), "aptos2019 needs --source: a folder with train.csv"),
        (("aptos2019", "--channels", "1"), "--channels cannot be used with aptos2019"),
        (("folder", "--image-root", "x"), "--image-root cannot be used with folder"),
        (("csv", "--source", "x"), "csv needs --name"),
        (("csv", "--source", "x", "--name", "aptos2019"), "csv needs --name"),
        (("csv", "--source", "x", "--name", "My Data"), "'My Data' cannot be the name"),
    ],
)
def test_wrong_usage_says_what_was_expected(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        prepare(*arguments)
    assert not list(tmp_path.iterdir())


def test_check_finds_everything_at_once_and_writes_nothing(tmp_path, capsys):
    raw = write_aptos(tmp_path / "raw")
    check("aptos2019", "--source", raw)
    assert "31 rows, multiclass: No DR" in (out := capsys.readouterr().out)
    assert out.endswith("No problems found.\n")

    (raw / "train_images" / "eye004.png").write_text("text")
    (raw / "train_images" / "eye007.png").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"(?s)not an image .*\(1\): row 6 .* missing \(1\): row 9"):
        check("aptos2019", "--source", raw)
    assert sorted(tmp_path.rglob("*")) == before


def test_check_reports_a_table_that_cannot_be_read(tmp_path):
    raw = write_aptos(tmp_path / "raw", count=5)
    (raw / "train.csv").write_text("id_code,diagnosis\neye000,9\n")
    with pytest.raises(UserError, match=r"outside the classes, .*row 2 \('eye000'\): '9'"):
        check("aptos2019", "--source", raw)
    (raw / "train.csv").write_text("id_code,diagnosis\n../eye000,1\n")
    with pytest.raises(UserError, match=r"has '\.\.'"):
        check("aptos2019", "--source", raw)
    with pytest.raises(UserError, match="does not exist; expected a folder with"):
        check("aptos2019", "--source", tmp_path / "gone")
    with pytest.raises(UsageError, match="needs --source"):
        check("aptos2019")


def test_check_of_ones_own_data_needs_no_name(tmp_path, capsys):
    table = write_csv(tmp_path / "raw", "path,label", [f"eye{i}.png,{i % 2}" for i in range(3)])
    check("csv", "--source", table, "--channels", "1")
    assert capsys.readouterr().out.endswith("No problems found.\n")


def test_check_finds_a_picture_with_two_labels_and_a_group_in_two_splits(tmp_path, capsys):
    parts = ("train", "val", "test")
    rows = [f"{i}.png,{'ab'[i % 2]},{parts[i % 3]},p{i}" for i in range(9)]
    table = write_csv(tmp_path, "path,label,split,group", [*rows, "9.png,b,test,p0"])
    check("csv", "--source", table)
    out = capsys.readouterr().out
    assert "No problems found" not in out
    assert "into more than one split (1): 'p0' in train and test" in out
    Image.open(tmp_path / "1.png").save(tmp_path / "4.bmp")  # other bytes, the same pixels
    table.write_text(table.read_text().replace("4.png", "4.bmp").replace("p0", "p"))
    check("csv", "--source", table)
    out = capsys.readouterr().out
    assert (
        "the same picture with different labels (1): row 3 ('1.png'): b and row 6 ('4.bmp'): a"
        in out
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("val", "valid"), r"needs train, val, test for every row; 3 have .*row 3 .*'valid'"),
        (("val", "train"), "leaves val without an image"),
    ],
)
def test_check_finds_a_wrong_split_column(tmp_path, change, message):
    parts = ("train", "val", "test")
    rows = [f"{i}.png,{'ab'[i % 2]},{parts[i % 3]}" for i in range(9)]
    table = write_csv(tmp_path, "path,label,split", rows)
    table.write_text(table.read_text().replace(*change))
    with pytest.raises(UserError, match=message):
        check("csv", "--source", table)


def test_check_names_images_in_no_official_list(tmp_path):
    draw("chestxray14", tmp_path / "raw")
    names = (tmp_path / "raw" / "test_list.txt").read_text().splitlines()
    (tmp_path / "raw" / "test_list.txt").write_text("\n".join(names[1:]) + "\n")
    with pytest.raises(UserError, match=f"1 are in none: row .*'{names[0]}'"):
        check("chestxray14", "--source", tmp_path / "raw")


def test_prepare_prints_how_each_class_was_divided(tmp_path, capsys):
    rows = [f"{i}.png,{'ab'[i % 4 == 0]},p{i}" for i in range(40)]
    table = write_csv(tmp_path, "path,label,group", rows)
    prepare(
        "csv", "--name", "mine", "--source", table, "--data-dir", tmp_path / "data", "--size", 7
    )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "share of images 70% 15% 15%" in lines
    assert "share of a 70% 13% 17%" in lines or "share of a 70% 17% 13%" in lines
    assert any(line.startswith("Note: Fewer than 10 images in test: a (") for line in lines)
