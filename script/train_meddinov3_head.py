"""Train a light head on embeddings and labels in .npy files."""

from meddinov3_stroke.head_train import main

if __name__ == "__main__":
    raise SystemExit(main())
