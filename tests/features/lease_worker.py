"""A run over fake volumes in a process of its own: `lease_worker.py STORE FOLDER [FILE THAT BLOCKS]`.

Prints the files it decoded and how each input ended. The reader hangs on the file that blocks, once it is said so.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from features.conftest import CountingExtractor, CountingReader
from meddinov3_stroke.features import EmbeddingStore, extract


def main(store: Path, folder: Path, blocking: str = "") -> None:
    reader, extractor = CountingReader(), CountingExtractor()
    extractor.batch = 1000  # no pass is ever full: a run that waits has to embed what it holds

    def before_read(path: Path) -> None:
        if path.name == blocking:
            print("blocked", flush=True)
            time.sleep(3600)
        time.sleep(0.01)

    reader.before_read = before_read
    sys.modules[extract.__module__].open_input = reader
    found = list(extract(sorted(folder.iterdir()), extractor, EmbeddingStore(store)))
    tokens = [one.embeddings.cls.tolist() for one in found if one.embeddings is not None]
    print(json.dumps({"decoded": [path.name for path in reader.calls], "n": len(found), "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), *sys.argv[3:])
