"""Fetch the MedDINOv3 weights, or ask their size."""

from meddinov3_stroke.commands.download import main

if __name__ == "__main__":
    raise SystemExit(main())
