"""Command line of the converter, see `--help`."""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fmi_jax.atomic import whole_file
from fmi_jax.checkpoints.weights import (
    ENTRY,
    FORMAT,
    NativeFile,
    Provenance,
    check_backbone,
    read_backbone,
    save_backbone,
)
from fmi_jax.errors import UsageError, UserError, unknown_name
from fmi_jax.models.base import (
    BackboneSpec,
    Execution,
    WeightsSource,
    create_abstract,
    parameters,
)
from fmi_jax.models.registry import BACKBONES
from weights_convert.card import model_card
from weights_convert.download import default_cache, download
from weights_convert.engine import convert
from weights_convert.identify import identify
from weights_convert.layouts.registry import layouts_of
from weights_convert.read import Checkpoint, read_checkpoint

DESCRIPTION = """\
Turn a public PyTorch checkpoint into one native weights file.

  python -m weights_convert NAME --checkpoint FILE --out DIR   convert a file you have
  python -m weights_convert NAME --download --out DIR          fetch the published one first
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

backbones:
  {names}
"""
CUSTOM = "custom"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{message}. See python -m weights_convert --help.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status and prints errors as one message."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {"inspect": _inspect, "verify": _verify}
    try:
        if argv[:1] and argv[0] in commands:
            parser = _Parser(
                prog=f"python -m weights_convert {argv[0]}", description=commands[argv[0]].__doc__
            )
            parser.add_argument("file", type=Path, metavar="FILE")
            commands[argv[0]](parser.parse_args(argv[1:]).file)
        else:
            _convert(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


def _convert(argv: Sequence[str]) -> None:
    published = [name for name, spec in BACKBONES.items() if spec.sources]
    parser = _Parser(
        prog="python -m weights_convert",
        description=DESCRIPTION,
        epilog=EPILOG.format(names="\n  ".join(published)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="the backbone, see below")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="the file to convert")
    source.add_argument(
        "--download", action="store_true", help="fetch the published file first, once"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where to write; made if need be"
    )
    parser.add_argument(
        "--tag",
        help="short name of the weights. Default: that of the published file, or"
        f" '{CUSTOM}' for a file that is none of the published ones",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=default_cache(),
        metavar="DIR",
        help="where fetched files are kept (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    spec = BACKBONES[args.name]
    if args.tag is not None and not _is_file_name(args.tag):
        raise UsageError(f"--tag {args.tag!r}: expected letters, digits, '-', '_' and '.' only.")
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out {args.out}: expected a folder, and this is a file.")
    if args.download:
        published_source = _source_to_fetch(spec, args.tag)
        path = download(published_source, args.cache, _Progress(published_source.url))
    else:
        published_source, path = None, args.checkpoint
    checkpoint = read_checkpoint(path)
    published_source = published_source or _published_source(spec, checkpoint, args.tag)
    tag = args.tag or (published_source.tag if published_source else CUSTOM)
    native = parameters(create_abstract(spec.family, spec.arch, Execution()))
    try:
        converted = convert(checkpoint.groups, native, layouts_of(spec.family))
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
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / f"{spec.name}.{tag}.safetensors"
    with whole_file(target.with_suffix(".md")) as draft:
        draft.write_text(model_card(spec, provenance, target.name))
    save_backbone(target, converted.params, spec.arch, provenance)
    print(f"read   {path}: {checkpoint.format}, layout {converted.match.where}")
    if checkpoint.others:
        print(f"       not read, as they hold no weights: {', '.join(checkpoint.others)}")
    if tag == CUSTOM:
        print(f"       none of the published files, so its tag is {CUSTOM!r} (--tag names it)")
    print(f"wrote  {target}: {len(converted.params)} tensors, {spec.num_params:,} parameters")


def _inspect(path: Path) -> None:
    """Say what a file is: its kind, its key layout, and which backbones it fits."""
    if _is_native(path):
        _describe(path, read_backbone(path))
        return
    checkpoint = read_checkpoint(path)
    print(f"{path}: {checkpoint.format}, sha256 {checkpoint.sha256}")
    for group, tensors in checkpoint.groups.items():
        numbers = sum(tensor.size for tensor in tensors.values())
        kinds = ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
        print(f"{group or 'top level'}: {len(tensors)} tensors, {numbers:,} numbers, {kinds}")
    if checkpoint.others:
        print(f"no tensors in: {', '.join(checkpoint.others)}")
    fits = identify(checkpoint.groups, BACKBONES.values())
    for found in fits:
        source = _published_source(found.spec, checkpoint, None)
        known = f", the published {source.tag}" if source else ""
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
        raise unknown_name("backbone", name, BACKBONES)
    _describe(path, check_backbone(path, BACKBONES[name]))
    print("sound: every tensor has its checksum, name, shape and type")


def _describe(path: Path, file: NativeFile) -> None:
    provenance = file.provenance
    print(f"{path}: converted weights of {provenance.backbone}, tag {provenance.tag}")
    numbers = sum(value.size for value in file.params.values())
    print(f"{len(file.params)} tensors, {numbers:,} numbers, float32")
    print(f"from {provenance.source} (layout {provenance.layout})")
    print(f"its sha256 {provenance.source_sha256}")
    print(f"licence {provenance.licence}, converter {provenance.converter}")
    print(f"arch {json.dumps(file.arch)}")


def _is_native(path: Path) -> bool:
    """Whether this converter wrote the file, sound or not."""
    try:
        with safe_open(path, framework="numpy") as file:
            return ENTRY in (file.metadata() or {})
    except (SafetensorError, OSError):
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return FORMAT.encode() in file.read(1 << 20)


def _is_file_name(tag: str) -> bool:
    return bool(tag) and all(c.isalnum() or c in "-_." for c in tag) and not tag.startswith(".")


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
    """The source that a file is, by its checksum, its name, or the tag the user gives it."""
    for source in spec.sources:
        named = checkpoint.path.name == Path(source.url).name and source.sha256 is None
        proven = source.sha256 is not None and checkpoint.sha256.startswith(source.sha256)
        if tag == source.tag or (tag is None and (named or proven)):
            return source
    return None


class _Progress:
    """One line that follows a transfer, on a terminal."""

    def __init__(self, url: str):
        self.url = url
        self.shown = -1

    def __call__(self, done: int, total: int | None) -> None:
        megabytes = done >> 20
        if sys.stderr.isatty() and megabytes != self.shown:
            self.shown = megabytes
            of = f" of {total >> 20}" if total else ""
            end = "\n" if done == total else ""
            print(f"\r{self.url}: {megabytes}{of} MiB", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
