"""Tables of images and texts, parquet and Arrow files, read some rows at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

AT_A_TIME = 64  # rows
Rows = tuple[list[str], list[dict[str, Any]]]  # the names of the columns, and rows


def parquet_rows(path: Path) -> Iterator[Rows]:
    """The rows of a parquet file, some at a time.

    Raises:
      ValueError: the file cannot be read.
    """
    import pyarrow.parquet as parquet  # takes a moment, which those who read no tables need not wait

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=AT_A_TIME):
                yield file.schema_arrow.names, batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors are these
        raise ValueError(f"{path} is no readable parquet file: {error}") from None


def arrow_rows(path: Path) -> Iterator[Rows]:
    """The rows of an Arrow file, as a stream or with an index, some at a time.

    Raises:
      ValueError: the file cannot be read.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped:
            try:
                reader = pa.ipc.open_stream(mapped)
            except pa.ArrowInvalid:
                mapped.seek(0)
                file = pa.ipc.open_file(mapped)
                reader = (file.get_batch(i) for i in range(file.num_record_batches))
            for batch in reader:
                for start in range(0, batch.num_rows, AT_A_TIME):
                    yield batch.schema.names, batch.slice(start, AT_A_TIME).to_pylist()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no readable Arrow file: {error}") from None


def image_bytes(image: Any, folder: Path) -> bytes:
    """The bytes of an image as tables hold them: themselves, an object with "bytes" or "path", or a path in `folder`.

    Raises:
      ValueError: it is none of these, or there is no such file.
    """
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        try:
            return (folder / image).read_bytes()
        except OSError as error:
            raise ValueError(f"an image that is not there: {error}") from None
    if not isinstance(image, bytes):
        raise ValueError(f"an image that is neither bytes nor a path, but a {type(image).__name__}")
    return image
