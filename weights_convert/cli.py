"""Command line of the converter, see `--help`."""

import argparse
import contextlib
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fmi_jax import atomic
from fmi_jax.arguments import Parser, check_plain, place
from fmi_jax.artifacts.weights import (
    ENTRY,
    FORMAT,
    NativeFile,
    Provenance,
    read_backbone,
    save_backbone,
)
from fmi_jax.errors import UsageError, UserError, did_you_mean, printable, unknown_name
from fmi_jax.guard import guarded
from fmi_jax.models.base import (
    BackboneSpec,
    Execution,
    WeightsSource,
    create_abstract,
    parameters,
)
from fmi_jax.models.registry import BACKBONES
from fmi_jax.paths import check_output, check_output_folder
from weights_convert.card import model_card
from weights_convert.download import default_cache, download
from weights_convert.engine import convert
from weights_convert.export import check_native, export, read_source
from weights_convert.identify import identify
from weights_convert.layouts.registry import LAYOUTS, layouts_for
from weights_convert.read import Checkpoint, read_checkpoint
from weights_convert.stacked import as_in_study, stacked_of_checkpoint

DESCRIPTION = """\
Turn a public PyTorch checkpoint into one native weights file, and back.

  python -m weights_convert NAME --checkpoint FILE --out DIR   convert a file you have
  python -m weights_convert NAME --download --out DIR          fetch the published one first
  python -m weights_convert NAME --checkpoint NATIVE --export original|hf|timm --out DIR
                                                               write it for PyTorch again
  python -m weights_convert inspect FILE                       say what a file is
  python -m weights_convert verify FILE                        check a converted file
"""
EPILOG = """\
Reads .pth and .bin of PyTorch, .safetensors of Hugging Face and timm, and .npz. Which of the
published key layouts a file has is found out and said. Conversion is strict: a key too many or
too few, another shape or type, a NaN, and nothing is written. Files that could run code when
opened are refused.

Writes DIR/NAME.TAG.safetensors and a model card DIR/NAME.TAG.md; training finds it with
  --config.backbone.name=NAME --config.backbone.weights=TAG --config.backbone.weights_dir=DIR

Of a checkpoint that the study saved, a foundation model under a DeiT, the foundation is taken;
with --stacked all of it, as DIR/stacked_NAME.TAG.safetensors.

--export takes a converted file, or the folder of a finished run: then the best checkpoint is
exported, and its head along with it where the layout has a place for one. It writes
DIR/NAME.TAG.PUBLISHER.pth for "original" and .safetensors for the others, with the names, axes
and bits of the publisher's own file. Their code loads it strictly into a network without parts
that are not here: no head (timm: num_classes=0) unless a run brought one, no pooler
(transformers: add_pooling_layer=False), of Segment Anything, SEEM, CLIP and BLIP the image
encoder, under its name in the whole. For from_pretrained of transformers, put the file as
model.safetensors beside a config.json of yours.

backbones:
  {names}
"""
CUSTOM = "custom"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status and prints errors as one message."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def command() -> None:
        check_plain(arguments)
        if arguments[:1] and arguments[0] in COMMANDS:
            read = COMMANDS[arguments[0]]
            parser = Parser(
                prog=f"python -m weights_convert {arguments[0]}", description=read.__doc__
            )
            parser.add_argument("file", type=place, metavar="FILE")
            read(parser.parse_args(arguments[1:]).file)
        else:
            _convert(arguments)

    return guarded(command)


