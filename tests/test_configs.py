"""Every file in `configs/`: what it documents is valid, and, made small, it runs."""

import copy
import dataclasses
import functools
import importlib.util
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import jax
import pytest

from fmi_jax import entry, parallel
from fmi_jax.config import ExperimentConfig, from_dict
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.registry import DATASETS
from fmi_jax.errors import UsageError
from fmi_jax.fields import as_dict
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols.knn import KnnConfig
from fmi_jax.protocols.registry import (
    ADAPTS,
    FITS,
    HEADS,
    JUDGES,
    PROTOCOLS,
    check_read,
    protocol_of,
)
from fmi_jax.rules import validate
from fmi_jax.run import conclusion, experiment
from fmi_jax.run.assembly import assemble
from fmi_jax.settings import BaseConfig, DataConfig, TrainConfig, section
from fmi_jax.study.grids import recipe
from fmi_jax.study.registry import STUDIES
from fmi_jax.tasks.registry import TASKS

ROOT = Path(__file__).parent.parent
CONFIGS = {path.stem: path for path in sorted((ROOT / "configs").glob("*.py"))}
DOCUMENTS = (*CONFIGS.values(), ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FIGURES_AND_TABLES = {
    *("table1", "table2", "table3", "tableb"),
    *("fig2", "fig3", "fig4", "fig5", "fig6", "fig7", "fig8", "figa1"),
}

_COMMAND = re.compile(r"python run\.py (--config=configs/[^`\n]*)")
_OVERRIDE = re.compile(r"""(?:--config\.[\w.]+=(?:"[^"]*"|[^\s"`,;)]+)\s*)+""")
_SIDE = 16


def commands(text: str) -> list[list[str]]:
    """The arguments of every documented `python run.py`."""
    return [shlex.split(found) for found in _COMMAND.findall(text)]


COMMANDS = {
    " ".join(arguments): (arguments, path)
    for path in DOCUMENTS
    for arguments in commands(path.read_text())
}


def load(arguments: list[str]) -> tuple[ExperimentConfig, str]:
    """The config and the workdir of a command, through the program's own flags."""
    workdir = [] if any("--workdir" in part for part in arguments) else ["--workdir=x"]
    with mock.patch.object(experiment, "run") as run:
        entry.run_main(["run.py", *arguments, *workdir], None)
    config, folder = run.call_args.args
    return config, str(folder)


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, CONFIGS[name])
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def check_names(config: ExperimentConfig, text: str) -> None:
    """Whatever `config` names exists; a data set of one's own is made in `text`."""
    validate(config)

    def check_weights(backbone: str, weights: str) -> None:
        tags = [source.tag for source in BACKBONES[backbone].sources]
        assert weights in ("", *tags) or weights.endswith(".safetensors")

    check_weights(config.backbone.name, config.backbone.weights)
    check_weights(config.transformer.name, config.transformer.weights)
    for name in config.cka.other:
        if name != "pretrained" and "/" not in name:
            check_weights(name.partition(":")[0], name.partition(":")[2])
    for name in config.timing.backbones:
        assert name in BACKBONES
    if config.data.name not in DATASETS:
        assert f"--name {config.data.name} " in text
    else:
        assert config.data.split in DATASETS[config.data.name].splits
    assert config.metric in ("", *(name for task in TASKS.values() for name in task.metrics))


@functools.cache
def _assemble(values: str, channels: int) -> None:
    assemble(from_dict(json.loads(values)), channels, num_classes=5)


def check(config: ExperimentConfig, text: str) -> None:
    """The names, and that the classifier can be put together, in the abstract."""
    check_names(config, text)
    bare = dataclasses.replace(
        config,
        metric="",
        data=DataConfig(),
        train=TrainConfig(),
        backbone=dataclasses.replace(config.backbone, weights=""),
        transformer=dataclasses.replace(config.transformer, weights=""),
    )
    own = config.data.name not in DATASETS
    channels = 1 if own else DATASETS[config.data.name].channels
    _assemble(json.dumps(as_dict(bare)), channels)


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_every_table_and_figure_has_a_file() -> None:
    assert CONFIGS.keys() >= FIGURES_AND_TABLES
    for name, path in CONFIGS.items():
        assert f"configs/{name}.py" in " ".join(map(" ".join, commands(path.read_text()))), name


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_is_valid(command: str) -> None:
    arguments, path = COMMANDS[command]
    check(load(arguments)[0], path.read_text())


