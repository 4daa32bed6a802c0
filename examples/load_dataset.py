"""Loads a finished dataset with PyArrow: its table of results, and the video of each row that succeeded.

    pip install pyarrow
    python load_dataset.py FOLDER

FOLDER is what the server keeps for a dataset (or a copy of it, by `dream-engine datasets download` or `aws s3 sync`):

    results.parquet      one record a row, also of rows that failed
    results.jsonl        the same as JSON lines
    metadata.parquet     the records of the rows that succeeded
    videos/<row_id>.mp4  one a row that succeeded; `file_name` in the record leads to it

The Hugging Face `datasets` library takes the folder, too: load_dataset("videofolder", data_dir=FOLDER). Nothing is
fetched over the network.
"""

import json
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq


SHOWN = 10


def rest(table, what: str) -> None:
    """Says how many there are beyond those shown."""
    more = table.num_rows - SHOWN
    if more > 0:
        print(f"… and {more} {what}{'' if more == 1 else 's'} more")


def load(folder: Path):
    """The table of all rows, and that of the rows with a video, with the path of each in the column `video`."""
    table = pq.read_table(folder / "results.parquet")
    done = pq.read_table(folder / "metadata.parquet")
    videos = [str(folder / name) for name in done["file_name"].to_pylist()]
    return table, done.append_column("video", [videos])


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    table, done = load(Path(sys.argv[1]))

    for count in pc.value_counts(table["status"]).to_pylist():
        print(f"{count['counts']:7d} {count['values']}")
    charged = (pc.sum(table["charged_mils"]).as_py() or 0) - (pc.sum(table["refunded_mils"]).as_py() or 0)
    print(f"{pc.sum(done['frames']).as_py() or 0} frames for ${charged / 10_000:.4f}")

    wrong = table.filter(pc.is_valid(table["error_code"]))
    for record in wrong.slice(0, SHOWN).to_pylist():
        print(f"row {record['n']}: {record['status']}: {record['error_code']}: {record['error_message']}")
    rest(wrong, "row")

    # From here on it is yours: decode `video`, join on `row_id`, train.
    for index, record in enumerate(done.to_pylist()):
        video = Path(record["video"])
        if video.stat().st_size != record["video_bytes"]:
            sys.exit(f"{video} has {video.stat().st_size} bytes, the results say {record['video_bytes']}")
        if index < SHOWN:
            metadata = json.loads(record["metadata"])
            print(f"{record['row_id']}: {video} seed {record['seed']} {metadata}")
    rest(done, "video")


if __name__ == "__main__":
    main()
