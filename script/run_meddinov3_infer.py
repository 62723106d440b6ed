"""Slice embeddings and a patch-similarity map of one head CT."""

from meddinov3_stroke.meddinov3_infer import main

if __name__ == "__main__":
    raise SystemExit(main())