def test_a_name_means_the_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert entry.config_names() == [*CONFIGS]
    expected = load(["--config=configs/few_shot.py:3"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few_shot").touch()
    assert load(["--config=few_shot:3"]) == load(["--config", "few_shot:3"]) == expected
    for name, path in CONFIGS.items():
        assert load([f"--config={name}"]) == load([f"--config={path}"])


@pytest.mark.parametrize("name", CONFIGS)
def test_other_values_that_a_config_names_are_valid(name: str) -> None:
    text = CONFIGS[name].read_text()
    own = [c for c in commands(text) if c[0].startswith(f"--config=configs/{name}.py")]
    for override in _OVERRIDE.findall(_COMMAND.sub("", text)):
        values = [value.rstrip(".") for value in shlex.split(override)]
        refusals = []
        for command in own:
            try:
                config = load([*command, *values])[0]
                check_names(config, text)
                check_read(config)
                break
            except UsageError as error:
                refusals.append(error)
        else:
            raise AssertionError(f"{override}: {refusals}")


def test_what_a_config_tells_to_fetch_and_prepare_exists() -> None:
    for path in DOCUMENTS:
        text = path.read_text()
        for name in re.findall(r"weights_convert (\w+) --download", text):
            assert BACKBONES[name].sources, path
        for name in re.findall(r"fmi-jax prepare (\w+)", text):
            assert name in DATASETS, path


def cells() -> Iterator[str]:
    """Every cell of every table and figure, as `NAME:ARGUMENT`."""
    sets, models = tuple(recipe.DATASETS), tuple(recipe.MODELS)
    for table in ("table1", "table2"):
        rows = [(m, head) for head in recipe.PUBLISHED_HEADS for m in recipe.under(head)]
        yield from (f"{table}:{s},{m},{head}" for s in sets for m, head in rows)
    yield from (f"table3:{s},{m}" for s in sets for m in recipe.FOUNDATIONS)
    inits, settings = ("imagenet", "dinov2", "own.safetensors"), ("frozen", "unfrozen")
    yield from (f"tableb:{s},{i},{x}" for s in sets for i in inits for x in settings)
    yield from (f"fig2:{s},{m}" for s in sets for m in models)
    yield from (f"fig4:{s},{m},{k}" for s in sets for m in models for k in range(4))
    yield from (
        f"fig5:{s},{m},{i},{x}" for s in sets for m in models for i in range(4) for x in settings
    )
    yield from (f"fig6:{s},{size}" for s in sets for size in "sblg")
    yield from (f"{name}:{s},runs/x" for s in sets for name in ("fig7", "figa1"))
    yield from (f"fig8:{s}" for s in sets)


def test_every_cell_of_the_study_is_a_config() -> None:
    for name, group in itertools.groupby(cells(), lambda cell: cell.partition(":")[0]):
        get_config = module(name).get_config
        for cell in group:
            argument = cell.partition(":")[2]
            config = get_config(argument)
            check_names(config, "")
            dataset = argument.partition(",")[0]
            assert config.data.name == dataset
            assert (config.image_size > 1000) == (name == "table3")


OF_THE_PAPER = {
    "aptos2019": "upstream",
    "ddsm": "official",
    "isic2019": "upstream",
    "chexpert": "upstream",
    "synthetic": "upstream",
    "fundus_lesions": "stratified",
}


def test_whatever_reproduces_the_paper_names_its_split() -> None:
    """Not the data sets' default, under which no patient is in two splits."""
    for study in STUDIES.values():
        if study.publication.startswith("hosseinzadeh"):
            continue  # its data sets and their splits: tests/study/test_transfer.py
        for setting in study.settings():
            while setting is not None:
                if setting.config is not None:
                    data = setting.config.data
                    assert data.split == OF_THE_PAPER[data.name], (study.name, setting.at)
                setting = setting.after
    for command, (arguments, path) in COMMANDS.items():
        data = load(arguments)[0].data
        if path.parent.name == "configs" and data.name in DATASETS:
            assert data.split == OF_THE_PAPER[data.name], command


def test_documents_prepare_the_split_that_their_configs_name() -> None:
    for path in CONFIGS.values():
        for name, options in re.findall(r"fmi-jax prepare (\w+)(.*)", path.read_text()):
            if name in recipe.DATASETS:
                default = next(iter(DATASETS[name].splits))
                asked = re.search(r"--split (\w+)", options)
                assert (asked[1] if asked else default) == recipe.DATASETS[name].split, path


@pytest.mark.parametrize("model", recipe.MODELS)
def test_block_arguments_are_those_of_the_model(model: str) -> None:
    blocks = BACKBONES[recipe.MODELS[model][0]].arch.num_blocks
    assert blocks == recipe.num_blocks(model) <= len(recipe.BLOCKS)


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "tableb"])
def test_the_published_numbers_of_a_config_are_those_of_the_study(name: str) -> None:
    study, text = STUDIES[name], CONFIGS[name].read_text()
    rows: dict[str, list[str]] = {}
    for setting in study.settings():
        number = setting.published
        assert number is not None
        shown = f"{number.mean:.3f}" + (f" +- {number.std:.3f}" if number.std is not None else "")
        rows.setdefault(" ".join(setting.at[row] for row in study.rows), []).append(shown)
    documented = re.findall(
        r"^  ([a-z][\w-]*(?: +[a-z][\w-]*)?)  +(0\.[\d .+-]+)$", text, re.MULTILINE
    )
    found = {" ".join(row.split()): re.split(r"  +", numbers) for row, numbers in documented}
    assert found == rows


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("table1:aptos2019,dinov2", "'aptos2019,dinov2': expected SET,MODEL,HEAD."),
        ("table1:aptos2019,dinov2,", "expected SET,MODEL,HEAD."),
        ("table2:aptos,dinov2,linear", "unknown set .*'aptos'. Did you mean 'aptos2019'"),
        ("table3:ddsm,resnet152", "unknown model .*Valid: blip, dinov2"),
        ("tableb:ddsm,dino,frozen", "study run in_domain does; expected imagenet, dinov2, or"),
        ("tableb:ddsm,imgenet,frozen", "unknown init .*Did you mean 'imagenet'"),
        ("fig4:ddsm,sam,12", "unknown frozen .*'12'"),
        ("fig5:ddsm,sam,five,frozen", "unknown block .*'five'"),
    ],
)
def test_an_argument_that_means_nothing_is_refused(argument: str, message: str) -> None:
    name, _, rest = argument.partition(":")
    with pytest.raises(UsageError, match=message):
        load([f"--config=configs/{name}.py:{rest}"])


