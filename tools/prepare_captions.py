"""Captions and conversations with their images as ArrayRecord shards, from what people have.

    python -m tools.prepare_captions --source=llava.jsonl --images=IMAGES --output=DIR
    python -m tools.prepare_captions --source=blip3o-wds.json --output=DIR
    python -m tools.prepare_captions --source=PARQUETS --text=caption --template="Can you draw {}?" --output=DIR

Sources are JSON lines with a folder of images, WebDataset tars or a manifest of them, parquet, and Arrow folders of
Hugging Face's `datasets`; `rae_jax/data/caption_sources.py` says how each is read. Rows whose images cannot be read or
that have no text are named, left out and counted; more than `--max_left_out` of them is an error. What was written is
read back, every record. The output appears whole or not at all. A run takes it with
`--config.data.source=conversations --config.data.path=DIR`, or several by `config.text_to_image.mixture`.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.progress import track

from rae_jax.data.caption_sources import rows
from rae_jax.data.conversation_shards import INDEX, ConversationShards, ShardWriter, encode
from rae_jax.files import local_path

NAMED = 5  # rows of each problem that are named


def prepare(
    source: Path,
    output: Path,
    *,
    images: str = "",
    text: str = "",
    image: str = "",
    template: str = "{}",
    shard_size: int = 10_000,
    max_left_out: float = 0.01,
) -> tuple[int, Counter]:
    """Writes the shards to `output`; returns how many records there are, and what was left out, by the problem.

    Raises:
      ValueError: the source cannot be read, too much of it is left out, or what is read back is not what was written.
    """
    if "{}" not in template:
        raise ValueError(f"--template={template!r} has no {{}} for the caption")
    if (output / INDEX).exists() or (output.exists() and any(output.iterdir())):
        raise ValueError(f"{output} holds something already; give another directory")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        writer, left_out, written, with_images = ShardWriter(temporary, shard_size), Counter(), [0, 0], 0
        for row in rows(source, images, text_column=text, image_column=image, template=template):
            if row.problem:
                left_out[row.problem] += 1
                if left_out[row.problem] <= NAMED:
                    print(f"left out: {row.key}: {row.problem}")
                continue
            writer.append(encode(row.turns, row.images, row.key))
            written[0] += 1
            written[1] += sum(map(len, row.images))
            with_images += bool(row.images)
        total, lost = written[0] + left_out.total(), left_out.total()
        told = ", ".join(f"{count} with {problem}" for problem, count in left_out.most_common())
        if not written[0]:
            raise ValueError(f"{source} has no usable row{f': {told}' if told else ', and no other'}")
        if lost > max_left_out * total:
            raise ValueError(
                f"{lost} of the {total} rows of {source} are left out ({told}), more than --max_left_out="
                f"{max_left_out:g} allows; repair them, or raise it"
            )
        writer.finish({"source": str(source), "with_images": with_images, "left_out": dict(left_out)})
        found = [0, 0]
        shards = ConversationShards(temporary)
        for i in track(range(len(shards)), description="reading back", disable=not sys.stdout.isatty()):
            found[0] += 1
            found[1] += sum(map(len, shards.record(i)[1]))
        if found != written:
            raise ValueError(f"{found} records and bytes of images can be read back, of {written} written")
        temporary.chmod(0o755)
        if output.exists():
            output.rmdir()
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written[0], left_out


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.prepare_captions", description=__doc__.split("\n\n")[0])
    parser.add_argument("--source", type=local_path, required=True, help="what there is")
    parser.add_argument("--output", type=local_path, required=True, help="the directory to write")
    parser.add_argument("--images", default="", help="the folder that paths of images start from")
    parser.add_argument("--text", default="", help="the column of conversations or captions")
    parser.add_argument("--image", default="", help="the column of images")
    parser.add_argument("--template", default="{}", help="the request that a caption becomes, {} for the caption")
    parser.add_argument("--shard_size", type=int, default=10_000, help="records in a shard")
    parser.add_argument("--max_left_out", type=float, default=0.01, help="share of the rows that may be unusable")
    options = vars(parser.parse_args(arguments))
    try:
        count, left_out = prepare(Path(options.pop("source")), Path(options.pop("output")), **options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    for problem, number in left_out.most_common():
        print(f"left out: {number} rows with {problem}")
    print(f"complete: {count} conversations")


if __name__ == "__main__":
    main()