def _convert(argv: Sequence[str]) -> None:
    parser = Parser(
        prog="python -m weights_convert",
        description=DESCRIPTION,
        epilog=EPILOG.format(names="\n  ".join(n for n, s in BACKBONES.items() if s.sources)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="the backbone, see below")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=place, metavar="FILE", help="the file to convert")
    source.add_argument(
        "--download", action="store_true", help="fetch the published file first, once"
    )
    parser.add_argument(
        "--out", type=place, required=True, metavar="DIR", help="where to write; made if need be"
    )
    parser.add_argument(
        "--tag",
        help="short name of the weights. Default: that of the published file, or"
        f" '{CUSTOM}' for a file that is none of the published ones; of a run, its folder's name",
    )
    parser.add_argument(
        "--cache",
        type=place,
        default=default_cache(),
        metavar="DIR",
        help="where fetched files are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--stacked",
        action="store_true",
        help="of a checkpoint of the study: the whole classifier, not the foundation alone",
    )
    parser.add_argument(
        "--export",
        metavar="PUBLISHER",
        help="write the converted file or run given as --checkpoint for PyTorch again:"
        " original, hf or timm",
    )
    args = parser.parse_args(argv)
    spec = BACKBONES[args.name]
    if args.tag is not None and not re.fullmatch(r"[\w-][\w.-]*", args.tag):
        raise UsageError(f"--tag {args.tag!r}: expected letters, digits, '-', '_' and '.' only.")
    check_output_folder(args.out)  # before minutes of reading
    if args.export is not None:
        for flag, given in (("--download", args.download), ("--stacked", args.stacked)):
            if given:
                raise UsageError(f"--export takes a --checkpoint, not {flag}.")
        _export(spec, args.checkpoint, args.export, args.out, args.tag)
        return
    if args.download:
        published_source = _source_to_fetch(spec, args.tag)
        path = download(
            published_source, args.cache, functools.partial(_show_progress, published_source.url)
        )
    else:
        published_source, path = None, args.checkpoint
    checkpoint = read_checkpoint(path)
    published_source = published_source or _published_source(spec, checkpoint, args.tag)
    tag = args.tag or (published_source.tag if published_source else CUSTOM)
    try:
        spec = as_in_study(spec, checkpoint.groups, LAYOUTS.values())
        whole = stacked_of_checkpoint(spec, checkpoint.groups) if args.stacked else spec
        native = parameters(create_abstract(whole.family, whole.arch, Execution()))
        layouts = list(layouts_for(whole))
        if published_source:  # a file may hold more than one network: the tag says which
            layouts.sort(key=lambda layout: layout.name != published_source.layout)
        converted = convert(checkpoint.groups, native, layouts)
    except UserError as error:
        fits = identify(checkpoint.groups, BACKBONES.values())
        hint = f" It fits {', '.join(found.spec.name for found in fits)}." if fits else ""
        raise UserError(f"{path} is not {spec.name}: {error}{hint}") from error
    provenance = Provenance(
        backbone=spec.name,
        tag=tag,
        source=published_source.url if published_source else path.name,
        source_sha256=checkpoint.sha256,
        layout=converted.match.layout.name,
        licence=published_source.licence if published_source else "unknown",
        converter=version("fmi_jax"),
    )
    target = args.out / f"{whole.name}.{tag}.safetensors"
    check_output(target, [path])
    args.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as together:
        card = target.with_suffix(".md")
        if not args.stacked:
            draft = together.enter_context(atomic.whole_file(card))
            draft.write_text(model_card(spec, provenance, target.name), encoding="utf-8")
        weights = together.enter_context(atomic.whole_file(target))
        save_backbone(weights, converted.params, whole.arch, provenance)
        card.unlink(missing_ok=True)  # no moment has an older card beside these weights
    print(f"read   {path}: {checkpoint.format}, layout {converted.match.where}")
    if checkpoint.others:
        print(f"       not read, as they hold no weights: {_joined(checkpoint.others)}")
    if tag == CUSTOM:
        print(f"       none of the published files, so its tag is {CUSTOM!r} (--tag names it)")
    print(f"wrote  {target}: {len(converted.params)} tensors, {_numbers(native):,} parameters")


def _export(spec: BackboneSpec, path: Path, publisher: str, out: Path, tag: str | None) -> None:
    if not path.is_dir() and not _is_native(path):
        raise UserError(
            f"{path}: expected a file that this converter wrote, or the folder of a run."
            " Convert a public checkpoint first."
        )
    source = read_source(spec, path)
    if tag is not None:
        source = dataclasses.replace(source, tag=tag)
    done = export(source, publisher, out)
    print(f"wrote  {done.path}: {len(done.tensors)} tensors, layout {done.layout.name}")
    if source.head is not None and not done.with_head:
        print("       without its head, for which this layout has no place")


def _joined(names: Sequence[str]) -> str:
    return printable(", ".join(names))


def _numbers(tensors: Mapping[str, Any]) -> int:
    return sum(value.size for value in tensors.values())