class SmallRuns:
    """The documented commands made small, each distinct one run once.

    Attributes:
      folder: folder of data and runs.
      done: workdirs by config.
      named: workdirs by the name that the documents give them.
    """

    def __init__(self, folder: Path):
        self.folder, self.done, self.named = folder, {}, {}

    def run(self, config: ExperimentConfig, name: str) -> dict[str, object]:
        """The result of a config, made small, that is documented to run in folder `name`."""
        small = self.small(config)
        key = json.dumps(as_dict(small))
        if key not in self.done:
            workdir = self.folder / f"run{len(self.done)}"
            mesh = parallel.make_mesh(devices=jax.devices()[:1])
            on_one = mock.patch.object(parallel, "make_mesh", return_value=mesh)
            with on_one, mock.patch.object(conclusion, "write_report"):
                experiment.run(small, workdir)
            self.done[key] = workdir
        self.named[name] = self.done[key]
        return json.loads((self.named[name] / "result.json").read_text())

    def data_dir(self, name: str) -> str:
        """Where a small drawn data set of that name lies prepared."""
        folder, spec = self.folder / "data", DATASETS[name]
        if not (folder / name).exists():
            assert spec.draw is not None
            spec.draw(self.folder / "raw" / name)
            own = recipe.DATASETS[name].split if name in recipe.DATASETS else ""
            prepare(spec, self.folder / "raw" / name, folder, size=_SIDE, split=own)
        return str(folder)

    def small(self, config: ExperimentConfig) -> ExperimentConfig:
        """One step of a tiny network on small images, otherwise as `config` says."""
        small = copy.deepcopy(config)
        small.image_size = small.data.prepared_size = _SIDE
        masks = small.data.name in DATASETS and not DATASETS[small.data.name].metric
        if small.data.name not in recipe.DATASETS and not masks:  # too many images, or one's own
            small.data.name, small.data.split = "aptos2019", "upstream"
        small.data.data_dir = self.data_dir(small.data.name)
        small.data.threads = 1
        small.data.shots = min(small.data.shots, 1)
        small.augment.center_crop = 1.0
        small.augment.jitter_probability = 0.0  # takes long to compile
        small.backbone.name, small.backbone.weights = "deit_nano", ""
        small.backbone.frozen_blocks = min(small.backbone.frozen_blocks, 1)
        small.backbone.last_block = small.backbone.frozen_blocks
        small.optim.accumulate = min(small.optim.accumulate, 2)
        small.train.batch_size, small.train.max_steps = 8, 1
        small.train.bootstrap_samples = 7
        if small.protocol == "dino":
            small.dino.local_size = _SIDE // 2
        if small.backbone.run:
            small.backbone.run = str(self.named[small.backbone.run])
        if small.protocol.startswith("stacked"):
            small.transformer.name, small.transformer.weights = "deit_nano", ""
        if small.protocol == "knn":
            small.knn.k = tuple(range(3, 3 + len(small.knn.k)))
        if small.protocol == "cka":
            small.cka.batch_size = 8
            if small.cka.run:
                small.cka.run = str(self.named[small.cka.run])
            else:
                small.cka.other = ("deit_nano",)
        if small.saliency.run:
            small.saliency.run = str(self.named[small.saliency.run])
        if small.protocol == "timing":
            small.timing.backbones, small.timing.reference = (), "deit_nano"
            small.timing.transformer = "deit_nano"
            small.timing.batch_size, small.timing.repeats = 2, 1
        return small


