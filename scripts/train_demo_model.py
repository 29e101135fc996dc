"""Trains a model like the embedded demo model from a folder of text, and writes it as GGUF.

    python scripts/train_demo_model.py BOOKS --out run          # 24 minutes on two cores
    python scripts/train_demo_model.py BOOKS --out run --resume # after Ctrl-C, or a crash

BOOKS holds .txt files, at least 100,000 characters; those named heldout* are only used for measuring. The model
learns the texts and, from tasks made of them, to find numbers in its context. With --dilated it is trained with
LongNet's attention, and its files say so. Needs torch >= 2.9, tokenizers and gguf.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from train_demo import dilated, export
from train_demo.corpus import Corpus, prepare
from train_demo.errors import TrainError, need
from train_demo.model import Config, has_structure
from train_demo.train import Settings, Trainer

SHAPE = ("n_layer", "n_embd", "n_head", "n_head_kv", "n_ff", "n_ctx")  # of Config, in its order
SAME = (
    "minutes",
    "steps",
    "batch",
    "lr_matrix",
    "lr_other",
    "prose",
    "threads",
    "device",
    "seed",
)  # of Settings


def train(
    books: Path,
    out: Path,
    config: Config,
    settings: Settings,
    tokenizer: Path | None = None,
    resume: bool = False,
    start: Path | None = None,
) -> list[Path]:
    """Prepares, trains, measures and exports; returns the GGUF files.

    Stopped by Ctrl-C it keeps a checkpoint, exports what there is, and returns it too. Raises TrainError.
    """
    need("torch", "2.9")
    if resume and (out / "corpus.npz").is_file():
        corpus = Corpus.load(out)
    else:
        print(f"reading {books}", flush=True)
        corpus = prepare(books, config.n_vocab, tokenizer, settings.seed)
        corpus.save(out)
    config = dataclasses.replace(config, n_vocab=corpus.tokenizer.get_vocab_size())
    if len(corpus.train.tokens) < 4 * config.n_ctx:
        raise TrainError(f"{books} yields {len(corpus.train.tokens)} tokens only: it needs more text")
    trainer = Trainer(out, corpus, config, settings, say=lambda line: print(line, flush=True))
    if resume:
        trainer.resume()
    elif start is not None:
        trainer.start_from(export.read(start))
    size = sum(p.numel() for p in trainer.params.values())
    kind = start.name if start else "structured" if has_structure(config) else "plain"
    print(
        f"{size / 1e6:.2f}M parameters, {len(corpus.train.tokens) / 1e6:.2f}M tokens, {kind} start",
        flush=True,
    )
    finished = trainer.run()
    if not finished:
        print(f"stopped; go on with --resume --out {out}")
    result = trainer.measure()
    print(", ".join(f"{name} {value}" for name, value in result.items()))
    # The model was trained for longer texts with these positions (model.Far).
    extension = f"rerope({config.n_ctx // 4})+logn" if settings.far else ""
    files = [out / f"model-{kind}.gguf" for kind in export.TYPES]
    for file, kind in zip(files, export.TYPES, strict=True):
        export.write(file, kind, trainer.weights(), config, out / "tokenizer.json", extension)
        print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB)")
    return files


def main(argv: list[str] | None = None) -> int:
    shape, how = Config(), Settings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("books", type=Path, help="folder of .txt files")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument(
        "--start", type=Path, help="a GGUF of this script to go on from, also to a grown vocabulary"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="a tokenizer.json, or a GGUF of this script, in place of a new one; it grows to --vocab",
    )
    parser.add_argument("--minutes", type=float, default=how.minutes, help="time budget (%(default)s)")
    parser.add_argument("--steps", type=int, default=0, help="budget in steps, in place of minutes")
    parser.add_argument("--batch", type=int, default=how.batch, help="sequences per step (%(default)s)")
    parser.add_argument("--lr-matrix", type=float, default=how.lr_matrix, help="Muon's rate (%(default)s)")
    parser.add_argument("--lr-other", type=float, default=how.lr_other, help="AdamW's rate (%(default)s)")
    parser.add_argument("--prose", type=float, default=how.prose, help="part of prose (%(default)s)")
    parser.add_argument("--dilated", metavar="SEGMENTS:RATES", help="train with it, as 128,256,512:1,2,4")
    parser.add_argument(
        "--far", type=float, help=f"part that stands for longer texts ({how.far}; 0 with --dilated)"
    )
    parser.add_argument("--threads", type=int, default=how.threads, help="0: torch's choice")
    parser.add_argument("--device", default=how.device, help="cpu or cuda (%(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile (slower)")
    parser.add_argument("--seed", type=int, default=how.seed)
    parser.add_argument("--vocab", type=int, default=shape.n_vocab, help="tokens (%(default)s)")
    for name in SHAPE:
        default = getattr(shape, name)
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default, help=f"({default})")
    args = parser.parse_args(argv)
    try:
        config = Config(args.vocab, *(getattr(args, name) for name in SHAPE))
        if args.dilated:
            segments, rates = dilated.parse(args.dilated)
            config = dataclasses.replace(config, segments=segments, rates=rates)
        far = (0.0 if args.dilated else how.far) if args.far is None else args.far
        same = {name: getattr(args, name) for name in SAME}
        settings = Settings(compile=not args.no_compile, far=far, **same)
        train(args.books, args.out, config, settings, args.tokenizer, args.resume, args.start)
    except (TrainError, OSError) as error:
        print(f"train_demo_model: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped at once; the last checkpoint is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