def _inspect(path: Path) -> None:
    """Say what a file is: its kind, its key layout, and which backbones it fits."""
    if _is_native(path):
        _describe(path, read_backbone(path))
        return
    checkpoint = read_checkpoint(path)
    print(f"{path}: {checkpoint.format}, sha256 {checkpoint.sha256}")
    for group, tensors in checkpoint.groups.items():
        kinds = ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
        size = f"{len(tensors)} tensors, {_numbers(tensors):,} numbers"
        print(f"{printable(group) or 'top level'}: {size}, {kinds}")
    if checkpoint.others:
        print(f"no tensors in: {_joined(checkpoint.others)}")
    fits = identify(checkpoint.groups, BACKBONES.values())
    for found in fits:
        try:
            source = _published_source(found.spec, checkpoint, None)
            known = f", the published {source.tag}" if source else ""
        except UserError:
            known = ", under the name of a published file but with another checksum"
        print(f"fits {found.spec.name}{known}: layout {found.match.where}")
    if not fits:
        print("fits none of the backbones in any known layout")


def _verify(path: Path) -> None:
    """Check a converted file against its checksums and the backbone it says it is."""
    if not _is_native(path):
        raise UserError(
            f"{path}: expected a file that this converter wrote; inspect says what it is."
        )
    name = read_backbone(path).provenance.backbone
    if name not in BACKBONES:
        raise UserError(
            f"{path}: weights of {name!r}, which this version does not have."
            f"{did_you_mean(name, [*BACKBONES])} Convert the checkpoint again."
        )
    spec = BACKBONES[name]
    _describe(path, check_native(path, spec)[1])
    print("sound: every tensor has its checksum, name, shape and type")


def _describe(path: Path, file: NativeFile) -> None:
    texts = {name: printable(text) for name, text in vars(file.provenance).items()}
    provenance = Provenance(**texts)
    print(f"{path}: converted weights of {provenance.backbone}, tag {provenance.tag}")
    print(f"{len(file.params)} tensors, {_numbers(file.params):,} numbers, float32")
    print(f"from {provenance.source} (layout {provenance.layout})")
    print(f"its sha256 {provenance.source_sha256}")
    print(f"licence {provenance.licence}, converter {provenance.converter}")
    print(f"arch {json.dumps(file.arch)}")


def _is_native(path: Path) -> bool:
    """Test whether this converter wrote the file, sound or not."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="numpy") as file:
            return ENTRY in (file.metadata() or {})
    except (SafetensorError, OSError):
        with path.open("rb") as file:
            return FORMAT.encode() in file.read(1 << 20)


def _source_to_fetch(spec: BackboneSpec, tag: str | None) -> WeightsSource:
    if not spec.sources:
        raise UsageError(f"{spec.name} has no published weights: {spec.note}.")
    if tag is None:
        return spec.sources[0]
    by_tag = {source.tag: source for source in spec.sources}
    if tag not in by_tag:
        raise unknown_name(f"tag of {spec.name}", tag, by_tag)
    return by_tag[tag]


def _published_source(
    spec: BackboneSpec, checkpoint: Checkpoint, tag: str | None
) -> WeightsSource | None:
    """The source that a file is: by its checksum, the tag that the user gives it, or its name.

    A name says nothing where files of several addresses share it. Where there is a published
    checksum, a file that has the tag or the name but not the checksum is refused.
    """
    if tag is not None and tag not in {source.tag for source in spec.sources}:
        return None
    addresses = {source.url for other in BACKBONES.values() for source in other.sources}
    names = [Path(address).name for address in addresses]
    for source in spec.sources:
        name = Path(source.url).name
        named = checkpoint.path.name == name and names.count(name) == 1
        proven = source.sha256 is not None and checkpoint.sha256.startswith(source.sha256)
        if not (tag == source.tag if tag is not None else named or proven):
            continue
        if source.sha256 is not None and not proven:
            raise UserError(
                f"{checkpoint.path}: its sha256 is {checkpoint.sha256}, but that of the published"
                f" {name} begins with {source.sha256}. Fetch it again (--download), or name a file"
                " of your own with another --tag."
            )
        return source
    return None


def _show_progress(url: str, done: int, total: int | None) -> None:
    """Show how far a transfer is, on one line of a terminal."""
    if sys.stderr.isatty():
        of = f" of {total >> 20}" if total else ""
        end = "\n" if done == total else ""
        print(f"\r{url}: {done >> 20}{of} MiB", end=end, file=sys.stderr, flush=True)


COMMANDS = {"inspect": _inspect, "verify": _verify}
"""Commands that read one file, beside conversion and export."""