@pytest.fixture(scope="module")
def small_runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    return SmallRuns(tmp_path_factory.mktemp("small"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_runs_a_step(name: str, small_runs: SmallRuns) -> None:
    for arguments in commands(CONFIGS[name].read_text()):
        config, workdir = load(arguments)
        result = small_runs.run(config, workdir)
        assert result["config"]["protocol"] == config.protocol
        protocol = protocol_of(config)
        if protocol.trains:
            assert result["steps"] == 1
        if protocol.own.shows == "score":
            assert result["findings"][0]["evaluations"]["test"]["count"] > 0
            assert result["best"]["metric"] == (
                config.metric
                or DATASETS[result["config"]["data"]["name"]].metric
                or TASKS[result["dataset"]["task"]].selects
            )
        else:
            assert result["findings"][0]["judge"] == config.protocol
            assert result["findings"][0]["values"]


def test_every_protocol_is_in_a_documented_command() -> None:
    named = {load(arguments)[0].protocol for arguments, _ in COMMANDS.values()}
    # A setting of the commands of Figure 4, too long for a line.
    assert {*PROTOCOLS} - named == {"stacked_partial"}
    assert "--config.protocol=stacked_partial" in CONFIGS["fig4"].read_text()


def test_the_config_has_a_section_for_the_options_of_every_part():
    """A part that has options needs a line in `ExperimentConfig`, and reads that section."""
    base = {field.name for field in dataclasses.fields(BaseConfig)}
    default = ExperimentConfig()
    sections = {
        field.name: type(getattr(default, field.name))
        for field in dataclasses.fields(default)
        if field.name not in base
    }
    parts = [part for registry in (ADAPTS, HEADS, FITS, JUDGES) for part in registry.values()]
    own = [part for part in parts if part.options is not None]
    assert {*sections.values()} == {part.options for part in own}
    assert len(sections) == len(own)
    for part in parts:
        read = [sections[name] for name in part.reads if name in sections]
        assert read == ([part.options] if part in own else []), part.name


def test_a_section_is_found_by_its_type():
    config = ExperimentConfig()
    assert section(config, KnnConfig) is config.knn
    assert section(config, TrainConfig) is config.train
    with pytest.raises(TypeError, match=r"BaseConfig has no section .* KnnConfig: .*DataConfig"):
        section(BaseConfig(), KnnConfig)


def test_make_prepares_the_splits_that_the_example_study_reads() -> None:
    made = (Path(__file__).parent.parent / "Makefile").read_text()
    prepared = dict(re.findall(r"fmi-jax prepare (\w+) .*--split (\w+)", made))
    read = {s.config.data.name: s.config.data.split for s in STUDIES["example"].settings()}
    assert prepared == read
